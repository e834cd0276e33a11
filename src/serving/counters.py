"""What Prometheus reads at /metrics. A registry of its own, so that several servers in one process do not mix.

Labels are words of ours, statuses and routes among them: nothing that a client may choose, or it could fill the memory.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from src.metrics import Floats
from src.store import Logged

REQUEST_S = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 60)
STUDENT_S = (.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Works(Protocol):
    """What is shown of a cascade: images without a first step, items the LLM is asked about, tickets for people."""

    @property
    def pending(self) -> int: ...
    @property
    def asking(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Counters:
    """`steps` is told what was logged, `request` what was answered; gauges are read when somebody looks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("flywheel_requests", "Requests by what they asked for and how they ended",
                                 ("endpoint", "status"), registry=self.registry)
        self._seconds = Histogram("flywheel_request_seconds", "From a request's head to its answer, waiting included",
                                  ("endpoint",), registry=self.registry, buckets=REQUEST_S)
        self._items = Counter("flywheel_items", "Items accepted, by why they were escalated, if they were",
                              ("escalated",), registry=self.registry)
        self._decisions = Counter("flywheel_decisions", "Final answers, by whose they are and by the reasons",
                                  ("route", "escalated", "human"), registry=self.registry)
        self._handed = Counter("flywheel_handed_to_people", "Items that the LLM did not settle, by why", ("human",),
                               registry=self.registry)
        self._cost = Counter("flywheel_llm_cost_usd", "What the LLM's answers cost, in US dollars",
                             registry=self.registry)
        self._student = Histogram("flywheel_student_seconds", "One call of the student", registry=self.registry,
                                  buckets=STUDENT_S)
        self._batch = Histogram("flywheel_batch_images", "Images in one call of the student", registry=self.registry,
                                buckets=SIZES)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def steps(self, rows: Sequence[Logged]) -> None:
        """Of rows that are on disk, each once."""
        for row in rows:
            self._cost.inc(row.cost_usd)
            if row.step == 0:
                self._items.labels(row.escalated or "none").inc()
            if row.answer is not None:
                self._decisions.labels(row.route, row.escalated or "none", row.human or "none").inc()
            elif row.route == "human" and not row.annotator:  # with one, somebody took an answer back
                self._handed.labels(row.human or "none").inc()

    def timed(self, predict: Callable[[NDArray[np.uint8]], Floats]) -> Callable[[NDArray[np.uint8]], Floats]:
        """`predict`, with each call counted; for the thread that the batcher calls it in."""

        def watched(images: NDArray[np.uint8]) -> Floats:
            began = time.perf_counter()
            found = predict(images)
            self._student.observe(time.perf_counter() - began)
            self._batch.observe(len(images))
            return found

        return watched

    def watch(self, cascade: Works) -> None:
        self.gauge("pending_images", "Images taken that have no first step yet", lambda: cascade.pending)
        self.gauge("asking_items", "Items that the LLM is being asked about", lambda: cascade.asking)
        self.gauge("waiting_items", "Items of requests that wait for a person", lambda: cascade.waiting)

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """A figure that `read` gives when asked, from any thread; `name` without the prefix."""
        Gauge(f"flywheel_{name}", meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Writes(Protocol):
    """What is counted of a log."""

    @property
    def backlog(self) -> int: ...
    async def write(self, rows: Sequence[Logged]) -> None: ...


class CountedLog:
    """A log whose rows are counted once they are on disk."""

    def __init__(self, log: Writes, counters: Counters) -> None:
        self._log, self._counters = log, counters
        counters.gauge("log_backlog", "Decisions that wait to be written", lambda: log.backlog)

    @property
    def backlog(self) -> int:
        return self._log.backlog

    async def write(self, rows: Sequence[Logged]) -> None:
        await self._log.write(rows)
        self._counters.steps(rows)
