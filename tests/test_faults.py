"""Everything that can go wrong at once, by a seeded schedule: nothing is lost, asked twice or paid for unseen.

The server keeps its own books, and what the store says is held against these.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from books import TEACHER, Entry, at_an_end, check_books, claims, cost, last_words, most_usd, usable, usage
from scripted_server import (
    TASK,
    Asked,
    Says,
    Server,
    answer,
    key,
    make_survey,
    make_teacher,
    make_texts,
    price,
    refuse,
    serving,
)
from survey_process import texts_job

from src.errors import StoreError, TeacherError
from src.labeling.labeler import Tally
from src.labeling.plan import Costs, again_usd, make_plan
from src.labeling.prompt import render
from src.labeling.stop import Stop
from src.store import Answered, Claim, Key, Store
from src.task import Annotation, Failure

TIMEOUT_S = 1.0  # also good answers may take longer on a busy machine; nothing below rests on that they do not
CONCURRENCY = 8
ITEMS = 120

GOOD = ("good", "spelt_otherwise", "fenced", "in_prose", "in_parts", "beyond_confidence", "tokens_alone")
UNBILLED = ("429", "429_retry_after", "429_in_200", "429_as_text_in_200", "500", "502_page", "503", "529_in_200", "400")
BILL_UNSEEN = ("no_usage", "408", "hang", "cut_before", "cut_within", "garbage", "garbage_body", "garbage_gzip", "page")
USELESS = ("refusal", "refusal_in_prose", "content_filter", "truncated", "empty", "no_content", "invalid_json",
           "unknown_label", "no_label")
FATES = (*GOOD, *UNBILLED, *BILL_UNSEEN, *USELESS)


class Disk(Store):
    """A store that fails as often as it is told to, as a full disk does: nothing of the batch is written."""

    failures = 0

    def _strike(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("The annotation store could not be written: database or disk is full.")

    def settle(self, *args: Any, **changes: Any) -> Any:
        self._strike()
        return super().settle(*args, **changes)

    def beat(self, owner: str) -> None:
        self._strike()
        super().beat(owner)

    def bury(self, is_dead: Any) -> list[Annotation]:
        self._strike()
        return super().bury(is_dead)


@dataclass
class Schedule:
    """What happens to which request. `at` holds what befalls the labeler itself, by the request's number."""

    seed: int
    disk: Disk
    at: dict[int, str]
    storm: range
    stall: range
    cap: float
    ledger: list[Entry] = field(default_factory=list)
    beyond_cap: list[int] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)
    bill: float = 0.0
    lock: sqlite3.Connection | None = None

    def fate(self, asked: Asked) -> str:
        if asked.place in self.storm:
            return ("429", "429_retry_after")[asked.place % 8 == 0]
        if asked.place in self.stall:
            return "hang"
        if asked.nth == 0 and asked.n < 3 * len(FATES):
            return FATES[asked.n % len(FATES)]
        chance = self._chance("fate", asked)
        return "good" if chance.random() < 0.6 else chance.choice(FATES)

    async def says(self, asked: Asked) -> web.StreamResponse:
        chance = self._chance("reply", asked)
        fate = self.fate(asked)
        used = usage(asked, chance)
        usd = 0.0 if fate in UNBILLED else cost(used)
        self.ledger.append(Entry(asked, fate, usd, fate not in BILL_UNSEEN))
        self.bill += usd
        if self.bill > self.cap + 1e-9:
            self.beyond_cap.append(asked.place)
        await asyncio.sleep(chance.uniform(0.0, 0.01))
        if asked.place in self.at:
            await self._befall(self.at.pop(asked.place), asked)
        return await send(asked, fate, used, usd, chance)

    async def _befall(self, what: str, asked: Asked) -> None:
        self.happened[what] += 1
        if what.startswith("full"):
            self.disk.failures = int(what.split()[1])
        elif what == "locked" and not self.lock:
            self.lock = sqlite3.connect(self.disk._shown, isolation_level=None, check_same_thread=False, timeout=10)
            self.lock.execute("BEGIN IMMEDIATE")
        elif what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif what == "interrupt twice":
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)  # cut off long before

    def mend(self) -> None:
        self.disk.failures = 0
        if self.lock:
            self.lock.close()
            self.lock = None

    def _chance(self, what: str, asked: Asked) -> random.Random:
        return random.Random(f"{self.seed} {what} {asked.question} {asked.nth}")


async def send(asked: Asked, fate: str, used: dict[str, int], usd: float, chance: random.Random) -> web.StreamResponse:
    """The reply as its fate wants it; `id` is the request's number, by which a stored reply can be told."""
    said: dict[str, Any] = {"label": asked.truth(), "confidence": 0.9, "why": "because"}
    message: dict[str, Any] = {"role": "assistant", "content": json.dumps(said)}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": message}
    body: dict[str, Any] = {"id": asked.place, "model": "m", "choices": [choice], "usage": {**used, "cost": usd}}
    match fate:
        case "spelt_otherwise":
            message["content"] = json.dumps(said | {"label": f" {asked.truth().upper()}. "})
        case "fenced":
            message["content"] = f"```json\n{message['content']}\n```"
        case "in_prose":
            message["content"] = f"Well: {message['content']} I think."
        case "in_parts":
            message["content"] = [{"type": "text", "text": message["content"]}]
        case "beyond_confidence":
            message["content"] = json.dumps(said | {"confidence": chance.choice([1.7, -1, "high", 90])})
        case "tokens_alone":
            body["usage"] = used
        case "no_usage":
            del body["usage"]
        case "429":
            return refuse(429, message="slower")
        case "429_retry_after":
            return refuse(429, Retry_After="0.1")
        case "429_in_200":
            return web.json_response({"error": {"code": 429, "message": "slower"}})
        case "429_as_text_in_200":
            return web.json_response({"error": {"code": "429", "message": "slower"}})
        case "500" | "503":
            return refuse(int(fate), int(fate))
        case "529_in_200":
            return web.json_response({"error": {"code": "529", "message": "overloaded"}})
        case "502_page":
            return web.Response(status=502, text="<html>Bad gateway</html>", content_type="text/html")
        case "400":
            return refuse(400, message="this item is too strange")
        case "408":
            return refuse(408)
        case "hang":
            await asyncio.sleep(30)
        case "cut_before":
            asked.drop()
        case "cut_within":
            return web.Response(body=json.dumps(body).encode()[:40], headers={"Content-Length": "2000"})
        case "garbage":
            asked.write(chance.randbytes(300))
            asked.drop()
        case "garbage_body":
            return web.Response(body=chance.randbytes(300), content_type="application/json")
        case "garbage_gzip":
            return web.Response(body=chance.randbytes(300), headers={"Content-Encoding": "gzip"})
        case "page":
            return web.Response(text="<html>Log in to the wifi</html>", content_type="text/html")
        case "refusal":
            message |= {"content": None, "refusal": "I cannot help with that."}
        case "refusal_in_prose":
            message["content"] = "I'm sorry, but I can't look at this."
        case "content_filter":
            choice["finish_reason"] = "content_filter"
        case "truncated":
            choice["finish_reason"], message["content"] = "length", message["content"][:20]
        case "empty":
            message["content"] = ""
        case "no_content":
            del choice["message"]
        case "invalid_json":
            message["content"] = '{"label": apple'
        case "unknown_label":
            message["content"] = json.dumps({"label": "plum, or perhaps a very large grape; hard to say, from here"})
        case "no_label":
            message["content"] = "{}"
        case _:
            assert fate == "good"
    return web.json_response(body)


@contextlib.contextmanager
def late_signals_noted() -> Iterator[list[int]]:
    """A Ctrl-C that comes when no labeler runs any more is none of these tests'."""
    late: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: late.append(number))
    try:
        yield late
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_whatever_happens_every_item_ends_well_or_named_and_the_books_are_right(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    items = make_texts(ITEMS)
    store = Disk(tmp_path / "a.db", lock_wait_s=0.5)
    befalls = ["interrupt", "interrupt twice", "interrupt twice", "full 1", "full 3", f"full {10**6}", "locked"]
    places = chance.sample(range(20, ITEMS), len(befalls))
    storm, stall = chance.randrange(40, ITEMS), chance.randrange(40, ITEMS)
    schedule = Schedule(seed, store, dict(zip(places, befalls, strict=True)), range(storm, storm + 40),
                        range(stall, stall + CONCURRENCY), cap=ITEMS * 0.008)
    ends: Counter[str] = Counter()
    paid = 0.0
    with late_signals_noted(), serving(Server(schedule.says)) as server:
        for run in range(60):
            # Each run begins as the command does: with nothing but what is on the disk.
            survey = make_survey(server.base_url, store, job="j", seed=run, concurrency=CONCURRENCY, max_attempts=6,
                                 teacher=TEACHER | {"timeout_s": TIMEOUT_S}, max_cost_usd=schedule.cap)
            try:
                survey.run([], items, lambda _: None)
                ends["finished"] += 1
            except KeyboardInterrupt:
                ends["interrupted"] += 1
            except StoreError:
                schedule.mend()
                ends["store"] += 1
            except TeacherError as error:
                capped = "labeler.max_cost_usd=" in str(error)
                assert capped or "in a row failed" in str(error) or "Nothing answers" in str(error), error
                schedule.cap *= 1.5 if capped else 1.0
                ends["cap" if capped else "teacher"] += 1
            paid += survey.figures()["label/cost_usd_this_run"]
            rows = check_books(schedule.ledger, store)
            if at_an_end(rows, ITEMS):
                break
    assert at_an_end(rows, ITEMS) and claims(store) == [] and schedule.beyond_cap == []
    buried = sum(a.cost_usd for a in rows if a.failure == Failure.LOST and a.why.startswith("in flight when"))
    assert paid + buried == pytest.approx(sum(a.cost_usd for a in rows), abs=1e-9)
    violent = ends["store"] + schedule.happened["interrupt twice"]
    assert sum(a.failure == Failure.LOST and a.cost_usd > 0 for a in rows) <= CONCURRENCY * violent
    # The test has met what it is about.
    assert {entry.fate for entry in schedule.ledger} == set(FATES)
    assert schedule.at == {} and ends["interrupted"] >= 1 and ends["store"] >= 1 and ends["cap"] >= 1, ends


# One at a time


def test_answers_that_the_disk_refused_are_kept_once_it_takes_them(tmp_path: Path) -> None:
    """Whoever frees some space while the last answers arrive loses none of them."""
    store = Disk(tmp_path / "a.db")
    paid: dict[int, float] = {}

    async def says(asked: Asked) -> web.StreamResponse:
        if asked.place == 10:
            store.failures = 1
        used = usage(asked, random.Random(asked.n))
        paid[asked.place] = cost(used)
        return await send(asked, "good", used, paid[asked.place], random.Random(0))

    with serving(Server(says)) as server:
        survey = make_survey(server.base_url, store, teacher=TEACHER, concurrency=CONCURRENCY)
        with pytest.raises(StoreError, match="disk is full"):
            survey.run([], make_texts(100), lambda _: None)
    rows = store.read()
    assert 10 < len(rows) == len(paid) < 40 and all(a.failure is None for a in rows) and claims(store) == []
    assert sum(a.cost_usd for a in rows) == pytest.approx(sum(paid.values()), abs=1e-12)
    assert survey.figures()["label/cost_usd_this_run"] == pytest.approx(sum(paid.values()), abs=1e-12)


@pytest.mark.parametrize("fate", ["invalid_json", "unknown_label"])
def test_a_claim_covers_an_unusable_answer_that_is_shown_again(tmp_path: Path, fate: str) -> None:
    """Killed in its second try, a question is booked at what that one can cost."""
    store = Store(tmp_path / "a.db")
    held: list[tuple[float, float]] = []

    async def says(asked: Asked) -> web.StreamResponse:
        if asked.nth == 0:
            long = "{" + "x" * 99 if fate == "invalid_json" else json.dumps({"label": "x" * 88})
            return answer(asked, content=long, cost=0.0)
        class Most(random.Random):
            def choice(self, options: Any) -> Any:
                return max(options)

        (claim,) = claims(store)
        held.append((claim.worst_usd, cost(usage(asked, Most()))))
        return answer(asked)

    with serving(Server(says)) as server:
        make_survey(server.base_url, store, teacher=TEACHER).run([], make_texts(1), lambda _: None)
    ((worst, bill),) = held
    assert bill <= worst <= most_usd()


def test_who_was_interrupted_before_its_second_try_gets_it_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")

    async def says(asked: Asked) -> web.StreamResponse:
        if asked.place == 5:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.5)
            return answer(asked, content="")
        return answer(asked)

    with late_signals_noted(), serving(Server(says)) as server:
        with pytest.raises(KeyboardInterrupt):
            make_survey(server.base_url, store).run([], make_texts(30), lambda _: None)
        assert Counter(a.failure for a in store.read())[Failure.EMPTY] == 1
        make_survey(server.base_url, store).run([], make_texts(30), lambda _: None)
    rows = store.read()
    assert at_an_end(rows, 30) and all(usable(a) for a in last_words(rows).values())
    assert [(a.failure, a.cost_usd) for a in rows if not usable(a)] == [(Failure.EMPTY, 0.001), (Failure.LOST, 0.0)]


def test_what_a_dead_process_may_have_spent_counts_for_the_cap_of_its_job(tmp_path: Path) -> None:
    store = Disk(tmp_path / "a.db")
    billed: list[float] = []

    async def says(asked: Asked) -> web.StreamResponse:
        billed.append(1.0)
        if len(billed) == 6:
            store.failures = 10**6
        while len(billed) < 6:
            await asyncio.sleep(0.01)
        return answer(asked, cost=1.0)

    with serving(Server(says)) as server:
        for end in (StoreError, TeacherError):
            survey = make_survey(server.base_url, store, job="j", teacher=price(1.0), concurrency=6, max_cost_usd=10.0)
            with pytest.raises(end):
                survey.run([], make_texts(50), lambda _: None)
            store.failures = 0
    # Six were in flight, and one more was claimed: nobody can know whether it was sent.
    assert 9 <= sum(billed) <= 10 and sum(a.cost_usd for a in store.read()) == 10


def test_what_was_booked_at_its_worst_makes_the_next_worst_no_worse(tmp_path: Path) -> None:
    """Or each start after a crash would reckon with a dearer question than the one before."""
    teacher = make_teacher("http://x", **TEACHER)
    rows = [Answered(key(0), 0, 0, None, "lost", 5.0), Answered(key(1), 0, 0, None, "timeout", 5.0),
            Answered(key(2), 0, 0, None, "connection", 5.0), Answered(key(3), 0, 0, None, "empty", 0.02),
            Answered(key(3), 0, 1, "pear", None, 0.02 + again_usd(teacher, TASK))]
    plan = make_plan(make_texts(9), rows, task=TASK, teacher=teacher, prompt=render(TASK, None), passes=[0],
                     retry_failed=False)
    assert plan.costs.dearest == pytest.approx(0.02) and plan.worst_usd < most_usd()
    # Nor do questions cost more because a process died; timeouts may well come again.
    assert plan.costs.total == pytest.approx(5.0 + 5.0 + 0.04 + again_usd(teacher, TASK))


def test_the_estimates_interval_holds_where_some_tries_fail() -> None:
    """A tenth of the tries bring nothing and cost as much as the others."""
    chance = random.Random(0)

    def tries(answers: int) -> list[tuple[float, bool]]:
        made: list[tuple[float, bool]] = []
        while sum(good for _, good in made) < answers:
            made.append((chance.gauss(1.0, 0.05), chance.random() < 0.9))
        return made

    covered = 0
    for _ in range(300):
        seen = tries(100)
        costs = Costs(100, sum(usd for usd, _ in seen), sum(usd**2 for usd, _ in seen), 0.0,
                      sum(usd for usd, good in seen if good))
        interval = costs.mean(200)
        covered += interval.low <= sum(usd for usd, _ in tries(200)) <= interval.high
    assert 0.88 <= covered / 300 <= 0.99


@pytest.mark.parametrize("reason", [TeacherError("no credit"), KeyboardInterrupt()])
def test_a_ctrl_c_while_a_run_ends_tells_why_it_ended(reason: TeacherError | KeyboardInterrupt) -> None:
    async def run() -> None:
        stop = Stop()
        with stop.signals():
            stop.end(reason)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)

    with pytest.raises(type(reason)) as caught:
        asyncio.run(run())
    assert caught.value is reason


def test_looking_for_the_dead_holds_up_nobody(tmp_path: Path) -> None:
    """The store is slow to tell who died; the other teacher's questions go on meanwhile."""
    during: list[int] = []

    class Slow(Store):
        def bury(self, is_dead: Any) -> list[Annotation]:
            if server.asked:
                before = len(server.asked)
                time.sleep(1.0)
                during.append(len(server.asked) - before)
                self.settle([], release=[claim.key])
            return super().bury(is_dead)

    async def says(asked: Asked) -> web.StreamResponse:
        await asyncio.sleep(0.2 if asked.model == "b" else 0.0)
        return answer(asked)

    store = Slow(tmp_path / "a.db")
    elsewhere = f"another host|1|1.00|{0:012d}"
    store.beat(elsewhere)
    with serving(Server(says)) as server:
        survey = make_survey(server.base_url, store, models=("a", "b"), concurrency=2)
        claim = Claim(Key(survey.panel.members[0], survey.prompt.hash, key(0), 0), elsewhere, 0.0, "fruit", 1, "")
        store.settle([], wanted=[claim])
        answers = survey.run([], make_texts(24), lambda _: None)
    assert answers.asked.answered == 48 and max(during) >= 2


def test_a_second_try_goes_out_when_the_first_is_in_the_books(tmp_path: Path) -> None:
    """A claim covers one request: two of them that were not booked could have cost more than it holds."""
    class Slow(Store):
        def settle(self, batch: Any, **changes: Any) -> Any:
            if batch:
                time.sleep(0.3)
            return super().settle(batch, **changes)

    store = Slow(tmp_path / "a.db")
    booked: list[int] = []

    async def says(asked: Asked) -> web.StreamResponse:
        if asked.nth:
            booked.append(len(store.read()))
        return refuse(408) if asked.nth == 0 else answer(asked, content="")

    with serving(Server(says)) as server:
        make_survey(server.base_url, store, teacher=TEACHER).run([], make_texts(1), lambda _: None)
    assert booked == [1, 2]
    assert [a.failure for a in store.read()] == [Failure.TIMEOUT, Failure.EMPTY, Failure.EMPTY]


def test_a_third_ctrl_c_counts_what_is_being_written(tmp_path: Path) -> None:
    class Slow(Store):
        def settle(self, batch: Any, **changes: Any) -> Any:
            if batch:
                time.sleep(1.0)
            return super().settle(batch, **changes)

    store = Slow(tmp_path / "a.db")
    ledger: list[Entry] = []

    async def says(asked: Asked) -> web.StreamResponse:
        used = usage(asked, random.Random(asked.n))
        ledger.append(Entry(asked, "good", cost(used), True))
        if asked.place == 3:
            await asyncio.sleep(0.2)
            for _ in range(4):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.1)
            await asyncio.sleep(20)
        return await send(asked, "good", used, cost(used), random.Random(0))

    with late_signals_noted(), serving(Server(says)) as server:
        survey = make_survey(server.base_url, store, teacher=TEACHER)
        with pytest.raises(KeyboardInterrupt):
            survey.run([], make_texts(30), lambda _: None)
        rows = check_books(ledger, store)
        assert survey.figures()["label/cost_usd_this_run"] == pytest.approx(sum(a.cost_usd for a in rows), abs=1e-12)
        assert make_survey(server.base_url, Store(tmp_path / "a.db"), teacher=TEACHER).run(
            [], make_texts(30), lambda _: None).asked.answered == 30 - sum(map(usable, rows))
        assert at_an_end(check_books(ledger, store), 30)


# A disk that fills


def padded(ledger: list[Entry]) -> Says:
    async def says(asked: Asked) -> web.StreamResponse:
        used = usage(asked, random.Random(asked.place))
        ledger.append(Entry(asked, "good", cost(used), True))
        return answer(asked, id=asked.place, usage={**used, "cost": cost(used)}, padding="x" * 20_000)

    return says


def test_a_store_that_may_grow_no_more_keeps_what_it_has_and_goes_on_with_more_room(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    ledger: list[Entry] = []
    with serving(Server(padded(ledger))) as server:
        with texts_job(server.base_url, path, 100, largest_file=500_000, teacher=TEACHER) as job:
            said = job.end()
        assert isinstance(said, str) and str(path) in said and "what was stored is safe" in said
        stored = check_books(ledger, Store(path))
        assert 5 < sum(map(usable, stored)) < 50
        with texts_job(server.base_url, path, 100, teacher=TEACHER) as job:
            tally = job.end()
        assert isinstance(tally, Tally) and tally.answered == 100 - sum(map(usable, stored))
        rows = check_books(ledger, Store(path))
    assert at_an_end(rows, 100) and {a.item for a in stored} <= {a.item for a in rows}


def test_a_full_disk_is_refused_with_the_way_out_and_goes_on_with_more_room(tmp_path: Path) -> None:
    ledger: list[Entry] = []
    with serving(Server(padded(ledger))) as server, texts_job(
            server.base_url, tmp_path / "a.db", 100, disk=(500_000, 20_000_000), teacher=TEACHER) as job:
        said = job.tell()
        if isinstance(said, str) and said.startswith("no disk"):
            pytest.skip(f"this machine lets nobody mount a disk of their own ({said})")
        assert "disk is full: free some space and run the same command again; what was stored is safe" in said
        first = len(ledger)
        tally = job.tell()
        assert isinstance(tally, Tally), tally
        rows = job.tell()
    answered = [a for a in rows if usable(a)]
    assert len({a.item for a in answered}) == len(answered) == 100
    stored = 100 - tally.answered
    assert 5 < stored < 50 and first - stored <= 4 + sum(a.failure == Failure.LOST for a in rows)
    assert sum(a.cost_usd for a in rows) >= sum(entry.usd for entry in ledger) - 1e-9
