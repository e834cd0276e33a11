"""One database under everything that is stored: addresses, transactions, versions, and errors in the user's words.

SQLite by default; PostgreSQL works by its SQLAlchemy address. Knows the tables only to make them and to bring older
ones up to date.
"""

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from src.address import HOW, is_clear
from src.console import say
from src.errors import RowsRefused, StoreError
from src.store.tables import SCHEMA_VERSION, metadata, upgrade, versions

LOCK_WAIT_S = 30.0
MOST_ROWS = 500  # in one statement: databases limit its values


class Database:
    """The file or server at `address`, whole and of today's version. `name` is what messages call it; `lock_wait_s` is
    how long another writer is waited for. Raises StoreError."""

    def __init__(self, address: str | Path, name: str, *, lock_wait_s: float) -> None:
        self.name = name
        self.shown, url = _parse(str(address), name)
        self.sqlite = url.get_backend_name() == "sqlite"
        self._made = False
        with self.translated("opened"):
            if "://" not in str(address):
                Path(address).parent.mkdir(parents=True, exist_ok=True)
            if self.sqlite:
                self.engine = sa.create_engine(url, connect_args={"timeout": lock_wait_s})
                sa.event.listen(self.engine, "connect", lambda connection, _: _prepare_sqlite(connection, lock_wait_s))
            else:
                self.engine = sa.create_engine(url, pool_pre_ping=True)
            with self._transaction(alone=True) as connection:
                self._check_version(connection)
        self._made = True

    @contextmanager
    def writing(self, *, alone: bool = True) -> Iterator[sa.Connection]:
        """A transaction. `alone` keeps every other such writer out from its start, so that two labelers never number
        alike; SQLite has one writer at a time anyhow."""
        with self.translated("written"), self._transaction(alone=alone) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with self.translated("read"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Foreign database errors become a StoreError that says what to do; nothing is ever deleted or reset."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error, ImportError, OSError, ValueError, OverflowError) as error:
            cause = [*str(getattr(error, "orig", None) or error).splitlines(), type(error).__name__][0]
            kind = RowsRefused if what == "written" and _rows_fault(error) else StoreError
            raise kind(f"The {self.name} {self.shown} could not be {what}: {cause}. {_way_out(cause)}") from error

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _transaction(self, *, alone: bool) -> Iterator[sa.Connection]:
        with self.engine.begin() as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif alone and self._made:
                connection.execute(sa.select(versions).with_for_update())
            elif not self._made and self.engine.dialect.name == "postgresql":
                # Nothing is there yet that could be locked, and two that make the same tables at once crash.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('flywheel'))")
            yield connection

    def _check_version(self, connection: sa.Connection) -> None:
        if not sa.inspect(connection).has_table("schema_version"):
            # Whole or not at all: tables of that name in somebody else's database are no store.
            metadata.create_all(connection, checkfirst=False)
            connection.execute(versions.insert(), {"version": SCHEMA_VERSION})
            return
        found = connection.execute(sa.select(versions.c.version)).scalar()
        if isinstance(found, int) and 0 < found < SCHEMA_VERSION:
            upgrade(connection, found)
            say(f"The {self.name} {self.shown} was brought from schema version {found} to {SCHEMA_VERSION}; every "
                "annotation is kept.")
        elif found != SCHEMA_VERSION:
            raise StoreError(
                f"The {self.name} {self.shown} has schema version {found}, this Flywheel reads {SCHEMA_VERSION}: "
                "use the Flywheel version that wrote it, or point `store=` at another file."
            )


class Bulk:
    """A statement over many rows that stand in it as `{rows}`, or before it as the table `given` (`{given}`). It is one
    step for the database: a step for each row would hand Python's lock to and fro, and asking, which goes on meanwhile,
    would stand still for most of the time. Returns how many rows were changed."""

    def __init__(self, dialect: sa.Dialect, columns: Sequence[str], statement: str) -> None:
        self._mark = "?" if dialect.paramstyle == "qmark" else "%s"
        self._columns = columns
        self._statement = statement

    def __call__(self, connection: sa.Connection, rows: Sequence[Sequence[Any]]) -> int:
        changed = 0
        row = f"({', '.join([self._mark] * len(self._columns))})"
        for start in range(0, len(rows), MOST_ROWS):
            some = rows[start:start + MOST_ROWS]
            listed = ", ".join([row] * len(some))
            given = f"given ({', '.join(self._columns)}) AS (VALUES {listed})"
            values = tuple(value for row in some for value in row)
            changed += connection.exec_driver_sql(self._statement.format(given=given, rows=listed), values).rowcount
        return changed


def _rows_fault(error: Exception) -> bool:
    """Whether the rows are at fault, and others could be written: they stand there already, or hold what no database
    takes."""
    cause = getattr(error, "orig", None) or error
    return isinstance(error, (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.ProgrammingError)) or isinstance(
        cause, (ValueError, TypeError, OverflowError))


def _parse(address: str, name: str) -> tuple[str, sa.URL]:
    """What may be shown of an address, and what it means. Raises StoreError where it means nothing."""
    if "://" not in address:
        return address, sa.URL.create("sqlite", database=address)
    # Up to the last @, for a password may hold one; a query may hold a password as well.
    shown = re.sub(r"(?<=://).*@", "***@", address).partition("?")[0]
    if is_clear(address):
        # Not chained: the parser's own words may quote a part of the password.
        with suppress(sa.exc.ArgumentError, ValueError):
            return shown, sa.make_url(address)
    raise StoreError(f"The {name} {shown} could not be opened: that is not an address such as "
                     f"postgresql://user:password@host/name ({HOW}).")


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
        "UNIQUE constraint": "One of these stands there already, and is not written twice.",
        "duplicate key": "One of these stands there already, and is not written twice.",
    }
    return next((way for sign, way in ways.items() if sign in cause), "Nothing that was stored is lost.")


def _prepare_sqlite(connection: Any, lock_wait_s: float) -> None:
    # The driver opens no transactions of its own: `writing` does, and reads need none.
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
