"""Between the review file and whatever spreadsheet: cells that run nothing, and files however they were saved."""

from dataclasses import replace
from pathlib import Path

import pytest
from review_folder import ITEMS, LABELS, TASK, B, C, D, edit, rows_of, said, save

from src.errors import ReviewError
from src.quality.labels_csv import write_labels
from src.quality.review_file import ReviewFile
from src.store import Store

# What cells may hold, and what is written instead.
HOSTILE = {
    '=HYPERLINK("http://x")': '\'=HYPERLINK("http://x")', "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'=1", "\r\n=1": "'=1", "  =1": "'=1", "\u00a0=1": "'=1", "\u200b=1": "'\u200b=1", "\ufeff=1": "'\ufeff=1",
    "\x00=1": "'=1", "＝1+1": "'＝1+1", "＋1": "'＋1", "－1": "'－1", "＠SUM(A1)": "'＠SUM(A1)", "﹦1": "'﹦1",
    '"=1+1"': "'\"=1+1\"", "red;=1+1": "red;'=1+1", "red; \"=1": "red;' \"=1", "'=1": "'=1",
    "two\r\nlines\rand\nmore": "two lines and more", "half \ud83d": "half ?", "2 - 1 = 1": "2 - 1 = 1", "": "",
    "a;b": "a;b", "🍎": "🍎",
}


def test_no_cell_runs_as_a_formula(review: ReviewFile, store: Store, tmp_path: Path) -> None:
    labels = [replace(LABELS[1], why=why) for why in HOSTILE]
    write_labels(tmp_path / "labels.csv", labels, ITEMS)
    assert [row["why"] for row in rows_of(tmp_path / "labels.csv")] == list(HOSTILE.values())
    item = {B: replace(ITEMS[B], name="=cmd.png")}
    review.export(labels[-1:], item, store)
    (row,) = rows_of(review.path)
    assert row["file"] == "'=cmd.png"
    edit(review.path, b="pear")
    assert review.import_edits(store) == 1


def test_a_class_that_looks_like_a_formula_goes_there_and_back(store: Store, tmp_path: Path) -> None:
    task = replace(TASK, name="mood", classes={"+1": "", "=0": "", "@home": ""}, aliases={})
    review = ReviewFile(tmp_path / "review/mood/review_labels.csv", task, "ada")
    labels = [replace(LABELS[2], label="+1", votes=("+1", "+1")), replace(LABELS[3], label="@home")]
    review.export(labels, ITEMS, store)
    edit(review.path, c="+1", d="=0")
    assert review.import_edits(store) == 2
    review.export(labels, ITEMS, store)
    assert {row["label"]: row["label_final"] for row in rows_of(review.path)} == {"'+1": "'+1", "'@home": "'=0"}
    edit(review.path, d="'@home")
    assert review.import_edits(store) == 1
    assert said(store, "mood") == [("c", "+1"), ("d", "=0"), ("d", "@home")]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_spreadsheets_save_as_they_like(
    review: ReviewFile, store: Store, delimiter: str, encoding: str, end: str
) -> None:
    review.export([replace(LABELS[1], why="ä; b, \"c\""), LABELS[3]], ITEMS, store)
    rows = rows_of(review.path)
    rows[0]["label_final"] = " Pear "
    rows[1] = {name: rows[1][name] for name in reversed(rows[1])}
    columns = [*reversed(rows[0])]
    save(review.path, [{name: row[name] for name in columns} for row in rows], delimiter=delimiter, encoding=encoding,
         end=end)
    assert review.import_edits(store) == 1
    assert said(store) == [("b", "pear")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le-sig", "cp1252"])
def test_other_encodings_of_spreadsheets(review: ReviewFile, store: Store, encoding: str) -> None:
    """Excel's "Unicode text" is UTF-16 with tabs; its plain CSV is in Western letters."""
    review.export([replace(LABELS[1], why="grün; “rot”"), LABELS[3]], ITEMS, store)
    rows = [row | {"remark": "schön €"} for row in rows_of(review.path)]
    rows[0]["label_final"] = "pear"
    tabs = encoding != "cp1252"
    save(review.path, rows, delimiter="\t" if tabs else ",", encoding=encoding.removesuffix("-sig"))
    if encoding.endswith("-sig"):
        review.path.write_bytes(b"\xff\xfe" + review.path.read_bytes())
    assert review.import_edits(store) == 1
    assert said(store) == [("b", "pear")]
    review.export(LABELS[1:2], ITEMS, store)
    assert [row["remark"] for row in rows_of(review.path)] == ["schön €"]


def test_empty_rows_and_columns_are_nothing(review: ReviewFile, store: Store) -> None:
    review.export(LABELS, ITEMS, store)
    edit(review.path, b="pear")
    lines = review.path.read_bytes().splitlines(keepends=True)
    wider = [line.replace(b"\r\n", b",,\r\n") for line in lines]
    empty = b"," * 15 + b"\r\n"
    review.path.write_bytes(b"sep=,\r\n" + empty + wider[0] + empty + b"".join(wider[1:]) + empty + b"\r\n" + b",,\r\n")
    assert review.import_edits(store) == 1
    assert said(store) == [("b", "pear")]


@pytest.mark.parametrize(("written", "meant"), [
    ("0", "0"), ("0.0", "0"), ("0,0", "0"), ('="0"', "0"), ('"0"', "0"), ("'0", "0"), ("7", "007"), ("007.0", "007"),
    ("TRUE", "true"), ("True ", "true"), ("-1", None), ("1.000", None), ("70", None), ("0.5", None),
])
def test_what_spreadsheets_make_of_figures(store: Store, tmp_path: Path, written: str, meant: str | None) -> None:
    task = replace(TASK, name="figures", classes={"0": "", "1": "", "007": "", "true": "", "1000": ""}, aliases={})
    review = ReviewFile(tmp_path / "review/figures/review_labels.csv", task, "ada")
    labels = [replace(label, label="0") for label in LABELS]
    review.export(labels, ITEMS, store)
    rows = rows_of(review.path)
    rows[0] |= {"label_final": written, "accepted": rows[0]["accepted"].upper()}
    save(review.path, rows)
    if meant:
        assert review.import_edits(store) == 1
        assert said(store, "figures") == [("b", meant)]
    else:
        with pytest.raises(ReviewError, match=r"row 2: label_final=.* is not a class"):
            review.import_edits(store)


def test_a_persons_own_columns_are_kept(review: ReviewFile, store: Store) -> None:
    """With a heading or without; a row that carries such a remark stays listed."""
    review.export(LABELS, ITEMS, store)
    rows = rows_of(review.path)
    for row in rows:
        row |= {"Remark": "=half eaten" if row["item"] == C else "", "": "who?" if row["item"] == D else ""}
    save(review.path, rows)
    review.export([replace(LABELS[2], reason=""), *LABELS[3:]], ITEMS, store)
    place = f"column {len(rows[0])}"
    assert [(row["item"], row["remark"], row[place]) for row in rows_of(review.path)] == [
        (D, "", "who?"), (C, "'=half eaten", "")]
    assert review.import_edits(store) == 0
