"""The log of decisions on disk: whole or not at all, no key twice, read page by page while others write."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from decided import NOON, asked, make, person

from src.errors import RowsRefused, StoreError
from src.store import SCHEMA_VERSION, DecisionLog, Store
from src.store.decisions import PAGE
from src.task import Annotation


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DecisionLog]:
    opened = DecisionLog(tmp_path / "a.db", lock_wait_s=0.1)
    yield opened
    opened.close()


def test_every_field_comes_back_as_it_was(tmp_path: Path, log: DecisionLog) -> None:
    third = 1 / 3  # has no short form, and must not be rounded
    full = make("f" * 32, position=7, step=2, task_version=3, student="models:/näme/3",
                probabilities=(third, 2 * third),
                answer="'; DROP TABLE", probability=third, route="human", escalated="audit", human="disagreement",
                annotator="human:zoë", cost_usd=1e-7, latency_s=12.345678901, client="",
                created_at=NOON + timedelta(microseconds=1))
    bare = asked(1, probabilities=())
    log.append([full, bare])
    log.append([])
    other = DecisionLog(tmp_path / "a.db")
    assert list(other.read()) == [bare, full] and other.of("f" * 32) == [full]
    assert list(other.read())[1].created_at.tzinfo is UTC
    other.close()


def test_the_latest_step_of_each_position_holds(log: DecisionLog) -> None:
    answered = person(5, position=1, step=2, answer="apple", annotator="human:ada")
    log.append([make(5, position=2), asked(5, position=1), make(6)])
    log.append([person(5, position=1)])
    assert [(row.position, row.step) for row in log.of(make(5).request)] == [(1, 1), (2, 0)]
    log.append([answered])
    assert log.of(make(5).request) == [answered, make(5, position=2)]
    log.append([replace(answered, step=3, answer=None, annotator="")])  # taken back
    assert log.of(make(5).request)[0].answer is None
    assert log.of("0" * 31 + "9") == [] and log.of("'") == []


def test_what_nobody_has_answered_is_taken_up_oldest_first(log: DecisionLog) -> None:
    late, early = asked(1, created_at=NOON + timedelta(seconds=9)), asked(2)
    log.append([late, early, make(3), asked(4), asked(4, position=1), asked(5, task="x"), asked(6, task_version=2)])
    log.append([make(4, step=1, route="teacher", escalated="doubtful", created_at=NOON + timedelta(seconds=1)),
                person(4, position=1, created_at=NOON + timedelta(seconds=2))])
    found = log.open("fruit", 1)
    expected = [early, person(4, position=1, created_at=NOON + timedelta(seconds=2)), late]
    first = next(found)
    # What is written while they are taken up is not among them.
    log.append([person(2, created_at=NOON + timedelta(hours=1))])
    assert [first, *found] == expected
    log.append([person(4, position=1, step=2, answer="pear"), person(4, position=1, step=3)])  # answered, taken back
    assert [row.step for row in log.open("fruit", 1) if row.request == make(4).request] == [3]
    assert [row.request for row in log.open("fruit", 2)] == [make(6).request] and list(log.open("fruit", 3)) == []


def test_a_million_rows_are_read_a_page_at_a_time(log: DecisionLog) -> None:
    """That is: pages fit together without a gap or a double, many rows of one moment among them."""
    rows = [make(n, created_at=NOON + timedelta(seconds=n // 1500)) for n in range(2 * PAGE + 3)]
    log.append(rows[PAGE:])
    log.append(rows[:PAGE])
    assert sorted(log.read(), key=lambda row: row.request) == rows
    times = [row.created_at for row in log.read()]
    assert times == sorted(times) and log.count() == len(rows)


def test_reading_tells_what_stood_there_when_it_began_and_holds_nobody_up(tmp_path: Path, log: DecisionLog) -> None:
    log.append([make(n) for n in range(PAGE + 1)])
    reading = log.read()
    next(reading)
    for n in range(3):
        log.append([make(10**6 + n, created_at=NOON + timedelta(days=1))])
    # No transaction stays open between two pages: the write-ahead file can be emptied.
    with sqlite3.connect(tmp_path / "a.db") as plain:
        assert plain.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    plain.close()
    assert len(list(reading)) == PAGE and log.count() == PAGE + 4


def test_reading_is_by_task_and_time(log: DecisionLog) -> None:
    rows = [make(n, created_at=NOON + timedelta(hours=n), task="fruit" if n % 2 else "x") for n in range(6)]
    log.append(rows)
    assert list(log.read(since=NOON + timedelta(hours=2), until=NOON + timedelta(hours=4))) == rows[2:4]
    tokyo = timezone(timedelta(hours=9))
    assert list(log.read(task="x", since=(NOON + timedelta(hours=1)).astimezone(tokyo))) == [rows[2], rows[4]]
    assert log.count(task="x", until=NOON) == 0 and log.count(task="fruit") == 3


def test_a_key_is_written_once_and_its_whole_batch_with_it(log: DecisionLog) -> None:
    log.append([make(1)])
    with pytest.raises(RowsRefused, match=r"decision log .*a\.db could not be written: .*stands there already") as told:
        log.append([make(2), make(1, answer="apple")])
    assert isinstance(told.value, StoreError)
    assert list(log.read()) == [make(1)]
    with pytest.raises(RowsRefused):
        log.append([make(3), make(3)])
    log.append([make(1, step=1), make(1, position=1), make(2)])
    assert log.count() == 4


@pytest.mark.parametrize("change", [{"answer": "\ud83d"}, {"position": 2**70}, {"item": None},
                                    {"task": {"no": "text"}}])
def test_a_value_that_cannot_be_stored_is_the_rows_own_fault(log: DecisionLog, change: dict[str, Any]) -> None:
    with pytest.raises(RowsRefused, match="could not be written"):
        log.append([make(1), make(2, **change)])
    assert list(log.read()) == []


def test_a_lock_is_nobodys_rows_fault(tmp_path: Path, log: DecisionLog) -> None:
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"database is locked.*Another process holds it") as told:
        log.append([make(1)])
    assert not isinstance(told.value, RowsRefused)
    assert list(log.read()) == [], "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    log.append([make(1)])
    assert list(log.read()) == [make(1)]


def test_annotations_and_decisions_share_a_file(tmp_path: Path, log: DecisionLog) -> None:
    store = Store(tmp_path / "a.db")
    store.add([Annotation("a" * 64, "human:ada", "p", "fruit", label="pear", created_at=NOON)])
    log.append([make(1)])
    assert [a.label for a in store.read()] == ["pear"] and list(log.read()) == [make(1)]
    store.close()


def test_looking_up_uses_an_index_and_sorts_nothing(log: DecisionLog) -> None:
    """Otherwise a page of a large log would cost as much as all of it."""
    log.append([asked(n, created_at=NOON + timedelta(seconds=n)) for n in range(PAGE + 1)])
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if statement.startswith("SELECT decisions"):
            driver = connection.connection.driver_connection
            plans.append(" / ".join(step[3] for step in driver.execute("EXPLAIN QUERY PLAN " + statement, values)))

    sa.event.listen(sa.Engine, "before_cursor_execute", explain)
    try:
        for found in (log.of(make(1).request), log.open("fruit", 1), log.read()):
            assert list(found)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", explain)
    assert [plan.count("decisions_unanswered") for plan in plans] == [0, 1, 1, 0, 0]
    assert all("decisions_by_time" in plan for plan in plans[3:]) and "decisions_of_request" in plans[0]
    assert not any("TEMP B-TREE" in plan for plan in plans)


# Older versions


def test_a_store_of_version_2_gets_the_log_and_keeps_its_annotations(tmp_path: Path,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.db"
    store = Store(path)
    kept = Annotation("i", "h/m", "p", "fruit", label="pear", created_at=NOON, task_version=2, job="j")
    store.add([kept])
    store.close()
    with sqlite3.connect(path) as plain:
        plain.executescript("DROP TABLE decisions; UPDATE schema_version SET version = 2")
    plain.close()
    log = DecisionLog(path)
    assert "brought from schema version 2 to 3; every annotation is kept" in " ".join(capsys.readouterr().out.split())
    log.append([make(1)])
    with pytest.raises(RowsRefused):
        log.append([make(1)])  # its indices came along
    assert Store(path).read() == [kept] and list(DecisionLog(path).read()) == [make(1)]
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]
    plain.close()
    assert capsys.readouterr().out == ""
