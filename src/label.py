"""Label items and stop there: `python -m src.label +experiment=cifar5`.

Everything that `src.train` does before training, with the same keys; loads no torch once the data is prepared.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config import CONF, Job, output_folder, read
from src.console import entry_point
from src.labels import make_labels
from src.record import record_labels, run_of
from src.store import Store


@hydra.main(config_path=CONF, config_name="job", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    job: Job = read(cfg, Job)
    with run_of(cfg, job, stage="label") as run:
        made = make_labels(
            task=job.task, data=job.data, teacher=job.teacher, labeler=job.labeler, quality=job.quality,
            rehearsal=job.rehearsal, home=Path(job.home), store=Store(job.store), out=output_folder(), seed=job.seed,
        )
        if run:
            record_labels(run, made, job.task)


if __name__ == "__main__":
    main()
