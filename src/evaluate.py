"""Judge the student of any training run again: `python -m src.evaluate run=<id>`.

Figures and pictures go to a run of their own, which names the one it judged; that one stays as it was.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.config import CONF, Evaluation, Job, output_folder, read
from src.console import entry_point, say, table, warn
from src.data.dataset import open_dataset
from src.record import record_judgements, result_rows, speed_figures
from src.student.checkpoint import load
from src.student.device import resolve
from src.student.judge import judge
from src.tracking import find, open_run


@hydra.main(config_path=CONF, config_name="evaluate", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Evaluation = read(cfg, Evaluation)
    device = resolve(asked.accelerator, "accelerator")
    out = output_folder()
    stored = find(asked.tracking.uri, asked.run, out)
    config = OmegaConf.merge(OmegaConf.structured(Job), stored.config)
    assert isinstance(config, DictConfig)
    job: Job = read(config, Job)
    dataset = open_dataset(job.task, job.data, home=Path(asked.home), download=job.rehearsal.mode != "always",
                           stand_in=job.rehearsal.mode != "never")
    if dataset.hash != stored.tags.get("dataset_hash"):
        warn("The items or their split are no longer those of that run: some may have been trained on.")
    note = stored.tags.get("rehearsal", "no").removeprefix("no")
    tags = {"flywheel.stage": "evaluate", "flywheel.evaluates": stored.id, "task": job.task.name,
            "student": job.student.name, "rehearsal": note or "no"}
    with open_run(uri=asked.tracking.uri, experiment=stored.experiment, artifacts=Path(asked.tracking.artifacts),
                  name=f"{stored.name} again", tags=tags) as run:
        student = load(out / "mobilenet.pt")
        judged = judge(student, dataset.splits, max_pixels=job.data.max_pixels, seed=job.seed,
                       device=device)
        run.metrics(speed_figures(judged))
        record_judgements(run, judged, student.classes, job.data.max_pixels, note)
    table(f"{stored.name}, judged again {note}".strip(), result_rows(judged, job.task.metric), ("what", "figure"))
    say(f"Pictures and tables: MLflow run {run.id}")


if __name__ == "__main__":
    main()
