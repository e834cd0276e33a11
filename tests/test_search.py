"""A search goes on where it stopped: what a study gives out, what it counts, and the command around it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from jobs import runs

from src.config import Dimension, Search, SearchSpec, read
from src.errors import ConfigError, StoreError
from src.store import Store
from src.study import Study
from src.tracking import PARENT

ROOT = Path(__file__).parents[1]
SPACE = {"student.learning_rate": Dimension(low=1e-4, high=1e-2, log=True),
         "folds": Dimension(low=2, high=5, whole=True), "student.mixup": Dimension(values=[0.0, 0.2])}
FIXED = {"choose_by": "validation", "keys": ["+experiment=digits"]}


def opened(path: Path, **changes: Any) -> Study:
    return Study(path / "optuna.db", "s", **{"space": SPACE, "fixed": FIXED, "seed": 0, **changes})


def test_values_lie_within_the_space(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for _ in range(12):
        point = study.ask()
        assert 1e-4 <= point.values["student.learning_rate"] <= 1e-2
        assert point.values["folds"] in (2, 3, 4, 5) and point.values["student.mixup"] in (0.0, 0.2)
        study.tell(point, -abs(point.values["student.learning_rate"] - 1e-3))
    assert study.ended == 12


def test_a_search_goes_on_with_other_values(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.parent = "abc"
    before = [first.ask() for _ in range(3)]
    for point in before:
        first.tell(point, None if point.number == 1 else 0.5)
    again = opened(tmp_path)
    assert (again.parent, again.ended, again.given_up) == ("abc", 3, [])  # one that failed has ended too
    point = again.ask()
    assert point.number == 3 and point.values not in [earlier.values for earlier in before]


def ask_and_die(path: Path, told: Any) -> None:
    told.send(opened(path).ask().values)
    os._exit(1)


def test_what_a_killed_process_was_trying_is_tried_again(tmp_path: Path) -> None:
    opened(tmp_path)
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    died = multiprocessing.get_context("spawn").Process(target=ask_and_die, args=(tmp_path, theirs))
    died.start()
    died.join()
    lost = ours.recv()
    study = opened(tmp_path)
    assert (study.given_up, study.ended) == ([0], 0)
    point = study.ask()
    assert (point.number, point.values) == (1, lost)
    assert opened(tmp_path).given_up == []  # this process lives, and so does its trial


@pytest.mark.parametrize("changed", [{"space": {"seed": Dimension(values=[0, 1])}},
                                     {"fixed": {**FIXED, "choose_by": "gold"}}])
def test_another_search_has_another_name(changed: dict[str, Any], tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(ConfigError, match=r"search\.study='s' is not allowed: another name: .* (space|choose_by)"):
        opened(tmp_path, **changed)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("no database " * 1000)
    with pytest.raises(StoreError, match=r"optuna\.db cannot be used"):
        opened(tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"trials": 0}, "search.trials=0 is not allowed"), ({"choose_by": "test"}, "test never chooses"),
    ({"space": {}}, "search.space={} is not allowed"),
    ({"space": {"a": Dimension(low=2, high=1)}}, r"search.space\[a\]='2 to 1' is not allowed"),
    ({"space": {"a": Dimension(low=0, high=1, log=True)}}, "more than 0 for log"),
    ({"space": {"a": Dimension(low=0.5, high=1, whole=True)}}, "whole numbers"),
    ({"space": {"a": Dimension(values=[1])}}, "two values or more"),
])
def test_a_mistake_is_named_before_anything_is_trained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpec(**{"study": "s", "trials": 1, "choose_by": "gold", "space": SPACE, **changes})


def test_the_space_of_conf_is_one_of_a_jobs_keys() -> None:
    job = read(composed("search", "+experiment=cifar5"), Search)
    assert job.search.study == "cifar5 mobilenetv3_small_100"
    for key in job.search.space:
        group, name = key.split(".")
        assert hasattr(getattr(job, group), name), key


def search(home: Path, trials: int) -> subprocess.Popen[str]:
    job = [sys.executable, "-m", "src.search", "+experiment=digits", "rehearsal=always", "rehearsal/errors=none",
           "data.gold_size=40", "data.test_size=60", "labeler.max_items=60", "student.pretrained=false",
           "student.input_size=32", "student.batch_size=16", "student.export=false", "trainer.max_epochs=1",
           "trainer.accelerator=cpu", f"home={home}", f"search.trials={trials}"]
    env = {name: value for name, value in os.environ.items() if name not in (PARENT, "MLFLOW_TRACKING_URI")}
    return subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env,
                            start_new_session=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_command_goes_on_after_a_kill(tmp_path: Path) -> None:
    killed = search(tmp_path, 2)
    while not (found := list((tmp_path / "outputs").rglob("trial_1.log"))) and killed.poll() is None:
        time.sleep(0.2)
    assert found, killed.communicate()[0]
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    told = (again := search(tmp_path, 3)).communicate()[0]
    assert again.returncode == 0, told
    assert "1 of 3 trials have ended" in told and "Trial 3 of 3" in told and "Best by validation" in told
    parents = [run for run in runs(tmp_path) if run.data.tags["flywheel.stage"] == "sweep"]
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    done = [run for run in runs(tmp_path)
            if run.data.tags["flywheel.stage"] == "train" and run.info.status == "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in done} == {parents[0].info.run_id}
    values = [json.loads(run.data.tags["flywheel.swept"]) for run in done]
    assert len(done) == 3 == len({json.dumps(value) for value in values})
    assert parents[0].data.metrics["label/requests"] == len(Store(tmp_path / "annotations.db").read()) == 161
