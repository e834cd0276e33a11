"""What makes another question, which is asked and paid for anew, and what is the same one, whose answer is there."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from picture_survey import pictures, put
from scripted_server import TASK, Asked, Server, answer, label, price
from stand_in import make_errors

from src.store import Store
from src.task import Item


@pytest.fixture
def asked_before(store: Store, tmp_path: Path) -> list[Item]:
    items = pictures(tmp_path, 4)
    assert put(items, store, errors=make_errors()).asked.requests == 4
    return items


@pytest.mark.parametrize("change", [
    {"task": replace(TASK, system_prompt="JSON, please.")},
    {"task": replace(TASK, user_prompt="Which of {{ classes | tojson }} is it?")},
    {"task": replace(TASK, classes=TASK.classes | {"plum": ""})},
    {"base_url": "http://127.0.0.1:10/v1"},
    {"base_url": "http://127.0.0.1:9/v2"},
    {"teacher": {"model": "m-2"}},
    {"teacher": {"temperature": 0.5}},
    {"teacher": {"sampling": {"top_p": 0.9}}},
    {"passes": 2},
], ids=str)
def test_another_question_is_asked(store: Store, asked_before: list[Item], change: dict[str, Any]) -> None:
    assert put(asked_before, store, errors=make_errors(), **change).asked.requests == 4


@pytest.mark.parametrize("change", [
    {"teacher": {"max_tokens": 200}}, {"teacher": {"timeout_s": 9.0}}, {"teacher": {"json_mode": "json_schema"}},
    {"teacher": {"key_env": "ANOTHER_KEY"}}, {"teacher": {"routing": {"provider": {"zdr": True}}}},
    {"teacher": price(0.5)}, {"task": replace(TASK, aliases={"birne": "pear"})}, {"task": replace(TASK, version=2)},
    {"concurrency": 9}, {"max_cost_usd": 9.0}, {"gold": 2},
], ids=str)
def test_the_same_question_is_not_asked_again(store: Store, asked_before: list[Item], change: dict[str, Any]) -> None:
    again = put(asked_before, store, errors=make_errors(), **change)
    assert (again.asked.requests, again.answered, len(again.annotations)) == (0, 4, 4)


def test_more_items_and_another_order_ask_for_the_new_ones_alone(store: Store, tmp_path: Path) -> None:
    """Items are known by what they are, not by where they stand or by what stands beside them."""
    items = pictures(tmp_path, 12)
    put(items[3:9], store, errors=make_errors())
    before = store.read()
    again = put(items[::-1], store, errors=make_errors())
    assert again.asked.requests == 6 and again.answered == 6
    assert {(a.item, a.label) for a in again.annotations} == {(item.key, item.truth) for item in items}
    assert store.read()[:6] == before


def test_the_second_pass_is_no_copy_of_the_first(store: Store) -> None:
    """Behind a gateway that replays what it was asked under the same key, as some do."""
    chance, replies = random.Random(0), {}

    async def says(asked: Asked) -> web.Response:
        key = asked.headers["Idempotency-Key"]
        replies.setdefault(key, chance.choice(TASK.names))
        return answer(asked, label=replies[key])

    tally = label(Server(says), 100, store, passes=2)
    assert tally.pairs == 100 and 30 < tally.agreeing < 70
    said = {(a.item, a.pass_index): a.label for a in store.read()}
    assert sum(said[item, 0] == said[item, 1] for item, _ in said) / 2 == tally.agreeing
