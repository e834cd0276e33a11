"""The main job: `python -m src.train +experiment=cifar5`, from items to a tracked student.

Labels what has no label yet, trains on what was accepted, judges once, calibrates on gold, and leaves everything in one
MLflow run.
"""

import time
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.calibration.calibrate import calibrate_if_gold_allows
from src.config import CONF, Job, output_folder, read
from src.console import entry_point
from src.errors import ConfigError
from src.labels import make_labels
from src.record import record_labels, record_student, run_of, show_where
from src.store import Store
from src.student.distil import check, distil
from src.student.folds import out_of_fold
from src.student.judge import judge


@hydra.main(config_path=CONF, config_name="job", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    started = time.monotonic()
    job: Job = read(cfg, Job)
    if job.migrate_from is not None:
        raise ConfigError("migrate_from", job.migrate_from, "a key of python -m src.label; train after that")
    check(job.student, job.trainer, job.data.kind)  # before labels are paid for
    with run_of(cfg, job, stage="train") as run:
        made = make_labels(
            task=job.task, data=job.data, teachers=job.teachers, arbiter=job.arbiter, labeler=job.labeler,
            quality=job.quality, rehearsal=job.rehearsal, home=Path(job.home), store=Store(job.store),
            out=output_folder(), seed=job.seed, job=run.payer if run else "", note=run.metrics if run else None,
            tag=run.tags if run else None,
            out_of_fold=partial(
                out_of_fold, task=job.task, spec=job.student, trainer=job.trainer, folds=job.quality.folds,
                sharpen=job.data.shown.sharpen, max_pixels=job.data.max_pixels, seed=job.seed, out=output_folder(),
                download=job.rehearsal.mode != "always", need_weights=job.rehearsal.mode == "never",
            ),
        )
        if not run:
            return
        record_labels(run, made, job.task)
        student = distil(
            made.labels, made.dataset.splits, job.task, job.student, job.trainer, sharpen=job.data.shown.sharpen,
            max_pixels=job.data.max_pixels, seed=job.seed, out=output_folder(), log=run.metrics,
            download=job.rehearsal.mode != "always", need_weights=job.rehearsal.mode == "never",
        )
        run.metrics({"train/first_step_s": student.fitted.first_step_at - started})
        judged = judge(student.trained.on(student.fitted.device), made.dataset.splits, max_pixels=job.data.max_pixels,
                       seed=job.seed)
        gold = judged.parts["gold"]
        calibrated = calibrate_if_gold_allows(job.calibration.method, gold.probabilities, gold.truth,
                                              job.calibration.target_precision)
        record_student(run, student, judged, calibrated, made, job)
    show_where(run, job)


if __name__ == "__main__":
    main()
