"""The server over loopback: what it answers, and what it says to everything that is no proper request."""

import asyncio
import base64
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from served import CLIENTS, DOUBTFUL, KEYS, SPEC, SURE, TASK, Answers, Served, picture, predict, served

from src.cascade.policy import Reply
from src.errors import ConfigError, StoreError
from src.serving.app import HURRY, STOPPING
from src.serving.connections import HEADERS, WHO, listening
from src.serving.live import Busy, Ticket
from src.serving.messages import Answer, Refusal
from src.task import Failure

JSON = {"Content-Type": "application/json"}
ANN = {"Authorization": "Bearer ann-has-a-long-key"}
BOB = {"Authorization": "Bearer bob-has-a-long-key"}
RITA = {"Authorization": "Bearer rita-has-a-long-key"}
FAILED = Reply(failure=Failure.TIMEOUT)
Case = Callable[[Served], Awaitable[None]]


def run(folder: Path, case: Case, **setting: Any) -> None:
    async def body() -> None:
        async with served(folder, **setting) as server:
            await case(server)

    asyncio.run(body())


def items(*payloads: bytes, **fields: Any) -> dict[str, Any]:
    return {"items": [{"image": base64.b64encode(payload).decode()} for payload in payloads], **fields}


def form(*payloads: bytes, **fields: str) -> aiohttp.FormData:
    made = aiohttp.FormData(default_to_multipart=True)
    for payload in payloads:
        made.add_field("image", payload, filename='a "b"; name=x.png', content_type="image/png")
    for name, value in fields.items():
        made.add_field(name, value)
    return made


async def body_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Checked: JSON of one of two shapes, with the headers that every answer has."""
    body: dict[str, Any] = await response.json()
    (Answer if response.status < 400 else Refusal).model_validate(body)
    for name in ("Server", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy", "Content-Security-Policy"):
        assert response.headers[name] == HEADERS[name]
    assert response.headers["Cache-Control"] == "no-store"
    if response.status in (429, 503):
        assert int(response.headers["Retry-After"]) >= 1
    return body


async def post(server: Served, **given: Any) -> tuple[int, dict[str, Any]]:
    async with server.client.post("/v1/decide", **given) as response:
        return response.status, await body_of(response)


async def refused(server: Served, **given: Any) -> tuple[int, str, str]:
    status, body = await post(server, **given)
    return status, body["error"]["code"], body["error"]["message"]


async def raw(server: Served, sent: bytes) -> tuple[int, bytes]:
    """What comes back for these very bytes, until the server closes or has answered."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        writer.write(sent)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await reader.readexactly(int(lines[b"content-length"]))
    finally:
        writer.close()
    return int(head.split()[1]), body


def head(length: int | None, *, content_type: str = "application/json", more: str = "") -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{size}{more}\r\n".encode()


# What is answered.


@pytest.mark.parametrize("how", ["json", "multipart"])
def test_sure_answers_are_final_at_once(tmp_path: Path, how: str) -> None:
    async def case(server: Served) -> None:
        payloads = [picture(SURE), picture(0), picture(SURE, blue=9, kind="JPEG")]
        given = {"json": items(*payloads)} if how == "json" else {"data": form(*payloads)}
        status, body = await post(server, **given)
        assert status == 200
        assert [item["label"] for item in body["items"]] == ["red", "other", "red"]
        assert body["items"][1] == {
            "position": 1, "label": "other", "probability": 1.0, "route": "student", "final": True, "escalated": None,
            "human": None, "student": {"label": "other", "probability": 1.0}}
        assert (body["model"], body["task"], body["rehearsal"]) == ("run:abc", "colours", True)
        assert [row.answer for row in server.decisions.of(body["request"])] == ["red", "other", "red"]
        assert server.teacher.asked == []

    run(tmp_path, case)


def test_a_doubtful_one_is_the_teachers_and_waited_for(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        status, body = await post(server, json=items(picture(SURE), picture(DOUBTFUL)))
        assert status == 200
        item = body["items"][1]
        assert (item["label"], item["probability"], item["route"], item["escalated"]) == ("other", 0.99, "teacher",
                                                                                          "doubtful")
        assert item["student"] == {"label": "red", "probability": pytest.approx(DOUBTFUL / 255)}

    run(tmp_path, case)


def test_what_the_teacher_cannot_settle_is_open_until_a_person_answers(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        sent = items(picture(DOUBTFUL), picture(SURE), wait="poll")
        async with server.client.post("/v1/decide", json=sent) as answer:
            body = await body_of(answer)
            assert answer.status == 202
            where = answer.headers["Location"]
        assert where == f"/v1/requests/{body['request']}"
        assert [(item["label"], item["final"]) for item in body["items"]] == [(None, False), ("red", True)]

        async def ask() -> tuple[int, dict[str, Any]]:
            async with server.client.get(where, params={"wait_s": "30"}) as response:
                return response.status, await body_of(response)

        waiting = asyncio.create_task(ask())
        for _ in range(3000):
            if server.cascade.waiting:
                break
            await asyncio.sleep(0.01)
        async with server.client.get(where) as response:
            now = await body_of(response)
            assert response.status == 202
        assert (now["items"][0]["route"], now["items"][0]["human"]) == ("human", "teacher_failed")
        assert not waiting.done()
        await server.cascade.answered(server.decisions.of(body["request"])[0].item, "other", "human:rita")
        status, final = await waiting
        assert status == 200
        assert final["items"][0] | {"student": 0} == {
            "position": 0, "label": "other", "probability": None, "route": "human", "final": True,
            "escalated": "doubtful", "human": "teacher_failed", "student": 0}
        assert final["items"][1] == body["items"][1]

    run(tmp_path, case, teacher=Answers(FAILED))


def test_the_students_doubtful_answer_for_who_asks_for_it(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        status, body = await post(server, json=items(picture(DOUBTFUL), wait="student"))
        assert status == 200
        item = body["items"][0]
        assert (item["label"], item["final"], item["route"]) == ("red", False, "teacher")
        assert item["probability"] == item["student"]["probability"] == pytest.approx(DOUBTFUL / 255)

    run(tmp_path, case, teacher=Answers(FAILED))


@pytest.mark.parametrize("where", ["json", "form", "query"])
def test_a_client_waits_as_long_as_it_said(tmp_path: Path, where: str) -> None:
    async def case(server: Served) -> None:
        payload = picture(DOUBTFUL)
        given = {"json": {"json": items(payload, wait="final", timeout_s=0.2)},
                 "form": {"data": form(payload, wait="final", timeout_s="0.2")},
                 "query": {"json": items(payload), "params": {"wait": "final", "timeout_s": "2e-1"}}}[where]
        status, body = await post(server, **given)
        assert status == 202
        assert body["latency_ms"] >= 200
        assert (body["items"][0]["route"], body["items"][0]["label"]) == ("human", None)

    run(tmp_path, case, teacher=Answers(FAILED))


def test_a_request_is_known_to_who_made_it_alone_also_after_a_restart(tmp_path: Path) -> None:
    found: dict[str, Any] = {}

    async def first(server: Served) -> None:
        found.update((await post(server, json=items(picture(SURE)), headers=ANN))[1])

    async def second(server: Served) -> None:
        where = f"/v1/requests/{found['request']}"
        async with server.client.get(where, headers=ANN) as response:
            body = await body_of(response)
            assert response.status == 200
        assert body["items"] == found["items"]
        for headers, name in ((BOB, where), (ANN, "/v1/requests/" + "0" * 32), (ANN, "/v1/requests/x%27%20OR%201")):
            async with server.client.get(name, headers=headers) as response:
                assert (await body_of(response))["error"]["code"] == "unknown_request"
                assert response.status == 404

    run(tmp_path, first, keys=KEYS)
    run(tmp_path, second, keys=KEYS)


def test_who_waits_for_another_clients_open_request_learns_nothing(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        _, body = await post(server, json=items(picture(DOUBTFUL), wait="poll"), headers=ANN)
        where = f"/v1/requests/{body['request']}"
        async with asyncio.timeout(15), server.client.get(where, params={"wait_s": 30}, headers=BOB) as response:
            assert response.status == 404

    run(tmp_path, case, keys=KEYS, teacher=Answers(FAILED))


# What is turned away.


@pytest.mark.parametrize(("sent", "status", "code", "says"), [
    (b"", 400, "bad_json", "not JSON"),
    (b"{", 400, "bad_json", "not JSON"),
    (b"\xff\xfe", 400, "bad_json", "not JSON"),
    (b"[" * 100_000, 400, "bad_json", "not JSON"),
    (b"null", 422, "bad_field", "the body"),
    (b"[]", 422, "bad_field", "the body"),
    (b"{}", 422, "bad_field", "items: field required"),
    (b'{"items": []}', 422, "bad_field", "items: list should have at least 1 item"),
    (b'{"items": {}}', 422, "bad_field", "items: "),
    (b'{"items": ["iVBO"]}', 422, "bad_field", "items[0]: "),
    (b'{"items": [{}]}', 422, "bad_field", "items[0].image: field required"),
    (b'{"items": [{"image": 3}]}', 422, "bad_field", "items[0].image: "),
    (b'{"items": [{"image": ""}]}', 422, "bad_field", "items[0].image: "),
    (b'{"items": [{"image": "iVBO"}, {"image": "%%%%"}]}', 422, "bad_field", "items[1].image: data should be valid"),
    (b'{"items": [{"image": "data:image/png;base64,iVBO"}]}', 422, "bad_field", "leave out the data: prefix"),
    (b'{"items": [{"image": "iVBO", "path": "/etc/passwd"}]}', 422, "bad_field", "items[0].path: unknown field"),
    (b'{"items": [{"image": "iVBO"}], "url": "http://x"}', 422, "bad_field", "url: unknown field"),
    (b'{"items": [{"image": "iVBO"}], "wait": "ever"}', 422, "bad_field", "wait: "),
    (b'{"items": [{"image": "iVBO"}], "timeout_s": "3"}', 422, "bad_field", "timeout_s: "),
    (b'{"items": [{"image": "iVBO"}], "timeout_s": -1}', 422, "bad_field", "timeout_s: "),
    (b'{"items": [{"image": "iVBO"}], "timeout_s": NaN}', 422, "bad_field", "timeout_s: "),
    (b'{"items": [{"image": "iVBO"}], "timeout_s": 31}', 422, "bad_field", "serving.wait_s=30"),
    (b'{"items": [{"image": "iVBO"}], "timeout_s": true}', 422, "bad_field", "timeout_s: "),
    (b'{"items": [' + b",".join([b'{"image": "iVBO"}'] * 17) + b"]}", 413, "too_many_items", "serving.most_items=16"),
    (b'{"items": [' + b"1," * 400_000 + b"1]}", 413, "too_many_items", "serving.most_items=16"),
    (b'{"items": [{"image": "iVBO"}]}', 422, "bad_images", "image 0: not an image"),
])
def test_wrong_json(tmp_path: Path, sent: bytes, status: int, code: str, says: str) -> None:
    async def case(server: Served) -> None:
        found = await refused(server, data=sent, headers=JSON)
        assert found[:2] == (status, code)
        assert says in found[2]
        assert list(server.decisions.read()) == []

    run(tmp_path, case)


PART = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
GOOD = PART % (b"image", b"iVBO")


@pytest.mark.parametrize(("sent", "status", "says"), [
    (b"", 400, "does not occur"),
    (b"hello", 400, "does not occur"),
    (b"--x", 400, "not followed by a line's end"),
    (b"--x--", 422, "no part is named image"),
    (GOOD, 400, "cut off"),
    (GOOD + b"--x", 400, "not followed by a line's end"),
    (GOOD[:-3] + b"--x--", 400, "cut off"),
    (GOOD + b"--xy\r\n", 400, "not followed by a line's end"),
    (b"--x\r\n\r\niVBO\r\n--x--", 400, "no Content-Disposition"),
    (b"--x\r\nContent-Disposition: attachment; name=image\r\n\r\niVBO\r\n--x--", 400, "no Content-Disposition"),
    (b"--x\r\nContent-Disposition: form-data; filename=\"; name=image\"\r\n\r\niVBO\r\n--x--", 400, "no Content-Disp"),
    (b"--x\r\nA: " + b"a" * 5000 + b"\r\n\r\niVBO\r\n--x--", 400, "longer than 4096"),
    (PART % (b"image", b"") + b"--x--", 422, "image 0 is empty"),
    (PART % (b"picture", b"iVBO") + b"--x--", 422, "part 'picture': unknown"),
    (PART % (b"a" * 3000, b"iVBO") + b"--x--", 422, "aaa…"),
    (PART % (b"\xff", b"iVBO") + b"--x--", 422, "unknown"),
    (GOOD + PART % (b"wait", b"ever") + b"--x--", 422, "wait='ever': one of final, student, poll"),
    (GOOD + PART % (b"timeout_s", b"nan") + b"--x--", 422, "timeout_s='nan'"),
    (GOOD + PART % (b"timeout_s", b"-1") + b"--x--", 422, "timeout_s='-1'"),
    (GOOD + PART % (b"timeout_s", b"1e99") + b"--x--", 422, "at most serving.wait_s=30"),
    (GOOD + 2 * (PART % (b"wait", b"poll")) + b"--x--", 422, "wait is given twice"),
    (b"--x\r\nContent-Transfer-Encoding: base64\r\n" + GOOD[5:] + b"--x--", 422, "Content-Transfer-Encoding"),
    (17 * GOOD + b"--x--", 413, "serving.most_items=16"),
    (GOOD + b"--x--", 422, "image 0: not an image"),
])
def test_wrong_multipart(tmp_path: Path, sent: bytes, status: int, says: str) -> None:
    async def case(server: Served) -> None:
        found = await refused(server, data=sent, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert found[0] == status
        assert says in found[2]
        assert list(server.decisions.read()) == []

    run(tmp_path, case)


def test_multipart_as_others_write_it(tmp_path: Path) -> None:
    """A preamble, blanks behind a boundary, an epilogue, names without quotes; and the boundary within an image."""
    async def case(server: Served) -> None:
        payload = picture(SURE) + b"--x\r\n\r\n--y--x"  # what follows an image's end is not looked at
        sent = (b'preamble\r\n--x y \t\r\ncontent-type: image/png\r\n'
                b'CONTENT-DISPOSITION:form-data;filename="a;b";name=image\r\n\r\n' + payload + b"\r\n--x y\r\n"
                + (PART % (b"wait", b"poll"))[5:] + b"--x y--\r\nepilogue")
        status, body = await post(server, data=sent, headers={"Content-Type": 'Multipart/Form-Data; Boundary="x y"'})
        assert (status, body["items"][0]["label"]) == (200, "red")

    run(tmp_path, case)


@pytest.mark.parametrize(("content_type", "status"), [
    ("text/plain", 415), ("application/octet-stream", 415), ("application/x-www-form-urlencoded", 415),
    ("image/png", 415), ("application/x-python-pickle", 415), ("multipart/mixed; boundary=x", 415),
    ("multipart/form-data", 400), ("multipart/form-data; boundary=", 400),
    ("multipart/form-data; boundary=" + "x" * 71, 400), ("multipart/form-data; boundary=ä", 400), ("", 415),
])
def test_content_types_that_nobody_reads(tmp_path: Path, content_type: str, status: int) -> None:
    async def case(server: Served) -> None:
        found, body = await raw(server, head(2, content_type=content_type) + b"{}")
        Refusal.model_validate_json(body)
        assert found == status

    run(tmp_path, case)


def test_images_that_cannot_be_used_are_named_and_nothing_is_decided(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        good, bomb = picture(SURE), picture(0, size=200)
        status, code, message = await refused(server, json=items(good, b"hello", good[:45], bomb, good))
        assert (status, code) == (422, "bad_images")
        assert "image 1: not an image" in message and "image 2: " in message and "image 3: 200x200 pixels" in message
        assert "image 0" not in message and "image 4" not in message
        _, _, message = await refused(server, json=items(*[b"hello"] * 16))
        assert message.endswith("and 11 more")
        assert list(server.decisions.read()) == []

    run(tmp_path, case)


@pytest.mark.parametrize(("params", "says"), [
    ({"wait": "ever"}, "one of"), ({"timeout_s": "x"}, "timeout_s='x'"), ({"timeout_s": "31"}, "serving.wait_s=30"),
    ({"wait_s": "1"}, "wait_s"), ([("wait", "poll"), ("wait", "poll")], "twice"), ({"path": "/etc"}, "unknown"),
])
def test_wrong_queries(tmp_path: Path, params: Any, says: str) -> None:
    async def case(server: Served) -> None:
        status, _, message = await refused(server, json=items(picture(SURE)), params=params)
        assert status == 422 and says in message

    run(tmp_path, case)


def test_a_field_in_address_and_body_is_refused(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        found = await refused(server, json=items(picture(SURE), wait="poll"), params={"wait": "final"})
        assert found[0] == 422 and "once will do" in found[2]

    run(tmp_path, case)


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/decide", 405), ("DELETE", "/v1/decide", 405), ("POST", "/metrics", 405), ("GET", "/", 404),
    ("GET", "/v1/../etc/passwd", 404), ("GET", "/v1/requests/", 404), ("GET", "/v1/requests/a/b", 404),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404), ("GET", "/v1/requests/" + "a" * 32 + "?wait_s=x", 422),
])
def test_addresses_and_methods(tmp_path: Path, method: str, path: str, status: int) -> None:
    async def case(server: Served) -> None:
        found, body = await raw(server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        Refusal.model_validate_json(body)
        assert found == status

    run(tmp_path, case)


@pytest.mark.parametrize("sent", [
    b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost b\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n",
    b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n\r\n",
], ids=range(8))
def test_what_is_not_http(tmp_path: Path, sent: bytes, capsys: pytest.CaptureFixture[str],
                          caplog: pytest.LogCaptureFixture) -> None:
    async def case(server: Served) -> None:
        status, body = await raw(server, sent)
        assert status == 400
        Refusal.model_validate_json(body)
        assert (await post(server, json=items(picture(SURE))))[0] == 200

    run(tmp_path, case)
    assert "Traceback" not in capsys.readouterr().err and not caplog.records


def test_lengths(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        found, body = await raw(server, head(None))
        assert (found, json.loads(body)["error"]["code"]) == (411, "length_required")
        # Announced, or not: the limit is the same, and nobody reads on to find out.
        found, body = await raw(server, head(1_000_001))
        assert (found, json.loads(body)["error"]["code"]) == (413, "body_too_large")
        chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
        found, body = await raw(server, head(None, more="Transfer-Encoding: chunked\r\n") + 11 * chunk)
        assert (found, json.loads(body)["error"]["code"]) == (413, "body_too_large")
        sent = json.dumps(items(picture(SURE))).encode()
        pieces = b"".join(b"%x\r\n%s\r\n" % (len(sent[n:n + 9]), sent[n:n + 9]) for n in range(0, len(sent), 9))
        found, _ = await raw(server, head(None, more="Transfer-Encoding: chunked\r\n") + pieces + b"0\r\n\r\n")
        assert found == 200
        found, body = await raw(server, head(len(sent), more="Content-Encoding: gzip\r\n") + sent)
        assert found == 415
        found, _ = await raw(server, head(len(sent), more="Expect: tea\r\n") + sent)
        assert found == 200

    run(tmp_path, case)


def test_who_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        assert (await post(server, json=items(picture(SURE)), expect100=True))[0] == 200

    run(tmp_path, case)


def test_more_than_there_is_memory_for_is_turned_away_and_given_back(tmp_path: Path) -> None:
    """Nine clients begin a body of nearly the largest size; eight times that may be read at once."""
    async def case(server: Served) -> None:
        sent = b'{"items": [' + b" " * 999_000
        streams = [await asyncio.open_connection(*server.address) for _ in range(9)]
        for _, writer in streams:
            writer.write(head(1_000_000) + sent)
        first = [asyncio.create_task(reader.readline()) for reader, _ in streams]
        done, _ = await asyncio.wait(first, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().split()[1] for task in done} == {b"429"}
        for _, writer in streams:
            writer.write(b" " * (1_000_000 - len(sent)))
        assert {line.split()[1] for line in await asyncio.gather(*first)} == {b"429", b"400"}
        for _, writer in streams:
            writer.close()
        for _ in range(20):
            assert (await post(server, data=sent, headers=JSON))[0] == 400

    run(tmp_path, case, most_body_mb=1)


def test_slow_bodies_are_cut_off(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        found, body = await raw(server, head(100) + b'{"items": [')
        assert (found, json.loads(body)["error"]["code"]) == (408, "too_slow")
        assert (await post(server, json=items(picture(SURE))))[0] == 200

    run(tmp_path, case, app={"body_within_s": 1.0})


def test_slow_heads_and_silence_are_cut_off(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        for sent in (b"", b"POST /v1/decide HTTP/1.1\r\nHost: loc"):
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()

    run(tmp_path, case, head_within_s=0.2)


def test_more_connections_than_there_is_room_for_are_closed_and_there_is_room_again_after() -> None:
    """Without a limit, a thousand silent ones took all files that the process may have open."""
    async def alive(request: web.Request) -> web.Response:
        return web.Response(text="yes")

    async def main() -> None:
        app = web.Application()
        app.add_routes([web.get("/healthz", alive)])
        ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        async with listening(app, "127.0.0.1", 0, most=2) as (host, port):
            silent = [await asyncio.open_connection(host, port) for _ in range(2)]
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
            silent[0][1].close()
            async with asyncio.timeout(30):
                said = b""
                while b"yes" not in said:
                    reader, writer = await asyncio.open_connection(host, port)
                    writer.write(ask)
                    with contextlib.suppress(ConnectionError):
                        said = await reader.read()
                    writer.close()
            silent[1][1].close()

    asyncio.run(main())


def test_a_waiting_client_is_not_taken_for_a_silent_one(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        assert (await post(server, json=items(picture(DOUBTFUL), timeout_s=1.5)))[0] == 202

    run(tmp_path, case, head_within_s=1.0, teacher=Answers(FAILED))


def test_what_a_vanished_client_sent_is_decided_and_what_it_did_not_is_not(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def case(server: Served) -> None:
        sent = json.dumps(items(picture(DOUBTFUL))).encode()
        for part, rows in ((sent[:-5], 0), (sent, 2)):
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(head(len(sent)) + part)
            await writer.drain()
            link = writer.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # gone without a word
            while len(sent) == len(part) and not server.teacher.asked:
                await asyncio.sleep(0.01)
            writer.transport.abort()
            del reader
            for _ in range(300):
                if len(list(server.decisions.read())) >= rows and b'status="499"' in await figures(server):
                    break
                await asyncio.sleep(0.02)
            assert [row.step for row in server.decisions.read()] == list(range(rows))
        assert (await post(server, json=items(picture(SURE))))[0] == 200

    run(tmp_path, case)
    assert "not foreseen" not in capsys.readouterr().err


async def figures(server: Served, **headers: Any) -> bytes:
    async with server.client.get("/metrics", **headers) as response:
        assert response.status == 200
        return await response.read()


# Load, faults, and the end.


class Odd:
    """A cascade that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def submit(self, request: str, payloads: Sequence[bytes], *, client: str) -> list[Ticket]:
        raise self.error

    def tickets(self, request: str) -> list[Ticket]:
        return []


def test_busy(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        async with server.client.post("/v1/decide", json=items(picture(SURE))) as response:
            assert (await body_of(response))["error"]["code"] == "busy"
            assert (response.status, response.headers["Retry-After"]) == (429, "3")

    run(tmp_path, case, cascade=Odd(Busy(2.2)))


def test_a_store_that_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def case(server: Served) -> None:
        status, code, message = await refused(server, json=items(picture(SURE)))
        assert (status, code) == (503, "store")
        assert "/secret" not in message

    run(tmp_path, case, cascade=Odd(StoreError("/secret/annotations.db is locked")))
    assert "/secret/annotations.db is locked" in capsys.readouterr().out.replace("\n", " ")


def test_what_nobody_foresaw_is_told_to_the_operator_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def case(server: Served) -> None:
        status, code, message = await refused(server, json=items(picture(SURE)), headers=ANN)
        assert (status, code) == (500, "internal")
        assert "boom" not in message
        assert b'flywheel_requests_total{endpoint="decide",status="500"} 1.0' in await figures(server, headers=ANN)

    run(tmp_path, case, cascade=Odd(ZeroDivisionError("boom")), keys=KEYS)
    told = capsys.readouterr().err
    assert "POST /v1/decide: not foreseen" in told and "ZeroDivisionError: boom" in told
    assert "ann-has-a-long-key" not in told


def test_an_error_of_the_student_is_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def case(server: Served) -> None:
        assert (await refused(server, json=items(picture(SURE))))[:2] == (500, "internal")
        assert list(server.decisions.read()) == []

    run(tmp_path, case, student=lambda images: predict(images) * float("nan"))
    assert "must be finite" in capsys.readouterr().err


def test_more_requests_than_a_client_may_send(tmp_path: Path) -> None:
    now = [0.0]

    async def case(server: Served) -> None:
        async def status(headers: dict[str, str]) -> int:
            return (await post(server, json=items(picture(SURE)), headers=headers))[0]

        assert [await status(ANN) for _ in range(3)] == [200, 200, 429]
        assert await status(BOB) == 200
        assert b"flywheel" in await figures(server, headers=ANN)  # looking at figures is free
        now[0] = 0.5
        assert [await status(ANN) for _ in range(2)] == [200, 429]

    run(tmp_path, case, keys=KEYS, requests_per_second=2.0, app={"clock": lambda: now[0]})


@asynccontextmanager
async def asking(server: Served, **fields: Any) -> AsyncIterator["asyncio.Task[tuple[int, dict[str, Any]]]"]:
    task = asyncio.create_task(post(server, json=items(picture(DOUBTFUL), **fields)))
    while not server.cascade.waiting:
        await asyncio.sleep(0.01)
    yield task


def test_a_graceful_end(tmp_path: Path) -> None:
    """Who waits is answered; who comes is sent away, and told when to come again; what is open is found after it."""
    found: dict[str, Any] = {}

    async def case(server: Served) -> None:
        async with asking(server, timeout_s=30) as waiting, server.client.get("/readyz") as response:
            assert response.status == 200
            server.app[STOPPING].set()
            async with server.client.get("/readyz") as response:
                assert (response.status, response.headers["Connection"]) == (503, "close")
                assert (await body_of(response))["error"]["code"] == "stopping"
            async with server.client.get("/healthz") as response:
                assert response.status == 200
            async with server.client.post("/v1/decide", json=items(picture(SURE))) as response:
                assert (await body_of(response))["error"]["code"] == "stopping"
                assert (response.status, response.headers["Connection"]) == (503, "close")
            await server.cascade.drain(5)
            assert not waiting.done()
            server.app[HURRY].set()
            status, body = await asyncio.wait_for(waiting, 15)
            assert (status, body["items"][0]["route"], body["items"][0]["final"]) == (202, "human", False)
            found.update(body)

    async def later(server: Served) -> None:
        async with server.client.get(f"/v1/requests/{found['request']}") as response:
            assert (response.status, (await body_of(response))["items"]) == (202, found["items"])

    run(tmp_path, case, teacher=Answers(FAILED))
    run(tmp_path, later)


# Who may do what.


async def whoami(request: web.Request) -> web.Response:
    return web.json_response({"who": request.get(WHO), "sent": (await request.read()).decode("latin-1")})


REVIEW = [web.get("/review", whoami), web.get("/review/review.js", whoami), web.post("/review/api/answer", whoami)]


def test_keys_by_address(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        async def status(method: str, path: str, headers: dict[str, str]) -> int:
            data = b"{}" if method == "POST" else None
            async with server.client.request(method, path, headers=headers, data=data) as response:
                return response.status

        for headers, client, reviewer in (({}, 401, 401), (ANN, 0, 403), (RITA, 403, 0)):
            assert await status("POST", "/v1/decide", headers) == (client or 415)
            assert await status("GET", "/v1/requests/x", headers) == (client or 404)
            assert await status("GET", "/metrics", headers) == (client or 200)
            assert await status("POST", "/review/api/answer", headers) == (reviewer or 200)
            assert await status("POST", "/review/%61pi/answer", headers) == (reviewer or 200)
            for path in ("/healthz", "/readyz", "/openapi.json", "/review", "/review/review.js"):
                assert await status("GET", path, headers) == 200
        async with server.client.post("/review/api/answer", headers=RITA, data=b"x") as response:
            assert await response.json() == {"who": "rita", "sent": "x"}

    run(tmp_path, case, keys=KEYS, review=REVIEW)


def test_bodies_of_reviewers_are_small_and_quick(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        rita = {"X-Reviewer": "rita"}
        async with server.client.post("/review/api/answer", headers=rita, data=b"x" * 70_000) as response:
            assert (response.status, (await body_of(response))["error"]["code"]) == (413, "body_too_large")
        found, _ = await raw(server, b"POST /review/api/answer HTTP/1.1\r\nHost: localhost\r\nX-Reviewer: rita\r\n"
                             b"Content-Length: 5\r\n\r\nx")
        assert found == 408
        small = gzip.compress(bytes(10**6))  # taken as it is: nobody makes a megabyte of it
        async with server.client.post("/review/api/answer", headers={**rita, "Content-Encoding": "gzip"},
                                      data=small) as response:
            assert (await response.json())["sent"] == small.decode("latin-1")

    run(tmp_path, case, review=REVIEW, app={"body_within_s": 1.0})


def test_pages_of_others_get_nothing_without_keys(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            assert (await refused(server, data=form(picture(SURE)), headers=headers))[0] == 403
        assert (await post(server, data=form(picture(SURE)), headers={"Origin": server.url}))[0] == 200
        assert len(list(server.decisions.read())) == 1

    run(tmp_path, case)


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        with pytest.raises(ConfigError, match=f"127.0.0.1:{server.address[1]}.*port=0"):
            async with listening(web.Application(), *server.address):
                raise AssertionError

    run(tmp_path, case)


def test_figures(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        await post(server, json=items(picture(SURE), picture(DOUBTFUL)), headers=ANN)
        async with server.client.get("/nonsense/" + "x" * 50, headers=ANN) as response:
            assert response.status == 404
        found = (await figures(server, headers=ANN)).decode()
        for line in ('flywheel_requests_total{endpoint="decide",status="200"} 1.0',
                     'flywheel_requests_total{endpoint="other",status="404"} 1.0',
                     'flywheel_items_total{escalated="none"} 1.0', 'flywheel_items_total{escalated="doubtful"} 1.0',
                     'flywheel_decisions_total{escalated="none",human="none",route="student"} 1.0',
                     'flywheel_decisions_total{escalated="doubtful",human="none",route="teacher"} 1.0',
                     "flywheel_llm_cost_usd_total 0.001", "flywheel_batch_images_sum 2.0", "flywheel_log_backlog 0.0",
                     "flywheel_pending_images 0.0", "flywheel_waiting_items 0.0",
                     'flywheel_request_seconds_count{endpoint="decide"} 1.0'):
            assert line in found.splitlines()
        assert not any(word in found for word in ("nonsense", "xxxxx", "ann"))

    run(tmp_path, case, keys=CLIENTS)


def test_the_document_names_no_model_and_no_key(tmp_path: Path) -> None:
    async def case(server: Served) -> None:
        async with server.client.get("/openapi.json") as response:
            text = await response.text()
        assert not any(word in text for word in ("run:abc", "ann-has", "rita", str(tmp_path)))
        document = json.loads(text)
        assert document["openapi"] == "3.1.0"
        schemas = document["components"]["schemas"]
        assert schemas["Ask"]["properties"]["items"]["maxItems"] == SPEC.most_items
        assert schemas["Answered"]["properties"]["label"]["enum"] == [*TASK.names, None]
        assert document["paths"]["/v1/decide"]["post"]["security"] == [{"key": []}]

    run(tmp_path, case, keys=KEYS)
