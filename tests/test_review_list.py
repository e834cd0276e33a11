"""What a person is asked to look at, in which order, and how it is shown."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from review_folder import ITEMS, LABELS, A, B, C, D, edit, rows_of, save

from src.errors import ReviewError
from src.quality.contact_sheet import contact_sheet
from src.quality.labels_csv import COLUMNS, write_labels
from src.quality.review_file import ReviewFile
from src.quality.review_list import Listed, to_review
from src.quality.spot_checks import audit, sample
from src.store import Store
from src.task import Item, Label


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
    """Two of three accepted labels are drawn, one of them doubtful besides, which the person is not told; the third is
    sure, and not listed."""
    labels = [*LABELS, Label("e" * 64, "plum", True, "teacher", "", 0.9)]
    known = ITEMS | {"e" * 64: Item("e" * 64, Path("e.png"), "images/e.png")}
    drawn = [label.item for label in sample(labels, 2, seed=4)]
    assert C in drawn and drawn[0] != C
    expected = [(drawn[0], "spot check"), (C, "spot check"), (B, "passes disagree"),
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


def test_whoever_checks_a_spot_is_not_told_the_label(review: ReviewFile, store: Store) -> None:
    """Nor what anybody voted, or why; what is doubtful is shown with everything."""
    listed = to_review(LABELS, LABELS, keep=(), spot_checks=1, seed=0)
    assert [one.blind for one in listed] == [True, False, False] + [False] * (len(listed) - 3)
    spot = listed[0].label
    assert spot.accepted and listed[0].shown == Label(spot.item, None, True, "")
    review.export(LABELS, ITEMS, store, unreviewed=LABELS, spot_checks=1, seed=0)
    first, *others = rows_of(review.path)
    assert (first["item"], first["why_listed"]) == (spot.item, "spot check")
    hidden = {name: cell for name, cell in first.items() if name not in ("item", "file", "accepted", "why_listed")}
    assert set(hidden.values()) == {""}
    assert all(row["votes"] for row in others)
    page = contact_sheet(listed[:1], ITEMS, title="", max_pixels=1)
    assert str(spot.label) not in page and spot.why not in page and "label not shown" in page


def test_an_answer_in_the_empty_cell_beside_is_not_lost(review: ReviewFile, store: Store) -> None:
    """Who writes what they see into `label`, which is empty, instead of `label_final` is told so."""
    review.export(LABELS, ITEMS, store, unreviewed=LABELS, spot_checks=1, seed=0)
    rows = rows_of(review.path)
    rows[0]["label"] = "pear"
    save(review.path, rows)
    with pytest.raises(ReviewError, match=r"row 2: 'pear' was written into the column `label`"):
        review.import_edits(store)
    rows[0]["label"], rows[0]["label_final"] = "", "plum"
    save(review.path, rows)
    assert review.import_edits(store) == 1
    found = audit(LABELS, review.annotations(store), task=review.task, spot_checks=1, seed=0)
    assert found and found.wrong == (rows[0]["item"],)


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


def test_the_contact_sheet_shows_pictures_and_runs_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.png")
    shown = {A: Item(A, tmp_path / "a.png", "<img src=x>.png"), B: Item(B, tmp_path / "gone.png", "b.png"),
             C: Item(C, "a text <script>alert(1)</script>", "texts.csv:3")}
    listed = [Listed(replace(label, why="<b>{why}</b>"), "kept") for label in LABELS[:3]]
    page = contact_sheet(listed, shown, title="fruit & co", max_pixels=10**6)
    assert "<title>fruit &amp; co</title>" in page and "3 to look at." in page and page.count("<article>") == 3
    assert "&lt;b&gt;{why}&lt;/b&gt;" in page and "&lt;script&gt;" in page and "&lt;img src=x&gt;" in page
    assert "<script" not in page and "<img src=x" not in page and "gone.png" in page and "apple | pear" in page
    (picture,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.size == (128, 64)
    many = contact_sheet([Listed(replace(LABELS[2]), "kept")] * 501, shown, title="", max_pixels=1)
    assert many.count("<article>") == 500 and "The first 500 of 501." in many
