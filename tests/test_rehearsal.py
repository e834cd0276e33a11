"""The stand-in teacher over HTTP: its protocol against OpenAI's own client, and its faults as seen from outside."""

import asyncio
import base64
import hashlib
import json
import math
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from omegaconf import OmegaConf
from stand_in import ERRORS, MATRIX, make_errors, make_task

from src.errors import DataError
from src.labeling.error_model import BODY_ERRORS
from src.labeling.rehearsal import ErrorModel, Rehearsal

ROOT = Path(__file__).parents[1]
MODEL = "google/gemini-2.5-flash"
JPEG = b"\xff\xd8\xff\xe0"
PNG = b"\x89PNG\r\n\x1a\n"
IMAGE = JPEG + b"an apple"


def data_url(image: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def image_part(image: bytes = IMAGE, kind: str = "jpeg") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image, kind)}}


def make_body(*parts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    shown = list(parts) or [image_part()]
    content = [{"type": "text", "text": "Which?"}, *shown]
    messages = [{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 100} | changes


Answer = tuple[int, dict[str, str], dict[str, Any]]


async def post(stand_in: Rehearsal, body: Any, headers: dict[str, str] | None = None) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | (headers or {})
    async with aiohttp.ClientSession() as session:
        url = f"{stand_in.base_url}/chat/completions"
        async with session.post(url, data=data, headers=headers) as response:
            return response.status, dict(response.headers), await response.json()


def rehearse(
    *bodies: Any, headers: dict[str, str] | None = None, errors: ErrorModel | None = None, **options: Any
) -> tuple[list[Answer], Rehearsal]:
    """The answers to some requests, put one after the other to a stand-in that was taught IMAGE."""

    async def run() -> tuple[list[Answer], Rehearsal]:
        async with Rehearsal(make_task(), errors or make_errors(), **options) as stand_in:
            stand_in.learn(hashlib.sha256(IMAGE).hexdigest(), "item", "apple")
            return [await post(stand_in, body, headers) for body in bodies], stand_in

    return asyncio.run(run())


def message_of(answer: Answer) -> dict[str, Any]:
    assert answer[0] == 200
    message: dict[str, Any] = answer[2]["choices"][0]["message"]
    return message


# The protocol


def test_openais_own_client_reads_it() -> None:
    async def run() -> None:
        async with Rehearsal(make_task(), make_errors(), api_key="secret") as stand_in:
            stand_in.learn(hashlib.sha256(IMAGE).hexdigest(), "item", "apple")
            # Proxies in the environment would be asked for loopback addresses too.
            http = openai.DefaultAsyncHttpxClient(trust_env=False)
            async with openai.AsyncOpenAI(
                base_url=stand_in.base_url, api_key="secret", max_retries=0, http_client=http
            ) as client:
                assert [model.id async for model in client.models.list()] == [MODEL]
                completion = await client.chat.completions.create(
                    **make_body(), response_format={"type": "json_object"}, extra_headers={"Idempotency-Key": "item-0"}
                )
                with pytest.raises(openai.NotFoundError, match="no-such") as caught:
                    await client.chat.completions.create(**make_body(model="no-such"))
                assert caught.value.code == "model_not_found"
                with pytest.raises(openai.BadRequestError, match="input_image"):
                    await client.chat.completions.create(
                        **make_body({"type": "input_image", "image_url": data_url(IMAGE)})
                    )
        choice, usage = completion.choices[0], completion.usage
        assert choice.finish_reason == "stop" and choice.message.refusal is None and usage is not None
        answer = json.loads(choice.message.content or "")
        assert list(answer) == ["label", "confidence", "why"]
        assert answer["label"] == "apple" and answer["confidence"] == 0.99 and len(answer["why"].split()) <= 12
        # 21 characters of prompt and one image; the answer's characters by four.
        assert usage.prompt_tokens == 6 + 258
        assert usage.completion_tokens == math.ceil(len(choice.message.content or "") / 4)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        expected = (usage.prompt_tokens * 0.30 + usage.completion_tokens * 2.50) / 1e6
        assert usage.model_dump()["cost"] == pytest.approx(expected)
        assert completion.model_dump()["provider"] == "rehearsal"
        assert [(r.question, r.item, r.status, r.kind) for r in stand_in.ledger] == [
            ("item-0", "item", 200, "label"),
            ("", "", 404, "rejected"),
            ("", "", 400, "rejected"),
        ]
        assert stand_in.ledger[0].cost_usd == pytest.approx(expected) and stand_in.ledger[1].cost_usd == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (make_body({"type": "input_image", "image_url": "x"}), "messages[1].content[1]", "'input_image'"),
        (make_body({"type": "image_url", "image_url": data_url(IMAGE)}), "messages[1].content[1].image_url", "object"),
        (make_body({"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}), None, "example.org"),
        (make_body({"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,%%%"}}), None, "base64"),
        (make_body(image_part(b"not an image")), "messages[1].content[1].image_url.url", "not the image"),
        (make_body(image_part(PNG, "jpeg")), "messages[1].content[1].image_url.url", "image/jpeg"),
        (make_body(temperature=3), "temperature", "2"),
        (make_body(temperature="0"), "temperature", "number"),
        (make_body(stream=True), "stream", "False"),
        (make_body(n=2), "n", "1"),
        (make_body(max_token=5), "max_token", "not permitted"),
        (make_body(max_tokens=0), "max_tokens", "greater"),
        (make_body(messages=[]), "messages", "at least 1"),
        (make_body(messages=[{"role": "robot", "content": "x"}]), "messages[0]", "'robot'"),
        (make_body(messages=[{"role": "user"}]), "messages[0].content", "required"),
        (make_body(messages=[{"role": "system", "content": [image_part()]}]), "messages[0].content[0].type", "'text'"),
        (make_body(response_format={"type": "json_schema"}), "response_format.json_schema", "required"),
        (make_body(response_format={"type": "yaml"}), "response_format", "'yaml'"),
        (make_body(provider={"data_colection": "deny"}), "provider.data_colection", "not permitted"),
        (b"{", None, "JSON"),
        (b"[]", None, "object"),
    ],
)
def test_a_breach_of_protocol_is_named(body: Any, param: str | None, said: str) -> None:
    ((status, _, answer),), stand_in = rehearse(body)
    error = answer["error"]
    assert status == 400 and set(error) == {"message", "type", "param", "code"}
    assert said in error["message"] and error["type"] == "invalid_request_error"
    if param:
        assert error["param"] == param and param in error["message"]
    assert [record.kind for record in stand_in.ledger] == ["rejected"]


def test_all_that_the_protocol_allows_is_taken() -> None:
    schema = {"name": "answer", "strict": True, "schema": {"type": "object"}}
    answers, _ = rehearse(
        make_body(response_format={"type": "json_schema", "json_schema": schema}, seed=1, n=1, top_p=1, stop=["\n\n"]),
        make_body(image_part() | {"image_url": {"url": data_url(IMAGE), "detail": "low"}}, stream=False, user="me"),
        make_body(provider={"require_parameters": True, "data_collection": "deny", "zdr": True,
                            "enforce_distillable_text": True, "sort": "price", "max_price": {"prompt": 1}},
                  reasoning={"max_tokens": 0, "exclude": True}, usage={"include": True}),
        make_body(response_format={"type": "text"}, max_completion_tokens=100, max_tokens=None),
    )  # fmt: skip
    assert [json.loads(message_of(answer)["content"])["label"] for answer in answers] == ["apple"] * 4


def test_content_type_key_and_address_are_checked() -> None:
    (wrong_type,), _ = rehearse(make_body(), headers={"Content-Type": "text/plain"})
    assert wrong_type[0] == 415 and "text/plain" in wrong_type[2]["error"]["message"]
    for headers in ({}, {"Authorization": "Bearer other"}):
        (refused,), _ = rehearse(make_body(), headers=headers, api_key="secret")
        assert refused[0] == 401 and refused[2]["error"]["code"] == "invalid_api_key"
    (taken,), _ = rehearse(make_body(), headers={"Authorization": "Bearer secret"}, api_key="secret")
    assert taken[0] == 200

    async def elsewhere() -> tuple[int, dict[str, Any]]:
        async with (
            Rehearsal(make_task(), make_errors()) as stand_in,
            aiohttp.ClientSession() as session,
            session.post(f"{stand_in.base_url}/responses", json={}) as response,
        ):
            return response.status, await response.json()

    status, answer = asyncio.run(elsewhere())
    assert status == 404 and "/v1/responses" in answer["error"]["message"]


def test_an_image_it_was_not_taught_gets_some_class() -> None:
    unseen = [make_body(image_part(PNG + str(i).encode(), "png")) for i in range(40)]
    text = make_body(messages=[{"role": "user", "content": "ping"}])
    answers, stand_in = rehearse(*unseen, text)
    said = Counter(json.loads(message_of(answer)["content"])["label"] for answer in answers)
    assert set(said) == set(MATRIX)
    assert [record.kind for record in stand_in.ledger] == ["unknown_item"] * 40 + ["no_item"]


def test_what_it_learns_must_be_a_class_and_a_lookalike_changes_nothing() -> None:
    async def run() -> Answer:
        async with Rehearsal(make_task(), make_errors()) as stand_in:
            with pytest.raises(DataError, match="'plum'"):
                stand_in.learn("00", "item", "plum")
            for item, truth in (("first", "pear"), ("second", "apple")):
                stand_in.learn(hashlib.sha256(IMAGE).hexdigest(), item, truth)
            return await post(stand_in, make_body())

    assert json.loads(message_of(asyncio.run(run()))["content"])["label"] == "pear"


# Faults, as they look from outside


def content_of(kind: str) -> list[dict[str, Any]]:
    """Choices of several questions that all met one content fault."""
    answers, stand_in = rehearse(*[make_body()] * 12, errors=make_errors(**{kind: 1.0}))
    assert {record.kind for record in stand_in.ledger} == {kind}
    assert all(record.status == 200 and record.cost_usd > 0 for record in stand_in.ledger), "faults cost money too"
    return [answer[2]["choices"][0] for answer in answers]


def test_dressed_json() -> None:
    for choice in content_of("fenced_json"):
        assert json.loads(choice["message"]["content"].removeprefix("```json\n").removesuffix("\n```"))
    for choice in content_of("surrounding_prose"):
        content = choice["message"]["content"]
        assert not content.startswith("{") and not content.endswith("}")
        assert json.loads(content[content.index("{") : content.rindex("}") + 1])["label"] == "apple"


def test_content_faults() -> None:
    for kind, finish in (("broken_json", "stop"), ("truncated", "length")):
        for choice in content_of(kind):
            assert choice["finish_reason"] == finish
            with pytest.raises(json.JSONDecodeError):
                json.loads(choice["message"]["content"])
    assert {choice["message"]["content"] for choice in content_of("empty")} == {""}
    strange = {json.loads(choice["message"]["content"])["label"] for choice in content_of("unknown_label")}
    assert len(strange) > 1 and {make_task().map_label(label) for label in strange} == {None}
    messages = [choice["message"] for choice in content_of("refusal")]
    assert {bool(message["refusal"]) for message in messages} == {True, False}, "both ways of refusing occur"
    assert all(bool(message["refusal"]) != bool(message["content"]) for message in messages)


def test_the_request_may_set_a_limit_that_truncates() -> None:
    (answer,), stand_in = rehearse(make_body(max_tokens=5))
    assert answer[2]["choices"][0]["finish_reason"] == "length" and answer[2]["usage"]["completion_tokens"] == 5
    assert stand_in.ledger[0].kind == "truncated"


def test_errors_inside_a_200_have_codes_of_several_types() -> None:
    answers, stand_in = rehearse(*[make_body()] * 40, errors=make_errors(error_in_200=1.0))
    assert {status for status, _, _ in answers} == {200} and all("choices" not in body for _, _, body in answers)
    codes = {body["error"]["code"] for _, _, body in answers}
    assert codes == {code for code, _ in BODY_ERRORS} and {type(code) for code in codes} == {int, str}
    assert {(record.kind, record.cost_usd) for record in stand_in.ledger} == {("error_in_200", 0.0)}


def test_overload() -> None:
    (answer,), stand_in = rehearse(make_body(), errors=make_errors(overloaded=1.0))
    assert answer[0] == 503 and answer[2]["error"]["message"] and stand_in.ledger[0].kind == "overloaded"


def test_bursts_come_on_time_and_carry_retry_after() -> None:
    errors = make_errors(burst_every=3, burst_length=2, retry_after_s=7)
    answers, stand_in = rehearse(*[make_body()] * 10, errors=errors)
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429] * 2
    assert {headers.get("Retry-After") for status, headers, _ in answers if status == 429} == {"7"}
    assert all("Retry-After" not in headers for status, headers, _ in answers if status == 200)
    assert Counter(record.kind for record in stand_in.ledger) == {"label": 6, "rate_limit": 4}


def test_a_hang_is_silence_and_then_the_answer() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    (answer,), stand_in = rehearse(make_body(), errors=make_errors(hang=1.0, hang_s=60), sleep=sleep)
    assert slept == [60] and json.loads(message_of(answer)["content"])["label"] == "apple"
    assert stand_in.ledger[0].kind == "hang"

    async def run_out_of_patience() -> None:
        async with Rehearsal(make_task(), make_errors(hang=1.0, hang_s=60)) as stand_in:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(post(stand_in, make_body()), timeout=0.1)

    asyncio.run(asyncio.wait_for(run_out_of_patience(), timeout=5))


# One question, many times; many questions at once


def test_a_question_is_known_by_its_header_or_else_by_its_count() -> None:
    errors = make_errors("measured", latency_ms_median=0, burst_every=0, error_rate=0.5, shared_errors=0)
    unnamed, by_count = rehearse(*[make_body()] * 30, errors=errors)
    named, by_header = rehearse(*[make_body()] * 30, errors=errors, headers={"Idempotency-Key": "item-0"})
    assert len({record.question for record in by_count.ledger}) > 25
    assert {record.question for record in by_header.ledger} == {"item-0"}

    def labels(answers: list[Answer], stand_in: Rehearsal) -> set[str]:
        good = [a for a, record in zip(answers, stand_in.ledger, strict=True) if record.kind == "label"]
        return {json.loads(message_of(answer)["content"])["label"] for answer in good}

    assert len(labels(named, by_header)) == 1 < len(labels(unnamed, by_count))


def test_the_order_of_arrival_changes_no_answer() -> None:
    images = [JPEG + str(i).encode() for i in range(60)]

    async def run(order: list[int]) -> dict[str, str]:
        errors = make_errors("measured", latency_ms_median=1, burst_every=0, overloaded=0.1)
        async with Rehearsal(make_task(), errors) as stand_in:
            for i, image in enumerate(images):
                stand_in.learn(hashlib.sha256(image).hexdigest(), str(i), "pear")
            asked = [post(stand_in, make_body(image_part(images[i])), {"Idempotency-Key": f"{i}-0"}) for i in order]
            answers = await asyncio.gather(*asked)
        bodies = [{key: value for key, value in body.items() if key != "created"} for _, _, body in answers]
        return {str(i): json.dumps(body) for i, body in zip(order, bodies, strict=True)}

    forwards, backwards = asyncio.run(run(list(range(60)))), asyncio.run(run(list(range(59, -1, -1))))
    assert forwards == backwards


def test_it_listens_on_loopback_alone() -> None:
    async def run() -> None:
        async with Rehearsal(make_task(), make_errors()) as stand_in:
            host, port = stand_in.base_url.removeprefix("http://").removesuffix("/v1").split(":")
            assert host == "127.0.0.1"
            socket.create_connection((host, int(port)), timeout=1).close()
            # A server on every address would answer on this one as well.
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.2", int(port)), timeout=0.5)

    asyncio.run(run())


def test_a_ledger_file_outlives_its_process(tmp_path: Path) -> None:
    truths, ledger, task = tmp_path / "truths.json", tmp_path / "ledger.jsonl", tmp_path / "task.yaml"
    truths.write_text(json.dumps({hashlib.sha256(IMAGE).hexdigest(): ["item", "apple"]}))
    OmegaConf.save(OmegaConf.structured(make_task()), task)
    files = {"task": task, "errors": ERRORS / "none.yaml", "truths": truths, "ledger": ledger}
    arguments = [f"--{name}={path}" for name, path in files.items()]
    command = [sys.executable, "-m", "src.labeling.rehearsal", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()

            async def ask() -> int:
                async with aiohttp.ClientSession() as session:
                    headers = {"Idempotency-Key": "item-0"}
                    async with session.post(f"{address}/chat/completions", json=make_body(), headers=headers) as reply:
                        return reply.status

            assert asyncio.run(ask()) == 200
        finally:
            process.kill()
    (record,) = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert record.pop("cost_usd") > 0
    assert record == {"question": "item-0", "item": "item", "status": 200, "kind": "label"}
