"""A run and a sweep against a real `mlflow server`, which keeps figures and artifacts elsewhere."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier

import mlflow
import pandas as pd
import pytest
from tracking_servers import mlflow_server

from src.errors import TrackingError
from src.tracking import PARENT, SWEPT, close_parent, find_sweep, open_parent, open_run, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    home = tmp_path_factory.mktemp("server")
    with mlflow_server(home, f"sqlite:///{home}/server.db") as address:
        yield address


def test_a_sweep_on_a_server_is_one_on_a_file(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"uri": server, "experiment": "t", "artifacts": tmp_path / "unused", "name": "t net s0"}
    parent = open_parent(server, "t", tmp_path, name="sweep a=1,2", overrides=["a=1,2"], tags={})
    monkeypatch.setenv(PARENT, parent)
    for job in (0, 1):
        monkeypatch.setenv(SWEPT, json.dumps({"job": job, "values": {"a": str(job + 1)}}))
        with open_run(**where, tags={"metric": "accuracy"}) as run:  # type: ignore[arg-type]
            for step in range(50):
                run.metrics({"train/step_loss": 1.0 / (step + 1)}, step)
            run.metrics({"val/teacher_agreement": 0.5 + job / 10, "val/items": 20, "label/requests": 3})
            run.text("seed: 0", "config.yaml")
            run.table(pd.DataFrame({"x": [1]}), "some")
            address = run.prompt("p-1", system="s", user="u", schema={"type": "object"}, digest="1f")
            assert address == "prompts:/p-1/1"
    close_parent(server, parent, "validation")
    client = mlflow.MlflowClient(server)
    stored = client.get_run(parent)
    assert stored.info.status == "FINISHED" and stored.data.tags["flywheel.best"] == run.id
    assert stored.data.metrics["label/requests"] == 6
    assert len(client.get_metric_history(run.id, "train/step_loss")) == 50
    assert {file.path for file in client.list_artifacts(parent, "tables")} == {"tables/sweep.json"}
    assert [child.files for child in find_sweep(server, parent, ["config.yaml"]).children] == [
        {"config.yaml": "seed: 0"}] * 2
    assert not (tmp_path / "unused").exists()


def test_machines_that_start_at_once_on_a_fresh_server_do_not_race(server: str, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.tracking.server.in_turn", lambda _: nullcontext())  # which holds for one machine
    all_there = Barrier(8, timeout=60)

    def start(_: int) -> list[str]:
        made = []
        for round_ in range(4):  # in the first, libraries are still being imported, by one after the other
            all_there.wait()
            made.append(prepare(server, f"fresh {round_}", tmp_path))
        return made

    with ThreadPoolExecutor(8) as machines:
        found = list(machines.map(start, range(8)))
    assert found == [found[0]] * 8 and len(set(found[0])) == 4


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv(PARENT, raising=False)
    with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"), open_run(
            uri="http://127.0.0.1:9", experiment="t", artifacts=tmp_path, name="r", tags={}):
        pass
    assert PARENT not in os.environ
