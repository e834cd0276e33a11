"""The review file's round trip: what a person wrote is imported once, or stays where it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from review_folder import ITEMS, LABELS, TASK, A, B, C, D, Rows, edit, finals, rows_of, said, save

from src.config import Job
from src.errors import ReviewError
from src.quality.conclude import conclude
from src.quality.review_file import ReviewFile
from src.store import Store
from src.task import Annotation, Failure, Panel

# The round trip


def test_edits_become_that_persons_annotations(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="Apples", c="plum")
    assert review.import_edits(store) == 2
    found = {a.item: a for a in review.annotations(store)}
    assert {key: a.label for key, a in found.items()} == {B: "apple", C: "plum"}
    assert {(a.annotator, a.task, a.prompt_hash, a.cost_usd) for a in found.values()} == {
        ("human:ada", "fruit", "fruit@3", 0.0)}


def test_edits_decide_labels_and_survive_in_the_next_file(
    review: ReviewFile, store: Store, make_job: Callable[..., Job]
) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    review.import_edits(store)
    teacher = [Annotation(item=B, annotator="teacher", prompt_hash="p", task="fruit", pass_index=n, label=label)
               for n, label in enumerate(("apple", "pear"))]
    (label,) = conclude([ITEMS[B]], [*teacher, *review.annotations(store)], task=TASK,
                        panel=Panel(("teacher",), passes=2), spec=make_job("quality.reviewer=ada").quality, truths={})
    assert (label.label, label.accepted, label.source) == ("pear", True, "human:ada")
    review.export([LABELS[0], label, *LABELS[2:]], ITEMS, store)
    assert finals(review.path) == {"b": "pear", "c": "", "d": ""}
    assert review.import_edits(store) == 0


def test_a_decision_is_shown_again_also_where_the_teacher_is_sure(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, c="plum")
    review.import_edits(store)
    review.export([replace(LABELS[2], reason="")], ITEMS, store)
    assert finals(review.path) == {"c": "plum"}


def test_no_file_and_an_unchanged_file_import_nothing(review: ReviewFile, store: Store) -> None:
    assert review.import_edits(store) == 0
    review.export(LABELS, ITEMS, store)
    assert review.import_edits(store) == 0
    save(review.path, rows_of(review.path))  # a spreadsheet's own way to write the same
    assert review.import_edits(store) == 0
    assert said(store) == []


def test_an_edit_is_imported_once(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    assert [review.import_edits(store) for _ in range(3)] == [1, 0, 0]
    review.export(LABELS, ITEMS, store)
    assert review.import_edits(store) == 0
    assert said(store) == [("b", "pear")]


def test_an_emptied_cell_withdraws(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear", c="plum")
    review.import_edits(store)
    edit(review.path, b="")
    assert review.import_edits(store) == 1
    assert said(store) == [("b", "pear"), ("b", None), ("c", "plum")]
    assert review.annotations(store)[-1].failure is Failure.WITHDRAWN
    review.export(LABELS, ITEMS, store)
    assert finals(review.path) == {"b": "", "c": "plum", "d": ""}


def test_a_second_opinion_goes_before_the_first(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    review.import_edits(store)
    edit(review.path, b="plum")
    bob = replace(review, reviewer="bob")
    assert bob.import_edits(store) == 1
    assert [(a.annotator, a.label) for a in bob.annotations(store)] == [("human:ada", "pear"), ("human:bob", "plum")]
    bob.export(LABELS, ITEMS, store)
    assert finals(bob.path)["b"] == "plum"


def test_two_tasks_are_two_worlds(review: ReviewFile, store: Store, tmp_path: Path) -> None:
    veg = replace(TASK, name="veg", classes={"leek": "", "kale": ""}, aliases={})
    other = ReviewFile(tmp_path / "review/veg/review_labels.csv", veg, "ada")
    for file in (review, other):
        file.export(LABELS[1:], ITEMS, store)
    edit(review.path, b="pear")
    edit(other.path, b="leek")
    assert (review.import_edits(store), other.import_edits(store)) == (1, 1)
    assert (said(store, "fruit"), said(store, "veg")) == ([("b", "pear")], [("b", "leek")])
    review.export(LABELS, ITEMS, store)
    assert finals(review.path)["b"] == "pear"


# A copy that was edited elsewhere


def test_a_copy_takes_the_files_place(review: ReviewFile, store: Store, tmp_path: Path) -> None:
    review.export(LABELS, ITEMS, store)
    copy = tmp_path / "from a colleague.csv"
    copy.write_bytes(review.path.read_bytes())
    edit(copy, b="pear")
    assert review.import_edits(store, copy) == 1
    assert finals(review.path) == {"b": "pear", "c": "", "d": ""}
    assert [review.import_edits(store), review.import_edits(store, copy)] == [0, 0]
    assert said(store) == [("b", "pear")]


def test_edits_here_come_before_those_of_a_copy(review: ReviewFile, store: Store, tmp_path: Path) -> None:
    review.export(LABELS, ITEMS, store)
    copy = tmp_path / "copy.csv"
    copy.write_bytes(review.path.read_bytes())
    edit(copy, b="pear", d="plum")
    edit(review.path, b="apple", c="plum")
    assert review.import_edits(store, copy) == 3  # c is empty in the copy, and so withdrawn
    assert said(store) == [("b", "apple"), ("b", "pear"), ("c", "plum"), ("c", None), ("d", "plum")]
    assert finals(review.path) == {"b": "pear", "c": "", "d": "plum"}


@pytest.mark.parametrize("spoil", ["class", "rows", "missing"])
def test_a_copy_that_does_not_fit_changes_nothing(
    review: ReviewFile, store: Store, tmp_path: Path, spoil: str
) -> None:
    review.export(LABELS, ITEMS, store)
    before, copy = review.path.read_bytes(), tmp_path / "copy.csv"
    if spoil != "missing":
        copy.write_bytes(before)
        edit(copy, b="pear", **({"c": "pearish"} if spoil == "class" else {}))
        if spoil == "rows":
            save(copy, rows_of(copy)[:1])
    with pytest.raises(ReviewError, match=str(copy)):
        review.import_edits(store, copy)
    assert said(store) == [] and review.path.read_bytes() == before


# What cannot be imported


def change(do: Callable[[Rows], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        rows = rows_of(path)
        rows[0]["label_final"] = "pear"
        do(rows)
        save(path, rows)

    return apply


def drop_column(name: str) -> Callable[[Rows], object]:
    return lambda rows: [row.pop(name) for row in rows]


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown label": (change(lambda rows: rows[2].update(label_final="pearish")),
                      r"row 4: label_final='pearish' is not a class\. .*Classes: apple, pear, plum"),
    "removed row": (change(lambda rows: rows.pop(1)), rf"1 row\(s\) were removed, {D} among them"),
    "removed rows": (change(lambda rows: rows.__delitem__(slice(1, 3))), rf"2 row\(s\) were removed, {C} among them"),
    "added row": (change(lambda rows: rows.append(rows[1] | {"item": A})), rf"1 row\(s\) were added, '{A}' among them"),
    "row without item": (change(lambda rows: rows.append(rows[1] | {"item": "", "label_final": "pear"})),
                         r"1 row\(s\) were added, '' among them"),
    "row twice": (change(lambda rows: rows.append(rows[1] | {"label_final": "plum"})),
                  rf"row 5: the item {D} stands there twice"),
    "no label_final": (change(drop_column("label_final")), "lacks the column `item` or `label_final`"),
    "no item": (change(drop_column("item")), "lacks the column `item` or `label_final`"),
    "emptied": (lambda path: path.write_text(""), "lacks the column `item` or `label_final`"),
    "mixed separators": (lambda path: path.write_text("item;a,label_final\nb;1,pear\n"), "lacks the column `item`"),
    "column twice": (lambda path: path.write_text("item,label_final,Label_Final\nb,,pear\n"),
                     "has the column `label_final` twice"),
    "wrong column": (change(lambda rows: rows[2].update(label="Plum")),
                     "row 4: 'plum' was written into the column `label`.*Write it into label_final"),
    "endless cell": (lambda path: path.write_text("item,label_final\nb,\"" + "x" * 200_000), "cannot be read as CSV: "),
    "workbook": (lambda path: path.write_bytes(b"PK\x03\x04 a workbook \xff"), "is a workbook.*Save it as CSV"),
    "binary": (lambda path: path.write_bytes(b"\x00\xff\x81" * 99), "lacks the column `item` or `label_final`"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_does_not_fit_is_named_and_nothing_is_imported(review: ReviewFile, store: Store, case: str) -> None:
    spoil, message = BAD_FILES[case]
    review.export(LABELS, ITEMS, store)
    spoil(review.path)
    before = review.path.read_bytes()
    for _ in range(2):
        with pytest.raises(ReviewError, match=rf"(?s){review.path}.*{message}"):
            review.import_edits(store)
    assert said(store) == []
    assert review.path.read_bytes() == before


def test_a_row_added_to_a_file_without_rows_is_refused(review: ReviewFile, store: Store) -> None:
    review.export(LABELS[:1], ITEMS, store)
    assert rows_of(review.path) == []
    save(review.path, [{"item": A, "label_final": "pear"}])
    with pytest.raises(ReviewError, match=r"1 row\(s\) were added"):
        review.import_edits(store)


def test_after_mending_everything_is_imported(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear", c="pearish")
    with pytest.raises(ReviewError, match="'pearish'"):
        review.import_edits(store)
    edit(review.path, c="plum")
    assert review.import_edits(store) == 2
    assert said(store) == [("b", "pear"), ("c", "plum")]


# Edits that come in between


def test_edits_made_during_a_run_are_imported_before_the_file_is_written(
    review: ReviewFile, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    review.import_edits(store)
    edit(review.path, b="", c="plum")  # while the teacher answers
    assert review.export(LABELS, ITEMS, store) == review.path
    assert "Edits made meanwhile" in capsys.readouterr().out
    assert finals(review.path) == {"b": "", "c": "plum", "d": ""}
    assert said(store) == [("b", "pear"), ("b", None), ("c", "plum")]
    assert review.import_edits(store) == 0


@pytest.mark.parametrize("case", BAD_FILES)
def test_edits_that_do_not_fit_are_never_overwritten(
    review: ReviewFile, store: Store, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    review.export(LABELS, ITEMS, store)
    BAD_FILES[case][0](review.path)
    before = review.path.read_bytes()
    beside = review.export(LABELS[1:2], ITEMS, store)
    assert beside == review.path.with_name("review_labels.new.csv")
    assert list(finals(beside)) == ["b"]
    assert review.path.read_bytes() == before
    assert "Your edits are untouched" in capsys.readouterr().out
    assert said(store) == []
    with pytest.raises(ReviewError, match=str(review.path)):
        review.import_edits(store)


def test_a_deleted_file_comes_back_with_what_was_imported(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    review.import_edits(store)
    edit(review.path, c="nonsense")
    review.path.unlink()
    assert review.import_edits(store) == 0
    review.export(LABELS, ITEMS, store)
    assert finals(review.path) == {"b": "pear", "c": "", "d": ""}
    assert review.import_edits(store) == 0


def hidden_note(review: ReviewFile) -> Path:
    (note,) = review.path.parent.glob(".*.json")
    return note


@pytest.mark.parametrize("damage", [Path.unlink, lambda note: note.write_text("")])
def test_without_its_note_edits_are_told_by_the_store(
    review: ReviewFile, store: Store, damage: Callable[[Path], object]
) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear", c="plum")
    review.import_edits(store)
    damage(hidden_note(review))
    edit(review.path, b="", d="apple")
    assert review.import_edits(store) == 2
    assert said(store) == [("b", "pear"), ("b", None), ("c", "plum"), ("d", "apple")]


def test_without_its_note_an_empty_cell_takes_back_nothing_that_was_said_elsewhere(
    review: ReviewFile, store: Store
) -> None:
    review.export(LABELS, ITEMS, store)
    store.add([Annotation(item=C, annotator="human:1", prompt_hash="fruit@3", task="fruit", label="plum",
                          provider="label_studio")])
    hidden_note(review).unlink()
    edit(review.path, b="pear")
    assert review.import_edits(store) == 1
    assert said(store) == [("b", "pear"), ("c", "plum")]


def test_a_crash_between_the_file_and_its_note_loses_and_blames_nobody(
    review: ReviewFile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    review.import_edits(store)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for labels in (LABELS[1:2], LABELS):  # other rows than the note knew
        with monkeypatch.context() as patch:
            patch.setattr(ReviewFile, "_write_note", crash)
            with pytest.raises(KeyboardInterrupt):
                review.export(labels, ITEMS, store)
        assert review.import_edits(store) == 0
    edit(review.path, c="plum")
    assert review.import_edits(store) == 1
    assert said(store) == [("b", "pear"), ("c", "plum")]


def test_a_crash_while_writing_leaves_the_old_file_whole(
    review: ReviewFile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    before = review.path.read_bytes()

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            review.export(LABELS, ITEMS, store)
    assert review.path.read_bytes() == before
    review.import_edits(store)
    assert ("b", "pear") in said(store)


def test_a_decision_for_a_class_that_is_none_any_more_is_open_again(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="plum", c="pear")
    review.import_edits(store)
    fewer = replace(review, task=replace(TASK, classes={"apple": "", "pear": ""}))
    assert fewer.import_edits(store) == 0
    fewer.export(LABELS, ITEMS, store)
    assert finals(fewer.path) == {"b": "", "c": "pear", "d": ""}
    edit(fewer.path, d="apple")
    assert fewer.import_edits(store) == 1
