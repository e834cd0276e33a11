"""The review file's round trip: what a person wrote is imported once, or stays where it is."""

import base64
import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from src.config import Job
from src.errors import ReviewError
from src.quality.conclude import conclude
from src.quality.contact_sheet import contact_sheet
from src.quality.labels_csv import COLUMNS, write_labels
from src.quality.review_file import ReviewFile
from src.quality.review_list import Listed
from src.quality.spot_checks import sample
from src.store import Store
from src.task import Annotation, Failure, Item, Label, Panel, TaskSpec

TASK = TaskSpec(
    name="fruit", version=3, kind="classify", classes={"apple": "", "pear": "", "plum": ""},
    aliases={"apples": "apple"}, system_prompt="", user_prompt="", metric="accuracy",
)
ITEMS = {key * 64: Item(key * 64, Path(f"{key}.png"), f"images/{key}.png") for key in "abcd"}
A, B, C, D = ITEMS
# One label that everybody is sure of, and three that deserve a look.
LABELS = [
    Label(A, "apple", True, "teacher", "", 0.9, ("apple", "apple"), "red", 0.97),
    Label(B, None, False, "teacher", "passes disagree", None, ("apple", "pear"), "green"),
    Label(C, "pear", True, "teacher", "admits doubt: blurry", 0.5, ("pear", "pear"), "blurry"),
    Label(D, None, False, "teacher", "failed: refusal", None, (None, "plum"), ""),
]
# What cells may hold, and what is written instead.
HOSTILE = {
    '=HYPERLINK("http://x")': '\'=HYPERLINK("http://x")', "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'=1", "\r\n=1": "'=1", "  =1": "'=1", "\u00a0=1": "'=1", "\u200b=1": "'\u200b=1", "\ufeff=1": "'\ufeff=1",
    "\x00=1": "'=1", "＝1+1": "'＝1+1", "＋1": "'＋1", "－1": "'－1", "＠SUM(A1)": "'＠SUM(A1)", "﹦1": "'﹦1",
    '"=1+1"': "'\"=1+1\"", "red;=1+1": "red;'=1+1", "red; \"=1": "red;' \"=1", "'=1": "'=1",
    "two\r\nlines\rand\nmore": "two lines and more", "half \ud83d": "half ?", "2 - 1 = 1": "2 - 1 = 1", "": "",
    "a;b": "a;b", "🍎": "🍎",
}
Rows = list[dict[str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "annotations.db")
    yield opened
    opened.close()


@pytest.fixture
def review(tmp_path: Path) -> ReviewFile:
    return ReviewFile(tmp_path / "review/fruit/review_labels.csv", TASK, "ada")


def rows_of(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        return list(csv.DictReader(lines))


def save(path: Path, rows: Rows, *, delimiter: str = ",", encoding: str = "utf-8", end: str = "\r\n") -> bytes:
    """As a spreadsheet saves it: its own line ends and quotes."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path.read_bytes()


def edit(path: Path, **finals: str) -> bytes:
    """Write `label_final` of the items whose keys begin with a, b, c, d."""
    rows = rows_of(path)
    for row in rows:
        row["label_final"] = finals.get(row["item"][0], row["label_final"])
    return save(path, rows)


def finals(path: Path) -> dict[str, str]:
    return {row["item"][0]: row["label_final"] for row in rows_of(path)}


def said(store: Store, task: str = "fruit") -> list[tuple[str, str | None]]:
    """What people said so far: item and label, oldest first within an item."""
    found = [(a.item[0], a.label) for a in store.read(task=task, annotator_prefix="human:")]
    return sorted(found, key=lambda pair: pair[0])


# What is written


def test_all_labels_are_listed(tmp_path: Path) -> None:
    write_labels(tmp_path / "out/labels_llm.csv", LABELS, ITEMS)
    rows = rows_of(tmp_path / "out/labels_llm.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [list(row.values()) for row in rows] == [
        [A, "images/a.png", "apple", "true", "teacher", "", "0.9", "0.97", "apple | apple", "red"],
        [B, "images/b.png", "", "false", "teacher", "passes disagree", "", "", "apple | pear", "green"],
        [C, "images/c.png", "pear", "true", "teacher", "admits doubt: blurry", "0.5", "", "pear | pear", "blurry"],
        [D, "images/d.png", "", "false", "teacher", "failed: refusal", "", "", "? | plum", ""],
    ]


def test_a_person_is_shown_what_deserves_a_look(review: ReviewFile, store: Store) -> None:
    assert review.export(LABELS, ITEMS, store) == review.path
    rows = rows_of(review.path)
    assert list(rows[0]) == [*COLUMNS, "why_listed", "label_final"]
    assert [(row["item"], row["why_listed"], row["label_final"]) for row in rows] == [
        (B, "passes disagree", ""), (D, "failed: refusal", ""), (C, "admits doubt: blurry", "")]


def test_the_least_sure_stand_first_and_refused_labels_before_accepted_ones(review: ReviewFile, store: Store) -> None:
    known = {key * 64: Item(key * 64, Path(f"{key}.png"), f"{key}.png") for key in "abcdef"}
    doubted = [
        Label("a" * 64, "apple", True, "teacher", "admits doubt: guess", 0.2, probability=0.6),
        Label("b" * 64, "apple", False, "teacher", "probability below 0.9", 0.1, probability=0.8),
        Label("c" * 64, "apple", False, "teacher", "probability below 0.9", 0.9, probability=0.3),
        Label("d" * 64, None, False, "teacher", "passes disagree"),
        Label("e" * 64, "apple", True, "teacher", "admits doubt: guess", 0.5),
        Label("f" * 64, "apple", True, "teacher", "", 0.1, probability=0.1),
    ]
    for labels in (doubted, doubted[::-1]):
        review.export(labels, known, store)
        assert "".join(row["item"][0] for row in rows_of(review.path)) == "dcbea"


def test_spot_checks_come_first_and_stay_when_they_are_answered(review: ReviewFile, store: Store) -> None:
    """Two of three accepted labels are drawn, one of them doubtful besides; the third is sure, and not listed."""
    labels = [*LABELS, Label("e" * 64, "plum", True, "teacher", "", 0.9)]
    known = ITEMS | {"e" * 64: Item("e" * 64, Path("e.png"), "images/e.png")}
    drawn = [label.item for label in sample(labels, 2, seed=4)]
    assert C in drawn and drawn[0] != C
    expected = [(drawn[0], "spot check"), (C, "spot check; admits doubt: blurry"), (B, "passes disagree"),
                (D, "failed: refusal")]
    review.export(labels, known, store, unreviewed=labels, spot_checks=2, seed=4)
    assert [(row["item"], row["why_listed"]) for row in rows_of(review.path)] == expected
    edit(review.path, **{drawn[0][0]: "pear", "b": "pear"})
    review.import_edits(store)
    now = [replace(label, label="pear", accepted=True, source="human:ada", reason="reviewed")
           if label.item in (drawn[0], B) else label for label in labels]
    review.export(now, known, store, unreviewed=labels, spot_checks=2, seed=4)
    assert [(row["item"], row["why_listed"]) for row in rows_of(review.path)] == expected
    assert [row["label_final"] for row in rows_of(review.path)] == ["pear", "", "pear", ""]


def test_texts_are_shown_in_the_file(review: ReviewFile, store: Store, tmp_path: Path) -> None:
    texts = {B: replace(ITEMS[B], payload="=cmd|' /C calc'!A0\nand more", name="reviews.csv:12"),
             D: replace(ITEMS[D], payload="schön " * 200, name="reviews.csv:13")}
    review.export([LABELS[1], LABELS[3]], texts, store)
    rows = rows_of(review.path)
    assert list(rows[0])[:3] == ["item", "file", "text"]
    assert rows[0]["text"] == "'=cmd|' /C calc'!A0 and more" and rows[0]["file"] == "reviews.csv:12"
    assert len(rows[1]["text"]) == 500 and rows[1]["text"].endswith("…")
    assert review.path.read_bytes().startswith(b"\xef\xbb\xbf")  # or Excel shows schön as something else
    edit(review.path, b="pear")
    assert review.import_edits(store) == 1
    write_labels(tmp_path / "labels.csv", [LABELS[3]], texts)
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8").startswith("item,file,text,")


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


def test_the_contact_sheet_shows_pictures_and_runs_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.png")
    shown = {A: Item(A, tmp_path / "a.png", "<img src=x>.png"), B: Item(B, tmp_path / "gone.png", "b.png"),
             C: Item(C, "a text <script>alert(1)</script>", "texts.csv:3")}
    listed = [Listed(replace(label, why="<b>{why}</b>"), "spot check") for label in LABELS[:3]]
    page = contact_sheet(listed, shown, title="fruit & co", max_pixels=10**6)
    assert "<title>fruit &amp; co</title>" in page and "3 to look at." in page and page.count("<article>") == 3
    assert "&lt;b&gt;{why}&lt;/b&gt;" in page and "&lt;script&gt;" in page and "&lt;img src=x&gt;" in page
    assert "<script" not in page and "<img src=x" not in page and "gone.png" in page and "apple | pear" in page
    (picture,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.size == (128, 64)
    many = contact_sheet([Listed(replace(LABELS[2]), "kept")] * 501, shown, title="", max_pixels=1)
    assert many.count("<article>") == 500 and "The first 500 of 501." in many


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


# How spreadsheets save


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
