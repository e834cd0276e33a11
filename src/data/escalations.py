"""What a server escalated, as items that join the pool before all others; gold and test never learn of it.

The split is made without them, so that no escalation ever moves another item. Knows nothing about servers or the log:
only where the images lie.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from src.console import progress
from src.data.folder import identify, image_files
from src.data.images import Unreadable
from src.data.near import Look, near_duplicates
from src.data.splits import Splits
from src.task import Item, TaskSpec


@dataclass(frozen=True)
class Escalations:
    """`items` are oldest first; `broken` maps a name to what is wrong there; `looks` are by the hash of the pixels,
    which stands in an item's `twin`."""

    items: list[Item]
    broken: dict[str, str]
    looks: Mapping[str, Look]


def served_folder(home: Path, task: str) -> Path:
    """Where a server of the task keeps what it escalated."""
    return home / "data" / "served" / task


def read_escalations(folder: Path, task: TaskSpec, *, max_pixels: int, near_bits: int | None) -> Escalations:
    """Every image below `folder`: `<shard>/<file>`, or `<class>/<shard>/<file>` where its truth is known. What a server
    removes meanwhile is passed over."""
    aged: list[tuple[int, str, Path]] = []
    for path in image_files(folder) if folder.is_dir() else []:
        try:
            aged.append((path.stat().st_mtime_ns, path.name, path))
        except FileNotFoundError:
            continue
    items: dict[str, Item] = {}
    broken: dict[str, str] = {}
    looks: dict[str, Look] = {}
    with progress("reading escalations", len(aged)) as update:
        for done, (_, _, path) in enumerate(sorted(aged), start=1):
            inside = path.relative_to(folder)
            name = f"served/{inside.as_posix()}"
            try:
                key, pixels = identify(path, max_pixels, looks if near_bits is not None else None)
            except FileNotFoundError:
                continue
            except (OSError, Unreadable) as error:
                broken[name] = str(error)
                continue
            truth = task.map_label(inside.parts[0]) if len(inside.parts) > 2 else None
            if key not in items:
                items[key] = Item(key, path, name, twin=pixels, truth=truth)
            elif truth and not items[key].truth:
                items[key] = replace(items[key], truth=truth)
            update(done)
    return Escalations(list(items.values()), broken, looks)


def join(splits: Splits, escalations: Escalations, everything: Collection[Item], looks: Mapping[str, Look],
         near_bits: int | None) -> tuple[Splits, int]:
    """The splits with the escalations in their pool, and how many were left out.

    `everything` are the items that were split, `looks` theirs. Left out is what has the bytes or the looks of an item
    that is not in the pool. What is there already only comes first; of the others, those that look like an item of
    validation join it, and the rest are trained on.
    """
    alike = near_duplicates({**looks, **escalations.looks}, near_bits) if near_bits is not None else {}

    def seen(item: Item) -> str | None:
        return alike.get(item.twin, item.twin) if item.twin else None

    pool = {item.key for item in splits.pool}
    held = [item for item in everything if item.key not in pool]
    held_keys, held_looks = {item.key for item in held}, {seen(item) for item in held} - {None}
    twins = {seen(item): item.twin for item in splits.pool}
    judging = {seen(item) for item in splits.validation} - {None}
    first: list[str] = []
    train, validation = list(splits.train), list(splits.validation)
    for item in escalations.items:
        if item.key in held_keys or (look := seen(item)) in held_looks:
            continue
        first.append(item.key)
        if item.key not in pool:
            (validation if look in judging else train).append(replace(item, twin=twins.get(look, look)))
    by_key = attrgetter("key")
    joined = replace(splits, train=sorted(train, key=by_key), validation=sorted(validation, key=by_key),
                     first=tuple(first))
    return joined, len(escalations.items) - len(first)


def for_teacher(splits: Splits, folder: Path, *, rehearsed: bool) -> Splits:
    """Without the escalations in `folder` that this teacher is not to be asked about: a stand-in cannot answer where
    the truth is unknown, and where it is known a rehearsal's server kept them, which nobody should pay for."""
    out = {item.key for item in splits.pool
           if isinstance(item.payload, Path) and item.payload.is_relative_to(folder) and (not item.truth) == rehearsed}

    def others(items: Sequence[Item]) -> list[Item]:
        return [item for item in items if item.key not in out]

    return replace(splits, train=others(splits.train), validation=others(splits.validation),
                   first=tuple(key for key in splits.first if key not in out))
