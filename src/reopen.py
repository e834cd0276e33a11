"""A training run of earlier, ready to be judged, certified or measured: its config, its files and its items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.config import Job
from src.data.dataset import Dataset, open_dataset, own_hash
from src.errors import DataError
from src.student.checkpoint import Trained, load
from src.student.choose import choose, show
from src.student.images import decode
from src.student.protocol import Student
from src.task import Item
from src.tracking import StoredRun, find, run_of
from src.written import job_of

CALIBRATION_IMAGES = 300  # of training, from which int8 takes its ranges


@dataclass(frozen=True)
class Past:
    """`stored` is the run as MLflow has it, with its files in `stored.folder`; `job` is what made it."""

    stored: StoredRun
    job: Job
    dataset: Dataset

    @property
    def note(self) -> str:
        """What of it was not real, or nothing."""
        return self.stored.tags.get("rehearsal", "no").removeprefix("no")

    @property
    def checkpoint(self) -> Path:
        return self.stored.folder / "mobilenet.pt"

    @property
    def same_items(self) -> bool:
        """Whether items and split are those that the run saw, escalations aside: these come and go, and never were in
        gold or test."""
        return self.dataset.own_hash == own_hash(self.stored.tags.get("dataset_hash", ""))


def reopen(uri: str, run: str, *, home: Path, out: Path) -> Past:
    """Fetch the run's files into `out` and open its items. Raises TrackingError where there is no such training run,
    and what opening data raises."""
    stored = find(uri, run_of(uri, run)[0], out)
    job = job_of(stored.config, run)
    dataset = open_dataset(job.task, job.data, home=home, download=job.rehearsal.mode != "always",
                           stand_in=job.rehearsal.mode != "never")
    return Past(stored, job, dataset)


def check_same_task(student: Trained, past: Past) -> None:
    """Raises DataError for a student of another task."""
    task, run = past.job.task, past.stored.id
    if (student.task, student.task_version, student.classes) != (task.name, task.version, task.names):
        raise DataError(f"mobilenet.pt of run={run!r} answers version {student.task_version} of the task "
                        f"{student.task!r} with {', '.join(student.classes)}, but the run's task is version "
                        f"{task.version} of {task.name!r} with {', '.join(task.names)}: train again, or name a run "
                        "of this task.")


def student_of(past: Past, *, runtime: str, dtype: str | None, margin: float, device: str, out: Path) -> Student:
    """The run's student on `device`, with the runtime and dtype asked for; what was tried to find them is printed, and
    files that are made for them lie in `out`. Raises DataError for a checkpoint that is none or of another task, and
    ConfigError for what is not supported here or costs more than `margin` of its accuracy on gold's *choose* part."""
    trained = load(past.checkpoint, device)
    check_same_task(trained, past)
    if (runtime, dtype or "fp32") == ("torch", "fp32"):
        return trained
    splits = past.dataset.splits
    images = [decode(items, trained.input_size, sharpen=trained.sharpen, max_pixels=past.job.data.max_pixels,
                     what=f"decoding {what} images")
              for what, items in (("gold", splits.choose), ("training", splits.train[:CALIBRATION_IMAGES]))]
    student, tried = choose(trained, runtime=runtime, dtype=dtype, margin=margin, choose_images=images[0],
                            choose_truth=truths(splits.choose, trained.classes), calibration_images=images[1], out=out)
    show(tried, student)
    return student


def truths(items: Sequence[Item], classes: Sequence[str]) -> NDArray[np.int64]:
    """[N] true class indices."""
    return np.array([classes.index(item.truth or "") for item in items], dtype=np.int64)
