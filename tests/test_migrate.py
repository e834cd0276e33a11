"""From one version of a task to the next: what is carried over, at no cost, and what has to be asked again."""

import csv
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jobs import call, runs
from PIL import Image

from src import label
from src.config import Job
from src.data.dataset import open_dataset
from src.errors import ConfigError
from src.labeling.migrate import MIGRATED, Migration, migrate, plan_migration
from src.labeling.plan import make_plan
from src.labeling.prompt import render
from src.labeling.teacher import Price, Teacher, Terms
from src.quality.reviewers import last_words
from src.store import Store
from src.task import Annotation, Failure, Item, TaskSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
MOVES: dict[str, Any] = {"sweet_pepper": "bell_pepper", "tangerine": "orange", "apple": ["green_apple", "red_apple"],
                         "durian": []}
VALUES: dict[str, Any] = {
    "name": "fruit", "version": 2, "kind": "classify", "metric": "accuracy", "system_prompt": "",
    "user_prompt": "{{ classes | tojson }}",
    "classes": dict.fromkeys(["green_apple", "red_apple", "orange", "bell_pepper", "pear"], ""),
    "aliases": {"pears": "pear", "capsicum": "bell_pepper"}, "migrations": {1: MOVES},
}
TASK = TaskSpec(**VALUES)
PROMPT = render(TASK, None)
LLM = "host/model?temperature=0"


def said(item: str, label: str | None, *, after: int = 0, **changes: Any) -> Annotation:
    """An answer of version 1, `after` seconds; paid for."""
    first = Annotation(item, LLM, "old", "fruit", label=label, confidence=0.9, why="round", cost_usd=0.002,
                       tokens_in=300, tokens_out=30, latency_s=0.5, created_at=START + timedelta(seconds=after),
                       model="model", provider="host", shown_hash="shown", reply="{}", task_version=1, job="run1")
    return replace(first, **changes)


def by_person(item: str, label: str | None, *, after: int = 0, **changes: Any) -> Annotation:
    values: dict[str, Any] = {"annotator": "human:ada", "prompt_hash": "fruit@1", "confidence": None, "cost_usd": 0.0,
                              "failure": None if label else Failure.WITHDRAWN, "job": ""}
    return said(item, label, after=after, **(values | changes))


def plan(*annotations: Annotation, task: TaskSpec = TASK, version: int = 1) -> Migration:
    return plan_migration(annotations, task, PROMPT.hash, version)


def fates(*annotations: Annotation, **changes: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Item → what becomes of its answer, and what it can mean."""
    return {fate.annotation.item: (fate.how, fate.new) for fate in plan(*annotations, **changes).fates}


def teacher(model: str = "model") -> Teacher:
    """The one who said all this."""
    return Teacher(base_url="http://host", model=model, key_env=None, temperature=0, max_tokens=9, timeout_s=9.0,
                   json_mode="none", image_tokens=0, sampling={}, routing={}, price=Price(0.0, 0.0, "", "2026-01-01"),
                   terms=Terms("unknown", "", "2026-01-01"))


# What becomes of an answer


def test_renamed_merged_split_gone_and_kept() -> None:
    assert fates(said("a", "sweet_pepper"), said("b", "tangerine"), said("c", "orange"), said("d", "apple"),
                 said("e", "durian"), said("f", "pear"), said("g", "kiwi")) == {
        "a": ("renamed", ("bell_pepper",)), "b": ("renamed", ("orange",)), "c": ("as it was", ("orange",)),
        "d": ("split", ("green_apple", "red_apple")), "e": ("gone", ()), "f": ("as it was", ("pear",)),
        "g": ("not placed", ()),
    }


def test_what_the_task_merges_is_merged_and_an_alias_of_a_renamed_class_makes_no_second_one() -> None:
    """Version 1 may have understood `bell pepper` as its sweet_pepper."""
    assert fates(said("a", "sweet_pepper"), said("b", "Bell pepper")) == {
        "a": ("renamed", ("bell_pepper",)), "b": ("as it was", ("bell_pepper",))}
    task = TaskSpec(**(VALUES | {"migrations": {1: {"tangerine": "orange", "clementine": "orange"}}}))
    assert fates(said("a", "tangerine"), said("b", "clementine"), task=task) == {
        "a": ("merged", ("orange",)), "b": ("merged", ("orange",))}


def test_an_alias_of_a_split_class_is_not_taken_for_the_part_that_has_its_name_now() -> None:
    """Version 1 took `good` for its class positive, which is good and great today: who said good may mean either."""
    task = TaskSpec(**(VALUES | {"version": 3, "classes": dict.fromkeys(["good", "great", "negative"], ""),
                                 "aliases": {"fine": "good"},
                                 "migrations": {1: {"positive": ["good", "great"]}, 2: {}}}))
    found = fates(said("a", "Good"), said("b", "fine"), said("c", "positive"), said("d", "negative"), task=task)
    assert found == {"a": ("not placed", ()), "b": ("not placed", ()), "c": ("split", ("good", "great")),
                     "d": ("as it was", ("negative",))}
    # What was no class and no alias then cannot have meant the whole.
    assert fates(said("a", "good", failure=Failure.UNKNOWN_LABEL), task=task) == {"a": ("as it was", ("good",))}
    # Where the task says so, the name was a class of its own.
    says = replace(task, migrations={1: {"positive": ["good", "great"], "good": "good"}})
    assert fates(said("a", "Good"), task=says) == {"a": ("as it was", ("good",))}


@pytest.mark.parametrize(("raw", "how", "label"), [
    ("Sweet Pepper", "renamed", "bell_pepper"),  # the old class in the annotator's own spelling
    ('"sweet-pepper".', "renamed", "bell_pepper"),
    ("Pear", "as it was", "Pear"),  # still understood, so left as it was said
    ("Pears", "as it was", "Pears"),  # an alias that still holds
    ("capsicum", "as it was", "capsicum"),  # an alias of the class under its new name
])
def test_labels_are_placed_however_they_are_spelt(raw: str, how: str, label: str) -> None:
    found = plan(said("a", raw))
    assert [fate.how for fate in found.fates] == [how]
    assert [a.label for a in found.carried] == [label]


def test_a_name_that_means_something_else_now_is_not_taken_for_itself() -> None:
    """`orange` was the fruit and is the colour; what was said about the fruit becomes `citrus`."""
    task = TaskSpec(**(VALUES | {"classes": dict.fromkeys(["citrus", "orange"], ""), "aliases": {"oranges": "orange"},
                                 "migrations": {1: {"orange": "citrus", "amber": "orange"}}}))
    found = plan(said("a", "orange"), said("b", "Amber"), said("c", "oranges"), task=task)
    assert {a.item: a.label for a in found.carried} == {"a": "citrus", "b": "orange"}
    # An alias of today that leads there may have been anybody's: nobody guesses.
    assert [(fate.annotation.item, fate.how) for fate in found.again] == [("c", "not placed")]


def test_a_class_split_under_its_own_name_is_asked_again() -> None:
    task = TaskSpec(**(VALUES | {"migrations": {1: {"orange": ["orange", "pear"]}}}))
    assert fates(said("a", "orange"), task=task) == {"a": ("split", ("orange", "pear"))}


def test_failures_are_not_carried_but_an_unknown_label_that_is_known_today_is() -> None:
    found = plan(said("a", None, failure=Failure.REFUSAL), said("b", "kiwi", failure=Failure.UNKNOWN_LABEL),
                 said("c", None, failure=Failure.TIMEOUT),
                 said("c", "Green apple", failure=Failure.UNKNOWN_LABEL, after=1),
                 said("c", None, failure=Failure.TIMEOUT, after=2))
    assert [(a.item, a.label, a.failure) for a in found.carried] == [("c", "Green apple", None)]
    assert [(fate.annotation.item, fate.how) for fate in found.again] == [
        ("a", "no usable answer"), ("b", "no usable answer")]


def test_the_latest_usable_answer_of_each_annotator_and_pass_counts() -> None:
    found = plan(said("a", "pear"), said("a", "orange", after=1, prompt_hash="older"),
                 said("a", None, failure=Failure.TIMEOUT, after=2),
                 said("a", "sweet_pepper", pass_index=1), said("a", "apple", annotator="other"))
    assert [(a.annotator, a.pass_index, a.label) for a in found.carried] == [(LLM, 0, "orange"),
                                                                             (LLM, 1, "bell_pepper")]
    assert [(fate.annotation.annotator, fate.how) for fate in found.again] == [("other", "split")]


def test_another_versions_answers_are_left_alone() -> None:
    task = TaskSpec(**(VALUES | {"version": 3, "migrations": {2: {"tangerine": "orange"}}}))
    found = plan(said("a", "pear"), said("b", "tangerine", task_version=2, prompt_hash="two"), task=task, version=2)
    assert [(a.item, a.label, a.task_version) for a in found.carried] == [("b", "orange", 3)]


# What is carried over


def test_a_carried_annotation_costs_nothing_and_tells_where_it_comes_from() -> None:
    before = said("a", "Sweet pepper", pass_index=1, attempt=3)
    after, = plan(before).carried
    assert after == replace(before, prompt_hash=PROMPT.hash, label="bell_pepper", task_version=2, attempt=0,
                            job="migrated:1", cost_usd=0.0, tokens_in=0, tokens_out=0)
    assert (after.created_at, after.shown_hash, after.provider, after.reply) == (START, "shown", "host", "{}")


def test_what_was_carried_before_names_the_version_that_it_was_given_to() -> None:
    task = TaskSpec(**(VALUES | {"version": 3, "migrations": {}}))
    twice, = plan(replace(plan(said("a", "pear")).carried[0], prompt_hash="two"), task=task, version=2).carried
    assert (twice.task_version, twice.job) == (3, "migrated:1")


def test_migrating_again_adds_nothing_and_answers_need_no_asking(store: Store) -> None:
    store.add([said("a", "tangerine"), said("b", "apple"), said("c", "pear"), by_person("a", "tangerine")])
    for _ in range(2):
        migrate(store, TASK, PROMPT, 1, teachers=[teacher()], dry_run=False)
    assert len(store.read()) == 4 + 3
    items = [Item(key, key, key) for key in "abc"]
    todo = make_plan(items, store.answered(LLM, PROMPT.hash), task=TASK, teacher=teacher(), prompt=PROMPT, passes=[0],
                     retry_failed=False)
    assert [question.item.key for question in todo] == ["b"] and todo.answered == 2
    assert store.spent("run1") == pytest.approx(3 * 0.002) and store.spent("migrated:1") == 0


def test_a_dry_run_writes_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add([said("a", "tangerine")])
    assert migrate(store, TASK, PROMPT, 1, teachers=[teacher()], dry_run=True).carried
    assert len(store.read()) == 1
    assert "1 answers would be carried over at no cost" in capsys.readouterr().out


def test_a_real_answer_to_todays_prompt_is_never_overruled(store: Store) -> None:
    real = said("a", "red_apple", after=5, prompt_hash=PROMPT.hash, task_version=2, job="run2")
    refused = said("b", None, after=5, prompt_hash=PROMPT.hash, task_version=2, failure=Failure.REFUSAL)
    store.add([said("a", "pear"), real, said("b", "pear"), refused])
    found = migrate(store, TASK, PROMPT, 1, teachers=[teacher()], dry_run=False)
    assert [a.item for a in found.carried] == ["b"] and found.known == 1
    assert [a.label for a in store.read() if a.item == "a" and a.prompt_hash == PROMPT.hash] == ["red_apple"]


def test_an_unchanged_prompt_has_its_answers_already() -> None:
    found = plan(said("a", "pear", prompt_hash=PROMPT.hash))
    assert not found.fates and not found.carried


# People


def test_what_people_said_is_carried_too_and_a_split_class_is_reviewed_again(store: Store,
                                                                            capsys: pytest.CaptureFixture[str]) -> None:
    store.add([by_person("a", "tangerine", provider="label_studio"), by_person("b" * 64, "apple"),
               by_person("c", "pear"), by_person("c", None, after=1)])
    found = migrate(store, TASK, PROMPT, 1, teachers=[teacher()], dry_run=False)
    carried, = found.carried
    assert (carried.item, carried.annotator, carried.prompt_hash, carried.task_version, carried.label,
            carried.provider) == ("a", "human:ada", "fruit@2", 2, "orange", "label_studio")
    todays = [a for a in store.read(annotator_prefix="human:") if a.task_version == 2]
    assert last_words(todays, TASK) == {"a": "orange"}
    assert found.listed == [["b" * 64, "human:ada", "0", "apple", "green_apple | red_apple", "split"]]
    assert f"To be reviewed again by people: 1 items, {'b' * 16}." in capsys.readouterr().out


def test_what_a_person_took_back_today_stays_taken_back() -> None:
    taken_back = by_person("a", None, after=9, prompt_hash="fruit@2", task_version=2)
    assert not plan(by_person("a", "pear"), taken_back).carried


# What is shown


def test_the_table_counts_everything_and_prices_what_is_asked_again(store: Store,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    store.add([*(said(f"apple{n}", "apple") for n in range(3)), *(said(f"t{n}", "tangerine") for n in range(4)),
               said("o", "orange"), said("k", "kiwi"), said("r", None, failure=Failure.REFUSAL),
               said("x", "pear", annotator="another"), by_person("t0", "tangerine")])
    found = migrate(store, TASK, PROMPT, 1, teachers=[teacher()], dry_run=True)
    told = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    for row in (["tangerine", "orange", "renamed: carried over", "4", "1"],
                ["orange", "orange", "as it was: carried over", "1", "0"],
                ["apple", "green_apple or red_apple", "split: to be asked again", "3", "0"],
                ["kiwi", "-", "not placed: to be asked again", "1", "0"],
                ["-", "-", "no usable answer: to be asked again", "1", "0"],
                # 10 answers of $0.002, the refusal among them, told 9 times: so much for each, five times.
                [LLM, "5", "5", "$0.0111"],
                ["another", "1", "0", "not of this job"], ["human:ada", "1", "0", ""]):
        assert row in told, row
    warned = next(" ".join(line) for line in told if line[0].startswith("Warning"))
    assert "1 answers cannot be placed: 'kiwi' (1)" in warned and "task.migrations.1 of conf/task/fruit.yaml" in warned
    assert found.figures() == {
        "migration/carried": 7, "migration/as_it_was": 2, "migration/renamed": 5, "migration/merged": 0,
        "migration/split": 3, "migration/gone": 0, "migration/not_placed": 1, "migration/no_usable_answer": 1}


def test_a_price_is_that_of_what_was_paid_whichever_version_paid_it(store: Store,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    """Version 2's answers were all carried over from version 1, and cost nothing there; somebody else's bills are not
    in this store."""
    task = TaskSpec(**(VALUES | {"version": 3, "migrations": {2: {"pear": ["red_apple", "orange"]}}}))
    carried = replace(plan(said("a", "pear")).carried[0], prompt_hash="two")
    other = replace(carried, item="b", annotator=teacher("other").annotator)
    own = teacher().annotator
    store.add([said("a", "pear", annotator=own), said("b", "pear", annotator=own, cost_usd=0.004),
               replace(carried, annotator=own), other])
    found = migrate(store, task, PROMPT, 2, teachers=[teacher(), teacher("other")], dry_run=True)
    assert found.cost_usd == {own: pytest.approx(0.003)}
    told = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert [own, "0", "1", "$0.0030"] in told and [other.annotator, "0", "1", "unknown"] in told


@pytest.mark.parametrize(("version", "there"), [(2, "2 (1 annotations)"), (4, "2 (1 annotations)"), (5, "2 (1 annot")])
def test_a_version_without_annotations_is_refused_and_the_others_are_named(store: Store, version: int,
                                                                          there: str) -> None:
    task = TaskSpec(**(VALUES | {"version": 4, "migrations": {}}))
    store.add([said("a", "pear", task_version=2), said("b", "pear", task_version=4), said("c", "pear", task="other")])
    if version == 2:
        assert migrate(store, task, PROMPT, 2, teachers=[], dry_run=True).carried
        return
    with pytest.raises(ConfigError) as error:
        migrate(store, task, PROMPT, version, teachers=[], dry_run=False)
    assert f"migrate_from={version}" in str(error.value) and there in str(error.value)
    assert len(store.read()) == 3


# The task file


@pytest.mark.parametrize(("migrations", "named"), [
    ({2: {"apple": "pear"}}, "task.migrations=2 is not allowed: a version below task.version=2"),
    ({1: {"apple": "kiwi"}}, "task.migrations.1.apple='kiwi' is not allowed: one of green_apple"),
    ({1: {"apple": ["pear", "kiwi"]}}, "task.migrations.1.apple=['pear', 'kiwi'] is not allowed"),
    ({1: {"apple": None}}, "task.migrations.1.apple=None"),
    ({1: {"apple": {"pear": 1}}}, "task.migrations.1.apple={'pear': 1}"),
])
def test_a_migration_that_cannot_be_is_refused(migrations: Any, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        TaskSpec(**(VALUES | {"migrations": migrations}))
    assert named in str(error.value)


def test_the_schema_takes_a_class_or_a_list_of_classes(make_job: Callable[..., Job]) -> None:
    job = make_job("task.version=2", "+task.migrations={1:{plum: pear, fruit: [apple, orange]}}")
    assert job.task.successors(1) == {"plum": ["pear"], "fruit": ["apple", "orange"]}
    assert job.task.successors(0) == {} and make_job().task.migrations == {}


# The whole job


@pytest.fixture
def fruit(tmp_path: Path) -> Callable[..., list[str]]:
    """Pictures of version 1's classes, and the keys of a job that labels them as version 2's with recorded answers."""
    names = ["green_apple", "red_apple", "orange", "tangerine", "sweet_pepper", "pear"]
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    truths = {f"{name}{n}.png": name for n in range(10) for name in names}
    for file in truths:
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "pictures" / file)
    today = {file: {"tangerine": "orange", "sweet_pepper": "bell_pepper"}.get(name, name)
             for file, name in truths.items()}
    for path in ("truth.csv", "answers.csv"):
        with (tmp_path / path).open("w", newline="") as lines:
            csv.writer(lines).writerows([("file", "label"), *today.items()])
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "fruit.yaml").write_text(yaml.safe_dump(VALUES))

    def keys(*overrides: str) -> list[str]:
        return [f"hydra.searchpath=[file://{tmp_path}/conf]", "task=fruit", "data=folder", "teacher=replay",
                f"data.root={tmp_path}/pictures", f"data.truth_csv={tmp_path}/truth.csv", "data.test_size=6",
                "data.gold_size=12", f"teacher.answers={tmp_path}/answers.csv", "labeler.passes=1",
                f"home={tmp_path}/mlruns", *overrides]

    return keys


def test_the_job_carries_over_and_asks_only_for_the_rest(fruit: Callable[..., list[str]], tmp_path: Path,
                                                         make_job: Callable[..., Job],
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(*fruit())
    dataset = open_dataset(job.task, job.data, home=tmp_path / "mlruns", download=False, stand_in=False)
    items = [*dataset.splits.choose, *dataset.splits.pool]
    was = {"green_apple": "apple", "red_apple": "apple", "bell_pepper": "sweet_pepper"}
    before = [said(item.key, was.get(str(item.truth), item.truth), annotator=job.teacher.annotator) for item in items]
    store = Store(job.store)
    store.add(before)

    assert call(label.main, *fruit("migrate_from=1", "labeler.dry_run=true")) == 0
    told = capsys.readouterr().out
    assert "would be carried over" in told and "questions to ask" not in told and len(store.read()) == len(before)

    assert call(label.main, *fruit("migrate_from=1")) == 0
    apples = {item.key for item in items if str(item.truth).endswith("apple")}
    today = [a for a in store.read() if a.task_version == 2]
    assert {a.item for a in today if a.job.startswith(MIGRATED)} == {item.key for item in items} - apples
    assert {a.item for a in today if not a.job.startswith(MIGRATED)} == apples and len(today) == len(items)
    run, = runs(tmp_path / "mlruns")
    found = run.data.metrics
    assert found["label/requests"] == len(apples) == found["migration/split"]
    assert found["migration/carried"] == len(items) - len(apples) and found["label/truth_accuracy"] == 1.0
    folder = Path(str(run.info.artifact_uri).removeprefix("file://"))
    listed = list(csv.DictReader((folder / "asked_again.csv").read_text().splitlines()))
    assert {row["item"] for row in listed} == apples and {row["can_mean"] for row in listed} == {
        "green_apple | red_apple"}
