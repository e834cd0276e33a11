"""Runs of earlier, read back."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml

from src.errors import TrackingError
from src.tracking.runs import VALUES
from src.tracking.server import client_of, everywhere, no_run, reading, search, shown

FAILED = "flywheel.failed."  # tag of the sweep's run, by the number of a job that failed: why


@dataclass(frozen=True)
class StoredRun:
    """A finished run as `src.evaluate` needs it: its config, and its artifacts in a local folder."""

    id: str
    name: str
    experiment: str
    config: dict[str, Any]
    tags: dict[str, str]
    folder: Path


def find(uri: str, run_id: str, into: Path) -> StoredRun:
    """Fetch a training run's config and student into `into`. Raises TrackingError where there is no such run."""
    with reading(uri, no_run(uri, run_id)) as client:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
        present = {file.path for file in client.list_artifacts(run_id)}
        lacking = sorted({"config.yaml", "mobilenet.pt"} - present)
        if lacking:
            raise TrackingError(f"run={run_id!r} ({run.info.run_name}, {run.info.status}) holds no "
                                f"{' and no '.join(lacking)}: it is not a finished training run. Name one of "
                                "src.train's.")
        for name in ("config.yaml", "mobilenet.pt", *sorted(present & {"calibration.json", "model.onnx"})):
            client.download_artifacts(run_id, name, str(into))
    try:
        config = yaml.safe_load((into / "config.yaml").read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrackingError(f"config.yaml of run={run_id!r} cannot be read ({type(error).__name__}): train again, or "
                            "name another run.") from error
    return StoredRun(run_id, run.info.run_name, experiment.name, config, dict(run.data.tags), into)


def run_of(uri: str, name: str) -> tuple[str, str]:
    """The training run that a name means, and what the model is called: a run's id, `latest`, or a registered model as
    `name` (its newest version), `name/version` or `name@alias`, with or without `models:/` before it. Raises
    TrackingError."""
    missing = (f"run={name!r} is neither a run's id nor a registered model at {shown(uri)}: see the MLflow UI, or give "
               "run=latest.")
    with reading(uri, missing) as client:
        if name == "latest":
            found = search(client, "tags.`flywheel.stage` = 'train' and attributes.status = 'FINISHED'", limit=1)
            if not found:
                raise TrackingError(f"run=latest: {shown(uri)} holds no finished training run yet. Make one: "
                                    "python -m src.train +experiment=demo")
            return found[0].info.run_id, f"run:{found[0].info.run_id}"
        if re.fullmatch("[0-9a-f]{32}", name):
            return name, f"run:{name}"
        parts = re.fullmatch(r"([^@/']+)(?:([@/])(.+))?", name.removeprefix("models:/"))
        if not parts:
            raise TrackingError(missing)
        registered, sign, which = parts.groups()
        if sign == "@":
            version = client.get_model_version_by_alias(registered, which)
        elif sign == "/" and which != "latest":
            version = client.get_model_version(registered, which)
        else:
            versions = client.search_model_versions(f"name = '{registered}'")
            if not versions:
                raise TrackingError(missing)
            version = max(versions, key=lambda found: int(found.version))
        if not version.run_id:
            raise TrackingError(f"run={name!r}: version {version.version} of it was not registered from a run. "
                                "Register the model of a training run.")
        return version.run_id, f"models:/{registered}/{version.version}"


@dataclass(frozen=True)
class Child:
    """One run of a sweep; `files` holds the text of those that were asked for and are there."""

    id: str
    name: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]
    files: dict[str, str]


def swept_values(tags: Mapping[str, str]) -> dict[str, str]:
    """The values of the swept keys, as they were given, by the tags of a job's run."""
    return {str(key): str(value) for key, value in json.loads(tags.get(VALUES, "{}")).items()}


@dataclass(frozen=True)
class StoredSweep:
    """A multirun's parent run and its children, oldest first; `failed` says why its failed jobs failed, in order."""

    id: str
    name: str
    experiment: str
    failed: list[str]
    children: list[Child]


def find_sweep(uri: str, run_id: str, files: Sequence[str]) -> StoredSweep:
    """Fetch what the runs of a sweep hold of these text artifacts. Raises TrackingError where there is no such run, or
    it has no children."""
    with reading(uri, no_run(uri, run_id, "sweep")) as client:
        parent = client.get_run(run_id)
        experiments = everywhere(client)
        found = search(client, f"tags.mlflow.parentRunId = '{run_id}'", oldest_first=True)
        children = [Child(run.info.run_id, run.info.run_name, run.info.status, dict(run.data.tags),
                          dict(run.data.metrics), _texts(client, run.info.run_id, files)) for run in found]
    if not found:
        raise TrackingError(f"sweep={run_id!r} ({parent.info.run_name}) has no runs below it: name the parent run of a "
                            "multirun, as the MLflow UI shows it.")
    tags = parent.data.tags
    numbers = sorted(int(tag.removeprefix(FAILED)) for tag in tags if tag.startswith(FAILED))
    return StoredSweep(run_id, parent.info.run_name, experiments[parent.info.experiment_id],
                       [tags[f"{FAILED}{number}"] for number in numbers], children)


def _texts(client: mlflow.MlflowClient, run_id: str, files: Sequence[str]) -> dict[str, str]:
    present = {file.path for file in client.list_artifacts(run_id)}
    with tempfile.TemporaryDirectory() as folder:
        return {name: Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
                for name in files if name in present}


def certificates(uri: str, run_id: str, into: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Certificate and calibration of each certification of a training run, newest first."""
    made = []
    with reading(uri, no_run(uri, run_id)) as client:
        for run in search(client, f"tags.`flywheel.certifies` = '{run_id}' and attributes.status = 'FINISHED'"):
            folder = into / "certificates" / run.info.run_id
            folder.mkdir(parents=True, exist_ok=True)
            names = ("certificate.json", "calibration.json")
            paths = [client.download_artifacts(run.info.run_id, name, str(folder)) for name in names]
            certificate, calibration = (json.loads(Path(path).read_text(encoding="utf-8")) for path in paths)
            made.append((certificate, calibration))
    return made


def latest(uri: str, metric: str, count: int) -> list[float]:
    """One metric of the latest runs, newest first."""
    runs = search(client_of(uri), "", limit=count)
    return [run.data.metrics[metric] for run in runs]
