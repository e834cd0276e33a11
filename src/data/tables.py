"""A CSV file → its header and its records. A spreadsheet's delimiter depends on its language, so any usual one is read.

Knows nothing about items.
"""

import csv
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from src.errors import DataError

DELIMITERS = ",;\t|"
LONGEST = 10_000_000  # characters; a longer field is nearly always a quotation mark that nobody closed

Records = Generator[tuple[int, list[str]], None, None]


def table(path: Path, columns: Mapping[str, str], *, key: str) -> tuple[list[str], Records]:
    """The header, and the records below it with the line each begins on.

    `columns` says of each needed column who asks for it, and `key` is the config key that names the file. The delimiter
    is the one under which most of the columns are found in the header; among these, the one that makes the most of
    them. Raises DataError where the file cannot be read as it stands, also while the records are read.
    """
    headers: dict[str, list[str]] = {}
    for delimiter in DELIMITERS:
        with closing(_records(path, delimiter, key, strict=False)) as records:
            headers[delimiter] = [name.strip() for name in next(records, (1, []))[1]]
    delimiter = max(DELIMITERS, key=lambda d: (len({*columns} & {*headers[d]}), len(headers[d])))
    header = headers[delimiter]
    if any("\0" in name for name in header):
        raise DataError(f"{path} holds NUL bytes, as UTF-16 files do: save it as UTF-8.")
    for name, needed in columns.items():
        if name not in header:
            raise DataError(f"{path} has no column {name!r} ({needed}). {columns_found(header)}")
    if twice := sorted(name for name, count in Counter(header).items() if name and count > 1):
        raise DataError(f"{path} has more than one column named {', '.join(map(repr, twice))}: rename all but one.")
    records = _records(path, delimiter, key, strict=True)
    next(records)
    return header, records


def columns_found(header: Sequence[str]) -> str:
    """The columns that a file has, as a message tells them: a header that is none may be a long text."""
    names = ", ".join(repr(name if len(name) <= 40 else name[:40] + "…") for name in header[:20])
    return f"Columns found: {names}{', …' if len(header) > 20 else ''}." if header else "It is empty."


def _records(path: Path, delimiter: str, key: str, *, strict: bool) -> Records:
    """Each record that is not a blank line, and the line it begins on: records may span lines.

    `strict` refuses what other readers would guess at: text behind a closing quotation mark, and one never closed.
    """
    limit = csv.field_size_limit(LONGEST)
    begins = 1
    try:
        with path.open(encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=strict)
            for fields in reader:
                if fields:
                    yield begins, fields
                begins = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {_undecodable(path)}, is not UTF-8: save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{key}={str(path)!r} cannot be read: {error.strerror}.") from error
    except csv.Error as error:
        raise DataError(f"{path}: the row that begins on line {begins} cannot be read ({error}). A quotation mark in a "
                        'quoted text is written twice (""), and every one that is opened is closed; no field has more '
                        f"than {LONGEST:,} characters.") from error
    finally:
        csv.field_size_limit(limit)


def _undecodable(path: Path) -> int:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return number
