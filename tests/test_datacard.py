"""The datacard tells every figure there is, and claims no more than was sent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from src.data.dataset import Dataset, NearDuplicates
from src.data.splits import Splits
from src.labeling.ask import PREFLIGHT, Answers
from src.labeling.labeler import Tally
from src.labeling.prompt import render
from src.labeling.teacher import Price, Teacher, Terms
from src.labels import Labelled
from src.metrics import Interval, proportion
from src.quality.agreement import Agreement
from src.quality.confidence import Reliability, Trust
from src.quality.opinions import Independence
from src.quality.spot_checks import Audit
from src.reporting.datacard import datacard
from src.reporting.terms import terms_and_privacy
from src.task import Annotation, Failure, Item, Label, Panel, TaskSpec

TASK = TaskSpec(name="fruit", version=2, kind="classify", classes={"apple": "", "pear": ""}, aliases={},
                system_prompt="", user_prompt="{{ classes | tojson }}", metric="accuracy")
PROMPT = render(TASK, None)
DENY = {"require_parameters": True, "data_collection": "deny"}


def teacher(**changes: Any) -> Teacher:
    values: dict[str, Any] = {
        "base_url": "https://openrouter.ai/api/v1", "model": "maker/model", "key_env": "KEY", "temperature": 0.0,
        "max_tokens": 9, "timeout_s": 9.0, "json_mode": "none", "image_tokens": 0, "sampling": {},
        "routing": {"provider": DENY}, "price": Price(0.1, 0.2, "a list", "2026-01-01"),
        "terms": Terms("unknown", "nobody looked", "2026-01-01")}
    return Teacher(**(values | changes))


def said(item: str, label: str | None = "apple", **changes: Any) -> Annotation:
    return replace(Annotation(item, "cheap", PROMPT.hash, "fruit", label=label, cost_usd=0.001, model="maker/model",
                              provider="Host", task_version=2, job="run"), **changes)


def labelled(*annotations: Annotation, teachers: Sequence[Teacher] = (), arbiter: str | None = None,
             asked: Tally | None = None, answered: int = 0, drawn: bool = False, **changes: Any) -> Labelled:
    """The least there can be, with these annotations."""
    pool = [Item(key, "text", f"{key}.txt", truth="apple") for key in "abc"]
    dataset = Dataset("mine", "texts", Path("/somewhere/mine"), Splits([], [], pool, [], [], 3), {"b`r*.txt": "empty"},
                      4, NearDuplicates(17, 6, 5), drawn, "f" * 64)
    answers = Answers(Panel(("cheap",), 2, arbiter), PROMPT, list(annotations), answered,
                      {"cheap": asked or Tally()})
    values: dict[str, Any] = {
        "dataset": dataset, "teachers": tuple(teachers or [teacher()]), "answers": answers,
        "labels": [Label("a", "apple", True, "cheap, strong"), Label("b", None, False, "cheap", "passes disagree")],
        "unreviewed": [], "rehearsed": False, "agreement": None, "independence": Independence(1, None, None),
        "gold_accuracy": {}, "gold_confusion": {}, "gold_accepted": None, "truth_accuracy": None, "reliability": None,
        "audit": None, "reviewers": None, "enough_gold": None, "suspects": 0}
    return Labelled(**(values | changes))


def card(*annotations: Annotation, **changes: Any) -> str:
    return datacard(labelled(*annotations, **changes), TASK)


def terms(*teachers: Teacher, rehearsed: bool = False, requests: int = 5, earlier: int = 0) -> str:
    return "\n".join(terms_and_privacy(teachers, rehearsed=rehearsed, requests=requests, earlier=earlier))


# Terms and privacy


def test_every_condition_that_was_sent_is_told_and_what_was_not_is_named() -> None:
    text = terms(teacher(routing={"provider": DENY | {"only": ["google-vertex", "azure"], "sort": "price"}}))
    sent, = (line for line in text.splitlines() if "every request" in line)
    for told in ("`require_parameters: true`", "`data_collection: deny`", "`only: google-vertex, azure`",
                 "Also sent: `sort: price`", "Not asked for: `zdr`, `enforce_distillable_text`"):
        assert told in sent
    everything = DENY | {"zdr": True, "enforce_distillable_text": True, "only": ["x"], "allow_fallbacks": False}
    assert "Not asked for" not in terms(teacher(routing={"provider": everything}))


@pytest.mark.parametrize("provider", [
    {"data_collection": "allow"}, {"zdr": False}, {"enforce_distillable_text": False}, {"require_parameters": None},
    {"only": []}, {"allow_fallbacks": True}])
def test_a_value_that_asks_for_nothing_is_no_condition(provider: dict[str, Any]) -> None:
    text = terms(teacher(routing={"provider": provider}))
    assert "OpenRouter for nothing in particular" in text
    assert "Not asked for: `require_parameters`, `data_collection`, `zdr`, `enforce_distillable_text`, `only`" in text


def test_nothing_counts_as_enforced_where_another_endpoint_answers() -> None:
    text = terms(teacher(base_url="https://gateway.example/v1"))
    assert "`data_collection: deny`, which mean nothing at another endpoint" in text and "Count on no cond" in text
    assert "asked OpenRouter" not in text and "privacy settings at OpenRouter" not in text
    assert "no condition was sent" in terms(teacher(base_url="https://gateway.example/v1", routing={}))


def test_nothing_counts_as_enforced_where_nothing_was_sent() -> None:
    rehearsed = terms(teacher(), rehearsed=True)
    assert "nothing was sent there and nothing enforced" in rehearsed and "every request of this run" not in rehearsed
    assert "For you to check before you pay" in rehearsed
    idle = terms(teacher(), requests=0, earlier=7)
    assert "this run sent no request" in idle and "every request" not in idle
    assert "7 answers are from earlier runs" in idle


@pytest.mark.parametrize(("training", "told"), [
    ("yes", "training another model on its answers is allowed"),
    ("no", "training another model on its answers is FORBIDDEN"),
    ("unknown", "nobody has found out whether its answers may train another model")])
def test_terms_say_who_read_them_and_when_and_leave_the_check_to_the_user(training: str, told: str) -> None:
    text = terms(teacher(terms=Terms(training, "their page, by Ada", "2026-03-04")))
    assert f"Terms of `maker/model`: {told} (as of 2026-03-04: their page, by Ada)" in text
    assert "**For you to check**: whether the model's licence and its provider's terms" in text
    assert "whether these items may be sent to openrouter.ai at all" in text


def test_what_stays_on_this_machine_is_sent_nowhere() -> None:
    assert "may be sent" not in terms(teacher(base_url="http://localhost:11434/v1", routing={}))


def test_a_recording_says_that_nobody_knows_its_conditions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,apple\n")
    text = terms(teacher(base_url="", answers=str(tmp_path / "a.csv")))
    assert "`replay:a.csv#label@" in text and "Nobody was asked in this run" in text
    assert "who gave the recorded answers" in text and "may be sent" not in text


# Figures


def test_every_figure_that_is_known_is_told() -> None:
    shares = iter(range(1, 100))

    def share() -> Interval:
        return proportion(next(shares), 100)

    figures: dict[str, Any] = {
        "gold_accuracy": {"cheap": share(), "strong": share()}, "gold_accepted": share(), "truth_accuracy": share(),
        "reviewers": share(), "audit": Audit(share(), ("a", "b"), 9, None, 0),
        "agreement": Agreement(share(), share(), 0.611, 0.622, 0.9),
        "independence": Independence(2, 0.633, Interval(1.222, 1.1, 1.3, 77)),
        "reliability": Reliability(share(), Trust(0.951, 0.152, 0.153), Trust(0.844, 0.045, 0.046)),
        "enough_gold": 345, "suspects": 21,
        "gold_confusion": {"cheap": np.array([[5, 2], [31, 5]]), "strong": np.eye(2, dtype=np.int64)},
    }
    text = card(said("a"), arbiter="strong", **figures)
    for figure in (*figures["gold_accuracy"].values(), figures["gold_accepted"], figures["truth_accuracy"],
                   figures["reviewers"], figures["audit"].accuracy, figures["agreement"].mapped,
                   figures["independence"].effective):
        assert str(figure) in text
    for told in ("2 wrong", "kappa 0.611, alpha 0.622", "correlate by 0.633", "21 labels looked mistaken",
                 "data.gold_size of about 345 (or so many rows in data.gold_csv)",
                 "mean 0.844, calibration error 0.045, Brier score 0.046",
                 "as the annotators say it: mean 0.951, calibration error 0.152, Brier score 0.153",
                 "by `cheap` on gold: pear taken for apple (31), apple taken for pear (2)",
                 "`strong`: asked where these disagree", "accepted 1, passes disagree 1",
                 "Behind 1 accepted labels: `cheap`, `strong`", "3 moved", "4 identical texts merged",
                 "17 near-duplicates in 6 cluster(s), the largest of 5", "1 set aside as broken: `b'r*.txt`"):
        assert told in text, told
    assert "Accuracy of `strong` on gold's *choose* part" in text and "on what it was asked alone" in text
    assert "Mistaken most often by `strong`" not in text


def test_what_is_unknown_is_not_told() -> None:
    text = card(said("a"), independence=Independence(2, None, None, "2 mistakes are too few"))
    assert "worth an unknown number of independent ones: 2 mistakes are too few" in text
    for absent in ("Accuracy", "kappa", "Probability", "Reviewers", "Gold is small", "looked mistaken", "Lost",
                   "carried over", "None", "nan"):
        assert absent not in text, absent


def test_money_of_this_run_and_of_all_and_what_a_crash_lost() -> None:
    lost = said("c", None, failure=Failure.LOST, cost_usd=0.03, model="", provider="")
    asked = Tally(requests=12, answered=9, cost_usd=0.0125, outcomes=Counter(answered=9, rate_limit=2, timeout=1))
    refused = said("c", None, failure=Failure.REFUSAL, cost_usd=0.001)
    text = card(said("a"), said("b"), lost, lost, refused, asked=asked, answered=4)
    assert "all runs together: $0.0630" in text and "12 requests for $0.0125; 4 questions were answered before" in text
    assert "Lost: 2 requests were cut off, as a run was stopped or its process died" in text
    assert "$0.0600 together" in text
    assert "What else came back in this run: rate_limit 2, timeout 1" in text
    assert "`maker/model` by `Host` (2)" in text  # what was lost did not answer


def test_a_question_that_was_not_asked_once_more_is_no_loss() -> None:
    """A run that stops at its cap leaves such a mark: nothing was in flight, and nothing was paid."""
    mark = said("c", None, failure=Failure.LOST, cost_usd=0.0, why="the run ended before it was asked once more")
    assert "Lost" not in card(said("a"), mark)
    assert "Lost: 1 requests" in card(said("a"), mark, replace(mark, item="b", cost_usd=0.03))


def test_what_an_arbiter_said_in_its_preflight_is_none_of_its_answers() -> None:
    asked = [said("a"), said("a", annotator="strong"), said("b", annotator="strong", pass_index=PREFLIGHT)]
    text = card(*asked, arbiter="strong")
    assert "`strong`: asked where these disagree; 1 answers" in text and "`maker/model` by `Host` (2)" in text


def test_one_probability_for_all_is_not_praised_for_its_calibration() -> None:
    trust = Reliability(proportion(57, 60), Trust(0.951, 0.152, 0.153), Trust(0.944, 0.001, 0.046), one_for_all=True)
    text = card(said("a"), reliability=trust)
    assert "one probability for all, split votes apart" in text and "mean 0.944, Brier score 0.046;" in text
    assert "calibration error 0.001" not in text and "mean 0.951, calibration error 0.152" in text


def test_answers_to_another_prompt_are_told_apart() -> None:
    text = card(said("a"), said("b", job="migrated:1", cost_usd=0.0), said("c", job="migrated:1", cost_usd=0.0))
    assert "2 of these 3 answers were given to version 1's prompt" in text
    assert "were paid for there" in text and "were given to another prompt" in text.split("## Limits")[1]


@pytest.mark.parametrize(("changes", "headline"), [
    ({}, None),
    ({"rehearsed": True}, "**REHEARSAL (stand-in teacher): no figure here describes a real teacher.**"),
    ({"drawn": True}, "**REHEARSAL (drawn images): no figure here describes a real teacher or real images.**"),
])
def test_what_was_not_real_stands_in_the_headline(changes: dict[str, Any], headline: str | None) -> None:
    text = card(said("a"), **changes)
    assert (headline in text) if headline else ("REHEARSAL" not in text)


def test_the_page_holds_whatever_names_hold() -> None:
    """A provider's words are shown, and neither run nor break the page."""
    text = card(said("a", model="`<script>`*x*", provider="**bold**|"), asked=Tally(requests=1))
    page = MarkdownIt().render(text)
    assert "<script>" not in page and "<strong>bold" not in page and "<em>x" not in page
    assert page.count("<li>") == sum(line.startswith("- ") for line in text.splitlines()) > 15
    assert page.count("<h2>") == 6 and "<p>-" not in page
