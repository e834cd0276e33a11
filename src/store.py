"""The annotation store: append-only, and the only SQL of the project.

What stands here cost money or a person's time; everything else can be derived from it again. Beside the annotations
stand claims: who is asking which question right now, so that two processes never ask the same one and a process that
dies leaves word of what it may have to pay for. Knows nothing about teachers, tasks or labels, nor how it is found out
that a process died. SQLite by default; PostgreSQL works by its SQLAlchemy address.
"""

import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from src.console import say
from src.errors import StoreError
from src.task import Annotation, Failure

SCHEMA_VERSION = 2
LOCK_WAIT_S = 30.0
MOST_ROWS = 500  # in one statement, and
MOST_ITEMS = 500  # in one look-up: databases limit the values of a statement

metadata = sa.MetaData()
annotations = sa.Table(
    "annotations",
    metadata,
    sa.Column("item", sa.String(64), nullable=False),
    sa.Column("annotator", sa.String(300), nullable=False),
    sa.Column("prompt_hash", sa.String(64), nullable=False),
    sa.Column("pass_index", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("task", sa.String(100), nullable=False),
    sa.Column("label", sa.Text),
    sa.Column("failure", sa.String(30)),
    sa.Column("confidence", sa.Float),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("cost_usd", sa.Float, nullable=False),
    sa.Column("tokens_in", sa.Integer, nullable=False),
    sa.Column("tokens_out", sa.Integer, nullable=False),
    sa.Column("latency_s", sa.Float, nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("model", sa.String(300), nullable=False),
    sa.Column("provider", sa.String(300), nullable=False),
    sa.Column("shown_hash", sa.String(64), nullable=False),
    sa.Column("reply", sa.Text, nullable=False),
    sa.Column("task_version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("job", sa.String(64), nullable=False, server_default=""),
    # The annotator and its prompt come first: every look-up is "what did this one answer so far".
    sa.PrimaryKeyConstraint("annotator", "prompt_hash", "item", "pass_index", "attempt"),
)
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("annotator", sa.String(300), nullable=False),
    sa.Column("prompt_hash", sa.String(64), nullable=False),
    sa.Column("item", sa.String(64), nullable=False),
    sa.Column("pass_index", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(100), nullable=False),
    sa.Column("worst_usd", sa.Float, nullable=False),
    sa.Column("task", sa.String(100), nullable=False),
    sa.Column("task_version", sa.Integer, nullable=False),
    sa.Column("job", sa.String(64), nullable=False),
    sa.PrimaryKeyConstraint("annotator", "prompt_hash", "item", "pass_index"),
    sqlite_with_rowid=False,  # one tree to write instead of two
)
# When each process that holds claims was last heard of.
owners = sa.Table("owners", metadata, sa.Column("owner", sa.String(100), primary_key=True),
                  sa.Column("beat_at", sa.DateTime, nullable=False))
versions = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

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
        self._shown, url = _parse(str(address))
        self._sqlite = url.get_backend_name() == "sqlite"
        self._made = False
        with self._translated("opened"):
            if "://" not in str(address):
                Path(address).parent.mkdir(parents=True, exist_ok=True)
            if self._sqlite:
                self._engine = sa.create_engine(url, connect_args={"timeout": lock_wait_s})
                sa.event.listen(self._engine, "connect", lambda connection, _: _prepare_sqlite(connection, lock_wait_s))
            else:
                self._engine = sa.create_engine(url, pool_pre_ping=True)
            dialect = self._engine.dialect
            self._time: Callable[[datetime], Any] = _as_driver_wants(sa.DateTime(), dialect)
            self._insert = _Bulk(dialect, NAMES, INSERT)
            self._take = _Bulk(dialect, [*claims.c.keys(), "known"], TAKE)
            self._release = _Bulk(dialect, Key._fields, RELEASE)
            with self._writing() as connection:
                self._check_version(connection)
        self._made = True

    def add(self, batch: Sequence[Annotation]) -> None:
        """Append annotations in one transaction. Each question's attempts are numbered as they come, from 0."""
        self.settle(batch)

    def settle(self, batch: Sequence[Annotation], *, release: Sequence[Key] = (),
               wanted: Sequence[Claim] = ()) -> list[Standing]:
        """In one transaction: append what came back, give up claims, and claim what shall be asked next.

        Returns one standing for each claim wanted; it is taken where the standing names its owner.
        """
        with self._translated("written"), self._writing() as connection:
            self._append(connection, batch)
            self._release(connection, release)
            return self._claim(connection, wanted)

    def beat(self, owner: str) -> None:
        """Note that `owner` is alive."""
        now = datetime.now(UTC).replace(tzinfo=None)
        with self._translated("written"), self._writing() as connection:
            if not connection.execute(owners.update().where(owners.c.owner == owner), {"beat_at": now}).rowcount:
                connection.execute(owners.insert(), {"owner": owner, "beat_at": now})

    def bury(self, is_dead: Callable[[str, datetime], bool]) -> list[Annotation]:
        """Book what the dead had in flight, each at its worst case, and free their claims; returns what was booked.

        `is_dead` is asked about each owner of claims, with the time when it was last heard of.
        """
        with self._translated("written"), self._writing() as connection:
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
        if items is None and self._sqlite:
            # Reading rows where they lie takes half the time of looking each one up from the index, which the
            # database would choose; a unary plus keeps it from that. The driver's own cursor halves it once more.
            plain = ("SELECT item, pass_index, attempt, label, failure, cost_usd FROM annotations "
                     "WHERE +annotator = ? AND +prompt_hash = ?")
            with self._translated("read"), closing(self._engine.raw_connection()) as driver:
                cursor = driver.cursor()
                cursor.execute(plain, (annotator, prompt_hash))
                while rows := cursor.fetchmany(2000):
                    yield from map(partial(tuple.__new__, Answered), rows)  # `_make` takes three times as long
            return
        chunks = [query] if items is None else [query.where(c.item.in_(items[start:start + MOST_ITEMS]))
                                                for start in range(0, len(items), MOST_ITEMS)]
        with self._translated("read"), self._engine.connect().execution_options(yield_per=2000) as connection:
            for chunk in chunks:
                yield from map(Answered._make, connection.execute(chunk))

    def spent(self, job: str) -> float:
        """What all annotations of one job cost, in US dollars."""
        query = sa.select(sa.func.sum(annotations.c.cost_usd)).where(annotations.c.job == job)
        with self._translated("read"), self._engine.connect() as connection:
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
        with self._translated("read"), self._engine.connect() as connection:
            if items is None:
                return [_annotation(row._mapping) for row in connection.execute(query)]
            found = [_annotation(row._mapping) for start in range(0, len(items), MOST_ITEMS)
                     for row in connection.execute(query.where(c.item.in_(items[start:start + MOST_ITEMS])))]
        return sorted(found, key=lambda a: (a.created_at, a.item, a.pass_index, a.attempt))

    def close(self) -> None:
        self._engine.dispose()

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

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start, so that two labelers never number alike."""
        with self._engine.begin() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif self._made:
                connection.execute(sa.select(versions).with_for_update())
            yield connection

    def _check_version(self, connection: sa.Connection) -> None:
        if not sa.inspect(connection).has_table("schema_version"):
            # Whole or not at all: tables of that name in somebody else's database are no store.
            metadata.create_all(connection, checkfirst=False)
            connection.execute(versions.insert(), {"version": SCHEMA_VERSION})
            return
        found = connection.execute(sa.select(versions.c.version)).scalar()
        if found == 1:
            self._add_claims(connection)
        elif found != SCHEMA_VERSION:
            raise StoreError(
                f"The annotation store {self._shown} has schema version {found}, this Flywheel reads {SCHEMA_VERSION}: "
                "use the Flywheel version that wrote it, or point `store=` at another file."
            )

    def _add_claims(self, connection: sa.Connection) -> None:
        """Version 1 → 2: two columns with what they mean for older rows, and the tables of claims."""
        for column in ("task_version INTEGER NOT NULL DEFAULT 1", "job VARCHAR(64) NOT NULL DEFAULT ''"):
            connection.exec_driver_sql(f"ALTER TABLE annotations ADD COLUMN {column}")
        metadata.create_all(connection, tables=[claims, owners], checkfirst=False)
        connection.execute(versions.update(), {"version": 2})
        say(f"The annotation store {self._shown} was brought from schema version 1 to 2; every annotation is kept.")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Foreign database errors become a StoreError that says what to do; nothing is ever deleted or reset."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error, ImportError, OSError, ValueError, OverflowError) as error:
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise StoreError(
                f"The annotation store {self._shown} could not be {what}: {cause}. {_way_out(cause)}"
            ) from error


class _Bulk:
    """A statement over many rows that stand before it as `given`. It is one step for the database: a step for each row
    would hand Python's lock to and fro, and asking, which goes on meanwhile, would stand still for most of the time.
    Returns how many rows were changed."""

    def __init__(self, dialect: sa.Dialect, columns: Sequence[str], statement: str) -> None:
        self._mark = "?" if dialect.paramstyle == "qmark" else "%s"
        self._columns = columns
        self._statement = statement

    def __call__(self, connection: sa.Connection, rows: Sequence[Sequence[Any]]) -> int:
        changed = 0
        for start in range(0, len(rows), MOST_ROWS):
            some = rows[start:start + MOST_ROWS]
            row = f"({', '.join([self._mark] * len(self._columns))})"
            given = f"given ({', '.join(self._columns)}) AS (VALUES {', '.join([row] * len(some))})"
            values = tuple(value for row in some for value in row)
            changed += connection.exec_driver_sql(self._statement.format(given=given), values).rowcount
        return changed


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


def _parse(address: str) -> tuple[str, sa.URL]:
    """What may be shown of an address, and what it means. Raises StoreError where it means nothing."""
    if "://" not in address:
        return address, sa.URL.create("sqlite", database=address)
    # Up to the last @, for a password may hold one; a query may hold a password as well.
    shown = re.sub(r"(?<=://).*@", "***@", address).partition("?")[0]
    try:
        return shown, sa.make_url(address)
    except (sa.exc.ArgumentError, ValueError):
        # Not chained: the parser's own words may quote a part of the password.
        raise StoreError(f"The annotation store {shown} could not be opened: that is not an address such as "
                         "postgresql://user:password@host/name (in a password, write @ as %40 and / as %2F).") from None


def _way_out(cause: str) -> str:
    ways = {
        "locked": "Another process holds it: wait for that one to end, or end it, and run the same command again.",
        "full": "The disk is full: free some space and run the same command again; what was stored is safe.",
        "disk I/O": "The disk is full, failing, or limits how large a file may be: mend that and run the same command "
                    "again; what was stored is safe.",
        "not a database": "The file is damaged or something else: move it aside, or restore a copy.",
        "malformed": "The file is damaged: move it aside and recover it (`sqlite3 FILE .recover`), or restore a copy.",
        "already exists": "It is a database of something else: point `store=` at another one.",
        "No module named": "Install that driver, or use a file.",
        "Can't load plugin": "Check the address's beginning, up to the colon.",
        "readonly": "The file or its folder cannot be written: check their permissions.",
        "unable to open": "Check that it is a file and that its folder exists and can be written.",
        "Not a directory": "Check that its folder is a folder and can be written.",
        "File exists": "Check that its folder is a folder and can be written.",
        "Permission denied": "Check that its folder can be written.",
    }
    return next((way for sign, way in ways.items() if sign in cause), "Nothing that was stored is lost.")


def _prepare_sqlite(connection: Any, lock_wait_s: float) -> None:
    # The driver opens no transactions of its own: `_writing` does, and reads need none.
    connection.isolation_level = None
    # WAL lets readers (another job, a notebook) in while a labeler writes; FULL makes a commit survive a power cut,
    # which costs about a millisecond and an answer costs money.
    until = time.monotonic() + lock_wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite itself does not wait here while another process makes the same new file.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous=FULL")


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
