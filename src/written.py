"""A job's config as its run keeps it: written down, and read again by any later command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.address import without_passwords
from src.config import CONF, Job, read
from src.errors import DataError


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as it may be written down. Keys stand in the environment alone; the password of a database's
    address is struck out."""
    return dict(yaml.safe_load(without_passwords(OmegaConf.to_yaml(cfg, resolve=True))))


def job_of(config: Mapping[str, Any], run: str) -> Job:
    """The typed config of a run of earlier. Raises DataError for one that this version cannot read."""
    # Runs of before a group of keys was added have none of it: what stands in conf/ holds for them.
    later = OmegaConf.create({"calibration": OmegaConf.load(Path(CONF, "calibration", "default.yaml")),
                              "student": {"export": False}})
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Job), later, config)
    except OmegaConfBaseException as error:
        raise DataError(f"config.yaml of run={run!r} cannot be read by this version of Flywheel "
                        f"({str(error).splitlines()[0]}): use the version that made it, or train again.") from error
    assert isinstance(merged, DictConfig)
    job: Job = read(merged, Job)
    return job
