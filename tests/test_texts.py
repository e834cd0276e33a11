"""CSV files of texts → items: which text a row holds, what is refused, what looks alike, and what it costs."""

import csv
import hashlib
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED

from src.data.folder import Scan
from src.data.texts import in_place, normalised, read_texts
from src.errors import DataError
from src.task import Item, TaskSpec

TASK = TaskSpec(name="mood", version=1, kind="classify", classes={"negative": "", "positive": ""},
                aliases={"neg": "negative", "pos": "positive"}, system_prompt="", user_prompt="", metric="accuracy")


def write(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(path: Path, **options: Any) -> Scan:
    asked: dict[str, Any] = {"text_column": "text", "truth_column": None, "group_column": None, "gold_csv": None}
    return read_texts(path, TASK, **(asked | options))


def read_rows(tmp_path: Path, rows: str | bytes, **options: Any) -> list[Item]:
    return read(write(tmp_path / "rows.csv", rows), **options).train


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# What a row becomes


def test_a_row_is_an_item(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "id,text,film,gold\n7,Good,Ran,pos\n8,Bad ,Ran,\n9,So so,,negative\n")
    found = read(path, truth_column="gold", group_column="film")
    assert found.train == [
        Item(key_of("Good"), "Good", "rows.csv:2", "Ran", None, {"id": "7"}, "positive"),
        Item(key_of("Bad "), "Bad ", "rows.csv:3", "Ran", None, {"id": "8"}, None),
        Item(key_of("So so"), "So so", "rows.csv:4", None, None, {"id": "9"}, "negative"),
    ]
    assert (found.test, found.gold, found.broken, found.duplicates) == ([], frozenset(), {}, 0)


def test_without_a_truth_column_truth_is_unknown_and_classes_are_attributes(tmp_path: Path) -> None:
    (item,) = read_rows(tmp_path, "text,gold\nGood,pos\n")
    assert (item.truth, item.attributes) == (None, {"gold": "pos"})


def test_the_text_column_may_have_another_name(tmp_path: Path) -> None:
    (item,) = read_rows(tmp_path, " message ,text\nGood,x\n", text_column="message")
    assert (item.payload, item.attributes) == ("Good", {"text": "x"})


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_the_key_is_the_same_on_every_system(tmp_path: Path, ending: str) -> None:
    """Line endings are one newline character; everything else stays as it stands, spaces around it too."""
    rows = ending.join(["text,n", '"  two', 'lines  ",1', "größer ☃,2", ""])
    first, second = read_rows(tmp_path, rows.encode())
    assert (first.payload, first.key) == ("  two\nlines  ", key_of("  two\nlines  "))
    assert (second.payload, second.key) == ("größer ☃", hashlib.sha256("größer ☃".encode()).hexdigest())
    assert (first.name, second.name) == ("rows.csv:2", "rows.csv:4")


def test_the_line_is_where_a_row_begins(tmp_path: Path) -> None:
    rows = 'text,n\none,1\n\n"two\n\nparagraphs",2\nthree,3\n\n\n"four",4'
    assert [(item.payload, item.name) for item in read_rows(tmp_path, rows)] == [
        ("one", "rows.csv:2"), ("two\n\nparagraphs", "rows.csv:4"), ("three", "rows.csv:7"), ("four", "rows.csv:10")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("bom", [False, True])
def test_delimiters_are_seen_in_the_header(tmp_path: Path, delimiter: str, bom: bool) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as lines:
        csv.writer(lines, delimiter=delimiter, quoting=csv.QUOTE_ALL if bom else csv.QUOTE_MINIMAL).writerows(
            [["text", "gold"], ['a, b; c\td|e "f"', "pos"], ["plain", "neg"]])
    items = read(tmp_path / "rows.csv", truth_column="gold").train
    assert [(item.payload, item.truth) for item in items] == [
        ('a, b; c\td|e "f"', "positive"), ("plain", "negative")]


def test_the_wanted_columns_decide_between_delimiters(tmp_path: Path) -> None:
    """More columns would come of commas, but only semicolons give `text`."""
    (item,) = read_rows(tmp_path, "text;size, in cm, of it\nGood;3, 4, 5\n")
    assert (item.payload, item.attributes) == ("Good", {"size, in cm, of it": "3, 4, 5"})


def test_a_file_of_one_column(tmp_path: Path) -> None:
    assert [item.payload for item in read_rows(tmp_path, 'text\nGood\n"Bad, really"\n')] == ["Good", "Bad, really"]


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    """As pandas writes its index."""
    assert [item.attributes for item in read_rows(tmp_path, ",text,n\n0,Good,a\n1,Bad,b\n")] == [{"n": "a"}, {"n": "b"}]


# What looks alike, and what is the same


def test_the_same_text_is_one_item(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,gold,film\nGood,,\nBad,neg,f\nGood,pos,Ran\nGood,pos,Ran\n")
    found = read(path, truth_column="gold", group_column="film")
    assert [(item.name, item.truth, item.group) for item in found.train] == [
        ("rows.csv:2", "positive", "Ran"), ("rows.csv:3", "negative", "f")]
    assert found.duplicates == 2


def test_two_truths_of_one_text_are_refused_and_named(tmp_path: Path) -> None:
    rows = "text,gold\n" + "".join(f"{text},{gold}\n" for gold in ("pos", "neg") for text in "abcdefg")
    path = write(tmp_path / "rows.csv", rows)
    named = r"rows\.csv:2 \(positive\) and rows\.csv:9 \(negative\); rows\.csv:3.*; …\. Delete the wrong rows"
    with pytest.raises(DataError, match=rf"7 text\(s\) in {path} stand there again with another truth: {named}"):
        read(path, truth_column="gold")
    assert len(read(path).train) == 7


@pytest.mark.parametrize(("one", "other", "alike"), [
    ("Good film.", "  good   FILM !", True),
    ("It's (really) good", "it s really good", True),
    ("ﬁne", "FINE", True),  # a ligature
    ("Straße", "STRASSE", True),
    ("１２", "12", True),  # wide digits
    ("co\u00adoperate", "cooperate", True),  # a soft hyphen, which nobody sees
    ("two\nlines", "two lines", True),
    ("good", "god", False),
    ("good film", "goodfilm", False),
    ("3 stars", "5 stars", False),
    ("café", "cafe", False),
    ("👍", "👎", False),
    ("!!!", "???", False),
    ("? !", "?  !", True),
    ("की", "का", False),  # other vowels, which are marks in this script
])
def test_which_texts_look_alike(tmp_path: Path, one: str, other: str, alike: bool) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([["text"], [one], [other], ["something else"]])
    a, b, c = read(tmp_path / "rows.csv").train
    assert (normalised(one) == normalised(other)) == alike
    assert (a.twin, b.twin, c.twin) == ((a.twin, a.twin, None) if alike else (None, None, None))
    assert (a.twin is not None) == alike


# Truth by hand


def test_a_gold_csv_is_gold_and_goes_before_the_column(tmp_path: Path) -> None:
    gold = write(tmp_path / "gold.csv", 'label;text\nneg;"Good\r\nold"\npos;Bad\n')
    found = read(write(tmp_path / "rows.csv", 'text,gold\n"Good\nold",pos\nBad,\nUgly,neg\n'), truth_column="gold",
                 gold_csv=gold)
    assert {str(item.payload): item.truth for item in found.train} == {
        "Good\nold": "negative", "Bad": "positive", "Ugly": "negative"}
    assert found.gold == {key_of("Good\nold"), key_of("Bad")}


def test_a_gold_csv_may_name_keys(tmp_path: Path) -> None:
    gold = write(tmp_path / "gold.csv", f"key,label,text\n{key_of('Bad')},neg,shortened …\n")
    found = read(write(tmp_path / "rows.csv", "text\nGood\nBad\n"), gold_csv=gold)
    assert [item.truth for item in found.train] == [None, "negative"]
    assert found.gold == {key_of("Bad")}


def test_a_hand_checked_truth_settles_a_text_with_two(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,gold\nGood,pos\nGood,neg\n")
    found = read(path, truth_column="gold", gold_csv=write(tmp_path / "gold.csv", "text,label\nGood,neg\n"))
    assert [item.truth for item in found.train] == ["negative"]


BAD_GOLD = {
    "no label": ("text,truth\nGood,pos\n", r"has no column 'label' \(.*\)\. Columns found: 'text', 'truth'"),
    "no text": ("name,label\nGood,pos\n", "needs the columns `text` and `label`, or `key` and `label`"),
    "no rows": ("text,label\n", "has no row below its header"),
    "no class": ("text,label\nGood,fine\n", r"line 2: 'fine' is not a class\. Classes: negative, positive"),
    "an empty label": ("text,label\nGood,\n", "line 2: '' is not a class"),
    "another text": ("text,label\nGood,pos\ngood,pos\n", r"line 3: there is no such text in .*rows\.csv"),
    "two labels": ("text,label\nGood,pos\nBad,neg\nGood,neg\n", "line 4: this text is positive in line 2 and negative"),
    "a long row": ("text,label\nGood, really,pos\n", r"line 2: 3 field\(s\), and the header has 2"),
}


@pytest.mark.parametrize("case", BAD_GOLD)
def test_a_gold_csv_that_does_not_fit(tmp_path: Path, case: str) -> None:
    rows, message = BAD_GOLD[case]
    gold = write(tmp_path / "gold.csv", rows)
    with pytest.raises(DataError, match=rf"{gold}.*{message}"):
        read(write(tmp_path / "rows.csv", "text\nGood\nBad\n"), gold_csv=gold)


@pytest.mark.parametrize("key", ["root", "gold_csv"])
def test_a_file_that_is_missing_is_named_by_its_key(tmp_path: Path, key: str) -> None:
    rows = write(tmp_path / "rows.csv", "text\nGood\n")
    nowhere = tmp_path / "nowhere.csv"
    with pytest.raises(DataError, match=rf"data\.{key}='{nowhere}' cannot be read: No such file or directory"):
        read(nowhere if key == "root" else rows, gold_csv=nowhere)


# What cannot be read


@pytest.mark.parametrize(("place", "message"), [
    (None, r"data=csv needs data\.root=FILE"), ("nowhere.csv", "is not a file"), (".", "is a folder, and data=csv re"),
])
def test_a_file_that_is_none(tmp_path: Path, place: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        in_place(tmp_path / "into", root=place and tmp_path / place, classes=TASK.names, download=False)


def test_a_file_is_used_where_it_lies(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text\nGood\n")
    assert in_place(tmp_path / "into", root=path, classes=TASK.names, download=False) == path


def test_broken_rows_are_set_aside_and_named_by_line(tmp_path: Path) -> None:
    rows = 'text,n\nGood,1\n,2\n"  \n ",3\nBad, and long,4\nshort\nzero\0byte,5\nFine,6\n'
    found = read(write(tmp_path / "rows.csv", rows))
    assert [item.name for item in found.train] == ["rows.csv:2", "rows.csv:9"]
    assert found.broken == {
        "rows.csv:3": "empty",
        "rows.csv:4": "empty",
        "rows.csv:6": "3 field(s), and the header has 2: a text that holds the delimiter needs quotation marks",
        "rows.csv:7": "1 field(s), and the header has 2",
        "rows.csv:8": "holds a NUL character",
    }


LATIN, WIDE = "text\nGood\nschön\n".encode("latin-1"), "text,n\nGood,1\n"
UNREADABLE: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", r"has no column 'text' \(data\.text_column\)\. It is empty"),
    "no rows": ("text,n\n", "can be used. There are none below the header"),
    "only broken rows": ("text,n\n,1\n,2\n", r"can be used\. rows\.csv:2 \(empty\); rows\.csv:3 \(empty\)"),
    "no such column": ("id,message\n1,x\n", r"no column 'text' \(data\.text_column\)\. Columns found: 'id', 'message'"),
    "another case": ("Text\nGood\n", "no column 'text'.*Columns found: 'Text'"),
    "no header": ("x" * 500 + ",pos\n", "no column 'text'.*Columns found: '" + "x" * 40 + "…', 'pos'"),
    "two such columns": ("text,n,text\na,b,c\n", "more than one column named 'text'"),
    "latin-1": (LATIN, "line 3, is not UTF-8: save the file as UTF-8"),
    "UTF-16": (WIDE.encode("utf-16"), "line 1, is not UTF-8"),
    "UTF-16 without a mark": (WIDE.encode("utf-16-le"), "holds NUL bytes, as UTF-16 files do: save it as UTF-8"),
    "a quotation mark that stays open": ('text,n\nGood,1\n"Bad,2\nUgly,3\n', "the row that begins on line 3 cannot be"),
    "one inside": ('text,n\nGood,1\n"He said "no" to it",2\n', "the row that begins on line 3 .*is written twice"),
    "a field without end": ('text,n\n"' + "x" * 10_000_001 + '",1\n', r"line 2 .*no field has more than 10,000,000"),
    "no class": ("text,gold\nGood,pos\nBad,awful\n", r"line 3: 'awful' is not a class\. Classes: negative, positive"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_read_as_it_stands(tmp_path: Path, case: str) -> None:
    content, message = UNREADABLE[case]
    path = write(tmp_path / "rows.csv", content)
    with pytest.raises(DataError, match=rf"{path}.*{message}"):
        read(path, truth_column="gold" if case == "no class" else None)


@pytest.mark.parametrize("key", ["truth_column", "group_column"])
def test_a_missing_column_is_named_by_its_key(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "rows.csv", "text;gold\nGood;pos\n")
    with pytest.raises(DataError, match=rf"no column 'x' \(data\.{key}\)\. Columns found: 'text', 'gold'"):
        read(path, **{key: "x"})


def test_a_field_longer_than_pythons_limit_is_read_and_the_limit_left(tmp_path: Path) -> None:
    text = "word " * 100_000
    limit = csv.field_size_limit(12_345)
    try:
        (item,) = read_rows(tmp_path, f'text\n"{text}"\n')
        assert item.payload == text
        with pytest.raises(DataError, match="cannot be read"):
            read_rows(tmp_path, 'text\n"open\n')
        assert csv.field_size_limit() == 12_345
    finally:
        csv.field_size_limit(limit)


# What it costs


def test_items_are_small(tmp_path: Path) -> None:
    """Beside its text, an item of a large file may cost 400 bytes; what rows have in common is kept once."""
    count = 20_000
    rows = "".join(f"the {n}th text of this file says little,{('pos', 'neg')[n % 2]},c{n // 4},m{n % 5}\n"
                   for n in range(count))
    path = write(tmp_path / "rows.csv", "text,gold,customer,model\n" + rows)
    read(path)  # what is made once
    tracemalloc.start()
    try:
        found = read(path, truth_column="gold", group_column="customer")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    texts = sum(sys.getsizeof(item.payload) for item in found.train)
    assert (held - texts) / count < 400
    assert len({id(item.attributes) for item in found.train}) == 5


# Real texts


@pytest.mark.shared
def test_the_movie_reviews() -> None:
    found = read(SHARED / "movie_reviews" / "train.csv", truth_column="gold")
    with (SHARED / "movie_reviews" / "train.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(found.train) == len(rows) == 8662 and not found.broken and not found.duplicates
    assert [(item.payload, item.truth, item.attributes) for item in found.train] == [
        (row["text"], row["gold"], {"llm_label": row["llm_label"]}) for row in rows]
    assert sorted(item.name for item in found.train if item.twin) == ["train.csv:5271", "train.csv:7582"]
