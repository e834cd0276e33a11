"""What is still to be asked, against a plan made the long way round, and what a large store is read by."""

import random
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import beta
from scipy.stats import t as student_t
from scripted_server import PROMPT, TASK, make_teacher, make_texts

from src.errors import StoreError
from src.labeling.plan import Costs, Plan, again_usd, make_plan
from src.labeling.teacher import Price
from src.quality.gold_size import enough_gold
from src.store import Answered, Store
from src.task import Annotation, Failure, Item

TEACHER = make_teacher("http://x", price=Price(input_usd=1.0, output_usd=2.0, source="", date=""))
LABELS = ("apple", "PEAR", "gibberish", None)


def plan_of(items: list[Item], rows: Iterable[Answered], *, passes: int = 2, retry_failed: bool = False,
            again: bool = False) -> Plan:
    return make_plan(items, rows, task=TASK, teacher=TEACHER, prompt=PROMPT, passes=range(passes),
                     retry_failed=retry_failed, again=again)


def some_rows(items: list[Item], chance: random.Random) -> list[Answered]:
    """Up to three tries of most questions, of passes that nobody plans as well."""
    rows = []
    for item in items:
        for pass_index in range(3):
            for attempt in range(chance.randrange(4)):
                label = chance.choice(LABELS)
                failure = None if label else chance.choice(list(Failure)).value
                rows.append(Answered(item.key, pass_index, attempt, label, failure, chance.choice((0.0, 0.001, 0.02))))
    chance.shuffle(rows)
    return rows


@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_plan_is_what_the_rows_say_one_question_at_a_time(retry_failed: bool, again: bool) -> None:
    everybody = make_texts(60)
    rows = some_rows(everybody, random.Random(3))
    items = everybody[:50]  # the store knows of items that are not asked about
    plan = plan_of(items, rows, retry_failed=retry_failed, again=again)
    expected, answered, given_up = [], 0, 0
    for item in items:
        for pass_index in range(2):
            said = sorted((row for row in rows if (row.item, row.pass_index) == (item.key, pass_index)),
                          key=lambda row: row.attempt)
            if not again and any(TASK.map_label(row.label) for row in said):
                answered += 1
            elif (said and not (retry_failed or again)
                  and not (said[-1].failure and Failure(said[-1].failure).transient)):
                given_up += 1
            else:
                expected.append((item, pass_index, len(said)))
    assert [(question.item, question.pass_index, question.known) for question in plan] == expected
    assert (len(plan), plan.answered, plan.given_up) == (len(expected), answered, given_up)
    assert expected and (again or answered) and (again or retry_failed or given_up)
    rest = plan.part(20)
    assert [(q.item, q.pass_index, q.known) for q in rest] == [q for q in expected if items.index(q[0]) >= 20]
    assert len(rest) == len(list(rest))


def test_costs_are_summed_over_every_row() -> None:
    items = make_texts(60)
    rows = [row._replace(cost_usd=row.cost_usd * (1 + row.attempt)) for row in some_rows(items, random.Random(4))]
    costs = plan_of(items[:1], rows).costs
    paid = [row for row in rows if row.failure != Failure.LOST]
    good = [row.cost_usd for row in rows if TASK.map_label(row.label) and row.cost_usd]
    assert costs.total == pytest.approx(sum(row.cost_usd for row in paid))
    assert costs.squares == pytest.approx(sum(row.cost_usd**2 for row in paid))
    assert (costs.n, costs.answered_usd) == (len(good), pytest.approx(sum(good)))
    seen = [row for row in rows if row.failure not in ("lost", "timeout", "connection")]
    assert costs.dearest == pytest.approx(max(
        row.cost_usd - (again_usd(TEACHER, TASK) if row.attempt else 0.0) for row in seen if row.cost_usd))


def test_quantiles_are_the_textbook_ones() -> None:
    costs = Costs(n=7, total=0.7, squares=0.0714, dearest=0.12, answered_usd=0.7)
    spread = (costs.squares - 0.7**2 / 7) ** 0.5 / 6**0.5
    half = student_t.ppf(0.975, 6) * spread * (1 / 7 + 1 / 20) ** 0.5
    assert costs.mean(20).high == pytest.approx(20 * (0.1 + half))

    def half_width(right: float, n: int) -> float:
        return float(beta.ppf(0.975, right + 1, n - right) - beta.ppf(0.025, right, n - right + 1)) / 2

    n = enough_gold(0.9, 0.04)
    assert half_width(0.9 * n, n) <= 0.04 < half_width(0.9 * (n - 1), n - 1)


def test_items_without_attributes_share_that_they_have_none() -> None:
    one, other = make_texts(2)
    assert one.attributes is other.attributes and one.attributes == {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "annotations.db")


def test_reading_all_of_a_store_and_some_of_it_say_the_same(store: Store) -> None:
    items = make_texts(700)
    made = [Annotation(item.key, "t", PROMPT.hash, "fruit", pass_index=n % 2, label=None if n % 3 else "pear",
                       failure=Failure.EMPTY if n % 3 else None, cost_usd=n / 1000) for n, item in enumerate(items)]
    store.add([*made, replace(made[0], annotator="another"), replace(made[1], prompt_hash="another")])
    expected = sorted((a.item, a.pass_index, 0, a.label or "", a.failure and a.failure.value, a.cost_usd) for a in made)
    for found in (list(store.answered("t", PROMPT.hash)),
                  list(store.answered("t", PROMPT.hash, [item.key for item in items]))):
        assert all(type(row) is Answered for row in found)
        assert sorted((*row[:3], row.label or "", *row[4:]) for row in found) == expected
    assert list(store.answered("t", "no such prompt")) == []
    assert plan_of(items, store.answered("t", PROMPT.hash), passes=1).answered == sum(
        not n % 2 and not n % 3 for n in range(700))


def test_a_store_that_is_damaged_half_way_through_is_named(store: Store, tmp_path: Path) -> None:
    store.add([Annotation(item.key, "t", PROMPT.hash, "fruit", label="pear", reply="x" * 500)
               for item in make_texts(6000)])
    store.close()
    path = tmp_path / "annotations.db"
    with sqlite3.connect(path) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size * 4 // 5)
        file.write(b"\xff" * (size // 5))
    rows = store.answered("t", PROMPT.hash)
    assert next(rows).label == "pear"
    with pytest.raises(StoreError, match="could not be read"):
        list(rows)
    store.close()
