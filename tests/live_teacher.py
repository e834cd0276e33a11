"""A chat-completions server about real pictures that does as a test tells it, goes away and comes back; and a lane
that asks it."""

import hashlib
import io
import json
import time
from typing import Any

from aiohttp import web
from PIL import Image
from scripted_server import HOW, PROMPT, TASK, Asked, Says, Server, make_spec, make_teacher

from src.serving.teacher import TeacherLane
from src.store import Store
from src.task import Annotation


def picture(n: int) -> bytes:
    """The n-th picture, whose truth is that of `Asked.truth`."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (n % 256, 255 - n % 256, n // 256)).save(file, "PNG")
    return file.getvalue()


def key_of(n: int) -> str:
    return hashlib.sha256(picture(n)).hexdigest()


NUMBERS = {key_of(n)[:32]: n for n in range(400)}


class Llm(Server):
    """As `Server`, at one `port` if need be."""

    def __init__(self, says: Says, port: int = 0) -> None:
        super().__init__(says)
        self._port = port

    @property
    def port(self) -> int:
        return int(self.runner.addresses[0][1])

    async def __aenter__(self) -> "Llm":
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._chat)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self._port, reuse_address=True).start()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        question = "-".join(request.headers["Idempotency-Key"].split("-")[:2])
        item = question.split("-")[0]
        assert request.transport
        asked = Asked(item, NUMBERS[item], question, 0, len(self.asked), time.monotonic(), dict(request.headers), body,
                      request.transport.abort, request.transport.write)
        self.asked.append(asked)
        self.here += 1
        try:
            return await self.says(asked)
        finally:
            self.here -= 1


def make_lane(llm: Server | str, store: Store, *, teacher: dict[str, Any] | None = None,
              spec: dict[str, Any] | None = None, **changes: Any) -> TeacherLane:
    base_url = llm if isinstance(llm, str) else llm.base_url
    fields: dict[str, Any] = {
        "task": TASK, "teacher": make_teacher(base_url, **(teacher or {})), "how": HOW, "store": store, "gold": {},
        "spec": make_spec(**(spec or {})), "max_usd_per_hour": 100.0, "max_pixels": 10**6,
    }
    return TeacherLane(**(fields | changes))


def said(annotator: str, n: int, label: str | None, **values: Any) -> Annotation:
    return Annotation(key_of(n), annotator, PROMPT.hash, TASK.name, label=label, **values)
