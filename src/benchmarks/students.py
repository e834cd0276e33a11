"""Trained students for a benchmark: those of training runs, each with images that it did not learn from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.benchmarks.inference import Known
from src.console import say
from src.errors import ConfigError
from src.reopen import CALIBRATION_IMAGES, check_same_task, reopen, truths
from src.student.checkpoint import load
from src.student.images import decode


def known(runs: Sequence[str], *, uri: str, home: Path, out: Path) -> dict[int, Known]:
    """By input size, the student of each run, with gold's *choose* part and what of validation has a known truth.

    The network alone is measured: where a student answers with the mean over an image and its mirror image, that is
    left out. Raises ConfigError for two runs of one size, and what reopening a run raises.
    """
    found: dict[int, Known] = {}
    for run in runs:
        folder = out / run
        folder.mkdir(parents=True, exist_ok=True)
        past = reopen(uri, run, home=home, out=folder)
        trained = load(past.checkpoint)
        check_same_task(trained, past)
        if trained.input_size in found:
            raise ConfigError("runs", list(runs), f"one run for each input size; two are of {trained.input_size} px")
        splits, max_pixels = past.dataset.splits, past.job.data.max_pixels
        judged = [item for item in [*splits.choose, *splits.validation] if item.truth]
        images, calibration = (
            decode(items, trained.input_size, sharpen=trained.sharpen, max_pixels=max_pixels,
                   what=f"decoding {what} images").numpy()
            for what, items in (("judged", judged), ("training", splits.train[:CALIBRATION_IMAGES])))
        if trained.flip_average:
            say(f"{past.stored.name} answers with the mean over an image and its mirror image; measured without.")
        found[trained.input_size] = Known(replace(trained, flip_average=False), images, truths(judged, trained.classes),
                                          calibration)
    return found
