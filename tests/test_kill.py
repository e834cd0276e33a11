"""`kill -9` of a labelling process at any moment: what reached the disk is not asked again, what was in flight is
booked at its worst case, and all is answered in the end."""

import asyncio
import random
import sqlite3
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from books import TEACHER, Entry, Held, check_books, claims, cost, most_usd, usable, usage
from labelling_process import Labelling, labelling, question
from scripted_server import Asked, Server, answer, refuse, serving
from survey_process import PATIENCE_S, texts_job

from src.labeling.labeler import Tally
from src.store import Store
from src.task import Annotation, Failure

pytestmark = pytest.mark.slow

KILLS = 100
ITEMS = 1200
CONCURRENCY = 10
AT_MOST_CLAIMED = 3 * CONCURRENCY + 1  # under way, on their way to the disk, and for the slots that come free next


class Books(Server):
    """Mostly answers well, keeps books, and is slow enough to be killed in between."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.ledger: list[Entry] = []
        self.sent = 0

    async def _answer(self, asked: Asked) -> web.StreamResponse:
        chance = random.Random(asked.place)
        used = usage(asked, chance)
        fate = chance.choices(["good", "invalid_json", "503"], [94, 4, 2])[0]
        usd = 0.0 if fate == "503" else cost(used)
        self.ledger.append(Entry(asked, fate, usd, True))
        await asyncio.sleep(chance.uniform(0.02, 0.1))
        self.sent += 1
        if fate == "503":
            return refuse(503)
        said: dict[str, Any] = {"content": '{"label": apple' + "." * 80} if fate == "invalid_json" else {}
        return answer(asked, id=asked.place, usage={**used, "cost": usd}, **said)

    def wait_for(self, count: int) -> None:
        """Return when that many requests have come."""
        give_up = time.monotonic() + PATIENCE_S
        while len(self.ledger) < count:
            assert time.monotonic() < give_up
            time.sleep(0.002)

    def drain(self) -> None:
        """Return when nobody is served any more: whoever asked is dead, or holds back."""
        give_up, quiet = time.monotonic() + PATIENCE_S, 0
        while quiet < 3:
            quiet = quiet + 1 if self.here == 0 else 0
            assert time.monotonic() < give_up
            time.sleep(0.01)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Somebody else writes to the database: answers arrive, and none gets to the disk."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def lost_rows(rows: Sequence[Annotation]) -> Counter[tuple[str, int, float]]:
    return Counter((a.item, a.pass_index, a.cost_usd) for a in rows if a.failure == Failure.LOST)


@pytest.mark.timeout(900)
def test_killed_at_a_hundred_moments_the_books_are_right_and_nothing_stored_is_asked_again(tmp_path: Path) -> None:
    chance = random.Random(0)
    path = tmp_path / "a.db"
    store = Store(path)
    moments = ["in flight"] * 60 + ["any"] * 25 + ["between reply and commit"] * 15
    chance.shuffle(moments)
    options = {"teacher": TEACHER, "concurrency": CONCURRENCY, "passes": 2}
    before: list[Held] = []
    to_be_booked: Counter[tuple[str, int, float]] = Counter()
    in_flight: dict[str, list[int]] = defaultdict(list)
    with serving(Books()) as server:
        for moment in moments:
            with texts_job(server.base_url, path, ITEMS, **options) as job:
                if moment == "any":
                    time.sleep(chance.uniform(0.0, 0.6))
                else:
                    server.wait_for(len(server.ledger) + chance.randint(1, 30))
                if moment == "between reply and commit":
                    with held(path):
                        server.drain()
                        job.kill()
                job.kill()
            assert job.process.exitcode == -9, "it ended before it was killed"
            server.drain()

            rows = check_books(server.ledger, store)
            now = claims(store)
            in_flight[moment].append(len(now))
            # Whoever started this time booked what the last one had left, all of it or, killed too early, nothing.
            if not {held.owner for held in before} & {held.owner for held in now}:
                to_be_booked.update((held.item, held.pass_index, held.worst_usd) for held in before)
                before = now
            else:
                assert set(before) == set(now)
            assert lost_rows(rows) == to_be_booked
            assert len(now) <= AT_MOST_CLAIMED and len({held.owner for held in now}) <= 1

        answered: set[tuple[str, int]] = set()
        for _ in range(5):
            if len(answered) < 2 * ITEMS:
                with texts_job(server.base_url, path, ITEMS, retry_failed=True, **options) as job:
                    end = job.end()
                assert isinstance(end, Tally), end
                rows = check_books(server.ledger, store)
                answered = {(a.item, a.pass_index) for a in rows if usable(a)}
    assert len(answered) == 2 * ITEMS and claims(store) == []
    to_be_booked.update((held.item, held.pass_index, held.worst_usd) for held in before)
    assert lost_rows(rows) == to_be_booked
    lost = sum(a.failure == Failure.LOST for a in rows)
    bill, books = sum(entry.usd for entry in server.ledger), sum(a.cost_usd for a in rows)
    assert bill <= books + 1e-9 and books <= bill + lost * most_usd() <= bill + KILLS * AT_MOST_CLAIMED * most_usd()
    # The test has met what it is about.
    assert len(moments) == KILLS and min(in_flight["between reply and commit"]) >= 1, in_flight
    assert sum(map(bool, in_flight["in flight"])) >= 40 and sum(map(bool, in_flight["any"])) >= 1, in_flight
    assert {entry.fate for entry in server.ledger} == {"good", "invalid_json", "503"}


# The whole command, with all that it does before and after


COMMAND_ITEMS = 150
DRAINED_S = 1.0  # more than any answer of the stand-in takes: after that its ledger stands still
# The stand-in's own prices; its ledger says what it charged.
PRICES = ["teacher.price.input_usd=0.3", "teacher.price.output_usd=2.5", "teacher.image_tokens=258"]


def kill_while_starting(label: Labelling, process: "subprocess.Popen[str]", chance: random.Random) -> None:
    time.sleep(chance.uniform(0.0, 5.0))


def kill_in_flight(label: Labelling, process: "subprocess.Popen[str]", chance: random.Random) -> None:
    label.wait_for_answers(process, len(label.ledger()))
    time.sleep(chance.uniform(0.0, 0.4))


def kill_between_reply_and_commit(label: Labelling, process: "subprocess.Popen[str]", chance: random.Random) -> None:
    label.wait_for_answers(process, len(label.ledger()))
    with held(label.store_file):
        time.sleep(DRAINED_S)
        process.kill()
        process.wait()


@pytest.mark.timeout(900)
def test_the_command_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    chance = random.Random(0)
    moments = [kill_in_flight, kill_between_reply_and_commit, kill_while_starting, kill_in_flight]
    teacher = {"latency_ms_median": 60.0, "latency_sigma": 0.4, "overloaded": 0.02}
    lost_at: Counter[str] = Counter()
    with labelling(tmp_path, f"labeler.max_items={COMMAND_ITEMS}", "labeler.concurrency=10", *PRICES,
                   **teacher) as label:
        # The question that every start must answer for: what may be asked, since no answer to it is on disk?
        on_disk: set[str] = set()
        seen = 0
        for moment in moments:
            process = label.start()
            moment(label, process, chance)
            assert process.poll() in (None, -9), f"it ended before it was killed: {process.communicate()[0]}"
            process.kill()
            process.communicate()
            time.sleep(DRAINED_S)

            ledger = label.ledger()
            answered = Counter(record["question"] for record in ledger[seen:] if record["cost_usd"])
            seen = len(ledger)
            assert set(answered.values()) <= {1}, "no start asks anything twice"
            assert not on_disk & answered.keys(), "what is on disk is not asked again"
            stored = [question(a) for a in label.stored() if a.failure is None]
            assert len(stored) == len(set(stored)) and on_disk <= set(stored), "nothing on disk is lost"
            assert set(stored) - on_disk <= answered.keys(), "nothing is on disk that was not answered"
            on_disk = set(stored)
            lost = answered.keys() - on_disk
            assert len(lost) <= AT_MOST_CLAIMED, f"{moment.__name__}: more was lost than can be in flight"
            lost_at[moment.__name__] += len(lost)
            booked = sum(a.cost_usd for a in label.stored()) + label.held_usd()
            assert booked >= sum(record["cost_usd"] for record in ledger) - 1e-9

        process = label.start()
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        ledger, final = label.ledger(), label.stored()

    # 20 of gold and the pool, two passes each, and a blank one; the stand-in is never wrong.
    answers = [a for a in final if a.failure is None]
    assert sorted(question(a) for a in answers) == sorted({r["question"] for r in ledger if r["cost_usd"]})
    assert len(answers) == 2 * (20 + COMMAND_ITEMS) + 1 and label.held_usd() == 0
    assert {a.failure for a in final} == {None, Failure.LOST}
    bill, books = sum(record["cost_usd"] for record in ledger), sum(a.cost_usd for a in final)
    worst = max(a.cost_usd for a in final if a.failure == Failure.LOST)
    assert bill <= books + 1e-9 and books <= bill + len(moments) * AT_MOST_CLAIMED * worst
    # The blank one is nobody's label, and costs a fraction of a cent.
    spent = float(said.split("cost of these labels, all runs")[1].split("$")[1].split()[0])
    assert spent == pytest.approx(books, abs=0.005)
    assert lost_at["kill_between_reply_and_commit"] >= 1 and lost_at["kill_in_flight"] >= 1, lost_at
