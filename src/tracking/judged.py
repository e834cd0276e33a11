"""A training run, and how its student was judged since."""

import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import mlflow

from src.errors import TrackingError
from src.tracking.server import no_run, reading, search
from src.tracking.stored import Child


class Past(NamedTuple):
    """A training run in its experiment, and its finished evaluations, newest first."""

    experiment: str
    trained: Child
    evaluations: list[Child]


def find_judged(uri: str, run_id: str, files: Sequence[str]) -> Past:
    """What they hold of these text artifacts. Raises TrackingError where there is no such training run."""
    with reading(uri, no_run(uri, run_id)) as client:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id).name
        found = search(client, f"tags.`flywheel.evaluates` = '{run_id}' and attributes.status = 'FINISHED'")
        trained, *judged = (Child(one.info.run_id, one.info.run_name, one.info.status, dict(one.data.tags),
                                  dict(one.data.metrics), _texts_of(client, one.info.run_id, files))
                            for one in (run, *found))
    if trained.tags.get("flywheel.stage") != "train" or trained.status != "FINISHED":
        stage = trained.tags.get("flywheel.stage", "no stage of Flywheel's")
        raise TrackingError(f"run={run_id!r} ({trained.name}, {stage}, {trained.status}) is not a finished training "
                            "run. Name one of src.train's.")
    return Past(experiment, trained, judged)


def _texts_of(client: mlflow.MlflowClient, run_id: str, files: Sequence[str]) -> dict[str, str]:
    """Of these artifacts, which may lie in folders, those that are there."""
    folders = {str(PurePosixPath(name).parent).removeprefix(".") for name in files}
    present = {file.path for folder in folders for file in client.list_artifacts(run_id, folder or None)}
    with tempfile.TemporaryDirectory() as into:
        return {name: Path(client.download_artifacts(run_id, name, into)).read_text(encoding="utf-8")
                for name in files if name in present}
