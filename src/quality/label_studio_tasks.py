"""The way out to Label Studio: tasks with predictions, and the labeling config that goes with them.

A spot check has no prediction, and nothing else that tells its label.
Knows nothing about teachers or students, and does without Label Studio's own packages.
"""

import base64
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from src.data.images import Unreadable, load, resized
from src.errors import ReviewError
from src.quality.labels_csv import said
from src.quality.review_list import Listed
from src.quality.spreadsheet import write_whole
from src.task import Item, TaskSpec

CONTROL = "label_final"
SMALLEST, LARGEST = 224, 640  # pixels: the least of an embedded image's shorter side, the most of its longer side
MAX_BYTES = 200_000_000  # in one file: Label Studio takes 250 MiB at once, unless it is told otherwise


def labeling_config(task: TaskSpec, *, texts: bool) -> str:
    """The XML that a Label Studio project for this task wants: one of the task's classes for an image or a text."""
    view, shown = ElementTree.Element("View"), "text" if texts else "image"
    ElementTree.SubElement(view, "Header", {"value": "$why_listed"})
    seen = {"name": shown, "value": f"${shown}"}
    ElementTree.SubElement(view, shown.title(), seen if texts else seen | {"zoom": "true"})
    choices = ElementTree.SubElement(view, "Choices", {"name": CONTROL, "toName": shown, "choice": "single",
                                                       "required": "true", "showInline": "true"})
    for name, definition in task.classes.items():
        ElementTree.SubElement(choices, "Choice", {"value": name} | ({"hint": definition} if definition else {}))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def export_tasks(path: Path, listed: Sequence[Listed], items: Mapping[str, Item], task: TaskSpec, *,
                 address: Callable[[Path], str]) -> Path:
    """Write a task for each label to `path`, and the labeling config beside it, which is returned.

    `address` turns an image's path into what Label Studio loads it from: `embedded` or `local`. Raises ReviewError
    where the file would be larger than Label Studio takes or an image cannot be had.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as out:
            for number, one in enumerate(listed):
                entry = json.dumps(_task(one, items[one.label.item], task, address))
                out.write((",\n" if number else "[\n") + entry)
                if out.tell() > MAX_BYTES:
                    raise ReviewError(
                        f"{number} of {len(listed)} tasks fill {MAX_BYTES // 10**6} MB, the most that Label Studio is "
                        "sure to take at once. Nothing was exported. Use images=local, or list fewer items.")
            out.write("\n]\n" if listed else "[]\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    config = path.with_name("label_studio_config.xml")
    write_whole(config, labeling_config(task, texts=any(isinstance(items[o.label.item].payload, str) for o in listed)))
    return config


def embedded(max_pixels: int) -> Callable[[Path], str]:
    """Images as a part of their tasks, so that Label Studio needs nothing else."""
    def address(path: Path) -> str:
        try:
            image = load(path, max_pixels)
        except (OSError, Unreadable) as error:
            raise ReviewError(f"{path} cannot be shown: {error}. Nothing was exported.") from error
        if min(image.size) < SMALLEST:
            image = resized(image, SMALLEST, sharpen=False)
        image.thumbnail((LARGEST, LARGEST))
        encoded = io.BytesIO()
        image.save(encoded, format="JPEG", quality=90)
        return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"

    return address


def local(root: Path) -> Callable[[Path], str]:
    """Images where they are. Label Studio serves them below its document root, here the folder that holds `root`: it
    takes no absolute paths, and the document root itself is no storage to it."""
    def address(path: Path) -> str:
        try:
            below = path.resolve().relative_to(root.resolve().parent)
        except ValueError:
            raise ReviewError(f"{path} does not lie below {root}, from which Label Studio would serve it. Nothing was "
                              "exported. Use images=embedded.") from None
        return f"/data/local-files/?d={quote(below.as_posix())}"

    return address


def _task(one: Listed, item: Item, task: TaskSpec, address: Callable[[Path], str]) -> dict[str, Any]:
    label = one.shown
    shown = {"text": item.payload} if isinstance(item.payload, str) else {"image": address(item.payload)}
    # Label Studio returns predictions as bare numbers: only by the item's hash in the data are answers joined to it.
    data = {"item": item.key, "task": task.name, "file": item.name, "why_listed": one.why, "votes": said(label),
            "why": label.why, **shown}
    if label.label is None:
        return {"data": data, "predictions": []}
    choice = {"id": item.key[:10], "from_name": CONTROL, "to_name": next(iter(shown)), "type": "choices",
              "value": {"choices": [label.label]}}
    score = label.confidence if label.probability is None else label.probability
    return {"data": data, "predictions": [{"model_version": label.source, "score": score, "result": [choice]}]}
