"""The annotation store: append-only.

What stands here cost money or a person's time; everything else can be derived from it again. Beside the annotations
stand claims: who is asking which question right now, so that two processes never ask the same one and a process that
dies leaves word of what it may have to pay for. Knows nothing about teachers, tasks or labels, nor how it is found out
that a process died.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from src.store.database import LOCK_WAIT_S, Bulk, Database
from src.store.tables import annotations, claims, owners
from src.task import Annotation, Failure

MOST_ITEMS = 500  # in one look-up: databases limit the values of a statement

NAMES = [f.name for f in fields(Annotation) if f.name != "attempt"]


class Key(NamedTuple):
    """What is asked of whom: one question, however often it is tried."""

    annotator: str
    prompt_hash: str
    item: str
    pass_index: int


@dataclass(frozen=True, slots=True)
class Claim:
    """`owner` is about to ask, which may cost `worst_usd`. `known` is how many annotations of this question the asker
    has seen; where there are more, nothing is claimed."""

    key: Key
    owner: str
    worst_usd: float
    task: str
    task_version: int
    job: str
    known: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a claim fared: who holds the question now (nobody where it was not needed), and what was annotated beyond
    what the asker knew."""

    owner: str | None
    news: tuple[Annotation, ...] = ()


class Answered(NamedTuple):
    """An annotation without its words, to plan by."""

    item: str
    pass_index: int
    attempt: int
    label: str | None
    failure: str | None
    cost_usd: float


class Store:
    """Annotations on disk. A returned `add` means that they survive a crash of this process.

    `address` is a file's path or an SQLAlchemy address. `lock_wait_s` is how long another writer is waited for.
    """

    def __init__(self, address: str | Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._database = Database(address, "annotation store", lock_wait_s=lock_wait_s)
        self._shown = self._database.shown
        dialect = self._database.engine.dialect
        self._time: Callable[[datetime], Any] = _as_driver_wants(sa.DateTime(), dialect)
        self._insert = Bulk(dialect, NAMES, INSERT)
        self._take = Bulk(dialect, [*claims.c.keys(), "known"], TAKE)
        self._release = Bulk(dialect, Key._fields, RELEASE)

    def add(self, batch: Sequence[Annotation]) -> None:
        """Append annotations in one transaction. Each question's attempts are numbered as they come, from 0."""
        self.settle(batch)

    def settle(self, batch: Sequence[Annotation], *, release: Sequence[Key] = (),
               wanted: Sequence[Claim] = ()) -> list[Standing]:
        """In one transaction: append what came back, give up claims, and claim what shall be asked next.

        Returns one standing for each claim wanted; it is taken where the standing names its owner.
        """
        with self._database.writing() as connection:
            self._append(connection, batch)
            self._release(connection, release)
            return self._claim(connection, wanted)

    def beat(self, owner: str) -> None:
        """Note that `owner` is alive."""
        now = datetime.now(UTC).replace(tzinfo=None)
        with self._database.writing() as connection:
            if not connection.execute(owners.update().where(owners.c.owner == owner), {"beat_at": now}).rowcount:
                connection.execute(owners.insert(), {"owner": owner, "beat_at": now})

    def bury(self, is_dead: Callable[[str, datetime], bool]) -> list[Annotation]:
        """Book what the dead had in flight, each at its worst case, and free their claims; returns what was booked.

        `is_dead` is asked about each owner of claims, with the time when it was last heard of.
        """
        with self._database.writing() as connection:
            known = {owner: at.replace(tzinfo=UTC) for owner, at in connection.execute(sa.select(owners))}
            long_ago = datetime.fromtimestamp(0, UTC)
            holders = set(known) | set(connection.execute(sa.select(claims.c.owner).distinct()).scalars())
            dead = [owner for owner in sorted(holders) if is_dead(owner, known.get(owner, long_ago))]
            if not dead:
                return []
            lost = [
                Annotation(row.item, row.annotator, row.prompt_hash, row.task, row.pass_index, failure=Failure.LOST,
                           cost_usd=row.worst_usd, task_version=row.task_version, job=row.job,
                           why="in flight when its process died; booked at its worst case")
                for row in connection.execute(sa.select(claims).where(claims.c.owner.in_(dead)))
            ]
            self._append(connection, lost)
            for table in (claims, owners):
                connection.execute(table.delete().where(table.c.owner.in_(dead)))
            return lost

    def answered(self, annotator: str, prompt_hash: str, items: Sequence[str] | None = None) -> Iterator[Answered]:
        """Every annotation by this annotator with this prompt, of some items or of all, without its words, in no
        order, and one at a time: a million of them fit through a small memory."""
        c = annotations.c
        query = sa.select(c.item, c.pass_index, c.attempt, c.label, c.failure, c.cost_usd).where(
            c.annotator == annotator, c.prompt_hash == prompt_hash)
        if items is None and self._database.sqlite:
            # Reading rows where they lie takes half the time of looking each one up from the index, which the
            # database would choose; a unary plus keeps it from that. The driver's own cursor halves it once more.
            plain = ("SELECT item, pass_index, attempt, label, failure, cost_usd FROM annotations "
                     "WHERE +annotator = ? AND +prompt_hash = ?")
            with self._database.translated("read"), closing(self._database.engine.raw_connection()) as driver:
                cursor = driver.cursor()
                cursor.execute(plain, (annotator, prompt_hash))
                while rows := cursor.fetchmany(2000):
                    yield from map(partial(tuple.__new__, Answered), rows)  # `_make` takes three times as long
            return
        chunks = [query] if items is None else [query.where(c.item.in_(items[start:start + MOST_ITEMS]))
                                                for start in range(0, len(items), MOST_ITEMS)]
        with self._database.reading() as connection:
            connection = connection.execution_options(yield_per=2000)
            for chunk in chunks:
                yield from map(Answered._make, connection.execute(chunk))

    def spent(self, job: str, *, since: datetime | None = None) -> float:
        """What all annotations of one job cost, in US dollars; of those made from `since` on, where it is given."""
        c = annotations.c
        query = sa.select(sa.func.sum(c.cost_usd)).where(c.job == job)
        if since:
            query = query.where(c.created_at >= since.astimezone(UTC).replace(tzinfo=None))
        with self._database.reading() as connection:
            return float(connection.execute(query).scalar() or 0.0)

    def read(self, *, task: str | None = None, annotator: str | None = None, prompt_hash: str | None = None,
             annotator_prefix: str | None = None, items: Sequence[str] | None = None,
             replies: bool = True) -> list[Annotation]:
        """The annotations that match every filter given, oldest first; without the raw replies, which are most of
        their bulk, where nobody will look at them."""
        c = annotations.c
        bare = sa.literal("").label("reply")
        query = sa.select(*(column if replies or column is not c.reply else bare for column in c))
        for column, value in (("annotator", annotator), ("prompt_hash", prompt_hash), ("task", task)):
            if value is not None:
                query = query.where(annotations.c[column] == value)
        if annotator_prefix is not None:
            query = query.where(annotations.c.annotator.startswith(annotator_prefix, autoescape=True))
        query = query.order_by(c.created_at, c.item, c.pass_index, c.attempt)
        with self._database.reading() as connection:
            if items is None:
                return [_annotation(row._mapping) for row in connection.execute(query)]
            found = [_annotation(row._mapping) for start in range(0, len(items), MOST_ITEMS)
                     for row in connection.execute(query.where(c.item.in_(items[start:start + MOST_ITEMS])))]
        return sorted(found, key=lambda a: (a.created_at, a.item, a.pass_index, a.attempt))

    def close(self) -> None:
        self._database.close()

    def _append(self, connection: sa.Connection, batch: Sequence[Annotation]) -> None:
        while batch:
            # Attempts are numbered by what the table holds, so a question that comes twice is another statement's.
            rows: dict[Key, list[Any]] = {}
            later = []
            for a in batch:
                key = Key(a.annotator, a.prompt_hash, a.item, a.pass_index)
                if key in rows:
                    later.append(a)
                    continue
                created_at = self._time(a.created_at.astimezone(UTC).replace(tzinfo=None))
                rows[key] = [a.item, a.annotator, a.prompt_hash, a.task, a.pass_index, a.label,
                             a.failure.value if a.failure else None, a.confidence, a.why, a.cost_usd, a.tokens_in,
                             a.tokens_out, a.latency_s, created_at, a.model, a.provider, a.shown_hash, a.reply,
                             a.task_version, a.job]
            self._insert(connection, list(rows.values()))
            batch = later

    def _claim(self, connection: sa.Connection, wanted: Sequence[Claim]) -> list[Standing]:
        first = {claim.key: claim for claim in reversed(wanted)}
        taken = self._take(connection, [(*claim.key, claim.owner, claim.worst_usd, claim.task, claim.task_version,
                                         claim.job, claim.known) for claim in first.values()])
        if taken == len(wanted):
            return [Standing(claim.owner) for claim in wanted]
        # Some were not to be had: look who holds them, and what is new about them.
        held: dict[Key, str] = {}
        news: dict[Key, list[Annotation]] = defaultdict(list)
        for who, items in _by_asked({claim.key for claim in wanted}):
            for table in (claims, annotations):
                c = table.c
                query = sa.select(table).where(c.annotator == who[0], c.prompt_hash == who[1], c.item.in_(items))
                for row in connection.execute(query.order_by(c.attempt) if table is annotations else query):
                    key = Key(*who, row.item, row.pass_index)
                    if table is claims:
                        held[key] = row.owner
                    else:
                        news[key].append(_annotation(row._mapping))
        return [Standing(held.get(claim.key), tuple(a for a in news[claim.key] if a.attempt >= claim.known))
                for claim in wanted]

def _as_driver_wants(kind: "sa.types.TypeEngine[Any]", dialect: sa.Dialect) -> Callable[[Any], Any]:
    return kind.dialect_impl(dialect).bind_processor(dialect) or (lambda value: value)


def _same_question(table: str) -> str:
    return " AND ".join(f"{table}.{name} = given.{name}" for name in Key._fields)


# The attempt is the one that comes next. A confidence that nobody gave has no type for PostgreSQL, unless it is told.
INSERT = f"""
    INSERT INTO annotations ({", ".join(NAMES)}, attempt) WITH {{given}}
    SELECT {", ".join(name if name != "confidence" else "CAST(confidence AS DOUBLE PRECISION)" for name in NAMES)},
        coalesce((SELECT max(attempt) + 1 FROM annotations WHERE {_same_question("annotations")}), 0)
    FROM given"""
# Unless somebody holds the question, or more is known about it than the asker knows.
TAKE = f"""
    INSERT INTO claims ({", ".join(claims.c.keys())}) WITH {{given}}
    SELECT {", ".join(claims.c.keys())} FROM given
    WHERE NOT EXISTS (SELECT 1 FROM claims WHERE {_same_question("claims")})
        AND NOT EXISTS (SELECT 1 FROM annotations WHERE {_same_question("annotations")} AND attempt >= known)"""
RELEASE = f"""
    DELETE FROM claims WHERE ({", ".join(Key._fields)}) IN (WITH {{given}} SELECT * FROM given)"""


def _key(annotation: Annotation) -> Key:
    return Key(annotation.annotator, annotation.prompt_hash, annotation.item, annotation.pass_index)


def _by_asked(keys: set[Key]) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """The items of the questions, by annotator and prompt, at most MOST_ITEMS at a time."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key in keys:
        found[key.annotator, key.prompt_hash].add(key.item)
    for who, items in found.items():
        listed = sorted(items)
        for start in range(0, len(listed), MOST_ITEMS):
            yield who, listed[start:start + MOST_ITEMS]


def _annotation(row: Any) -> Annotation:
    values = dict(row)
    values["failure"] = Failure(row["failure"]) if row["failure"] else None
    values["created_at"] = row["created_at"].replace(tzinfo=UTC)
    return Annotation(**values)
