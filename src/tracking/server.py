"""The MLflow server or database: its address, who may start first, and the runs that nobody can close any more."""

import logging
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import psutil
import sqlalchemy as sa
from filelock import FileLock
from mlflow.entities import Run, RunStatus, ViewType
from mlflow.exceptions import MlflowException

from src.errors import TrackingError

LOCAL = "sqlite:///"
PAGE = 1000  # runs that are asked for at a time


def client_of(uri: str) -> mlflow.MlflowClient:
    """A client; this process's runs go to the same address from now on."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


@contextmanager
def in_turn(uri: str) -> Iterator[None]:
    """One process of this machine at a time."""
    lock = Path(uri.removeprefix(LOCAL)).with_suffix(".lock") if uri.startswith(LOCAL) else \
        Path(tempfile.gettempdir()) / "flywheel-mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def prepare(uri: str, experiment: str, artifacts: Path) -> str:
    """Make database and experiment ready and return the experiment's id. Processes that start together do it in turn:
    three at once on a fresh database crash. Raises TrackingError."""
    local = uri.startswith(LOCAL)
    try:
        with in_turn(uri):
            client = client_of(uri)
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
            bury_the_dead(client, [found.experiment_id])
            return str(found.experiment_id)
    except (MlflowException, sa.exc.SQLAlchemyError, OSError) as error:
        raise TrackingError(f"MLflow at {shown(uri)} cannot be used: {str(error).splitlines()[0][:300]}. Check "
                            "tracking.uri, or MLFLOW_TRACKING_URI.") from error


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


def bury_the_dead(client: mlflow.MlflowClient, experiments: Sequence[str]) -> None:
    """A process that was killed outright could not close its run: do it for those of this machine."""
    running = f"attributes.status = '{RunStatus.to_string(RunStatus.RUNNING)}'"
    for run in client.search_runs(list(experiments), running, ViewType.ACTIVE_ONLY):
        host, pid = run.data.tags.get("flywheel.host"), run.data.tags.get("flywheel.pid", "")
        if host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            client.set_terminated(run.info.run_id, "KILLED")


def shown(uri: str) -> str:
    """The address without the password it may hold."""
    try:
        return sa.make_url(uri).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return uri
