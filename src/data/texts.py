"""A CSV file of texts → items, one text in each row. Knows nothing about splits or teachers.

The text of a row is the field as the CSV says it, with every line ending in it as one newline character, whatever the
system that wrote the file; nothing else is changed or trimmed. Its key is the sha256 of its UTF-8 bytes. Rows with the
same text are one item. Texts that differ only in case, width, spacing and punctuation look alike and get one `twin`.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from src.data.folder import NAMED, Scan
from src.data.tables import columns_found, table
from src.errors import DataError
from src.task import Item, TaskSpec


def in_place(into: Path, *, root: Path | None, classes: Sequence[str], download: bool) -> Path:
    """The source that brings nothing: the texts already lie in `data.root`."""
    if root is None:
        raise DataError("data=csv needs data.root=FILE, the CSV file that holds the texts.")
    if not root.is_file():
        kind = "a folder, and data=csv reads one file" if root.is_dir() else "not a file"
        raise DataError(f"data.root={str(root)!r} is {kind}. Name the CSV file that holds the texts.")
    return root


def read_texts(path: Path, task: TaskSpec, *, text_column: str, truth_column: str | None, group_column: str | None,
               gold_csv: Path | None) -> Scan:
    """Read every row once; set aside what cannot be asked about, and merge rows with the same text.

    Columns without a name are left out, the others are attributes. Truth in `gold_csv` goes before `truth_column`.
    Raises DataError where the file cannot be read as it stands, a column is missing, a truth is no class of the task,
    or one text has two truths.
    """
    asked = {"data.text_column": text_column, "data.truth_column": truth_column, "data.group_column": group_column}
    header, rows = table(path, {name: key for key, name in asked.items() if name}, key="data.root")
    text_at, truth_at, group_at = (header.index(name) if name else None for name in asked.values())
    assert text_at is not None
    others = [(n, name) for n, name in enumerate(header) if name and name not in asked.values()]

    @lru_cache(maxsize=10_000)
    def attributes(*values: str) -> dict[str, str]:
        return {name: value for (_, name), value in zip(others, values, strict=True)}

    gold = _read_gold(gold_csv, task) if gold_csv else {}
    items: list[Item] = []
    places: dict[str, int] = {}
    alike: dict[bytes, int] = {}
    twins: dict[int, str] = {}
    classes: dict[str, str | None] = {}
    groups: dict[str, str] = {}
    broken: dict[str, str] = {}
    conflicts: list[str] = []
    duplicates = 0
    with closing(rows):
        for line, row in rows:
            if why := _wrong(row, text_at, len(header)):
                broken[f"{path.name}:{line}"] = why
                continue
            text = row[text_at]
            key = hashlib.sha256(text.encode()).hexdigest()
            truth, group = gold.get(key, (0, None))[1], None
            if truth is None and truth_at is not None:
                told = row[truth_at]
                if told not in classes:
                    classes[told] = _class(told, task, path, line) if told.strip() else None
                truth = classes[told]
            if group_at is not None and row[group_at]:
                group = groups.setdefault(row[group_at], row[group_at])
            item = Item(key, text, f"{path.name}:{line}", group, None, attributes(*[row[n] for n, _ in others]), truth)
            place = places.setdefault(key, len(items))
            if place < len(items):
                duplicates += 1
                first = items[place]
                if first.truth and truth and first.truth != truth:
                    conflicts.append(f"{first.name} ({first.truth}) and {item.name} ({truth})")
                items[place] = replace(first, truth=first.truth or truth, group=first.group or group)
                continue
            look = hashlib.sha256(normalised(text).encode()).digest()
            if (other := alike.setdefault(look, place)) != place:
                twins[place] = twins[other] = look.hex()
            items.append(item)
    if conflicts:
        raise DataError(f"{len(conflicts)} text(s) in {path} stand there again with another truth: "
                        + "; ".join(conflicts[:NAMED]) + ("; …" if len(conflicts) > NAMED else "")
                        + ". Delete the wrong rows.")
    if not items:
        named = "; ".join(f"{name} ({why})" for name, why in list(broken.items())[:NAMED])
        raise DataError(f"No row of {path} can be used. {named or 'There are none below the header.'}")
    for key, (line, _) in gold.items():
        if key not in places:
            raise DataError(f"{gold_csv}, line {line}: there is no such text in {path}. Texts are compared character "
                            "by character; a column `key` with the key of each item does as well.")
    for place, twin in twins.items():
        items[place] = replace(items[place], twin=twin)
    return Scan(items, [], frozenset(gold), broken, duplicates)


def normalised(text: str) -> str:
    """What is left of a text beside its case, width, spacing and punctuation; of a text of punctuation alone, that."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SPACES).split()) or " ".join(folded.split())


class _Spaces(dict[int, int | str | None]):
    """For `str.translate`: punctuation and separators become spaces, what is invisible goes. Filled as it is asked."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        kept = None if category == "Cf" else " " if category[0] in "PZC" else code
        self[code] = kept
        return kept


_SPACES = _Spaces()


def _wrong(row: Sequence[str], text_at: int, width: int) -> str:
    """Why nobody can be asked about this row, or nothing."""
    if len(row) != width:
        hint = ": a text that holds the delimiter needs quotation marks" if len(row) > width else ""
        return f"{len(row)} field(s), and the header has {width}{hint}"
    if not row[text_at].strip():
        return "empty"
    if "\0" in row[text_at]:
        return "holds a NUL character"
    return ""


def _class(told: str, task: TaskSpec, path: Path, line: int) -> str:
    label = task.map_label(told)
    if label is None:
        raise DataError(f"{path}, line {line}: {told!r} is not a class. Classes: {', '.join(task.names)}.")
    return label


def _read_gold(path: Path, task: TaskSpec) -> dict[str, tuple[int, str]]:
    """Key → the line that names it, and its hand-checked class."""
    header, rows = table(path, {"label": "data.gold_csv needs the checked labels"}, key="data.gold_csv")
    if not {"key", "text"} & set(header):
        raise DataError(f"{path} needs the columns `text` and `label`, or `key` and `label`. {columns_found(header)}")
    found: dict[str, tuple[int, str]] = {}
    with closing(rows):
        for line, row in rows:
            if len(row) != len(header):
                raise DataError(f"{path}, line {line}: {_wrong(row, 0, len(header))}.")
            named = dict(zip(header, row, strict=True))
            key = named["key"].strip() if "key" in named else hashlib.sha256(named["text"].encode()).hexdigest()
            label = _class(named["label"], task, path, line)
            before, other = found.setdefault(key, (line, label))
            if other != label:
                raise DataError(f"{path}, line {line}: this text is {other} in line {before} and {label} here. Delete "
                                "the wrong one.")
    if not found:
        raise DataError(f"{path} has no row below its header: give each checked text and its label.")
    return found
