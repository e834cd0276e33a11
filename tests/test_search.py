"""A search goes on where it stopped: what a study gives out, what it counts, and the command around it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from jobs import call, runs
from tracking_servers import environment

from src import search
from src.config import CONF, Dimension, Search, SearchSpec, read
from src.errors import ConfigError, StoreError
from src.store import Store
from src.study import Study

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
    again.settle(lambda _: None)
    assert (again.parent, again.ended, again.repeated) == ("abc", 3, [])  # one that failed has ended too
    point = again.ask()
    assert point.number == 3 and point.values not in [earlier.values for earlier in before]


@pytest.fixture
def lost(tmp_path: Path) -> Any:
    """The values of a study's first trial, whose process died."""
    wanted = ", ".join(repr(each) for each in (tmp_path / "optuna.db", "s", SPACE))
    program = ("import json, os\nfrom pathlib import *\nfrom src.config import *\nfrom src.study import Study\n"
               f"print(json.dumps(Study({wanted}, fixed={FIXED!r}, seed=0).ask().values), flush=True)\nos._exit(1)")
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert died.returncode == 1, died.stderr
    return json.loads(died.stdout)


def test_what_a_killed_process_was_trying_is_tried_again(lost: Any, tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.settle(lambda _: None)
    assert (study.repeated, study.ended) == ([0], 0)
    point = study.ask()
    assert (point.number, point.values) == (1, lost)
    again = opened(tmp_path)
    again.settle(lambda _: None)
    assert again.repeated == [0]  # this process lives, and so does its trial


def test_a_figure_that_came_after_all_counts(lost: Any, tmp_path: Path) -> None:
    """The search was killed and the training went on to its end."""
    study = opened(tmp_path)
    study.settle({0: 0.75}.get)
    assert (study.repeated, study.ended) == ([], 1)
    point = study.ask()
    assert point.number == 1 and point.values != lost


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


@pytest.fixture
def hydra_at_work() -> Iterator[None]:
    """As within an entry point, which can compose its trainings' configs."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        yield


@pytest.mark.parametrize(("key", "span", "message"), [
    ("student.mixupp", Dimension(low=0, high=1), r"space\[student\.mixupp\]=0 is not allowed: Key 'mixupp' not in"),
    ("student.drop_rate", Dimension(low=0, high=2), r"space\[student\.drop_rate\]=2 is .*student\.drop_rate=2\.0 is"),
    ("student.name", Dimension(values=["mobilenetv3_small_100", "mobilnet"]), r"\[student\.name\]='mobilnet' is not"),
    ("trainer.max_epochs", Dimension(low=0.5, high=8), r"\[trainer\.max_epochs\]=0\.5 is not allowed: .*Integer"),
])
def test_a_key_that_no_training_takes_is_told_first(key: str, span: Dimension, message: str,
                                                    hydra_at_work: None) -> None:
    with pytest.raises(ConfigError, match=message):
        search.searched({"student.mixup": Dimension(values=[0.0, 0.1]), key: span}, ["+experiment=digits"])


def test_what_is_given_is_not_searched(hydra_at_work: None, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"student.mixup": Dimension(values=[0.0, 0.1]), "student.drop_rate": Dimension(low=0, high=0.5)}
    left = search.searched(space, ["+experiment=digits", "student.mixup=0.1"])
    assert left == {"student.drop_rate": space["student.drop_rate"]}
    assert "Given, and so not searched: student.mixup" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"search\.space=.* is not allowed: a key more than those that are given"):
        search.searched(space, ["student.mixup=0.1", "student.drop_rate=0.1"])


@pytest.mark.slow
def test_a_search_in_which_nothing_works_ends_soon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(search.main, f"home={tmp_path}", "task=digits", "data=folder", f"data.root={tmp_path}/nowhere",
                "rehearsal=always", "student.pretrained=false", "search.trials=9") == 1
    told = capsys.readouterr()
    assert told.out.count("failed (") == 3 and f"{tmp_path}/nowhere" in told.out and "0 of 3 jobs finished" in told.out
    assert "None of 3 trials trained a student" in told.err and "Traceback" not in told.err


class Command:
    """`python -m src.search` in a process group of its own, as a terminal has it."""

    def __init__(self, home: Path, trials: int) -> None:
        job = [sys.executable, "-m", "src.search", "rehearsal=always", "rehearsal/errors=none", "data=rendered",
               "data.source.train_per_class=30", "data.source.test_per_class=8", "data.gold_size=30",
               "labeler.max_items=40", "student.pretrained=false", "student.input_size=32", "student.batch_size=16",
               "student.export=false", "trainer.max_epochs=1", "trainer.accelerator=cpu", f"home={home}",
               f"search.trials={trials}"]
        # A shell starts what it puts in the background deaf to Ctrl-C, tests included.
        self.process = subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                                        env=environment(), start_new_session=True,
                                        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self.home = home

    def stop(self, number: int, how: signal.Signals) -> str:
        """Send a signal to all of it as soon as this trial trains; returns what was printed."""
        while not any("decoding train images" in log.read_text()
                      for log in self.home.glob(f"outputs/*/trial_{number}.log")):
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.2)
        os.killpg(self.process.pid, how)
        return self.process.communicate()[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_command_goes_on_after_a_kill_and_after_ctrl_c(tmp_path: Path) -> None:
    Command(tmp_path, 3).stop(1, signal.SIGKILL)
    interrupted = Command(tmp_path, 3)
    told = interrupted.stop(2, signal.SIGINT)
    assert interrupted.process.returncode == 130 and "Traceback" not in told, told
    assert "1 of 3 trials have ended" in told and "the same command goes on" in told
    assert "1 of 2 jobs finished, 1 did not. 1 more died on the way and was tried again." in told
    last = Command(tmp_path, 3)
    told = last.process.communicate()[0]
    assert last.process.returncode == 0, told
    assert "1 of 3 trials have ended" in told and told.count("Trial ") == 2 and "Trial 3 of 3" in told
    assert "3 of 3 jobs finished. 2 more died on the way and were tried again. Best by validation" in told
    check_search(tmp_path)


def check_search(home: Path) -> None:
    """Three trainings of different values below one run, whose sums count the two that were stopped as well."""
    found = runs(home)
    parent, = [run for run in found if run.data.tags["flywheel.stage"] == "sweep"]
    trials = {run.data.tags["flywheel.job"]: run for run in found if run is not parent}
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.info.run_id}
    assert {job: run.info.status for job, run in trials.items()} == {
        "0": "FINISHED", "1": "KILLED", "2": "KILLED", "3": "FINISHED", "4": "FINISHED"}
    values = {job: json.loads(run.data.tags["flywheel.swept"]) for job, run in trials.items()}
    assert values["1"] == values["2"] == values["3"]
    assert len({json.dumps(values[job]) for job in ("0", "3", "4")}) == 3
    figures = parent.data.metrics
    assert (figures["sweep/jobs"], figures["sweep/finished"], figures["sweep/failed"]) == (3, 3, 0)
    best = trials[next(job for job, run in trials.items() if "flywheel.best" in run.data.tags)]
    assert parent.info.status == "FINISHED" and parent.data.tags["flywheel.best"] == best.info.run_id
    assert best.data.metrics["val/teacher_agreement"] == max(
        run.data.metrics["val/teacher_agreement"] for run in trials.values() if run.info.status == "FINISHED")
    store = Store(home / "annotations.db")
    assert figures["label/requests"] == len(store.read()) == 2 * (15 + 40) + 1
    store.close()
