"""The schema of `conf/`: every key, its type and what is allowed. Values stand in the YAML files alone.

Config stops here: entry points take the typed parts apart and hand them on.
"""

import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.calibration.spec import CalibrationSpec
from src.cascade.spec import CascadeSpec
from src.cost_model import Inputs
from src.data.spec import DataSpec
from src.errors import ConfigError, FlywheelError
from src.labeling.ask import RehearsalSpec
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.quality.spec import QualitySpec
from src.reporting.sweeps import check_choice
from src.serving.spec import ServingSpec
from src.student.protocol import DTYPES, RUNTIMES
from src.student.spec import ACCELERATORS, StudentSpec, TrainerSpec
from src.task import TaskSpec

TEACHER_KEY = re.compile(rf"(?<![\w/.@-])teacher\.(?=({'|'.join(key.name for key in fields(Teacher))})\b)")
EXPORTS = (".csv", ".jsonl", ".parquet")
# Absolute, so that entry points also work when they are imported and called.
CONF = str(Path(__file__).parents[1] / "conf")


@dataclass
class TrackingSpec:
    """`uri` is MLflow's tracking address; `experiment` its experiment; `artifacts` where it keeps files when the
    address is a local database. A student is registered as `register`, where a name is given."""

    uri: str
    experiment: str
    artifacts: str
    register: str | None = None


@dataclass
class Job:
    """A labelling or training job. `home` holds all state, `store` is the annotation store's file or address. `panel`
    holds further teachers that are asked about every item, by names of the user's; the `arbiter` is asked where all of
    them disagree. `migrate_from` is a version of the task whose annotations are carried over before anybody is asked.
    """

    home: str
    store: str
    seed: int
    migrate_from: int | None
    task: TaskSpec
    data: DataSpec
    teacher: Teacher
    panel: dict[str, Teacher]
    arbiter: Teacher | None
    labeler: LabelerSpec
    quality: QualitySpec
    student: StudentSpec
    trainer: TrainerSpec
    calibration: CalibrationSpec
    rehearsal: RehearsalSpec
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError("seed", self.seed, "0 or more, below 2**32")

    @property
    def teachers(self) -> list[Teacher]:
        """Who is asked about every item."""
        return [self.teacher, *self.panel.values()]


@dataclass
class Review(Job):
    """A job's keys, and what is to be done with its labels: `action` and `format`, how Label Studio gets `images`, and
    the `file` to import."""

    action: str
    format: str
    images: str
    file: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, allowed in (("action", ("export", "import")), ("format", ("csv", "label_studio")),
                             ("images", ("embedded", "local"))):
            if getattr(self, key) not in allowed:
                raise ConfigError(key, getattr(self, key), f"one of {', '.join(allowed)}")
        if (self.action, self.format) == ("import", "label_studio") and not self.file:
            raise ConfigError("file", self.file, "the file that Label Studio exported, as JSON or JSON-MIN")


@dataclass
class Dimension:
    """What a search may give one key: numbers from `low` to `high`, evenly by their logarithm with `log` and whole ones
    with `whole`; or one of `values`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    values: list[Any] | None = None


@dataclass
class SearchSpec:
    """`trials` trainings in all, each a point of `space`, which is keyed by dotted keys of a job. The best is found by
    `choose_by`: validation or gold. A search goes on where the `study` of that name in home/optuna.db stopped."""

    study: str
    trials: int
    choose_by: str
    space: dict[str, Dimension]

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError("search.trials", self.trials, "1 or more")
        check_choice(self.choose_by, "search.choose_by")
        if not self.space:
            raise ConfigError("search.space", self.space, "one key or more, as in conf/search.yaml")
        for name, span in self.space.items():
            key = f"search.space[{name}]"
            if span.values is not None:
                if len(span.values) < 2 or (span.low, span.high) != (None, None):
                    raise ConfigError(key, span.values, "two values or more, without low and high")
            elif span.low is None or span.high is None or not span.low < span.high:
                raise ConfigError(key, f"{span.low} to {span.high}", "values, or low and a larger high")
            elif span.log and not span.low > 0:
                raise ConfigError(key, span.low, "more than 0 for log")
            elif span.whole and not (span.low == int(span.low) and span.high == int(span.high)):
                raise ConfigError(key, f"{span.low} to {span.high}", "whole numbers")


@dataclass
class Search(Job):
    """A job's keys, and what is searched for among them."""

    search: SearchSpec


@dataclass
class Evaluation:
    """`run` is the id of the run to judge again, and to put before its teacher in a cascade. That is replayed on
    `part` of its items, or on the images below `items`. `ask` says whether the teacher may be asked about them, for
    `max_cost_usd` at the most. `target_precision` is the one whose certificate and usual threshold are taken; None
    takes the newest certificate's, or the run's own. The student answers with `runtime` and `dtype`, where that costs
    at most `margin` of its accuracy on gold."""

    home: str
    run: str
    part: str
    items: str | None
    ask: str
    max_cost_usd: float
    target_precision: float | None
    runtime: str
    dtype: str | None
    margin: float
    accelerator: str
    cascade: CascadeSpec
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        for key, choices in (("part", ("test", "gold")), ("ask", ("auto", "always", "never"))):
            if getattr(self, key) not in choices:
                raise ConfigError(key, getattr(self, key), f"one of {', '.join(choices)}")
        if not self.max_cost_usd >= 0:
            raise ConfigError("max_cost_usd", self.max_cost_usd, "0 or more US dollars")
        if self.target_precision is not None and not 0 < self.target_precision < 1:
            raise ConfigError("target_precision", self.target_precision, "between 0 and 1, or null")
        _check_runtime(self.runtime, self.dtype, self.margin)
        if self.accelerator not in ACCELERATORS:
            raise ConfigError("accelerator", self.accelerator, f"one of {', '.join(ACCELERATORS)}")
        if not self.run:
            raise ConfigError("run", self.run, "the id of a training run, as the MLflow UI shows it")


@dataclass
class Certification:
    """`run` is the id of the training run whose student is to be certified, as it answers with `runtime` and `dtype`;
    these may cost at most `margin` of its accuracy on gold. `plan` only says how much gold that would take, for gold of
    `gold_sizes` items or, where a run is named, for its own."""

    home: str
    run: str | None
    plan: bool
    gold_sizes: list[int]
    runtime: str
    dtype: str | None
    margin: float
    accelerator: str
    calibration: CalibrationSpec
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise ConfigError("accelerator", self.accelerator, f"one of {', '.join(ACCELERATORS)}")
        if not self.plan and not self.run:
            raise ConfigError("run", self.run, "the id of a training run, as the MLflow UI shows it; plan=true needs "
                              "none")
        if not self.gold_sizes or min(self.gold_sizes) < 2:
            raise ConfigError("gold_sizes", self.gold_sizes, "one size or more, each 2 or more")
        _check_runtime(self.runtime, self.dtype, self.margin)


@dataclass
class Comparison:
    """`sweep` is the id of a multirun's parent run, `key` the configuration's key that its runs are compared by, and
    `baseline` the value of it that the others are held against. `parts` decide; `metrics` are logged ones that are
    shown beside it."""

    home: str
    sweep: str
    key: str
    baseline: Any
    parts: list[str]
    metrics: list[str]
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        if not self.sweep:
            raise ConfigError("sweep", self.sweep, "the id of a multirun's parent run, as the MLflow UI shows it")
        if not self.key or self.key == "seed":
            raise ConfigError("key", self.key, "a dotted key of the runs' config.yaml; seeds are what is averaged over")
        if not self.parts or not set(self.parts) <= {"validation", "gold"} or len(set(self.parts)) < len(self.parts):
            raise ConfigError("parts", self.parts, "validation, gold, or both; test chooses nothing")


@dataclass
class Cost(Inputs):
    """What the money depends on, taken from the training run `run` and its newest evaluation where one is named and
    nothing else is given; `draws` worlds by `seed` make the intervals."""

    home: str
    run: str | None
    draws: int
    seed: int
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 100:
            raise ConfigError("draws", self.draws, "100 or more")
        if self.seed < 0:
            raise ConfigError("seed", self.seed, "0 or more")
        if self.run == "":
            raise ConfigError("run", self.run, "the id of a training run, a registered model, latest, or null")


@dataclass
class Report:
    """`run` is the labelling or training run to report on: an id, a registered model, or "latest"."""

    home: str
    run: str
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        if not self.run:
            raise ConfigError("run", self.run, "the id of a run, as the MLflow UI shows it, or latest")


@dataclass
class Serve:
    """`run` is the training run whose student is served: an id, a registered model, or "latest". `store` holds
    annotations and decisions. The student answers with `runtime` and `dtype`, as in an evaluation, and is trusted as
    far as its certificate for `target_precision` says. The server sends itself `sample_traffic` images a second."""

    home: str
    run: str
    store: str
    target_precision: float | None
    runtime: str
    dtype: str | None
    margin: float
    accelerator: str
    sample_traffic: float
    serving: ServingSpec
    cascade: CascadeSpec
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        if not self.run:
            raise ConfigError("run", self.run, "the id of a training run, a registered model, or latest")
        if self.target_precision is not None and not 0 < self.target_precision < 1:
            raise ConfigError("target_precision", self.target_precision, "between 0 and 1, or null")
        if self.accelerator not in ACCELERATORS:
            raise ConfigError("accelerator", self.accelerator, f"one of {', '.join(ACCELERATORS)}")
        if not 0 <= self.sample_traffic <= 1000:
            raise ConfigError("sample_traffic", self.sample_traffic, "0 to 1000 images a second")
        _check_runtime(self.runtime, self.dtype, self.margin)


@dataclass
class Benchmark:
    """`suite` names what is measured; each timing takes `steps` steps and is repeated `repeats` times.

    Of inference: `runs` are training runs whose students are measured; without any, networks with random weights at
    `input_sizes` are; each answers `batches` of images at once. Of labeling: numbers of questions asked at a time, the
    seconds that a server takes, `waves` of questions to it, `requests` to one that answers at once, the `rate` a second
    that a token bucket grants for `bucket_s` seconds, and how many items have answers in a large store, or are labelled
    while memory is watched. Of serving: the student of one of `runs`, by default the newest; each load lasts `load_s`
    seconds; `log_decisions` are written and `replay_decisions` replayed while memory is watched.
    """

    home: str
    suite: str
    sizes: list[int]
    batch_size: int
    steps: int
    repeats: int
    demo: bool
    runs: list[str]
    input_sizes: list[int]
    batches: list[int]
    concurrency: list[int]
    latency_s: float
    waves: int
    requests: int
    rate: float
    bucket_s: float
    stored_items: int
    labelled_items: int
    load_s: float
    log_decisions: int
    replay_decisions: int
    spend: int
    shares: list[float]
    seeds: int
    reviews: str | None
    chart: str | None
    tracking: TrackingSpec

    def __post_init__(self) -> None:
        for key, least in (("input_sizes", 32), ("batches", 1)):
            if not getattr(self, key) or min(getattr(self, key)) < least:
                raise ConfigError(key, getattr(self, key), f"one number or more, each {least} or more")
        for key in ("batch_size", "steps", "repeats", "seeds"):
            if getattr(self, key) < 2:
                raise ConfigError(key, getattr(self, key), "2 or more")
        if not 150 <= self.spend <= 1200:
            raise ConfigError("spend", self.spend, "150 to 1200 answers")
        for key, least in (("waves", 4), ("requests", 1), ("stored_items", 100), ("labelled_items", 100),
                           ("log_decisions", 1000), ("replay_decisions", 1000)):
            if getattr(self, key) < least:
                raise ConfigError(key, getattr(self, key), f"{least} or more")
        for key in ("latency_s", "rate", "bucket_s", "load_s"):
            if not getattr(self, key) > 0:
                raise ConfigError(key, getattr(self, key), "more than 0")
        if not self.concurrency or min(self.concurrency) < 1:
            raise ConfigError("concurrency", self.concurrency, "one number or more, each 1 or more")
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise ConfigError("shares", self.shares, "one or more shares in [0, 1]")


@dataclass
class Decisions:
    """Which steps of the decision log in `store` are wanted: of one `task` or of all, from `since` on and before
    `until`. They are written to `file`, which may be there already only with `overwrite`."""

    home: str
    store: str
    task: TaskSpec | None
    since: str | None
    until: str | None
    file: str | None
    overwrite: bool

    def __post_init__(self) -> None:
        since, until = moment("since", self.since), moment("until", self.until)
        if since and until and since >= until:
            raise ConfigError("until", self.until, f"later than since={self.since}")
        if self.file is not None and Path(self.file).suffix not in EXPORTS:
            raise ConfigError("file", self.file, f"a name that ends in {', '.join(EXPORTS)}, or null")


def moment(key: str, value: str | None) -> datetime | None:
    """The time that `value` names, in UTC where it does not say. Raises ConfigError."""
    try:
        at = datetime.fromisoformat(value) if value is not None else None
        return at.replace(tzinfo=UTC) if at and at.tzinfo is None else at
    except ValueError:
        raise ConfigError(key, value, "a day or time such as 2026-11-23 or 2026-11-23T09:30+01:00, or null") from None


for name, schema in (("job", Job), ("review", Review), ("search", Search),
                     ("evaluation", Evaluation), ("certification", Certification),
                     ("comparison", Comparison), ("cost", Cost), ("report", Report), ("serve", Serve),
                     ("decisions", Decisions), ("benchmark", Benchmark)):
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def read(cfg: DictConfig, kind: type[Any]) -> Any:
    """The checked, typed config. Raises ConfigError for a value out of range or missing, naming its key."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(missing[0], MISSING, f"this key has no default; give {missing[0]}=…")
    try:
        # Once more against the bare schema: Hydra's `+key=value` adds whatever it is given.
        plain = OmegaConf.to_container(cfg, resolve=True)
        typed = OmegaConf.merge(OmegaConf.structured(kind), plain)
        _check_further_teachers(typed)
        found = OmegaConf.to_object(typed)
    except FlywheelError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key), error.value, str(error.msg or error).splitlines()[0]) from error
    assert isinstance(found, kind)
    return found


def _check_further_teachers(job: Any) -> None:
    """Each by itself: a teacher does not know where it stands, and calls its keys `teacher.…`."""
    further = {f"panel.{name}": teacher for name, teacher in (job.panel if "panel" in job else {}).items()}
    further |= {"arbiter": job.arbiter} if "arbiter" in job and job.arbiter else {}
    for place, teacher in further.items():
        try:
            OmegaConf.to_object(teacher)
        except ConfigError as error:
            error.args = (TEACHER_KEY.sub(f"{place}.", str(error)),)
            raise


def _check_runtime(runtime: str, dtype: str | None, margin: float) -> None:
    """What this device supports is for `student.choose` to say, which knows it."""
    if runtime not in ("auto", *RUNTIMES):
        raise ConfigError("runtime", runtime, f"one of auto, {', '.join(RUNTIMES)}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError("dtype", dtype, f"one of {', '.join(DTYPES)}, or null")
    if not 0 <= margin < 1:
        raise ConfigError("margin", margin, "a share of the accuracy in [0, 1)")


def output_folder() -> Path:
    """Where this job writes its files; relative where it lies below the current folder, since people read it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
