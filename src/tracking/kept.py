"""What a run keeps, for a report on it: its files, and what was found out about it since, in runs of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from src.errors import TrackingError
from src.tracking.server import client_of, no_run, reading, search, shown, why


@dataclass(frozen=True)
class Kept:
    """A run, and its files in a local folder."""

    id: str
    when: datetime
    tags: dict[str, str]
    metrics: dict[str, float]
    folder: Path


def kept(uri: str, run_id: str, files: Sequence[str], tables: str, into: Path) -> Kept:
    """Fetch these files of a run, as far as it has them, and everything below its folder `tables`. Raises
    TrackingError where there is no such run."""
    with reading(uri, no_run(uri, run_id)) as client:
        run = client.get_run(run_id)
        _fetch(client, run_id, files, tables, into)
    return _kept(run, into)


def about(uri: str, run_id: str, tag: str, files: Sequence[str], tables: str, into: Path) -> list[Kept]:
    """The finished runs that name this one in `tag` (`flywheel.evaluates`), newest first, with files as in `kept`."""
    with reading(uri, no_run(uri, run_id)) as client:
        found = search(client, f"tags.`{tag}` = '{run_id}' and attributes.status = 'FINISHED'")
        for run in found:
            _fetch(client, run.info.run_id, files, tables, into / run.info.run_id)
    return [_kept(run, into / run.info.run_id) for run in found]


def keep(uri: str, run_id: str, path: Path) -> None:
    """Put a file beside the run's others, in place of one of that name. Raises TrackingError."""
    try:
        client_of(uri).log_artifact(run_id, str(path))
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{path.name} could not be put into run={run_id!r} at {shown(uri)} "
                            f"({why(error)}). It lies at {path}.") from error


def _fetch(client: mlflow.MlflowClient, run_id: str, files: Sequence[str], tables: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    present = {file.path for file in client.list_artifacts(run_id)}
    for name in sorted(present & {*files, tables}):
        client.download_artifacts(run_id, name, str(into))


def _kept(run: mlflow.entities.Run, folder: Path) -> Kept:
    when = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return Kept(run.info.run_id, when, dict(run.data.tags), dict(run.data.metrics), folder)
