"""The cascade while clients wait: a replay's routes, every step on disk before it is heard of, and nothing lost."""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_teacher import Llm, make_lane, picture, said
from numpy.typing import NDArray
from scripted_server import TASK, good

from src.cascade.policy import HumanReason, Opinion, Policy, Reply, decide
from src.data.images import Unreadable, decode
from src.errors import StoreError
from src.metrics import Floats
from src.serving.lane import Lane
from src.serving.live import BadImages, Busy, Cascade, Ticket
from src.serving.log import Log
from src.serving.payloads import Payloads
from src.serving.review import take_up
from src.serving.spec import ServingSpec
from src.store import DecisionLog, Logged, Store
from src.task import Annotation, Failure

SOON = 30.0  # seconds in which everything happens on any machine
SURE, DOUBTFUL = (0.95, 0.05), (0.4, 0.6)
POLICY = Policy(threshold=0.9, teacher_confidence=0.5, audit_share=0.0)
YES = Reply("apple", 0.9, cost_usd=0.001, latency_s=1.0)
FAILED = Reply(failure=Failure.TIMEOUT, latency_s=1.0)


def payload(n: int) -> bytes:
    return b"picture %d" % n


def key(n: int) -> str:
    return hashlib.sha256(payload(n)).hexdigest()


def name(n: int) -> str:
    return f"{n:032x}"


def see(payload: bytes) -> NDArray[np.uint8]:
    """A picture that shows its own number."""
    if not payload.startswith(b"picture "):
        raise Unreadable("not an image of a known kind")
    low, high = (n := int(payload.split()[1])) % 256, n // 256
    return np.array([low, high, 0], np.uint8).reshape(3, 1, 1)


class Asks:
    """A teacher that replies by number, when `go` is set."""

    def __init__(self, replies: dict[int, Reply] | Reply) -> None:
        self.replies = replies
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def ask(self, key_: str, payload: bytes, *, within_s: float) -> tuple[Reply, str]:
        assert hashlib.sha256(payload).hexdigest() == key_
        self.asked.append(key_)
        await self.go.wait()
        return self.replies if isinstance(self.replies, Reply) else self.replies[int(payload.split()[1])], "llm"

    async def said(self, keys: Sequence[str]) -> dict[str, tuple[str | None, str]]:
        return dict.fromkeys(keys, ("pear", "because"))

    async def drain(self, seconds: float) -> None:
        pass


class Faulty:
    """A log that refuses when told to, before or after it wrote, and looks at every write."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.refuse: Callable[[Logged], bool] = lambda row: False
        self.lose: Callable[[Logged], bool] = lambda row: False
        self.go = asyncio.Event()
        self.go.set()
        self.tries = 0

    async def write(self, rows: Sequence[Logged]) -> None:
        await self.go.wait()
        self.tries += 1
        if any(map(self.refuse, rows)):
            raise StoreError("The decision log could not be written: database is locked.")
        await self.log.write(rows)
        if any(map(self.lose, rows)):
            raise StoreError("The decision log could not be written: the connection broke.")


@dataclass
class World:
    """A cascade with all that stands around it."""

    cascade: Cascade
    lane: Lane
    log: Faulty
    decisions: DecisionLog
    payloads: Payloads
    naps: list[float] = field(default_factory=list)

    async def submit(self, *numbers: int, request: int = 0) -> list[Ticket]:
        return await self.cascade.submit(name(request), [payload(n) for n in numbers], client="ada")

    def steps(self) -> list[tuple[str, int, int, str, str | None]]:
        return [(row.request, row.position, row.step, row.route, row.answer) for row in self.decisions.read()]

    async def until_waiting(self, count: int) -> None:
        async with asyncio.timeout(SOON):
            while self.cascade.waiting != count:
                await asyncio.sleep(0.005)


def make_spec(**changes: Any) -> ServingSpec:
    fields: dict[str, Any] = {
        "host": "127.0.0.1", "port": 0, "batch_images": 32, "batch_wait_ms": 0.0, "most_pending": 512,
        "most_items": 128, "most_body_mb": 32.0, "requests_per_second": None, "wait_s": 60.0,
        "teacher_within_s": SOON, "max_usd_per_hour": 1.0, "lease_s": 120.0, "second_opinion_share": 0.0,
        "keep_days": 30.0, "keep_gb": 1.0, "shutdown_s": 20.0,
    }
    return ServingSpec(**(fields | changes))


@asynccontextmanager
async def world(folder: Path, *, teacher: Any = None, policy: Policy = POLICY,
                probabilities: Callable[[int], Sequence[float]] = lambda n: DOUBTFUL if n % 2 else SURE,
                spec: dict[str, Any] | None = None, **changes: Any) -> AsyncIterator[World]:
    """Odd numbers are doubtful."""
    decisions = DecisionLog(folder / "a.db")
    payloads = Payloads(folder / "kept", 30, 10**9)
    lane = Lane(lease_s=60)
    naps: list[float] = []

    async def batcher(images: NDArray[np.uint8]) -> Floats:
        return np.array([probabilities(int(image[0, 0, 0]) + 256 * int(image[1, 0, 0])) for image in images])

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        await asyncio.sleep(0)

    async with Log(decisions) as log:
        faulty = Faulty(log)
        fields: dict[str, Any] = {
            "task": TASK, "student": "run:1", "policy": policy, "batcher": batcher, "see": see, "teacher": teacher,
            "lane": lane, "log": faulty, "decisions": decisions, "payloads": payloads,
            "spec": make_spec(**(spec or {})), "sleep": nap,
        }
        async with Cascade(**(fields | changes)) as cascade:
            yield World(cascade, lane, faulty, decisions, payloads, naps)
    decisions.close()


async def settled(*tickets: Ticket) -> None:
    async with asyncio.timeout(SOON):
        for ticket in tickets:
            await ticket.settled.wait()


# Routes.


@pytest.mark.parametrize("policy", [
    Policy(0.8, 0.6, 0.3), Policy(None, 0.0, 0.0), Policy(0.0, 0.9, 1.0), Policy(1.0, 0.5, 0.1)], ids=str)
def test_a_live_cascade_takes_the_routes_of_a_replay(tmp_path: Path, policy: Policy) -> None:
    chance = random.Random(1)
    sure = [chance.random() for _ in range(100)]
    replies = {n: chance.choice([
        Reply(chance.choice(TASK.names), chance.choice([None, 0.3, 0.7, 0.95])), Reply(over_budget=True),
        Reply(failure=chance.choice(list(Failure)))]) for n in range(100)}

    def probabilities(n: int) -> Sequence[float]:
        return sure[n], 1 - sure[n]

    async def main() -> None:
        async with world(tmp_path, teacher=Asks(replies), policy=policy, probabilities=probabilities) as here:
            tickets = await here.submit(*range(100))
            await here.cascade.drain(SOON)
            routes = set()
            for n, ticket in enumerate(tickets):
                expected = decide(policy, key(n), Opinion.of(probabilities(n), TASK.names), lambda _, n=n: replies[n])
                row = ticket.latest
                assert (row.answer, row.probability, row.route, row.escalated, row.human) == (
                    expected.answer, expected.probability, expected.route, expected.escalated, expected.human)
                assert ticket.settled.is_set() == (expected.answer is not None)
                routes.add(row.route)
            assert here.decisions.of(name(0)) == [ticket.latest for ticket in tickets]
            assert routes >= {"teacher", "human"}
            waiting = {key(n) for n, ticket in enumerate(tickets) if ticket.latest.route == "human"}
            assert here.cascade.waiting == len(waiting) == here.lane.progress("ada").waiting
            assert {ticket.key for ticket in here.cascade.tickets(name(0))} == waiting

    asyncio.run(main())


def test_a_person_sees_what_the_llm_said_and_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(Reply("pear", 0.2))) as here:
            await here.submit(1)
            await here.until_waiting(1)
            waiting = here.lane.next("ada")
            assert waiting and (waiting.teacher, waiting.teacher_why, waiting.reason, waiting.escalated) == (
                "pear", "because", "teacher_unsure", "doubtful")
            assert waiting.student == Opinion("pear", 0.6) and waiting.teacher_probability == 0.2
            kept = here.payloads.find(key(1))
            assert kept and kept.read_bytes() == payload(1)

    asyncio.run(main())


def test_without_a_teacher_people_get_what_the_student_doubts(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            sure, doubtful = await here.submit(0, 1)
            await here.until_waiting(1)
            assert sure.latest.answer == "apple" and sure.settled.is_set() and doubtful.latest.route == "human"
            assert here.payloads.find(key(0)) is None, "what nobody shall look at is not kept"

    asyncio.run(main())


# What is on disk, and when.


def test_the_first_step_is_on_disk_before_the_client_hears_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        asks = Asks(YES)
        asks.go.clear()
        async with world(tmp_path, teacher=asks) as here:
            tickets = await here.submit(0, 1)
            assert here.decisions.of(name(0)) == [ticket.latest for ticket in tickets]
            student, escalated = (ticket.latest for ticket in tickets)
            assert (student.answer, student.route, student.probability, student.escalated) == (
                "apple", "student", 0.95, None)
            assert (escalated.answer, escalated.route, escalated.escalated) == (None, "teacher", "doubtful")
            assert {row.client for row in (student, escalated)} == {"ada"} and escalated.item == key(1)
            assert escalated.probabilities == DOUBTFUL and escalated.student == "run:1"

    asyncio.run(main())


def test_a_further_step_is_on_disk_before_anybody_hears_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=(asks := Asks(YES))) as here:
            asks.go.clear()
            ticket, = await here.submit(1)
            here.log.go.clear()
            asks.go.set()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ticket.settled.wait(), 1.0)
            assert ticket.latest.step == 0
            here.log.go.set()
            await settled(ticket)
            assert here.decisions.of(name(0)) == [ticket.latest]
            row = ticket.latest
            assert (row.step, row.answer, row.annotator, row.cost_usd) == (1, "apple", "llm", 0.001)
            assert row.latency_s > 0 and here.cascade.tickets(name(0)) == []

    asyncio.run(main())


def test_where_the_first_step_cannot_be_written_nothing_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=(asks := Asks(YES))) as here:
            here.log.refuse = lambda row: True
            with pytest.raises(StoreError, match="locked"):
                await here.submit(0, 1)
            assert here.steps() == [] and asks.asked == [] and here.cascade.pending == 0
            assert here.cascade.tickets(name(0)) == []

    asyncio.run(main())


def test_where_an_image_cannot_be_kept_nothing_is_logged(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "kept").write_text("no folder")
        async with world(tmp_path, teacher=(asks := Asks(YES))) as here:
            with pytest.raises(StoreError):
                await here.submit(1)
            assert here.steps() == [] and asks.asked == []
            assert (await here.submit(0))[0].latest.answer == "apple"

    asyncio.run(main())


def test_a_later_step_that_is_refused_is_tried_until_it_is_written(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(YES)) as here:
            here.log.refuse = lambda row: row.step == 1 and here.log.tries < 6
            tickets = await here.submit(1, 3)
            await settled(*tickets)
            assert here.naps and sorted(here.steps()) == [
                (name(0), position, step, "teacher", "apple" if step else None)
                for position in (0, 1) for step in (0, 1)]

    asyncio.run(main())
    out = capsys.readouterr().out
    assert out.count("cannot be logged") == 1 and out.count("logged again") == 1


def test_the_pause_between_tries_grows(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(YES)) as here:
            here.log.refuse = lambda row: row.step == 1 and here.log.tries < 12
            await settled(*await here.submit(1))
            assert here.naps[:3] == [0.5, 1.0, 2.0] and max(here.naps) == here.naps[-1] == 30.0

    asyncio.run(main())


def test_a_step_whose_confirmation_was_lost_is_not_doubled(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(YES)) as here:
            here.log.lose = lambda row: row.step == 1
            ticket, = await here.submit(1)
            await settled(ticket)
            assert [step for _, _, step, _, _ in here.steps()] == [0, 1] and here.naps == []

    asyncio.run(main())


def test_where_another_process_answered_first_its_answer_holds(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two servers on one store, as while one is replaced by another."""
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(FAILED)) as old:
            first, alone = await old.submit(1, 3)
            same, = await old.submit(1, request=1)
            await old.until_waiting(3)
            async with world(tmp_path, teacher=Asks(FAILED)) as new:
                await new.cascade.answered(key(1), "pear", "human:ada")
            fresh, = await old.submit(1, request=2)
            await old.until_waiting(4)
            await old.cascade.answered(key(1), "apple", "human:bob")
            await settled(first, same, fresh)
            for ticket in (first, same, fresh):
                assert old.decisions.of(ticket.request)[ticket.position] == ticket.latest
            assert [ticket.latest.answer for ticket in (first, same, fresh)] == ["pear", "pear", "apple"]
            assert old.cascade.waiting == 1 and not alone.settled.is_set()
            assert old.cascade.tickets(name(0)) == [alone] and old.cascade.tickets(name(1)) == []

    asyncio.run(main())
    assert capsys.readouterr().out.count("give each server a store of its own") == 1


def test_what_another_process_answered_is_not_shown_to_people(tmp_path: Path) -> None:
    async def main() -> None:
        asks = Asks(FAILED)
        asks.go.clear()
        async with world(tmp_path, teacher=asks) as old:
            ticket, = await old.submit(1)
            async with world(tmp_path, teacher=Asks(YES)) as new:
                await new.cascade.drain(SOON)
            asks.go.set()
            await settled(ticket)
            await old.cascade.drain(SOON)
            assert ticket.latest.answer == "apple" and old.lane.next("ada") is None and old.cascade.waiting == 0

    asyncio.run(main())


def test_a_mistake_in_an_escalation_is_not_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Asks):
        async def said(self, keys: Sequence[str]) -> dict[str, tuple[str | None, str]]:
            raise ZeroDivisionError("what nobody thought of")

    async def main() -> None:
        async with world(tmp_path, teacher=Broken(FAILED)) as here:
            await here.submit(1)
            await here.cascade.drain(SOON)

    asyncio.run(main())
    assert "what nobody thought of" in capsys.readouterr().out


def test_a_client_that_left_is_answered_all_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(YES)) as here:
            here.log.go.clear()
            left = asyncio.create_task(here.submit(0, 1))
            await asyncio.sleep(0.2)
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left
            here.log.go.set()
            await here.cascade.drain(SOON)
            assert [row.answer for row in here.decisions.of(name(0))] == ["apple", "apple"]
            assert here.cascade.pending == 0

    asyncio.run(main())


# What is not taken.


def test_images_that_cannot_be_used_are_named_and_nothing_is_logged(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            with pytest.raises(BadImages) as caught:
                await here.cascade.submit(name(0), [payload(0), b"junk", payload(1), b""], client="")
            assert set(caught.value.positions) == {1, 3} and "known kind" in caught.value.positions[1]
            assert here.steps() == [] and here.cascade.pending == 0

    asyncio.run(main())


def test_more_than_can_be_pending_is_turned_away(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, spec={"most_pending": 4, "most_items": 4}) as here:
            here.log.go.clear()
            first = asyncio.create_task(here.submit(0, 2, 4))
            await asyncio.sleep(0)
            with pytest.raises(Busy) as caught:
                await here.submit(0, 2, request=1)
            assert caught.value.retry_after_s > 0 and here.cascade.pending == 3
            here.log.go.set()
            await first
            await asyncio.sleep(0)
            assert len(await here.submit(0, 2, 4, 6, request=2)) == 4

    asyncio.run(main())


def test_a_slow_llm_keeps_nobody_from_the_student(tmp_path: Path) -> None:
    async def main() -> None:
        asks = Asks(YES)
        asks.go.clear()
        async with world(tmp_path, teacher=asks, spec={"most_pending": 4, "most_items": 4}) as here:
            tickets = [ticket for n in range(5) for ticket in await here.submit(1 + 2 * n, request=n)]
            await here.until_waiting(1)
            assert len(asks.asked) == here.cascade.asking == 4
            assert tickets[4].latest.human == HumanReason.TEACHER_FAILED
            assert (await here.submit(0, request=9))[0].latest.answer == "apple"
            asks.go.set()
            await settled(*tickets[:4])

    asyncio.run(main())


def test_large_images_that_a_slow_llm_is_asked_about_do_not_fill_the_memory(tmp_path: Path) -> None:
    async def main() -> None:
        asks = Asks(YES)
        asks.go.clear()
        async with world(tmp_path, teacher=asks, spec={"most_body_mb": 0.001}) as here:
            large = [payload(n) + b" " * 3900 for n in (1, 3, 5)]  # eight bodies of a thousand bytes hold two of them
            tickets = await here.cascade.submit(name(0), large, client="")
            await here.until_waiting(1)
            assert len(asks.asked) == 2 and tickets[2].latest.human == HumanReason.TEACHER_FAILED
            asks.go.set()
            await settled(*tickets[:2])
            await settled(*await here.submit(7, request=1))

    asyncio.run(main())


# People.


def test_one_answer_is_for_all_who_wait_for_that_item(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(FAILED)) as here:
            one, twice, other = await here.submit(1, 1, 3)
            later, = await here.submit(1, request=1)
            await here.until_waiting(4)
            assert here.lane.progress("ada").waiting == 2
            await here.cascade.answered(key(1), "pear", "human:ada")
            await settled(one, twice, later)
            assert not other.settled.is_set() and here.cascade.waiting == 1
            for ticket in (one, twice, later):
                row = ticket.latest
                assert (row.step, row.answer, row.route, row.annotator, row.human) == (
                    2, "pear", "human", "human:ada", "teacher_failed")
            assert here.decisions.of(name(1)) == [later.latest] and here.cascade.tickets(name(0)) == [other]

    asyncio.run(main())


def test_an_answer_can_be_taken_back_and_given_anew(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(FAILED)) as here:
            ticket, = await here.submit(1)
            await here.until_waiting(1)
            for label in ("pear", None, "apple", "pear"):
                await here.cascade.answered(key(1), label, "human:ada")
                assert ticket.settled.is_set() == (label is not None)
                assert here.cascade.waiting == (label is None) == len(here.cascade.tickets(name(0)))
            assert [(step, answer) for _, _, step, _, answer in here.steps()] == [
                (0, None), (1, None), (2, "pear"), (3, None), (4, "apple"), (5, "pear")]
            assert {row.route for row in here.decisions.of(name(0))} == {"human"}
            with pytest.raises(ValueError, match="plum"):
                await here.cascade.answered(key(1), "plum", "human:ada")

    asyncio.run(main())


def test_nobody_is_asked_twice_about_the_same_item(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(FAILED)) as here:
            await here.submit(1)
            await here.until_waiting(1)
            await here.cascade.answered(key(1), "pear", "human:ada")
            again, = await here.submit(1, request=1)
            await settled(again)
            assert (again.latest.answer, again.latest.annotator, again.latest.step) == ("pear", "human:ada", 2)
            await here.cascade.answered(key(1), None, "human:ada")
            assert not again.settled.is_set() and here.cascade.waiting == 2
            third, = await here.submit(1, request=2)
            await here.until_waiting(3)
            assert third.latest.answer is None

    asyncio.run(main())


def test_an_answer_while_the_log_refuses_is_passed_on_later_and_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(FAILED)) as here:
            ticket, = await here.submit(1)
            await here.until_waiting(1)
            here.log.refuse = lambda row: here.log.tries < 10
            said = [here.cascade.answered(key(1), label, "human:ada") for label in ("pear", None, "apple")]
            await asyncio.gather(*said)
            await settled(ticket)
            assert [answer for *_, answer in here.steps()] == [None, None, "pear", None, "apple"]

    asyncio.run(main())


# The end, and the next beginning.


def test_what_is_under_way_is_answered_before_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        asks = Asks(YES)
        asks.go.clear()
        async with world(tmp_path, teacher=asks) as here:
            ticket, = await here.submit(1)
            drained = asyncio.create_task(here.cascade.drain(SOON))
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await here.submit(0, request=1)
            asks.go.set()
            await drained
            assert ticket.latest.answer == "apple"

    asyncio.run(main())


def test_what_was_open_is_taken_up_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        asks = Asks({1: FAILED, 3: YES, 5: YES, 7: FAILED})
        async with world(tmp_path, teacher=asks) as here:
            await here.submit(0, 1, 7)
            await here.until_waiting(2)
            asks.go.clear()
            await here.submit(3, 5, request=1)
            await here.cascade.drain(0.1)
        (kept := here.payloads.find(key(5))) and kept.unlink()
        before = here.steps()
        asks.go.set()
        async with world(tmp_path, teacher=asks) as again:
            async with asyncio.timeout(SOON):
                while again.cascade.tickets(name(1)):
                    await asyncio.sleep(0.005)
            assert [row.answer for row in again.decisions.of(name(1))] == ["apple", None]
            assert [ticket.key for ticket in again.cascade.tickets(name(0))] == [key(1), key(7)]
            waiting = again.lane.next("ada")
            assert waiting and (waiting.key, waiting.reason, waiting.teacher_why) == (
                key(1), "teacher_failed", "because")
            ticket = again.cascade.tickets(name(0))[0]
            await again.cascade.answered(key(1), "pear", "human:ada")
            await settled(ticket)
            assert again.steps()[: len(before)] == before and len(again.steps()) == len(before) + 2
            assert ticket.latest.latency_s > 0

    asyncio.run(main())
    assert "1 escalation(s) of before have no image any more" in capsys.readouterr().out


def test_an_answer_that_was_stored_but_not_passed_on_is_passed_on_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, teacher=Asks(FAILED)) as here:
            await here.submit(1)
            await here.until_waiting(1)
        store = Store(tmp_path / "a.db")
        store.add([Annotation(key(1), "human:ada", f"{TASK.name}@{TASK.version}", TASK.name, label="pear")])
        async with world(tmp_path, teacher=Asks(FAILED)) as again:
            ticket, = again.cascade.tickets(name(0))
            assert await take_up(again.lane, TASK, store, again.cascade.answered) == 1
            await settled(ticket)
            assert (ticket.latest.answer, ticket.latest.annotator) == ("pear", "human:ada")
            fresh, = await again.submit(1, request=5)
            await settled(fresh)
        store.close()

    asyncio.run(main())


def test_with_a_real_teacher_behind_it(tmp_path: Path) -> None:
    """Pictures, the lane, its server: killed in between, and back."""
    store = Store(tmp_path / "a.db")

    def real(payload: bytes) -> NDArray[np.uint8]:
        return np.asarray(decode(payload, 10**6), np.uint8).transpose(2, 0, 1)[:, :1, :1]

    async def main() -> None:
        async with Llm(good) as llm:
            port = llm.port
            lane = make_lane(llm, store, spec={"max_attempts": 1})
            store.add([said(lane.annotator, n, TASK.names[n % 2], confidence=0.9) for n in range(100, 120)])
            lane = make_lane(llm, store, spec={"max_attempts": 1},
                             gold={a.item: a.label or "" for a in store.read(annotator=lane.annotator)})
            async with lane, world(tmp_path, teacher=lane, see=real, probabilities=lambda n: DOUBTFUL) as here:
                answered = await here.cascade.submit(name(0), [picture(n) for n in range(8)], client="")
                await settled(*answered)
                assert [ticket.latest.answer for ticket in answered] == [TASK.names[n % 2] for n in range(8)]
                assert {ticket.latest.annotator for ticket in answered} == {lane.annotator}
                await llm.runner.cleanup()
                lost = await here.cascade.submit(name(1), [picture(n) for n in range(4, 12)], client="")
                await settled(*lost[:4])
                await here.until_waiting(4)
                assert {ticket.latest.human for ticket in lost[4:]} == {"teacher_failed"}
                assert {ticket.latest.cost_usd for ticket in lost} == {0.0}
                async with Llm(good, port):
                    async with asyncio.timeout(SOON):
                        request = 2
                        while True:
                            ticket, = await here.cascade.submit(name(request), [picture(20 + request)], client="")
                            while ticket.latest.step == 0:
                                await asyncio.sleep(0.01)
                            if ticket.latest.route == "teacher":
                                break
                            request += 1
                            await asyncio.sleep(0.1)
                await here.cascade.drain(SOON)
                rows = list(here.decisions.read())
                assert len({(row.request, row.position, row.step) for row in rows}) == len(rows)
                assert sum(row.cost_usd for row in rows) == pytest.approx(
                    sum(a.cost_usd for a in store.read()))

    asyncio.run(main())
    store.close()
