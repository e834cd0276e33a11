"""A small student with drawn pictures that it answers, exported and quantised once for all tests that ask."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from src.data.rendered import draw
from src.student.checkpoint import Trained
from src.student.export import export
from src.student.network import bare
from src.student.quantize import quantize

SIZE = 48
CLASSES = ["apple", "mushroom", "orange", "pear", "sweet_pepper"]
SHAPES = Path(__file__).parents[1] / "conf/data/source/rendered.yaml"


@dataclass(frozen=True)
class Files:
    float32: Path
    int8: Path
    parity: float


@functools.cache
def pictures() -> NDArray[np.uint8]:
    """120 drawn pictures, N×3×S×S bytes, in no order of classes."""
    with tempfile.TemporaryDirectory() as folder:
        root = draw(Path(folder) / "drawn", train_per_class=24, test_per_class=1, seed=0,
                    shapes=OmegaConf.load(SHAPES).shapes)
        found = [np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))).transpose(2, 0, 1)
                 for path in sorted((root / "train").rglob("*.png"))]
    return np.stack(found)[np.random.default_rng(0).permutation(len(found))]


@functools.cache
def student() -> Trained:
    """Random weights, with a classifier that makes something of them: all classes are answered, most with confidence.

    Running statistics of BatchNorm are those of the pictures, as training would leave them.
    """
    torch.manual_seed(0)
    network = bare("test_efficientnet", len(CLASSES), SIZE)
    made = Trained(network, "test_efficientnet", CLASSES, SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                   sharpen=True, task="fruit", task_version=3, flip_average=True)
    images = (torch.from_numpy(pictures()).float() / 255 - 0.45) / 0.225
    with torch.no_grad():
        network.train()
        for _ in range(30):
            network(images)
        network.eval()
        logits = network(images)
        head = network.get_classifier()
        head.bias -= logits.mean(0)
        spread = (logits - logits.mean(0)).std(0)
        head.weight *= (2 / spread)[:, None]
        head.bias *= 2 / spread
    return made


@functools.cache
def files() -> Files:
    folder = Path(_folder().name)
    parity = export(student(), folder / "model.onnx", pictures())
    quantize(folder / "model.onnx", folder / "model.int8.onnx", pictures())
    return Files(folder / "model.onnx", folder / "model.int8.onnx", parity)


@functools.cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()


def failing(probabilities: Callable[[int], NDArray[np.float64]]) -> Callable[..., NDArray[np.float64]]:
    return lambda images: probabilities(len(images))
