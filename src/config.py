"""The schema of `conf/`: every key, its type and what is allowed. Values stand in the YAML files alone.

Config stops here: entry points take the typed parts apart and hand them on.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.data.spec import DataSpec
from src.errors import ConfigError, FlywheelError
from src.labeling.ask import RehearsalSpec
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.quality.spec import QualitySpec
from src.student.spec import ACCELERATORS, StudentSpec, TrainerSpec
from src.task import TaskSpec

PASSWORD = re.compile(r"(://[^/\s:@]*:)\S+@|((?i:[?&]password=))[^&\s'\"]+")
# Absolute, so that entry points also work when they are imported and called.
CONF = str(Path(__file__).parents[1] / "conf")


@dataclass
class TrackingSpec:
    """`uri` is MLflow's tracking address; `experiment` its experiment; `artifacts` where it keeps files when the
    address is a local database."""

    uri: str
    experiment: str
    artifacts: str


@dataclass
class Job:
    """A labelling or training job. `home` holds all state, `store` is the annotation store's file or address."""

    home: str
    store: str
    seed: int
    task: TaskSpec
    data: DataSpec
    teacher: Teacher
    labeler: LabelerSpec
    quality: QualitySpec
    student: StudentSpec
    trainer: TrainerSpec
    rehearsal: RehearsalSpec
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError("seed", self.seed, "0 or more, below 2**32")


@dataclass
class Evaluation:
    """`run` is the id of the run to judge again."""

    home: str
    run: str
    accelerator: str
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise ConfigError("accelerator", self.accelerator, f"one of {', '.join(ACCELERATORS)}")
        if not self.run:
            raise ConfigError("run", self.run, "the id of a training run, as the MLflow UI shows it")


@dataclass
class Benchmark:
    """`suite` names what is measured; each timing takes `steps` steps and is repeated `repeats` times."""

    home: str
    suite: str
    sizes: list[int]
    batch_size: int
    steps: int
    repeats: int
    demo: bool

    def __post_init__(self) -> None:
        for key in ("batch_size", "steps", "repeats"):
            if getattr(self, key) < 2:
                raise ConfigError(key, getattr(self, key), "2 or more")


for name, schema in (("job", Job), ("evaluation", Evaluation), ("benchmark", Benchmark)):
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def read(cfg: DictConfig, kind: type[Any]) -> Any:
    """The checked, typed config. Raises ConfigError for a value out of range or missing, naming its key."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(missing[0], MISSING, f"this key has no default; give {missing[0]}=…")
    try:
        # Once more against the bare schema: Hydra's `+key=value` adds whatever it is given.
        plain = OmegaConf.to_container(cfg, resolve=True)
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), plain))
    except FlywheelError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key), error.value, str(error.msg or error).splitlines()[0]) from error
    assert isinstance(found, kind)
    return found


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as it may be written down. Keys stand in the environment alone; the password of a database's
    address is struck out."""
    return dict(yaml.safe_load(without_passwords(OmegaConf.to_yaml(cfg, resolve=True))))


def without_passwords(text: str) -> str:
    """The text with the passwords of all addresses in it struck out."""
    return PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def output_folder() -> Path:
    """Where this job writes its files; relative where it lies below the current folder, since people read it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
