"""A sweep's own run: what it sums up, whom it names the best, and jobs side by side."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import pytest
from hydra.core.utils import JobReturn, JobStatus
from jobs import runs
from mlflow.entities import Run
from omegaconf import OmegaConf

from src.errors import ConfigError, FlywheelError
from src.metrics import Interval
from src.reporting import sweeps
from src.reporting.sweeps import Child
from src.store import Store
from src.tracking import FAILED, PARENT, SWEPT, ParentRun, close_parent, mark_failed, open_parent, open_run

ROOT = Path(__file__).parents[1]


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
    assert chosen.info.run_name == f"t net s0 a={best}" and chosen.data.tags["flywheel.best"] == f"{parent} by {by}"
    assert figures["best/gold_f1_macro"] == pytest.approx(1 - (0.5 + best / 10))
    page = run.data.tags["mlflow.note.content"]
    assert "a=3 is not allowed: less" in page.replace("a=3:", "") and "- a=4: a=4 is not allowed" in page
    told = json.loads(Path(client.download_artifacts(parent, "tables/sweep.json")).read_text())
    rows = [dict(zip(told["columns"], row, strict=True)) for row in told["data"]]
    assert [row["student.a"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["status"] for row in rows] == ["FINISHED", "FINISHED", "FAILED", "FAILED"]
    assert rows[1]["validation agreement"] == pytest.approx(0.7) and rows[1]["validation agreement, n"] == 50
    assert client.list_artifacts(parent, "figures")[0].path == "figures/sweep.png"


def test_only_one_job_is_the_best_when_the_sweep_goes_on(swept: tuple[str, str], home: Path) -> None:
    uri, parent = swept
    close_parent(uri, parent, "validation")
    close_parent(uri, parent, "gold")
    marked = [run.info.run_name for run in runs(home)
              if "flywheel.best" in run.data.tags and run.data.tags.get("mlflow.parentRunId") == parent]
    assert marked == ["t net s0 a=1"]


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


@pytest.mark.parametrize("module", ["label", pytest.param("train", marks=pytest.mark.slow)])
def test_a_job_can_be_sent_to_a_worker(module: str) -> None:
    """As `python -m` has it: the job is then `__main__`'s, and travels with all that it names."""
    program = ("import runpy, cloudpickle, sys\nfrom unittest import mock\nkept = []\n"
               "with mock.patch('hydra.main', lambda **_: lambda job: kept.append(job) or (lambda: None)):\n"
               f"    runpy.run_module('src.{module}', run_name='__main__')\n"
               "sys.stdout.buffer.write(cloudpickle.dumps(kept[0]))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True)
    assert callable(cloudpickle.loads(done.stdout))


RATES = [*(f"{n / 1000}" for n in range(1, 24)), "1e+30"]  # the last one comes apart in training


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_share_one_store_and_one_database(tmp_path: Path) -> None:
    """24 jobs on an empty home: the first start does not race, all but one finish, and the books agree."""
    job = [sys.executable, "-m", "src.train", "-m", "+experiment=digits", "rehearsal=always", "rehearsal/errors=none",
           "data.gold_size=40", "data.test_size=60", "labeler.max_items=60", "student.pretrained=false",
           "student.input_size=32", "student.batch_size=16", "student.export=false", "trainer.max_epochs=1",
           "trainer.accelerator=cpu", f"home={tmp_path}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
           f"student.learning_rate={','.join(RATES)}"]
    env = {name: value for name, value in os.environ.items() if name not in (PARENT, "MLFLOW_TRACKING_URI")}
    done = subprocess.run(job, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "23 of 24 jobs finished, 1 did not" in done.stdout and "it diverged" in done.stdout
    found = runs(tmp_path)
    parent = next(run for run in found if run.data.tags.get("flywheel.stage") == "sweep")
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(found) == 25 and len(children) == 24
    assert sorted(run.info.status for run in children) == ["FAILED"] + ["FINISHED"] * 23
    lost = next(run for run in children if run.info.status == "FAILED")
    assert lost.data.params["student.learning_rate"] == "1e+30" and parent.info.status == "FAILED"
    by_value = {json.loads(run.data.tags["flywheel.swept"])["student.learning_rate"] for run in children}
    assert by_value == set(RATES)
    check_books(tmp_path, parent, children)
    folders = [path.parent for path in (tmp_path / "outputs").rglob("predictions.csv")]
    assert len(set(folders)) == 23
    best = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(parent.data.tags["flywheel.best"])
    assert best.data.metrics["val/teacher_agreement"] == max(
        run.data.metrics["val/teacher_agreement"] for run in children if run.info.status == "FINISHED")


def check_books(home: Path, parent: Run, children: list[Run]) -> None:
    """What the runs say was asked is what the store holds, each question once."""
    stored = Store(home / "annotations.db").read()
    asked = sum(run.data.metrics["label/requests"] for run in children)
    assert len(stored) == asked == 2 * (20 + 60) + 1  # preflight asks about a blank picture
    assert parent.data.metrics["label/requests"] == asked
    paid = sum(annotation.cost_usd or 0 for annotation in stored)
    assert parent.data.metrics["label/cost_usd"] == pytest.approx(paid)
