"""The labeler against servers of our own: how many at once, how often, at what cost, and what is kept."""

import asyncio
import hashlib
import json
import os
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from scripted_server import (
    JPEG,
    PROMPT,
    TASK,
    Asked,
    Server,
    answer,
    free_address,
    good,
    key,
    label,
    make_items,
    make_spec,
    make_teacher,
    number,
    plan_for,
    price,
    refuse,
)
from stand_in import make_errors

from src.errors import StoreError, TeacherError
from src.labeling.budget import Budget
from src.labeling.labeler import GIVE_UP_AFTER
from src.labeling.rehearsal import Rehearsal
from src.labeling.teacher import Price
from src.store import Store
from src.task import Failure

# How many at once


@pytest.mark.parametrize("concurrency", [1, 7])
def test_concurrency_is_a_bound_and_is_reached(store: Store, concurrency: int) -> None:
    async def says(asked: Asked) -> web.Response:
        await asyncio.sleep(0.01)
        return answer(asked)

    server = Server(says)
    tally = label(server, 40, store, concurrency=concurrency)
    assert server.peak == concurrency and tally.requests == 40 and tally.answered == 40


def test_the_passes_of_an_item_are_asked_in_parallel(store: Store) -> None:
    both = asyncio.Event()

    async def says(asked: Asked) -> web.Response:
        # Nobody gets an answer before both passes have been asked.
        if len(server.asked) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)
        return answer(asked)

    server = Server(says)
    label(server, 1, store, passes=2, concurrency=2)
    assert sorted((a.item, a.pass_index, a.attempt, a.label) for a in store.read()) == [
        (key(0), 0, 0, "apple"), (key(0), 1, 0, "apple")]
    assert len({asked.question for asked in server.asked}) == 2


def test_an_answer_is_on_disk_before_it_counts(store: Store) -> None:
    late: list[int] = []

    def updated(done: int) -> None:
        if done > len(store.read()):
            late.append(done)

    assert label(Server(good), 30, store, updated=updated).answered == 30 and late == []


def test_what_is_stored_is_what_came(store: Store) -> None:
    replies = {}

    async def says(asked: Asked) -> web.Response:
        response = answer(asked, label="Pears")
        replies[asked.item] = str(response.text)
        return response

    label(Server(says), 2, store)
    for a in store.read():
        assert (a.label, a.failure, a.confidence, a.why, a.cost_usd) == ("Pears", None, 0.9, "because", 0.001)
        assert (a.tokens_in, a.tokens_out, a.model, a.provider, a.task) == (100, 10, "served", "us", "fruit")
        assert a.reply == replies[a.item] and a.shown_hash == hashlib.sha256(JPEG + a.item.encode()).hexdigest()
        assert 0 < a.latency_s < 5 and (a.annotator, a.prompt_hash) == ("t", PROMPT.hash)


def test_the_tally_adds_up(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        # Item 3's second pass disagrees; item 5 never gets a usable answer.
        if asked.n == 5:
            return answer(asked, label="plum")
        return answer(asked, label="apple" if asked.n == 3 and asked.question.endswith("-1") else None)

    tally = label(Server(says), 10, store, passes=2)
    assert (tally.requests, tally.answered, tally.failed) == (22, 18, 2)
    assert tally.outcomes == {"answered": 18, "unknown_label": 4}
    assert (tally.pairs, tally.agreeing) == (9, 8) and tally.cost_usd == pytest.approx(0.022)
    assert "agreement 0.889 · $0.0220 · 2 failed" in str(tally)


# Trying again


def test_transient_failures_are_tried_again_and_cost_the_store_nothing(store: Store) -> None:
    async def says(asked: Asked) -> web.StreamResponse:
        if asked.nth == 0:
            return refuse(503)
        if asked.nth == 1:
            return web.json_response({"error": {"code": "429", "message": "upstream"}})
        return answer(asked)

    server = Server(says)
    tally = label(server, 6, store, backoff_s=0.05, max_backoff_s=0.2)
    assert tally.outcomes == {"overloaded": 6, "rate_limit": 6, "answered": 6} and set(server.tries().values()) == {3}
    assert [(a.failure, a.attempt) for a in store.read()] == [(None, 0)] * 6
    by_question: dict[str, list[float]] = {}
    for asked in server.asked:
        by_question.setdefault(asked.question, []).append(asked.at)
    assert len(by_question) == 6, "one idempotency key for all tries of a question"
    for first, second, third in by_question.values():
        assert second - first >= 0.5 * 0.05 and third - second >= 0.5 * 0.1, "doubled; jitter halves at most"


def test_a_broken_connection_is_tried_again(store: Store) -> None:
    async def says(asked: Asked) -> web.StreamResponse:
        if asked.nth == 0 and asked.place > 0:
            asked.drop()
        return answer(asked)

    async def cut(asked: Asked) -> web.StreamResponse:
        if asked.nth or not asked.place:
            return answer(asked)
        # Half a reply.
        return web.Response(body=b"{}", headers={"Content-Length": "2000"})

    for says_what, name in ((says, "a"), (cut, "b")):
        other = Store(Path(store._shown).with_name(f"{name}.db"))
        tally = label(Server(says_what), 5, other, teacher={"timeout_s": 2.0})
        kept = other.read()
        assert tally.answered == 5 and len({a.item for a in kept if a.failure is None}) == 5
        # Nobody knows what the broken ones cost: once there was a bill, they are booked like the dearest so far.
        assert {a.failure for a in kept if a.failure} <= {Failure.CONNECTION, Failure.TIMEOUT}
        assert sum(a.cost_usd for a in kept) == pytest.approx(tally.cost_usd) and tally.cost_usd <= 0.009
        other.close()


@pytest.mark.parametrize("status", [429, 200])
def test_retry_after_pauses_everyone(store: Store, status: int) -> None:
    told: list[float] = []

    async def says(asked: Asked) -> web.Response:
        await asyncio.sleep(0.005)
        if asked.place == 8:
            told.append(time.monotonic())
            return refuse(status, 429, Retry_After="0.6")
        return answer(asked)

    server = Server(says)
    assert label(server, 40, store).answered == 40
    (then,) = told
    after = sorted(asked.at - then for asked in server.asked if asked.at > then)
    # Up to three others were on their way; then silence until the server's time is over.
    early = [wait for wait in after if wait < 0.6]
    assert len(early) <= 3 and max(early, default=0) < 0.2 and len(after) >= 28
    assert server.asked[8].question in {asked.question for asked in server.asked[9:]}


def test_retry_after_zero_is_no_invitation_to_hammer(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(429, Retry_After="0") if asked.nth < 2 else answer(asked)

    server = Server(says)
    label(server, 1, store, backoff_s=0.1, max_backoff_s=1.0)
    first, second, third = (asked.at for asked in server.asked)
    assert second - first >= 0.05 and third - second >= 0.1


def test_a_long_pause_does_not_hold_up_the_end(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        if asked.place == 3:
            await asyncio.sleep(0.2)
            return refuse(401)
        return refuse(429, Retry_After="60")

    started = time.monotonic()
    with pytest.raises(TeacherError, match="key was not accepted"):
        label(Server(says), 20, store)
    assert time.monotonic() - started < 5


# Answers that are of no use


def test_an_unusable_answer_is_asked_for_once_more_and_both_are_stored_with_their_cost(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        kind = asked.n
        if kind == 0 or (kind == 1 and asked.nth == 0):
            return answer(asked, content="", cost=0.25)
        return answer(asked)

    server = Server(says)
    label(server, 3, store)
    history = {n: [(a.attempt, a.failure, a.cost_usd) for a in store.read() if number(a.item) == n] for n in range(3)}
    assert history == {
        0: [(0, Failure.EMPTY, 0.25), (1, Failure.EMPTY, 0.25)],
        1: [(0, Failure.EMPTY, 0.25), (1, None, 0.001)],
        2: [(0, None, 0.001)],
    }
    assert sorted(server.tries().values()) == [1, 2, 2]


@pytest.mark.parametrize(("limit", "content"), [(1, ""), (3, "pear, I think"), (2, '{"label": "plum"}')])
def test_what_failed_for_good_is_asked_again_only_on_request(store: Store, limit: int, content: str) -> None:
    async def says(asked: Asked) -> web.Response:
        return answer(asked, content=content) if asked.n == 1 else answer(asked)

    label(Server(says), 3, store, max_content_attempts=limit)
    assert len([a for a in store.read() if number(a.item) == 1]) == limit
    again = Server(good)
    assert label(again, 3, store).requests == 0 and plan_for(make_items(3), store).given_up == 1
    assert "1 failed for good before (labeler.retry_failed=true asks them again)" in str(plan_for(make_items(3), store))
    label(again, 3, store, retry_failed=True)
    assert again.tries() == {1: 1}
    assert [a.attempt for a in store.read() if number(a.item) == 1] == list(range(limit + 1))
    assert plan_for(make_items(3), store).given_up == 0


def test_transient_and_content_failures_are_counted_apart(store: Store) -> None:
    async def says(asked: Asked) -> web.StreamResponse:
        return refuse(503) if asked.nth in (0, 2) else answer(asked, content="{")

    server = Server(says)
    tally = label(server, 1, store, max_attempts=9, max_content_attempts=2)
    assert tally.outcomes == {"overloaded": 2, "invalid_json": 2} and len(store.read()) == 2


def test_a_bad_request_is_not_repeated(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(400, message="image too large") if asked.n == 2 else answer(asked)

    server = Server(says)
    label(server, 4, store)
    assert set(server.tries().values()) == {1}
    (failed,) = [a for a in store.read() if a.failure]
    assert (failed.failure, failed.why, number(failed.item)) == (Failure.BAD_REQUEST, "image too large", 2)


def test_what_failed_for_now_is_asked_again_by_the_next_run(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(503) if asked.n == 1 else answer(asked)

    server = Server(says)
    tally = label(server, 3, store, max_attempts=3)
    assert server.tries()[1] == 3 and (tally.answered, tally.failed) == (2, 1)
    assert [(a.failure, a.attempt) for a in store.read() if number(a.item) == 1] == [(Failure.OVERLOADED, 0)]
    again = Server(good)
    label(again, 3, store)
    assert again.tries() == {1: 1}
    assert [a.failure for a in store.read() if number(a.item) == 1] == [Failure.OVERLOADED, None]


def test_a_transient_failure_that_cost_money_is_stored(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        error = {"error": {"code": 502, "message": "died"}, "choices": []}
        return answer(asked, cost=0.5, **error) if asked.nth == 0 else answer(asked)

    tally = label(Server(says), 1, store)
    assert [(a.failure, a.cost_usd) for a in store.read()] == [(Failure.OVERLOADED, 0.5), (None, 0.001)]
    assert tally.cost_usd == pytest.approx(0.501)


def test_a_second_run_and_a_later_alias_ask_nobody(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return answer(asked, label="Cox Orange" if asked.n % 3 == 0 else None)

    label(Server(says), 9, store, passes=2)
    server = Server(good)
    assert label(server, 9, store, passes=2).requests == 0
    plan = plan_for(make_items(9), store, spec=make_spec(passes=2))
    assert (len(plan), plan.answered, plan.given_up) == (0, 12, 6)
    cox = replace(TASK, aliases=TASK.aliases | {"cox_orange": "apple"})
    plan = plan_for(make_items(9), store, task=cox, spec=make_spec(passes=2, retry_failed=True))
    assert (len(plan), plan.answered, plan.given_up) == (0, 18, 0)
    assert {a.label for a in store.read() if a.failure} == {"Cox Orange"}, "as it was spelt"


# Money


def test_a_budget_counts_what_is_in_flight() -> None:
    budget = Budget(1.0)
    assert budget.reserve(0.6) and not budget.reserve(0.5) and budget.reserve(0.4)
    budget.settle(0.6, 0.1)
    assert budget.in_flight == 1 and budget.spent_usd == 0.1 and budget.reserve(0.5) and not budget.reserve(0.01)
    assert budget.reserve(0.0), "what is free passes under any cap"
    for worst in (0.4, 0.5, 0.0):
        budget.settle(worst, 0.0)
    assert budget.in_flight == 0 and budget.reserve(0.9) and not budget.reserve(1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_cap_is_a_wall_whatever_becomes_of_what_is_in_flight(store: Store, seed: int) -> None:
    """The server bills each request as it arrives: up to the worst case, whether its answer gets through or not."""
    chance = random.Random(seed)
    worst, cap = 0.01, 0.25

    async def says(asked: Asked) -> web.StreamResponse:
        cost = worst * chance.choice([0.1, 0.5, 1.0])
        server.billed.append(cost)
        assert sum(server.billed) <= cap + 1e-9
        await asyncio.sleep(0.01 * chance.random())
        fate = chance.random()
        if fate < 0.05 and len(server.billed) > 10:
            await asyncio.sleep(4)  # beyond the timeout
        if fate < 0.2:
            asked.drop()
        if fate < 0.3:
            return answer(asked, cost=None)  # billed all the same
        return answer(asked, cost=cost, content="" if fate < 0.4 else json.dumps({"label": asked.truth()}))

    server = Server(says)
    with pytest.raises(TeacherError, match=re.escape("labeler.max_cost_usd=0.25 is reached: $0.")) as caught:
        label(server, 200, store, teacher={"timeout_s": 2.0, **price(worst)}, concurrency=8, max_cost_usd=cap)
    assert sum(server.billed) <= cap
    said = float(re.search(r"\$([\d.]+) spent", str(caught.value))[1])  # type: ignore[index]
    assert sum(server.billed) - 1e-4 <= said <= cap and said > cap - worst - 1e-4, "the cap is used up to one question"
    assert "one more question can cost $0.01" in str(caught.value)
    # Beside what was paid for, only questions that the end of the run left between two tries.
    assert len(store.read()) == sum(a.cost_usd > 0 or a.failure in (None, Failure.LOST) for a in store.read()) > 20


def test_a_cap_below_what_fits_in_flight_is_used_up_all_the_same(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        await asyncio.sleep(0.01)
        return answer(asked, cost=0.001)

    server = Server(says)
    with pytest.raises(TeacherError, match=re.escape("labeler.max_cost_usd=0.0355 is reached: $0.0260 spent")):
        label(server, 100, store, teacher=price(0.01), concurrency=10, max_cost_usd=0.0355)
    # 26 answers at a tenth of the worst case; one more could cost more than what is left. At most 3 fit at once.
    assert len(store.read()) == 26 and server.peak == 3
    assert label(Server(says), 100, store, teacher=price(0.01), max_cost_usd=1.0).requests == 74


def test_the_stand_ins_ledger_stays_below_the_cap(store: Store) -> None:
    server = Rehearsal(TASK, make_errors(latency_ms_median=5, latency_sigma=0.5, broken_json=0.2), model="m")
    rates = {"price": Price(input_usd=0.3, output_usd=2.5, source="", date=""), "image_tokens": 258}
    with pytest.raises(TeacherError, match=r"labeler\.max_cost_usd=0\.003 is reached"):
        label(server, 200, store, teacher=rates, concurrency=10, max_cost_usd=0.003)
    billed = sum(record.cost_usd for record in server.ledger)
    assert 0.0025 < billed <= 0.003 and sum(a.cost_usd for a in store.read()) == pytest.approx(billed)


def test_a_price_table_that_is_too_low_is_found_out(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        server.billed.append(0.01)
        await asyncio.sleep(0.005)
        return answer(asked, cost=0.01)

    for table in (0.001, 0.0):
        server = Server(says)
        other = Store(Path(store._shown).with_name(f"{table}.db"))
        with pytest.raises(TeacherError, match=r"one more question can cost \$0\.0100"):
            label(server, 200, other, teacher=price(table), concurrency=4, max_cost_usd=0.1)
        # Beyond the cap by no more than what was in flight when the first bill came.
        assert sum(server.billed) <= 0.1 + 4 * 0.01
        other.close()


def test_a_cap_of_zero_allows_what_is_free_alone(store: Store) -> None:
    server = Server(good)
    with pytest.raises(TeacherError, match=re.escape("labeler.max_cost_usd=0 is reached: $0.0000 spent")):
        label(server, 3, store, teacher=price(0.01), max_cost_usd=0.0)
    assert server.asked == []

    async def says(asked: Asked) -> web.Response:
        return answer(asked, cost=0.0)

    assert label(Server(says), 3, store, max_cost_usd=0.0).answered == 3


def test_costs_come_from_the_price_table_where_the_provider_says_nothing(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return answer(asked, usage={"prompt_tokens": 1000, "completion_tokens": 50})

    label(Server(says), 1, store, teacher={"price": Price(input_usd=2.0, output_usd=10.0, source="", date="")})
    assert [a.cost_usd for a in store.read()] == [pytest.approx(0.0025)]


def test_the_estimate_comes_from_what_was_paid_once_there_is_something(store: Store) -> None:
    teacher = make_teacher("http://x", **price(0.01))
    plan = plan_for(make_items(10), store, teacher=teacher)
    # 40 of 100 tokens is the usual answer.
    assert plan.estimate_usd == pytest.approx(10 * 0.004) and plan.worst_usd == pytest.approx(0.01)
    assert "10 questions to ask, estimated cost $0.04 (at the most $0.10); 0 answers re-used" in str(plan)

    async def says(asked: Asked) -> web.Response:
        return answer(asked, cost=0.03 if asked.n == 0 else 0.01)

    label(Server(says), 2, store)
    plan = plan_for(make_items(10), store, teacher=teacher)
    assert plan.estimate_usd == pytest.approx(8 * 0.02) and plan.worst_usd == pytest.approx(0.03)


# Faults that stop the run


def test_a_refused_key_stops_everything_and_keeps_what_is_in_flight(store: Store) -> None:
    sent: list[str] = []
    refused = asyncio.Event()

    async def says(asked: Asked) -> web.Response:
        if asked.place == 12:
            refused.set()
            return refuse(401, message="key expired")
        if asked.place > 8:
            # In flight when the refusal arrives, and answered after it.
            await refused.wait()
            await asyncio.sleep(0.2)
        sent.append(asked.item)
        return answer(asked)

    server = Server(says)
    with pytest.raises(TeacherError, match=r"The key was not accepted \(key expired\).*teacher\.key_env"):
        label(server, 100, store)
    assert len(server.asked) == 13, "not one question after the refusal"
    assert sorted(a.item for a in store.read()) == sorted(sent) and len(sent) == 12
    # The refusal says nothing about the item: the next run asks it without being told to.
    assert label(Server(good), 100, store).requests == 88
    assert len({a.item for a in store.read() if a.failure is None}) == 100


@pytest.mark.parametrize(("status", "code", "said"), [
    (402, 402, "No credit is left"), (404, "model_not_found", "teacher.model"),
])  # fmt: skip
def test_other_fatal_faults(store: Store, status: int, code: object, said: str) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(status, code)

    server = Server(says)
    with pytest.raises(TeacherError, match=said):
        label(server, 100, store)
    assert len(server.asked) <= 4 and store.read() == []


def test_a_model_that_the_stand_in_does_not_have(store: Store) -> None:
    server = Rehearsal(TASK, make_errors(), model="other")
    with pytest.raises(TeacherError, match=r"No such model or address \(The model 'm' does not exist here\.\)"):
        label(server, 50, store)
    assert len(server.ledger) <= 4 and store.read() == []


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_address_where_nothing_listens(store: Store, concurrency: int) -> None:
    address, started = free_address(), time.monotonic()
    with pytest.raises(TeacherError, match=re.escape(f"Nothing answers at {address} (")) as caught:
        label(address, 50, store, concurrency=concurrency)
    assert "teacher.base_url" in str(caught.value) and time.monotonic() - started < 5 and store.read() == []


def test_an_address_that_never_answers(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        await asyncio.sleep(30)
        return answer(asked)

    server = Server(says)
    with pytest.raises(TeacherError, match=r"Nothing answers at http.* \(no answer within 0\.2 s\)"):
        label(server, 50, store, teacher={"timeout_s": 0.2})
    # Three tries without an answer, and what was on its way by then.
    assert len(server.asked) <= 3 + 4


def test_an_address_that_speaks_something_else(store: Store) -> None:
    class Banner(Server):
        async def __aenter__(self) -> Server:
            async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"220 mail.example ESMTP\r\n")
                await writer.drain()
                writer.close()

            self.listening = await asyncio.start_server(greet, "127.0.0.1", 0)
            self.base_url = f"http://127.0.0.1:{self.listening.sockets[0].getsockname()[1]}/v1"
            return self

        async def __aexit__(self, *_: object) -> None:
            self.listening.close()

    with pytest.raises(TeacherError, match="Nothing answers at") as caught:
        label(Banner(good), 50, store)
    assert "\n" not in str(caught.value)


def test_many_failures_in_a_row_end_the_run_and_can_be_asked_again(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(400, message="response_format is not supported")

    server = Server(says)
    end = re.escape("20 questions in a row failed, the last with bad_request: response_format is not supported. "
                    "Mend that and run again, with labeler.retry_failed=true")
    with pytest.raises(TeacherError, match=end):
        label(server, 100, store)
    # They count once they are on disk; until then the next ones are asked, four at a time.
    assert GIVE_UP_AFTER == 20 <= len(server.asked) <= 20 + 5 * 4
    assert label(Server(good), 100, store, retry_failed=True).answered == 100


def test_a_store_that_fails_stops_the_asking(tmp_path: Path) -> None:
    class Full(Store):
        def settle(self, batch: Any, **changes: Any) -> Any:
            if batch and len(self.read()) >= 10:
                raise StoreError("The disk is full")
            return super().settle(batch, **changes)

    store = Full(tmp_path / "full.db")
    server = Server(good)
    with pytest.raises(StoreError, match="The disk is full"):
        label(server, 100, store)
    assert len(server.asked) <= len(store.read()) + 2 * 4 and len(store.read()) >= 10
    store.close()


# Interruptions, from within the process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_what_is_in_flight_arrive(store: Store, number: signal.Signals) -> None:
    sent: list[str] = []

    async def says(asked: Asked) -> web.Response:
        if asked.place == 11:
            os.kill(os.getpid(), number)
        if asked.place >= 8:
            await asyncio.sleep(0.3)
        sent.append(asked.item)
        return answer(asked)

    before = signal.getsignal(number)
    server = Server(says)
    with pytest.raises(KeyboardInterrupt):
        label(server, 100, store)
    assert len(server.asked) == 12 and sorted(a.item for a in store.read()) == sorted(sent)
    assert signal.getsignal(number) == before
    assert label(Server(good), 100, store).requests == 88


def test_a_second_signal_ends_at_once_and_keeps_what_arrived(store: Store) -> None:
    sent: list[str] = []

    async def says(asked: Asked) -> web.Response:
        if asked.place >= 8:
            if asked.place == 11:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.sleep(0.1)
            await asyncio.sleep(20)
        sent.append(asked.item)
        return answer(asked)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        label(Server(says), 100, store)
    assert time.monotonic() - started < 5
    kept = store.read()
    assert sorted(a.item for a in kept if a.failure is None) == sorted(sent) and len(sent) == 8
    # What was cut off may be on the bill; the four are booked as dearly as any question so far, and asked again.
    lost = [(a.failure, a.cost_usd) for a in kept if a.failure]
    assert lost == [(Failure.LOST, 0.001)] * 4
    assert label(Server(good), 100, store).requests == 92


def test_answers_that_wait_for_the_disk_survive_a_second_signal(tmp_path: Path) -> None:
    class Slow(Store):
        def settle(self, batch: Any, **changes: Any) -> Any:
            if batch:
                batches.append(len(batch))
                time.sleep(0.5)
            return super().settle(batch, **changes)

    batches: list[int] = []
    sent: list[str] = []

    async def says(asked: Asked) -> web.Response:
        if asked.place in (1, 2):
            await asyncio.sleep(0.1)
        if asked.place == 3:
            # Answers are back: one is being written, the others wait for their turn.
            await asyncio.sleep(0.25)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.05)
            await asyncio.sleep(20)
        sent.append(asked.item)
        return answer(asked)

    store = Slow(tmp_path / "slow.db")
    with pytest.raises(KeyboardInterrupt):
        label(Server(says), 100, store)
    kept = store.read()
    assert sorted(a.item for a in kept if a.failure is None) == sorted(sent) and len(sent) >= 3
    assert [a.failure for a in kept if a.failure] == [Failure.LOST]
    assert batches == [1, len(sent)], "one is being written; those that wait, and the one cut off, share the next"
    store.close()


def test_an_interrupt_does_not_wait_for_a_pause(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        if asked.place == 4:
            asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
            return refuse(429, Retry_After="60")
        return answer(asked)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        label(Server(says), 100, store)
    assert time.monotonic() - started < 5
