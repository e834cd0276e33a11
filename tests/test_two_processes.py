"""Several processes label the same task on one store at the same time, and ask each question once."""

import asyncio
import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiohttp import web
from books import TEACHER, Entry, check_books, claims, cost, last_words, usable, usage
from scripted_server import Asked, Server, answer, serving
from survey_process import PATIENCE_S, texts_job

from src.labeling.labeler import Tally
from src.store import Store
from src.task import Failure

ITEMS = 120
CONCURRENCY = 5
AT_MOST_CLAIMED = 3 * CONCURRENCY + 1  # under way, on their way to the disk, and for the slots that come free next


class Books(Server):
    """Answers well, in about `latency_s`, and keeps books."""

    def __init__(self, latency_s: float = 0.05) -> None:
        super().__init__(self._answer)
        self.ledger: list[Entry] = []
        self.latency_s = latency_s

    async def _answer(self, asked: Asked) -> web.StreamResponse:
        used = usage(asked, random.Random(asked.place))
        usd = cost(used)
        self.ledger.append(Entry(asked, "good", usd, True))
        await asyncio.sleep(self.latency_s * random.uniform(0.5, 1.5))
        return answer(asked, id=asked.place, model=asked.model, usage={**used, "cost": usd})

    def questions(self) -> Counter[tuple[str, str]]:
        """How often each model was asked each question."""
        return Counter((entry.asked.model, entry.asked.question) for entry in self.ledger)

    def wait_for(self, requests: int) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while len(self.ledger) < requests:
            assert time.monotonic() < give_up
            time.sleep(0.005)


def test_two_processes_share_the_questions_and_a_third_that_comes_late_asks_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    options = {"teacher": TEACHER, "concurrency": CONCURRENCY, "passes": 2}
    with serving(Books()) as server, ExitStack() as stack:
        # The file is not there yet: they make it at the same time, too.
        jobs = [stack.enter_context(texts_job(server.base_url, path, ITEMS, **options)) for _ in range(2)]
        server.wait_for(ITEMS)
        jobs.append(stack.enter_context(texts_job(server.base_url, path, ITEMS, **options)))
        ends = [job.end() for job in jobs]
    store = Store(path)
    rows = check_books(server.ledger, store)
    assert len(server.ledger) == 2 * ITEMS and set(server.questions().values()) == {1}
    assert len(last_words(rows)) == len(rows) == 2 * ITEMS and all(usable(a) for a in rows) and claims(store) == []
    tallies = [end for end in ends if isinstance(end, Tally)]
    assert len(tallies) == 3 and sum(tally.requests for tally in tallies) == 2 * ITEMS
    assert all(tally.answered == tally.requests > 0 for tally in tallies[:2]), "both had a share"
    assert sum(tally.cost_usd for tally in tallies) == pytest.approx(sum(a.cost_usd for a in rows), abs=1e-9)
    # Whoever planned a question and did not ask it, heard of its answer.
    assert all(tally.answered + tally.elsewhere == 2 * ITEMS for tally in tallies[:2])


def test_what_a_killed_process_had_in_flight_is_asked_by_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    options = {"teacher": TEACHER, "concurrency": CONCURRENCY}
    with serving(Books()) as server, ExitStack() as stack:
        doomed = stack.enter_context(texts_job(server.base_url, path, ITEMS, **options))
        server.wait_for(10)
        other = stack.enter_context(texts_job(server.base_url, path, ITEMS, **options))
        server.wait_for(ITEMS // 2)
        doomed.kill()
        end = other.end()
        assert isinstance(end, Tally), end
    store = Store(path)
    rows = check_books(server.ledger, store)
    assert all(usable(a) for a in last_words(rows).values()) and len(last_words(rows)) == ITEMS and claims(store) == []
    lost = {a.item: a for a in rows if a.failure == Failure.LOST}
    assert 1 <= len(lost) <= AT_MOST_CLAIMED and len(rows) == ITEMS + len(lost)
    asked = server.questions()
    again = {question for (_, question), times in asked.items() if times > 1}
    # Only what had been in flight was asked again, and that once.
    assert max(asked.values()) <= 2 and again <= {f"{item[:32]}-0" for item in lost}
    assert len(asked) == ITEMS


def test_other_teachers_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with serving(Books()) as server, ExitStack() as stack:
        jobs = [stack.enter_context(texts_job(server.base_url, path, ITEMS, teacher=TEACHER, models=(model,),
                                              concurrency=CONCURRENCY)) for model in ("a", "b")]
        ends = [job.end() for job in jobs]
    assert [end.answered if isinstance(end, Tally) else end for end in ends] == [ITEMS, ITEMS]
    assert Counter(model for model, _ in server.questions()) == {"a": ITEMS, "b": ITEMS}
    assert set(server.questions().values()) == {1}
    rows = check_books(server.ledger, Store(path))
    assert Counter(a.model for a in rows) == {"a": ITEMS, "b": ITEMS} and all(usable(a) for a in rows)
