"""How much of the bare network's speed training keeps, and what the demo needs.

The bare rate is forward, loss and backward over one batch that lies ready; training adds what a real epoch does:
gathering the batch, augmentation, optimizer, schedule, Lightning's loop. Validation is excluded from both.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from src.benchmarks.defaults import student
from src.benchmarks.machine import processor
from src.config import CONF
from src.console import say, table
from src.student.augment import Augment
from src.student.device import memory_format, resolve
from src.student.fit import quiet
from src.student.labelled import Batches, Shuffled
from src.student.module import ImageStudent
from src.student.spec import StudentSpec
from src.tracking import latest

CLASSES = 5
# Linux counts the memory of the process that starts another as that one's own, and this one's is large by then: a small
# process in between measures the job alone.
WATCH = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


def run(*, sizes: Sequence[int], batch_size: int, steps: int, repeats: int, demo: bool) -> None:
    quiet()
    device = resolve("auto")
    say(f"{date.today()} · {_machine(device)} · torch {torch.__version__}, timm {timm.__version__} · random weights "
        f"and pixels, batch {batch_size}, {steps} steps a timing, median of {repeats}, alternating")
    rows = [_rates(size, batch_size, steps, repeats, device) for size in sizes]
    header = ("pixels", "bare, img/s", "training, img/s", "share kept", "augment, ms", "forward+backward, ms",
              "optimizer, ms", "the rest, ms")
    table("Training against bare forward and backward (bar: 85% at 96 px)", rows, header)
    if demo:
        table("The demo (bars: first step within 10 s, memory under 3 GiB)", _demo(3), ("what", "figure"))


def _rates(size: int, batch_size: int, steps: int, repeats: int, device: str) -> tuple[str, ...]:
    spec = student(input_size=size, batch_size=batch_size)
    images = torch.randint(0, 256, ((steps + 1) * batch_size, 3, size, size), dtype=torch.uint8)
    targets = F.one_hot(torch.arange(len(images)) % CLASSES, CLASSES).float()
    network = timm.create_model(spec.name, num_classes=CLASSES).to(device, memory_format=memory_format(device))
    ready = torch.rand(batch_size, 3, size, size, device=device).contiguous(memory_format=memory_format(device))
    goal = targets[:batch_size].to(device)

    def bare() -> None:
        network.zero_grad(set_to_none=True)
        loss: Tensor = F.cross_entropy(network(ready), goal)
        loss.backward()  # type: ignore[no-untyped-call]

    pairs = [(_per_step(bare, steps, device), _lightning(spec, images, targets, steps, device)) for _ in range(repeats)]
    bare_s, training_s = (statistics.median(kind) for kind in zip(*pairs, strict=True))
    augment, chance = Augment(), torch.Generator().manual_seed(0)
    batch = images[:batch_size].to(device)
    views = partial(augment, batch, chance)
    augment_s = statistics.median(_per_step(views, steps, device) for _ in range(repeats))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    step_s = statistics.median(_per_step(optimizer.step, steps, device) for _ in range(repeats))
    rest = training_s - bare_s - augment_s - step_s
    share = statistics.median(b / t for b, t in pairs)
    return (str(size), f"{batch_size / bare_s:.0f}", f"{batch_size / training_s:.0f}", f"{share:.1%}",
            f"{augment_s * 1e3:.0f}", f"{bare_s * 1e3:.0f}", f"{step_s * 1e3:.0f}", f"{rest * 1e3:.0f}")


def _per_step(work: Callable[[], Any], steps: int, device: str) -> float:
    """Seconds of one call, after one that is not counted."""
    work()
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        work()
    _wait(device)
    return (time.perf_counter() - started) / steps


class _Clock(Callback):
    """Seconds from the end of the first step to the end of the last."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        _wait(self.device)
        self.ends.append(time.perf_counter())


def _lightning(spec: StudentSpec, images: Tensor, targets: Tensor, steps: int, device: str) -> float:
    """Seconds of one step of the project's own training."""
    network = timm.create_model(spec.name, num_classes=CLASSES)
    module = ImageStudent(network, spec, mean=(0.5,) * 3, std=(0.5,) * 3, memory_format=memory_format(device), seed=0)
    sampler = Shuffled(len(images), spec.batch_size, seed=0)
    loader = DataLoader(Batches(images, targets), batch_size=None, sampler=sampler)
    clock = _Clock(device)
    trainer = L.Trainer(max_epochs=1, accelerator="gpu" if device == "cuda" else device, devices=1, logger=False,
                        callbacks=[clock], enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False)
    trainer.fit(module, loader)
    return (clock.ends[-1] - clock.ends[0]) / steps


def _demo(warm_runs: int) -> list[tuple[str, str]]:
    """The demo in processes of its own: cold in an empty home, then warm ones for the time to the first step.

    The imports come before the job, so that what is timed is the job's own way to its first training step.
    """
    job = "import sys, src.train, src.student.distil, src.student.judge; src.train.main()"
    with tempfile.TemporaryDirectory() as home:
        base = [sys.executable, "-c", job, "+experiment=demo", "rehearsal=always", f"home={home}"]
        where = {**os.environ, "PYTHONPATH": str(Path(CONF).parent)}
        started = time.perf_counter()
        watched = subprocess.run([sys.executable, "-c", WATCH, *base], check=True, capture_output=True, env=where)
        whole = time.perf_counter() - started
        # In KiB on Linux and in bytes on macOS.
        peak = int(watched.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024)
        for _ in range(warm_runs):
            subprocess.run([*base, "trainer.max_epochs=1"], check=True, stdout=subprocess.DEVNULL, env=where)
        waits = latest(f"sqlite:///{home}/mlflow.db", "train/first_step_s", warm_runs)
    return [("whole demo, empty cache", f"{whole:.0f} s"), ("peak memory", f"{peak / 2**30:.2f} GiB"),
            ("first training step, warm cache, beyond imports",
             f"{statistics.median(waits):.1f} s (median of {warm_runs})")]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {device}"
