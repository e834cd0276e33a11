"""Asking as a job does it: rehearsed or not, gold first, within one cap, and from pictures to annotations."""

from dataclasses import replace
from pathlib import Path

import pytest
from picture_survey import pictures, put
from scripted_server import TASK, price
from stand_in import make_errors

from src.errors import DataError, TeacherError
from src.labeling.teacher import Price
from src.store import Store
from src.task import Annotation


def test_a_rehearsal_labels_everything_once(store: Store, tmp_path: Path) -> None:
    items = pictures(tmp_path, 12)
    errors = make_errors()
    answers = put(items, store, errors=errors, passes=2)
    assert (answers.asked.requests, answers.answered) == (24, 0)
    assert {(a.item, a.label) for a in answers.annotations} == {(item.key, item.truth) for item in items}
    assert answers.annotator.startswith("rehearsal:127.0.0.1:9/v1/m?temperature=0.0#")
    again = put(items, store, errors=errors, passes=2)
    assert (again.asked.requests, again.answered) == (0, 24) and again.annotations == answers.annotations
    # An alias added later is no other question, and an answer by another error model is no answer.
    assert put(items, store, errors=errors, task=replace(TASK, aliases={"birne": "pear"}), passes=2).asked.requests == 0
    other = put(items, store, errors=make_errors(seed=1), passes=2)
    assert other.asked.requests == 24 and other.annotator != answers.annotator


def test_a_rehearsed_answer_never_satisfies_a_paid_run(store: Store, tmp_path: Path) -> None:
    items = pictures(tmp_path, 6)
    put(items, store, errors=make_errors())
    paid = put(items, store, dry_run=True)
    assert (paid.answered, paid.annotations) == (0, []) and not paid.annotator.startswith("rehearsal:")


def test_a_dry_run_asks_nobody(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = pictures(tmp_path, 10)
    # Nothing listens at this address, and that does not matter.
    answers = put(items, store, dry_run=True, passes=3, teacher=price(0.01))
    assert answers.asked.requests == 0 and store.read() == []
    assert "30 questions to ask, estimated cost $0.12 (at the most $0.30)" in capsys.readouterr().out


def test_gold_comes_first_and_a_bad_look_saves_the_rest(store: Store, tmp_path: Path) -> None:
    items, looked = pictures(tmp_path, 10), []

    def check(annotations: list[Annotation]) -> None:
        looked.append({a.item for a in annotations})
        raise DataError("blind")

    with pytest.raises(DataError, match="blind"):
        put(items, store, errors=make_errors(), check=check)
    assert looked == [{item.key for item in items[:4]}] == [{a.item for a in store.read()}]


def test_items_without_truth_cannot_be_rehearsed(store: Store, tmp_path: Path) -> None:
    items = pictures(tmp_path, 5)
    items[3] = replace(items[3], truth=None)
    with pytest.raises(DataError, match=r"1 of 5 items, 3\.png among them, have no known truth"):
        put(items, store, errors=make_errors())


def test_the_cap_holds_for_gold_and_pool_together(store: Store, tmp_path: Path) -> None:
    items = pictures(tmp_path, 60)
    rates = {"price": Price(input_usd=0.3, output_usd=2.5, source="", date=""), "image_tokens": 258}
    with pytest.raises(TeacherError, match=r"labeler\.max_cost_usd=0\.004"):
        put(items, store, errors=make_errors(), gold=20, teacher=rates, max_cost_usd=0.004)
    paid = sum(a.cost_usd for a in store.read())
    assert 0.0035 < paid <= 0.004 and len(store.read()) > 20, "it got into the pool"
