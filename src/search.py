"""Search for good values of a job's keys: `python -m src.search +experiment=cifar5`.

Every trial is `python -m src.train` in a process of its own, with the keys given here and those that Optuna chose: a
child of one MLflow run, which sums them up. The same command goes on where an earlier one stopped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from src.address import without_passwords
from src.config import CONF, Dimension, Job, Search, output_folder, read
from src.console import entry_point, say, warn
from src.errors import ConfigError, FlywheelError
from src.student.distil import check
from src.study import Point, Study
from src.tracking import PARENT, SWEPT, close_parent, figure_of, go_on_with, mark_failed, mark_repeated, open_parent
from src.tracking.server import reached

OWN = "search."  # keys that a training does not know
HOPELESS = 3  # trials that fail from the start, before the search is given up


@hydra.main(config_path=CONF, config_name="search", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    job: Search = read(cfg, Search)
    if job.labeler.dry_run:
        raise ConfigError("labeler.dry_run", True, "a key of python -m src.label; search after that")
    check(job.student, job.trainer, job.data.kind)
    given = [str(override) for override in HydraConfig.get().overrides.task
             if not str(override).lstrip("+~").startswith(OWN)]
    fixed = {"choose_by": job.search.choose_by, "keys": sorted(map(without_passwords, given))}
    study = Study(Path(job.home) / "optuna.db", job.search.study, searched(job.search.space, given), fixed=fixed,
                  seed=job.seed)
    with reached(job.tracking.uri):
        figures = try_values(study, job, given)
    if set(figures) == {None}:
        raise FlywheelError(f"None of {len(figures)} trials trained a student, for the reasons above. Once that is "
                            "mended, the same command goes on, with a larger search.trials where all have ended; "
                            "where other keys mend it, give another search.study.")


def try_values(study: Study, job: Search, given: Sequence[str]) -> list[float | None]:
    """Train until as many trials as were asked for have ended, or the first few have all failed; the figures of those
    that were tried now, None where one failed."""
    asked, tracking, parent = job.search, job.tracking, study.parent
    if parent is None:
        study.parent = parent = open_parent(
            tracking.uri, tracking.experiment, Path(tracking.artifacts), name=f"search {asked.study}",
            overrides=list(map(without_passwords, given)),
            tags={"task": job.task.name, "teacher": job.teacher.model, "student": job.student.name},
        )
    else:
        go_on_with(tracking.uri, parent)
        study.settle(partial(figure_of, tracking.uri, parent, by=asked.choose_by))
        mark_repeated(tracking.uri, parent, study.repeated)
        say(f"Going on with search.study={asked.study!r}: {study.ended} of {asked.trials} trials have ended")
    figures: list[float | None] = []
    try:
        while study.ended < asked.trials and (len(figures) < HOPELESS or set(figures) != {None}):
            point = study.ask()
            say(f"Trial {study.ended + 1} of {asked.trials}: "
                + " ".join(f"{key}={spelt(value)}" for key, value in point.values.items()))
            figures.append(trial(point, given, tracking.uri, parent, asked.choose_by, output_folder()))
            study.tell(point, figures[-1])
    finally:
        close_parent(tracking.uri, parent, asked.choose_by)
    return figures


def searched(space: Mapping[str, Dimension], given: Sequence[str]) -> dict[str, Dimension]:
    """The keys to search: those of `space` that are not given. Raises ConfigError where a training would not take one
    of them, or its least or largest value."""
    fixed = {override.lstrip("+~").partition("=")[0] for override in given}
    if taken := sorted(space.keys() & fixed):
        say(f"Given, and so not searched: {', '.join(taken)}")
    left = {key: span for key, span in space.items() if key not in fixed}
    if not left:
        raise ConfigError("search.space", sorted(space), "a key more than those that are given")
    for key, span in left.items():
        for value in span.values or (span.low, span.high):
            try:
                job: Job = read(compose("job", [*given, f"{key}={spelt(value)}"]), Job)
                check(job.student, job.trainer, job.data.kind)
            except HydraException as error:  # ours, or Hydra's, which says what is wrong in its cause
                why = str(error if isinstance(error, ConfigError) else error.__cause__ or error)
                raise ConfigError(f"search.space[{key}]", value, why.splitlines()[0]) from error
    return left


def trial(point: Point, given: Sequence[str], uri: str, parent: str, by: str, out: Path) -> float | None:
    """Train with these values and return the figure to choose by; None where that failed, which the parent says."""
    values = {key: spelt(value) for key, value in point.values.items()}
    log = out / f"trial_{point.number}.log"
    with log.open("w", encoding="utf-8") as output:
        status = run([sys.executable, "-m", "src.train", *given, *(f"{key}={value}" for key, value in values.items())],
                     {PARENT: parent, SWEPT: json.dumps({"job": point.number, "values": values})}, output)
    figure = figure_of(uri, parent, point.number, by) if status == 0 else None
    if figure is None:
        # Hydra's own advice comes last.
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
                 if line.strip() and "HYDRA_FULL_ERROR" not in line]
        why = lines[-1] if lines else f"status {status}"
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
