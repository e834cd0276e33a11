"""Recorded answers in the place of a teacher: a file says what was answered, and nobody is asked.

For answers that were bought elsewhere, and for studies that can be repeated. Knows nothing about stores or plans.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from src.data.tables import DELIMITERS, LONGEST
from src.errors import DataError
from src.labeling.client import Fault
from src.labeling.outcome import Outcome
from src.task import SECOND_LOOK, Failure, Item, TaskSpec

NAMED_BY = ("item", "text", "file")  # what a row may be known by: the item's key, its text, or its name
RECORDED = "recorded"  # stands for the provider
FEW = 0.1  # a pass that fewer of the items have is no pass, but a repetition in the file

Row = Mapping[str, str]


class Replay:
    """Answers from a CSV file with a column that names the item (`item`, `text` or `file`, whichever finds most of
    them), one with the label, and where wanted `pass`, `confidence`, `why` and `model`.

    Rows of one item are its passes in their order, or those that `pass` says; of several for one pass the last counts.
    An empty label is an empty answer; an item or a pass that stands nowhere fails for good. Use as
    `async with Replay(...) as replay`. Raises DataError for a file that cannot be read or fits no item.
    """

    def __init__(self, path: Path, column: str, task: TaskSpec, items: Sequence[Item]) -> None:
        self._path, self._column, self._task = path, column, task
        rows = _rows(path, column)
        found_by = [_keys(rows, items, name) for name in NAMED_BY if name in rows[0]]
        keys = max(found_by, key=lambda keys: sum(map(bool, keys)))
        self._said: dict[str, dict[int, Outcome]] = defaultdict(dict)
        for row, found in zip(rows, keys, strict=True):
            for key in found:
                said = self._said[key[:32]]
                number = row.get("pass", "").strip()
                said[int(number) if number.isdecimal() else len(said)] = self._outcome(row)
        if not self._said:
            raise DataError(self._fits_nothing(rows[0], items))
        self._passes = Counter(number for said in self._said.values() for number in said)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def ask(self, shown: bytes | str, question: str, fault: Fault | None = None) -> Outcome:
        """What was recorded under the question's name: the beginning of the item's key, and the pass. Raises DataError
        for a pass that was not recorded at all."""
        item, number = question.split("-")[:2]
        there, known = self._passes[int(number)], len(self._said)
        if there < FEW * known and int(number) < SECOND_LOOK:
            raise DataError(f"teacher.answers={str(self._path)!r} holds answers about {known} of these items, but for "
                            f"pass {number} (they count from 0) about {there} of them. Set labeler.passes to as many "
                            "as were recorded.")
        missing = Outcome(failure=Failure.BAD_REQUEST, why="no answer was recorded", cost_usd=0.0, provider=RECORDED)
        return self._said.get(item, {}).get(int(number), missing)

    def _outcome(self, row: Row) -> Outcome:
        label, model = row[self._column].strip(), row.get("model", "").strip()
        if not label:
            return Outcome(failure=Failure.EMPTY, why="recorded as no usable answer", cost_usd=0.0, model=model,
                           provider=RECORDED)
        try:
            confidence = float(row.get("confidence") or "nan")
        except ValueError:
            confidence = -1.0
        return Outcome(label=label, failure=None if self._task.map_label(label) else Failure.UNKNOWN_LABEL,
                       confidence=confidence if 0 <= confidence <= 1 else None, why=row.get("why", ""), cost_usd=0.0,
                       model=model, provider=RECORDED)

    def _fits_nothing(self, row: Row, items: Sequence[Item]) -> str:
        name = next(name for name in NAMED_BY if name in row)
        wanted = _name(items[0], name) if items else ""
        return (f"teacher.answers={str(self._path)!r} holds no answer about any of these {len(items)} items: its "
                f"`{name}` begins with {row[name][:60]!r}, and the first item's is {wanted[:60]!r}. Are the data of "
                "another kind or version?")


def _rows(path: Path, column: str) -> list[dict[str, str]]:
    """One or more, with all columns that are needed. Raises DataError."""
    limit = csv.field_size_limit(LONGEST)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        headers = {d: next(csv.reader(io.StringIO(text, newline=""), delimiter=d), []) for d in DELIMITERS}
        delimiter = max(DELIMITERS, key=lambda d: len({column, *NAMED_BY} & {*headers[d]}))
        # Cells beyond the header's stand under None.
        rows = [{name: cell or "" for name, cell in row.items() if name}
                for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"teacher.answers={str(path)!r} cannot be read as a UTF-8 CSV file: {error}") from error
    finally:
        csv.field_size_limit(limit)
    columns = list(rows[0]) if rows else []
    if column not in columns or not set(NAMED_BY) & set(columns):
        raise DataError(f"teacher.answers={str(path)!r} needs a column {' or '.join(NAMED_BY)} and the column "
                        f"{column!r} (teacher.answer_column); it has {', '.join(columns) or 'no rows'}.")
    return rows


def _keys(rows: Sequence[Row], items: Sequence[Item], named_by: str) -> list[list[str]]:
    """For each row, the keys of the items that its column means."""
    known: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if name := _name(item, named_by):
            known[name].append(item.key)
    return [known.get(_plain(row[named_by]), []) for row in rows]


def _name(item: Item, named_by: str) -> str:
    if named_by == "text":
        return _plain(item.payload) if isinstance(item.payload, str) else ""
    return _plain(item.key if named_by == "item" else item.name)


def _plain(text: str) -> str:
    """Spaces and line ends are the first thing that a text loses on its way through other programs."""
    return " ".join(text.split())
