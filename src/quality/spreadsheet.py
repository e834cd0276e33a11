"""Tables that people open in a spreadsheet: nothing in them runs as a formula, and what the spreadsheet saves is read.

Knows nothing about labels or reviews.
"""

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from src.errors import ReviewError

# What begins a formula, as OWASP's page on CSV injection lists it; NFKC turns full-width and small forms into these.
ACTIVE = frozenset("=+-@")
CONTROL = re.compile(r"\s*[\x00-\x1f\x7f-\x9f\u2028\u2029]+\s*")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def harmless(cell: str) -> str:
    """One line, and none that a spreadsheet would run as a formula: cells hold what a model or a stranger wrote.

    Where semicolons part cells, a spreadsheet breaks ours at them, so what stands behind one is guarded as well.
    """
    line = CONTROL.sub(" ", cell.encode(errors="replace").decode()).strip()
    return ";".join(f"'{part}" if _runs(part) else part for part in line.split(";"))


def plain(cell: str) -> str:
    """What a person meant by a cell: without the quote of `harmless`, and without the ="…" that keeps figures text."""
    cell = cell.strip()
    if kept_as_text := re.fullmatch(r'="(.*)"', cell):
        return kept_as_text[1].strip()
    return cell[1:] if cell.startswith("'") and _runs(cell[1:]) else cell


def read_table(path: Path, needed: Sequence[str]) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    """The file's text, and each row below the header with the number that a spreadsheet shows beside it.

    UTF-8 with or without its mark, UTF-16 and Western; commas, semicolons or tabs; any line ends; empty rows are left
    out. Column names are lower case; a column without one is called by its place. Raises ReviewError.
    """
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ReviewError(f"{path} cannot be read: {error}. Nothing was imported.") from error
    if payload.startswith(b"PK\x03\x04"):
        raise ReviewError(f"{path} is a workbook. Nothing was imported. Save it as CSV (UTF-8).")
    text, fault = _decoded(payload), None
    for separator in ",;\t":
        try:
            rows = list(csv.reader(io.StringIO(text, newline=None), delimiter=separator))
        except csv.Error as error:
            fault = error
            continue
        for number, row in enumerate(rows[:10], start=1):
            header = [cell.strip().lower() for cell in row]
            if set(needed) <= set(header):
                return text, _named(path, header, rows, number)
    if fault:
        raise ReviewError(f"{path} cannot be read as CSV: {fault}. Nothing was imported.") from fault
    raise ReviewError(f"{path} lacks the column {' or '.join(f'`{name}`' for name in needed)}. Nothing was imported. "
                      "Put it back (saved as CSV, UTF-8), or delete the file to get a fresh one.")


def write_whole(path: Path, text: str, *, marked: bool = False) -> None:
    """Write beside and rename: a crash leaves the old file whole. `marked` puts the mark before anything but ASCII
    without which Excel takes UTF-8 for something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8-sig" if marked and not text.isascii() else "utf-8")
    os.replace(partial, path)


def _runs(part: str) -> bool:
    """Whether a cell with this text might run: spaces, quotes and what cannot be seen do not hide a formula."""
    hidden = (c for c in part if not (c.isspace() or c == '"' or unicodedata.category(c) == "Cf"))
    return unicodedata.normalize("NFKC", next(hidden, " "))[0] in ACTIVE


def _decoded(payload: bytes) -> str:
    if payload.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return payload.decode("utf-16", errors="replace")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return payload.decode(encoding)
        except UnicodeDecodeError:
            continue
    return payload.decode("latin-1")


def _named(path: Path, header: list[str], rows: list[list[str]], at: int) -> list[tuple[int, dict[str, str]]]:
    if twice := sorted(name for name in set(header) if name and header.count(name) > 1):
        raise ReviewError(f"{path} has the column `{twice[0]}` twice. Nothing was imported. Remove one of them.")
    names = [name or f"column {place}" for place, name in enumerate(header, start=1)]
    found = []
    for number, row in enumerate(rows[at:], start=at + 1):
        names += [f"column {place}" for place in range(len(names) + 1, len(row) + 1)]
        if any(cell.strip() for cell in row):
            found.append((number, dict(zip(names, row + [""] * (len(names) - len(row)), strict=True))))
    return found
