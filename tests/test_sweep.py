"""A sweep's own run: what it sums up, whom it names the best, and jobs side by side."""

import atexit
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from jobs import call, runs
from mlflow.entities import Run
from omegaconf import DictConfig, OmegaConf
from tracking_servers import environment, mlflow_server, postgres

from src import label
from src.errors import ConfigError, FlywheelError
from src.metrics import Interval
from src.reporting import sweeps
from src.reporting.sweeps import Child
from src.store import Store
from src.tracking import (
    FAILED,
    PARENT,
    SWEPT,
    ParentRun,
    close_parent,
    mark_failed,
    mark_repeated,
    open_parent,
    open_run,
    prepare,
)
from src.tracking.server import PROCESS, this_process
from src.tracking.sweeps import JOBS

ROOT = Path(__file__).parents[1]
RATES = [*(f"{n / 1000}" for n in range(1, 24)), "1e+30"]  # the last one comes apart in training
TINY = ["rehearsal=always", "rehearsal/errors=none", "data=rendered", "data.source.train_per_class=30",
        "data.source.test_per_class=8", "data.gold_size=30", "labeler.max_items=40", "student.pretrained=false",
        "student.input_size=32", "student.batch_size=16", "student.export=false", "trainer.max_epochs=1",
        "trainer.accelerator=cpu"]


def child(name: str, *, agreement: float | None = 0.8, gold: float | None = 0.8, test: float | None = 0.8,
          status: str = "FINISHED", **more: Any) -> Child:
    parts = [Interval(value, value - 0.05, value + 0.05, 100) if value is not None else None
             for value in (agreement, gold, test)]
    return Child(name, name, f"#/{name}", status, {"student.input_size": name}, "accuracy", *parts,
                 **{"cost_usd": 0.5, "requests": 10, "seconds": 3.0, **more})


def test_the_best_is_chosen_by_what_was_asked_for_and_never_by_test() -> None:
    children = [child("a", agreement=0.7, gold=0.9, test=0.1), child("b", agreement=0.8, gold=0.6, test=0.2),
                child("c", agreement=0.75, gold=0.8, test=0.99),
                child("d", agreement=0.99, gold=0.99, status="FAILED")]
    by_validation, by_gold = sweeps.best(children, "validation"), sweeps.best(children, "gold")
    assert by_validation and by_validation.name == "b"
    assert by_gold and by_gold.name == "a"
    assert sweeps.best([child("e", agreement=None)], "validation") is None
    with pytest.raises(ConfigError, match="choose_by='test' is not allowed: one of validation, gold"):
        sweeps.check_choice("test", "choose_by")


def test_the_page_links_the_jobs_best_first_and_names_those_that_failed() -> None:
    children = [child("64", agreement=0.7), child("96", agreement=0.8), child("x", agreement=None, gold=None, test=None,
                                                                             status="FAILED", failed="no | such")]
    chosen = sweeps.best(children, "validation")
    text = sweeps.page(children, chosen, "validation", "REHEARSAL")
    lines = [line for line in text.splitlines() if line.startswith("| [")]
    assert lines[0].startswith("| [input_size=96](#/96) | 0.800 [0.750, 0.850] |") and "**best**" in lines[0]
    assert "2 of 3 jobs finished, 1 did not." in text and "- input_size=x: no \\| such" in text
    assert text.startswith("**REHEARSAL**")
    frame = sweeps.frame(children, chosen)
    assert frame["best"].tolist() == ["", "best", ""] and frame["student.input_size"].tolist() == ["64", "96", "x"]
    drawn = sweeps.figure(children, chosen, "validation", title="sweep of $ and $", note="REHEARSAL")
    assert [text.get_text() for text in drawn.axes[0].get_yticklabels()] == ["input_size=96", "input_size=64"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all: making it takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def swept(home: Path) -> Iterator[tuple[str, str]]:
    """Address and id of a sweep's run with two jobs that finished, one that failed within, and one that failed before
    it had a run."""
    uri = f"sqlite:///{home}/mlflow.db"
    where = {"uri": uri, "experiment": "t", "artifacts": home / "artifacts"}
    parent = open_parent(uri, "t", home / "artifacts", name="sweep", overrides=["a=1,2,3,4"], tags={})
    os.environ[PARENT] = parent
    try:
        for job, agreed in enumerate((0.6, 0.7, None)):
            os.environ[SWEPT] = json.dumps({"job": job, "values": {"student.a": str(job + 1)}})
            try:
                with open_run(**where, name="t net s0", tags={"metric": "f1_macro"}) as run:  # type: ignore[arg-type]
                    run.metrics({"label/requests": 10.0, "label/cost_usd_this_run": 0.25, "label/cost_usd": 9.0})
                    if agreed is None:
                        raise ConfigError("a", 3, "less")
                    run.metrics({"val/teacher_agreement": agreed, "val/items": 50, "gold/n": 20,
                                 "gold/f1_macro": 1 - agreed, "gold/f1_macro_low": 0.1, "gold/f1_macro_high": 0.9,
                                 "gold/accuracy": 1.0})
            except ConfigError as error:
                mark_failed(uri, parent, job, {"student.a": "3"}, str(error))
        mark_failed(uri, parent, 3, {"student.a": "4"}, "a=4 is not allowed")
        yield uri, parent
    finally:
        for name in (PARENT, SWEPT):
            os.environ.pop(name, None)


@pytest.mark.parametrize(("by", "best"), [("validation", 2), ("gold", 1)])
def test_a_sweeps_run_sums_its_jobs_up(swept: tuple[str, str], by: str, best: int) -> None:
    uri, parent = swept
    close_parent(uri, parent, by)
    client = mlflow.MlflowClient(uri)
    run = client.get_run(parent)
    figures = run.data.metrics
    assert run.info.status == "FAILED"  # as two of its jobs are
    assert (figures["sweep/jobs"], figures["sweep/finished"], figures["sweep/failed"]) == (4, 2, 2)
    assert figures["label/requests"] == 30 and figures["label/cost_usd"] == pytest.approx(0.75)
    chosen = client.get_run(run.data.tags["flywheel.best"])
    assert chosen.info.run_name == f"a={best} t net s0" and chosen.data.tags["flywheel.best"] == f"{parent} by {by}"
    assert figures["best/gold_f1_macro"] == pytest.approx(1 - (0.5 + best / 10))
    page = run.data.tags["mlflow.note.content"]
    assert "a=3 is not allowed: less" in page.replace("a=3:", "") and "- a=4: a=4 is not allowed" in page
    told = json.loads(Path(client.download_artifacts(parent, "tables/sweep.json")).read_text())
    rows = [dict(zip(told["columns"], row, strict=True)) for row in told["data"]]
    assert [row["student.a"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["status"] for row in rows] == ["FINISHED", "FINISHED", "FAILED", "FAILED"]
    assert rows[1]["validation agreement"] == pytest.approx(0.7) and rows[1]["validation agreement, n"] == 50
    assert client.list_artifacts(parent, "figures")[0].path == "figures/sweep.png"


def test_jobs_that_left_no_run_are_missed(swept: tuple[str, str]) -> None:
    """As when a worker is killed: the others of a sweep are never begun."""
    uri, parent = swept
    client = mlflow.MlflowClient(uri)
    client.set_tag(parent, JOBS, "9")
    close_parent(uri, parent, "validation")
    run = client.get_run(parent)
    assert run.info.status == "FAILED"
    assert [run.data.metrics[f"sweep/{name}"] for name in ("jobs", "finished", "failed")] == [9, 2, 7]
    page = run.data.tags["mlflow.note.content"]
    assert "2 of 9 jobs finished, 7 did not. 5 of them left no run: the sweep was stopped before, or a worker" in page


@pytest.mark.parametrize(("overrides", "params", "jobs"), [
    (["a=1,2,3", "seed=range(0,2)", "b=x"], {}, 6), (["b=x"], {}, 1), (["a=1,2"], {"a": "1,2,3", "c": "1,2"}, 4),
    (["a=[1,2],[3]", "student/augment=none,wide"], None, 4), (["student/augment=glob(*)"], {}, None),
])
def test_how_many_jobs_there_are_to_be_is_known_before(overrides: list[str], params: dict[str, str] | None,
                                                       jobs: int | None, home: Path) -> None:
    callback, config = ParentRun(), given(home, *overrides)
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": params}
    config.hydra.sweeper = sweeper
    callback.on_multirun_start(config)
    tags = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").get_run(os.environ[PARENT]).data.tags
    callback.on_multirun_end(config)
    assert tags.get(JOBS) == (str(jobs) if jobs else None)
    if jobs:  # as Hydra counts them
        given_all = [*(f"{key}={value}" for key, value in (params or {}).items()), *overrides]
        batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given_all), None)
        assert sum(map(len, batches)) == jobs


def test_only_one_job_is_the_best_when_the_sweep_goes_on(swept: tuple[str, str], home: Path) -> None:
    uri, parent = swept
    close_parent(uri, parent, "validation")
    close_parent(uri, parent, "gold")
    marked = [run.info.run_name for run in runs(home)
              if "flywheel.best" in run.data.tags and run.data.tags.get("mlflow.parentRunId") == parent]
    assert marked == ["a=1 t net s0"]


def test_an_error_that_cannot_be_pickled_takes_no_other_job_with_it(swept: tuple[str, str]) -> None:
    uri, parent = swept
    failed = JobReturn(status=JobStatus.FAILED)
    failed.return_value = ConfigError("seed", -1, "0 or more")
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(failed._return_value))
    job = {"job": {"num": 7}, "overrides": {"task": ["seed=-1"]}}
    config = OmegaConf.create({"tracking": {"uri": uri}, "hydra": job})
    ParentRun().on_job_end(config, failed)
    again = pickle.loads(pickle.dumps(failed._return_value))
    assert isinstance(again, FlywheelError) and str(again) == "seed=-1 is not allowed: 0 or more"
    assert mlflow.MlflowClient(uri).get_run(parent).data.tags[f"{FAILED}7"] == str(again)


def given(home: Path, *overrides: str, **launcher: Any) -> DictConfig:
    """What a multirun's callback is given of its config."""
    where = {"uri": f"sqlite:///{home}/mlflow.db", "experiment": "t", "artifacts": f"{home}/artifacts"}
    return OmegaConf.create({"labeler": {"dry_run": False}, "tracking": where, "task": {"name": "t"},
                             "hydra": {"overrides": {"task": list(overrides)}, "launcher": launcher,
                                       "job": {"num": 0}}})


def test_a_job_is_named_by_what_the_others_do_not_have(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, "")  # and taken away again after the test
    monkeypatch.setenv(SWEPT, "")
    callback = ParentRun()
    callback.on_multirun_start(given(home, "student.export=false", "+ablation=x", "student.rate=1e-3,0.01",
                                     "seed=range(0,2)", "tracking.uri=postgresql://me:hunter2@db/x"))
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    opened = client.get_run(os.environ[PARENT])
    assert opened.info.run_name == "sweep +ablation=x student.rate=1e-3,0.01 seed=range(0,2)"
    assert "hunter2" not in opened.data.tags["flywheel.overrides"]
    # As Hydra spells them, an ablation's own keys among them.
    callback.on_job_start(given(home, "student.export=False", "+ablation=x", "student.rate=0.001", "seed=1",
                                "student/augment=none", "tracking.uri=postgresql://me:hunter2@db/x"))
    assert json.loads(os.environ[SWEPT])["values"] == {"student.rate": "0.001", "seed": "1", "student/augment": "none"}
    callback.on_multirun_end(given(home))
    # Hydra found a mistake before the first job: nothing is left that looks like a sweep.
    assert client.get_run(opened.info.run_id).info.lifecycle_stage == "deleted"


def test_a_training_below_a_sweep_by_hand_keeps_what_it_was_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a search's trial: no multirun, and so no number."""
    monkeypatch.setenv(PARENT, "abc")
    monkeypatch.setenv(SWEPT, "as told")
    config = given(home, "seed=1")
    config.hydra.job.num = "???"
    ParentRun().on_job_start(config)
    assert os.environ[SWEPT] == "as told"
    ended = JobReturn(status=JobStatus.FAILED)
    ended.return_value = ConfigError("seed", -1, "0 or more")
    ParentRun().on_job_end(config, ended)  # the search itself says that it failed


def test_what_hydra_writes_down_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closing: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    monkeypatch.setattr(atexit, "register", lambda close, *args: closing.append((close, args)))
    assert call(label.main, "-m", *TINY, f"home={tmp_path}", "labeler.dry_run=true", "seed=0,1",
                "tracking.uri=http://me:hunter2@127.0.0.1:9") == 0
    for close, args in closing:
        close(*args)
    written = next(tmp_path.rglob("multirun.yaml")).read_text()
    assert "http://me:***@127.0.0.1:9" in written and "hunter2" not in written


@pytest.mark.parametrize(("by", "changes", "message"), [
    ("test", {}, "hydra.callbacks.parent_run.choose_by='test' is not allowed: one of validation, gold; test never"),
    ("gold", {"hydra": {"launcher": {"n_jobs": 0}}}, "hydra.launcher.n_jobs=0 is not allowed: 1 or more, or -1"),
    ("gold", {"tracking": {"uri": "nosuch://x"}}, "MLflow at nosuch://x cannot be used"),
])
def test_a_mistake_ends_a_sweep_before_it_begins(by: str, changes: dict[str, Any], message: str, home: Path,
                                                 tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    with pytest.raises(SystemExit) as ended:
        ParentRun(by).on_multirun_start(OmegaConf.merge(given(tmp_path, "a=1,2"), changes))
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith(message) and told.count("\n") == 1
    assert PARENT not in os.environ and not (tmp_path / "mlflow.db").exists()


def test_a_job_that_was_tried_again_is_no_failure(swept: tuple[str, str]) -> None:
    uri, parent = swept
    client = mlflow.MlflowClient(uri)
    client.delete_tag(parent, f"{FAILED}3")
    mark_repeated(uri, parent, [2])
    close_parent(uri, parent, "validation")
    run = client.get_run(parent)
    figures = run.data.metrics
    assert run.info.status == "FINISHED" and figures["label/requests"] == 30  # what it asked was paid for
    assert (figures["sweep/jobs"], figures["sweep/finished"], figures["sweep/failed"]) == (2, 2, 0)
    page = run.data.tags["mlflow.note.content"]
    assert "2 of 2 jobs finished. 1 more died on the way and was tried again." in page and "FAILED, tried again" in page


def test_the_dead_are_known_by_more_than_a_number(home: Path, tmp_path: Path) -> None:
    """After a restart of the machine another process may have the number."""
    uri = f"sqlite:///{home}/mlflow.db"
    experiment = prepare(uri, "dead", tmp_path)
    client, mine = mlflow.MlflowClient(uri), this_process()
    host, pid, began, word = mine[PROCESS].split("|")
    earlier = {**mine, PROCESS: f"{host}|{pid}|{float(began) - 100:.2f}|{word}"}
    elsewhere = {**mine, PROCESS: f"other|{pid}|1.00|{word}"}
    states = {}
    opened = {name: client.create_run(experiment, tags=tags).info.run_id for name, tags in
              (("mine", mine), ("earlier", earlier), ("elsewhere", elsewhere))}
    prepare(uri, "dead", tmp_path)
    states = {name: client.get_run(run).info.status for name, run in opened.items()}
    assert states == {"mine": "RUNNING", "earlier": "KILLED", "elsewhere": "RUNNING"}


def start_at_once(uri: str, artifacts: Path, all_there: Any, told: Any) -> None:
    all_there.wait()
    try:
        told.put(prepare(uri, "t", artifacts))
    except Exception as error:
        told.put(str(error))


@pytest.mark.slow
def test_processes_that_start_at_once_on_a_fresh_database_do_not_race(tmp_path: Path) -> None:
    fresh = multiprocessing.get_context("spawn")
    all_there, told = fresh.Barrier(3), fresh.Queue()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    started = [fresh.Process(target=start_at_once, args=(uri, tmp_path / "artifacts", all_there, told))
               for _ in range(3)]
    for process in started:
        process.start()
    answers = [told.get(timeout=240) for _ in started]
    for process in started:
        process.join()
    assert answers == ["1"] * 3


@pytest.mark.parametrize("module", ["label", pytest.param("train", marks=pytest.mark.slow)])
def test_a_job_can_be_sent_to_a_worker(module: str) -> None:
    """As `python -m` has it: the job is then `__main__`'s, and travels with all that it names."""
    program = ("import runpy, cloudpickle, sys\nfrom unittest import mock\nkept = []\n"
               "with mock.patch('hydra.main', lambda **_: lambda job: kept.append(job) or (lambda: None)):\n"
               f"    runpy.run_module('src.{module}', run_name='__main__')\n"
               "sys.stdout.buffer.write(cloudpickle.dumps(kept[0]))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True)
    assert callable(cloudpickle.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kept", "by"), [("in a file", "validation"), ("on a server", "gold")])
def test_two_workers_share_one_store_and_one_database(kept: str, by: str, tmp_path: Path) -> None:
    """24 jobs on an empty home: the first start does not race, all but one finish, and the books agree. On a server,
    which keeps figures in PostgreSQL and artifacts elsewhere, its address is all that is said."""
    home = tmp_path / "home"
    with ExitStack() as servers:
        uri, env = f"sqlite:///{home}/mlflow.db", environment()
        if kept == "on a server":
            uri = servers.enter_context(mlflow_server(tmp_path, servers.enter_context(postgres())))
            env = environment(MLFLOW_TRACKING_URI=uri)
        job = [sys.executable, "-m", "src.train", "-m", *TINY, f"home={home}", "hydra/launcher=joblib",
               "hydra.launcher.n_jobs=2", f"student.learning_rate={','.join(RATES)}"]
        job += [] if by == "validation" else [f"hydra.callbacks.parent_run.choose_by={by}"]
        done = subprocess.run(job, capture_output=True, text=True, cwd=ROOT, env=env)
        assert done.returncode == 1, done.stderr[-3000:]
        assert "23 of 24 jobs finished, 1 did not" in done.stdout and "it diverged" in done.stdout
        check_runs(mlflow.MlflowClient(uri), home, by)
        if kept == "on a server":
            assert not (home / "mlflow.db").exists() and not (home / "artifacts").exists()
            assert len(list((tmp_path / "elsewhere").rglob("mobilenet.pt"))) >= 23


def check_runs(client: mlflow.MlflowClient, home: Path, by: str) -> None:
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    parent = next(run for run in found if run.data.tags.get("flywheel.stage") == "sweep")
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(found) == 25 and len(children) == 24
    assert sorted(run.info.status for run in children) == ["FAILED"] + ["FINISHED"] * 23
    finished = {run.info.run_id: run for run in children if run.info.status == "FINISHED"}
    swept = [json.loads(run.data.tags["flywheel.swept"]) for run in children]
    assert sorted(map(str, swept)) == sorted(str({"student.learning_rate": rate}) for rate in RATES)
    workers = {run.data.tags["flywheel.pid"] for run in children}
    assert len(workers) == 2 and parent.data.tags["flywheel.pid"] not in workers
    check_failure(parent, next(run for run in children if run.info.status == "FAILED"))
    check_best(parent, finished, by)
    check_books(home, parent, children)
    folders = {path.parent for path in (home / "outputs").rglob("eval.json")}
    written = {folder.name: json.loads((folder / "eval.json").read_text())["run"] for folder in folders}
    assert written == {run.data.tags["flywheel.job"]: run.info.run_id for run in finished.values()}


def check_failure(parent: Run, lost: Run) -> None:
    """The sweep says which of its jobs failed, and why."""
    tags, job = parent.data.tags, lost.data.tags["flywheel.job"]
    assert lost.data.params["student.learning_rate"] == "1e+30" and parent.info.status == "FAILED"
    assert "it diverged" in tags[f"{FAILED}{job}"] and "it diverged" in tags["mlflow.note.content"]
    assert json.loads(tags[f"flywheel.lost.{job}"]) == {"student.learning_rate": "1e+30"}
    figures = parent.data.metrics
    assert (figures["sweep/jobs"], figures["sweep/finished"], figures["sweep/failed"]) == (24, 23, 1)


def check_best(parent: Run, finished: dict[str, Run], by: str) -> None:
    """None is better by what chooses, whatever test says."""
    name = {"validation": "val/teacher_agreement", "gold": "gold/accuracy"}[by]
    best = finished[parent.data.tags["flywheel.best"]]
    assert best.data.metrics[name] == max(run.data.metrics[name] for run in finished.values())
    assert [run for run in finished.values() if "flywheel.best" in run.data.tags] == [best]
    assert parent.data.metrics["best/test_accuracy"] == best.data.metrics["test/accuracy"]


def check_books(home: Path, parent: Run, children: list[Run]) -> None:
    """What the runs say was asked is what the store holds, each question once."""
    store = Store(home / "annotations.db")
    stored = store.read()
    store.close()
    asked = sum(run.data.metrics["label/requests"] for run in children)
    assert len(stored) == asked == 2 * (15 + 40) + 1  # preflight asks about a blank picture
    assert len({(a.annotator, a.prompt_hash, a.item, a.pass_index) for a in stored}) == len(stored)
    assert {a.job for a in stored} == {parent.info.run_id}
    assert parent.data.metrics["label/requests"] == asked
    paid = sum(annotation.cost_usd or 0 for annotation in stored)
    assert parent.data.metrics["label/cost_usd"] == pytest.approx(paid) and paid > 0
