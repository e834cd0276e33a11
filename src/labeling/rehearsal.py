"""A stand-in for a paid teacher: a chat-completions server on loopback that knows the truth and errs on purpose.

`Rehearsal` speaks the protocol strictly and serves what `error_model` draws; only the bursts of 429 go by the order of
arrival. It says `rehearsal` wherever a provider would be named. Knows nothing about our client, its prompts or retries.
"""

import argparse
import asyncio
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TextIO, cast

from aiohttp import web
from omegaconf import OmegaConf

from src.console import say
from src.errors import DataError
from src.labeling.error_model import ErrorModel, Reply, StandInTeacher
from src.labeling.protocol import ChatRequest, Violation, read_request
from src.task import TaskSpec

__all__ = ["ErrorModel", "Record", "Rehearsal"]

TOKENS_PER_IMAGE = 258  # what Gemini counts for an image of up to 384x384 pixels
CHARACTERS_PER_TOKEN = 4

WRONG_KEY = Violation(401, "Incorrect API key provided.", None, "invalid_api_key", "authentication_error")
TOO_MANY = Violation(429, "Rate limit exceeded.", None, "rate_limit_exceeded", "rate_limit_error")
OVERLOADED = Violation(503, "The model is overloaded.", None, 503, "server_error")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Record:
    """One request as it was answered.

    `kind` is that of the `Reply`; "unknown_item" or "no_item" where any class was named; "rate_limit" in a burst;
    "rejected" for what broke the protocol. `item` is empty, or the sha256 of what was shown, where nothing was learned
    of it.
    """

    question: str
    item: str
    status: int
    kind: str
    cost_usd: float


class Rehearsal:
    """The stand-in teacher's server, running in the caller's event loop between `async with`'s two ends.

    Prices are US dollars per million tokens. With an `api_key`, requests must carry it. Port 0 lets the kernel choose
    one. `ledger` holds one record for each completion request, written at the moment its answer is sent; a file
    given as `ledger` gets them too, as JSON lines flushed one by one, so that they outlive whoever is killed.
    A question is known by its `Idempotency-Key` header; without one, every answer to an item is a new question.
    """

    def __init__(
        self,
        task: TaskSpec,
        errors: ErrorModel,
        model: str = "google/gemini-2.5-flash",
        price_in: float = 0.30,
        price_out: float = 2.50,
        *,
        api_key: str | None = None,
        port: int = 0,
        ledger: Path | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.teacher = StandInTeacher(task, errors)
        self.model, self.price_in, self.price_out = model, price_in, price_out
        self.ledger: list[Record] = []
        self._api_key, self._port, self._path = api_key, port, ledger
        self._file: TextIO | None = None
        self._sleep, self._clock = sleep, clock
        self._truths: dict[str, tuple[str, str]] = {}
        self._arrived = 0
        self._answered: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8") if self._path else None
        app = web.Application(middlewares=[_errors_in_json], client_max_size=20 * 2**20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        # Whoever still hangs when the rehearsal ends is cut off, not waited for.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        # Loopback alone: it answers with the truth, and takes any key.
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        if self._file:
            self._file.close()

    @property
    def base_url(self) -> str:
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/v1"

    def learn(self, shown_hash: str, item: str, truth: str) -> None:
        """Tell what will be shown: sha256 (hex) of image or text, the item's key, and its true class.

        Of items that look exactly alike the first one stands, as one picture gets one answer.
        """
        if truth not in self.teacher.task.names:
            names = ", ".join(self.teacher.task.names)
            raise DataError(f"item {item} cannot be rehearsed: its truth {truth!r} is not one of {names}")
        self._truths.setdefault(shown_hash, (item, truth))

    async def _chat(self, request: web.Request) -> web.Response:
        key = request.headers.get("Idempotency-Key", "")
        refusal = self._unwelcome(request)
        chat = refusal or read_request(await request.read())
        if isinstance(chat, ChatRequest) and chat.model != self.model:
            chat = Violation(404, f"The model {chat.model!r} does not exist here.", "model", "model_not_found")
        if isinstance(chat, Violation):
            self._note(key, "", chat.status, "rejected")
            return web.json_response(chat.body, status=chat.status)

        # Several images in one question: the last is the one asked about, those before it are examples.
        shown = chat.images[-1] if chat.images else chat.text
        item, truth = self._truths.get(shown, (shown, None))
        if self._in_burst():
            self._note(key, item, 429, "rate_limit")
            # Whole seconds are the standard; fractions, which some servers send too, let tests be quick.
            wait = {"Retry-After": f"{self.teacher.errors.retry_after_s:g}"}
            return web.json_response(TOO_MANY.body, status=429, headers=wait)

        question = key or f"{item}-{self._answered[item]}"
        asked, self._asked[question] = self._asked[question], self._asked[question] + 1
        reply = self.teacher.reply(item, truth, question, asked)
        if reply.kind not in ("overloaded", "error_in_200"):
            self._answered[item] += 1
        if reply.delay_s > 0:
            await self._sleep(reply.delay_s)
        if reply.kind == "overloaded":
            self._note(question, item, 503, reply.kind)
            return web.json_response(OVERLOADED.body, status=503)
        if reply.kind == "error_in_200":
            self._note(question, item, 200, reply.kind)
            return web.json_response(self.teacher.body_error(item, question, asked))
        reply = _cut(reply, chat.limit)
        kind = reply.kind if truth else "unknown_item" if shown else "no_item"
        completion = self._completion(chat, reply, f"{question}/{asked}")
        self._note(question, item, 200, kind, completion["usage"]["cost"])
        return web.json_response(completion)

    def _completion(self, chat: ChatRequest, reply: Reply, name: str) -> dict[str, Any]:
        """The chat.completion object, with the cost in US dollars where OpenRouter puts it."""
        tokens_in = math.ceil(chat.characters / CHARACTERS_PER_TOKEN) + TOKENS_PER_IMAGE * len(chat.images)
        tokens_out = math.ceil(len(reply.content or reply.refusal or "") / CHARACTERS_PER_TOKEN)
        message = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
        return {
            "id": f"gen-rehearsal-{hashlib.sha256(name.encode()).hexdigest()[:16]}",
            "object": "chat.completion",
            "created": int(self._clock()),
            "model": self.model,
            "provider": "rehearsal",
            "choices": [{"index": 0, "finish_reason": reply.finish_reason, "message": message}],
            "usage": {
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "total_tokens": tokens_in + tokens_out,
                "cost": (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6,
            },
        }

    async def _models(self, request: web.Request) -> web.Response:
        if self._wrong_key(request):
            return web.json_response(WRONG_KEY.body, status=WRONG_KEY.status)
        pricing = {"prompt": f"{self.price_in / 1e6:.12f}", "completion": f"{self.price_out / 1e6:.12f}"}
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "rehearsal", "pricing": pricing}
        model["architecture"] = {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
        return web.json_response({"object": "list", "data": [model]})

    def _unwelcome(self, request: web.Request) -> Violation | None:
        if self._wrong_key(request):
            return WRONG_KEY
        if request.content_type != "application/json":
            got = request.headers.get("Content-Type", "none")
            return Violation(415, f"Content-Type must be application/json, not {got}.", None, "unsupported_media_type")
        return None

    def _wrong_key(self, request: web.Request) -> bool:
        return self._api_key is not None and request.headers.get("Authorization") != f"Bearer {self._api_key}"

    def _in_burst(self) -> bool:
        errors, place = self.teacher.errors, self._arrived
        self._arrived += 1
        return errors.burst_every > 0 and place % (errors.burst_every + errors.burst_length) >= errors.burst_every

    def _note(self, question: str, item: str, status: int, kind: str, cost_usd: float = 0.0) -> None:
        record = Record(question, item, status, kind, cost_usd)
        self.ledger.append(record)
        if self._file:
            self._file.write(json.dumps(asdict(record)) + "\n")
            self._file.flush()


@web.middleware
async def _errors_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An unknown address, a wrong method or too long a body, in the shape that clients of this protocol read."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        violation = Violation(error.status, f"{request.method} {request.path}: {error.reason}", None, error.status)
        return web.json_response(violation.body, status=error.status)


def _cut(reply: Reply, limit: int | None) -> Reply:
    """The reply as far as `limit` tokens reach, whose cut is a truncation like any other."""
    if limit is None or len(reply.content) <= limit * CHARACTERS_PER_TOKEN:
        return reply
    content = reply.content[: limit * CHARACTERS_PER_TOKEN]
    return replace(reply, kind="truncated", content=content, finish_reason="length")


async def serve(stand_in: Rehearsal) -> None:
    """Print the address as the first line and answer until the process is ended."""
    async with stand_in:
        say(stand_in.base_url)
        await asyncio.Event().wait()


def _read(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path), resolve=True))


def main() -> None:
    """Rehearse in a process of its own, for tests that kill the client: files as arguments, nothing else to choose."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("task", "errors", "truths", "ledger"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    task = TaskSpec(**_read(args.task))
    errors = ErrorModel(**_read(args.errors))
    stand_in = Rehearsal(task, errors, port=args.port, ledger=args.ledger)
    for shown_hash, (item, truth) in json.loads(args.truths.read_text()).items():
        stand_in.learn(shown_hash, item, truth)
    asyncio.run(serve(stand_in))


if __name__ == "__main__":
    main()
