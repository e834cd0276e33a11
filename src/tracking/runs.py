"""One open run, and how it ends."""

import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from PIL import Image

from src.errors import TrackingError
from src.tracking import views
from src.tracking.models import Logged, check_name, describe, log_student
from src.tracking.prompts import register
from src.tracking.server import PROCESS, prepare, shown, this_process, why

if TYPE_CHECKING:  # takes memory while a million items are asked about
    from matplotlib.figure import Figure

PARENT = "FLYWHEEL_PARENT_RUN"  # environment variable: id of the sweep's run
SWEPT = "FLYWHEEL_SWEPT"  # environment variable: number and swept values of this job of the sweep, as JSON
NOTE = "mlflow.note.content"  # tag: what the UI shows as the run's description, in Markdown
JOB = "flywheel.job"  # tag: which job of the sweep this is
VALUES = "flywheel.swept"  # tag: its values of the swept keys, as JSON
MAX_NAME = 200
SEND_EVERY_S = 2.0
MAX_POINTS = 1000  # that MLflow takes at once
MAX_NOTE = 8000  # characters that every MLflow store takes in a tag


@dataclass(frozen=True)
class Run:
    """One open run. Figures go below `figures/`, tables below `tables/`.

    Points of a curve are sent together every few seconds: on SQLite a call takes 10 ms, whatever it brings, which
    beside a small student's training step is much.
    """

    id: str
    _curves: "_Curves" = field(default_factory=lambda: _Curves(), repr=False, compare=False)

    @property
    def payer(self) -> str:
        """Who pays for labels: the sweep as a whole, whose jobs share one cap, or this run."""
        return os.environ.get(PARENT) or self.id

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Figures of the whole job, or with a `step` one point of a curve for each."""
        if step is None:
            mlflow.log_metrics({_allowed(name): value for name, value in values.items()}, run_id=self.id)
            return
        now = int(time.time() * 1000)
        self._curves.points += [Metric(_allowed(name), float(value), now, step) for name, value in values.items()]
        if time.monotonic() - self._curves.sent_at >= SEND_EVERY_S:
            self.send()

    def send(self) -> None:
        """Send what is waiting of the curves."""
        points, self._curves.points = self._curves.points, []
        for start in range(0, len(points), MAX_POINTS):
            mlflow.MlflowClient().log_batch(self.id, metrics=points[start:start + MAX_POINTS])
        self._curves.sent_at = time.monotonic()

    def tags(self, values: Mapping[str, str]) -> None:
        mlflow.set_tags(dict(values))

    def describe(self, text: str) -> None:
        """Markdown that stands at the head of the run's page."""
        mlflow.set_tag(NOTE, text[:MAX_NOTE])

    def compare(self, metric: str) -> str:
        """Let the UI offer this run beside all trainings, and beside the other jobs of its sweep, by `metric`; returns
        where, within the UI (see `views`)."""
        client, parent = mlflow.MlflowClient(), os.environ.get(PARENT, "")
        experiment = client.get_run(self.id).info.experiment_id
        try:
            views.offer(client, experiment, metric=metric, sweep=parent,
                        sweep_name=client.get_run(parent).info.run_name if parent else "", swept=list(_swept()))
        except MlflowException as error:  # a run is worth having without
            logging.getLogger(__name__).debug("views: %s", error)
        return views.link(experiment, views.key_of(parent) if parent else views.TRAININGS)

    def links(self, model: str) -> dict[str, str]:
        """Addresses within the UI of what the run belongs to: its sweep and the jobs beside it, its logged model."""
        run = mlflow.MlflowClient().get_run(self.id)
        place = f"#/experiments/{run.info.experiment_id}"
        found = {}
        if parent := run.data.tags.get("mlflow.parentRunId"):
            above = mlflow.MlflowClient().get_run(parent)
            found[above.info.run_name or "the sweep"] = f"#/experiments/{above.info.experiment_id}/runs/{parent}"
            found["its jobs compared"] = views.link(run.info.experiment_id, views.key_of(parent))
        if model.startswith("models:/m-"):
            found["the logged model"] = f"{place}/models/{model.removeprefix('models:/')}"
        found["all trainings compared"] = views.link(run.info.experiment_id, views.TRAININGS)
        return found

    def params(self, config: Mapping[str, Any]) -> None:
        """All leaves of a nested config, under dotted names."""
        mlflow.log_params({_allowed(name): value for name, value in _leaves("", config)})

    def figure(self, figure: "Figure", name: str) -> None:
        """Those of `views.PICTURES` also as images that the UI shows side by side for several runs."""
        mlflow.log_figure(figure, f"figures/{name}.png", save_kwargs={"dpi": 120})
        if name in views.PICTURES:
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=80)
            mlflow.log_image(Image.open(drawn), key=name, step=0, synchronous=True)

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
            dataset = mlflow.data.from_pandas(rows, source=source, name=name, digest=digest[:12])
        mlflow.log_input(dataset, context="training")

    def model(self, checkpoint: Path, classes: Sequence[str], example: bytes, register: str | None = None) -> Logged:
        """Log the student as a model, registered under a name where one is given (see `models.log_student`)."""
        return log_student(checkpoint, classes, example, name=register)

    def check_register(self, name: str) -> None:
        """Raises ConfigError for a name that the model registry does not take."""
        check_name(name)

    def describe_model(self, model: Logged, text: str, tags: Mapping[str, str]) -> None:
        """Markdown and tags of the logged model, and of the version that it was registered as."""
        describe(model, text, tags)

    def prompt(self, name: str, *, system: str, user: str, schema: Mapping[str, Any], digest: str,
               template: str = "") -> str | None:
        """Put the prompt into the registry, unless it stands there, link it with this run, and return its address. None
        where the server keeps no prompts."""
        own = mlflow.MlflowClient().get_run(self.id).info
        return register(name, system=system, user=user, schema=schema, digest=digest, template=template,
                        experiment=own.experiment_id, run_id=self.id, run_name=own.run_name or "a run")


@dataclass
class _Curves:
    """What is waiting to be sent, and when the last was, by `time.monotonic`."""

    points: list[Metric] = field(default_factory=list)
    sent_at: float = 0.0


@contextmanager
def open_run(*, uri: str, experiment: str, artifacts: Path, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Open a run, child of the sweep's if there is one, and close it as FINISHED, FAILED or KILLED.

    Raises TrackingError where the tracking server or database cannot be used.
    """
    experiment_id = prepare(uri, experiment, artifacts)
    own = {**this_process(), **tags}
    if PARENT in os.environ and SWEPT in os.environ:
        own |= {JOB: str(json.loads(os.environ[SWEPT])["job"]), VALUES: json.dumps(_swept())}
        # First, since the UI shows twenty characters of a name in a table.
        told = [f"{key.rpartition('.')[2]}={value}" for key, value in _swept().items() if key != "seed"]
        name = " ".join([*told, name])[:MAX_NAME]
    opened = mlflow.start_run(experiment_id=experiment_id, run_name=name, tags=own,
                              parent_run_id=os.environ.get(PARENT))
    run = Run(str(opened.info.run_id))
    try:
        # A folder of conf/ is a key of the sweep alone: the UI takes its values from here.
        if folders := {key: value for key, value in _swept().items() if "/" in key}:
            mlflow.log_params(folders)
        yield run
        run.send()
        _close(run.id, "FINISHED")
    except BaseException as error:
        lost = isinstance(error, MlflowException)
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        with suppress(MlflowException):  # what is to be told is what went wrong, and not that nobody noted it
            if not lost:
                run.send()  # the curves of a job that failed tell why
                if not stopped:
                    mlflow.set_tag("flywheel.error", str(error)[:500])
        with suppress(MlflowException):
            _close(run.id, "KILLED" if stopped else "FAILED")
        if not lost:
            raise
        raise TrackingError(f"MLflow at {shown(uri)} failed: {why(error)}. The labels are kept; "  # type: ignore[arg-type]
                            "run again when it answers.") from error


def _close(run_id: str, status: str) -> None:
    with suppress(MlflowException):  # it is for a run that is open, and stands in a reader's way
        mlflow.MlflowClient().delete_tag(run_id, PROCESS)
    mlflow.end_run(status)


def _swept() -> dict[str, str]:
    """This job's values of the sweep's keys, if it is one of a sweep."""
    values: dict[str, str] = json.loads(os.environ.get(SWEPT, "{}")).get("values", {}) if PARENT in os.environ else {}
    return values


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
