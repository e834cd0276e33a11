"""A small student with drawn pictures that it answers, exported and quantised once for all tests that ask."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

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
    """Random weights and all kinds of layers that a MobileNet has; also averages with the mirror image."""
    torch.manual_seed(0)
    network = bare("test_efficientnet", len(CLASSES), SIZE)
    return replace(_answering(network, network.get_classifier(), "test_efficientnet"), flip_average=True)


@functools.cache
def tiny() -> Trained:
    """Two convolutions: exported in a second, where all that happens to a student is asked about and not its layers."""
    torch.manual_seed(0)
    head = nn.Linear(16, len(CLASSES))
    network = nn.Sequential(nn.Conv2d(3, 16, 5, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return _answering(network, head, "tiny")


def _answering(network: nn.Module, head: nn.Linear, name: str) -> Trained:
    """With a classifier that makes something of the rest: all classes are answered, most with some confidence.

    Running statistics of BatchNorm are those of the pictures, as training would leave them.
    """
    images = (torch.from_numpy(pictures()).float() / 255 - 0.45) / 0.225
    with torch.no_grad():
        network.train()
        for _ in range(30):
            network(images)
        logits = network.eval()(images)
        scale = 2 / (logits - logits.mean(0)).std(0)
        head.bias -= logits.mean(0)
        head.weight *= scale[:, None]
        head.bias *= scale
    return Trained(network, name, CLASSES, SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), sharpen=True,
                   task="fruit", task_version=3)


@functools.cache
def files() -> Files:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    parity = export(student(), folder / "model.onnx", pictures())
    quantize(folder / "model.onnx", folder / "model.int8.onnx", pictures())
    return Files(folder / "model.onnx", folder / "model.int8.onnx", parity)
