"""Labelled images in memory as a LightningDataModule: decoded once, handed out a batch at a time.

Knows nothing about who labelled them or what learns from them.
"""

from collections.abc import Iterator, Mapping, Sequence

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.errors import DataError
from src.student.images import decode
from src.task import Item, Label

MIN_TRAIN = 2


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Images (N×3×S×S bytes) and targets (N×C probabilities), asked for by a list of indices at a time: one gather
    instead of a Python loop and a collation over the batch."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.targets[indices]


class Shuffled(Sampler[list[int]]):
    """Batches of indices, in a new order every epoch where a seed is given; the incomplete last batch is left out then.

    BatchNorm's running statistics move as far for a batch of two as for one of 64, and validation comes right after it.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int | None) -> None:
        self.size = size
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed) if seed is not None else None

    def __iter__(self) -> Iterator[list[int]]:
        shuffled = self.generator is not None
        order = torch.randperm(self.size, generator=self.generator) if shuffled else torch.arange(self.size)
        for batch in torch.split(order, self.batch_size):
            if not shuffled or len(batch) == self.batch_size:
                yield batch.tolist()

    def __len__(self) -> int:
        whole, left = divmod(self.size, self.batch_size)
        return whole + (left > 0 and self.generator is None)


class LabelledImages(L.LightningDataModule):
    """Training and validation images with their labels as class probabilities.

    Only accepted labels are taken: a label's distribution where it has one, else all probability on its class.
    `decoded` holds images by item key (3×S×S bytes) where they were decoded before. Raises DataError where training or
    validation would be empty.
    """

    def __init__(self, train: Sequence[Item], validation: Sequence[Item], labels: Mapping[str, Label],
                 classes: Sequence[str], *, input_size: int, batch_size: int, sharpen: bool, max_pixels: int,
                 seed: int, decoded: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.train_items = accepted(train, labels)
        self.validation_items = accepted(validation, labels)
        for part, items, least in (("training", self.train_items, MIN_TRAIN), ("validation", self.validation_items, 1)):
            if len(items) < least:
                raise DataError(f"{len(items)} accepted label(s) in the {part} part are too few: raise "
                                "labeler.max_items, or lower what quality.min_… asks.")
        self._labels = labels
        self._classes = list(classes)
        self._size, self._sharpen, self._max_pixels = input_size, sharpen, max_pixels
        self._batch_size = min(batch_size, len(self.train_items))
        self._seed = seed
        self._decoded = decoded
        self._parts: dict[str, Batches] = {}

    def setup(self, stage: str) -> None:
        """Decode once; Lightning asks for this before every stage."""
        for part, items in (("train", self.train_items), ("validation", self.validation_items)):
            if part not in self._parts:
                self._parts[part] = Batches(self._images(part, items), self._targets(items))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader("train", self._seed)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader("validation", None)

    @property
    def training(self) -> tuple[Tensor, Tensor]:
        """Images and targets of the training part, in the order of `train_items`."""
        part = self._parts["train"]
        return part.images, part.targets

    @property
    def validation(self) -> tuple[Tensor, Tensor]:
        """Images and targets of the validation part, in the order of `validation_items`."""
        part = self._parts["validation"]
        return part.images, part.targets

    def _loader(self, part: str, seed: int | None) -> DataLoader[tuple[Tensor, Tensor]]:
        batches = self._parts[part]
        # Everything is in memory: worker processes would only copy it.
        sampler = Shuffled(len(batches), self._batch_size, seed=seed)
        return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=0)

    def _images(self, part: str, items: Sequence[Item]) -> Tensor:
        if self._decoded is not None:
            return torch.stack([self._decoded[item.key] for item in items])
        return decode(items, self._size, sharpen=self._sharpen, max_pixels=self._max_pixels,
                      what=f"decoding {part} images")

    def _targets(self, items: Sequence[Item]) -> Tensor:
        targets = np.zeros((len(items), len(self._classes)), np.float32)
        for row, item in zip(targets, items, strict=True):
            label = self._labels[item.key]
            if label.distribution:
                row[:] = label.distribution
            elif label.label is not None:
                row[self._classes.index(label.label)] = 1
        return torch.from_numpy(targets)


def accepted(items: Sequence[Item], labels: Mapping[str, Label]) -> list[Item]:
    """The items that students may learn from: an accepted label that says a class or a probability for each."""
    found = ((item, labels.get(item.key)) for item in items)
    return [item for item, label in found if label and label.accepted and (label.label or label.distribution)]
