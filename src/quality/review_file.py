"""`review_labels.csv`: what a person should look at, to edit.

A person writes a class into `label_final`; the next run imports that as this person's annotation before anything
else. What was edited and not yet imported is never overwritten. Of a spot check, no cell tells the label.
Knows nothing about teachers or students.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.console import say, warn
from src.errors import ReviewError
from src.quality.conclude import HUMAN
from src.quality.labels_csv import COLUMNS, columns, row
from src.quality.review_list import Listed, to_review
from src.quality.reviewers import last_words
from src.quality.spreadsheet import csv_text, plain, read_table, write_whole
from src.store import Store
from src.task import Annotation, Failure, Item, Label, TaskSpec

NEEDED = ("item", "label_final")
OURS = {*COLUMNS, "text", "why_listed", "label_final"}
Rows = Sequence[tuple[int, Mapping[str, str]]]


@dataclass(frozen=True)
class ReviewFile:
    """`review_labels.csv` of one task. Beside it lies a hidden note of what was written, by which edits and removed
    rows are recognised."""

    path: Path
    task: TaskSpec
    reviewer: str

    def import_edits(self, store: Store, source: Path | None = None) -> int:
        """Store what changed in `label_final` since the file was written and return how many rows did.

        An emptied cell withdraws what stood there. `source` is a copy of the file that was edited elsewhere, and takes
        its place. Raises ReviewError, having imported nothing, where a label is unknown, a row was removed or added,
        or the file cannot be read.
        """
        with self._lock():
            own = self._import(store, self.path) if self.path.exists() else 0
            if not source or source.resolve() == self.path.resolve():
                return own
            if own:
                say(f"{own} edit(s) in {self.path} itself were imported first.")
            return self._import(store, source)

    def export(self, labels: Sequence[Label], items: Mapping[str, Item], store: Store, *,
               unreviewed: Sequence[Label] = (), spot_checks: int = 0, seed: int = 0) -> Path:
        """Write what deserves a person's look, and what a person decided before. Returns the file written.

        `unreviewed` are the labels as they would be without people; of these, `spot_checks` accepted ones are drawn by
        `seed`. Edits made since the last import are imported first; where that fails, they stay as they are and the
        new rows go to a file beside. Columns that a person added are kept.
        """
        target, noted = self.path, dict[str, dict[str, str]]()
        with self._lock():
            try:
                if self.path.exists():
                    if self._import(store, self.path):
                        say(f"Edits made meanwhile in {self.path} were imported; the next run trains on them.")
                    noted = _noted(read_table(self.path, NEEDED)[1])
            except ReviewError as error:
                target = self.path.with_suffix(".new.csv")
                warn(f"{error} Your edits are untouched; the new rows are in {target}, to read and not to edit.")
            final = last_words(self.annotations(store), self.task)
            listed = to_review(labels, unreviewed, keep={*final, *noted}, spot_checks=spot_checks, seed=seed)
            written = _table(listed, items, final, noted)
            if target == self.path:
                # A crash in between leaves no note: then edits are told by the store, which knows all that was
                # imported.
                self._note.unlink(missing_ok=True)
            write_whole(target, written, marked=True)
            if target == self.path:
                self._write_note(written, {one.label.item: final.get(one.label.item, "") for one in listed},
                                 {one.label.item: one.shown.label or "" for one in listed})
        return target

    def annotations(self, store: Store) -> list[Annotation]:
        """What people said about this task's items in its present version, oldest first."""
        found = store.read(task=self.task.name, annotator_prefix=HUMAN)
        return [a for a in found if a.task_version == self.task.version]

    def _import(self, store: Store, source: Path) -> int:
        note = self._read_note()
        text, rows = read_table(source, NEEDED)
        if note and _digest(text) == note["digest"]:
            return 0
        final = self._final(source, rows, note.get("label", {}) if note else {})
        said = self.annotations(store)
        before: dict[str, str] = note["final"] if note else last_words(said, self.task)
        if note and (removed := sorted(before.keys() - final.keys())):
            raise ReviewError(
                f"{source}: {len(removed)} row(s) were removed, {removed[0]} among them. Nothing was imported. "
                "Put them back (an empty label_final leaves a row undecided), or delete the file to get a fresh one."
            )
        if note and (added := sorted(final.keys() - before.keys())):
            raise ReviewError(f"{source}: {len(added)} row(s) were added, {added[0]!r} among them. Nothing was "
                              "imported. Remove them.")
        changed = {item: label for item, label in final.items() if label != before.get(item, "")}
        if not note:  # an empty cell takes back what stood there; what was said elsewhere may never have stood there
            elsewhere = {annotation.item for annotation in said if annotation.provider}
            changed = {item: label for item, label in changed.items() if label or item not in elsewhere}
        store.add([
            Annotation(item=item, annotator=f"{HUMAN}{self.reviewer}", task=self.task.name,
                       task_version=self.task.version, prompt_hash=f"{self.task.name}@{self.task.version}",
                       label=label or None, failure=None if label else Failure.WITHDRAWN)
            for item, label in changed.items()
        ])
        if source != self.path:
            write_whole(self.path, text, marked=True)
        self._write_note(text, final, note.get("label", {}) if note else {})
        return len(changed)

    def _final(self, source: Path, rows: Rows, proposed: Mapping[str, str]) -> dict[str, str]:
        """Item → the class in `label_final`, or "". `proposed` is what was written into the column `label`."""
        final: dict[str, str] = {}
        for number, cells in rows:
            item, written = cells["item"].strip(), cells["label_final"].strip()
            label = self._class(written) if written else ""
            if not item and not written:
                continue
            if label is None:
                raise ReviewError(f"{source}, row {number}: label_final={written!r} is not a class. Nothing was "
                                  f"imported. Classes: {', '.join(self.task.names)}.")
            if item in final:
                raise ReviewError(f"{source}, row {number}: the item {item} stands there twice. Nothing was "
                                  "imported. Remove one of the two rows.")
            meant = self._class(cells.get("label", ""))
            if not label and meant and item in proposed and meant != self._class(proposed[item]):
                raise ReviewError(f"{source}, row {number}: {meant!r} was written into the column `label`. Nothing was "
                                  "imported. Write it into label_final.")
            final[item] = label
        return final

    def _class(self, written: str) -> str | None:
        """The class that a cell means: spreadsheets make 7.0 of "7" and 7 of "007"."""
        said = plain(written)
        if found := self.task.map_label(said):
            return found
        same = [name for name in self.task.names if _figure(said) and _figure(name) == _figure(said)]
        return same[0] if len(same) == 1 else None

    def _read_note(self) -> dict[str, Any] | None:
        try:
            note: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or a power cut damaged it
            return None
        return note

    def _write_note(self, text: str, final: Mapping[str, str], label: Mapping[str, str]) -> None:
        write_whole(self._note, json.dumps({"digest": _digest(text), "final": final, "label": label}))

    @property
    def _note(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.json")

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.stem}.lock"))


def _table(listed: Sequence[Listed], items: Mapping[str, Item], final: Mapping[str, str],
           noted: Mapping[str, Mapping[str, str]]) -> str:
    names = columns(items[one.label.item] for one in listed)
    added = list(dict.fromkeys(name for cells in noted.values() for name in cells))

    def cells(one: Listed) -> list[str]:
        item = one.label.item
        theirs = [noted.get(item, {}).get(name, "") for name in added]
        return [*row(names, one.shown, items[item]), one.why, final.get(item, ""), *theirs]

    return csv_text([*names, "why_listed", "label_final", *added], map(cells, listed))


def _noted(rows: Rows) -> dict[str, dict[str, str]]:
    """Item → what a person wrote into columns of their own."""
    written = {cells["item"].strip(): {name: cell for name, cell in cells.items() if name not in OURS and cell.strip()}
               for _, cells in rows}
    return {item: cells for item, cells in written.items() if cells}


def _figure(text: str) -> str | None:
    whole = re.fullmatch(r"0*(\d+)(?:[.,]0)?", text)
    return whole[1] if whole else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
