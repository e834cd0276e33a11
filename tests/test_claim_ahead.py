"""Questions are claimed a little before a slot is free for them, so that no slot stands idle; what was never sent costs
nothing, and is free again for others."""

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
from aiohttp import web
from books import claims
from scripted_server import Asked, Server, answer, key, label, price, shown

from src.errors import DataError, TeacherError
from src.store import Store
from src.task import Item


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a.db")


async def paid(asked: Asked) -> web.StreamResponse:
    return answer(asked, cost=1.0)


def test_the_next_question_is_claimed_while_one_is_in_flight_and_few_more(store: Store) -> None:
    seen: list[int] = []

    async def says(asked: Asked) -> web.Response:
        await asyncio.sleep(0.1)
        seen.append(len(claims(store)))
        return answer(asked)

    label(Server(says), 30, store, concurrency=2)
    # Two under way, their successors, and answers on their way to the disk, whose claims go with them.
    assert all(2 < count <= 2 * (2 + 3) for count in seen[:-4]), seen
    assert claims(store) == []


def test_what_was_claimed_and_never_sent_is_free_again_after_an_interrupt(store: Store) -> None:
    async def says(asked: Asked) -> web.Response:
        if asked.place == 7:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
        return answer(asked)

    server = Server(says)
    with pytest.raises(KeyboardInterrupt):
        label(server, 50, store)
    rows = store.read()
    assert len(rows) == len(server.asked) < 50 and {a.failure for a in rows} == {None} and claims(store) == []


def test_what_was_claimed_and_is_not_afforded_is_free_again(store: Store) -> None:
    server = Server(paid)
    with pytest.raises(TeacherError, match="max_cost_usd=10 is reached"):
        label(server, 50, store, teacher=price(1.0), max_cost_usd=10.0)
    rows = store.read()
    assert len(server.asked) == len(rows) == 10 and {a.failure for a in rows} == {None} and claims(store) == []


def test_what_was_claimed_before_an_image_that_cannot_be_read_is_answered_or_free_again(store: Store) -> None:
    def show(item: Item) -> tuple[bytes, str]:
        if item.key == key(10):
            raise DataError("10.png could be read when the run began and cannot now")
        return shown(item)

    server = Server(paid)
    with pytest.raises(DataError, match=r"10\.png"):
        label(server, 20, store, show=show)
    rows = store.read()
    assert len(server.asked) == len(rows) <= 10 and {a.failure for a in rows} <= {None} and claims(store) == []


def test_images_are_encoded_beside_the_loop_which_goes_on_with_answers(store: Store) -> None:
    threads: set[int] = set()

    def show(item: Item) -> tuple[bytes, str]:
        threads.add(threading.get_ident())
        return shown(item)

    label(Server(paid), 20, store, show=show)
    assert threads and threading.get_ident() not in threads
