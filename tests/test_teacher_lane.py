"""The LLM for a server: what it answers, costs and refuses, and that no fault of it is anybody's exception."""

import asyncio
import contextlib
import json
import random
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from books import claims
from live_teacher import Llm, key_of, make_lane, picture, said
from scripted_server import PROMPT, TASK, Asked, answer, good, make_teacher, price, refuse
from stand_in import make_errors

from src.cascade.cases import replies
from src.cascade.policy import Escalation, EscalationReason, Opinion, Policy, Reply, then
from src.errors import ConfigError
from src.labeling.ask import RehearsalSpec
from src.labeling.budget import HOUR_S, HourlyBudget
from src.labeling.writer import Writer
from src.serving.breaker import Breaker
from src.serving.teacher import USELESS_AFTER
from src.store import Claim, Key, Store
from src.task import Failure

LONG = 30.0  # seconds that a client has where none should be needed


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def ask(lane: Any, *numbers: int, within_s: float = LONG) -> list[Reply]:
    replied = await asyncio.gather(*(lane.ask(key_of(n), picture(n), within_s=within_s) for n in numbers))
    assert {annotator for _, annotator in replied} == {lane.annotator}
    return [reply for reply, _ in replied]


async def held(lane: Any, store: Store) -> list[Any]:
    """What is still claimed when nothing is under way."""
    await lane.drain(LONG)
    return claims(store)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextlib.contextmanager
def locked(store: Store, path: Path) -> Iterator[None]:
    """Somebody else writes, and does not come to an end."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


# What it answers.


def test_an_answer_is_in_the_store_before_it_is_used_and_costs_nothing_again(store: Store) -> None:
    async def main() -> None:
        async with Llm(good) as llm, make_lane(llm, store) as lane:
            first, = await ask(lane, 3)
            assert (first.answer, first.failure, first.cost_usd) == ("pear", None, 0.001) and first.latency_s > 0
            row, = store.read()
            assert (row.item, row.label, row.annotator, row.cost_usd) == (key_of(3), "pear", lane.annotator, 0.001)
            again, = await ask(lane, 3)
            assert (again.answer, again.cost_usd) == ("pear", 0.0) and len(llm.asked) == 1
            assert await held(lane, store) == [] and lane.pending == 0
            assert await lane.said([key_of(3), key_of(4)]) == {key_of(3): ("pear", "because")}

    asyncio.run(main())


def test_what_a_labelling_job_asked_is_not_asked_again(store: Store) -> None:
    """And the other way round: they share annotator, prompt and key."""
    async def main() -> None:
        async with Llm(good) as llm:
            teacher = make_teacher(llm.base_url)
            store.add([said(teacher.annotator, 5, "Pears", confidence=0.9),
                       said(teacher.annotator, 6, None, failure=Failure.REFUSAL),
                       said(teacher.annotator, 7, None, failure=Failure.TIMEOUT)])
            async with make_lane(llm, store) as lane:
                stored, refused, timed_out = await ask(lane, 5, 6, 7)
            assert stored.answer == "pear" and refused.failure == Failure.REFUSAL
            assert timed_out.answer == "pear" and [asked.n for asked in llm.asked] == [7]

    asyncio.run(main())


def test_one_request_for_all_who_wait_and_one_of_them_is_told_its_cost(store: Store) -> None:
    async def main() -> None:
        async with Llm(good) as llm, make_lane(llm, store) as lane:
            replied = await ask(lane, *[1] * 20, *[2] * 20)
            assert len(llm.asked) == 2 and {reply.answer for reply in replied} == {"pear", "apple"}
            assert sum(reply.cost_usd for reply in replied) == pytest.approx(0.002)

    asyncio.run(main())


def test_a_live_answer_is_as_probable_as_a_replayed_one_and_takes_the_same_route(store: Store) -> None:
    chance = random.Random(0)
    confidences = {n: chance.choice([0.5, 0.8, 0.9, 0.99, None]) for n in range(100)}
    wrong = {n for n in range(100) if chance.random() < (0.5 if (confidences[n] or 0) < 0.85 else 0.05)}
    gold = {key_of(n): TASK.names[n % 2] for n in range(40)}

    def label(n: int) -> str:
        return TASK.names[(n + (n in wrong)) % 2]

    async def says(asked: Asked) -> web.Response:
        content = {"label": label(asked.n), "confidence": confidences[asked.n], "why": ""}
        return answer(asked, content=json.dumps(content))

    async def main() -> tuple[dict[str, Reply], str]:
        async with Llm(says) as llm:
            annotator = make_teacher(llm.base_url).annotator
            store.add([said(annotator, n, label(n), confidence=confidences[n]) for n in range(40)])
            async with make_lane(llm, store, gold=gold) as lane:
                replied = await ask(lane, *range(100))
                assert len(llm.asked) == 60
                return dict(zip(map(key_of, range(100)), replied, strict=True)), annotator

    live, annotator = asyncio.run(main())
    replayed = replies(store.read(annotator=annotator), gold, TASK)
    assert len({round(reply.probability or 0, 6) for reply in replayed.values()}) > 4, "gold tells answers apart"
    policy = Policy(threshold=None, teacher_confidence=0.8, audit_share=0.0)
    routes = set()
    for key, reply in live.items():
        assert reply.probability == pytest.approx(replayed[key].probability, abs=1e-12)
        step = Escalation(key, Opinion("apple", 0.5), EscalationReason.UNCERTIFIED)
        one, other = then(policy, step, reply), then(policy, step, replayed[key])
        assert (one.route, one.answer, one.human) == (other.route, other.answer, other.human)
        routes.add(one.route)
    assert len(routes) == 2


def test_with_hardly_any_gold_the_probability_is_unknown_and_that_is_said(
        store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with Llm(good) as llm, make_lane(llm, store) as lane:
            reply, = await ask(lane, 1)
            assert reply.answer == "pear" and reply.probability is None

    asyncio.run(main())
    assert "src.label" in capsys.readouterr().out


# What it costs.


def test_the_hours_budget_is_kept_and_comes_back_with_time(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()

    async def says(asked: Asked) -> web.Response:
        return answer(asked, cost=1.0)

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store, teacher=price(1.0), max_usd_per_hour=5.5,
                                               clock=clock) as lane:
            replied = await ask(lane, *range(12))
            assert sum(reply.over_budget for reply in replied) == 12 - len(llm.asked)
            # A worst case is more than a bill: what is in flight is counted at the worst.
            assert 1 <= len(llm.asked) <= 5 and await held(lane, store) == []
            while not (await ask(lane, len(llm.asked) + 100))[0].over_budget:
                pass
            assert len(llm.asked) == lane.budget.spent_usd and 3 <= len(llm.asked) <= 5
            known = llm.asked[0].n
            assert (await ask(lane, known))[0].answer, "what is stored is free"
            clock.now += HOUR_S
            assert (await ask(lane, 200))[0].answer == "apple"

    asyncio.run(main())
    assert capsys.readouterr().out.count("serving.max_usd_per_hour=5.5 is reached") == 1


def test_what_waits_for_its_turn_takes_nothing_of_the_budget(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return answer(asked, cost=0.01)

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store, teacher=price(1.0), spec={"concurrency": 1},
                                               max_usd_per_hour=2.5) as lane:
            replied = await ask(lane, *range(30))
            assert not any(reply.over_budget for reply in replied), "thirty bills are a tenth of the cap"

    asyncio.run(main())


def test_what_came_too_late_for_anybody_counts_after_a_restart_as_well(store: Store) -> None:
    """Or a slow LLM and a server that is started again would spend the hour's budget once more."""
    over = asyncio.Event()

    async def says(asked: Asked) -> web.Response:
        await over.wait()
        return answer(asked, cost=1.0)

    async def main() -> None:
        async with Llm(says) as llm:
            async with make_lane(llm, store, job="serve") as lane:
                late, = await ask(lane, 1, within_s=0.3)
                assert late.failure == Failure.TIMEOUT and late.cost_usd == 0
                over.set()
                await lane.drain(LONG)
            async with make_lane(llm, store, job="serve") as lane:
                assert lane.budget.spent_usd == 1.0
            store.add([said(lane.annotator, 9, "pear", cost_usd=5.0, job="label"),
                       said(lane.annotator, 8, "pear", cost_usd=5.0, job="serve",
                            created_at=datetime.now(UTC) - timedelta(hours=2))])
            async with make_lane(llm, store, job="serve") as lane:
                assert lane.budget.spent_usd == 1.0

    asyncio.run(main())


def test_the_budget_counts_the_hour_before_and_what_is_in_flight() -> None:
    clock = Clock()
    budget = HourlyBudget(1.0, 0.4, clock=clock)
    assert budget.reserve(0.5) and not budget.reserve(0.2) and budget.reserve(0.0)
    budget.settle(0.5, 0.1)
    budget.settle(0.0, 0.0)
    assert budget.spent_usd == pytest.approx(0.5)
    clock.now += 1800
    assert budget.reserve(0.5)
    budget.settle(0.5, 0.5)
    assert not budget.fits(0.01)
    clock.now += 1800
    assert budget.spent_usd == pytest.approx(0.5) and budget.fits(0.5)
    clock.now += 1800
    assert budget.spent_usd == 0.0


def test_what_nobody_waits_for_any_more_is_not_asked(store: Store) -> None:
    over = asyncio.Event()

    async def says(asked: Asked) -> web.Response:
        await over.wait()
        return answer(asked)

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store, spec={"concurrency": 1}) as lane:
            replied = await ask(lane, 1, 2, 3, within_s=0.5)
            assert {reply.failure for reply in replied} == {Failure.TIMEOUT} and len(llm.asked) == 1
            over.set()
            assert await held(lane, store) == [] and len(llm.asked) == len(store.read()) == 1

    asyncio.run(main())


# When it does not answer.


def test_a_client_waits_no_longer_than_it_may_and_the_answer_is_stored_all_the_same(store: Store) -> None:
    over = asyncio.Event()

    async def says(asked: Asked) -> web.Response:
        await over.wait()
        return answer(asked)

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store) as lane:
            late, = await ask(lane, 1, within_s=0.3)
            assert late.failure == Failure.TIMEOUT and late.latency_s >= 0.3 and lane.pending == 1
            waits = asyncio.create_task(ask(lane, 1))
            await asyncio.sleep(0)
            over.set()
            joined, = await waits
            assert (joined.answer, joined.cost_usd) == ("pear", 0.001), "who came later is told what it cost"
            assert len(llm.asked) == 1 and [a.label for a in store.read()] == ["pear"]

    asyncio.run(main())


@pytest.mark.parametrize(("response", "failure"), [
    (lambda asked: answer(asked, label="plum"), Failure.UNKNOWN_LABEL),
    (lambda asked: answer(asked, content='{"label": "pe'), Failure.INVALID_JSON),
    (lambda asked: answer(asked, content=""), Failure.EMPTY),
    (lambda asked: web.json_response({"error": {"code": 500, "message": "upstream"}}), Failure.OVERLOADED),
    (lambda asked: web.Response(text="<html>", status=200), Failure.EMPTY),
    (lambda asked: web.json_response([1, 2]), Failure.EMPTY),
    (lambda asked: refuse(503), Failure.OVERLOADED),
    (lambda asked: refuse(400), Failure.BAD_REQUEST),
    (lambda asked: refuse(429), Failure.RATE_LIMIT),
    (lambda asked: asked.drop(), Failure.CONNECTION),
])
def test_a_teacher_that_lies_or_breaks_is_a_failure_with_a_name(store: Store, response: Any, failure: Failure) -> None:
    async def says(asked: Asked) -> web.StreamResponse:
        return response(asked) or web.Response()

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store, spec={"max_attempts": 2}) as lane:
            reply, = await ask(lane, 1)
            assert reply.failure == failure and reply.answer is None and len(llm.asked) in (1, 2)
            assert await held(lane, store) == [] and [a.failure for a in store.read()][-1] == failure

    asyncio.run(main())


def test_a_dead_teacher_costs_no_time_and_is_found_again(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    clock, port = Clock(), free_port()

    async def main() -> None:
        lane = make_lane(f"http://127.0.0.1:{port}/v1", store, clock=clock, spec={"concurrency": 1})
        async with lane:
            replied = await ask(lane, *range(20))
            assert {reply.failure for reply in replied} == {Failure.CONNECTION}
            async with Llm(good, port) as llm:
                assert (await ask(lane, 30))[0].failure == Failure.CONNECTION and not llm.asked, "too early"
                clock.now += 1.1
                assert (await ask(lane, 31))[0].answer == "pear"
                assert {r.answer for r in await ask(lane, *range(32, 40))} == {"apple", "pear"}
            replied = await ask(lane, *range(40, 60))
            assert {reply.failure for reply in replied} <= {Failure.CONNECTION, Failure.TIMEOUT}
            clock.now += 1.1
            assert (await ask(lane, 60))[0].failure, "it tried, and it is still away: twice as long now"
            async with Llm(good, port) as llm:
                clock.now += 1.1
                assert (await ask(lane, 61))[0].failure and not llm.asked
                clock.now += 1.1
                assert (await ask(lane, 61))[0].answer == "pear"
            assert await held(lane, store) == []

    asyncio.run(main())
    out = capsys.readouterr().out
    assert out.count("The LLM is of no help") == 2 and out.count("answers again") == 2


def test_a_teacher_too_slow_for_those_who_wait_is_spared_them(store: Store) -> None:
    clock, over = Clock(), asyncio.Event()

    async def says(asked: Asked) -> web.Response:
        await over.wait()
        return answer(asked)

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store, clock=clock, spec={"concurrency": 50}) as lane:
            await ask(lane, *range(5), within_s=1.0)
            assert len(llm.asked) == 5
            reply, = await ask(lane, 6)
            assert reply.failure == Failure.TIMEOUT and len(llm.asked) == 5, "nobody is made to wait for it"
            over.set()
            await lane.drain(LONG)
            assert (await ask(lane, 7))[0].failure and len(llm.asked) == 5, "late answers do not count as help"
            clock.now += 1.1
            assert (await ask(lane, 8))[0].answer == "apple"

    asyncio.run(main())


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_wrong_key_or_model_is_said_once_and_people_go_on(store: Store, capsys: pytest.CaptureFixture[str],
                                                           status: int) -> None:
    clock, mended = Clock(), False

    async def says(asked: Asked) -> web.Response:
        return answer(asked) if mended else refuse(status)

    async def main() -> None:
        nonlocal mended
        async with Llm(says) as llm, make_lane(llm, store, clock=clock, spec={"concurrency": 1}) as lane:
            replied = await ask(lane, *range(30))
            assert {reply.failure for reply in replied} == {Failure.BAD_REQUEST} and len(llm.asked) == 1
            assert await held(lane, store) == [] and store.read() == [], "that is no fault of an item"
            mended = True
            clock.now += 61
            assert (await ask(lane, 40))[0].answer == "apple"

    asyncio.run(main())
    assert capsys.readouterr().out.count("Check ") + (status == 402) == 1


def test_answers_that_are_of_no_use_are_not_bought_for_ever(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return answer(asked, content="no idea")

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store, spec={"concurrency": 1}) as lane:
            replied = await ask(lane, *range(60))
            assert {reply.failure for reply in replied} == {Failure.INVALID_JSON}
            assert len(llm.asked) == USELESS_AFTER

    asyncio.run(main())


def test_a_pause_longer_than_the_client_has_is_not_waited_for(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(429, Retry_After="600")

    async def main() -> None:
        async with Llm(says) as llm, make_lane(llm, store) as lane:
            await ask(lane, 1, within_s=1.0)
            reply, = await ask(lane, 2, within_s=LONG)
            assert reply.failure == Failure.RATE_LIMIT and reply.latency_s < LONG / 2 and len(llm.asked) == 1

    asyncio.run(main())


def test_a_try_that_came_to_nothing_is_left_to_the_next(store: Store) -> None:
    """The one question that a broken teacher would have been tried with is in another process's hands."""
    clock, port = Clock(), free_port()

    async def main() -> None:
        lane = make_lane(f"http://127.0.0.1:{port}/v1", store, clock=clock)
        async with lane, Writer(store) as other:
            await ask(lane, *range(10))
            key = Key(lane.annotator, PROMPT.hash, key_of(20), 0)
            await other.claim([Claim(key, other.owner, 0.1, TASK.name, 1, "")])
            clock.now += 1.1
            async with Llm(good, port) as llm:
                assert (await ask(lane, 20, within_s=0.2))[0].failure == Failure.TIMEOUT
                assert (await ask(lane, 21))[0].failure == Failure.CONNECTION and not llm.asked, "one at a time"
                await lane.drain(LONG)
                assert (await ask(lane, 22))[0].answer == "apple"
            other.release(key)

    asyncio.run(main())


# Others at the same store.


def test_what_another_process_is_asking_is_waited_for(store: Store) -> None:
    async def main() -> None:
        async with Llm(good) as llm, make_lane(llm, store) as lane, Writer(store) as other:
            key = Key(lane.annotator, PROMPT.hash, key_of(1), 0)
            await other.claim([Claim(key, other.owner, 0.1, TASK.name, 1, "")])
            waits = asyncio.create_task(ask(lane, 1))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waits), 1.0)
            await other.keep(said(lane.annotator, 1, "apple"), release=key)
            reply, = await waits
            assert reply.answer == "apple" and llm.asked == []

    asyncio.run(main())


def test_a_store_that_cannot_be_written_buys_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.db"
    store = Store(path, lock_wait_s=0.1)

    async def main() -> None:
        async with Llm(good) as llm, make_lane(llm, store) as lane:
            with locked(store, path):
                replied = await ask(lane, 1, 2, 3)
                assert {reply.failure for reply in replied} == {Failure.LOST} and llm.asked == []
            assert (await ask(lane, 1))[0].answer == "pear"

    asyncio.run(main())
    store.close()
    assert capsys.readouterr().out.count("could not be kept") == 1


def test_a_paid_answer_that_the_store_refused_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store(path, lock_wait_s=0.1)

    async def main() -> None:
        with contextlib.ExitStack() as lock:
            async def says(asked: Asked) -> web.Response:
                lock.enter_context(locked(store, path))
                return answer(asked)

            async with Llm(says) as llm, make_lane(llm, store) as lane:
                reply, = await ask(lane, 1, within_s=1.0)
                assert reply.failure == Failure.TIMEOUT and store.read() == [], "not used before it is stored"
                lock.close()
                reply, = await ask(lane, 1)
                assert reply.answer == "pear" and len(llm.asked) == 1 and len(store.read()) == 1

    asyncio.run(main())
    store.close()


def test_what_is_cut_off_at_the_end_is_booked_at_its_worst(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        await asyncio.Event().wait()
        return answer(asked)

    async def main() -> None:
        async with Llm(says) as llm:
            async with make_lane(llm, store, teacher=price(2.0), spec={"concurrency": 1}) as lane:
                waits = asyncio.create_task(ask(lane, 1, 2))
                while not llm.asked:
                    await asyncio.sleep(0.01)
            assert {reply.answer for reply in await waits} == {None}
            row, = store.read()
            assert row.failure == Failure.LOST and row.cost_usd >= 2.0 and claims(store) == []

    asyncio.run(main())


# Rehearsed.


def test_a_stand_in_answers_about_known_items_alone(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        truths = {key_of(n): TASK.names[n % 2] for n in range(10)}
        rehearsal = RehearsalSpec("always", replace(make_errors(), error_rate=0.0), {})
        async with make_lane("http://127.0.0.1:9/v1", store, rehearsal=rehearsal, truths=truths) as lane:
            replied = await ask(lane, *range(12))
            assert [reply.answer for reply in replied[:10]] == [TASK.names[n % 2] for n in range(10)]
            assert {reply.failure for reply in replied[10:]} == {Failure.REFUSAL}
            assert lane.annotator.startswith("rehearsal:") and {a.provider for a in store.read()} == {"rehearsal"}

    asyncio.run(main())
    assert "REHEARSAL" in capsys.readouterr().out


def test_recorded_answers_cannot_be_asked(store: Store, tmp_path: Path) -> None:
    recorded = tmp_path / "r.csv"
    recorded.write_text("file,label\n")
    with pytest.raises(ConfigError, match=r"teacher\.answers"):
        make_lane("http://127.0.0.1:9/v1", store, teacher={"answers": str(recorded), "answer_column": "label"})


# The breaker by itself.


def test_the_breaker_opens_after_faults_in_a_row_and_lets_one_try() -> None:
    clock = Clock()
    breaker = Breaker(after=3, first_s=1.0, longest_s=3.0, clock=clock)
    for _ in range(2):
        breaker.failed(Failure.TIMEOUT)
    breaker.worked()
    for _ in range(2):
        breaker.failed(Failure.TIMEOUT)
    assert breaker.why is None and breaker.admits("a")
    breaker.failed(Failure.CONNECTION)
    assert breaker.why == Failure.CONNECTION and not breaker.admits("a")
    for wait in (1.0, 2.0, 3.0, 3.0):
        clock.now += wait - 0.1
        assert not breaker.admits("a")
        clock.now += 0.2
        assert breaker.admits("a") and breaker.admits("a") and not breaker.admits("b")
        breaker.leave("b")
        assert not breaker.admits("b")
        breaker.leave("a")
        assert breaker.admits("b"), "who asked nothing leaves the try to the next"
        breaker.failed(Failure.TIMEOUT)
    clock.now += 4
    assert breaker.admits("c")
    breaker.worked()
    assert breaker.why is None and breaker.admits("d") and breaker.admits("e")
    breaker.failed(Failure.BAD_REQUEST, for_long=True)
    clock.now += 2.9
    assert not breaker.admits("f")
