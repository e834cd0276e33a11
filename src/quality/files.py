"""The two CSV files that people open: `labels_llm.csv` (what was concluded, to read) and `review_labels.csv` (what a
person should look at, to edit).

A person writes a class into `label_final`; the next run imports that as this person's annotation before anything
else. What was edited and not yet imported is never overwritten. Knows nothing about teachers or students.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.console import say, warn
from src.errors import ReviewError
from src.quality.conclude import HUMAN
from src.store import Store
from src.task import Annotation, Failure, Item, Label, TaskSpec

COLUMNS = ("item", "file", "label", "accepted", "source", "reason", "confidence", "votes", "why")


def write_labels(path: Path, labels: Sequence[Label], items: Mapping[str, Item]) -> None:
    """Every label, accepted or not, with its reason."""
    _replace(path, _csv([*COLUMNS], (_row(label, items) for label in labels)))


@dataclass(frozen=True)
class ReviewFile:
    """`review_labels.csv` of one task. Beside it lies a hidden note of what was written, by which edits and removed
    rows are recognised."""

    path: Path
    task: TaskSpec
    reviewer: str

    def import_edits(self, store: Store) -> int:
        """Store what changed in `label_final` since the file was written and return how many rows did.

        An emptied cell withdraws what stood there. Raises ReviewError, having imported nothing, where a label is
        unknown, a row was removed or added, or the file cannot be read.
        """
        if not self.path.exists():
            return 0
        with self._lock():
            return self._import(store)

    def export(self, labels: Sequence[Label], items: Mapping[str, Item], store: Store) -> Path:
        """Write what deserves a person's look, and what a person decided before. Returns the file written.

        Edits made since the last import are imported first; where that fails, they stay as they are and the new rows
        go to a file beside.
        """
        target = self.path
        with self._lock():
            try:
                if self.path.exists() and self._import(store):
                    say(f"Edits made meanwhile in {self.path} were imported; the next run trains on them.")
            except ReviewError as error:
                target = self.path.with_suffix(".new.csv")
                warn(f"{error} Your edits are untouched; the new rows are in {target}, to read and not to edit.")
            final = self._said(store)
            rows = [label for label in labels if not label.accepted or label.reason or label.item in final]
            written = _csv([*COLUMNS, "label_final"],
                           ([*_row(label, items), final.get(label.item, "")] for label in rows))
            if target != self.path:
                _replace(target, written)
                return target
            # A crash in between leaves no note: then edits are told by the store, which knows all that was imported.
            self._note.unlink(missing_ok=True)
            _replace(target, written)
            self._write_note(written, {label.item: final.get(label.item, "") for label in rows})
        return target

    def annotations(self, store: Store) -> list[Annotation]:
        """What people said about this task's items, oldest first."""
        return store.read(task=self.task.name, annotator_prefix=HUMAN)

    def _import(self, store: Store) -> int:
        note = self._read_note()
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ReviewError(f"{self.path} cannot be read as UTF-8: {error}. Save it as CSV (UTF-8).") from error
        if note and _digest(text) == note["digest"]:
            return 0
        final = self._parse(text)
        before: dict[str, str] = note["final"] if note else self._said(store)
        if note and (removed := sorted(before.keys() - final.keys())):
            raise ReviewError(
                f"{self.path}: {len(removed)} row(s) were removed, {removed[0]} among them. Nothing was imported. "
                "Put them back (an empty label_final leaves a row undecided), or delete the file to get a fresh one."
            )
        if note and (added := sorted(final.keys() - before.keys())):
            raise ReviewError(f"{self.path}: {len(added)} row(s) were added, {added[0]!r} among them. Nothing was "
                              "imported. Remove them.")
        changed = {item: label for item, label in final.items() if label != before.get(item, "")}
        store.add([
            Annotation(item=item, annotator=f"{HUMAN}{self.reviewer}", task=self.task.name,
                       prompt_hash=f"{self.task.name}@{self.task.version}", label=label or None,
                       failure=None if label else Failure.WITHDRAWN)
            for item, label in changed.items()
        ])
        self._write_note(text, final)
        return len(changed)

    def _parse(self, text: str) -> dict[str, str]:
        """Item → the class in `label_final`, or "". Spreadsheets of some countries write semicolons, some leave empty
        rows at the end."""
        lines = io.StringIO(text, newline=None)
        first = lines.readline()
        lines.seek(0)
        reader = csv.DictReader(lines, delimiter=";" if ";" in first and "," not in first else ",", restval="")
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ReviewError(f"{self.path} cannot be read as CSV: {error}. Nothing was imported.") from error
        if not {"item", "label_final"} <= set(reader.fieldnames or []):
            raise ReviewError(f"{self.path} lacks the column `item` or `label_final`. Put it back, or delete the file "
                              "to get a fresh one.")
        final: dict[str, str] = {}
        for number, row in enumerate(rows, start=2):
            item, said = row["item"].strip(), row["label_final"].strip()
            if not item and not said:
                continue
            label = self.task.map_label(said) if said else ""
            if label is None:
                raise ReviewError(f"{self.path}, row {number}: label_final={said!r} is not a class. Nothing was "
                                  f"imported. Classes: {', '.join(self.task.names)}.")
            if item in final:
                raise ReviewError(f"{self.path}, row {number}: the item {item} stands there twice. Nothing was "
                                  "imported. Remove one of the two rows.")
            final[item] = label
        return final

    def _said(self, store: Store) -> dict[str, str]:
        latest = {a.item: self.task.map_label(a.label) for a in self.annotations(store)}
        return {item: label for item, label in latest.items() if label}

    def _read_note(self) -> dict[str, Any] | None:
        try:
            note: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or a power cut damaged it
            return None
        return note

    def _write_note(self, text: str, final: Mapping[str, str]) -> None:
        _replace(self._note, json.dumps({"digest": _digest(text), "final": final}))

    @property
    def _note(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.json")

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.stem}.lock"))


def _row(label: Label, items: Mapping[str, Item]) -> list[str]:
    confidence = "" if label.confidence is None else f"{label.confidence:g}"
    votes = " | ".join(vote or "?" for vote in label.votes)
    return [label.item, items[label.item].name, label.label or "", str(label.accepted).lower(), label.source,
            label.reason, confidence, votes, label.why]


def _csv(header: list[str], rows: Iterable[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: str) -> str:
    """One line, and none that a spreadsheet would run as a formula: cells hold what a model wrote."""
    line = re.sub(r"\s*[\r\n]+\s*", " ", cell).encode(errors="replace").decode()
    return f"'{line}" if line[:1] in ("=", "+", "-", "@", "\t") else line


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(path: Path, text: str) -> None:
    """Write beside and rename: a crash leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
