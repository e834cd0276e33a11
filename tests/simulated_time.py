"""A clock on which a minute takes a fraction of a second, the same every time, and pacing that goes by it."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

from src.labeling.pacing import Pacer, Permit

MINUTE = 60.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Where everybody waits, time jumps to the next timer. Where there is none, somebody waits for ever: an error."""

    def __init__(self) -> None:
        self.now = 1000.0
        loop = self

        class Jump(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> Any:
                if timeout is None:
                    raise RuntimeError("everybody waits, and nothing will ever happen")
                loop.now += max(0.0, timeout)
                return []  # nothing comes from outside

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


def simulate(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def make_pacer(**changes: Any) -> Pacer:
    """Without any limit but on how many at once; on the running loop's clock."""
    fields: dict[str, Any] = {
        "backoff_s": 1.0, "max_backoff_s": 60.0, "seed": 0, "requests_per_minute": None, "tokens_per_minute": None,
        "concurrency": 64, "adaptive": False, "clock": now,
    }
    return Pacer(**(fields | changes))


def settle(pacer: Pacer, permit: Permit, *, tokens: int | None = None, refused: bool = False,
           retry_after_s: float | None = None) -> None:
    pacer.done(permit, tokens=tokens, refused=refused, retry_after_s=retry_after_s)
