"""The labeler's hand on the store, and who holds a claim: transactions shared, refusals survived, the dead found."""

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_server import PROMPT, TASK, key, make_spec, make_survey, make_teacher, make_texts
from survey_process import forking

from src.errors import StoreError
from src.labeling.budget import Budget
from src.labeling.labeler import REMEMBERED, Labeler, book_the_dead
from src.labeling.outcome import Outcome
from src.labeling.owner import BEAT_S, SILENT_S, born, died, is_dead
from src.labeling.plan import make_plan
from src.labeling.stop import Stop
from src.labeling.writer import Writer
from src.store import Claim, Key, Standing, Store
from src.task import Annotation, Failure

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=1)
PATIENCE_S = 60.0


# Who lives


def owner(*, host: str | None = None, pid: int | None = None, began: str | None = None) -> str:
    """A name as this process would give itself one, with changes."""
    name = born()
    died(name)
    parts = name.split("|")
    changes = (host, None if pid is None else str(pid), began, None)
    return "|".join(old if new is None else new for old, new in zip(parts, changes, strict=True))


def test_a_run_of_this_process_is_alive_until_it_is_over() -> None:
    first, second = born(), born()
    assert first != second and not is_dead(first, LONG_AGO) and not is_dead(second, LONG_AGO)
    died(first)
    assert is_dead(first, NOW) and not is_dead(second, LONG_AGO)
    died(second)
    assert is_dead(second, NOW)


def test_a_process_that_runs_is_alive_and_one_that_ended_is_dead_however_silent_or_loud() -> None:
    told, tell = multiprocessing.Pipe()
    process = forking().Process(target=tell_name, args=(tell,))
    process.start()
    assert told.poll(PATIENCE_S)
    name = told.recv()
    assert name.split("|")[1] == str(process.pid) and not is_dead(name, LONG_AGO)
    process.kill()
    process.join()
    assert is_dead(name, datetime.now(UTC))


def tell_name(tell: Any) -> None:
    tell.send(born())
    time.sleep(PATIENCE_S)


def test_a_process_that_ended_and_was_not_collected_yet_is_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    give_up = time.monotonic() + PATIENCE_S
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    began = psutil.Process(pid).create_time() - psutil.boot_time()
    assert is_dead(owner(pid=pid, began=f"{began:.2f}"), NOW)
    os.waitpid(pid, 0)
    assert is_dead(owner(pid=pid, began=f"{began:.2f}"), NOW)


def test_a_number_that_another_process_has_by_now_is_dead() -> None:
    parent = os.getppid()
    began = psutil.Process(parent).create_time() - psutil.boot_time()
    assert not is_dead(owner(pid=parent, began=f"{began:.2f}"), LONG_AGO)
    assert is_dead(owner(pid=parent, began=f"{began - 5:.2f}"), NOW)
    # Also where the number is our own by now.
    assert is_dead(owner(began="1.00"), NOW)


def test_another_machine_is_known_by_its_silence_alone() -> None:
    for host in ("elsewhere", owner().split("|")[0] + "1"):
        there = owner(host=host, pid=2**22 + 1)
        assert not is_dead(there, datetime.now(UTC) - timedelta(seconds=SILENT_S - 60))
        assert is_dead(there, datetime.now(UTC) - timedelta(seconds=SILENT_S + 1))
    assert BEAT_S < SILENT_S / 3, "a beat or two may be late"


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="Linux tells containers apart")
def test_two_containers_that_share_a_hosts_name_do_not_judge_each_others_processes() -> None:
    host, _, space = owner().split("|")[0].partition("/")
    assert int(space) == os.stat("/proc/self/ns/pid").st_ino
    assert not is_dead(owner(host=f"{host}/{int(space) + 1}", pid=2**22 + 1), datetime.now(UTC))


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="where psutil reads what files say")
def test_setting_the_clock_kills_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux tells when a process began in seconds since the machine did, and that by the wall clock."""
    parent = os.getppid()
    began = psutil.Process(parent).create_time() - psutil.boot_time()
    alive, own = owner(pid=parent, began=f"{began:.2f}"), born()
    before = psutil.Process(parent).create_time()
    for pid in (parent, os.getpid()):
        (tmp_path / str(pid)).mkdir()
        for name in ("stat", "status"):
            shutil.copy(f"/proc/{pid}/{name}", tmp_path / str(pid) / name)
    stat = Path("/proc/stat").read_text().splitlines()
    earlier = [f"btime {int(line.split()[1]) - 3600}" if line.startswith("btime") else line for line in stat]
    (tmp_path / "stat").write_text("\n".join(earlier) + "\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert psutil.Process(parent).create_time() == pytest.approx(before - 3600)
    assert not is_dead(alive, NOW) and not is_dead(own, NOW)
    died(own)


# Claims and answers


class Told(Store):
    """Notes what is settled together. `before` is called first, and may wait or raise."""

    def __init__(self, path: Path, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(path)
        self.batches: list[tuple[int, int, int]] = []
        self.before = before

    def settle(self, batch: Sequence[Annotation], *, release: Sequence[Key] = (),
               wanted: Sequence[Claim] = ()) -> list[Standing]:
        self.before()
        self.batches.append((len(batch), len(release), len(wanted)))
        return super().settle(batch, release=release, wanted=wanted)

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self._shown)) as plain:
            return plain.execute(f"SELECT * FROM {table}").fetchall()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Told]:
    store = Told(tmp_path / "a.db")
    yield store
    store.close()


def asked(n: int) -> Key:
    return Key("t", "p", key(n), 0)


def claim(n: int, writer: Writer, **changes: Any) -> Claim:
    return Claim(asked(n), **({"owner": writer.owner, "worst_usd": 0.5, "task": "fruit", "task_version": 1, "job": "j"}
                              | changes))


def said(n: int, cost_usd: float = 0.01) -> Annotation:
    return Annotation(key(n), "t", "p", "fruit", label="pear", cost_usd=cost_usd)


def test_what_comes_during_a_write_shares_the_next_one(store: Told) -> None:
    async def run() -> None:
        gate = threading.Event()
        async with Writer(store) as writer:
            await asyncio.gather(*(writer.claim([claim(n, writer)]) for n in range(5)))
            assert store.batches == [(0, 0, 5)]
            store.before = lambda: waited(gate)
            first = writer.keep(said(0), release=asked(0))
            await asyncio.sleep(0.1)
            rest = [writer.keep(said(n), release=asked(n)) for n in (1, 2)]
            writer.release(asked(3))
            claims = [asyncio.create_task(writer.claim([claim(n, writer)])) for n in (7, 8, 9)]
            await asyncio.sleep(0.1)
            assert writer.backlog == 3 and not any(f.done() for f in (first, *rest, *claims)) and store.read() == []
            gate.set()
            await asyncio.gather(first, *rest, *claims)
        assert store.batches == [(0, 0, 5), (1, 1, 0), (2, 3, 3)]

    asyncio.run(run())


def test_an_answer_is_done_when_it_is_on_disk_and_not_before_those_handed_over_earlier(store: Told) -> None:
    done: list[int] = []

    async def run() -> None:
        async with Writer(store) as writer:
            for n in range(50):
                future = writer.keep(said(n), release=None)

                def on_disk(_: Any, n: int = n) -> None:
                    done.append(n)
                    assert key(n) in {a.item for a in store.read()}

                future.add_done_callback(on_disk)
                if n % 7 == 0:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    assert done == list(range(50)) and len(store.batches) < 50


def waited(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE_S)


def failing(times: int) -> Callable[[], None]:
    left = [times]

    def before() -> None:
        if left[0]:
            left[0] -= 1
            raise StoreError("full")

    return before


def test_a_refusal_reaches_those_who_claim_and_those_who_want_to_know(store: Told) -> None:
    told: list[Exception] = []

    async def run() -> None:
        async with Writer(store) as writer:
            writer.when_refused(told.append)
            await asyncio.gather(*(writer.claim([claim(n, writer)]) for n in (0, 1)))
            store.before = failing(1)
            one = asyncio.create_task(writer.claim([claim(2, writer)]))
            await asyncio.sleep(0)
            answer = writer.keep(said(0), release=asked(0))
            with pytest.raises(StoreError, match="full"):
                await one
            assert len(told) == 1 and not answer.done(), "it was paid for, and waits"
            # The next one takes it along, and is not troubled.
            assert (await writer.claim([claim(3, writer)]))[0].owner == writer.owner
            assert answer.done() and len(told) == 1
            writer.release(asked(1))
            writer.release(asked(3))

    asyncio.run(run())
    assert [(a.item, a.failure) for a in store.read()] == [(key(0), None)]
    assert store.rows("claims") == store.rows("owners") == []


def test_what_was_refused_is_tried_once_more_at_the_end(store: Told) -> None:
    async def run() -> asyncio.Future[None]:
        async with Writer(store) as writer:
            await writer.claim([claim(0, writer)])
            store.before = failing(1)
            answer = writer.keep(said(0, cost_usd=0.25), release=asked(0))
            await writer.drain()
            assert not answer.done()
        return answer

    assert asyncio.run(run()).done()
    assert [(a.failure, a.cost_usd) for a in store.read()] == [(None, 0.25)]


def test_what_was_refused_keeps_its_place_before_what_came_later(store: Told) -> None:
    async def run() -> None:
        async with Writer(store) as writer:
            await writer.claim([claim(0, writer)])
            store.before = failing(1)
            for cost_usd, release in ((0.25, None), (0.5, asked(0))):
                writer.keep(said(0, cost_usd), release=release)
                await writer.drain()

    asyncio.run(run())
    assert [(a.attempt, a.cost_usd) for a in store.read()] == [(0, 0.25), (1, 0.5)]


def test_what_stays_refused_keeps_its_claim_and_is_booked_by_whoever_comes_next(store: Told) -> None:
    """Also where the claim was to be given up later, and that would have been possible."""
    async def run() -> asyncio.Future[None]:
        async with Writer(store) as writer:
            await asyncio.gather(*(writer.claim([claim(n, writer)]) for n in (0, 1)))
            store.before = failing(10**6)
            store.bury = failing(10**6)  # type: ignore[assignment, method-assign]
            answer = writer.keep(said(0), release=None)
            await writer.drain()
            writer.release(asked(0))
        return answer

    bury = store.bury
    with pytest.raises(TypeError):  # the stand-in takes no argument
        asyncio.run(run())
    store.before, store.bury = lambda: None, bury  # type: ignore[method-assign]
    assert store.read() == [] and len(store.rows("claims")) == 2
    book_the_dead(store)
    assert [(a.item, a.failure, a.cost_usd) for a in store.read()] == [
        (key(0), Failure.LOST, 0.5), (key(1), Failure.LOST, 0.5)]
    assert store.rows("claims") == store.rows("owners") == []


def test_who_is_cut_off_while_claiming_leaves_no_claim(store: Told) -> None:
    async def run() -> None:
        gate = threading.Event()
        async with Writer(store) as writer:
            store.before = lambda: waited(gate)
            under_way, waiting = (asyncio.create_task(writer.claim([claim(n, writer)])) for n in (0, 1))
            await asyncio.sleep(0.1)
            late = asyncio.create_task(writer.claim([claim(2, writer)]))
            await asyncio.sleep(0)
            for task in (under_way, waiting, late):
                task.cancel()
            await asyncio.sleep(0)
            gate.set()
            await writer.drain()
            assert store.rows("claims") == []
        assert store.read() == [], "nothing was asked, so nothing is lost"

    asyncio.run(run())


def test_a_claim_that_somebody_else_has_is_left_to_them(store: Told) -> None:
    async def run() -> None:
        async with Writer(store) as mine, Writer(store) as yours:
            assert mine.owner != yours.owner and len(store.rows("owners")) == 2
            assert (await mine.claim([claim(0, mine)]))[0].owner == mine.owner
            task = asyncio.create_task(yours.claim([claim(0, yours)]))
            assert (await task)[0].owner == mine.owner
            cut_off = asyncio.create_task(yours.claim([claim(0, yours)]))
            await asyncio.sleep(0)
            cut_off.cancel()
            await yours.drain()
            assert [row[4] for row in store.rows("claims")] == [mine.owner]
            await mine.keep(said(0), release=asked(0))

    asyncio.run(run())
    assert store.rows("owners") == []


def test_leaving_books_what_was_cut_off_and_takes_the_name_off_the_list(store: Told) -> None:
    async def run() -> None:
        async with Writer(store) as writer:
            await asyncio.gather(*(writer.claim([claim(n, writer)]) for n in range(3)))
            await writer.keep(said(0), release=asked(0))
            writer.release(asked(1))
            assert [row[0] for row in store.rows("owners")] == [writer.owner]

    asyncio.run(run())
    assert [(a.item, a.failure, a.cost_usd, a.job) for a in store.read()] == [
        (key(0), None, 0.01, ""), (key(2), Failure.LOST, 0.5, "j")]
    assert store.rows("claims") == store.rows("owners") == []


def test_the_heart_beats_on_through_a_store_that_fails_and_stops_at_the_end(store: Told) -> None:
    beats: list[datetime] = []
    beat = store.beat

    def counted(owner: str) -> None:
        beats.append(datetime.now(UTC))
        if len(beats) == 3:
            raise StoreError("locked")
        beat(owner)

    store.beat = counted  # type: ignore[method-assign]

    async def run() -> None:
        async with Writer(store, beat_s=0.02):
            async with asyncio.timeout(PATIENCE_S):
                while len(beats) < 6:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    count = len(beats)
    time.sleep(0.1)
    assert len(beats) == count and store.rows("owners") == []


def test_a_beat_that_is_late_brings_nobody_back(store: Told) -> None:
    beat, under_way = store.beat, threading.Event()

    def slow(owner: str) -> None:
        if store.rows("owners"):
            under_way.set()
            time.sleep(0.5)
        beat(owner)

    store.beat = slow  # type: ignore[method-assign]

    async def run() -> None:
        async with Writer(store, beat_s=0.01):
            await asyncio.to_thread(under_way.wait, PATIENCE_S)

    asyncio.run(run())
    time.sleep(0.7)
    assert store.rows("owners") == []


def test_a_store_that_fails_at_the_start_leaves_no_one_behind(store: Told) -> None:
    store.beat = lambda owner: names.append(owner) or failing(1)()  # type: ignore[func-returns-value, method-assign]
    names: list[str] = []

    async def run() -> None:
        async with Writer(store):
            pass

    with pytest.raises(StoreError, match="full"):
        asyncio.run(run())
    assert is_dead(names[0], NOW)


# Memory


class Instantly:
    """Answers before it is asked twice."""

    async def ask(self, shown: bytes | str, question: str, fault: Any = None) -> Outcome:
        return Outcome(label="pear", confidence=0.9, cost_usd=0.001, tokens_in=10, tokens_out=5)


def sizes(thing: object) -> dict[str, int]:
    """How much every container in an object holds, and those in its parts."""
    found = {}
    for name, value in vars(thing).items():
        if isinstance(value, list | dict | set | tuple | deque):
            found[name] = len(value)
        elif type(value).__module__.startswith("src.labeling") and hasattr(value, "__dict__"):
            found |= {f"{name}.{part}": size for part, size in sizes(value).items()}
    return found


def test_nothing_grows_with_the_number_of_items_but_the_plan_and_the_store(store: Told) -> None:
    items = 20_000
    texts = make_texts(items)
    survey = make_survey("http://127.0.0.1:9/v1", store)
    spec = make_spec(concurrency=64, adaptive=True)
    teacher = make_teacher("http://x")
    plan = make_plan(texts, [], task=TASK, teacher=teacher, prompt=survey.prompt, passes=[0], retry_failed=False)

    async def run() -> dict[str, int]:
        stop = Stop()
        labeler = Labeler(task=TASK, teacher=teacher, annotator="t", prompt=PROMPT, spec=spec, store=store,
                          show=lambda item: (str(item.payload), "h"), budget=Budget(1e6), seed=0, stop=stop)
        async with Writer(store) as writer:
            await labeler.run(iter(plan), Instantly(), writer, usual_tokens=15, dearest_usd=0.0)
            assert labeler.tally.answered == items and len(asyncio.all_tasks()) < 5, "the heart alone still beats"
            return sizes(labeler) | {f"writer.{name}": size for name, size in sizes(writer).items()}

    found = asyncio.run(run())
    assert found["_labels"] <= REMEMBERED and found["_deferred"] == 0 and found["writer._done"] == 0
    assert {name: size for name, size in found.items() if size > REMEMBERED} == {}, found
    assert len(store.rows("annotations")) == items and store.rows("claims") == []
