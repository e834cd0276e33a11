"""A server on loopback with all its parts but a model: a student that answers by how red an image is.

Images are of one colour. Two classes; red/255 is the probability of the first, so that a test chooses how sure it is.
"""

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from PIL import Image

from src.cascade.policy import Policy, Reply
from src.data.images import decode, square
from src.metrics import Floats
from src.serving.access import Access
from src.serving.app import make_app
from src.serving.batcher import Batcher
from src.serving.connections import listening
from src.serving.counters import CountedLog, Counters
from src.serving.lane import Lane
from src.serving.live import Cascade
from src.serving.log import Log
from src.serving.payloads import Payloads
from src.serving.spec import ServingSpec
from src.store import DecisionLog
from src.task import TaskSpec

TASK = TaskSpec("colours", 2, "classify", {"red": "mostly red", "other": "anything else"}, {}, "", "?", "accuracy")
SPEC = ServingSpec(
    host="127.0.0.1", port=0, batch_images=32, batch_wait_ms=2, most_pending=64, most_items=16, most_body_mb=1,
    requests_per_second=None, wait_s=30, teacher_within_s=5, max_usd_per_hour=1, lease_s=60, second_opinion_share=0,
    keep_days=1, keep_gb=1, shutdown_s=5)
MOST_PIXELS = 10_000
SURE, DOUBTFUL = 255, 130  # of red
CLIENTS = {"FLYWHEEL_CLIENT_KEYS": "ann:ann-has-a-long-key,bob:bob-has-a-long-key"}
KEYS = {**CLIENTS, "FLYWHEEL_REVIEWER_KEYS": "rita:rita-has-a-long-key"}


def picture(red: int, *, size: int = 12, kind: str = "PNG", blue: int = 0) -> bytes:
    """The bytes of an image file."""
    encoded = io.BytesIO()
    Image.new("RGB", (size, size), (red, 0, blue)).save(encoded, format=kind)
    return encoded.getvalue()


def see(payload: bytes) -> NDArray[np.uint8]:
    return square(decode(payload, MOST_PIXELS), 8, sharpen=False).transpose(2, 0, 1)


def predict(images: NDArray[np.uint8]) -> Floats:
    red = images[:, 0].mean((1, 2)) / 255
    return np.stack([red, 1 - red], 1)


class Answers:
    """A teacher that answers what it is told to, after `wait`."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.reply = reply or Reply(answer="other", probability=0.99, cost_usd=0.001)
        self.asked: list[str] = []

    async def ask(self, key: str, payload: bytes, *, within_s: float) -> tuple[Reply, str]:
        self.asked.append(key)
        return self.reply, "stand-in"

    async def said(self, keys: list[str]) -> dict[str, tuple[str | None, str]]:
        return {}

    async def drain(self, seconds: float) -> None:
        pass


@dataclass
class Served:
    """What a test gets hold of."""

    url: str
    address: tuple[str, int]
    app: web.Application
    client: aiohttp.ClientSession
    cascade: Cascade
    decisions: DecisionLog
    teacher: Answers
    lane: Lane


@asynccontextmanager
async def served(folder: Path, *, keys: dict[str, str] | None = None, teacher: Answers | None = None,
                 student: Callable[[NDArray[np.uint8]], Floats] = predict, cascade: Any = None,
                 review: list[web.RouteDef] | None = None, app: dict[str, Any] | None = None,
                 head_within_s: float = 10.0, **changes: Any) -> AsyncIterator[Served]:
    """Sure from 0.9 on, no audits. `changes` are of SPEC, `app` goes to make_app; a `cascade` stands in for the real
    one."""
    spec, teacher, counters = replace(SPEC, **changes), teacher or Answers(), Counters()
    lane = Lane(lease_s=spec.lease_s)
    async with AsyncExitStack() as stack:
        decisions = DecisionLog(folder / "annotations.db")
        stack.callback(decisions.close)
        log = CountedLog(await stack.enter_async_context(Log(decisions)), counters)
        batcher = await stack.enter_async_context(
            Batcher(counters.timed(student), spec.batch_images, spec.batch_wait_ms))
        live = await stack.enter_async_context(Cascade(
            task=TASK, student="run:abc", policy=Policy(0.9, 0.5, 0.0), batcher=batcher, see=see, teacher=teacher,
            lane=lane, log=log, decisions=decisions, payloads=Payloads(folder / "served", 1, 10**9), spec=spec))
        counters.watch(live)
        made = make_app(cascade or live, decisions=decisions, spec=spec, access=Access(spec.host, keys or {}),
                        counters=counters, task=TASK, rehearsal=True, max_pixels=MOST_PIXELS, review=review or [],
                        **(app or {}))
        address = await stack.enter_async_context(listening(made, spec.host, spec.port, head_within_s=head_within_s))
        url = f"http://{address[0]}:{address[1]}"
        client = await stack.enter_async_context(aiohttp.ClientSession(url))
        yield Served(url, address, made, client, live, decisions, teacher, lane)
