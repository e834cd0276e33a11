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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
                warn(f"{error} Your edits are untouched; the new rows are in {target}.")
            final = self._said(store)
            rows = [label for label in labels if not label.accepted or label.reason or label.item in final]
            written = _csv([*COLUMNS, "label_final"],
                           ([*_row(label, items), final.get(label.item, "")] for label in rows))
            _replace(target, written)
            if target == self.path:
                note = {"digest": _digest(written), "final": {label.item: final.get(label.item, "") for label in rows}}
                _replace(self._note, json.dumps(note))
        return target

    def annotations(self, store: Store) -> list[Annotation]:
        """What people said about this task's items, oldest first."""
        return store.read(task=self.task.name, annotator_prefix=HUMAN)

    def _import(self, store: Store) -> int:
        note = json.loads(self._note.read_text()) if self._note.exists() else {"digest": "", "final": {}}
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ReviewError(f"{self.path} cannot be read as UTF-8: {error}. Save it as CSV (UTF-8).") from error
        if _digest(text) == note["digest"]:
            return 0
        final = self._parse(text)
        removed = sorted(note["final"].keys() - final.keys())
        if removed:
            raise ReviewError(
                f"{self.path}: {len(removed)} row(s) were removed, {removed[0][:12]}… among them. Nothing was imported. "
                "Put them back (an empty label_final leaves a row undecided), or delete the file to get a fresh one."
            )
        before = note["final"] or self._said(store)
        added = sorted(final.keys() - note["final"].keys()) if note["final"] else []
        if added:
            raise ReviewError(f"{self.path}: the item {added[0][:12]}… was not in the file. Nothing was imported. "
                              "Remove that row.")
        changed = {item: label for item, label in final.items() if label != before.get(item, "")}
        store.add([
            Annotation(item=item, annotator=f"{HUMAN}{self.reviewer}", prompt_hash=f"{self.task.name}@{self.task.version}",
                       task=self.task.name, label=label or None, failure=None if label else Failure.WITHDRAWN)
            for item, label in changed.items()
        ])
        _replace(self._note, json.dumps({"digest": _digest(text), "final": final}))
        return len(changed)

    def _parse(self, text: str) -> dict[str, str]:
        """Item → the class in `label_final`, or "". Spreadsheets of some countries write semicolons."""
        first = text.splitlines()[0] if text else ""
        rows = list(csv.DictReader(io.StringIO(text), delimiter=";" if ";" in first and "," not in first else ","))
        if not {"item", "label_final"} <= set(first.replace(";", ",").replace('"', "").split(",")):
            raise ReviewError(f"{self.path} lacks the column `item` or `label_final`. Put it back, or delete the file "
                              "to get a fresh one.")
        final: dict[str, str] = {}
        for number, row in enumerate(rows, start=2):
            said = (row["label_final"] or "").strip()
            label = self.task.map_label(said) if said else ""
            if label is None:
                raise ReviewError(f"{self.path}, row {number}: label_final={said!r} is not a class. Nothing was "
                                  f"imported. Classes: {', '.join(self.task.names)}.")
            final[row["item"]] = label
        return final

    def _said(self, store: Store) -> dict[str, str]:
        latest = {a.item: a.label for a in self.annotations(store)}
        return {item: label for item, label in latest.items() if label}

    @property
    def _note(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.json")

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.stem}.lock"))


def _row(label: Label, items: Mapping[str, Item]) -> list[str]:
    confidence = "" if label.confidence is None else f"{label.confidence:g}"
    votes = " | ".join(vote or "-" for vote in label.votes)
    return [label.item, items[label.item].name, label.label or "", str(label.accepted).lower(), label.source,
            label.reason, confidence, votes, label.why]


def _csv(header: list[str], rows: Iterable[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: str) -> str:
    """A spreadsheet runs what begins like a formula, and cells hold what a model wrote."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(path: Path, text: str) -> None:
    """Write beside and rename: a crash leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
