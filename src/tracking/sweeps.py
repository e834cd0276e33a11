"""The run above the jobs of a sweep: opened before the first of them, closed with a summary of them all."""

import atexit
import json
import logging
import math
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from mlflow.entities import Run
from omegaconf import DictConfig, OmegaConf

from src.address import without_passwords
from src.console import say, table, warn
from src.errors import ConfigError, FlywheelError, TrackingError
from src.metrics import Interval
from src.reporting import sweeps
from src.tracking.runs import JOB, MAX_NAME, MAX_NOTE, NOTE, PARENT, SWEPT, VALUES
from src.tracking.server import (
    bury_the_dead,
    client_of,
    everywhere,
    prepare,
    reached,
    reading,
    search,
    shown,
    this_process,
)
from src.tracking.stored import FAILED

BEST = "flywheel.best"  # tag of a job's run: the sweep that it is the best of, and of the sweep's: the job
REPEATED = "flywheel.repeated"  # tag of a job's run: it was given up, and another job has its values
JOBS = "flywheel.jobs"  # tag of the sweep's run: how many it is to have, where that is known
LOST = "flywheel.lost."  # tag of the sweep's run, by the number of a job that failed: its swept values, as JSON


class ParentRun(Callback):
    """Hydra callback: every multirun is one parent run, whose id its jobs find in the environment. At its end that run
    has a table, a picture and a page of its jobs, and the best of them is marked: by `validation` or `gold`."""

    def __init__(self, choose_by: str = "validation") -> None:
        self.by = choose_by
        self.same: set[str] = set()
        self.open = ""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            sweeps.check_choice(self.by, "hydra.callbacks.parent_run.choose_by")
            if OmegaConf.select(config, "hydra.launcher.n_jobs") == 0:
                raise ConfigError("hydra.launcher.n_jobs", 0, "1 or more, or -1 for every core")
            if folder := OmegaConf.select(config, "hydra.sweep.dir"):
                atexit.register(_without_passwords, Path(folder) / "multirun.yaml")
            if config.labeler.dry_run:
                return
            tracking = config.tracking
            given = _parsed(config.hydra.overrides.task)
            self.same = {_key(each.get_key_element()) for each in given if not each.is_sweep_override()}
            swept = [without_passwords(str(each.input_line)) for each in given
                     if each.is_sweep_override() or each.get_key_element() == "+ablation"]
            self.open = open_parent(tracking.uri, tracking.experiment, Path(tracking.artifacts),
                                    name=f"sweep {' '.join(swept)}".strip(),
                                    overrides=[without_passwords(str(each.input_line)) for each in given],
                                    tags={"task": str(config.task.name)} if "task" in config else {},
                                    jobs=_jobs(config))
        except FlywheelError as error:
            # Hydra would make a warning of it, and train everything without a sweep's run.
            sys.stderr.write(f"{error}\n")
            raise SystemExit(1) from error
        os.environ[PARENT] = self.open
        # Hydra does not call `on_multirun_end` where a job failed, so the process's end closes the parent.
        atexit.register(self._close, tracking.uri, self.open)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """The job's run is to say which values it has, in whatever process it runs."""
        if PARENT in os.environ and not OmegaConf.is_missing(config.hydra.job, "num"):  # a search says it itself
            os.environ[SWEPT] = json.dumps({"job": config.hydra.job.num, "values": self._swept(config)})

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """A job may fail before it has a run of its own; the parent names it all the same."""
        os.environ.pop(SWEPT, None)
        _make_portable(job_return)
        parent = os.environ.get(PARENT)
        if parent and job_return.status == JobStatus.FAILED and not OmegaConf.is_missing(config.hydra.job, "num"):
            mark_failed(config.tracking.uri, parent, config.hydra.job.num, self._swept(config),
                        str(job_return._return_value))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        self._close(config.tracking.uri, self.open)

    def _swept(self, config: DictConfig) -> dict[str, str]:
        """What the job has beyond what all were given. By keys, since Hydra spells values its own way."""
        pairs = [str(override).partition("=") for override in config.hydra.overrides.task]
        return {_key(key): without_passwords(value) for key, _, value in pairs if _key(key) not in self.same}

    def _close(self, uri: str, parent: str) -> None:
        if not self.open:
            return
        self.open = ""
        try:
            with reached(uri):
                if not close_parent(uri, parent, self.by):  # a mistyped key, found before the first job
                    client_of(uri).delete_run(parent)
        except TrackingError as error:  # at the process's end nobody would catch it
            warn(f"The sweep's run {parent} could not be closed. {error}")


def _parsed(overrides: Sequence[Any]) -> list[Override]:
    return list(OverridesParser.create().parse_overrides([str(each) for each in overrides]))


def _jobs(config: DictConfig) -> int:
    """How many jobs Hydra's own sweeper makes of the config's and the command line's values; 0 where that is not known
    before it does."""
    sweeper = OmegaConf.select(config, "hydra.sweeper")
    if not sweeper or not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return 0
    values = {}
    for each in _parsed([*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()),
                         *config.hydra.overrides.task]):
        if each.is_sweep_override() and (not each.is_discrete_sweep()
                                         or each.value_type == ValueType.GLOB_CHOICE_SWEEP):
            return 0
        # Of a key that is given twice, the last counts.
        values[each.get_key_element()] = len(list(each.sweep_string_iterator())) if each.is_sweep_override() else 1
    return math.prod(values.values())


def open_parent(uri: str, experiment: str, artifacts: Path, *, name: str, overrides: Sequence[str],
                tags: Mapping[str, str], jobs: int = 0) -> str:
    """Open a run for jobs to stand below, and return its id. `jobs` is how many there are to be, where that is known.
    Raises TrackingError."""
    experiment_id = prepare(uri, experiment, artifacts)
    own = {"flywheel.stage": "sweep", "flywheel.overrides": " ".join(overrides)[:5000], **this_process()}
    own |= {JOBS: str(jobs)} if jobs else {}
    run = mlflow.MlflowClient().create_run(experiment_id, run_name=name[:MAX_NAME], tags={**own, **tags})
    return str(run.info.run_id)


def go_on_with(uri: str, parent: str) -> None:
    """The sweep's run is open again, in this process. Raises TrackingError where it is gone."""
    gone = f"The search's run {parent} is not at {shown(uri)} any more: give another search.study."
    with reading(uri, gone) as client:
        for tag, value in this_process().items():
            client.set_tag(parent, tag, value)
        client.update_run(parent, status="RUNNING")


def mark_repeated(uri: str, parent: str, jobs: Sequence[int]) -> None:
    """These were given up by a process that died, and others do their work: the sweep has not failed for that."""
    client = client_of(uri)
    for run in search(client, f"tags.mlflow.parentRunId = '{parent}'"):
        if run.data.tags.get(JOB) in {str(job) for job in jobs}:
            client.set_tag(run.info.run_id, REPEATED, "yes")


def figure_of(uri: str, parent: str, job: int, by: str) -> float | None:
    """What a job of the sweep is judged by; None where it did not finish."""
    condition = f"tags.mlflow.parentRunId = '{parent}' and tags.`{JOB}` = '{job}' and attributes.status = 'FINISHED'"
    found = search(client_of(uri), condition, limit=1)
    interval = sweeps.score(_child(found[0], ""), by) if found else None
    return interval.value if interval else None


def mark_failed(uri: str, parent: str, job: int, values: Mapping[str, str], why: str) -> None:
    """Let the sweep's run say that a job failed, with which values, and why."""
    client = client_of(uri)
    client.set_tag(parent, f"{LOST}{job}", json.dumps(dict(values)))
    client.set_tag(parent, f"{FAILED}{job}", why[:500])


def close_parent(uri: str, parent: str, by: str) -> list[sweeps.Child]:
    """Sum the jobs up in the sweep's run and on the console, mark the best, and close the run: FINISHED where every job
    is. What was asked of teachers counts for failed jobs too. Returns the jobs, oldest first."""
    client = client_of(uri)
    bury_the_dead(client, list(everywhere(client)))  # a job may have been killed outright
    run = client.get_run(parent)
    found = search(client, f"tags.mlflow.parentRunId = '{parent}'", oldest_first=True)
    children = _children(run, found)
    chosen = sweeps.best(children, by)
    # Those that a sweep which was stopped, or lost a worker, never came to.
    lost = max(0, int(run.data.tags.get(JOBS, 0)) - len(children)) if children else 0
    states = [child.status for child in children if not child.repeated] + ["LOST"] * lost
    figures = {"sweep/jobs": len(states), "sweep/finished": states.count("FINISHED"),
               "sweep/failed": len(states) - states.count("FINISHED"),
               "label/requests": sum(child.requests for child in children),
               "label/cost_usd": sum(child.cost_usd for child in children),
               "sweep/seconds": sum(child.seconds for child in children)}
    for name, figure in figures.items():
        client.log_metric(parent, name, figure)
    status = "FINISHED" if set(states) == {"FINISHED"} else "FAILED"
    try:
        _summarise(client, run, children, chosen, by, found, lost)
    except Exception as error:  # at the process's end, where a traceback would hide what failed before it
        logging.getLogger(__name__).debug("summary", exc_info=True)
        warn(f"The sweep's summary could not be written: {type(error).__name__}: {error}")
    finally:
        client.set_terminated(parent, status)
    return children


def _without_passwords(file: Path) -> None:
    """Hydra writes down what was given as it was given."""
    if file.exists():
        file.write_text(without_passwords(file.read_text(encoding="utf-8")), encoding="utf-8")


def _key(override: str) -> str:
    return override.lstrip("+~")


def _make_portable(job_return: JobReturn) -> None:
    """A worker hands an error to the process that waits for it, and one that cannot be unpickled there, as many with
    arguments of their own, would take all other jobs with it."""
    try:
        pickle.loads(pickle.dumps(job_return._return_value))
    except Exception:
        if job_return.status == JobStatus.FAILED:
            job_return.return_value = FlywheelError(str(job_return._return_value))


def _summarise(client: mlflow.MlflowClient, run: Run, children: Sequence[sweeps.Child], chosen: sweeps.Child | None,
               by: str, found: Sequence[Run], lost: int) -> None:
    parent = run.info.run_id
    note = next((said for child in found if (said := child.data.tags.get("rehearsal", "no")) != "no"), "")
    for child in found:  # the search goes on: what was the best may not be any more
        if BEST in child.data.tags and (chosen is None or child.info.run_id != chosen.id):
            client.delete_tag(child.info.run_id, BEST)
    if chosen:
        client.set_tag(chosen.id, BEST, f"{parent} by {by}")
        client.set_tag(parent, BEST, chosen.id)
        for name, interval in ((f"best/gold_{chosen.metric}", chosen.gold), (f"best/test_{chosen.metric}", chosen.test),
                               ("best/val_teacher_agreement", chosen.agreement)):
            if interval:
                client.log_metric(parent, name, interval.value)
    client.set_tag(parent, "rehearsal", note or "no")
    client.set_tag(parent, NOTE, sweeps.page(children, chosen, by, note, lost)[:MAX_NOTE])
    if not children:
        return
    client.log_table(parent, sweeps.frame(children, chosen), "tables/sweep.json")
    picture = sweeps.figure(children, chosen, by, title=run.info.run_name, note=note)
    client.log_figure(parent, picture, "figures/sweep.png")
    metric = children[0].metric
    table(f"{run.info.run_name} {note}".strip(), sweeps.rows(children, chosen),
          ("job", "validation agreement", f"gold {metric}", f"test {metric}", "cost", "s", ""))
    for child in children:
        if child.failed:
            warn(f"{child.told} failed: {child.failed}")
    if differ := _other_validation(found):
        warn(differ)
    say(sweeps.statement(children, chosen, by, lost))
    say(f"The sweep: MLflow run {parent}")


def _children(parent: Run, found: Sequence[Run]) -> list[sweeps.Child]:
    """The sweep's jobs: those with a run of their own, oldest first, and those that failed before they had one."""
    tags = parent.data.tags
    failed = {tag.removeprefix(FAILED): why for tag, why in tags.items() if tag.startswith(FAILED)}
    children = [_child(run, failed.pop(run.data.tags.get(JOB, ""), "")) for run in found]
    for job, why in sorted(failed.items(), key=lambda pair: int(pair[0])):
        values = json.loads(tags.get(f"{LOST}{job}", "{}"))
        children.append(sweeps.Child("", f"job {job}", "", "FAILED", values, "accuracy", None, None, None, 0.0, 0, 0.0,
                                     failed=why))
    return children


def _child(run: Run, why: str) -> sweeps.Child:
    figures, tags, info = run.data.metrics, run.data.tags, run.info
    metric = tags.get("metric", "accuracy")

    def against_truth(part: str) -> Interval | None:
        names = [f"{part}/{metric}", f"{part}/{metric}_low", f"{part}/{metric}_high", f"{part}/n"]
        if not all(name in figures for name in names):
            return None
        value, low, high, n = (figures[name] for name in names)
        return Interval(value, low, high, int(n))

    # Without the items there is no student yet: the agreement is that of an epoch.
    agreed = sweeps.agreement(figures.get("val/teacher_agreement"), figures.get("val/items"))
    seconds = ((info.end_time or info.start_time) - info.start_time) / 1000
    return sweeps.Child(
        info.run_id, info.run_name, f"#/experiments/{info.experiment_id}/runs/{info.run_id}", info.status,
        json.loads(tags.get(VALUES, "{}")), metric, agreed, against_truth("gold"), against_truth("test"),
        figures.get("label/cost_usd_this_run", 0.0), int(figures.get("label/requests", 0)), seconds,
        failed=why or tags.get("flywheel.error", "") if info.status != "FINISHED" else "", repeated=REPEATED in tags,
    )


def _other_validation(found: Sequence[Run]) -> str:
    """Agreement is with the labels that a job learned from: where these are others, it does not compare."""
    sizes = {(run.data.metrics["val/items"], run.data.tags.get("dataset_hash")) for run in found
             if "val/items" in run.data.metrics}
    return "" if len(sizes) < 2 else ("The jobs were not all validated on the same items: choose by gold "
                                      "(hydra.callbacks.parent_run.choose_by=gold).")
