"""A trained student on disk (`mobilenet.pt`) and in use: images in, probabilities out.

The file holds tensors and plain values only, so `torch.load(..., weights_only=True)` reads it. Knows nothing about how
the student was trained or what its answers lead to.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from src.errors import DataError
from src.student.augment import normalise
from src.student.device import memory_format
from src.student.network import bare
from src.student.protocol import Pixels, as_seen

FORMAT = 1
BATCH = 128


@dataclass(frozen=True)
class Trained:
    """A network and all that its answers depend on: a `protocol.Student` that runs on torch.

    `classes` gives the order of the probabilities. With `dtype` bf16 a copy of the network answers, which is made at
    the first question; the network itself, and what is saved, stays as it was trained.
    """

    network: torch.nn.Module
    name: str
    classes: list[str]
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sharpen: bool
    task: str
    task_version: int
    flip_average: bool = False
    device: str = "cpu"
    dtype: str = "fp32"

    @property
    def runtime(self) -> str:
        return "torch"

    def save(self, path: Path) -> None:
        fields = {key: getattr(self, key) for key in _KEYS}
        fields |= {"mean": list(self.mean), "std": list(self.std), "format": FORMAT}
        state = {key: value.contiguous() for key, value in self.network.state_dict().items()}
        torch.save({**fields, "state_dict": state}, path)

    def on(self, device: str, dtype: str = "fp32") -> "Trained":
        """The same student there, with a network of its own."""
        return replace(self, network=copy.deepcopy(self.network), device=device, dtype=dtype)

    def predict_images(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """N×C probabilities of PIL images of any size."""
        return self.predict(as_seen(self, images))

    @torch.inference_mode()
    def predict(self, images: Pixels) -> NDArray[np.float64]:
        """N×C probabilities of N×3×S×S bytes."""
        self._answering.to(self.device).eval()
        batches = torch.split(torch.as_tensor(images), BATCH)
        found = [self.probabilities(batch.to(self.device)).cpu() for batch in batches]
        return torch.cat(found).double().numpy() if len(images) else np.zeros((0, len(self.classes)))

    def probabilities(self, images: Tensor) -> Tensor:
        """The same from tensor to tensor, on the device."""
        ready = normalise(images, self.mean, self.std).contiguous(memory_format=memory_format(self.device))
        seen = self._softmax(ready)
        return (seen + self._softmax(ready.flip(3))) / 2 if self.flip_average else seen

    def _softmax(self, ready: Tensor) -> Tensor:
        if self.dtype == "bf16":
            ready = ready.bfloat16()
        logits: Tensor = self._answering(ready)
        return logits.float().softmax(1)

    @cached_property
    def _answering(self) -> torch.nn.Module:
        return copy.deepcopy(self.network).bfloat16() if self.dtype == "bf16" else self.network


_KEYS = ("name", "classes", "input_size", "sharpen", "task", "task_version", "flip_average")


def load(path: Path, device: str = "cpu") -> Trained:
    """Raises DataError for a file that is not a student of ours."""
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise DataError(f"{path} has format {saved['format']}, this Flywheel reads {FORMAT}.")
        network = bare(saved["name"], len(saved["classes"]), saved["input_size"])
        network.load_state_dict(saved["state_dict"])
        fields = {key: saved[key] for key in _KEYS}
        # A network in the layout it will be fed: on CPU that is worth a third of the speed.
        network = network.to(memory_format=memory_format(device)).eval()
        return Trained(network, mean=tuple(saved["mean"]), std=tuple(saved["std"]), device=device, **fields)
    except DataError:
        raise
    except Exception as error:  # not a zip, not a dict, other keys, other shapes
        raise DataError(f"{path} is not a student's checkpoint ({type(error).__name__}): train again, or name another "
                        "run.") from error
