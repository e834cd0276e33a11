"""The log of decisions: what was answered, by whom and why, step by step, append-only.

An item of a request begins with what the student said and goes on, where it was escalated, with what came of asking.
Knows nothing about the policy that decides, nor about who waits for an answer.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from src.store.database import LOCK_WAIT_S, Bulk, Database
from src.store.tables import decisions

PAGE = 2000  # rows that are read at a time
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Logged:
    """One step of one item of a request. The key is request, position and step; steps count up from 0, and the latest
    is what holds now.

    `request` is 32 hex characters, `position` counts from 0 in it, `item` is the key of what was decided on. `student`
    says which model it was ("run:<id>" or "models:/name/3"), `client` the name of the key that asked, empty without
    keys. `probabilities` are the student's, calibrated, in the task's order of classes. `answer` is None while nobody
    has answered who may; then `route` says whose turn it is. `route`, `escalated` and `human` hold the values of
    `cascade.policy`. `annotator` is who answered where it was not the student. `cost_usd` is of this step, `latency_s`
    counts from when the request came.
    """

    request: str
    position: int
    step: int
    item: str
    task: str
    task_version: int
    student: str
    client: str
    probabilities: tuple[float, ...]
    answer: str | None
    probability: float | None
    route: str
    escalated: str | None
    human: str | None
    annotator: str = ""
    cost_usd: float = 0.0
    latency_s: float = 0.0
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


NAMES = [f.name for f in fields(Logged)]
COLUMNS = [decisions.c[name] for name in NAMES]
INSERT = f"INSERT INTO decisions ({', '.join(NAMES)}) VALUES {{rows}}"


class DecisionLog:
    """Decisions on disk, in the annotation store's database. A returned `append` means that they survive a crash.

    `address` is a file's path or an SQLAlchemy address; `lock_wait_s` is how long another writer is waited for. May be
    used by several threads. Every method raises StoreError.
    """

    def __init__(self, address: str | Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._database = Database(address, "decision log", lock_wait_s=lock_wait_s)
        self._insert = Bulk(self._database.engine.dialect, NAMES, INSERT)

    def append(self, rows: Sequence[Logged]) -> None:
        """All of them in one transaction, or none. Raises RowsRefused, a StoreError, where a key stands there already
        or a value cannot be stored."""
        # Nothing is numbered here, so nobody has to be kept out.
        with self._database.writing(alone=False) as connection:
            self._insert(connection, [_values(row) for row in rows])

    def of(self, request: str) -> list[Logged]:
        """The latest step of each position, in order; nothing for an unknown request."""
        c = decisions.c
        query = sa.select(*COLUMNS).where(c.request == request).order_by(c.position, c.step)
        with self._database.reading() as connection:
            latest = {row.position: row for row in connection.execute(query)}
        return [_logged(row) for row in latest.values()]

    def open(self, task: str, task_version: int) -> Iterator[Logged]:
        """The latest steps that have no answer, oldest first: what a server that starts again takes up. What is written
        meanwhile is not among them."""
        c, later = decisions.c, decisions.alias("later")
        goes_on = sa.exists().where(later.c.request == c.request, later.c.position == c.position,
                                    later.c.step > c.step)
        return self._pages([c.task == task, c.task_version == task_version, c.answer.is_(None), ~goes_on])

    def read(self, *, task: str | None = None, since: datetime | None = None,
             until: datetime | None = None) -> Iterator[Logged]:
        """Every step from `since` on and before `until`, oldest first, as it stood when the reading began. One page at
        a time: neither memory nor the database's own log of changes grows with what is read."""
        return self._pages(_matching(task, since, until))

    def count(self, *, task: str | None = None, since: datetime | None = None, until: datetime | None = None) -> int:
        """How many steps `read` would give."""
        query = sa.select(sa.func.count()).select_from(decisions).where(*_matching(task, since, until))
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar() or 0)

    def close(self) -> None:
        self._database.close()

    def _pages(self, conditions: list[Any]) -> Iterator[Logged]:
        """Matching rows, oldest first. Each page is a read of its own, which begins behind the last row of the one
        before: one long read would keep SQLite from ever emptying its write-ahead file. Rows only ever join, so those
        that were there at the start are told by their number."""
        c = decisions.c
        with self._database.reading() as connection:
            newest = connection.execute(sa.select(sa.func.max(c.id))).scalar() or 0
        query = sa.select(c.id, *COLUMNS).where(c.id <= newest, *conditions).order_by(c.created_at, c.id).limit(PAGE)
        page = query
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(page).all()
            yield from map(_logged, rows)
            if len(rows) < PAGE:
                return
            last = rows[-1]
            page = query.where(sa.tuple_(c.created_at, c.id) > sa.tuple_(last.created_at, last.id))


def _matching(task: str | None, since: datetime | None, until: datetime | None) -> list[Any]:
    c = decisions.c
    found: list[Any] = [] if task is None else [c.task == task]
    found += [] if since is None else [c.created_at >= _microseconds(since)]
    return found + ([] if until is None else [c.created_at < _microseconds(until)])


def _values(row: Logged) -> tuple[Any, ...]:
    return (row.request, row.position, row.step, row.item, row.task, row.task_version, row.student, row.client,
            struct.pack(f"<{len(row.probabilities)}d", *row.probabilities), row.answer, row.probability, row.route,
            row.escalated, row.human, row.annotator, row.cost_usd, row.latency_s, _microseconds(row.created_at))


def _logged(row: Any) -> Logged:
    packed = row.probabilities
    return Logged(
        row.request, row.position, row.step, row.item, row.task, row.task_version, row.student, row.client,
        struct.unpack(f"<{len(packed) // 8}d", packed), row.answer, row.probability, row.route, row.escalated,
        row.human, row.annotator, row.cost_usd, row.latency_s, EPOCH + row.created_at * MICROSECOND)


def _microseconds(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND
