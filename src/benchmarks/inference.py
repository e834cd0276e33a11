"""How fast a student answers, by runtime, dtype, input size and batch, and what of the machine that makes use of.

All of one size is timed in rounds: in each, every runtime answers every batch once, so that whatever else the machine
does falls on all of them, and ratios are taken within a round. What is timed is `predict`: bytes in memory in,
probabilities out. Knows nothing about where trained students come from.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.benchmarks.machine import processor
from src.console import progress, say, table, warn
from src.metrics import Interval, proportion
from src.student.augment import IMAGENET_MEAN, IMAGENET_STD
from src.student.checkpoint import Trained
from src.student.device import resolve
from src.student.export import export
from src.student.network import bare
from src.student.protocol import Student
from src.student.quantize import LEAST, quantize
from src.student.runtimes import cores, load, supported

EAGER = ("torch", "fp32")
BAR_WITH_BF16, BAR, BAR_SIZE = 4.0, 2.0, 224
RANDOM_CLASSES = 5
SINGLES = 10  # images asked about alone, in each round


@dataclass(frozen=True)
class Known:
    """A trained student, N×3×S×S bytes it never saw with their N class indices, and images it learned from."""

    trained: Trained
    images: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int64]
    calibration: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One runtime and dtype at one input size. `rates` holds images a second by batch (medians over rounds); `ratio` is
    that of its best batch to eager's best batch, median and extremes over rounds; `share` the part of the machine's
    matrix-product rate in the same dtype, None where that has none. Latencies of one image and loading are
    milliseconds; `bytes` is the file's size."""

    runtime: str
    dtype: str
    size: int
    rates: Mapping[int, float]
    ratio: tuple[float, float, float]
    p50_ms: float
    p95_ms: float
    load_ms: float
    bytes: int
    share: float | None
    accuracy: Interval | None


@dataclass(frozen=True)
class _Opened:
    student: Student
    load_ms: float
    bytes: int
    accuracy: Interval | None


def run(*, sizes: Sequence[int], batches: Sequence[int], repeats: int, name: str = "mobilenetv3_small_100",
        students: Mapping[int, Known] | None = None, accelerator: str = "auto",
        threads: int | None = None) -> list[Row]:
    """Print the table of each size, and whether the bar is reached; `threads` is by default one for each core.

    Where `students` has one for a size, it is measured, and how often it is right; else `name` with random weights.
    """
    students = students or {}
    device, threads = resolve(accelerator, "accelerator"), threads or cores()
    rows: list[Row] = []
    with _torch_threads(threads), tempfile.TemporaryDirectory() as folder:
        busy = _busy()
        products = _product_rates(device, repeats)
        where = torch.cuda.get_device_name() if device == "cuda" else processor()
        say(f"{date.today()} · {where}, {device}, {threads} threads · torch {torch.__version__} · {repeats} rounds · "
            "matrix products: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {kind}" for kind, rate in products.items()))
        for size in sizes:
            known = students.get(size)
            trained = known.trained if known else _random(name, size)
            opened = _open(replace(trained, device=device), known, Path(folder), threads)
            found = _measure(opened, size, batches, repeats, _flops(trained), products)
            _print(found, trained.name, size, batches, known)
            rows += found
    _bar(rows, busy)
    if len(students) < len(set(sizes)):
        say("Accuracy needs trained students: name training runs on real images, one for each size, with "
            "runs=[<id>, …]; where there is none, weights are random.")
    return rows


def _busy() -> bool:
    """Whether other work is running, with a warning. Beside it PyTorch's threads wait for each other longest: two on
    two cores with five others made bf16 16 times as fast as eager, where by processor time it is 4.8."""
    waiting = psutil.getloadavg()[0]
    busy = waiting > cores() / 2
    if busy:
        warn(f"other work is running here (load {waiting:.1f} on {cores()} cores): eager suffers most from it, so the "
             "ratios below flatter the others. Run this again on a quiet machine.")
    return busy


def _random(name: str, size: int) -> Trained:
    torch.manual_seed(0)
    classes = [f"class_{n}" for n in range(RANDOM_CLASSES)]
    network = bare(name, RANDOM_CLASSES, size).to(memory_format=torch.channels_last).eval()
    return Trained(network, name, classes, size, IMAGENET_MEAN, IMAGENET_STD,
                   sharpen=False, task="random", task_version=1)


def _pixels(count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def _open(trained: Trained, known: Known | None, folder: Path, threads: int) -> dict[tuple[str, str], _Opened]:
    """Every runtime and dtype that there is on the student's device."""
    size = trained.input_size
    there = supported(trained.device)
    files = {dtype: folder / f"{size}.{dtype}.onnx" for dtype in ("fp32", "int8")}
    if set(there) - {"torch"}:
        export(trained, files["fp32"], known.images[:32] if known else _pixels(2, size))
        quantize(files["fp32"], files["int8"], known.calibration if known else _pixels(LEAST, size))
    weights = sum(value.numel() * value.element_size() for value in trained.network.state_dict().values())
    opened = {}
    for runtime, dtypes in there.items():
        for dtype in dtypes:
            path = files["int8" if dtype == "int8" else "fp32"]
            started = time.perf_counter()
            student: Student = (trained.on(trained.device, dtype) if runtime == "torch" else
                                load(path, runtime, dtype, threads=threads))
            student.predict(_pixels(1, size))
            load_ms = (time.perf_counter() - started) * 1e3
            accuracy = None
            if known:
                right = student.predict(known.images).argmax(axis=1) == known.truth
                accuracy = proportion(int(right.sum()), len(right))
            opened[runtime, dtype] = _Opened(student, load_ms, weights if runtime == "torch" else path.stat().st_size,
                                             accuracy)
    return opened


def _seconds(student: Student, images: npt.NDArray[np.uint8]) -> float:
    """`predict` ends with a copy to the CPU, so a GPU's work is over by then."""
    started = time.perf_counter()
    student.predict(images)
    return time.perf_counter() - started


def _measure(opened: Mapping[tuple[str, str], _Opened], size: int, batches: Sequence[int], repeats: int,
             flops: int, products: Mapping[str, float],
             seconds: Callable[[Student, npt.NDArray[np.uint8]], float] = _seconds) -> list[Row]:
    images = _pixels(max(batches), size)
    rates: dict[tuple[str, str], dict[int, list[float]]] = {key: {n: [] for n in batches} for key in opened}
    alone: dict[tuple[str, str], list[float]] = {key: [] for key in opened}
    for one in opened.values():
        for batch in batches:
            seconds(one.student, images[:batch])  # the first call of a shape prepares for it
    with progress(f"rounds at {size} px", repeats) as update:
        for n in range(repeats):
            for key, one in opened.items():
                for batch in batches:
                    rates[key][batch].append(batch / seconds(one.student, images[:batch]))
                alone[key] += [seconds(one.student, images[:1]) * 1e3 for _ in range(SINGLES)]
            update(n + 1)
    base = rates[EAGER][_best(rates[EAGER])]
    rows = []
    for (runtime, dtype), one in opened.items():
        by_batch = rates[runtime, dtype]
        best = by_batch[_best(by_batch)]
        ratios = [ours / eager for ours, eager in zip(best, base, strict=True)]
        share = statistics.median(best) * flops / products[dtype] if dtype in products else None
        p50, p95 = np.percentile(alone[runtime, dtype], [50, 95])
        rows.append(Row(runtime, dtype, size, {n: statistics.median(found) for n, found in by_batch.items()},
                        (statistics.median(ratios), min(ratios), max(ratios)), float(p50), float(p95), one.load_ms,
                        one.bytes, share, one.accuracy))
    return rows


def _best(by_batch: Mapping[int, Sequence[float]]) -> int:
    return max(by_batch, key=lambda batch: statistics.median(by_batch[batch]))


def _flops(trained: Trained) -> int:
    """Of one image: two for each product that is added up."""
    size = trained.input_size
    network = trained.on("cpu").network.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, 3, size, size)))
    return int(counter.get_total_flops())


def _product_rates(device: str, repeats: int) -> dict[str, float]:
    """FLOP a second of a large matrix product, by dtype: what the machine reaches at its easiest work."""
    side = 4096 if device == "cuda" else 1024
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    factors = {kind: torch.randn(side, side, device=device).to(kinds[kind]) for kind in supported(device)["torch"]}
    seconds: dict[str, list[float]] = {kind: [] for kind in factors}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        factors["fp32"] @ factors["fp32"]
    for _ in range(repeats + 1):
        for kind, factor in factors.items():
            started = time.perf_counter()
            (factor @ factor)[0, 0].item()  # waits for a GPU
            seconds[kind].append(time.perf_counter() - started)
    return {kind: counter.get_total_flops() / statistics.median(found[1:]) for kind, found in seconds.items()}


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _print(rows: Sequence[Row], name: str, size: int, batches: Sequence[int], known: Known | None) -> None:
    header = ("", *(str(n) for n in batches), "× eager", "1 image, ms", "MiB", "load, ms", "used", "accuracy")
    lines = [(
        f"{row.runtime} {row.dtype}", *(f"{row.rates[n]:.0f}" for n in batches),
        f"{row.ratio[0]:.1f} ({row.ratio[1]:.1f}–{row.ratio[2]:.1f})", f"{row.p50_ms:.1f}/{row.p95_ms:.1f}",
        f"{row.bytes / 2**20:.1f}", f"{row.load_ms:.0f}", "–" if row.share is None else f"{row.share:.0%}",
        "–" if row.accuracy is None else f"{row.accuracy.value:.3f} ({row.accuracy.low:.3f}–{row.accuracy.high:.3f})",
    ) for row in rows]
    weights = f"accuracy on {len(known.truth)} images" if known else "random weights"
    table(f"{name} at {size} px, {weights}: images/s by batch; × eager's best batch (least–most of the rounds); one "
          "image p50/p95; used: share of the matrix products", lines, header)


def _bar(rows: Sequence[Row], busy: bool) -> None:
    """At the largest size: the fastest against eager fp32 at its own best batch."""
    size = max(row.size for row in rows)
    best = max((row for row in rows if row.size == size), key=lambda row: row.ratio[0])
    bar = BAR_WITH_BF16 if any(row.dtype == "bf16" for row in rows) else BAR
    batch = max(best.rates, key=best.rates.__getitem__)
    verdict = "reached" if best.ratio[0] >= bar else "missed"
    meant = "" if size == BAR_SIZE else f" (meant for {BAR_SIZE})"
    say(f"Bar at {size} px{meant}: {bar:g}× PyTorch eager (fp32, channels last, its best batch). {verdict}: "
        f"{best.runtime} {best.dtype} in batches of {batch}, {best.rates[batch]:,.0f} images/s, {best.ratio[0]:.2f}× "
        f"({best.ratio[1]:.2f}–{best.ratio[2]:.2f}){' – but other work was running, so this says little' * busy}")
