"""Every file in `conf/` composes, and what is wrong is named with its key and value."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import composed
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from src.config import Benchmark, Cost, Decisions, Evaluation, Job, Review, Serve, read
from src.errors import ConfigError
from src.labeling.prompt import render
from src.student.augment import Augment
from src.written import recorded

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("task", "data", "teacher", "labeler", "quality", "student", "trainer", "calibration",
          "rehearsal", "tracking")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
ABLATIONS = sorted(path.stem for path in (CONF / "ablation").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# Those that are taken where nothing else is said are composed together.
DEFAULTS = {pair for default in OmegaConf.load(CONF / "job.yaml").defaults if OmegaConf.is_dict(default)
            for pair in default.items()}
NEEDS = {("teacher", "openai_compatible"): ["teacher.model=any"],
         ("teacher", "replay"): ["teacher.answers=any.csv"]}


def test_no_file_is_left_out() -> None:
    seen = len(CHOICES) + len(EXPERIMENTS) + len(ABLATIONS)
    groups = ("data/source", "rehearsal/errors", "cascade", "serving", "cost", "student/augment")
    inner = sum(len([*(CONF / group).glob("*.yaml")]) for group in groups)
    top = {path.name for path in CONF.glob("*.yaml")}
    assert top == {"job.yaml", "search.yaml", "evaluate.yaml", "certify.yaml", "compare.yaml", "cost.yaml",
                   "report.yaml", "review.yaml", "benchmark.yaml", "decisions.yaml", "serve.yaml", "hydra_outputs.yaml"}
    assert seen + inner + len(top) == len(list(CONF.rglob("*.yaml")))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str, make_job: Callable[..., Job]) -> None:
    job = make_job(*[] if (group, choice) in DEFAULTS else [f"{group}={choice}"], *NEEDS.get((group, choice), []))
    assert getattr(job, group) is not None


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "rehearsal" / "errors").glob("*.yaml"))])
def test_every_error_model_composes(name: str, make_job: Callable[..., Job]) -> None:
    assert make_job(f"rehearsal/errors={name}").rehearsal.errors.seed == 0


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "student" / "augment").glob("*.yaml"))])
def test_every_augmentation_composes(name: str, make_job: Callable[..., Job]) -> None:
    spec = make_job(f"student/augment={name}").student.augment
    assert (Augment(**vars(spec)) == Augment()) is (name == "recipe")
    assert (spec.crop_scale == 1) is (name == "none")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_says_its_command(name: str, make_job: Callable[..., Job]) -> None:
    job = make_job(f"+experiment={name}")
    assert render(job.task, job.data.shown).hash
    assert f"+experiment={name}" in (CONF / "experiment" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_composes_and_says_its_command(name: str, make_job: Callable[..., Job]) -> None:
    """With three seeds, a baseline that is swept, and gold alone to decide wherever labels are swept."""
    assert make_job("+experiment=cifar5", f"+ablation={name}")
    text = (CONF / "ablation" / f"{name}.yaml").read_text()
    assert f"python -m src.train +experiment=cifar5 +ablation={name}\n" in text
    said = yaml.safe_load(text)["hydra"]
    swept, compare = said["sweeper"]["params"], dict(said["callbacks"]["compare"])
    key = compare["key"]
    assert said["mode"] == "MULTIRUN" and swept.keys() == {key, "seed"} and swept["seed"] == "0,1,2"
    values = swept[key].split(",")
    assert compare.pop("_target_") == "src.compare.CompareSweep" and str(compare["baseline"]) in values
    for value in values:
        make_job("+experiment=cifar5", f"+ablation={name}", f"{key}={value}")
    labels_vary = key.split(".")[0] in ("labeler", "quality", "rehearsal")
    assert (compare.get("parts") == ["gold"]) is labels_vary
    assert ("parent_run" in said["callbacks"]) is labels_vary


def test_the_recipes_values_are_the_defaults(make_job: Callable[..., Job]) -> None:
    job = make_job()
    assert (job.teacher.model, job.teacher.temperature, job.teacher.max_tokens) == ("google/gemini-2.5-flash", 0.0, 100)
    assert (job.labeler.concurrency, job.labeler.passes, job.labeler.max_items) == (10, 2, 1500)
    assert (job.quality.min_confidence, job.data.shown.size, job.data.shown.jpeg_quality) == (0.0, 224, 90)
    s = job.student
    assert (s.learning_rate, s.weight_decay, s.batch_size, s.label_smoothing) == (3e-4, 1e-2, 128, 0.05)
    assert s.input_size == 224
    assert job.trainer.max_epochs == 30


WRONG = [
    ("quality.min_confidence=1.5", "quality.min_confidence=1.5 is not allowed: in [0, 1]"),
    ("quality.heuristics=maybe", "quality.heuristics='maybe' is not allowed: one of flag, drop, off"),
    ("labeler.passes=0", "labeler.passes=0 is not allowed: 1 or more"),
    ("labeler.max_cost_usd=-1", "labeler.max_cost_usd=-1.0 is not allowed: 0 or more"),
    # Nothing is below nan, so nothing would have stopped a run with it.
    ("labeler.max_cost_usd=.nan", "labeler.max_cost_usd=nan is not allowed: 0 or more"),
    ("labeler.backoff_s=.nan", "labeler.backoff_s=nan is not allowed: 0 or more"),
    ("labeler.max_backoff_s=.nan", "labeler.max_backoff_s=nan is not allowed: 0 or more"),
    ("teacher.timeout_s=.nan", "teacher.timeout_s=nan is not allowed: more than 0"),
    ("teacher.price.input_usd=.nan", "teacher.price.input_usd=nan is not allowed: 0 or more"),
    ("teacher.price.output_usd=.nan", "teacher.price.output_usd=nan is not allowed: 0 or more"),
    ("teacher.price.output_usd=.inf", "teacher.price.output_usd=inf is not allowed: 0 or more"),
    ("teacher.price.input_usd=-1", "teacher.price.input_usd=-1.0 is not allowed: 0 or more"),
    ("teacher.price.date=last week", "teacher.price.date='last week' is not allowed: the day of reading, as in 2026"),
    ("teacher.price.date=''", "teacher.price.date='' is not allowed: the day of reading, as in 2026"),
    ("data.gold_size=1", "data.gold_size=1 is not allowed: 2 or more"),
    ("data.validation_share=1", "data.validation_share=1.0 is not allowed: between 0 and 1"),
    ("data.near_duplicates=17", "data.near_duplicates=17 is not allowed: 0 to 16 of 64 bits, or null"),
    ("data.text_column=text", "data.text_column='text' is not allowed: images have no columns"),
    ("student.learning_rate=0", "student.learning_rate=0.0 is not allowed: more than 0"),
    ("student.input_size=8", "student.input_size=8 is not allowed: 32 or more"),
    ("student.augment.crop_scale=0", "student.augment.crop_scale=0.0 is not allowed"),
    ("trainer.accelerator=tpu", "trainer.accelerator='tpu' is not allowed: one of auto, cpu, cuda, mps"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0 is not allowed: 1 or more"),
    ("seed=-1", "seed=-1 is not allowed: 0 or more"),
    ("seed=4294967296", "seed=4294967296 is not allowed: 0 or more, below 2**32"),
    ("teacher.base_url=ftp://x", "teacher.base_url='ftp://x' is not allowed"),
    ("teacher.routing.provider.data_colection=deny", "teacher.routing.provider.data_colection='deny' is not allowed"),
    ("teacher.json_mode=xml", "teacher.json_mode='xml' is not allowed: one of json_schema, json_object, none"),
    ("task.metric=loss", "task.metric='loss' is not allowed: one of accuracy, f1_macro"),
]


def changed(cfg: DictConfig, *values: str) -> DictConfig:
    """With other values of keys; as Hydra's overrides make it, but in a tenth of the time."""
    cfg = copy.deepcopy(cfg)
    for key, value in (assignment.split("=") for assignment in values):
        OmegaConf.update(cfg, key, yaml.safe_load(value), force_add=True)
    return cfg


@pytest.mark.parametrize(("value", "message"), WRONG)
def test_a_value_out_of_range_is_named(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(changed(composed("job"), value), Job)
    assert message in str(error.value)


FURTHER = ("panel.second", "arbiter")


@pytest.mark.parametrize("place", FURTHER)
@pytest.mark.parametrize(("key", "value", "told"), [
    ("base_url", "foo", "{}.base_url='foo' is not allowed: an address such as http://localhost:11434/v1; or a file of "
                        "recorded answers in {}.answers"),
    ("base_url", "http://a:b@teacher.model/", "{}.base_url='http://***@teacher.model' is not allowed"),
    ("max_tokens", "0", "{}.max_tokens=0 is not allowed: more than 0"),
    ("price.input_usd", ".nan", "{}.price.input_usd=nan is not allowed"),
    ("terms.training", "perhaps", "{}.terms.training='perhaps' is not allowed"),
    ("routing.provider.zzr", "true", "{}.routing.provider.zzr=True is not allowed"),
    ("json_mode", "xml", "{}.json_mode='xml' is not allowed"),
])
def test_keys_of_further_teachers_are_named_as_written(place: str, key: str, value: str, told: str) -> None:
    cfg = composed("job", *(f"+teacher@{place}=gemini_flash" for place in FURTHER), "panel.second.model=x")
    with pytest.raises(ConfigError) as error:
        read(changed(cfg, f"{place}.{key}={value}"), Job)
    assert str(error.value).startswith(told.replace("{}", place))


def test_without_a_price_its_date_means_nothing() -> None:
    free = [f"teacher.price.{said}" for said in ("input_usd=0", "output_usd=0", "date=never")]
    assert read(changed(composed("job"), *free), Job).teacher.price.date == "never"


def test_a_value_that_is_missing_is_named(make_job: Callable[..., Job]) -> None:
    with pytest.raises(ConfigError) as error:
        make_job("teacher=openai_compatible")
    assert "teacher.model='???' is not allowed: this key has no default; give teacher.model=…" in str(error.value)


@pytest.mark.parametrize("override", ["labeler.max_itms=3", "qualty.min_confidence=0", "quality.min_confidence=abc",
                                      "teacher=gpt", "+nonsense=1", "+labeler.max_itms=3"])
def test_a_misspelt_override_is_refused_and_named(override: str, make_job: Callable[..., Job]) -> None:
    with pytest.raises((HydraException, ConfigError)) as error:
        make_job(override)
    key, value = override.lstrip("+").split("=")
    told = f"{error.value} {error.value.__cause__}"
    assert key in told or value in told


def test_credentials_in_the_address_are_refused_and_not_repeated(make_job: Callable[..., Job]) -> None:
    with pytest.raises(ConfigError) as error:
        make_job("teacher.base_url=https://me:hunter2@example.org/v1")
    assert "hunter2" not in str(error.value) and "teacher.key_env" in str(error.value)


def test_the_recorded_config_holds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-secret")
    cfg = recorded(composed("job", "store=postgresql://me:hunter2@db.example/labels"))
    assert "sk-secret" not in str(cfg) and "OPENROUTER_API_KEY" in str(cfg)
    assert cfg["store"] == "postgresql://me:***@db.example/labels"


@pytest.mark.parametrize(("name", "kind", "needs"), [("evaluate", Evaluation, ["run=abc"]),
                                                     ("serve", Serve, ["run=abc"]),
                                                     ("decisions", Decisions, []), ("benchmark", Benchmark, [])])
def test_the_other_entry_points_compose(name: str, kind: type, needs: list[str]) -> None:
    assert isinstance(read(composed(name, *needs), kind), kind)
    if needs:
        with pytest.raises(ConfigError, match="run='\\?\\?\\?' is not allowed"):
            read(composed(name), kind)
        with pytest.raises(ConfigError, match="accelerator='gpu' is not allowed: one of auto, cpu, cuda, mps"):
            read(composed(name, *needs, "accelerator=gpu"), kind)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_review_takes_a_jobs_keys(experiment: str, make_job: Callable[..., Job]) -> None:
    job = make_job(f"+experiment={experiment}")
    review = read(composed("review", f"+experiment={experiment}", "format=label_studio", f"home={job.home}"), Review)
    assert (review.action, review.format, review.images, review.file) == ("export", "label_studio", "embedded", None)
    assert all(getattr(review, key) == getattr(job, key) for key in ("task", "data", "quality", "store", "rehearsal"))


@pytest.mark.parametrize(("values", "message"), [
    (["action=send"], "action='send' is not allowed: one of export, import"),
    (["format=xls"], "format='xls' is not allowed: one of csv, label_studio"),
    (["images=s3"], "images='s3' is not allowed: one of embedded, local"),
    (["action=import", "format=label_studio"], "file=None is not allowed: the file that Label Studio exported"),
    (["seed=-1"], "seed=-1 is not allowed"),
])
def test_a_reviews_own_keys_are_checked(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(changed(composed("review"), *values), Review)
    assert message in str(error.value)


@pytest.mark.parametrize(("values", "message"), [
    (["run=''"], "run='' is not allowed"),
    (["target_precision=1"], "target_precision=1.0 is not allowed: between 0 and 1, or null"),
    (["sample_traffic=-1"], "sample_traffic=-1.0 is not allowed: 0 to 1000 images a second"),
    (["sample_traffic=.nan"], "sample_traffic=nan is not allowed"),
    (["runtime=tensorrt"], "runtime='tensorrt' is not allowed"),
    (["serving.port=70000"], "serving.port=70000 is not allowed: 0 (any that is free) to 65535"),
    (["serving.batch_images=0"], "serving.batch_images=0 is not allowed: 1 or more"),
    (["serving.most_items=9", "serving.most_pending=8"], "serving.most_items=9 is not allowed: at most serving.most_p"),
    (["serving.wait_s=0"], "serving.wait_s=0.0 is not allowed: more than 0"),
    (["serving.keep_days=.nan"], "serving.keep_days=nan is not allowed: more than 0"),
    (["serving.max_usd_per_hour=-1"], "serving.max_usd_per_hour=-1.0 is not allowed: 0 or more"),
    (["serving.requests_per_second=0"], "serving.requests_per_second=0.0 is not allowed: more than 0, or null"),
    (["serving.second_opinion_share=2"], "serving.second_opinion_share=2.0 is not allowed: a share in [0, 1]"),
])
def test_a_servers_own_keys_are_checked(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(changed(composed("serve", "run=abc"), *values), Serve)
    assert message in str(error.value)


@pytest.mark.parametrize("overrides", [["volume=1e6"], *([f"+cost={path.stem}"] for path in
                                                        sorted((CONF / "cost").glob("*.yaml")))])
def test_every_cost_composes_and_says_its_command(overrides: list[str]) -> None:
    assert read(composed("cost", *overrides), Cost).volume > 0
    if overrides[0].startswith("+"):
        assert overrides[0] in (CONF / "cost" / f"{overrides[0].removeprefix('+cost=')}.yaml").read_text()


@pytest.mark.parametrize(("values", "message"), [
    (["volume=-1"], "volume=-1.0 is not allowed: more than 0"),
    (["volume=.nan"], "volume=nan is not allowed: a finite number"),
    (["escalation_rate=1.2"], "escalation_rate=1.2 is not allowed: a share in [0, 1]"),
    (["draws=10"], "draws=10 is not allowed: 100 or more"),
    (["seed=-1"], "seed=-1 is not allowed: 0 or more"),
    (["run=''"], "run='' is not allowed"),
])
def test_the_keys_of_costs_are_checked(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(changed(composed("cost", "volume=1e6"), *values), Cost)
    assert message in str(error.value)


def test_costs_need_a_volume() -> None:
    with pytest.raises(ConfigError, match="this key has no default; give volume=…"):
        read(composed("cost"), Cost)


def test_no_experiment_repeats_a_default() -> None:
    """An experiment holds only its differences."""
    base = OmegaConf.load(CONF / "student" / "mobilenetv3_small.yaml")
    for name in EXPERIMENTS:
        student = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").get("student", {})
        same = [key for key, value in student.items() if key in base and base[key] == value]
        assert not same, f"{name}: {same}"
