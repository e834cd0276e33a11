"""From `conf/data/` to items in their splits: bring the images, read them, part them, and say what was done.

Knows nothing about teachers or students.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.utils import instantiate

from src.console import say, warn
from src.data.folder import counts, describe_broken, scan
from src.data.spec import DataSpec
from src.data.splits import Splits, split
from src.errors import DataError, DataUnavailable
from src.task import Item, TaskSpec


@dataclass(frozen=True)
class Dataset:
    """Items in their splits. `drawn` says that they are stand-in images; `hash` names their content and split."""

    name: str
    root: Path
    splits: Splits
    broken: dict[str, str]
    duplicates: int
    drawn: bool
    hash: str


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
    found = scan(root, task, max_pixels=spec.max_pixels, truth_csv=_path(spec.truth_csv), gold_csv=_path(spec.gold_csv))
    if found.broken:
        warn(describe_broken(found.broken))
    if unknown := sum(item.truth is None for item in found.test):
        warn(f"{unknown} of {len(found.test)} images in {root / 'test'} have no known truth and are left out.")
    _check_truth(task, root, found.train, gold_only=bool(spec.gold_csv))
    parts = split(found.train, found.test, gold=found.gold, gold_size=spec.gold_size, test_size=spec.test_size,
                  validation_share=spec.validation_share, seed=spec.split_seed, classes=len(task.names))
    sizes = ", ".join(f"{name} {size}" for name, size in parts.sizes().items())
    say(f"Data: {root} ({sizes}" + (f"; {found.duplicates} duplicate files merged" if found.duplicates else "")
        + (f"; {parts.moved} items moved to keep groups and look-alikes together" if parts.moved else "") + ")")
    content = {name: [item.key for item in getattr(parts, name)] for name in parts.sizes()}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Dataset(spec.name, root, parts, found.broken, found.duplicates, drawn, digest)


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


def _check_truth(task: TaskSpec, root: Path, items: list[Item], *, gold_only: bool) -> None:
    known = counts(items)
    if not (known.keys() - {None}):
        raise DataError(
            f"No item in {root} has a known truth, so nothing can be judged. Check 100 to 300 items by hand and name "
            "them in data.gold_csv=FILE (columns file,label), or use class folders."
        )
    missing = [name for name in task.names if not known[name]]
    if missing and not gold_only:
        raise DataError(
            f"No image of class {', '.join(missing)} to learn from in {root}: add some, or take the class out of "
            f"conf/task/{task.name}.yaml."
        )
    if missing:
        warn(f"No gold item of class {', '.join(missing)}: how good its labels are cannot be known.")


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None
