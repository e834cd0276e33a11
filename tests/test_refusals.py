"""Where labels are refused, the key that would change that is named, and works when it is followed."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from src.quality.conclude import conclude
from src.quality.refusals import ways_out
from src.quality.spec import QualitySpec
from src.task import Annotation, Failure, Item, Label, Panel, TaskSpec

TASK = TaskSpec(name="zoo", version=1, kind="classify", classes={"ant": "", "bee": ""}, aliases={}, system_prompt="",
                user_prompt="", metric="accuracy")
PANEL = Panel(("t", "u"), 1)


def spec(**changes: Any) -> QualitySpec:
    return QualitySpec(**({
        "consensus": "agreement", "disagreements": "drop", "min_confidence": 0.0, "min_probability": 0.0,
        "heuristics": "flag", "second_look_share": 0.0, "second_looks": 1, "folds": 3, "gold_half_width": 0.05,
        "spot_checks": 0, "reviewer": "ada"} | changes))


def said(item: str, *labels: str | None, confidence: float | None = 0.9, why: str = "",
         failure: Failure | None = None) -> list[Annotation]:
    return [Annotation(item, who, "p", "zoo", label=label, confidence=confidence, why=why,
                       failure=None if label else failure or Failure.REFUSAL)
            for who, label in zip(PANEL.members, labels, strict=False)]


def judged(choose: int, wrong: int, quality: QualitySpec, *pool: Annotation) -> tuple[list[Label], str]:
    """The pool's labels and what is advised, where gold's *choose* part has so many items and mistakes."""
    gold = [a for i in range(choose) for a in said(f"g{i}", *["bee" if i < wrong else "ant"] * 2)]
    truths = {f"g{i}": "ant" for i in range(choose)}
    items = [Item(key, "text", key) for key in dict.fromkeys(a.item for a in [*gold, *pool])]
    made = conclude(items, [*gold, *pool], task=TASK, panel=PANEL, spec=quality, truths=truths)
    labels = [label for label in made if label.item not in truths]
    return labels, ways_out(labels, [label for label in made if label.item in truths], truths=truths, spec=quality)


ALIKE = said("a", "ant", "ant")


@pytest.mark.parametrize(("quality", "pool", "told"), [
    ({"min_confidence": 0.95}, ALIKE, "The highest confidence is 0.9: lower quality.min_confidence=0.95."),
    ({"min_confidence": 0.5}, said("a", "ant", "ant", confidence=None),
     "quality.min_confidence=0.5 refuses every answer that does not say how sure it is: quality.min_confidence=0 "),
    ({}, said("a", "ant", "bee"), "quality.disagreements=soft"),
    ({}, said("a", None, "bee"), "labeler.retry_failed=true"),
    ({}, said("a", "ant"), "every pass is answered"),
    ({"heuristics": "drop"}, said("a", "ant", "ant", why="a guess"), "quality.heuristics=flag"),
])
def test_every_reason_has_its_own_way_out(quality: dict[str, Any], pool: Sequence[Annotation], told: str) -> None:
    (label,), way = judged(30, 0, spec(**quality), *pool)
    assert not label.accepted and told in way
    others = {"min_confidence", "disagreements", "retry_failed", "every pass", "heuristics", "min_probability"}
    assert sum(other in way for other in others) == 1


def test_the_most_frequent_reason_stands_first() -> None:
    pool = [*said("a", "ant", "bee"), *said("b", None, "bee"), *said("c", "bee", "ant")]
    _, way = judged(30, 0, spec(), *pool)
    assert way.index("disagreements") < way.index("retry_failed")


def gold_size(way: str) -> int:
    advised, = re.findall(r"data\.gold_size of about (\d+)", way)
    return int(advised)


@pytest.mark.parametrize(("choose", "least"), [(4, 0.5), (9, 0.9), (6, 0.98), (0, 0.9)])
def test_gold_that_is_too_small_to_tell_is_said_to_be_and_enough_is_enough(choose: int, least: float) -> None:
    (label,), way = judged(choose, 0, spec(min_probability=least), *ALIKE)
    assert label.reason.startswith("probability unknown") and "min_confidence" not in way
    assert f"{choose} items have a label and 10 are the least" in way and "quality.min_probability=0 does" in way
    assert judged(gold_size(way) // 2, 0, spec(min_probability=least), *ALIKE)[0][0].accepted


@pytest.mark.parametrize(("choose", "least"), [(20, 0.98), (40, 0.99), (150, 0.999)])
def test_faultless_gold_that_promises_too_little_is_told_how_much_would_do(choose: int, least: float) -> None:
    (label,), way = judged(choose, 0, spec(min_probability=least), *ALIKE)
    assert label.reason == f"probability below {least:g}"
    assert f"The highest probability is {(choose + 0.5) / (choose + 1):.4g}: lower quality.min_probability=" in way
    assert judged(gold_size(way) // 2, 0, spec(min_probability=least), *ALIKE)[0][0].accepted
    assert not judged(gold_size(way) // 2 - 1, 0, spec(min_probability=least), *ALIKE)[0][0].accepted


def test_gold_with_few_mistakes_is_told_how_much_would_tell_labels_apart() -> None:
    quality, pool = spec(min_probability=0.97), [*ALIKE, *said("b", "ant", "ant", confidence=0.99)]
    labels, way = judged(40, 3, quality, *pool)
    assert len({label.probability for label in labels}) == 1 and "with 3 mistakes on 40 gold items" in way
    enough = gold_size(way) // 2
    gold = [a for i in range(enough) for a in said(f"g{i}", *["ant" if i >= enough * 3 // 40 else "bee"] * 2,
                                                   confidence=0.99 if i % 2 else 0.9)]
    truths = {f"g{i}": "ant" for i in range(enough)}
    made = conclude([Item(a.item, "text", a.item) for a in [*gold[::2], *pool[::2]]], [*gold, *pool], task=TASK,
                    panel=PANEL, spec=quality, truths=truths)
    assert len({label.probability for label in made if label.item not in truths}) == 2


def test_where_gold_has_taught_all_it_can_no_more_of_it_is_asked_for() -> None:
    _, way = judged(60, 8, spec(min_probability=0.999), *ALIKE)
    assert "lower quality.min_probability=0.999." in way and "gold_size" not in way


def test_votes_that_are_split_need_gold_of_their_own() -> None:
    quality = spec(min_probability=0.5, consensus="majority", disagreements="soft")
    (label,), way = judged(40, 0, quality, *said("a", "ant", "bee"))
    assert label.reason.startswith("probability unknown") and "no label of this kind" in way
