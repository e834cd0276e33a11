"""What it costs to log every training step: the demo's training with its curves going to MLflow, and with none.

Each repetition trains three times on the same pixels, in turn and in another order every time: without a logger, with
the project's own curves in a run on a fresh SQLite store, and with a call for every point, as one would write it first.
The seconds are those of training with its validation; opening the run is not in them, sending the last points is. CPU
seconds stand beside them: they hardly change where something else runs on the machine, but leave out waiting for disks.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor

from src.benchmarks.defaults import demo_student
from src.benchmarks.machine import processor
from src.console import say, table
from src.student.curves import Curves, Log
from src.student.device import resolve
from src.student.fit import fit
from src.student.labelled import LabelledImages
from src.student.spec import StudentSpec, TrainerSpec
from src.task import Item, Label
from src.tracking import Run, open_run

CLASSES = [f"c{n}" for n in range(5)]
TRAIN, VALIDATION = 512, 90  # as the demo has them, in whole batches
BAR = 0.05
WAYS = ("no logging", "the defaults", "a call for every point")


class Took(NamedTuple):
    """Seconds by the clock, and of the processor."""

    wall: float
    cpu: float


def run(*, epochs: int, repeats: int) -> None:
    """Print the share that logging adds, as the median over `repeats` alternating pairs of `epochs` epochs."""
    spec = demo_student()
    chance = random.Random(0)
    seconds: dict[str, list[Took]] = {way: [] for way in WAYS}
    trained(spec, 1, None)  # not counted: the first training loads libraries
    for _ in range(repeats):
        for way in chance.sample(WAYS, len(WAYS)):
            seconds[way].append(timed(way, spec, epochs))
    steps = epochs * (TRAIN // spec.batch_size)
    say(f"{date.today()} · {processor()}, {resolve('auto')} · torch {torch.__version__} · the demo's student at "
        f"{spec.input_size} px in batches of {spec.batch_size}: {epochs} epochs, {steps} steps a timing, median of "
        f"{repeats}, alternating; SQLite on this disk")
    table(f"Logging every step (bar: at most {BAR:.0%} more with the defaults)", rows(seconds, steps),
          ("what is logged", "training, s", "a step, ms", "more than without", "pairs, from and to", "more CPU time"))


def rows(seconds: Mapping[str, list[Took]], steps: int) -> list[tuple[str, ...]]:
    """One for each way; the share is the median over pairs of the same repetition."""
    found: list[tuple[str, ...]] = []
    for way, taken in seconds.items():
        pairs = list(zip(taken, seconds[WAYS[0]], strict=True))
        more = [took.wall / without.wall - 1 for took, without in pairs]
        cpu = statistics.median(took.cpu / without.cpu - 1 for took, without in pairs)
        middle = statistics.median(took.wall for took in taken)
        compared = ("", "", "") if way == WAYS[0] else (
            f"{statistics.median(more):+.1%}", f"{min(more):+.1%} to {max(more):+.1%}", f"{cpu:+.1%}")
        found.append((way, f"{middle:.2f}", f"{middle / steps * 1000:.1f}", *compared))
    return found


def timed(way: str, spec: StudentSpec, epochs: int) -> Took:
    """What one training takes that logs in this way."""
    if way == WAYS[0]:
        return trained(spec, epochs, None)
    with tempfile.TemporaryDirectory() as home, open_run(
            uri=f"sqlite:///{home}/mlflow.db", experiment="benchmark", artifacts=Path(home, "artifacts"), name=way,
            tags={}) as opened:
        taken = trained(spec, epochs, opened.metrics if way == WAYS[1] else at_once(opened))
        started = Took(time.perf_counter(), time.process_time())
        opened.send()
        return Took(taken.wall + time.perf_counter() - started.wall, taken.cpu + time.process_time() - started.cpu)


def at_once(opened: Run) -> Log:
    """Every point is sent when it is there."""
    def log(values: Mapping[str, float], step: int | None = None) -> None:
        opened.metrics(values, step)
        opened.send()

    return log


def trained(spec: StudentSpec, epochs: int, log: Log | None) -> Took:
    """What training takes on random pixels; its CPU seconds are those of making the network and settling it, too."""
    def untrained() -> torch.nn.Module:
        network: torch.nn.Module = timm.create_model(spec.name, num_classes=len(CLASSES), drop_rate=spec.drop_rate)
        return network

    data, started = pixels(spec), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(data, untrained, spec,
                     TrainerSpec(max_epochs=epochs, patience=0, accelerator="auto"), seed=0,
                     logger=Curves(log) if log else None, checkpoints=Path(folder))
    return Took(fitted.seconds, time.process_time() - started)


def pixels(spec: StudentSpec) -> LabelledImages:
    """Random images with random labels, as many as the demo trains on."""
    chance = torch.Generator().manual_seed(0)
    shape = (3, spec.input_size, spec.input_size)
    items = [Item(f"{n}", Path(f"{n}"), f"{n}") for n in range(TRAIN + VALIDATION)]
    images: dict[str, Tensor] = {item.key: torch.randint(0, 256, shape, dtype=torch.uint8, generator=chance)
                                 for item in items}
    labels = {item.key: Label(item.key, CLASSES[n % len(CLASSES)], True, "random") for n, item in enumerate(items)}
    return LabelledImages(items[:TRAIN], items[TRAIN:], labels, CLASSES, input_size=spec.input_size,
                          batch_size=spec.batch_size, sharpen=False, max_pixels=10**6, seed=0, decoded=images)
