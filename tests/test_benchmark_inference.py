"""The inference benchmark on a small student: every row is there, and what it derives from is what it says."""

import re

import numpy as np
import pytest
import small_student
import torch
from torch import nn

from src.benchmarks import inference
from src.benchmarks.inference import EAGER, Known, run
from src.errors import ConfigError
from src.student.checkpoint import Trained
from src.student.runtimes import supported

HERE = {(runtime, dtype) for runtime, dtypes in supported("cpu").items() for dtype in dtypes}


def test_a_trained_student_is_timed_and_judged_in_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    student, images = small_student.tiny(), small_student.pictures()
    truth = student.predict(images).argmax(axis=1)
    truth[:30] = (truth[:30] + 1) % 5  # so that it is right three times out of four
    rows = run(sizes=[small_student.SIZE], batches=[1, 4], repeats=3, accelerator="cpu", threads=1,
               students={small_student.SIZE: Known(student, images, truth, images)})
    assert {(row.runtime, row.dtype) for row in rows} == HERE and len(rows) == len(HERE)
    for row in rows:
        assert row.size == small_student.SIZE and row.rates.keys() == {1, 4} and min(row.rates.values()) > 0
        assert row.ratio[1] <= row.ratio[0] <= row.ratio[2] and 0 < row.p50_ms <= row.p95_ms and row.load_ms > 0
        assert row.accuracy and row.accuracy.n == 120
        assert (row.share is None) == (row.dtype == "int8") and (row.share is None or row.share > 0)
        if row.dtype == "fp32":
            assert row.accuracy.value == 0.75
        else:
            assert 0.5 < row.accuracy.value < 0.9
    eager = next(row for row in rows if (row.runtime, row.dtype) == EAGER)
    assert eager.ratio == (1, 1, 1)  # with itself, round by round
    told = capsys.readouterr().out
    assert "accuracy on 120 images" in told and "0.750 (0.6" in told
    assert "Accuracy needs trained students" not in told
    bar = 4 if ("openvino", "bf16") in HERE else 2
    best = max(rows, key=lambda row: row.ratio[0])
    assert re.search(rf"Bar at 48 px \(meant for 224\): {bar}× PyTorch eager .* {best.runtime} {best.dtype} in", told)
    assert ("reached" in told) == (best.ratio[0] >= bar)


@pytest.mark.slow
def test_without_trained_students_it_is_said_how_to_get_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(sizes=[32], batches=[2], repeats=1, name="test_convnext", accelerator="cpu", threads=1)
    assert len(rows) == len(HERE) and all(row.accuracy is None for row in rows)
    told = capsys.readouterr().out
    assert "random weights" in told and "Accuracy needs trained students: name training runs" in told


def test_operations_are_counted_as_anybody_would() -> None:
    """A convolution that leaves 6×6 of 4 channels, from 3×3 of 3; then a product of 4 by 2; two for each product."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    student = Trained(network, "flat", ["a", "b"], 8, (0.5,) * 3, (0.5,) * 3, False, "t", 1)
    assert inference._flops(student) == 2 * (6 * 6 * 4 * 3 * 3 * 3 + 4 * 2)


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that halves its pace from round to round leaves the ratio as it is."""
    clock = Clock()

    def opened(per_image: float) -> inference._Opened:
        return inference._Opened(clock.student(per_image), 1.0, 10, None)

    eager, ours = opened(2.0), opened(0.5)
    rows = inference._measure({EAGER: eager, ("openvino", "fp32"): ours}, 4, [1, 2], 4, 100, {"fp32": 1e3},
                              seconds=clock.seconds)
    fast = rows[1]
    assert fast.ratio == (4, 4, 4) and rows[0].ratio == (1, 1, 1)
    assert fast.share == pytest.approx(fast.rates[1] * 100 / 1e3)
    assert fast.p50_ms == pytest.approx(rows[0].p50_ms / 4)


class Clock:
    """Seconds that students claim to take; every round of two students and two batches takes twice as long."""

    def __init__(self) -> None:
        self.calls = 0
        self.pace: dict[int, float] = {}

    def student(self, per_image: float) -> Trained:
        made = small_student.tiny().on("cpu")
        self.pace[id(made)] = per_image
        return made

    def seconds(self, student: Trained, images: np.ndarray) -> float:
        in_a_round = 2 * (2 + inference.SINGLES)
        turn = max(0, self.calls - 4) // in_a_round  # four calls prepare
        self.calls += 1
        return self.pace[id(student)] * len(images) * 2**turn


def test_threads_are_given_back_and_an_absent_device_is_named() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), inference._torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="accelerator='mps'"):
            run(sizes=[32], batches=[1], repeats=1, accelerator="mps")
