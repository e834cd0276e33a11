"""The annotation store: append-only, and the only SQL of the project.

What stands here cost money or a person's time; everything else can be derived from it again. Knows nothing about
teachers, tasks or labels. SQLite by default; any SQLAlchemy address works.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from src.errors import StoreError
from src.task import Annotation, Failure

SCHEMA_VERSION = 1
LOCK_WAIT_S = 30.0

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
    # The annotator and its prompt come first: every look-up is "what did this one answer so far".
    sa.PrimaryKeyConstraint("annotator", "prompt_hash", "item", "pass_index", "attempt"),
)
versions = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

KEY = ("annotator", "prompt_hash", "item", "pass_index")


class Store:
    """Annotations on disk. A returned `add` means that they survive a crash of this process.

    `address` is a file's path or an SQLAlchemy address. `lock_wait_s` is how long another writer is waited for.
    """

    def __init__(self, address: str | Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._shown, url = _parse(str(address))
        self._sqlite = url.get_backend_name() == "sqlite"
        with self._translated("opened"):
            if "://" not in str(address):
                Path(address).parent.mkdir(parents=True, exist_ok=True)
            if self._sqlite:
                self._engine = sa.create_engine(url, connect_args={"timeout": lock_wait_s})
                sa.event.listen(self._engine, "connect", _prepare_sqlite)
            else:
                self._engine = sa.create_engine(url, pool_pre_ping=True)
            with self._writing() as connection:
                self._check_version(connection)

    def add(self, batch: Sequence[Annotation]) -> list[Annotation]:
        """Append annotations in one transaction and return them with the attempt numbers they got."""
        numbered = []
        with self._translated("written"), self._writing() as connection:
            for annotation in batch:
                row = _row(annotation)
                same = [annotations.c[column] == row[column] for column in KEY]
                last = connection.execute(sa.select(sa.func.max(annotations.c.attempt)).where(*same)).scalar()
                row["attempt"] = 0 if last is None else last + 1
                connection.execute(annotations.insert(), row)
                numbered.append(_annotation(row))
        return numbered

    def read(self, *, task: str | None = None, annotator: str | None = None, prompt_hash: str | None = None,
             annotator_prefix: str | None = None) -> list[Annotation]:
        """The annotations that match every filter given, oldest first."""
        query = sa.select(annotations)
        for column, value in (("annotator", annotator), ("prompt_hash", prompt_hash), ("task", task)):
            if value is not None:
                query = query.where(annotations.c[column] == value)
        if annotator_prefix is not None:
            query = query.where(annotations.c.annotator.startswith(annotator_prefix, autoescape=True))
        order = (annotations.c.created_at, annotations.c.item, annotations.c.pass_index, annotations.c.attempt)
        with self._translated("read"), self._engine.connect() as connection:
            return [_annotation(dict(row._mapping)) for row in connection.execute(query.order_by(*order))]

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start, so that two labelers never number alike."""
        with self._engine.begin() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def _check_version(self, connection: sa.Connection) -> None:
        if not sa.inspect(connection).has_table("schema_version"):
            # Whole or not at all: tables of that name in somebody else's database are no store.
            metadata.create_all(connection, checkfirst=False)
            connection.execute(versions.insert(), {"version": SCHEMA_VERSION})
            return
        found = connection.execute(sa.select(versions.c.version)).scalar()
        if found != SCHEMA_VERSION:
            raise StoreError(
                f"The annotation store {self._shown} has schema version {found}, this Flywheel reads {SCHEMA_VERSION}: "
                "use the Flywheel version that wrote it, or point `store=` at another file."
            )

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Foreign database errors become a StoreError that says what to do; nothing is ever deleted or reset."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, ImportError, OSError, ValueError, OverflowError) as error:
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise StoreError(
                f"The annotation store {self._shown} could not be {what}: {cause}. {_way_out(cause)}"
            ) from error


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


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver opens no transactions of its own: `_writing` does, and reads need none.
    connection.isolation_level = None
    # WAL lets readers (another job, a notebook) in while a labeler writes; FULL makes a commit survive a power cut,
    # which costs about a millisecond and an answer costs money.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _row(annotation: Annotation) -> dict[str, Any]:
    row = asdict(annotation)
    row["failure"] = annotation.failure.value if annotation.failure else None
    row["created_at"] = annotation.created_at.astimezone(UTC).replace(tzinfo=None)
    return row


def _annotation(row: dict[str, Any]) -> Annotation:
    values = {f.name: row[f.name] for f in fields(Annotation)}
    values["failure"] = Failure(row["failure"]) if row["failure"] else None
    values["created_at"] = row["created_at"].replace(tzinfo=UTC)
    return Annotation(**values)


