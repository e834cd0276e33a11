"""`python -m src.compare` on sweeps that the tests make up: what it finds, what it never looks at, what it refuses."""

import csv
import io
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from conftest import composed
from jobs import call, runs
from mlflow.entities import Run
from omegaconf import DictConfig, OmegaConf

from src import compare, tracking
from src.compare import CompareSweep, Comparison, compared, spelt
from src.config import Job, read
from src.errors import ConfigError, DataError, FlywheelError
from src.metrics import Interval
from src.reporting.comparisons import Compared
from src.tracking import PARENT, Child, StoredSweep, open_run

SIZES, SEEDS = (64, 96, 224), (0, 1, 2)
REHEARSED = "REHEARSAL (stand-in teacher)"
ITEMS = {"validation": 300, "gold": 100, "test": 50}


def answers(wrong: dict[str, Sequence[int]], *, items: dict[str, int] = ITEMS) -> str:
    """A `predictions.csv` whose targets are "a", and the answers too but for some items of each part."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["item", "part", "target", "answer", "confidence", "p_a", "p_b"])
    for part, n in items.items():
        for item in range(n):
            rows.writerow([f"{part}{item}", part, "a", "b" if item in wrong.get(part, ()) else "a", 0.9, 0.9, 0.1])
    return text.getvalue()


def config(size: Any, seed: int, **others: Any) -> dict[str, Any]:
    return {"seed": seed, "student": {"input_size": size, "name": "net"}, **others}


def child(config: dict[str, Any], predictions: str | None, *, status: str = "FINISHED", rate: float | None = None,
          **tags: str) -> Child:
    files = {"config.yaml": yaml.safe_dump(config), "predictions.csv": predictions}
    return Child("id", f"t net s{config['seed']}", status, {"dataset_hash": "d1", "task": "t", **tags},
                 {"throughput/items_per_second": rate, "latency/p50_ms": 1000 / rate} if rate else {},
                 {name: text for name, text in files.items() if text is not None})


def rows_of(children: Sequence[Child], key: str = "student.input_size", baseline: str = "224",
            failed: Sequence[str] = ()) -> dict[str, Compared]:
    rows = compared(StoredSweep("abc", "sweep of sizes", "t", list(failed), list(children)), key, baseline)
    return {row.value: row for row in rows}


def mistakes(size: int, seed: int) -> dict[str, list[int]]:
    """64 errs on 80 more of validation and 20 more of gold than 224 does; 96 on 2 and 1 more, of other items; a seed
    moves two of them. On test, 224 is always wrong."""
    more = {64: (80, 20), 96: (2, 1), 224: (0, 0)}[size]
    ours, gold = range(30 + more[0]), range(8 + more[1])
    if size == 96:  # others than the baseline's, mostly
        ours, gold = range(10, 42), range(4, 13)
    return {"validation": [*ours, 290 + seed, 295 - seed], "gold": [*gold],
            "test": range(50) if size == 224 else []}  # type: ignore[dict-item]


def sizes() -> list[Child]:
    return [child(config(size, seed), answers(mistakes(size, seed)), rate=100_000 / size + seed, rehearsal=REHEARSED)
            for size in (224, 64, 96) for seed in (2, 0, 1)]  # in no order, as jobs that run side by side end


def test_figures_are_counts_over_items_and_seeds() -> None:
    small, middle, base = rows_of(sizes()).values()
    assert [row.value for row in (small, middle, base)] == ["64", "96", "224"]
    for row, agreement, accuracy in ((small, 188 / 300, 0.72), (middle, 266 / 300, 0.91), (base, 268 / 300, 0.92)):
        assert row.agreement and row.agreement.value == pytest.approx(agreement)
        assert row.accuracy and row.accuracy.value == pytest.approx(accuracy)
    assert small.on_validation and small.on_validation.value == pytest.approx(-80 / 300)
    assert small.on_gold and small.on_gold.value == pytest.approx(-0.2)
    assert small.difference.value == pytest.approx(-100 / 400) and small.difference.n == 400
    assert middle.difference.value == pytest.approx(-3 / 400) and small.by_seed == pytest.approx([-0.25] * 3)
    assert small.worse and not middle.worse and not base.worse
    assert (base.difference.low, base.difference.high) == (0, 0)
    assert [row.items_per_second for row in (small, middle, base)] == [
        pytest.approx(100_000 / size + 1) for size in SIZES]  # the seeds' median


def test_seeds_that_disagree_are_in_the_interval() -> None:
    """The same mean over seeds; the interval over items alone cannot tell the two apart."""
    alike = [child(config(size, seed), answers({"validation": range(20 if size == 64 else 0)}))
             for size in (64, 224) for seed in SEEDS]
    apart = [child(config(size, seed), answers({"validation": range(60 if (size, seed) == (64, 1) else 0)}))
             for size in (64, 224) for seed in SEEDS]
    steady, lucky = rows_of(alike)["64"], rows_of(apart)["64"]
    assert steady.difference.value == pytest.approx(lucky.difference.value)
    assert steady.worse and not lucky.worse and lucky.items_alone.high < 0
    assert lucky.by_seed == pytest.approx([0, -60 / 400, 0])


def test_test_stands_beside_and_has_no_say() -> None:
    """Neither its answers nor whether it is there change anything else."""
    good, without = ([child(config(size, seed), answers({**mistakes(size, seed), "test": range(5 if size == 64 else 0)},
                                                        items={**ITEMS, "test": tested if seed else 50}),
                            rate=100_000 / size + seed) for size in SIZES for seed in SEEDS] for tested in (50, 0))
    usual, here, gone = rows_of(sizes()), rows_of(good), rows_of(without)
    for size in ("64", "96", "224"):
        assert replace(here[size], test=None, on_test=None) == replace(usual[size], test=None, on_test=None)
        assert gone[size] == replace(here[size], test=None, on_test=None)
    assert usual["64"].worse and usual["64"].on_test and usual["64"].on_test.value == 1  # 224 is always wrong there
    assert here["64"].on_test and here["64"].on_test.value == pytest.approx(-0.1) and here["224"].on_test is None
    assert here["64"].test and here["64"].test.value == pytest.approx(0.9)


def test_gold_alone_decides_where_labels_differ() -> None:
    """Validation's targets are the labels that were learned from."""
    children = sizes()
    alone = {row.value: row for row in compared(StoredSweep("abc", "s", "t", [], children), "student.input_size", "224",
                                                ["gold"])}
    assert alone["64"].difference == rows_of(children)["64"].on_gold
    assert alone["64"].difference.n == 100 and alone["64"].agreement is alone["64"].on_validation is None
    assert alone["64"].on_test == rows_of(children)["64"].on_test


def test_logged_metrics_stand_beside_with_intervals_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    children = [replace(one, metrics={"label/accepted": 1000.0, "ece": ece}) for one, ece in zip(
        [child(config(size, seed), answers({})) for size in (64, 224) for seed in SEEDS],
        (0.10, 0.13, 0.10, 0.05, 0.06, 0.07), strict=True)]
    rows = {row.value: row.metrics for row in compared(StoredSweep("abc", "s", "t", [], children), "student.input_size",
                                                       "224", metrics=["label/accepted", "ece"])}
    assert rows["64"]["label/accepted"].mean == Interval(1000, 1000, 1000, 3)
    mean, difference = rows["64"]["ece"].mean, rows["64"]["ece"].difference
    assert mean.value == pytest.approx(0.11)
    # By a table of Student's t: 4.303 at two degrees of freedom.
    gaps = np.array([0.05, 0.07, 0.03])
    assert difference.value == pytest.approx(0.05)
    assert difference.high - 0.05 == pytest.approx(4.303 * gaps.std(ddof=1) / 3**0.5, rel=1e-3)
    assert rows["224"]["ece"].difference == Interval(0, 0, 0, 3)
    capsys.readouterr()
    children[0].metrics.pop("ece")
    rows = {row.value: row.metrics for row in compared(StoredSweep("abc", "s", "t", [], children), "student.input_size",
                                                       "224", metrics=["auroc", "label/accepted", "ece"])}
    assert rows["64"].keys() == {"label/accepted"}  # what was trained is compared all the same
    told = capsys.readouterr().out
    assert "not all runs logged it: ece" in told and "no run logged it: auroc. They logged such as label/acc" in told


def test_a_folder_of_conf_may_be_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    """Its choice is no key of a run's config; what it changes is no other difference."""
    children = [child({"seed": seed, "student": {"augment": {"crop_scale": crop}}}, answers({"gold": range(wrong)}),
                      **{"flywheel.swept": json.dumps({"student/augment": name, "seed": str(seed)})})
                for name, crop, wrong in (("none", 1.0, 60), ("wide", 0.5, 0)) for seed in SEEDS]
    rows = rows_of(children, "student/augment", "wide")
    assert [(row.value, row.worse) for row in rows.values()] == [("none", True), ("wide", False)]
    assert not capsys.readouterr().out
    # A training below the sweep would not know which choice it is of.
    with pytest.raises(DataError, match=r"Missing, none: seed 2; sweep again: python -m src\.train -m … "
                                        "student/augment=none,wide seed=0,1,2"):
        rows_of([one for one in children if one is not children[len(SEEDS) - 1]], "student/augment", "wide")


def test_items_that_not_all_hold_alike_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    children = []
    for size in (64, 224):
        for seed in SEEDS:
            odd = (size, seed) == (64, 1)
            text = answers({"gold": range(50)} if size == 64 else {}, items={"gold": 99 if odd else 100})
            # This run learned another label of gold0, and agrees with it.
            text = text.replace("gold0,gold,a,b", "gold0,gold,b,b") if odd else text
            children.append(child(config(size, seed), text))
    row = rows_of(children)["64"]
    assert "2 item(s) are left out that not all runs hold with the same target" in capsys.readouterr().out
    assert row.accuracy and row.accuracy.n == row.difference.n == 98
    assert row.accuracy.value == pytest.approx(49 / 98) and row.agreement is row.on_validation is None
    assert np.isnan([row.items_per_second, row.p50_ms]).all()


def test_a_failed_child_is_named_and_its_value_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    broken = child(config(64, 2), None, status="FAILED")
    children = [run for run in sizes() if run.files["config.yaml"] != broken.files["config.yaml"]]
    assert list(rows_of([*children, broken], failed=["student.input_size=8 is not allowed"])) == ["96", "224"]
    told = capsys.readouterr().out
    assert "64, seed 2 (t net s2, FAILED)" in told
    assert "Missing, 64: seed 2; train these below the same sweep: FLYWHEEL_PARENT_RUN=abc python -m src.train" in told
    assert "A job of the sweep failed: student.input_size=8 is not allowed" in told
    # Trained below the same sweep after all, it is compared.
    again = child(config(64, 2), answers(mistakes(64, 2)))
    assert rows_of([*children, broken, again])["64"].difference.value == pytest.approx(-0.25)
    assert rows_of([*children, again, broken])["64"].difference.value == pytest.approx(-0.25)


def test_values_keep_their_kind(capsys: pytest.CaptureFixture[str]) -> None:
    children = [child({"seed": seed, "quality": {"heuristics": value}}, answers({"validation": range(wrong)}))
                for value, wrong in ((None, 0), (True, 60)) for seed in SEEDS]
    rows = rows_of(children, "quality.heuristics", "null")
    assert [(row.value, row.worse) for row in rows.values()] == [("null", False), ("true", True)]


def test_other_keys_that_vary_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows_of([child(config(size, seed, trainer={"max_epochs": size}), answers({})) for size in (64, 224)
             for seed in SEEDS])
    assert "these keys vary as well, and the differences are of all of them: trainer.max_epochs" in (
        capsys.readouterr().out)


@pytest.mark.parametrize(("key", "baseline", "message"), [
    ("student.input_size", "128", "baseline='128' is not allowed: no run of the sweep has student.input_size=128; it "
                                  "has 64, 96, 224"),
    ("student.inputsize", "224", "key='student.inputsize' is not allowed: no run of sweep='abc' has it"),
    ("student", "224", "give one of student.input_size, student.name"),
    ("student.name", "net", "Two runs of the sweep have student.name=net, seed 2, and differ in student.input_size"),
])
def test_a_key_or_value_that_was_not_swept_is_refused(key: str, baseline: str, message: str) -> None:
    with pytest.raises(FlywheelError) as error:
        rows_of(sizes(), key, baseline)
    assert message in str(error.value)


@pytest.mark.parametrize(("change", "message"), [
    ("no predictions", "holds predictions.csv, which src.train leaves"),
    ("all failed", "Its runs: FAILED"),
    ("one value", "fewer than two values to compare (224)"),
    ("baseline lacks a seed", "student.input_size=224 was not trained with every seed. Missing, 224: seed 1; train"),
    ("other items", "did not see the same items in the same split, by the tag dataset_hash (d1 of 64, seed 0"),
    ("nothing shared", "The runs share 0 item(s)"),
    ("another file", "lacks the column(s) target, answer"),
    ("item twice", "holds the item 'gold0' of gold twice"),
])
def test_a_sweep_that_cannot_be_compared_is_refused(change: str, message: str) -> None:
    good, children = answers({}, items={"gold": 3}), []
    for size in (224,) if change == "one value" else (64, 224):
        for seed in (0, 1):
            predictions: str | None = good
            if change == "no predictions" or (change, size, seed) == ("baseline lacks a seed", 224, 1):
                predictions = None
            elif change == "nothing shared" and size == 64:
                predictions = good.replace("gold,a", "gold,b")
            elif change == "another file":
                predictions = "item,part\n1,gold\n"
            elif change == "item twice":
                predictions = good + good.splitlines()[1]
            other = {"dataset_hash": "d2"} if change == "other items" and size == 224 else {}
            status = "FAILED" if change == "all failed" else "FINISHED"
            children.append(child(config(size, seed), predictions, status=status, **other))
    with pytest.raises(DataError) as error:
        rows_of(children)
    assert message in str(error.value)


@dataclass(frozen=True)
class Tracked:
    """The sweep as `ParentRun` and `src.train` leave it in MLflow."""

    home: Path
    id: str

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.home}/mlflow.db"

    def opened(self, name: str, tags: dict[str, str]) -> AbstractContextManager[tracking.Run]:
        return open_run(uri=self.uri, experiment="t", artifacts=self.home / "artifacts", name=name, tags=tags)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    home = tmp_path_factory.mktemp("home")
    with Tracked(home, "").opened("sweep of sizes", {"flywheel.stage": "sweep", "flywheel.failed.10": "second",
                                                     "flywheel.failed.9": "first"}) as parent:
        swept = Tracked(home, parent.id)
    for one in sizes():
        if one.name == "t net s2":  # two seeds say as much here, and runs take time
            continue
        with swept.opened(one.name, {**one.tags, "mlflow.parentRunId": swept.id}) as run:
            for name, text in one.files.items():
                run.text(text, name)
            run.metrics(one.metrics)
    return swept


@dataclass(frozen=True)
class Done:
    run: Run
    told: str


@pytest.fixture(scope="module")
def at_the_end(sweep: Tracked) -> Done:
    """What the callback leaves and says where a multirun ends."""
    before = os.environ.get(PARENT)
    os.environ[PARENT] = sweep.id
    told = io.StringIO()
    with redirect_stdout(told):
        CompareSweep("student.input_size", 224).on_multirun_end(config=job(sweep))
    assert PARENT not in os.environ
    if before:
        os.environ[PARENT] = before
    return Done(runs(sweep.home)[0], told.getvalue())


def job(sweep: Tracked) -> DictConfig:
    where = {"uri": sweep.uri, "experiment": "t", "artifacts": str(sweep.home / "artifacts")}
    return OmegaConf.create({"home": str(sweep.home), "tracking": where})


def test_a_multirun_is_compared_at_its_end_in_a_run_of_its_own(sweep: Tracked, at_the_end: Done) -> None:
    tags = at_the_end.run.data.tags
    assert at_the_end.run.info.status == "FINISHED" and tags["flywheel.compares"] == sweep.id
    assert (tags["flywheel.stage"], tags["rehearsal"], tags["baseline"]) == ("compare", REHEARSED, "224")
    assert "mlflow.parentRunId" not in tags  # or the sweep would count one job too many
    client = mlflow.MlflowClient(sweep.uri)
    pictures = client.list_artifacts(at_the_end.run.info.run_id, "figures")
    assert [file.path for file in pictures] == ["figures/comparison.png"]
    place = client.download_artifacts(at_the_end.run.info.run_id, "tables/comparison.json")
    table = json.loads(Path(place).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["value"], row["shown_worse"]) for row in rows] == [("64", True), ("96", False), ("224", False)]
    found = at_the_end.run.data.metrics
    assert found["compare/64/difference"] == rows[0]["difference"] == pytest.approx(-0.25)
    assert found["compare/smallest_not_worse"] == 96 and rows[0]["by_seed"] == "-0.2500 -0.2500"
    again = f".venv/bin/python -m src.compare sweep={sweep.id} key=student.input_size baseline=224 home={sweep.home}"
    assert again in at_the_end.told
    assert at_the_end.told.index("A job of the sweep failed: first") < at_the_end.told.index("failed: second")


def test_the_command_finds_the_same_and_says_it_in_a_sentence(sweep: Tracked, at_the_end: Done,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    asked = [f"home={sweep.home}", f"sweep={sweep.id}", "key=student.input_size", "baseline=224"]
    assert call(compare.main, *asked) == 0
    found = runs(sweep.home)[0].data
    assert found.metrics == at_the_end.run.data.metrics
    answer = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("The smallest"))
    assert "not shown to be worse than 224 is 96: difference -0.007 [" in answer
    low = -found.metrics["compare/96/difference_low"]
    assert f"n=400 items of validation and gold, 2 seeds; up to {low:.3f} could be lost" in answer
    assert "Throughput: 1,042 items/s, 2.3 times that of 224." in answer and answer.endswith(REHEARSED)
    assert answer.startswith(found.tags["answer"])


def test_what_is_no_sweep_is_refused(sweep: Tracked, at_the_end: Done, capsys: pytest.CaptureFixture[str]) -> None:
    before, asked = len(runs(sweep.home)), [f"home={sweep.home}", "key=student.input_size", "baseline=224"]
    no_parent = at_the_end.run.info.run_id
    for run, message in (("0" * 32, "is not a run at sqlite:///"), (no_parent, "has no runs below it")):
        assert call(compare.main, *asked, f"sweep={run}") == 1
        told = capsys.readouterr().err
        assert message in told and "Traceback" not in told
    assert call(compare.main, *asked[:2], "sweep=x") == 1
    assert "baseline='???' is not allowed: this key has no default" in capsys.readouterr().err
    assert call(compare.main, asked[0], "sweep=x", "key=seed", "baseline=0") == 1
    assert "key='seed' is not allowed" in capsys.readouterr().err
    assert len(runs(sweep.home)) == before


def test_a_comparison_that_is_refused_fails_the_command(sweep: Tracked, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(PARENT, sweep.id)
    with pytest.raises(SystemExit, match="1"):
        CompareSweep("student.input_size", 128).on_multirun_end(config=job(sweep))
    assert "no run of the sweep has student.input_size=128" in capsys.readouterr().err


def test_values_are_spelt_as_people_write_them() -> None:
    assert [spelt(value) for value in (224, 1.0, 3e-4, True, None, "b", [1, 2])] == [
        "224", "1", "0.0003", "true", "null", "b", "[1, 2]"]


def test_the_config_takes_any_baseline() -> None:
    asked = ["sweep=x", "key=a.b"]
    for said, meant in (("224", 224), ("null", None), ("b", "b")):
        assert read(composed("compare", *asked, f"baseline={said}"), Comparison).baseline == meant
    with pytest.raises(ConfigError, match="sweep='' is not allowed"):
        read(composed("compare", "sweep=''", "key=a", "baseline=1"), Comparison)


def test_the_ablation_composes_and_its_callback_is_ours() -> None:
    assert read(composed("job", "+experiment=cifar5", "+ablation=input_size"), Job).student.input_size == 224
    text = (Path(compare.__file__).parents[1] / "conf/ablation/input_size.yaml").read_text()
    found = yaml.safe_load(text)["hydra"]
    assert "+ablation=input_size" in text and found["mode"] == "MULTIRUN"
    asked = found["callbacks"]["compare"]
    assert asked == {"_target_": "src.compare.CompareSweep", "key": "student.input_size", "baseline": 224}
    assert str(asked["baseline"]) in found["sweeper"]["params"][asked["key"]].split(",")


def test_where_a_job_failed_it_says_how_to_compare_the_rest(sweep: Tracked, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    callback = CompareSweep("student.input_size", 224, ["gold"], ["label/accepted"])
    with sweep.opened("sweep without jobs", {"flywheel.stage": "sweep"}) as parent:
        monkeypatch.setenv(PARENT, parent.id)
        callback.tell(sweep.uri, " home=elsewhere")
    assert not capsys.readouterr().out  # no job was begun
    monkeypatch.setenv(PARENT, sweep.id)  # jobs may have run in other processes
    callback.tell(sweep.uri, " home=elsewhere")
    assert (f"python -m src.compare sweep={sweep.id} key=student.input_size baseline=224 parts=[gold] "
            "metrics=[label/accepted] home=elsewhere\n") in capsys.readouterr().out.replace("\r", "")


def test_a_dry_run_is_not_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    CompareSweep("student.input_size", 224).on_multirun_end(OmegaConf.create({"home": "mlruns"}))
    told = capsys.readouterr()
    assert not told.out and not told.err
