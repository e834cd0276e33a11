"""What is not to be judged, promised or taken for a student's: each is refused in words."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_student import tiny

from src.certify import Scored, check_enough
from src.data.splits import Splits
from src.errors import DataError
from src.student.checkpoint import Trained, load
from src.student.judge import judge
from src.task import Item
from src.trust import is_about

CLASSES = ["apple", "mushroom", "orange", "pear", "sweet_pepper"]


@dataclass(frozen=True)
class Scripted:
    """Answers whatever it was given."""

    scores: np.ndarray
    classes: list[str]
    input_size: int = 32
    sharpen: bool = False
    device: str = "cpu"

    def predict(self, images: object) -> np.ndarray:
        return np.resize(self.scores, (len(images), self.scores.shape[1]))  # type: ignore[arg-type]


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    items = []
    for n, name in enumerate(CLASSES):
        Image.new("RGB", (40, 40), (40 * n, 90, 10)).save(tmp_path / f"{n}.png")
        items.append(Item(str(n), tmp_path / f"{n}.png", f"{n}.png", truth=name))
    return Splits(choose=items, certify=[], train=[], validation=[], test=[], moved=0)


def test_what_is_judged_stands_in_the_order_of_the_items(splits: Splits) -> None:
    found = judge(Scripted(np.eye(5)[[0, 1, 2, 3, 3]], CLASSES), splits, max_pixels=10**6, seed=0).parts["gold"]
    assert found.truth.tolist() == [0, 1, 2, 3, 4] and found.scores.accuracy.value == 0.8


@pytest.mark.parametrize("scores", [np.full((1, 5), np.nan), np.array([[0.5, 0.2, 0.1, 0.1, 0.0]])])
def test_scores_that_are_no_probabilities_are_refused(splits: Splits, scores: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"scores on gold hold nan, or do not sum to one.*Train with a smaller"):
        judge(Scripted(scores, CLASSES), splits, max_pixels=10**6, seed=0)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mobilenet.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not a student's checkpoint \(\w+\): train again, or name another run"):
        load(path)


@pytest.mark.parametrize(("certificate", "runtime", "dtype", "holds"), [
    (("torch", "fp32"), "torch", "fp32", True),
    (("torch", "fp32"), "openvino", "fp32", True),  # held to be the same when it was exported
    (("torch", "fp32"), "torch", "bf16", False),
    (("onnxruntime", "int8"), "onnxruntime", "int8", True),
    (("onnxruntime", "int8"), "openvino", "int8", False),
    (("torch", "bf16"), "openvino", "bf16", False),
])
def test_a_certificate_is_about_one_way_to_answer(certificate: tuple[str, str], runtime: str, dtype: str,
                                                  holds: bool) -> None:
    student = SimpleNamespace(runtime=runtime, dtype=dtype)
    assert is_about(dict(zip(("runtime", "dtype"), certificate, strict=True)), student) == holds  # type: ignore[arg-type]


def test_gold_of_one_class_or_less_than_the_classes_is_never_certified() -> None:
    items = [Item(str(n), Path(), str(n)) for n in range(50)]
    even = np.full((50, 5), 0.2)
    check_enough(Scored(items, even, np.arange(50) % 5), 5)
    with pytest.raises(DataError, match=r"All 50 gold items .* are of one class"):
        check_enough(Scored(items, even, np.zeros(50, dtype=np.int64)), 5)
    with pytest.raises(DataError, match=r"3 gold items .* for 5 classes are too few"):
        check_enough(Scored(items[:3], even[:3], np.arange(3)), 5)


def test_a_student_stays_as_it_was_when_it_goes_elsewhere() -> None:
    student: Trained = tiny()
    there = student.on("cpu", "bf16")
    assert (there.dtype, there.runtime) == ("bf16", "torch") and there.network is not student.network
    images = np.random.default_rng(0).integers(0, 256, (4, 3, student.input_size, student.input_size), dtype=np.uint8)
    before = student.predict(images)
    there.predict(images)
    assert np.array_equal(student.predict(images), before)
    assert np.abs(there.predict(images) - before).max() < 0.05
    assert replace(there, dtype="fp32").predict(images) == pytest.approx(before, abs=1e-6)
