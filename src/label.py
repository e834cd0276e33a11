"""Label items and stop there: `python -m src.label +experiment=cifar5`.

Everything that `src.train` does before training, with the same keys; loads no torch once the data is prepared. With
`migrate_from=1`, what version 1's answers still tell is carried over first.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config import CONF, Job, output_folder, read
from src.console import entry_point, say
from src.labeling.migrate import LISTED, migrate
from src.labeling.prompt import render
from src.labels import make_labels
from src.quality.spreadsheet import csv_text, write_whole
from src.record import record_labels, run_of
from src.store import Store
from src.tracking import Run


@hydra.main(config_path=CONF, config_name="job", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    job: Job = read(cfg, Job)
    with run_of(cfg, job, stage="label") as run:
        if job.migrate_from is not None:
            carry_over(job, job.migrate_from, run)
            if not run:  # nothing was carried, so a plan of what is left to ask would be wrong
                return
        made = make_labels(
            task=job.task, data=job.data, teachers=job.teachers, arbiter=job.arbiter, labeler=job.labeler,
            quality=job.quality, rehearsal=job.rehearsal, home=Path(job.home), store=Store(job.store),
            out=output_folder(), seed=job.seed, job=run.payer if run else "", note=run.metrics if run else None,
            tag=run.tags if run else None,
        )
        if run:
            record_labels(run, made, job.task)


def carry_over(job: Job, version: int, run: Run | None) -> None:
    """Bring the annotations of an earlier version to today's, and list what has to be asked again."""
    prompt = render(job.task, job.data.shown if job.data.kind == "images" else None)
    everybody = [*job.teachers, *([job.arbiter] if job.arbiter else [])]
    found = migrate(Store(job.store), job.task, prompt, version, teachers=everybody, dry_run=run is None)
    if run:
        listed = output_folder() / "asked_again.csv"
        write_whole(listed, csv_text(LISTED, found.listed))
        run.metrics(found.figures())
        run.file(listed)
        say(f"What was not carried over: {listed}")


if __name__ == "__main__":
    main()
