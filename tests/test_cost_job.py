"""`python -m src.cost`: what it takes from a run, what it says of where that comes from, and what it leaves."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from jobs import call, runs
from mlflow.entities import Run

from src import cost
from src.cost import as_measured, tokens
from src.cost_model import Inputs
from src.store import Store
from src.task import Annotation, Failure
from src.tracking import open_run
from src.tracking.judged import find_judged

REHEARSED = "REHEARSAL (stand-in teacher)"
TRAINED = {"label/items": 1500.0, "label/cost_usd": 0.6, "data/choose": 100.0, "data/certify": 101.0,
           "test/accuracy": 0.8, "test/n": 400.0, "label/gold_accuracy": 0.9, "label/gold_accuracy_n": 100.0,
           "throughput/items_per_second": 140.0, "latency/p95_ms": 30.0}
JUDGED = {"cascade/n": 500.0, "cascade/judged": 480.0, "cascade/escalation_rate": 0.3, "cascade/human_rate": 0.002,
          "cascade/accuracy": 0.93, "cascade/accuracy_with_people": 0.94, "throughput/items_per_second": 550.0,
          "latency/p95_ms": 12.0}
COLUMNS = ["what", "kind", "best_cheap", "judged", "accuracy_with_people", "llm_usd_per_million", "human_rate",
           "latency_p95_ms"]
ROWS = [["cascade, certified at 0.9", "cascade", False, 480, 0.94, 60.0, 0.002, 900.0],
        ["student alone", "student", False, 480, 0.81, 0.0, 0.0, 12.0],
        ["LLM alone", "llm", False, 480, 0.96, 200.0, 0.001, 1200.0],
        ["tiny-vl alone", "other", True, 480, 0.88, 50.0, 0.004, 300.0]]


@dataclass
class Home:
    path: Path
    trained: str = ""
    judged: str = ""

    def leave(self, name: str, metrics: dict[str, float], tags: dict[str, str], *, table: bool = False,
              config: dict[str, Any] | None = None) -> str:
        """One more run, with that table or config; its id."""
        with open_run(uri=f"sqlite:///{self.path}/mlflow.db", experiment="fruit", artifacts=self.path / "artifacts",
                      name=name, tags={"rehearsal": REHEARSED, **tags}) as run:
            run.metrics(metrics)
            if table:
                run.table(pd.DataFrame(ROWS, columns=COLUMNS), "cascade")
            if config:
                run.text(yaml.safe_dump(config), "config.yaml")
        return run.id

    def call(self, *overrides: str) -> int:
        return call(cost.main, f"home={self.path}", "volume=1e6", "draws=200", *overrides)

    def document(self) -> dict[str, Any]:
        """What the latest call left."""
        latest = max((self.path / "outputs").iterdir())
        found: dict[str, Any] = json.loads((latest / "cost.json").read_text())
        return found


def answers(n: int, **others: Any) -> list[Annotation]:
    return [Annotation(f"item-{place}", "teacher", "prompt", "fruit", label="pear",
                       **{"cost_usd": 1e-4 * (1 + place % 2), "tokens_in": 400 + place % 2 * 100, "tokens_out": 20,
                          **others}) for place in range(n)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    store = Store(made.path / "annotations.db")
    store.add(answers(100))
    store.close()
    made.trained = made.leave("fruit net s0", TRAINED, {
        "flywheel.stage": "train", "task": "fruit", "student": "net", "annotator": "teacher", "prompt_hash": "prompt"},
        config={"store": str(made.path / "annotations.db")})
    of_it = {"flywheel.stage": "evaluate", "flywheel.evaluates": made.trained}
    made.leave("fruit net s0 again", JUDGED | {"cascade/escalation_rate": 0.9}, of_it, table=True)
    made.judged = made.leave("fruit net s0 again", JUDGED, of_it, table=True)
    made.leave("fruit net s0 again", {"gold/accuracy": 0.9}, of_it)  # newer, and without a cascade
    return made


def test_plain_numbers_need_no_run_and_leave_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Home(tmp_path)
    assert made.call("escalation_rate=0.2") == 0
    found, told = made.document(), capsys.readouterr().out
    assert not (tmp_path / "mlflow.db").exists()
    files = {path.name for path in (tmp_path / "outputs").rglob("*.*")}
    assert {"cost.json", "cost_curve.png", "cost_sensitivity.png"} <= files
    assert found["sources"]["volume"] == found["sources"]["escalation_rate"] == "given"
    assert found["sources"]["hosting_usd_per_month"] == "assumed"
    # 500 items stand behind the rate in conf/, and not behind one that is given.
    assert found["inputs"]["escalation_n"] is None and found["rehearsal"] is False
    assert "The flywheel pays at 1,000,000 items a month" in told and "LLM everywhere" in told
    assert "nobody has said how right it is" in told  # the cheap LLM
    assert "25 of these 27 values are assumed: give yours as key=value" in told and "published" not in told


@pytest.fixture(scope="module")
def costed(home: Home) -> tuple[dict[str, Any], Run, str]:
    """What one call leaves: its document, its run, and what it said."""
    before, said = len(runs(home.path)), io.StringIO()
    with redirect_stdout(said):
        assert home.call(f"run={home.trained}") == 0
    found = runs(home.path)
    assert len(found) == before + 1
    return home.document(), found[0], said.getvalue()


def test_a_run_gives_its_figures_and_says_where_they_come_from(home: Home,
                                                               costed: tuple[dict[str, Any], Run, str]) -> None:
    found, _, _ = costed
    given, sources = found["inputs"], found["sources"]
    wanted = {"escalation_rate": 0.3, "escalation_n": 500, "human_rate": 0.002, "human_n": 500, "labels": 1500,
              "label_usd": 0.0004, "gold_items": 201, "items_per_second": 550.0, "llm_usd_per_item": 200e-6,
              "llm_human_rate": 0.001, "llm_human_n": 500, "cheap_human_n": 500,
              "cheap_usd_per_item": 50e-6, "cheap_human_rate": 0.004, "llm_accuracy": 0.96,
              "llm_accuracy_n": 480, "cheap_accuracy": 0.88, "cheap_accuracy_n": 480, "student_accuracy": 0.81,
              "student_accuracy_n": 480, "cascade_accuracy": 0.94, "cascade_accuracy_n": 480, "tokens_in": 450.0,
              "tokens_out": 20.0, "llm_latency_ms": 1200.0, "student_latency_ms": 12.0}
    assert {key: given[key] for key in wanted} == pytest.approx(wanted)
    # Half of 100 answers cost 1, half 2: a standard deviation of 0.5025 about 1.5.
    assert given["token_error"] == pytest.approx(0.502519 / 1.5 / 10, rel=1e-5)
    assert sources["escalation_rate"] == f"measured: cascade/escalation_rate of evaluation {home.judged[:8]}"
    assert sources["cheap_accuracy"] == f"measured: tables/cascade (tiny-vl alone) of evaluation {home.judged[:8]}"
    assert sources["label_usd"] == f"measured: label/cost_usd / label/items of run {home.trained[:8]}"
    assert sources["tokens_in"] == "measured: 100 annotations of 100 questions"
    assert sources["wage_usd_per_hour"] == "assumed"


def test_all_goes_to_a_run_of_its_own(home: Home, costed: tuple[dict[str, Any], Run, str]) -> None:
    _, run, told = costed
    assert run.data.tags["flywheel.costs"] == home.trained and run.data.tags["flywheel.stage"] == "cost"
    assert run.data.tags["rehearsal"] == REHEARSED and told.count(REHEARSED) >= 3
    metrics = run.data.metrics
    # $60 for what is escalated and 2,000 looks at $0.25 each, beside hosting, relabelling and what is built.
    assert metrics["cost/llm_usd_per_million"] == pytest.approx(200 + 250)
    built = 1500 * 0.0004 + 201 * 0.25 / 60 * 30 + 1
    again = (0.5 * (built - 1) + 1) / 6
    assert metrics["cost/flywheel_usd_per_million"] == pytest.approx(60 + 500 + 50 + again + built / 12)
    assert metrics["cost/pays"] == 0 and "cost/breakeven_days" not in metrics
    client = mlflow.MlflowClient(f"sqlite:///{home.path}/mlflow.db")
    folders = ("", "tables", "figures")
    files = {file.path for folder in folders for file in client.list_artifacts(run.info.run_id, folder)}
    assert {"cost.json", "tables/cost.json", "tables/cost_sensitivity.json", "figures/cost_curve.png",
            "figures/cost_sensitivity.png"} <= files
    assert run.data.params["escalation_rate"] == "0.3"


def test_what_is_given_counts_more_than_what_was_measured(home: Home) -> None:
    assert home.call(f"run={home.trained}", "escalation_rate=0.5", "human_rate=0", "llm_input_usd=1.0",
                     "cascade_accuracy=0.9", "mistake_usd=0.001") == 0  # the LLM's accuracy only the run knows
    found = home.document()
    given = found["inputs"]
    assert (given["cascade_accuracy"], given["llm_accuracy"]) == (0.9, 0.96)
    keys = ("escalation_rate", "escalation_n", "human_rate", "human_n")
    assert [given[key] for key in keys] == [0.5, None, 0, None]
    # A price that is given prices the measured tokens.
    assert given["llm_usd_per_item"] is None and given["tokens_in"] == 450.0
    assert found["economics"]["options"][0]["usd_per_month"][0] == pytest.approx(450 * 1.0 + 20 * 2.5 + 250 + 40)


def test_how_right_a_cascade_is_that_escalates_another_share_was_not_measured(
        home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert home.call(f"run={home.trained}", "escalation_rate=0.5") == 0
    found = home.document()["inputs"]
    assert found["cascade_accuracy"] is None and found["student_accuracy"] is not None
    assert home.call(f"run={home.trained}", "escalation_rate=0.5", "mistake_usd=0.001") == 1
    assert "cascade_accuracy is unknown: give it, or take it from run=<id>, which" in capsys.readouterr().err


def test_a_run_that_nobody_evaluated_is_taken_as_far_as_it_goes(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    alone = home.leave("fruit net s1", TRAINED, {"flywheel.stage": "train", "task": "fruit"},
                       config={"store": str(home.path / "gone.db")})
    assert home.call(f"run={alone}") == 0
    told = capsys.readouterr().out
    assert f"python -m src.evaluate run={alone}" in told and "tokens are assumed" in told
    assert not (home.path / "gone.db").exists()
    found = home.document()
    assert found["sources"]["escalation_rate"] == "assumed"
    assert (found["inputs"]["student_accuracy"], found["inputs"]["student_accuracy_n"]) == (0.8, 400)
    assert found["inputs"]["cascade_accuracy"] is None and found["inputs"]["escalation_n"] == 500


@pytest.mark.parametrize(("overrides", "told"), [
    (["volume=0"], "volume=0.0 is not allowed: more than 0"),
    (["volume=-3"], "volume=-3.0 is not allowed: more than 0"),
    (["human_rate=2"], "human_rate=2.0 is not allowed: a share in [0, 1]"),
    (["wage_usd_per_hour=nan"], "wage_usd_per_hour=nan is not allowed: a finite number"),
    (["run=00000000000000000000000000000000"], "is not a run at"),
    (["run=no-such-model"], "is neither a run's id nor a registered model"),
])
def test_nonsense_ends_with_its_name_and_no_traceback(home: Home, overrides: list[str], told: str,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert home.call(*overrides) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_only_training_runs_cost_anything(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert home.call(f"run={home.judged}") == 1
    assert "evaluate, FINISHED) is not a finished training run" in capsys.readouterr().err


def test_the_published_arithmetic_is_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(cost.main, f"home={tmp_path}", "+cost=published", "draws=200") == 0
    told = capsys.readouterr().out
    assert "The flywheel does not pay at 100,000 items a month.\nToo few items" in told
    assert "saved: published −166,572%; worked out −143.1%." in told and "saved: published 89.9%; worked out" in told
    assert "labelling, 2 × 1,500 calls: published ~$3, and $0.60; worked out $0.60." in told
    found = Home(tmp_path).document()
    assert found["sources"]["llm_usd_per_item"] == "conf/cost/published.yaml"
    assert found["sources"]["wage_usd_per_hour"] == "assumed"
    assert found["economics"]["breakeven_days"] == ["never"] * 3
    assert len(found["published"]) == 8 and found["sensitivity"][0]["key"] == "hosting_usd_per_month"
    # Of other numbers than the recipe's nothing was published.
    assert call(cost.main, f"home={tmp_path}", "+cost=published", "draws=200", "escalation_rate=1") == 0
    assert "worked out" not in capsys.readouterr().out


def test_a_question_costs_all_its_attempts() -> None:
    failed = [Annotation(f"item-{place}", "teacher", "prompt", "fruit", failure=Failure.TIMEOUT, cost_usd=1e-4,
                         tokens_in=400) for place in range(5)]
    found = tokens([*answers(10, tokens_in=400), *failed])
    assert found["tokens_in"].value == pytest.approx(600) and found["tokens_out"].value == pytest.approx(20)
    assert found["tokens_in"].source == "measured: 15 annotations of 10 questions"


def test_recorded_answers_have_no_tokens_and_free_ones_do() -> None:
    assert tokens(answers(10, cost_usd=0.0, tokens_in=0, tokens_out=0)) == {}
    free = tokens(answers(10, cost_usd=0.0))
    assert free["tokens_in"].value == pytest.approx(450) and 0 < free["token_error"].value < 0.1
    assert tokens(answers(1)) == {}


def test_the_newest_evaluation_stands_first(home: Home) -> None:
    past = find_judged(f"sqlite:///{home.path}/mlflow.db", home.trained, ("tables/cascade.json", "config.yaml"))
    assert past.experiment == "fruit" and [one.name for one in past.evaluations] == ["fruit net s0 again"] * 3
    assert [len(one.files) for one in past.evaluations] == [0, 1, 1] and list(past.trained.files) == ["config.yaml"]
    assert past.evaluations[1].id == home.judged


def test_only_what_nobody_gave_is_taken_from_a_run() -> None:
    from cost_inputs import PLAIN

    given = Inputs(**PLAIN)
    sources = dict.fromkeys(PLAIN, "assumed") | {"tokens_in": "given"}
    found = {"tokens_in": cost.Measured(9.0, "measured"), "tokens_out": cost.Measured(9.0, "measured"),
             "llm_usd_per_item": cost.Measured(1.0, "measured"), "student_accuracy": cost.Measured(0.7, "measured", 10)}
    taken, told = as_measured(given, sources, found)
    assert (taken.tokens_in, taken.tokens_out, taken.llm_usd_per_item) == (500.0, 9.0, None)
    assert (taken.student_accuracy, taken.student_accuracy_n) == (0.7, 10)
    # How many items a share was counted on can be given alone.
    assert as_measured(given, sources | {"student_accuracy_n": "given"}, found)[0].student_accuracy_n is None
    assert told["tokens_in"] == "given" and told["tokens_out"] == "measured" and told["llm_usd_per_item"] == "assumed"
