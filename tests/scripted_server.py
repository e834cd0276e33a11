"""A server that does as a test tells it, and a labeler set up small and quick to ask it."""

import asyncio
import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from src.data.spec import Shown
from src.labeling.ask import Survey
from src.labeling.budget import Budget
from src.labeling.client import Client
from src.labeling.labeler import Labeler, Tally
from src.labeling.plan import Plan, make_plan
from src.labeling.prompt import render
from src.labeling.rehearsal import Rehearsal
from src.labeling.spec import LabelerSpec
from src.labeling.stop import Stop
from src.labeling.teacher import Price, Teacher, Terms
from src.labeling.writer import Writer
from src.store import Store
from src.task import Item, TaskSpec

TASK = TaskSpec(
    name="fruit", version=1, kind="classify", classes={"apple": "", "pear": ""}, aliases={"pears": "pear"},
    system_prompt="JSON.", user_prompt="One of {{ classes | tojson }}?", metric="accuracy",
)
HOW = Shown(size=16, sharpen=False, jpeg_quality=90)
PROMPT = render(TASK, HOW)
JPEG = b"\xff\xd8\xff\xe0"


# A server that does as it is told


def key(n: int) -> str:
    """The n-th item's key, which differs from the others' within its first characters as a digest does."""
    return f"{n:032d}" + "f" * 32


def number(item: str) -> int:
    return int(item[:32])


@dataclass
class Asked:
    """One request as the server saw it: about the `n`-th item, for the `nth` time (from 0), as number `place` of all.
    `drop` cuts the connection, `write` sends bytes as they are."""

    item: str
    n: int
    question: str
    nth: int
    place: int
    at: float
    headers: dict[str, str]
    body: dict[str, Any]
    drop: Callable[[], None]
    write: Callable[[bytes], None]

    def truth(self) -> str:
        return TASK.names[self.n % 2]


    @property
    def model(self) -> str:
        return str(self.body["model"])


Says = Callable[[Asked], Awaitable[web.StreamResponse]]


class Server:
    """Chat completions on loopback. `billed` is what it charged in US dollars, `here` how many it serves just now,
    `peak` how many it served at once."""

    def __init__(self, says: Says) -> None:
        self.says = says
        self.asked: list[Asked] = []
        self.billed: list[float] = []
        self.here, self.peak = 0, 0
        self._times: Counter[tuple[str, str]] = Counter()

    async def __aenter__(self) -> "Server":
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._chat)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        part = body["messages"][1]["content"][1]
        if part["type"] == "text":
            item = part["text"]
        else:
            item = base64.b64decode(part["image_url"]["url"].partition(",")[2]).removeprefix(JPEG).decode()
        question = "-".join(request.headers["Idempotency-Key"].split("-")[:2])  # item and pass
        nth = self._times[body["model"], question]
        self._times[body["model"], question] += 1
        assert request.transport
        asked = Asked(item, number(item), question, nth, len(self.asked), time.monotonic(), dict(request.headers), body,
                      request.transport.abort, request.transport.write)
        self.asked.append(asked)
        self.here += 1
        self.peak = max(self.peak, self.here)
        try:
            return await self.says(asked)
        finally:
            self.here -= 1

    def tries(self) -> Counter[int]:
        """How often each item was asked about, passes together."""
        return Counter(asked.n for asked in self.asked)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server in a thread with a loop of its own, for labelers that bring their own loop or process."""
    started = threading.Event()
    end: list[Callable[[], object]] = []

    async def serve() -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        end.append(lambda: loop.call_soon_threadsafe(over.set))
        async with server:
            started.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(60)
    try:
        yield server
    finally:
        end[0]()
        thread.join(60)


def answer(asked: Asked, *, label: str | None = None, cost: float | None = 0.001, **changes: Any) -> web.Response:
    """A good answer, or one with other `content`."""
    content = changes.pop("content", json.dumps({"label": label or asked.truth(), "confidence": 0.9, "why": "because"}))
    usage = None if cost is None else {"prompt_tokens": 100, "completion_tokens": 10, "cost": cost}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return web.json_response({"model": "served", "provider": "us", "choices": [choice], "usage": usage} | changes)


def refuse(status: int, code: object = None, message: str = "no", **headers: str) -> web.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response({"error": {"code": code, "message": message}}, status=status, headers=named)


async def good(asked: Asked) -> web.Response:
    return answer(asked)


# The labeler, set up small and quick


def make_teacher(base_url: str, **changes: Any) -> Teacher:
    fields: dict[str, Any] = {
        "base_url": base_url, "model": "m", "key_env": None, "temperature": 0.0, "max_tokens": 100, "timeout_s": 5.0,
        "json_mode": "json_object", "image_tokens": 100, "sampling": {}, "routing": {},
        "price": Price(input_usd=0.0, output_usd=0.0, source="", date=""), "terms": Terms("unknown", "", "2026-11-22"),
    }
    return Teacher(**(fields | changes))


def make_spec(**changes: Any) -> LabelerSpec:
    fields: dict[str, Any] = {
        "max_items": 100, "passes": 1, "concurrency": 4, "max_attempts": 4, "max_content_attempts": 2,
        "backoff_s": 0.001, "max_backoff_s": 0.01, "max_cost_usd": 100.0, "requests_per_minute": None,
        "tokens_per_minute": None, "adaptive": False, "preflight": False, "pilot": 0, "dry_run": False,
        "retry_failed": False,
    }
    return LabelerSpec(**(fields | changes))


def make_items(count: int) -> list[Item]:
    return [Item(key(n), Path("unused"), f"{n}.png", truth=TASK.names[n % 2]) for n in range(count)]


def make_texts(count: int, first: int = 0) -> list[Item]:
    return [Item(key(n), key(n), str(n), truth=TASK.names[n % 2]) for n in range(first, first + count)]


def make_survey(base_url: str, store: Store, *, job: str = "", seed: int = 0, teacher: dict[str, Any] | None = None,
                models: tuple[str, ...] = ("m",), **changes: Any) -> Survey:
    """What a job asks texts by."""
    teachers = [make_teacher(base_url, model=model, **(teacher or {})) for model in models]
    return Survey(task=TASK, teachers=teachers, arbiter=None, how=None, spec=make_spec(**changes), store=store,
                  rehearsal=None, max_pixels=1, seed=seed, job=job)


def price(usd_per_question: float) -> dict[str, Any]:
    """A price table by which the worst case of one question is this."""
    return {"price": Price(input_usd=0.0, output_usd=usd_per_question * 1e6 / 100, source="", date="")}


def plan_for(items: list[Item], store: Store, *, task: TaskSpec = TASK, teacher: Teacher | None = None,
             spec: LabelerSpec | None = None) -> Plan:
    spec = spec or make_spec()
    return make_plan(items, store.answered("t", PROMPT.hash), task=task, prompt=PROMPT,
                     teacher=teacher or make_teacher("http://x"), passes=range(spec.passes),
                     retry_failed=spec.retry_failed)


def shown(item: Item) -> tuple[bytes, str]:
    image = JPEG + item.key.encode()
    return image, hashlib.sha256(image).hexdigest()


def label(server: Server | Rehearsal | str, items: list[Item] | int, store: Store, *,
          teacher: dict[str, Any] | None = None, updated: Callable[[int], None] = lambda done: None,
          show: Callable[[Item], tuple[bytes, str]] | None = None, **changes: Any) -> Tally:
    """Run a labeler over what is still to be asked, by a server that lives as long or by what is at an address."""
    items = make_items(items) if isinstance(items, int) else items
    spec = make_spec(**changes)

    show = show or shown

    async def run() -> Tally:
        async with contextlib.AsyncExitStack() as stack:
            if not isinstance(server, str):
                await stack.enter_async_context(server)
            if isinstance(server, Rehearsal):
                for item in items:
                    server.learn(show(item)[1], item.key, item.truth or "")
            who = make_teacher(server if isinstance(server, str) else server.base_url, **(teacher or {}))
            plan = plan_for(items, store, teacher=who, spec=spec)
            stop = Stop()
            labeler = Labeler(task=TASK, teacher=who, annotator="t", prompt=PROMPT, spec=spec, store=store, show=show,
                              budget=Budget(spec.max_cost_usd), seed=0, stop=stop)
            with stop.signals():
                async with Writer(store) as writer, Client(who, PROMPT, TASK, connections=spec.concurrency) as client:
                    await labeler.run(iter(plan), client, writer, usual_tokens=100, dearest_usd=plan.costs.dearest,
                                      update=lambda tally: updated(tally.done))
            return labeler.tally

    return asyncio.run(run())


def free_address() -> str:
    """A loopback address at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
