"""All parts of the server together, in this process: it answers, waits for people, stops without losing anybody, and
takes up what it left open."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jobs import call
from served import DOUBTFUL, MOST_PIXELS, SPEC, SURE, TASK, picture, predict, see

from src import serve
from src.cascade.policy import Policy
from src.data.escalations import served_folder
from src.errors import ConfigError
from src.serving.access import Access
from src.serving.server import Model, Serving, _alone, _serve
from src.store import DecisionLog, Store

POLICY = Policy(threshold=0.9, teacher_confidence=0.5, audit_share=0.0)
RITA = {"X-Reviewer": "rita"}


def serving(home: Path, **changes: Any) -> Serving:
    told: list[str] = []
    return replace(Serving(
        task=TASK, model=Model("run:1", see, predict), policy=POLICY, teacher=None, rehearsal=False, truths={},
        spec=SPEC, access=Access("127.0.0.1", {}), home=home, store=str(home / "annotations.db"),
        max_pixels=MOST_PIXELS, told=told.append), **changes)


@asynccontextmanager
async def running(what: Serving, *, stops: bool = True) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """The address, and a client. In the end Ctrl-C `stops` it, unless the test has done that."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_serve(what, address.set_result))
    await asyncio.wait([task, address], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        async with aiohttp.ClientSession(address.result()) as session:
            yield address.result(), session
    finally:
        if stops:
            os.kill(os.getpid(), signal.SIGINT)
        await task


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


async def decide(session: aiohttp.ClientSession, *payloads: bytes, wait: str = "final") -> tuple[int, dict[str, Any]]:
    form = aiohttp.FormData()
    for payload in payloads:
        form.add_field("image", payload, filename="a.png")
    async with session.post(f"/v1/decide?wait={wait}", data=form) as response:
        return response.status, await response.json()


async def review(session: aiohttp.ClientSession, label: str, **body: Any) -> str:
    """Take the next item, answer it, and return its key."""
    async with session.get("/review/api/next", headers=RITA) as response:
        key = (await response.json())["item"]["key"]
    async with session.post("/review/api/answer", headers=RITA, json={"key": key, "label": label, **body}) as response:
        assert response.status == 200, await response.text()
    return str(key)


async def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


def test_the_student_answers_what_it_is_sure_of_and_every_answer_is_in_the_log(tmp_path: Path) -> None:
    async def go() -> None:
        async with running(serving(tmp_path)) as (_, session):
            status, body = await decide(session, picture(SURE), picture(SURE, blue=9))
            assert status == 200 and body["model"] == "run:1" and body["rehearsal"] is False
            assert [(item["label"], item["route"], item["final"]) for item in body["items"]] == [
                ("red", "student", True)] * 2
            rows = DecisionLog(tmp_path / "annotations.db").of(body["request"])
            assert [row.answer for row in rows] == ["red", "red"]

    asyncio.run(go())


def test_a_client_waits_and_gets_a_persons_answer(tmp_path: Path) -> None:
    async def go() -> None:
        async with running(serving(tmp_path)) as (_, session):
            waiting = asyncio.create_task(decide(session, picture(SURE), picture(DOUBTFUL)))
            log = DecisionLog(tmp_path / "annotations.db")
            await until(lambda: [row for row in log.open(TASK.name, TASK.version) if row.route == "human"])
            key = await review(session, "other")
            status, body = await waiting
            assert status == 200
            assert [(item["label"], item["route"], item["human"]) for item in body["items"]] == [
                ("red", "student", None), ("other", "human", "teacher_failed")]
            said = Store(tmp_path / "annotations.db").read(items=[key])
            assert [(a.annotator, a.label) for a in said] == [("human:rita", "other")]

    asyncio.run(go())


def test_who_waits_when_it_stops_is_told_where_to_ask_and_gets_the_answer_after_the_next_start(tmp_path: Path) -> None:
    async def first() -> str:
        async with running(serving(tmp_path), stops=False) as (_, session):
            waiting = asyncio.create_task(decide(session, picture(DOUBTFUL)))
            log = DecisionLog(tmp_path / "annotations.db")
            await until(lambda: [row for row in log.open(TASK.name, TASK.version) if row.route == "human"])
            os.kill(os.getpid(), signal.SIGTERM)
            status, body = await waiting
            assert status == 202 and body["items"][0]["final"] is False
            return str(body["request"])

    async def second(request: str) -> None:
        async with running(serving(tmp_path)) as (_, session):
            async with session.get(f"/v1/requests/{request}") as response:
                assert response.status == 202
            await review(session, "red")
            async with session.get(f"/v1/requests/{request}?wait_s=20") as response:
                body = await response.json()
            assert response.status == 200
            assert (body["items"][0]["label"], body["items"][0]["route"]) == ("red", "human")
            steps = [row for row in DecisionLog(tmp_path / "annotations.db").read() if row.request == request]
            assert [row.step for row in steps] == [0, 1, 2]

    asyncio.run(second(asyncio.run(first())))


def test_a_stopping_server_takes_nothing_new_and_says_what_it_did(tmp_path: Path) -> None:
    told: list[str] = []

    async def go() -> None:
        async with running(serving(tmp_path, told=told.append)) as (_, session):
            await decide(session, picture(SURE))

    asyncio.run(go())
    assert told[0].startswith("Listening on http://127.0.0.1:") and told[-1].startswith(
        "Stopped. 1 items: student 1, LLM 0, people 0, open 0")


def test_sample_traffic_is_sent_over_http_and_counted(tmp_path: Path) -> None:
    async def go() -> None:
        samples = [picture(SURE), picture(DOUBTFUL)]
        async with running(serving(tmp_path, samples=samples, sample_traffic=200.0)) as (_, session):
            log = DecisionLog(tmp_path / "annotations.db")
            await until(lambda: len({row.item for row in log.read()}) == 2)
            async with session.get("/metrics") as response:
                text = await response.text()
            assert 'flywheel_requests_total{endpoint="decide",status="200"}' in text

    asyncio.run(go())


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"serving.host='127.0.0.1:{port}' is not allowed: nobody can listen"):
            asyncio.run(_serve(serving(tmp_path, spec=replace(SPEC, port=port)), lambda _: None))


def test_two_servers_of_one_task_do_not_share_a_home(tmp_path: Path) -> None:
    with _alone(served_folder(tmp_path, TASK.name)):
        with pytest.raises(ConfigError, match="another server of the task 'colours' runs there: stop that one"):
            asyncio.run(_serve(serving(tmp_path), lambda _: None))
        with _alone(served_folder(tmp_path, "another_task")):
            pass
    with _alone(served_folder(tmp_path, TASK.name)):
        pass


@pytest.mark.parametrize(("keys", "message"), [
    (["run=nothing_of_that_name"], "run='nothing_of_that_name' is neither a run's id nor a registered model"),
    (["run=latest"], "holds no finished training run yet. Make one: python -m src.train +experiment=demo"),
    (["run=latest", "serving.host=0.0.0.0"], "serving.host='0.0.0.0' is not allowed: others can reach it"),
    (["run=latest", "cascade.threshold=2"], "cascade.threshold=2.0 is not allowed"),
    (["run=0123456789abcdef0123456789abcdef"], "run='0123456789abcdef0123456789abcdef' is not a run"),
])
def test_a_users_mistake_is_a_short_message(keys: list[str], message: str, capsys: pytest.CaptureFixture[str],
                                            home: Path) -> None:
    assert call(serve.main, f"home={home}", *keys) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
