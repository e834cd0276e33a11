"""Labels → a trained student on disk: the whole of this room in one call."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from src.console import warn
from src.data.splits import Splits
from src.errors import ConfigError, DataError
from src.student.checkpoint import Trained
from src.student.curves import Curves, Log
from src.student.device import resolve
from src.student.fit import Fitted, fit
from src.student.labelled import LabelledImages
from src.student.network import build
from src.student.network import check as check_network
from src.student.spec import StudentSpec, TrainerSpec
from src.task import Item, Label, TaskSpec

PARITY_IMAGES = 64  # on which the exported student is held against the original


@dataclass(frozen=True)
class Distilled:
    """A trained student, its file, how training went, and how many labels it learned from. It was chosen by the
    `validation` items, whose labels are the class indices `labels` [N] and for which it gives `probabilities` [N, C].
    `exported` is the same student as ONNX, None where that was not wanted or did not work.
    """

    trained: Trained
    checkpoint: Path
    exported: Path | None
    fitted: Fitted
    train_size: int
    validation: list[Item]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def figures(self) -> dict[str, float]:
        """Under the names that runs are compared by."""
        fitted = self.fitted
        return {
            "train/best_epoch": float(fitted.best_epoch),
            "train/epochs": float(fitted.epochs),
            "train/seconds": fitted.seconds,
            "train/items": float(self.train_size),
            "val/items": float(len(self.validation)),
        }


def check(spec: StudentSpec, trainer: TrainerSpec, kind: str = "images") -> None:
    """Raise ConfigError for what training would stumble over: items of another `kind` than a student can read, an
    unknown network, a missing file, an absent device."""
    if kind != "images":
        raise ConfigError("data.kind", kind, f"images, since there is no student for {kind} yet; they can be labelled "
                          "(python -m src.label), checked and reviewed")
    resolve(trainer.accelerator)
    check_network(spec)


def distil(labels: Sequence[Label], splits: Splits, task: TaskSpec, spec: StudentSpec, trainer: TrainerSpec, *,
           sharpen: bool, max_pixels: int, seed: int, out: Path, log: Log, download: bool,
           need_weights: bool) -> Distilled:
    """Train on the accepted labels and write `out/mobilenet.pt` and `out/model.onnx`; `log(metrics, step)` gets the
    curves."""
    data = LabelledImages(
        splits.train, splits.validation, {label.item: label for label in labels}, task.names,
        input_size=spec.input_size, batch_size=spec.batch_size, sharpen=sharpen, max_pixels=max_pixels, seed=seed,
    )
    untrained = partial(build, spec, len(task.names), download=download, need_weights=need_weights)
    fitted = fit(data, untrained, spec, trainer, seed=seed, logger=Curves(log), checkpoints=out / "checkpoints")
    trained = student(fitted, task, spec, sharpen=sharpen)
    # The curves' last point is the epoch that was chosen: runs are compared by last values.
    log({"val/teacher_agreement": fitted.val_agreement, "val/loss": fitted.val_loss}, step=fitted.epochs)
    checkpoint = out / "mobilenet.pt"
    trained.save(checkpoint)
    images, targets = data.validation
    probabilities = replace(trained, device=fitted.device).predict(images)
    exported = _export(trained, out / "model.onnx", images[:PARITY_IMAGES]) if spec.export else None
    return Distilled(trained, checkpoint, exported, fitted, len(data.train_items), data.validation_items,
                     targets.argmax(1).numpy(), probabilities)


def _export(trained: Trained, path: Path, images: Tensor) -> Path | None:
    """A student that cannot be exported is one all the same."""
    from src.student.export import export  # takes seconds

    try:
        export(trained, path, images)
    except DataError as error:
        warn(f"No model.onnx: {error}")
        return None
    return path


def student(fitted: Fitted, task: TaskSpec, spec: StudentSpec, *, sharpen: bool) -> Trained:
    """The trained network with all that its answers depend on, on the CPU."""
    return Trained(
        network=fitted.network, name=spec.name, classes=task.names, input_size=spec.input_size, mean=fitted.mean,
        std=fitted.std, sharpen=sharpen, task=task.name, task_version=task.version,
        flip_average=spec.flip_average,
    )
