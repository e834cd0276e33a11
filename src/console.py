"""What people see while something runs: one console, progress that also works in a log file, tables, and errors.

Knows nothing about what is running. Where the output is a terminal, progress is a live bar; elsewhere it is a line
every few seconds, so that a CI log or a `tee` shows that work goes on.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Protocol

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# A log file has no width; 80 columns would fold the tables.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
LINE_EVERY_S = 5.0


def say(text: str, style: str = "") -> None:
    """Print one line. Square brackets in `text` are text, never markup: file names and replies contain them."""
    console.print(text, style=style or None, markup=False)


def warn(text: str) -> None:
    say(f"Warning: {text}", style="yellow")


def table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    drawn = Table(title=title, title_justify="left", header_style="bold")
    for column, name in enumerate(header):
        numeric = all(row[column][:1].isdigit() for row in rows if row[column])
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn, markup=False)


class Update(Protocol):
    """Report that `done` of the total are done; `note` stands behind the count."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Update]:
    """Yield an `Update`, cheap enough to be called for every item."""
    if console.is_terminal:
        note = TextColumn("{task.fields[note]}", markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
        with Progress(*columns, console=console) as live:
            bar = live.add_task(what, total=total, note="")

            def move(done: int, note: str = "") -> None:
                live.update(bar, completed=done, note=note)

            yield move
        return
    last = time.monotonic()

    def update(done: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S or done >= total:
            last = time.monotonic()
            say(f"{what}: {done}/{total} {note}".rstrip())

    yield update


def entry_point(job: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Let SIGTERM leave by the same door as Ctrl-C: everything is closed, the message says how to go on, status 130."""

    @wraps(job)
    def wrapped(cfg: DictConfig) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, interrupt)
        try:
            job(cfg)
        except KeyboardInterrupt:
            # Not `console` itself: a worker process is sent this function with all that it names, and that has a lock.
            say("Interrupted. What was answered is kept; the same command goes on from here.")
            raise SystemExit(130) from None

    return wrapped
