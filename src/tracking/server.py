"""The MLflow server or database: its address, who may start first, and the runs that nobody can close any more."""

import functools
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import psutil
import sqlalchemy as sa
from filelock import FileLock
from mlflow.entities import Run, RunStatus, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from src.address import HOW, is_clear, without_passwords
from src.errors import TrackingError
from src.labeling import owner

LOCAL = "sqlite:///"
HOST, PID, PROCESS = "flywheel.host", "flywheel.pid", "flywheel.process"  # tags of a run: who has it open
UNUSABLE = (MlflowException, sa.exc.SQLAlchemyError, ImportError, OSError)  # what is raised where it does not answer
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes for a name that leads nowhere
PAGE = 1000  # runs that are asked for at a time


def client_of(uri: str) -> mlflow.MlflowClient:
    """A client; this process's runs go to the same address from now on. Raises TrackingError for an address that can
    be read in several ways."""
    if not uri.strip():
        raise TrackingError("tracking.uri='' is no address: give one, or leave MLFLOW_TRACKING_URI out.")
    if not is_clear(uri):
        raise TrackingError(f"MLflow at {shown(uri)} cannot be used: {HOW}. Check tracking.uri, or "
                            "MLFLOW_TRACKING_URI.")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


@contextmanager
def in_turn(uri: str) -> Iterator[None]:
    """One process of this machine at a time; on a server, of this user's, for others may not write the same lock."""
    lock = Path(uri.removeprefix(LOCAL)).with_suffix(".lock") if uri.startswith(LOCAL) else \
        Path(tempfile.gettempdir()) / f"flywheel-mlflow-{getattr(os, 'getuid', int)()}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def prepare(uri: str, experiment: str, artifacts: Path) -> str:
    """Make database and experiment ready and return the experiment's id. Processes that start together do it in turn:
    three at once on a fresh database crash. `artifacts` is for databases: a server has a place of its own. Raises
    TrackingError."""
    try:
        with in_turn(uri):
            client = client_of(uri)
            found = client.get_experiment_by_name(experiment)
            if uri.startswith(LOCAL):
                # Readers and writers do not wait for each other, and a metric costs 8 ms instead of 22.
                with sa.create_engine(uri).connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if found is None:
                kept_here = uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES
                place = (artifacts / experiment).resolve().as_uri() if kept_here else None
                try:
                    return str(client.create_experiment(experiment, artifact_location=place))
                except MlflowException:
                    found = client.get_experiment_by_name(experiment)  # another machine may have been first
                    if found is None:
                        raise
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            bury_the_dead(client, [found.experiment_id])
            return str(found.experiment_id)
    except UNUSABLE as error:
        raise TrackingError(f"MLflow at {shown(uri)} cannot be used: {why(error)}. Check "
                            "tracking.uri, or MLFLOW_TRACKING_URI.") from error


@contextmanager
def reached(uri: str) -> Iterator[None]:
    """What fails between two jobs fails in the user's words: TrackingError."""
    try:
        yield
    except UNUSABLE as error:
        raise TrackingError(f"MLflow at {shown(uri)} failed: {why(error)}. The labels are kept; "
                            "run again when it answers.") from error


@contextmanager
def reading(uri: str, missing: str) -> Iterator[mlflow.MlflowClient]:
    """A client to look something up with. Raises TrackingError, with `missing` where that is not there."""
    answers = False
    try:
        client = client_of(uri)
        client.search_experiments(max_results=1)
        answers = True
        yield client
    except UNUSABLE as error:
        # MLflow has the same code for an address that it cannot use.
        if answers and getattr(error, "error_code", "") in NOT_THERE:
            raise TrackingError(missing) from error
        raise TrackingError(f"MLflow at {shown(uri)} could not be read: {why(error)}. Check tracking.uri, or "
                            "MLFLOW_TRACKING_URI.") from error


def no_run(uri: str, run_id: str, key: str = "run") -> str:
    """What is said where there is no such run."""
    return f"{key}={run_id!r} is not a run at {shown(uri)}: see the ids in the MLflow UI."


def everywhere(client: mlflow.MlflowClient) -> dict[str, str]:
    """The names of all experiments by their ids."""
    return {experiment.experiment_id: experiment.name for experiment in client.search_experiments()}


def search(client: mlflow.MlflowClient, condition: str, *, oldest_first: bool = False,
           limit: int | None = None) -> list[Run]:
    """Runs of all experiments, newest first: a sweep over tasks has its children in several."""
    experiments = list(everywhere(client))
    order = [f"attributes.start_time {'ASC' if oldest_first else 'DESC'}"]
    found: list[Run] = []
    page: str | None = None
    while experiments and (limit is None or len(found) < limit):
        got = client.search_runs(experiments, condition, order_by=order, page_token=page,
                                 max_results=PAGE if limit is None else min(PAGE, limit - len(found)))
        found += got
        page = got.token
        if not page:
            break
    return found


def this_process() -> dict[str, str]:
    """Tags by which a run says who has it open."""
    return {HOST: socket.gethostname(), PID: str(os.getpid()), PROCESS: _name(os.getpid())}


@functools.cache
def _name(pid: int) -> str:
    return owner.born()


def bury_the_dead(client: mlflow.MlflowClient, experiments: Sequence[str]) -> None:
    """A process that was killed outright could not close its run: do it for those of this machine."""
    running = f"attributes.status = '{RunStatus.to_string(RunStatus.RUNNING)}'"
    for run in client.search_runs(list(experiments), running, ViewType.ACTIVE_ONLY):
        if _is_dead(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process is gone that had the run open: after a restart its number may be another's."""
    if name := tags.get(PROCESS):
        return owner.is_dead(name, datetime.now(UTC))  # of another machine's process nothing is known
    pid = tags.get(PID, "")
    return tags.get(HOST) == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid))


def shown(uri: str) -> str:
    """The address without the password it may hold."""
    return without_passwords(uri)


def why(error: Exception) -> str:
    """The first line of what went wrong, without passwords."""
    return without_passwords([*str(error).splitlines(), type(error).__name__][0])[:300]

