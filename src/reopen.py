"""A training run of earlier, ready to be judged, certified or measured: its config, its files and its items."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.config import CONF, Job, read
from src.data.dataset import Dataset, open_dataset
from src.errors import DataError
from src.student.checkpoint import Trained
from src.tracking import StoredRun, find


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
        """Whether items and split are those that the run saw."""
        return self.dataset.hash == self.stored.tags.get("dataset_hash")


def reopen(uri: str, run: str, *, home: Path, out: Path) -> Past:
    """Fetch the run's files into `out` and open its items. Raises TrackingError where there is no such training run,
    and what opening data raises."""
    stored = find(uri, run, out)
    # Runs of before a group of keys was added have none of it: what stands in conf/ holds for them.
    later = OmegaConf.create({"calibration": OmegaConf.load(Path(CONF, "calibration", "default.yaml"))})
    config = OmegaConf.merge(OmegaConf.structured(Job), later, stored.config)
    assert isinstance(config, DictConfig)
    job: Job = read(config, Job)
    dataset = open_dataset(job.task, job.data, home=home, download=job.rehearsal.mode != "always",
                           stand_in=job.rehearsal.mode != "never")
    return Past(stored, job, dataset)


def check_same_task(student: Trained, past: Past) -> None:
    """Raises DataError for a student of another task."""
    task, run = past.job.task, past.stored.id
    if (student.task, student.classes) != (task.name, task.names):
        raise DataError(f"mobilenet.pt of run={run!r} answers the task {student.task!r} with "
                        f"{', '.join(student.classes)}, but the run's task is {task.name!r} with "
                        f"{', '.join(task.names)}: train again, or name a run of this task.")
