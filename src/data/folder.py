"""A folder of images → items. Every image source ends here: the others only bring their images into such a folder.

The folder holds `train/` and optionally `test/`, or class folders, or plain files. Truth comes from the names of the
class folders, or from a CSV with the columns `file` and `label` (and, where wanted, `group` and any attributes).
Knows nothing about splits or teachers.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from src.console import progress
from src.data.images import SUFFIXES, Unreadable, decode, pixel_hash
from src.data.near import Look, look, near_duplicates
from src.data.tables import table
from src.errors import DataError
from src.task import Item, TaskSpec

NAMED = 5  # how many examples a message names


@dataclass(frozen=True)
class Scan:
    """What a source holds. `test` is empty where it has no test part; `gold` are the keys of the gold CSV's items;
    `broken` maps a name to what is wrong there; `duplicates` counts what was dropped as identical to the byte. `looks`
    are those of the images, by the hash of their pixels, where near-duplicates were sought."""

    train: list[Item]
    test: list[Item]
    gold: frozenset[str]
    broken: dict[str, str]
    duplicates: int
    looks: Mapping[str, Look] = field(default_factory=dict)


def in_place(into: Path, *, root: Path | None, classes: Sequence[str], download: bool) -> Path:
    """The source that brings nothing: the images already lie in `data.root`."""
    if root is None:
        raise DataError("data=folder needs data.root=FOLDER, the folder that holds the images.")
    if not os.path.isdir(root):
        raise DataError(f"data.root={str(root)!r} is not a folder. Name the folder that holds the images.")
    return root


def scan(root: Path, task: TaskSpec, *, max_pixels: int, near_bits: int | None, truth_csv: Path | None = None,
         gold_csv: Path | None = None) -> Scan:
    """Read every image below `root` once; set the broken ones aside, and merge files with the same bytes.

    A byte-identical copy of a test image in the training part is dropped from training. Images with the same pixels,
    and near-duplicates with hashes within `near_bits`, get one `twin`. Raises DataError where there is nothing to
    read, a class folder is not a class of the task, or a CSV does not fit.
    """
    # os.path.isdir also answers where a folder may not be entered; Path.is_dir raises there before Python 3.14.
    parts = {part: root / part for part in ("train", "test") if os.path.isdir(root / part)}
    if "test" in parts and "train" not in parts:
        raise DataError(f"{root} holds test/ but no train/. Put the images to label into {root / 'train'}.")
    files = {part: image_files(folder) for part, folder in (parts or {"train": root}).items()}
    if not any(files.values()):
        raise DataError(f"No images in {root}. Files ending in {', '.join(sorted(SUFFIXES))} are read.")
    images = {path.resolve() for part in files.values() for path in part}
    truths = read_csv(truth_csv, root, task, images, key="data.truth_csv") if truth_csv else {}
    gold = read_csv(gold_csv, root, task, images, key="data.gold_csv") if gold_csv else {}
    golden: set[str] = set()
    by_key: dict[str, tuple[str, Item]] = {}
    broken: dict[str, str] = {}
    looks: dict[str, Look] = {}
    duplicates = 0
    with progress("reading images", sum(map(len, files.values()))) as update:
        for part in ("test", "train"):
            for path in files.get(part, []):
                name = path.relative_to(root).as_posix()
                update(len(by_key) + len(broken) + duplicates)
                try:
                    key, pixels = identify(path, max_pixels, looks if near_bits is not None else None)
                except (OSError, Unreadable) as error:
                    broken[name] = str(error)
                    continue
                place = path.resolve()
                # With a truth CSV folders are only folders; with a gold CSV that is true of what is to be labelled.
                folders_only = bool(truths) or bool(gold and part == "train")
                row = truths.get(place, {}) | gold.get(place, {})
                item = Item(
                    key=key,
                    payload=path,
                    name=name,
                    twin=pixels,
                    group=row.get("group") or None,
                    attributes={k: v for k, v in row.items() if k not in ("file", "label", "group")},
                    truth=row["label"] if row else _class_of(path, parts.get(part, root), task, folders_only),
                )
                if place in gold:
                    golden.add(item.key)
                if item.key in by_key:
                    duplicates += 1
                    at, first = by_key[item.key]
                    by_key[item.key] = (at, _merged(first, item))
                else:
                    by_key[item.key] = (part, item)
        update(sum(map(len, files.values())))
    if not by_key:
        raise DataError(f"None of the {len(broken)} images in {root} can be read. {describe_broken(broken)}")
    twins = near_duplicates(looks, near_bits) if near_bits is not None else {}
    items = {part: [replace(item, twin=twins[item.twin]) if item.twin in twins else item
                    for at, item in by_key.values() if at == part] for part in ("train", "test")}
    found = frozenset(item.key for item in items["train"] if item.key in golden)
    return Scan(items["train"], items["test"], found, broken, duplicates, looks)


def identify(path: Path, max_pixels: int, looks: dict[str, Look] | None) -> tuple[str, str]:
    """An image's key and the hash of its pixels, under which its look joins `looks`. Raises OSError or Unreadable."""
    payload = path.read_bytes()
    image = decode(payload, max_pixels)
    pixels = pixel_hash(image)
    if looks is not None and pixels not in looks and (seen := look(image)):
        looks[pixels] = seen
    return hashlib.sha256(payload).hexdigest(), pixels


def image_files(root: Path) -> list[Path]:
    """Every image file below `root` in one order on every machine; what is hidden is left alone.

    Links are followed, but not into a folder that they come from.
    """
    found: list[Path] = []
    above: dict[str, frozenset[str]] = {}
    try:
        for base, folders, names in os.walk(root, onerror=_raise, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            place, outer = os.path.realpath(base), above.get(os.path.dirname(base), frozenset())
            if place in outer:
                folders.clear()
                continue
            above[base] = outer | {place}
            images = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
            found += [Path(base, name) for name in images]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.") from error
    return sorted(found)


def read_csv(path: Path, root: Path, task: TaskSpec, images: Collection[Path], *, key: str
             ) -> dict[Path, dict[str, str]]:
    """Rows by the image they speak of, one of `images` (resolved paths); `file` is relative to `root`, to its train/
    or test/, or to the CSV's own folder. `key` is the config key that names the CSV. Raises DataError where a row fits
    no image or no class: none is lost silently.
    """
    needed = f"{key} needs the columns `file` and `label`"
    header, rows = table(path, {"file": needed, "label": needed}, key=key)
    found: dict[Path, dict[str, str]] = {}
    with closing(rows):
        for line, fields in rows:
            # Empty cells at a row's end may have been left out.
            row = {name: field for name, field in zip_longest(header, fields[: len(header)], fillvalue="") if name}
            named = row["file"]
            places = [(base / named).resolve() for base in (root, root / "train", root / "test", path.parent)]
            place = next((p for p in places if p in images), None)
            if place is None:
                raise DataError(f"{path}, line {line}: there is no image {named!r} in {root}. Names are relative to "
                                "that folder, to its train/ or test/, or to the CSV's own folder.")
            label = task.map_label(row["label"])
            if label is None:
                raise DataError(f"{path}, line {line}: {row['label']!r} is not a class. "
                                f"Classes: {', '.join(task.names)}.")
            if place in found and found[place]["label"] != label:
                raise DataError(f"{path}, line {line}: {named!r} is {found[place]['label']} in a line above and "
                                f"{label} here. Delete the wrong one.")
            found[place] = row | {"label": label}
    if not found:
        raise DataError(f"{path} has no row below its header: give each image and its class.")
    return found


def describe_broken(broken: dict[str, str], what: str = "image") -> str:
    named = "; ".join(f"{name} ({why})" for name, why in list(broken.items())[:NAMED])
    return f"{len(broken)} broken {what}(s) set aside: {named}" + ("; …" if len(broken) > NAMED else "")


def counts(items: Sequence[Item]) -> Counter[str | None]:
    return Counter(item.truth for item in items)


def _class_of(path: Path, part: Path, task: TaskSpec, folders_only: bool) -> str | None:
    """The truth that a class folder tells; plain files have none, and with a CSV folders are only folders."""
    inside = path.relative_to(part).parts
    if len(inside) < 2 or folders_only:
        return None
    label = task.map_label(inside[0])
    if label is None:
        raise DataError(
            f"The folder {part / inside[0]} is not a class of task {task.name}. Rename it to one of "
            f"{', '.join(task.names)}, add it to conf/task/{task.name}.yaml, or give truth in data.truth_csv."
        )
    return label


def _merged(first: Item, second: Item) -> Item:
    """The first of two files with the same bytes, with what only the second one's row tells."""
    if first.truth and second.truth and first.truth != second.truth:
        raise DataError(
            f"{first.name} ({first.truth}) and {second.name} ({second.truth}) are the same image with two truths. "
            "Delete the wrong one."
        )
    return replace(first, truth=first.truth or second.truth, group=first.group or second.group,
                   attributes=first.attributes or second.attributes)


def _raise(error: OSError) -> None:
    raise error
