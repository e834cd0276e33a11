"""Runs in MLflow; the only module that imports it.

A job is one run, opened around everything it does and closed with what became of it: FINISHED, FAILED or KILLED.
Knows nothing about labels or students beyond their numbers, files and pictures.
"""

import atexit
import json
import logging
import os
import re
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

# Nothing about a user's runs leaves their machine; this must stand before the import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import pandas as pd
import psutil
import sqlalchemy as sa
import yaml
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from mlflow.entities import RunStatus, ViewType
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig

from src.config import without_passwords
from src.errors import TrackingError

if TYPE_CHECKING:  # takes memory while a million items are asked about
    from matplotlib.figure import Figure

PARENT = "FLYWHEEL_PARENT_RUN"  # environment variable: id of the sweep's run
FAILED = "flywheel.failed."  # tag of the sweep's run, by the number of a job that failed: why
SOURCE = Path(__file__).parent
MAX_PIXELS = 50_000_000  # of an image that a loaded model is given; larger ones are refused before decoding


@dataclass(frozen=True)
class Run:
    """One open run. Figures go below `figures/`, tables below `tables/`."""

    id: str

    @property
    def payer(self) -> str:
        """Who pays for labels: the sweep as a whole, whose jobs share one cap, or this run."""
        return os.environ.get(PARENT) or self.id

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        mlflow.log_metrics({_allowed(name): value for name, value in values.items()}, step=step, run_id=self.id)

    def tags(self, values: Mapping[str, str]) -> None:
        mlflow.set_tags(dict(values))

    def params(self, config: Mapping[str, Any]) -> None:
        """All leaves of a nested config, under dotted names."""
        mlflow.log_params({_allowed(name): value for name, value in _leaves("", config)})

    def figure(self, figure: "Figure", name: str) -> None:
        mlflow.log_figure(figure, f"figures/{name}.png", save_kwargs={"dpi": 120})

    def table(self, rows: pd.DataFrame, name: str) -> None:
        mlflow.log_table(rows, f"tables/{name}.json")

    def file(self, path: Path) -> None:
        mlflow.log_artifact(str(path))

    def text(self, text: str, name: str) -> None:
        mlflow.log_text(text, name)

    def dataset(self, rows: pd.DataFrame, *, name: str, source: str, digest: str) -> None:
        """The items and their splits, as a data set that runs can be compared by."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow finds two readings of a plain path, and both are the same
            dataset = mlflow.data.from_pandas(rows, source=source, name=name, digest=digest[:36])
        mlflow.log_input(dataset, context="training")

    def model(self, checkpoint: Path, classes: Sequence[str], example: bytes) -> str:
        """Log the student as a pyfunc model and return its address. Input: a column `image` of encoded image files, of
        which `example` is one; output: `label`, `confidence` and one probability column for each class."""
        schema = mlflow.types.Schema
        column = mlflow.types.ColSpec
        out = [column("string", "label"), column("double", "confidence")]
        out += [column("double", f"p_{name}") for name in classes]
        signature = mlflow.models.ModelSignature(schema([column("binary", "image")]), schema(out))
        info = mlflow.pyfunc.log_model(
            name="student",
            python_model=StudentModel(),
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(SOURCE)],
            signature=signature,
            input_example=pd.DataFrame({"image": [example]}),
            pip_requirements=_requirements(),
        )
        return str(info.model_uri)


class StudentModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The student as MLflow loads and serves it."""

    def load_context(self, context: Any) -> None:
        from src.student.checkpoint import load

        self.student = load(Path(context.artifacts["checkpoint"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        from src.data.images import decode

        images = [decode(payload, MAX_PIXELS) for payload in model_input["image"]]
        probabilities = self.student.predict_images(images)
        answers = probabilities.argmax(axis=1)
        frame = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in self.student.classes])
        frame.insert(0, "confidence", probabilities.max(axis=1))
        frame.insert(0, "label", [self.student.classes[n] for n in answers])
        return frame


@contextmanager
def open_run(*, uri: str, experiment: str, artifacts: Path, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Open a run, child of the sweep's if there is one, and close it as FINISHED, FAILED or KILLED.

    Raises TrackingError where the tracking server or database cannot be used.
    """
    experiment_id = prepare(uri, experiment, artifacts)
    own = {"flywheel.host": socket.gethostname(), "flywheel.pid": str(os.getpid()), **tags}
    mlflow.start_run(experiment_id=experiment_id, run_name=name, tags=own, parent_run_id=os.environ.get(PARENT))
    status = "FAILED"
    try:
        run = mlflow.active_run()
        assert run is not None
        yield Run(run.info.run_id)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except MlflowException as error:
        raise TrackingError(f"MLflow at {_shown(uri)} failed: {str(error).splitlines()[0][:300]}. The labels are kept; "
                            "run again when it answers.") from error
    except BaseException as error:
        mlflow.set_tag("flywheel.error", str(error)[:500])
        raise
    finally:
        mlflow.end_run(status)


def prepare(uri: str, experiment: str, artifacts: Path) -> str:
    """Make database and experiment ready and return the experiment's id. Processes that start together do it in turn:
    three at once on a fresh database crash. Raises TrackingError."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    local = uri.startswith("sqlite:///")
    database = Path(uri.removeprefix("sqlite:///"))
    lock = database.with_suffix(".lock") if local else Path(tempfile.gettempdir()) / "flywheel-mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            mlflow.set_tracking_uri(uri)
            client = mlflow.MlflowClient()
            found = client.get_experiment_by_name(experiment)
            if local:
                # Readers and writers do not wait for each other, and a metric costs 8 ms instead of 22.
                with sa.create_engine(uri).connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if found is None:
                place = (artifacts / experiment).resolve().as_uri() if local else None
                return str(client.create_experiment(experiment, artifact_location=place))
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            _bury_the_dead(client, found.experiment_id)
            return str(found.experiment_id)
    except (MlflowException, sa.exc.SQLAlchemyError, OSError) as error:
        raise TrackingError(f"MLflow at {_shown(uri)} cannot be used: {str(error).splitlines()[0][:300]}. Check "
                            "tracking.uri, or MLFLOW_TRACKING_URI.") from error


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
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        raise TrackingError(f"run={run_id!r} is not a run at {_shown(uri)}: see the ids in the MLflow UI.") from error
    present = {file.path for file in client.list_artifacts(run_id)}
    lacking = sorted({"config.yaml", "mobilenet.pt"} - present)
    if lacking:
        raise TrackingError(f"run={run_id!r} ({run.info.run_name}, {run.info.status}) holds no "
                            f"{' and no '.join(lacking)}: it is not a finished training run. Name one of src.train's.")
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
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    try:
        if name == "latest":
            everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
            found = client.search_runs(everywhere, "tags.`flywheel.stage` = 'train' and attributes.status = 'FINISHED'",
                                       order_by=["attributes.start_time DESC"], max_results=1) if everywhere else []
            if not found:
                raise TrackingError(f"run=latest: {_shown(uri)} holds no finished training run yet. Make one: "
                                    "python -m src.train +experiment=demo")
            return found[0].info.run_id, f"run:{found[0].info.run_id}"
        if re.fullmatch("[0-9a-f]{32}", name):
            return name, f"run:{name}"
        parts = re.fullmatch(r"([^@/']+)(?:([@/])(.+))?", name.removeprefix("models:/"))
        if not parts:
            raise MlflowException("not a name")
        registered, sign, which = parts.groups()
        if sign == "@":
            version = client.get_model_version_by_alias(registered, which)
        elif sign == "/" and which != "latest":
            version = client.get_model_version(registered, which)
        else:
            versions = client.search_model_versions(f"name = '{registered}'")
            if not versions:
                raise MlflowException("no version")
            version = max(versions, key=lambda found: int(found.version))
        if not version.run_id:
            raise TrackingError(f"run={name!r}: version {version.version} of it was not registered from a run. "
                                "Register the model of a training run.")
        return version.run_id, f"models:/{registered}/{version.version}"
    except MlflowException as error:
        raise TrackingError(f"run={name!r} is neither a run's id nor a registered model at {_shown(uri)}: see the "
                            "MLflow UI, or give run=latest.") from error


@dataclass(frozen=True)
class Child:
    """One run of a sweep; `files` holds the text of those that were asked for and are there."""

    id: str
    name: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]
    files: dict[str, str]


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
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        parent = client.get_run(run_id)
        experiments = {experiment.experiment_id: experiment.name for experiment in client.search_experiments()}
        # All experiments: a sweep over tasks has its children in several.
        found = client.search_runs(list(experiments), f"tags.mlflow.parentRunId = '{run_id}'",
                                   order_by=["attributes.start_time ASC"])
    except MlflowException as error:
        raise TrackingError(f"sweep={run_id!r} is not a run at {_shown(uri)}: see the ids in the MLflow UI.") from error
    if not found:
        raise TrackingError(f"sweep={run_id!r} ({parent.info.run_name}) has no runs below it: name the parent run of a "
                            "multirun, as the MLflow UI shows it.")
    tags = parent.data.tags
    numbers = sorted(int(tag.removeprefix(FAILED)) for tag in tags if tag.startswith(FAILED))
    children = [Child(run.info.run_id, run.info.run_name, run.info.status, dict(run.data.tags), dict(run.data.metrics),
                      _texts(client, run.info.run_id, files)) for run in found]
    return StoredSweep(run_id, parent.info.run_name, experiments[parent.info.experiment_id],
                       [tags[f"{FAILED}{number}"] for number in numbers], children)


def _texts(client: mlflow.MlflowClient, run_id: str, files: Sequence[str]) -> dict[str, str]:
    present = {file.path for file in client.list_artifacts(run_id)}
    with tempfile.TemporaryDirectory() as folder:
        return {name: Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
                for name in files if name in present}


def certificates(uri: str, run_id: str, into: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Certificate and calibration of each certification of a training run, newest first."""
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(everywhere, f"tags.`flywheel.certifies` = '{run_id}' and attributes.status = 'FINISHED'",
                               order_by=["attributes.start_time DESC"])
    made = []
    for run in found:
        folder = into / "certificates" / run.info.run_id
        folder.mkdir(parents=True, exist_ok=True)
        names = ("certificate.json", "calibration.json")
        paths = [client.download_artifacts(run.info.run_id, name, str(folder)) for name in names]
        certificate, calibration = (json.loads(Path(path).read_text(encoding="utf-8")) for path in paths)
        made.append((certificate, calibration))
    return made


def latest(uri: str, metric: str, count: int) -> list[float]:
    """One metric of the latest runs, newest first."""
    mlflow.set_tracking_uri(uri)
    experiments = [experiment.experiment_id for experiment in mlflow.MlflowClient().search_experiments()]
    order = ["attributes.start_time DESC"]
    runs = mlflow.MlflowClient().search_runs(experiments, max_results=count, order_by=order)
    return [run.data.metrics[metric] for run in runs]


class ParentRun(Callback):
    """Hydra callback: every multirun is one parent run, whose id its jobs find in the environment."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if config.labeler.dry_run:
            return
        tracking = config.tracking
        experiment_id = prepare(tracking.uri, tracking.experiment, Path(tracking.artifacts))
        overrides = [without_passwords(str(override)) for override in config.hydra.overrides.task]
        swept = [override for override in overrides if "," in override or override.startswith("+ablation=")]
        run = mlflow.MlflowClient().create_run(
            experiment_id, run_name=f"sweep {' '.join(swept)}".strip()[:200],
            tags={"flywheel.stage": "sweep", "flywheel.overrides": " ".join(overrides)[:5000],
                  "flywheel.host": socket.gethostname(), "flywheel.pid": str(os.getpid())},
        )
        os.environ[PARENT] = run.info.run_id
        # Hydra does not call `on_multirun_end` where a job failed, so the process's end closes the parent.
        atexit.register(self._close, tracking.uri, run.info.run_id)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """A job may fail before it has a run of its own; the parent names it all the same."""
        parent = os.environ.get(PARENT)
        if parent and job_return.status == JobStatus.FAILED:
            mlflow.set_tracking_uri(config.tracking.uri)
            why = str(job_return._return_value)[:500]
            mlflow.MlflowClient().set_tag(parent, f"{FAILED}{config.hydra.job.num}", why)

    @staticmethod
    def _close(uri: str, parent: str) -> None:
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        run = client.get_run(parent)
        # All experiments: a sweep over tasks has its children in several.
        everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
        children = client.search_runs(everywhere, f"tags.mlflow.parentRunId = '{parent}'")
        states = [child.info.status for child in children]
        failed = sum(tag.startswith(FAILED) for tag in run.data.tags)
        client.log_metric(parent, "sweep/finished", states.count("FINISHED"))
        client.log_metric(parent, "sweep/failed", failed)
        client.log_metric(parent, "label/requests", sum(c.data.metrics.get("label/requests", 0) for c in children))
        finished = not failed and bool(states) and set(states) == {"FINISHED"}
        client.set_terminated(parent, "FINISHED" if finished else "FAILED")


def _bury_the_dead(client: mlflow.MlflowClient, experiment_id: str) -> None:
    """A process that was killed outright could not close its run: do it for those of this machine."""
    running = f"attributes.status = '{RunStatus.to_string(RunStatus.RUNNING)}'"
    for run in client.search_runs([experiment_id], running, ViewType.ACTIVE_ONLY):
        host, pid = run.data.tags.get("flywheel.host"), run.data.tags.get("flywheel.pid", "")
        if host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            client.set_terminated(run.info.run_id, "KILLED")


def _leaves(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(f"{name}.", value)
        else:
            yield name, value


def _allowed(name: str) -> str:
    """MLflow takes letters, digits and these signs in a name; a class or an alias may hold others."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _requirements() -> list[str]:
    """What the student needs where it is loaded; asking MLflow to infer it would take half a minute."""
    from importlib.metadata import version

    needed = ("torch", "torchvision", "timm", "numpy", "pandas", "pillow", "hydra-core", "omegaconf", "rich", "psutil",
              "filelock", "matplotlib", "sqlalchemy")
    return [f"{name}=={version(name).split('+')[0]}" for name in needed]


def _shown(uri: str) -> str:
    """The address without the password it may hold."""
    try:
        return sa.make_url(uri).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return uri
