"""Ways to put the same questions to the same server: the labeler, a bare aiohttp loop, the `openai` client.

Each asks with as many workers as it is told to and says how long it took and what it cost in CPU time. The labeler
stores every answer; the others throw them away.
"""

import asyncio
import contextlib
import gc
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import aiohttp

from src.errors import StoreError
from src.labeling.ask import set_aside
from src.labeling.budget import Budget
from src.labeling.client import Client
from src.labeling.labeler import Labeler, Tally
from src.labeling.plan import make_plan, prompt_tokens
from src.labeling.prompt import Prompt
from src.labeling.spec import LabelerSpec
from src.labeling.stop import Stop
from src.labeling.teacher import Teacher
from src.labeling.writer import Writer
from src.store import Store
from src.task import Item, TaskSpec

OFFICIAL = ("model", "messages", "temperature", "max_tokens", "response_format")  # fields that the client knows


@dataclass(frozen=True)
class Questions:
    """`count` questions, one for each item; what is shown of them lies ready and repeats itself."""

    task: TaskSpec
    prompt: Prompt
    shown: Sequence[bytes | str]
    count: int

    @property
    def items(self) -> list[Item]:
        return [Item(hashlib.sha256(str(n).encode()).hexdigest(), "", str(n)) for n in range(self.count)]

    def show(self, item: Item) -> tuple[bytes | str, str]:
        seen = self.shown[int(item.name) % len(self.shown)]
        return seen, hashlib.sha256(seen if isinstance(seen, bytes) else seen.encode()).hexdigest()

    def bodies(self, teacher: Teacher) -> list[dict[str, Any]]:
        """What the labeler sends; they repeat themselves as what is shown does."""
        client = Client(teacher, self.prompt, self.task, connections=1)
        return [client.body(shown) for shown in self.shown]


@dataclass(frozen=True)
class Timing:
    """Seconds from the first question to the end of the last, CPU seconds (user and system) of this process meanwhile,
    and when each question was done, in seconds."""

    seconds: float
    cpu_s: float
    done_at: list[float]

    @property
    def rate(self) -> float:
        """Questions a second, from the first to the last."""
        return len(self.done_at) / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Of one question."""
        return 1e3 * self.cpu_s / len(self.done_at)

    def steady_rate(self, wave: int) -> float:
        """Questions a second without the first and the last `wave` of them, by when each was done."""
        times = sorted(self.done_at)
        return (len(times) - 2 * wave) / (times[-wave - 1] - times[wave - 1])


class Watch:
    """Started and stopped around the asking alone: sessions, stores and plans are made before."""

    def __init__(self) -> None:
        self.done_at: list[float] = []
        self.note: Callable[[], None] = lambda: self.done_at.append(time.perf_counter())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        began, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.timing = Timing(time.perf_counter() - began, time.process_time() - cpu_s, self.done_at)


def labeler(questions: Questions, teacher: Teacher, spec: LabelerSpec, folder: Path, *,
            most_s: float | None = None) -> Timing:
    """Through the project's own labeler, into a new store in `folder`; a question is done when its answer is stored.

    Ends after `most_s`. Raises StoreError where an answer is missing in the store.
    """
    store = Store(folder / f"{time.monotonic_ns()}.db")
    plan = make_plan(questions.items, (), task=questions.task, teacher=teacher, prompt=questions.prompt, passes=[0],
                     retry_failed=False)

    async def ask(watch: Watch) -> Tally:
        stop = Stop()
        asking = Labeler(task=questions.task, teacher=teacher, annotator=teacher.annotator, prompt=questions.prompt,
                         spec=spec, store=store, show=questions.show, budget=Budget(spec.max_cost_usd), seed=0,
                         stop=stop)
        if most_s:
            asyncio.get_running_loop().call_later(most_s, stop.end, KeyboardInterrupt())
        client = Client(teacher, questions.prompt, questions.task, connections=spec.concurrency)
        async with client, Writer(store) as writer:
            with set_aside(), watch.running():
                return await asking.run(
                    iter(plan), client, writer, dearest_usd=0.0, update=lambda tally: watch.note(),
                    usual_tokens=prompt_tokens(plan.items, teacher, questions.prompt)[0])

    try:
        timing, tally = _timed(ask)
        stored = sum(row.label is not None for row in store.answered(teacher.annotator, questions.prompt.hash))
    finally:
        store.close()
    if stored != tally.answered or (not most_s and stored != questions.count):
        raise StoreError(f"{questions.count} questions were asked, {tally.answered} counted as answered and {stored} "
                         "answers are stored.")
    return timing


def bare(questions: Questions, teacher: Teacher, workers: int, *, parsed: bool = False) -> Timing:
    """As aiohttp alone does it: bodies written beforehand, replies read and thrown away; or `parsed`, with each body
    written as JSON when it is sent and each reply read as JSON, as one would do it by hand."""
    bodies = islice(cycle(questions.bodies(teacher)), questions.count)
    written = islice(cycle([json.dumps(body).encode() for body in questions.bodies(teacher)]), questions.count)
    address = f"{teacher.base_url}/chat/completions"
    headers = {"Content-Type": "application/json"}

    async def ask(watch: Watch) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=workers), headers=headers) as session:

            async def work() -> None:
                for body in written:
                    async with session.post(address, data=body, raise_for_status=True) as response:
                        await response.read()
                    watch.note()

            async def work_by_hand() -> None:
                for body in bodies:
                    async with session.post(address, json=body, raise_for_status=True) as response:
                        json.loads((await response.json())["choices"][0]["message"]["content"])
                    watch.note()

            with watch.running():
                await asyncio.gather(*(work_by_hand() if parsed else work() for _ in range(workers)))

    return _timed(ask)[0]


def openai_client(questions: Questions, teacher: Teacher, workers: int) -> Timing:
    """As the official client does it, without its retries. Raises ImportError where it is not installed."""
    import openai

    bodies = islice(cycle(questions.bodies(teacher)), questions.count)

    async def ask(watch: Watch) -> None:
        # A proxy from the environment is for other hosts than this one.
        plain = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(base_url=teacher.base_url, api_key="none", max_retries=0,
                                      http_client=plain) as client:

            async def work() -> None:
                for body in bodies:
                    known = {key: value for key, value in body.items() if key in OFFICIAL}
                    further = {key: value for key, value in body.items() if key not in OFFICIAL}
                    await client.chat.completions.create(**known, extra_body=further)
                    watch.note()

            with watch.running():
                await asyncio.gather(*(work() for _ in range(workers)))

    return _timed(ask)[0]


def _timed(ask: Callable[[Watch], Awaitable[Any]]) -> tuple[Timing, Any]:
    gc.collect()
    watch = Watch()

    async def run() -> Any:
        return await ask(watch)

    result = asyncio.run(run())
    return watch.timing, result

