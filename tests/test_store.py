"""The store: append-only, numbered without collisions between processes, and every fault a StoreError with advice."""

import multiprocessing
import os
import random
import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from src.errors import StoreError
from src.store import SCHEMA_VERSION, Claim, Key, Standing, Store
from src.task import Annotation, Failure

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PASSWORD = "s3cret-pass"


def make(item: str = "a" * 64, **changes: Any) -> Annotation:
    fields: dict[str, Any] = {"annotator": "host/model?temperature=0.0", "prompt_hash": "p", "task": "fruit",
                              "label": "pear", "created_at": NOON}
    return Annotation(item, **(fields | changes))


def fault(path: Path | str, **options: Any) -> str:
    """What opening the store says."""
    with pytest.raises(StoreError) as caught:
        Store(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Append-only


def test_every_field_comes_back_as_it_was(tmp_path: Path) -> None:
    full = make(pass_index=1, failure=Failure.REFUSAL, confidence=0.25, why="naïve ☃ 'quoted'; DROP TABLE",
                cost_usd=1e-7, tokens_in=2**40, tokens_out=3, latency_s=0.1, model="m", provider="p",
                shown_hash="f" * 64, reply='{"a":\n1}')
    bare = make("b" * 64, label=None)
    store = Store(tmp_path / "new/folders/annotations.db")
    store.add([full, bare])
    store.close()
    assert Store(tmp_path / "new/folders/annotations.db").read() == [full, bare]


def test_attempts_are_numbered_by_question_and_nothing_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    store.add([make(label=label) for label in ("pear", "apple", "pear")])
    # What the caller numbered is not believed.
    store.add([make(attempt=1), make(attempt=77)])
    others = [make("b" * 64), make(pass_index=1), make(annotator="other"), make(prompt_hash="q")]
    store.add(others)
    assert [(a.attempt, a.label) for a in store.read(annotator=make().annotator, prompt_hash="p")
            if (a.item, a.pass_index) == (make().item, 0)] == list(enumerate(["pear", "apple", "pear", "pear", "pear"]))
    assert sorted(a.attempt for a in store.read()) == [0, 0, 0, 0, 0, 1, 2, 3, 4]


def test_more_rows_than_a_statement_takes(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    items = [f"{n:064d}" for n in range(1201)]
    claimed = store.settle([], wanted=[want(item) for item in items])
    assert claimed == [Standing("me")] * 1201
    store.settle([make(item) for item in items], release=[want(item).key for item in items[1:]])
    assert [a.item for a in store.read()] == items
    assert [s.owner for s in store.settle([], wanted=[want(item, owner="you", known=1) for item in items])] == \
        ["me", *["you"] * 1200]


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    with pytest.raises(StoreError, match="could not be written"):
        store.add([make(), replace(make("b" * 64), task={"not": "text"})])  # type: ignore[arg-type]
    assert store.read() == []
    store.add([make()])
    assert store.read() == [make()]


def test_reading_is_oldest_first_whatever_the_order_of_writing(tmp_path: Path) -> None:
    batch = [make(f"{n:064d}", pass_index=n % 2, created_at=NOON + timedelta(microseconds=n // 3)) for n in range(60)]
    shuffled = random.Random(0).sample(batch, len(batch))
    store = Store(tmp_path / "a.db")
    store.add(shuffled[:30])
    store.add(shuffled[30:])
    assert store.read() == batch and shuffled != batch


@pytest.mark.parametrize("prefix", ["human:", "100%", "a_b", "back\\slash", "/", "ä", "[x]*?"])
def test_a_prefix_is_text_and_no_pattern(tmp_path: Path, prefix: str) -> None:
    names = ["human:eva", "100% sure", "1000 sure", "a_b/c", "axb/c", "back\\slash", "backslash", "/x", "äx", "ax"]
    names += ["[x]*?", "xy"]
    store = Store(tmp_path / "a.db")
    store.add([make(annotator=name) for name in names])
    expected = {name for name in names if name.startswith(prefix)}
    assert {a.annotator for a in store.read(annotator_prefix=prefix)} == expected and expected


def test_filters_apply_together(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    store.add([make(task=t, annotator=a, prompt_hash=p) for t in "xy" for a in ("h:1", "h:2", "m") for p in "pq"])
    found = store.read(task="x", annotator_prefix="h:", prompt_hash="q")
    assert [(a.task, a.annotator, a.prompt_hash) for a in found] == [("x", "h:1", "q"), ("x", "h:2", "q")]
    assert store.read(task="") == [] and len(store.read()) == 12


def test_times_are_utc(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    tokyo = NOON.astimezone(timezone(timedelta(hours=9)))
    store.add([make(created_at=tokyo)])
    (found,) = store.read()
    assert found.created_at == NOON and found.created_at.tzinfo is UTC and found.created_at.hour == 12
    with sqlite3.connect(tmp_path / "a.db") as plain:
        assert plain.execute("SELECT created_at FROM annotations").fetchone() == ("2026-03-01 12:00:00.000000",)
    plain.close()


@pytest.mark.parametrize("name", ["what?.db", "100%20.db", "a#b.db", "ünï cödé.db", "semi;colon&mode=ro.db"])
def test_a_path_is_a_path_and_no_address(tmp_path: Path, name: str) -> None:
    Store(tmp_path / name).add([make()])
    assert Store(tmp_path / name).read() == [make()]
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(("-wal", "-shm"))] == [name]
    Store(f"sqlite:///{tmp_path}/plain.db").add([make()])
    assert Store(tmp_path / "plain.db").read() == [make()]


# Two writers


def write(path: Path, writer: int, opened: Any, count: int) -> None:
    opened.wait()
    store = Store(path)
    for n in range(count):
        # Both answer the same questions, and each has some of its own.
        store.add([make(f"{n % 5:064d}", label=f"{writer}:{n}"), make(annotator=f"own{writer}", label=f"{writer}:{n}")])
    store.close()


def test_processes_that_write_at_once_neither_collide_nor_lose(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers, count = 3, 40
    opened = context.Barrier(writers)
    processes = [context.Process(target=write, args=(tmp_path / "a.db", n, opened, count)) for n in range(writers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * writers
    found = Store(tmp_path / "a.db").read()
    expected = sorted(f"{writer}:{n}" for writer in range(writers) for n in range(count) for _ in range(2))
    assert sorted(a.label or "" for a in found) == expected
    attempts: dict[tuple[str, str], list[int]] = {}
    for a in found:
        attempts.setdefault((a.item, a.annotator), []).append(a.attempt)
    assert len(attempts) == 5 + writers
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in attempts.values())
    # They also opened a file that was not there yet, all at once.
    with sqlite3.connect(tmp_path / "a.db") as plain:
        assert plain.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    plain.close()


def test_reading_goes_on_while_another_writes(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    store.add([make()])
    writer = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert store.read() == [make()]
    writer.close()


# Faults


@pytest.mark.parametrize(("content", "way"), [(b"PNG? this is no database\n" * 99, "move it aside")])
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, way: str) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    said = fault(path)
    assert str(path) in said and way in said and "not a database" in said
    assert path.read_bytes() == content, "nothing is overwritten"


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store(path)
    store.add([make(f"{n:064d}", reply="x" * 2000) for n in range(200)])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(0).randbytes(size - 8192))
    with pytest.raises(StoreError, match=r"malformed.*move it aside and recover it") as caught:
        Store(path).read()
    assert str(path) in str(caught.value) and path.stat().st_size == size


def test_a_file_that_ends_early_is_not_taken_for_an_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store(path)
    store.add([make(f"{n:064d}", reply="x" * 2000) for n in range(50)])
    store.close()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StoreError, match="malformed"):
        Store(path).read()


def test_a_locked_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store(path, lock_wait_s=0.1)
    store.add([make()])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"could not be written: database is locked\. Another process holds it: wait"):
        store.add([make("b" * 64)])
    assert "database is locked" in fault(path, lock_wait_s=0.1)
    other.execute("ROLLBACK")
    other.close()
    store.add([make("b" * 64)])
    assert store.read() == [make(), make("b" * 64)], "it goes on once the other has let go"


def test_a_short_lock_is_waited_out(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    timer.start()
    store.add([make()])
    assert store.read() == [make()]
    timer.join()
    other.close()


def test_a_file_that_another_is_about_to_make_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    assert "database is locked" in fault(path, lock_wait_s=0.05)
    timer = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    timer.start()
    store = Store(path)
    store.add([make()])
    assert store.read() == [make()]
    timer.join()
    other.close()


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store(path)
    store.add([make()])
    # SQLite reports its own limit of pages as it reports a full disk.
    def shrink(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 20")

    sa.event.listen(sa.pool.Pool, "connect", shrink)
    try:
        small = Store(path)
        stored = 1
        with pytest.raises(StoreError, match=r"could not be written: .*full.*free some space.*what was stored is safe"):
            while stored < 100:
                small.add([make(f"{stored:064d}", reply="x" * 3000)])
                stored += 1
        assert 1 < stored < 100
        assert len(small.read()) == stored, "it can still be read"
        small.close()
    finally:
        sa.event.remove(sa.pool.Pool, "connect", shrink)
    store.add([make(f"{stored:064d}", reply="x" * 3000)])
    assert len(store.read()) == stored + 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = fault(tmp_path / "file" / "a.db")
    assert str(tmp_path / "file") in said and "folder" in said
    assert "folder" in fault(tmp_path), "a folder in the file's place"


def test_a_store_that_may_only_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store(path).add([make()])
    store = Store(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises(StoreError, match=r"readonly.*check their permissions"):
        store.add([make()])
    assert store.read() == [make()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    assert "shut" in fault(tmp_path / "shut" / "a.db") and "can be written" in fault(tmp_path / "shut" / "a.db")
    assert "can be written" in fault(tmp_path / "shut" / "deeper" / "a.db")


def test_a_version_from_the_future(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store(path).add([make()])
    with sqlite3.connect(path) as plain:
        plain.execute("UPDATE schema_version SET version = 7")
    plain.close()
    said = fault(path)
    assert "version 7" in said and f"reads {SCHEMA_VERSION}" in said and "store=" in said and str(path) in said
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT count(*) FROM annotations").fetchone() == (1,)
    plain.close()


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as plain:
        plain.execute("CREATE TABLE annotations (note TEXT)")
    plain.close()
    said = fault(path)
    assert "already exists" in said and "store=" in said
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT sql FROM sqlite_master").fetchall() == [("CREATE TABLE annotations (note TEXT)",)]
    plain.close()


@pytest.mark.parametrize("address", [
    f"postgresql://user:{PASSWORD}@host:port/db",
    f"nosuchdialect://user:{PASSWORD}@host/db",
    f"sqlite+nosuchdriver://user:{PASSWORD}@host/db",
    f"oracle+oracledb://user:{PASSWORD}@127.0.0.1:1/db",
    f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://user:12@{PASSWORD}@host:port/db",
    f"postgresql://user:12@{PASSWORD}@host/db",
    f"postgresql://host:port/db?user=me&password={PASSWORD}",
    f"://user:{PASSWORD}@host/db",
    f"sqlite://user:{PASSWORD}@host/db",
])
def test_no_message_tells_a_password(address: str) -> None:
    said = fault(address)
    assert PASSWORD not in said and "annotation store" in said


def test_the_version_message_tells_no_password(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store(path).close()
    with sqlite3.connect(path) as plain:
        plain.execute("UPDATE schema_version SET version = 7")
    plain.close()
    said = fault(f"sqlite:///file:{path}?uri=true&password={PASSWORD}")
    assert "version 7" in said and PASSWORD not in said


def test_a_missing_driver_is_named() -> None:
    said = fault("mysql+mysqldb://user@host/db")
    assert "MySQLdb" in said and "install" in said.lower()


def test_values_that_no_database_takes(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    with pytest.raises(StoreError, match="could not be written"):
        store.add([make(tokens_in=2**64)])
    with pytest.raises(StoreError, match="could not be written"):
        store.add([make(why="\ud83d")])
    store.add([make(why="\x00")])
    assert store.read() == [make(why="\x00")]


# Claims


def want(item: str = "a" * 64, *, owner: str = "me", known: int = 0, worst_usd: float = 0.01, **changes: Any) -> Claim:
    key = Key(**{"annotator": make().annotator, "prompt_hash": "p", "item": item, "pass_index": 0} | changes)
    return Claim(key, owner, worst_usd, "fruit", 3, "job-1", known)


def test_a_question_is_claimed_once_until_it_is_given_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    mine, other = want(), want(owner="you")
    assert [s.owner for s in store.settle([], wanted=[mine, want("b" * 64, owner="you"), other])] == ["me", "you", "me"]
    others = [want(owner="you", **change) for change in ({"pass_index": 1}, {"prompt_hash": "q"}, {"annotator": "x"})]
    assert [s.owner for s in store.settle([], wanted=others)] == ["you"] * 3
    # Stored and given up in one transaction, after which there is nothing left to ask.
    store.settle([make()], release=[mine.key])
    (standing,) = store.settle([], wanted=[other])
    assert standing.owner is None and [a.label for a in standing.news] == ["pear"]
    assert store.settle([], wanted=[want(owner="you", known=1)]) == [Standing("you")]


def test_a_claim_sees_only_what_its_asker_has_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    store.add([make(label=None, failure=Failure.REFUSAL), make(label="apple")])
    for known, seen in ((0, [None, "apple"]), (1, ["apple"])):
        (standing,) = store.settle([], wanted=[want(known=known)])
        assert standing.owner is None and [a.label for a in standing.news] == seen
    assert store.settle([], wanted=[want(known=2)]) == [Standing("me")]


def test_the_dead_are_booked_at_their_worst_and_the_living_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    for owner in ("dead", "alive"):
        store.beat(owner)
    store.settle([make()], wanted=[want("b" * 64, owner="dead", worst_usd=0.5), want("c" * 64, owner="alive"),
                                   want("d" * 64, owner="never beat", worst_usd=0.25)])
    asked: dict[str, datetime] = {}

    def is_dead(owner: str, beat_at: datetime) -> bool:
        asked[owner] = beat_at
        return owner != "alive"

    booked = store.bury(is_dead)
    assert {(a.item[0], a.failure, a.cost_usd, a.task_version, a.job) for a in booked} == {
        ("b", Failure.LOST, 0.5, 3, "job-1"), ("d", Failure.LOST, 0.25, 3, "job-1")}
    assert asked["never beat"].year == 1970 and (datetime.now(UTC) - asked["alive"]).total_seconds() < 60
    assert sorted(a.item[0] for a in store.read()) == ["a", "b", "d"] and store.bury(is_dead) == []
    assert store.spent("job-1") == 0.75
    # Free again, for whoever has seen what was booked; the living one still holds its own.
    assert [s.owner for s in store.settle([], wanted=[want("b" * 64, known=1), want("c" * 64)])] == ["me", "alive"]


def claim_everything(path: Path, owner: str, opened: Any, found: Any) -> None:
    store = Store(path)
    opened.wait()
    taken = []
    for start in range(0, 300, 7):
        wanted = [want(f"{n:064d}", owner=owner) for n in range(start, min(300, start + 7))]
        taken += [c.key.item for c, s in zip(wanted, store.settle([], wanted=wanted), strict=True) if s.owner == owner]
    found.put(taken)


def test_processes_that_claim_at_once_share_and_never_overlap(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    Store(tmp_path / "a.db").close()
    opened, found = context.Barrier(3), context.Queue()
    workers = [context.Process(target=claim_everything, args=(tmp_path / "a.db", f"w{n}", opened, found))
               for n in range(3)]
    for worker in workers:
        worker.start()
    taken = [found.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert sorted(item for part in taken for item in part) == [f"{n:064d}" for n in range(300)]


def test_answers_are_told_without_their_words(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    store.add([make(cost_usd=0.5), make(label=None, failure=Failure.EMPTY)])
    store.add([make(annotator="other"), make(prompt_hash="q")])
    assert sorted(store.answered(make().annotator, "p")) == [
        ("a" * 64, 0, 0, "pear", None, 0.5), ("a" * 64, 0, 1, None, "empty", 0.0)]


# Older versions

VERSION_1 = """
CREATE TABLE annotations (item VARCHAR(64) NOT NULL, annotator VARCHAR(300) NOT NULL, prompt_hash VARCHAR(64) NOT NULL,
 pass_index INTEGER NOT NULL, attempt INTEGER NOT NULL, task VARCHAR(100) NOT NULL, label TEXT, failure VARCHAR(30),
 confidence FLOAT, why TEXT NOT NULL, cost_usd FLOAT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
 latency_s FLOAT NOT NULL, created_at DATETIME NOT NULL, model VARCHAR(300) NOT NULL, provider VARCHAR(300) NOT NULL,
 shown_hash VARCHAR(64) NOT NULL, reply TEXT NOT NULL,
 PRIMARY KEY (annotator, prompt_hash, item, pass_index, attempt));
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
INSERT INTO annotations VALUES ('i', 'h/m', 'p', 1, 0, 'fruit', 'pear', NULL, 0.9, 'why', 0.25, 3, 4, 0.5,
 '2026-03-01 12:00:00.000000', 'm', 'pr', 's', 'r');
"""


def version_1(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1)
    connection.close()


def test_a_store_of_version_1_is_brought_up_to_date_with_all_it_holds(tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    version_1(tmp_path / "a.db")
    store = Store(tmp_path / "a.db")
    assert "brought from schema version 1 to 3; every annotation is kept" in " ".join(capsys.readouterr().out.split())
    old = Annotation("i", "h/m", "p", "fruit", 1, label="pear", confidence=0.9, why="why", cost_usd=0.25, tokens_in=3,
                     tokens_out=4, latency_s=0.5, created_at=NOON, model="m", provider="pr", shown_hash="s", reply="r")
    assert store.read() == [old] and (old.task_version, old.job) == (1, "")
    assert store.settle([make(task_version=2, job="j")], wanted=[want("b" * 64)]) == [Standing("me")]
    store.close()
    again = Store(tmp_path / "a.db")
    assert capsys.readouterr().out == "" and {(a.task_version, a.job) for a in again.read()} == {(1, ""), (2, "j")}


def test_a_migration_that_fails_leaves_the_old_store_as_it_was(tmp_path: Path) -> None:
    version_1(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE claims (something TEXT)")
    connection.close()
    fault(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(1,)]
        assert "job" not in {row[1] for row in connection.execute("PRAGMA table_info(annotations)")}
        assert connection.execute("SELECT item, label FROM annotations").fetchall() == [("i", "pear")]
    connection.close()
