"""A labelling run over made-up texts, in a process of its own and through the same door as `src.label`'s.

`python -m src.benchmarks.texts` holds what `src.label` holds by then, an open MLflow run as well; makes its items, says
that it has them, and labels. `watched` starts it and tells how it goes; `fill` puts the answers of a run that never was
into a store.
"""

import argparse
import hashlib
import subprocess
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

import src.record  # noqa: F401  as `src.label` does: its memory counts
from src.benchmarks import defaults
from src.benchmarks.machine import in_a_process
from src.benchmarks.servers import Server
from src.console import progress
from src.errors import FlywheelError
from src.labeling.ask import Survey
from src.store import Store
from src.task import Item, TaskSpec
from src.tracking import open_run

PASSES = 2
CONCURRENCY = 64
GOLD = 20
BATCH = 2500  # items that one transaction fills in
LOOK_EVERY_S = 0.05
PATIENCE_S = 60.0  # with a run that has not asked anything yet
LABEL = "praise"  # what everybody answers, and what is true of gold
TASK = TaskSpec(
    name="benchmark", version=1, kind="classify", metric="accuracy", aliases={},
    classes={LABEL: "the writer liked it", "blame": "the writer did not like it"},
    system_prompt="You are a precise labeler of texts. Respond with strict JSON only.",
    user_prompt='Is this text one of {{ classes | tojson }}? Return JSON only: {"label":"<one>","confidence":0-1,'
                '"why":"<=12 words"}.',
)


@dataclass(frozen=True)
class Look:
    """A run as it stood `seconds` after it had its items (negative before): how many of its questions the server has
    answered, after how many seconds the first one came there, and the bytes that the run held in memory."""

    seconds: float
    answered: int
    first_s: float | None
    resident: int


def text(number: int) -> str:
    """About 110 characters, and no two alike."""
    return (f"Number {number}: the second act drags, the ending does not, and on the whole I would rather have gone "
            "for a walk.")


def key(number: int) -> str:
    return hashlib.sha256(text(number).encode()).hexdigest()


def watched(store: Path, server: Server, count: int) -> Generator[Look]:
    """Label `count` texts in another process, from what `store` holds already; ends with it, and ends it when closed,
    or when nothing was asked for PATIENCE_S.

    Raises FlywheelError where the run fails.
    """
    ready, output = store.with_suffix(".ready"), store.with_suffix(".out")
    ready.unlink(missing_ok=True)
    command = in_a_process("src.benchmarks.texts", str(store), str(ready), server.base_url, str(count))
    with output.open("w") as lines, subprocess.Popen(**command, stdout=lines, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None:
                with suppress(FileNotFoundError, psutil.Error):
                    began = float(ready.read_text())
                    held = psutil.Process(process.pid).memory_info().rss
                    told = server.count()
                    first_s = told["first_at"] - began if told["first_at"] else None
                    look = Look(time.time() - began, told["answered"], first_s, held)
                    yield look
                    if look.seconds > PATIENCE_S and first_s is None:
                        return
                time.sleep(LOOK_EVERY_S)
        finally:
            process.kill()
    if process.returncode:
        raise FlywheelError(f"The run that was watched failed:\n{output.read_text()[-2000:]}")


def fill(store: Path, first: int, end: int) -> int:
    """Answer every text from `first` up to `end` as the answers that the store has already; returns how many it then
    holds."""
    opened = Store(store)
    try:
        pattern = opened.read()[-1]
        with progress("filling the store", end) as update:
            for start in range(first, end, BATCH):
                numbers = range(start, min(start + BATCH, end))
                opened.add([replace(pattern, item=key(n), pass_index=p) for n in numbers for p in range(PASSES)])
                update(numbers.stop)
        return sum(1 for _ in opened.answered(pattern.annotator, pattern.prompt_hash))
    finally:
        opened.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name, kind in (("store", Path), ("ready", Path), ("base_url", str), ("count", int)):
        parser.add_argument(name, type=kind)
    args = parser.parse_args()
    with open_run(uri=f"sqlite:///{args.store.with_name('mlflow.db')}", experiment="benchmark",
                  artifacts=args.store.with_name("artifacts"), name="texts", tags={}) as run:
        label(args.store, args.ready, args.base_url, args.count, job=run.payer)


def label(store: Path, ready: Path, base_url: str, count: int, *, job: str) -> None:
    """Label the first `count` texts; the file `ready` tells when the items were there, in seconds since the epoch."""
    gold, pool = ([Item(key(n), text(n), f"texts.csv:{n}", truth=LABEL if n < GOLD else None) for n in numbers]
                  for numbers in (range(min(GOLD, count)), range(GOLD, count)))
    partial = ready.with_suffix(".partial")
    partial.write_text(str(time.time()))
    partial.rename(ready)
    survey = Survey(
        task=TASK, teachers=[defaults.teacher(base_url)], arbiter=None, how=None,
        spec=defaults.labeler(passes=PASSES, concurrency=CONCURRENCY), store=Store(store), rehearsal=None,
        max_pixels=1, seed=0, job=job,
    )
    survey.run(gold, pool, lambda annotations: None)


if __name__ == "__main__":
    main()
