"""Faults that come as often however slowly one asks: they are tried again, and pace nobody; and what they may cost is
booked."""

import math
import random
import re
from pathlib import Path

import pytest
from aiohttp import web
from scripted_server import Asked, Server, answer, label, make_survey, make_texts, price, refuse, serving

from src.store import Store
from src.task import Failure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a.db")


def test_server_errors_without_a_time_to_wait_do_not_slow_the_run(store: Store) -> None:
    """A rate that was learned from these would sink to a try in ten seconds within the run."""
    chance = random.Random(0)
    errors: list[int] = []

    async def says(asked: Asked) -> web.Response:
        if chance.random() < 0.05:
            errors.append(asked.place)
            return refuse(500)
        return answer(asked)

    with serving(Server(says)) as server:
        survey = make_survey(server.base_url, store, concurrency=8, adaptive=True, max_attempts=8)
        tally = survey.run([], make_texts(600), lambda _: None).asked
    assert tally.answered == 600 and tally.outcomes[Failure.OVERLOADED] == len(errors) > 15
    assert next(iter(survey._labelers.values())).pacer.per_second == math.inf


@pytest.mark.parametrize(("status", "headers", "slows"), [
    (429, {}, True), (503, {"Retry_After": "0.01"}, True), (503, {}, False), (500, {}, False), (502, {}, False)])
def test_what_paces_and_what_does_not(store: Store, status: int, headers: dict[str, str], slows: bool) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(status, **headers) if asked.place == 5 else answer(asked)

    with serving(Server(says)) as server:
        survey = make_survey(server.base_url, store, adaptive=True)
        survey.run([], make_texts(12), lambda _: None)
    assert (next(iter(survey._labelers.values())).pacer.per_second < math.inf) == slows


def test_what_one_stage_learned_the_next_one_knows(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        return refuse(429) if asked.place == 5 else answer(asked)

    with serving(Server(says)) as server:
        survey = make_survey(server.base_url, store, adaptive=True)
        learned = []
        survey.run(make_texts(10), make_texts(4, first=10),
                   lambda _: learned.append(next(iter(survey._labelers.values())).pacer.per_second))
    assert len(learned) == 2 and max(learned) < math.inf, "gold was refused once; the pool begins with that rate"


@pytest.mark.parametrize(("code", "booked"), [(502, 1.0), ("server_error", 1.0), (503, 0.0), (529, 0.0), (429, 0.0)])
def test_an_error_inside_a_200_may_be_on_the_bill(store: Store, code: object, booked: float) -> None:
    """The model had begun; what that cost nobody says."""
    async def says(asked: Asked) -> web.StreamResponse:
        if asked.nth == 0:
            return web.json_response({"error": {"code": code, "message": "provider returned error"}, "choices": []})
        return answer(asked, cost=0.25)

    tally = label(Server(says), 1, store, teacher=price(1.0))
    assert tally.cost_usd == pytest.approx(0.25 + booked, abs=0.01)
    assert sum(a.cost_usd for a in store.read()) == pytest.approx(tally.cost_usd)


def test_the_cap_is_weighed_against_all_teachers_together(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    async def says(asked: Asked) -> web.StreamResponse:
        return answer(asked, cost=0.01)

    with serving(Server(says)) as server:
        survey = make_survey(server.base_url, store, models=("a", "b"), pilot=10, max_cost_usd=1.4,
                             teacher=price(0.011))
        survey.run([], make_texts(60), lambda _: None)
    said = " ".join(capsys.readouterr().err.split())
    # Each is estimated at $0.50 of the $1.20 left once both pilots are paid; together they fit as well.
    assert "may stop this" not in said
    other = Store(store._shown + "2")
    with serving(Server(says)) as server, pytest.raises(Exception, match="is reached"):
        survey = make_survey(server.base_url, other, models=("a", "b"), pilot=10, max_cost_usd=1.0,
                             teacher=price(0.011))
        survey.run([], make_texts(60), lambda _: None)
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    share = re.search(r"max_cost_usd=1 may stop this before its end, perhaps after (\d+)% of what is left", said)
    assert share and 75 <= int(share[1]) <= 85
