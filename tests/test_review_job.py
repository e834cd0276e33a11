"""`python -m src.review`: labels out to people and back, without asking anybody, and what the next run makes of it."""

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from jobs import call
from PIL import Image

from src import review
from src.config import CONF, Job, read
from src.labels import Labelled, make_labels
from src.metrics import proportion
from src.quality.labels_csv import COLUMNS
from src.store import Store

KEYS = ["task=digits", "data=folder", "rehearsal=always", "data.gold_size=40", "data.test_size=20",
        "labeler.max_items=60", "quality.spot_checks=10", "quality.reviewer=ada"]


def own(home: Path) -> list[str]:
    return [f"home={home}", f"data.root={home}/photos"]


def label_them(home: Path) -> Labelled:
    """What `src.label` does, without a run in MLflow."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        job: Job = read(compose("job", overrides=[*KEYS, *own(home)]), Job)
    store = Store(job.store)
    made = make_labels(task=job.task, data=job.data, teachers=job.teachers, arbiter=job.arbiter, labeler=job.labeler,
                       quality=job.quality, rehearsal=job.rehearsal, home=home, store=store, out=home / "out",
                       seed=job.seed)
    store.close()
    return made


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for name in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"):
        (home / "photos" / name).mkdir(parents=True)
        for n in range(16):  # noise will do: the stand-in teacher knows the truth by the file
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(home / "photos" / name / f"{n:02}.png")
    label_them(home)
    return home


@pytest.fixture
def home(tmp_path: Path, labelled: Path) -> Path:
    """A copy of the labelled state, so that each test starts from the same."""
    copy = tmp_path / "home"
    copy.mkdir()
    with sqlite3.connect(labelled / "annotations.db") as old, sqlite3.connect(copy / "annotations.db") as new:
        old.backup(new)
    old.close()
    new.close()
    (copy / "photos").symlink_to(labelled / "photos")
    return copy


def reviews(home: Path) -> list[tuple[str, str, str | None]]:
    store = Store(home / "annotations.db")
    found = [(a.annotator, a.item, a.label) for a in store.read(annotator_prefix="human:")]
    store.close()
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        return list(csv.DictReader(lines))


def other(name: str) -> str:
    return "one" if name == "zero" else "zero"


def machine(home: Path) -> dict[str, str]:
    """Item → the label that nobody who reviews is shown."""
    return {row["item"]: row["label"] for row in rows(home / "out/labels_llm.csv")}


def answer(tasks: list[dict[str, Any]], labels: dict[str, str], who: int, at: str) -> list[dict[str, Any]]:
    """As Label Studio exports it: people answer the truth, which is the folder's name, but for one spot check."""
    said = [task["data"]["file"].split("/")[0] for task in tasks]
    said[3] = other(labels[tasks[3]["data"]["item"]])
    return [{"id": n, "data": task["data"], "predictions": [n], "annotations": [{
        "id": n, "completed_by": who, "was_cancelled": False, "created_at": at, "updated_at": at,
        "result": [{"from_name": "label_final", "to_name": "image", "type": "choices",
                    "value": {"choices": [said[n]]}}]}]} for n, task in enumerate(tasks)]


def test_the_file_goes_out_and_comes_back(labelled: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(review.main, *KEYS, *own(home)) == 0
    told = capsys.readouterr().out
    path = home / "review/digits/review_labels.csv"
    assert f"To review: {path}" in told and "10 of them spot checks" in told
    assert f"src.review {' '.join([*KEYS, *own(home)])} action=import" in told
    listed = rows(path)
    assert list(listed[0]) == [*COLUMNS, "why_listed", "label_final"]
    assert [row["why_listed"].startswith("spot check") for row in listed] == [True] * 10 + [False] * (len(listed) - 10)
    assert (home / "review/digits/review.html").read_text().count('<img alt="" src="data:image/jpeg') == len(listed)
    assert reviews(home) == []
    for n, row in enumerate(listed[:10]):
        assert not (row["label"] or row["votes"] or row["why"])
        row["label_final"] = other(machine(labelled)[row["item"]]) if n == 3 else row["file"].split("/")[0]
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    wrong = sum(machine(labelled)[row["item"]] != row["label_final"] for row in listed[:10])
    assert wrong >= 1
    assert call(review.main, *KEYS, *own(home), "action=import") == 0
    told = capsys.readouterr().out
    assert "10 edit(s) imported" in told
    assert f"Accepted labels' accuracy by spot checks: {proportion(10 - wrong, 10)} ({wrong} wrong)" in told
    assert sorted(reviews(home)) == sorted(("human:ada", row["item"], row["label_final"]) for row in listed[:10])


def test_label_studio_goes_out_and_comes_back_and_the_next_run_reports_it(
    labelled: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio, labels = [*KEYS, *own(home), "format=label_studio"], machine(labelled)
    assert call(review.main, *studio) == 0
    told = capsys.readouterr().out
    path = home / "review/digits/label_studio_tasks.json"
    assert str(path) in told and str(path.with_name("label_studio_config.xml")) in told
    assert "action=import format=label_studio file=EXPORT.json" in told and "REHEARSAL" in told
    tasks = json.loads(path.read_text())
    assert all(task["data"]["image"].startswith("data:image/jpeg;base64,") for task in tasks)
    export = tmp_path / "export.json"
    export.write_text(json.dumps(answer(tasks[:10], labels, 1, "2026-11-22T18:00:00Z")))
    for count in (10, 0):
        assert call(review.main, *studio, "action=import", f"file={export}") == 0
        assert f"{count} answer(s) by " in capsys.readouterr().out
    export.write_text(json.dumps(answer(tasks[:4], labels, 2, "2026-11-22T18:30:00Z")))
    assert call(review.main, *studio, "action=import", f"file={export}") == 0
    assert f"Reviewers agree: {proportion(4, 4)}" in capsys.readouterr().out
    assert {who for who, _, _ in reviews(home)} == {"human:1", "human:2"} and len(reviews(home)) == 14
    assert call(review.main, *studio) == 0  # what was answered is not handed out again
    assert len(json.loads(path.read_text())) == len(tasks) - 10
    assert not any(task["predictions"] for task in tasks[:10])
    right = sum(labels[task["data"]["item"]] == task["data"]["file"].split("/")[0]
                for n, task in enumerate(tasks[:10]) if n != 3)
    assert right <= 9
    figures = label_them(home).figures()
    assert (figures["label/audit_accuracy"], figures["label/audit_accuracy_n"]) == (right / 10, 10)
    assert figures["label/audit_accuracy_low"] == pytest.approx(proportion(right, 10).low)
    assert figures["label/reviewer_agreement"] == 1.0 and figures["label/requests"] == 0


def test_local_images_are_named_below_the_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(review.main, *KEYS, *own(home), "format=label_studio", "images=local") == 0
    told = capsys.readouterr().out
    tasks = json.loads((home / "review/digits/label_studio_tasks.json").read_text())
    served = next(line for line in told.splitlines() if "LOCAL_FILES_DOCUMENT_ROOT" in line)
    root = Path(served.split("LOCAL_FILES_DOCUMENT_ROOT=")[1].split(" and add ")[0])
    assert all((root / task["data"]["image"].removeprefix("/data/local-files/?d=")).is_file() for task in tasks)


def test_nothing_labelled_and_a_file_that_does_not_fit_end_with_the_way_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(review.main, *KEYS, *own(home), f"store={tmp_path}/empty.db") == 1
    assert "Label first: .venv/bin/python -m src.label" in capsys.readouterr().err
    missing = [*own(home), "action=import", "format=label_studio", f"file={tmp_path}/none.json"]
    assert call(review.main, *KEYS, *missing) == 1
    assert "none.json cannot be read" in capsys.readouterr().err
    assert reviews(home) == []


def test_labels_that_need_a_student_are_listed_without_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(review.main, *KEYS, *own(home), "quality.consensus=crowdlab") == 0
    assert "judged as quality.consensus=majority has them" in capsys.readouterr().out
