"""Search for good values of a job's keys: `python -m src.search +experiment=cifar5`.

Every trial is `python -m src.train` in a process of its own, with the keys given here and those that Optuna chose: a
child of one MLflow run, which sums them up. The same command goes on where an earlier one stopped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.config import CONF, Search, output_folder, read, without_passwords
from src.console import entry_point, say, warn
from src.errors import ConfigError
from src.student.distil import check
from src.study import Point, Study
from src.tracking import PARENT, SWEPT, close_parent, figure_of, go_on_with, mark_failed, mark_repeated, open_parent

OWN = "search."  # keys that a training does not know


@hydra.main(config_path=CONF, config_name="search", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    job: Search = read(cfg, Search)
    if job.labeler.dry_run:
        raise ConfigError("labeler.dry_run", True, "a key of python -m src.label; search after that")
    check(job.student, job.trainer, job.data.kind)
    given = [str(override) for override in HydraConfig.get().overrides.task
             if not str(override).lstrip("+~").startswith(OWN)]
    asked, tracking = job.search, job.tracking
    fixed = {"choose_by": asked.choose_by, "keys": sorted(map(without_passwords, given))}
    study = Study(Path(job.home) / "optuna.db", asked.study, asked.space, fixed=fixed, seed=job.seed)
    parent = study.parent
    if parent is None:
        study.parent = parent = open_parent(
            tracking.uri, tracking.experiment, Path(tracking.artifacts), name=f"search {asked.study}", overrides=given,
            tags={"task": job.task.name, "teacher": job.teacher.model, "student": job.student.name},
        )
    else:
        say(f"Going on with search.study={asked.study!r}: {study.ended} of {asked.trials} trials have ended")
        go_on_with(tracking.uri, parent)
        mark_repeated(tracking.uri, parent, study.given_up)
    try:
        while study.ended < asked.trials:
            point = study.ask()
            say(f"Trial {study.ended + 1} of {asked.trials}: "
                + " ".join(f"{key}={spelt(value)}" for key, value in point.values.items()))
            study.tell(point, trial(point, given, tracking.uri, parent, asked.choose_by, output_folder()))
    finally:
        close_parent(tracking.uri, parent, asked.choose_by)


def trial(point: Point, given: Sequence[str], uri: str, parent: str, by: str, out: Path) -> float | None:
    """Train with these values and return the figure to choose by; None where that failed, which the parent says."""
    values = {key: spelt(value) for key, value in point.values.items()}
    log = out / f"trial_{point.number}.log"
    with log.open("w", encoding="utf-8") as output:
        status = run([sys.executable, "-m", "src.train", *given, *(f"{key}={value}" for key, value in values.items())],
                     {PARENT: parent, SWEPT: json.dumps({"job": point.number, "values": values})}, output)
    figure = figure_of(uri, parent, point.number, by) if status == 0 else None
    if figure is None:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = next((line for line in lines if " is not allowed" in line), lines[-1] if lines else f"status {status}")
        mark_failed(uri, parent, point.number, values, why)
        warn(f"Trial {point.number} failed ({log}): {why}")
    else:
        say(f"{by}: {figure:.4f}")
    return figure


def run(command: Sequence[str], more: Mapping[str, str], output: object) -> int:
    """Run it to its end and return its exit status; where this process is stopped, the other one is first."""
    env = {**os.environ, "PYTHONPATH": str(Path(CONF).parent), **more}
    with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env) as process:  # type: ignore[call-overload]
        try:
            return int(process.wait())
        except BaseException:
            process.terminate()
            process.wait()
            raise


def spelt(value: Any) -> str:
    """As an override; four digits are as good as more, and people read them."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


if __name__ == "__main__":
    main()
