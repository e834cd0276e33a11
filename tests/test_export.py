"""`model.onnx`: the whole way from bytes to probabilities, checked, alone enough to answer, and quiet about us."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_student
import torch

from src.errors import DataError
from src.student.checkpoint import Trained
from src.student.export import TOLERANCE, check_parity, export
from src.student.onnx_file import Description, describe, read_description
from src.student.quantize import quantize
from src.student.runtimes import load


def test_the_file_answers_as_the_student_does_and_export_says_by_how_much() -> None:
    images, made = small_student.pictures(), small_student.files()
    expected = small_student.student().predict(images)
    assert len(set(expected.argmax(axis=1))) == 5  # or a file that always answers the same would pass
    found = load(made.float32, "onnxruntime").predict(images)
    assert np.abs(found - expected).max() <= TOLERANCE
    assert made.parity == pytest.approx(np.abs(found - expected).max(), abs=1e-6) and made.parity <= TOLERANCE


def test_the_average_with_the_mirror_image_is_in_the_file() -> None:
    images = small_student.pictures()[:20]
    found = load(small_student.files().float32, "onnxruntime").predict(images)
    without = replace(small_student.student(), flip_average=False).predict(images)
    assert np.abs(found - without).max() > 100 * TOLERANCE
    mirrored = replace(small_student.student(), flip_average=False).predict(images[..., ::-1].copy())
    assert np.abs(found - (without + mirrored) / 2).max() <= TOLERANCE


def test_exporting_leaves_the_student_as_it_was(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also: it says nothing, whatever the exporter thinks of itself."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2))
    student = Trained(network, "flat", ["a", "b"], 4, (0.5,) * 3, (0.5,) * 3, False, "t", 1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    assert export(student, tmp_path / "model.onnx", images) <= TOLERANCE
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_everything_that_answers_depend_on_is_in_the_file(tmp_path: Path) -> None:
    student = small_student.student()
    for path, dtype in ((small_student.files().float32, "fp32"), (small_student.files().int8, "int8")):
        assert read_description(path) == Description("test_efficientnet", small_student.CLASSES, small_student.SIZE,
                                                     True, "fruit", 3, dtype)
        opened = load(path, "onnxruntime")
        for field in ("name", "classes", "input_size", "sharpen", "task", "task_version"):
            assert getattr(opened, field) == getattr(student, field), field
        assert (opened.runtime, opened.dtype, opened.device) == ("onnxruntime", dtype, "cpu")


def test_the_file_holds_no_path_of_this_machine() -> None:
    """The exporter writes down for each node which line of which file it came from."""
    for path in (small_student.files().float32, small_student.files().int8):
        content = path.read_bytes()
        assert not re.search(rb"site-packages|\.py\b|/src/|" + re.escape(str(Path.home())).encode(), content)
    whole = small_student.files().float32.stat().st_size
    weights = sum(4 * value.numel() for value in small_student.student().network.parameters())
    assert whole < weights + 60_000
    assert small_student.files().int8.stat().st_size < 0.6 * whole


class Wrong(torch.nn.Module):
    """Answers otherwise while it is traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))[:, :2]
        return means if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() else -means


class Untraceable(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, :2] * (1 if images.sum().item() > 0 else 2)


class Bottomless(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, :2] * torch.inf


@pytest.mark.parametrize(("network", "complaint"), [
    (Wrong, r"answers otherwise than before: .* differ by up to 0\.\d+, more than 0\.0001.*runtime=torch"),
    (Untraceable, "cannot be exported to ONNX: .*runtime=torch"),
    (Bottomless, "no probabilities: .*nan"),
])
def test_what_answers_otherwise_leaves_no_file(network: Callable[[], torch.nn.Module], complaint: str,
                                               tmp_path: Path) -> None:
    student = Trained(network(), "odd", ["a", "b"], 8, (0.5,) * 3, (0.5,) * 3, False, "t", 1)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    with pytest.raises(DataError, match=f"(?s){complaint}"):
        export(student, tmp_path / "model.onnx", images)
    assert not list(tmp_path.iterdir())


def test_parity_needs_images_and_names_the_largest_difference() -> None:
    student = load(small_student.files().float32, "onnxruntime")
    images = small_student.pictures()[:6]
    expected = student.predict(images)
    assert check_parity(expected, student, images) == 0
    other = expected.copy()
    other[3, 1] += 0.0042
    with pytest.raises(DataError, match=r"test_efficientnet .* on onnxruntime differ by up to 0\.0042"):
        check_parity(other, student, images)
    with pytest.raises(DataError, match="one at least"):
        check_parity(expected[:0], student, images[:0])


def foreign(path: Path) -> None:
    """A good ONNX model of somebody else."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    onnx.save(onnx.helper.make_model(graph), path)


def cut(path: Path) -> None:
    path.write_bytes(small_student.files().float32.read_bytes()[:5000])


def changed(**fields: object) -> Callable[[Path], None]:
    """Our file, saying something else of itself."""

    def write(path: Path) -> None:
        model = onnx.load(small_student.files().float32)
        describe(model, replace(read_description(small_student.files().float32), **fields))  # type: ignore[arg-type]
        onnx.save(model, path)

    return write


def of_another_format(path: Path) -> None:
    model = onnx.load(small_student.files().float32)
    onnx.helper.set_model_props(model, {"flywheel": json.dumps({"format": 7})})
    onnx.save(model, path)


@pytest.mark.parametrize(("write", "complaint"), [
    (lambda path: None, "is not a student's ONNX file: .*No such file"),
    (lambda path: path.write_bytes(b""), "names no classes|is not a student's ONNX file"),
    (lambda path: path.write_bytes(b"no onnx at all"), "is not a student's ONNX file"),
    (cut, "is not a student's ONNX file"),
    (foreign, "not a student's: its metadata names no classes"),
    (of_another_format, "another format than the 1"),
    (changed(input_size=64), r"does not fit its own description: bytes of N×3×64×64"),
    (changed(classes=["a", "b"]), "and N×2 probabilities"),
])
def test_a_file_that_is_no_student_is_refused(write: Callable[[Path], None], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path)
    with pytest.raises(DataError, match=complaint) as caught:
        load(path, "onnxruntime")
    assert "model.onnx" in str(caught.value)


def test_quantising_needs_enough_real_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"49 images are too few .* 50 or more"):
        quantize(small_student.files().float32, tmp_path / "int8.onnx", small_student.pictures()[:49])


def test_one_odd_picture_does_not_set_the_ranges(tmp_path: Path) -> None:
    """Scales in the file are those without it: the range leaves out one in a hundred images at either end."""

    def scales(images: np.ndarray) -> np.ndarray:
        path = tmp_path / "int8.onnx"
        quantize(tmp_path / "model.onnx", path, images)
        model = onnx.load(path)
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        return np.array([float(constants[node.input[1]]) for node in model.graph.node
                         if node.op_type == "QuantizeLinear" and constants[node.input[1]].ndim == 0])

    torch.manual_seed(0)
    # Cubes make an odd picture's activations far larger than any other's, as a deep network does.
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), Cube(), torch.nn.Conv2d(4, 2, 3),
                                  torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    student = Trained(network, "cubes", ["a", "b"], 8, (0.5,) * 3, (0.5,) * 3, False, "t", 1)
    chance = np.random.default_rng(0)
    plain = chance.integers(118, 138, (200, 3, 8, 8), dtype=np.uint8)
    odd = plain.copy()
    odd[0] = chance.integers(0, 2, (3, 8, 8)) * 255
    export(student, tmp_path / "model.onnx", plain)
    with torch.inference_mode():
        usual, most = (float(network[:2](torch.from_numpy(images).float() / 127.5 - 1).abs().max())
                       for images in (plain, odd))
    assert most > 100 * usual
    # All but the input, which is bytes and has the same range wherever it comes from.
    assert np.allclose(scales(odd), scales(plain), rtol=0.3)


class Cube(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images**3
