"""Make the page about a run again, with what is known by now: `python -m src.report run=<id>`.

Reads what the run left behind, its certificates and the replays of its cascade. Where its items are still at hand,
their pictures are shown; nothing is brought from elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig

from src.config import CONF, Report, output_folder, read
from src.console import entry_point, say, warn
from src.data.dataset import open_dataset
from src.errors import FlywheelError
from src.record import TABLES, images_of, report_again
from src.reporting.findings import CONFIG, FILES
from src.tracking import run_of
from src.tracking.kept import kept
from src.written import job_of


@hydra.main(config_path=CONF, config_name="report", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Report = read(cfg, Report)
    uri, out = asked.tracking.uri, output_folder()
    run, _ = run_of(uri, asked.run)
    past = kept(uri, run, FILES, TABLES, out / "report")
    path = report_again(uri, past, images(past.folder / CONFIG, run, home=Path(asked.home)), out)
    say(f"Report: {path}  (and report.html in the MLflow run {run})")


def images(config: Path, run: str, *, home: Path) -> Mapping[str, Path]:
    """Where the run's images lie; none, with a warning, where they cannot be had here any more."""
    if not config.exists():  # the report will say so
        return {}
    try:
        stored: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        job = job_of(stored, run)
        return images_of(open_dataset(job.task, job.data, home=home, download=False,
                                      stand_in=job.rehearsal.mode != "never").splits)
    except (FlywheelError, yaml.YAMLError) as error:
        warn(f"The report goes without pictures: {str(error).splitlines()[0]}")
        return {}


if __name__ == "__main__":
    main()
