"""Recorded answers in a teacher's place: found by item, text or file, under a name of their own, asking nobody."""

import asyncio
import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from jobs import call, runs
from PIL import Image

from src import label
from src.config import Job
from src.errors import ConfigError, DataError
from src.labeling.ask import MODES, Answers, Survey, rehearses
from src.labeling.outcome import Outcome
from src.labeling.replay import Replay
from src.quality.labels_csv import write_labels
from src.store import Store
from src.task import SECOND_LOOK, Failure, Item, Label, TaskSpec

TASK = TaskSpec(name="mood", version=1, kind="classify", classes={"negative": "", "positive": ""},
                aliases={"fine": "positive"}, system_prompt="", user_prompt="{{ classes | tojson }}", metric="accuracy")
NOTHING = (None, Failure.BAD_REQUEST)


def item(text: str, truth: str | None = None) -> Item:
    key = hashlib.sha256(text.encode()).hexdigest()
    return Item(key, text, f"reviews.csv:{text[:8]}", truth=truth)


ITEMS = [item(text) for text in ("what a film", "never again, he said", "a film\nin two lines")]
TEXTS = [str(one.payload) for one in ITEMS]


def recording(path: Path, header: Sequence[str], *rows: Sequence[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows])
    return path


def outcomes(path: Path, *passes: int) -> list[list[Outcome]]:
    """For each item, what is answered in these passes, or in the first."""

    async def ask() -> list[list[Outcome]]:
        async with Replay(path, "label", TASK, ITEMS) as replay:
            return [[await replay.ask(str(one.payload), f"{one.key[:32]}-{n}") for n in passes or (0,)]
                    for one in ITEMS]

    return asyncio.run(ask())


def labels(path: Path, *passes: int) -> list[list[tuple[str | None, Failure | None]]]:
    return [[(outcome.label, outcome.failure) for outcome in given] for given in outcomes(path, *passes)]


# The file


@pytest.mark.parametrize(("named_by", "names"), [
    ("item", [one.key for one in ITEMS]),
    ("text", TEXTS),
    ("text", ["  what a film ", "never again,  he said", "a film in two lines"]),  # as another program saved them
    ("file", [one.name for one in ITEMS]),
])
def test_rows_are_found_by_item_text_or_file(tmp_path: Path, named_by: str, names: list[str]) -> None:
    path = recording(tmp_path / "a.csv", [named_by, "label"], [names[2], "Fine"], [names[0], "negative"],
                     ["another", "positive"])
    assert labels(path) == [[("negative", None)], [NOTHING], [("Fine", None)]]


def test_the_column_that_finds_most_is_taken(tmp_path: Path) -> None:
    """Another program's own numbers may well stand in a column called item."""
    path = recording(tmp_path / "a.csv", ["item", "text", "label"], ["1", "what a film", "positive"])
    assert labels(path)[0] == [("positive", None)]


def test_further_rows_are_further_passes_unless_the_file_says_which(tmp_path: Path) -> None:
    in_order = recording(tmp_path / "a.csv", ["text", "label"],
                         *([text, name] for name in ("positive", "negative") for text in TEXTS))
    assert labels(in_order, 0, 1) == [[("positive", None), ("negative", None)]] * 3
    told = recording(tmp_path / "b.csv", ["text", "pass", "label"], *([text, "1", "positive"] for text in TEXTS),
                     *([text, "0", "negative"] for text in TEXTS), [TEXTS[0], "0", "fine"])
    assert labels(told, 0, 1)[0] == [("fine", None), ("positive", None)]
    assert labels(told, 0, 1)[1] == [("negative", None), ("positive", None)]


def test_what_is_no_answer_is_a_failure_with_a_name(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.csv", ["text", "label"], [TEXTS[0], " "], [TEXTS[1], "so-so"])
    assert labels(path) == [[(None, Failure.EMPTY)], [("so-so", Failure.UNKNOWN_LABEL)], [NOTHING]]


def test_confidence_reason_and_model_are_read_and_nothing_costs_anything(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.csv", ["text", "label", "confidence", "why", "model"],
                     [TEXTS[0], "positive", "0.7", "praise", "gpt-3.5-turbo"], [TEXTS[1], "negative", "170%", "", ""],
                     [TEXTS[2], "negative", "1.7"])
    first, second, third = (given[0] for given in outcomes(path))
    assert (first.confidence, first.why, first.model, first.provider) == (0.7, "praise", "gpt-3.5-turbo", "recorded")
    assert second.confidence is None and third.confidence is None
    assert [outcome.cost_usd for outcome in (first, second, third)] == [0.0] * 3


def test_a_pass_that_was_not_recorded_is_an_error_and_a_second_look_is_not(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.csv", ["text", "label"], *([text, "positive"] for text in TEXTS))
    with pytest.raises(DataError, match=r"about 3 of these items, but for pass 1 .* about 0 of them. Set labeler"):
        labels(path, 0, 1)
    assert labels(path, SECOND_LOOK) == [[NOTHING]] * 3


@pytest.mark.parametrize(("content", "said"), [
    (b"text,answer\nwhat a film,positive\n", "needs a column item or text or file and the column 'label' "
                                             r"\(teacher.answer_column\); it has text, answer"),
    (b"sentence,label\nwhat a film,positive\n", "it has sentence, label"),
    (b"text,label\n", "it has no rows"),
    (b"", "it has no rows"),
    (b"text,label\nwh\xe4t,positive\n", "cannot be read as a UTF-8 CSV file"),
    (b"text,label\nanother film,positive\n", r"no answer about any of these 3 items: its `text` begins with 'another "
                                             "film', and the first item's is 'what a film'"),
])
def test_a_file_that_does_not_fit_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "answers.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        labels(path)
    assert "answers.csv" in str(error.value)


@pytest.mark.parametrize("content", [
    "\ufefftext,label\r\nwhat a film,positive,,\r\nnever\r\n",
    "text;label\nwhat a film;positive\n",
    "text\tlabel\n\"what a\nfilm\"\tpositive\n",
    "number|text|label\n1|what a film|positive",
    "text,label\nwhat\x85a\u2028film,positive\n",  # which are ends of lines to some, and to a CSV are none
])
def test_tables_are_read_however_a_program_saved_them(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    assert labels(path)[0] == [("positive", None)]


# The annotator


def test_a_recording_has_a_name_of_its_own_and_is_never_rehearsed(make_job: Callable[..., Job], tmp_path: Path) -> None:
    header = ["text", "label", "second"]
    path = recording(tmp_path / "a b.csv", header, [TEXTS[0], "positive", "negative"])
    teacher = make_job("teacher=replay", f"teacher.answers='{path}'").teacher
    name = teacher.annotator
    assert re.fullmatch("replay:a b.csv#label@[0-9a-f]{12}", name) and teacher.annotator == name
    assert replace(teacher, answer_column="second").annotator != name
    recording(path, header, [TEXTS[0], "negative", "negative"])  # another answer in it is another annotator
    assert teacher.annotator != name
    assert not any(rehearses(mode, [teacher], drawn=False) for mode in MODES)
    assert not teacher.lacks_key and teacher.cost(10**6, 10**6) == 0


def test_a_recording_must_be_named_and_be_there(make_job: Callable[..., Job], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.base_url='' .* or a file of recorded answers in teacher.answers"):
        make_job("teacher=replay")
    with pytest.raises(ConfigError, match=r"teacher.answers='.*none.csv' is not allowed: a CSV file of recorded"):
        _ = make_job("teacher=replay", f"teacher.answers={tmp_path}/none.csv").teacher.annotator


# Asking it


def survey(job: Job, store: Store, items: Sequence[Item]) -> Answers:
    asks = Survey(task=TASK, teachers=[job.teacher], arbiter=None, how=None, spec=job.labeler, store=store,
                  rehearsal=None, max_pixels=1, seed=0, job="run")
    return asks.run(items[:1], items[1:], lambda annotations: None)


def test_labels_that_were_written_can_be_replayed(make_job: Callable[..., Job], tmp_path: Path) -> None:
    """`labels_llm.csv` names items by their hash; what was not concluded is no answer."""
    long = item("film " * 200)
    items = [*ITEMS, long]
    concluded = [Label(ITEMS[0].key, "positive", True, "t", confidence=0.8, why="=praise"),
                 Label(ITEMS[1].key, None, False, "t", reason="passes disagree"),
                 Label(long.key, "negative", True, "t")]
    write_labels(tmp_path / "labels_llm.csv", concluded, {one.key: one for one in items})
    job = make_job("teacher=replay", f"teacher.answers={tmp_path}/labels_llm.csv", "labeler.passes=1")
    store = Store(tmp_path / "annotations.db")
    answers = survey(job, store, items)
    assert {a.item: a.label for a in answers.annotations if not a.failure} == {ITEMS[0].key: "positive",
                                                                               long.key: "negative"}
    assert {a.item: a.failure for a in answers.annotations if a.failure} == {
        ITEMS[1].key: Failure.EMPTY, ITEMS[2].key: Failure.BAD_REQUEST}
    assert answers.cost_usd == 0 and answers.annotator.startswith("replay:labels_llm.csv#label@")
    again = survey(job, store, items)
    assert again.asked.requests == 0 and again.answered == 2
    store.close()


def test_the_job_runs_on_a_recording_with_no_key_and_no_stand_in(tmp_path: Path) -> None:
    """And its own labels can be replayed in turn."""
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    names = ["apple", "mushroom", "orange", "pear", "sweet_pepper"]
    truths = {f"{n}.png": names[n % 5] for n in range(60)}
    for file in truths:
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "pictures" / file)
    given = {file: names[0] if n % 10 == 9 else name for n, (file, name) in enumerate(truths.items())}
    truth = recording(tmp_path / "truth.csv", ["file", "label"], *truths.items())
    answers = recording(tmp_path / "given.csv", ["file", "answer"], *given.items())
    keys = ["teacher=replay", "labeler.passes=1", "data=folder", f"data.root={tmp_path}/pictures",
            f"data.truth_csv={truth}", "data.gold_size=20", "data.test_size=10", f"home={tmp_path}/home"]

    def labelled(*overrides: str) -> list[dict[str, str]]:
        assert call(label.main, *keys, *overrides) == 0
        run = runs(tmp_path / "home")[0]
        assert run.data.tags["rehearsal"] == "recorded answers" and run.data.metrics["label/cost_usd"] == 0
        folder = Path(str(run.info.artifact_uri).removeprefix("file://"))
        assert "Recorded answers" in (folder / "datacard.md").read_text()
        return list(csv.DictReader((folder / "labels_llm.csv").read_text().splitlines()))

    rows = labelled("rehearsal=always", f"teacher.answers={answers}", "teacher.answer_column=answer")
    assert len(rows) == 30 and {row["file"]: row["label"] for row in rows} == {row["file"]: given[row["file"]]
                                                                                for row in rows}
    copy = recording(tmp_path / "labels_llm.csv", list(rows[0]), *(list(row.values()) for row in rows))
    again = labelled("rehearsal=never", f"teacher.answers={copy}")
    assert [(row["item"], row["label"]) for row in again] == [(row["item"], row["label"]) for row in rows]


@pytest.mark.shared
def test_what_an_llm_answered_about_8662_sentences_from_end_to_end(tmp_path: Path) -> None:
    """What the job makes of a recording, held against the file itself."""
    path = SHARED / "movie_reviews" / "train.csv"
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    said: dict[str, dict[str, str]] = {}
    for row in rows:
        said.setdefault(row["text"], row)
    assert call(label.main, "task=movie_reviews", "data=csv", f"data.root={path}", "data.truth_column=gold",
                "teacher=replay", f"teacher.answers={path}", "teacher.answer_column=llm_label", "labeler.passes=1",
                "labeler.max_items=10000", "data.gold_size=400", "data.test_size=500", f"home={tmp_path}") == 0
    run = runs(tmp_path)[0]
    folder = Path(str(run.info.artifact_uri).removeprefix("file://"))
    labelled = list(csv.DictReader((folder / "labels_llm.csv").read_text().splitlines()))
    by_key = {hashlib.sha256(text.encode()).hexdigest(): row for text, row in said.items()}
    assert len(labelled) == len(said) - 400 - 500 and all(row["label"] == by_key[row["item"]]["llm_label"]
                                                          for row in labelled)
    usable = [by_key[row["item"]] for row in labelled if row["label"]]
    assert run.data.metrics["label/truth_accuracy"] == sum(row["llm_label"] == row["gold"] for row in usable) / \
        len(usable)
    assert run.data.metrics["label/truth_accuracy_n"] == len(usable) > 7000
    assert run.data.tags["rehearsal"] == "recorded answers" and run.data.metrics["label/cost_usd"] == 0
