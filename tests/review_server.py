"""The review page on a server of its own: drawn pictures in a lane, a store in a folder, and faults on demand.

By hand: `python tests/review_server.py`, then open the address it prints. Reviewers say their names, or with `keys` the
keys below.
"""

import asyncio
import hashlib
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1]))

from src.cascade.policy import Opinion
from src.data.rendered import draw
from src.errors import StoreError
from src.serving.connections import WHO
from src.serving.lane import Lane, Waiting
from src.serving.review import routes, take_up
from src.store import Store
from src.task import Annotation, TaskSpec

CONF = Path(__file__).parents[1] / "conf"
KEYS = {"ada-0123456789abcdef": "ada", "ben-0123456789abcdef": "ben"}
REASONS = ["teacher_unsure", "teacher_unsure", "over_budget", "disagreement", "teacher_unsure", "teacher_failed"]
WHYS = {"apple": "round, red skin, dimple at the stem", "mushroom": "pale cap on a stalk",
        "orange": "round citrus with pitted peel", "pear": "narrows towards the stem, yellow-green",
        "sweet_pepper": "glossy and lobed"}
MANY = TaskSpec(
    name="animals", version=1, kind="classify", aliases={}, system_prompt="", user_prompt="", metric="accuracy",
    classes={name: f"any kind of {name}" for name in
             ("ant", "bear", "cat", "cow", "crab", "deer", "dog", "duck", "eel", "fox", "frog", "goat", "hare", "sheep",
              "shark", "swan", "urchin", "wolf")},
)


def fruit() -> TaskSpec:
    return TaskSpec(**yaml.safe_load((CONF / "task/cifar5.yaml").read_text()))


class FlakyStore(Store):
    """A store that is locked while `locked` is true."""

    locked = False

    def add(self, batch: Sequence[Annotation]) -> None:
        if self.locked:
            raise StoreError("The annotation store /somewhere/annotations.db could not be written: database is locked.")
        super().add(batch)


@dataclass
class Pictures:
    """Payloads by key, in one folder."""

    paths: dict[str, Path] = field(default_factory=dict)

    def find(self, key: str) -> Path | None:
        path = self.paths.get(key)
        return path if path and path.exists() else None


@dataclass
class Told:
    """What the clients were told: by key, the labels (None: taken back) and by whom, in order."""

    words: list[tuple[str, str | None, str]] = field(default_factory=list)
    store: Store | None = None
    before_store: list[str] = field(default_factory=list)  # keys that were told before they were stored
    fails: bool = False

    async def __call__(self, key: str, label: str | None, annotator: str) -> None:
        if self.fails:
            raise StoreError("The decision log /somewhere/annotations.db could not be written: disk is full.")
        if self.store and not any(a.label == label and a.annotator == annotator for a in self.store.read(items=[key])):
            self.before_store.append(key)
        self.words.append((key, label, annotator))


@dataclass
class Desk:
    """Everything behind the page."""

    lane: Lane
    task: TaskSpec
    pictures: Pictures
    store: FlakyStore
    told: Told
    keys: bool = False
    rehearsal: bool = True
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def app(self) -> web.Application:
        @web.middleware
        async def who(request: web.Request, handler: Any) -> web.StreamResponse:
            self.requests.append(f"{request.method} {request.path_qs}")
            if request.path.startswith("/review/api/"):
                if self.keys:
                    found = KEYS.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
                    if found is None:
                        return web.json_response({"error": {"code": "key", "message": "That key is not known here."}},
                                                 status=401)
                else:
                    found = request.headers.get("X-Reviewer", "")
                request[WHO] = found
            return await handler(request)

        app = web.Application(middlewares=[who])
        app.add_routes(routes(self.lane, self.task, self.pictures, self.store, self.told, keys=self.keys,
                              rehearsal=self.rehearsal, max_pixels=10_000_000))

        async def begin(_: web.Application) -> None:
            await take_up(self.lane, self.task, self.store, self.told)

        app.on_startup.append(begin)
        return app


def make_desk(home: Path, *, count: int = 12, task: TaskSpec | None = None, share: float = 0.0, lease_s: float = 120,
              keys: bool = False, rehearsal: bool = True, seed: int = 7) -> Desk:
    """A lane of `count` drawn pictures, of which some reasons are commoner than others."""
    task, rng, now = task or fruit(), np.random.default_rng(seed), datetime.now(UTC)
    lane = Lane(lease_s=lease_s, second_opinion_share=share, seed=seed)
    store = FlakyStore(home / "annotations.db", lock_wait_s=2)
    desk = Desk(lane, task, Pictures(), store, Told(store=store), keys, rehearsal)
    for number, path in enumerate(drawings(home / "pictures", count)):
        waiting = made_up(path, number, task, rng, now - timedelta(seconds=17 * (count - number)))
        desk.pictures.paths[waiting.key] = path
        lane.add(waiting)
    return desk


def drawings(into: Path, count: int) -> list[Path]:
    if count == 0:
        return []
    shapes: Mapping[str, Any] = yaml.safe_load((CONF / "data/source/rendered.yaml").read_text())["shapes"]
    draw(into, train_per_class=-(-count // len(shapes)), test_per_class=0, seed=3, shapes=shapes)
    found = sorted(into.rglob("*.png"), key=lambda path: path.stem[-5:] + path.stem)
    return found[:count]


def made_up(path: Path, number: int, task: TaskSpec, rng: np.random.Generator, since: datetime) -> Waiting:
    """Opinions as the cascade would bring them."""
    reason = REASONS[number % len(REASONS)]
    sharp = rng.dirichlet(np.full(len(task.names), 0.6))
    probabilities = tuple(float(p) for p in sharp)
    student = Opinion.of(probabilities, task.names)
    other = task.names[int(rng.integers(len(task.names)))]
    answers = reason in ("teacher_unsure", "disagreement")
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    escalated = "audit" if reason == "disagreement" else "doubtful"
    return Waiting(key, reason, escalated, student, other if answers else None,
                   WHYS.get(other, "it looks like one") if answers else "", since,
                   float(rng.uniform(0.4, 0.9)) if answers and number % 4 else None, probabilities)


@contextmanager
def served(desk: Desk) -> Iterator[Desk]:
    """The desk on a loopback port, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(desk.app(), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        desk.url = f"http://127.0.0.1:{runner.addresses[0][1]}/review"
        return runner

    try:
        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        yield desk
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
        desk.store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home, served(make_desk(Path(home), count=40, share=0.3)) as shown:
        sys.stdout.write(f"{shown.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
