"""From `conf/data/` to items in their splits: bring images or texts, read them, part them, and say what was done.

Knows nothing about teachers or students.
"""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.utils import instantiate

from src.console import say, warn
from src.data.escalations import for_teacher, join, read_escalations, served_folder
from src.data.folder import Scan, counts, describe_broken, scan
from src.data.spec import DataSpec
from src.data.splits import Splits, split
from src.data.texts import read_texts
from src.errors import DataError, DataUnavailable
from src.task import Item, TaskSpec

LARGE = 0.05  # share of the items from which on a cluster of near-duplicates is told, where it has more than a few
FEW = 20


@dataclass(frozen=True)
class NearDuplicates:
    """How many items look the same as another one, in how many clusters, and in the largest of these."""

    items: int
    clusters: int
    largest: int

    def __str__(self) -> str:
        return f"{self.items} near-duplicates in {self.clusters} cluster(s), the largest of {self.largest}"


@dataclass(frozen=True)
class Dataset:
    """Items in their splits. `kind` says what they are, images or texts; `drawn` that they are stand-in images; `hash`
    names their content and split. `duplicates` were merged; near-duplicates are items of their own, in one part.

    Where escalations joined the pool, `hash` names these, a plus, and the rest (`own_hash`), which they do not change.
    """

    name: str
    kind: str
    root: Path
    splits: Splits
    broken: dict[str, str]
    duplicates: int
    near_duplicates: NearDuplicates
    drawn: bool
    hash: str

    @property
    def own_hash(self) -> str:
        return own_hash(self.hash)


def open_dataset(task: TaskSpec, spec: DataSpec, *, home: Path, download: bool, stand_in: bool) -> Dataset:
    """Bring, read and split the items.

    `download` allows the network; `stand_in` allows drawn images where the real ones cannot be had.
    """
    try:
        root, drawn = _bring(task, spec, spec.source, home, download), spec.drawn
    except DataUnavailable as error:
        if not (stand_in and spec.stand_in):
            raise
        warn(f"{error} REHEARSAL goes on with drawn images of the same classes.")
        root, drawn = _bring(task, spec, spec.stand_in, home, download), True
    found = _read(root, task, spec)
    if found.broken:
        warn(describe_broken(found.broken, "image" if spec.kind == "images" else "row"))
    if unknown := sum(item.truth is None for item in found.test):
        warn(f"{unknown} of {len(found.test)} images in {root / 'test'} have no known truth and are left out.")
    _check_truth(task, spec, root, found.train)
    alike = _near_duplicates([*found.train, *found.test], spec.kind)
    parts = split(found.train, found.test, gold=found.gold, gold_size=spec.gold_size, test_size=spec.test_size,
                  validation_share=spec.validation_share, seed=spec.split_seed, classes=len(task.names))
    sizes = ", ".join(f"{name} {size}" for name, size in parts.sizes().items())
    files = "files" if spec.kind == "images" else "texts"
    say(f"Data: {root} ({sizes}" + (f"; {found.duplicates} duplicate {files} merged" if found.duplicates else "")
        + (f"; {alike}" if alike.items else "")
        + (f"; {parts.moved} items moved out to keep groups and near-duplicates together" if parts.moved else "") + ")")
    content = {name: [item.key for item in getattr(parts, name)] for name in parts.sizes()}
    dataset = Dataset(spec.name, spec.kind, root, parts, found.broken, found.duplicates, alike, drawn, _digest(content))
    if spec.escalations:
        dataset = _with_escalations(dataset, found, served_folder(home, task.name), task, spec)
    return dataset


def askable(dataset: Dataset, task: TaskSpec, *, home: Path, rehearsed: bool) -> Dataset:
    """Without the escalations that a stand-in teacher, or a real one, is not to be asked about; says how many."""
    splits = for_teacher(dataset.splits, served_folder(home, task.name), rehearsed=rehearsed)
    if lost := len(dataset.splits.first) - len(splits.first):
        warn(f"{lost} of {len(dataset.splits.first)} escalations are left out: " + (
            "nobody knows their truth, so they cannot be rehearsed. A real teacher is asked about them." if rehearsed
            else "a rehearsal's server kept them, and nobody should pay for their labels."))
    return _joined(dataset, splits)


def own_hash(hash_: str) -> str:
    """What `hash` says without the escalations that joined."""
    return hash_.rpartition("+")[2]


def _with_escalations(dataset: Dataset, found: Scan, folder: Path, task: TaskSpec, spec: DataSpec) -> Dataset:
    kept = read_escalations(folder, task, max_pixels=spec.max_pixels, near_bits=spec.near_duplicates)
    if not kept.items and not kept.broken:
        warn(f"No escalations are kept in {folder}. python -m src.serve with the same home and task keeps them there.")
        return dataset
    if kept.broken:
        warn(describe_broken(kept.broken))
    splits, left_out = join(dataset.splits, kept, [*found.train, *found.test], found.looks, spec.near_duplicates)
    say(f"Escalations: {folder} ({len(splits.first)} are labelled first"
        + (f"; {left_out} left out, since gold, test or what is kept apart with them holds the same or its looks"
           if left_out else "") + ")")
    return replace(_joined(dataset, splits), broken=dataset.broken | kept.broken)


def _joined(dataset: Dataset, splits: Splits) -> Dataset:
    # By key, not by age: a copy of the files may have lost their times. In front, for some show only a beginning.
    added = f"{_digest(sorted(splits.first))[:16]}+" if splits.first else ""
    return replace(dataset, splits=splits, hash=added + dataset.own_hash)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read(root: Path, task: TaskSpec, spec: DataSpec) -> Scan:
    gold_csv = _path(spec.gold_csv)
    if spec.kind == "texts":
        assert spec.text_column  # the spec has seen to that
        return read_texts(root, task, text_column=spec.text_column, truth_column=spec.truth_column,
                          group_column=spec.group_column, gold_csv=gold_csv)
    return scan(root, task, max_pixels=spec.max_pixels, near_bits=spec.near_duplicates,
                truth_csv=_path(spec.truth_csv), gold_csv=gold_csv)


def _near_duplicates(items: list[Item], kind: str) -> NearDuplicates:
    """Count them, and warn of a cluster so large that its items may only look alike."""
    sizes = {twin: size for twin, size in Counter(item.twin for item in items).items() if twin and size > 1}
    largest = max(sizes, key=sizes.__getitem__, default=None)
    found = NearDuplicates(sum(sizes.values()), len(sizes), sizes[largest] if largest else 0)
    if found.largest > max(FEW, LARGE * len(items)):
        named = ", ".join([item.name for item in items if item.twin == largest][:3])
        warn(f"{found.largest} of {len(items)} items count as near-duplicates of each other and stay in one part: "
             f"{named} …" + (" Where these are different pictures, lower data.near_duplicates, or give "
                             "data.near_duplicates=null." if kind == "images" else ""))
    return found


def _bring(task: TaskSpec, spec: DataSpec, source: dict[str, Any], home: Path, download: bool) -> Path:
    """Prepare once: a folder is named by what made it, filled beside its place and renamed when it is whole."""
    made_by = json.dumps([source, spec.root, task.names], sort_keys=True)
    into = home / "data" / f"{task.name}-{spec.name}-{hashlib.sha256(made_by.encode()).hexdigest()[:8]}"
    into.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(into.with_suffix(".lock")):
        if into.is_dir():
            say(f"Data: {into.name} was prepared before and is re-used")
            return into
        partial = into.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        brought: Path = instantiate(source)(partial, root=_path(spec.root), classes=task.names, download=download)
        if brought == partial:
            partial.rename(into)
            return into
        return brought


def _check_truth(task: TaskSpec, spec: DataSpec, root: Path, items: list[Item]) -> None:
    known = counts(items)
    texts = spec.kind == "texts"
    if not (known.keys() - {None}):
        columns, other = ("text,label", "name their column with data.truth_column") if texts else (
            "file,label", "use class folders")
        raise DataError(
            f"No item in {root} has a known truth, so nothing can be judged. Check 100 to 300 items by hand and name "
            f"them in data.gold_csv=FILE (columns {columns}), or {other}."
        )
    missing = [name for name in task.names if not known[name]]
    if missing and not spec.gold_csv:
        raise DataError(
            f"No {'text' if texts else 'image'} of class {', '.join(missing)} to learn from in {root}: add some, or "
            f"take the class out of conf/task/{task.name}.yaml."
        )
    if missing:
        warn(f"No gold item of class {', '.join(missing)}: how good its labels are cannot be known.")


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None
