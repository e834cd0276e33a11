"""The way back from Label Studio: what people answered there, as annotations of theirs.

Reads both of its JSON exports, JSON (tasks with their annotations) and JSON-MIN (one flat record for each annotation).
Knows nothing about what was predicted.
"""

import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.errors import ReviewError
from src.quality.conclude import HUMAN
from src.quality.label_studio_tasks import CONTROL
from src.store import Store
from src.task import Annotation, TaskSpec

CHANNEL = "label_studio"
WAY_OUT = "Nothing was imported. In Label Studio choose Export, then JSON or JSON-MIN."


@dataclass(frozen=True)
class Imported:
    """How many answers are `new`, by how many `people`; `known` were imported before or are older than what the person
    said since; `empty` ones were skipped in Label Studio or hold no choice."""

    new: int
    people: int
    known: int
    empty: int


@dataclass(frozen=True)
class Answer:
    """`choices` as spelt in Label Studio, none where the annotation is empty; `number` is its task's."""

    number: str
    item: str
    annotator: str
    choices: tuple[str, ...]
    at: datetime | None


def import_answers(path: Path, store: Store, *, task: TaskSpec, items: Container[str]) -> Imported:
    """Store the answers that are new: of each person, the latest about each item.

    Raises ReviewError, having imported nothing, where the file is no such export, an item is not in `items` or belongs
    to another task, or a choice is no class of the task.
    """
    given = _read(path, task, items)
    answers = [answer for answer in given if answer.choices]
    if given and not answers:
        raise ReviewError(f"{path}: none of {len(given)} annotations holds a choice named {CONTROL}. Nothing was "
                          "imported. Keep that name in Label Studio's labeling config.")
    labels = {answer: _class(path, answer, task) for answer in answers}
    latest = {(answer.annotator, answer.item): answer for answer in sorted(answers, key=_when)}
    last = {(a.annotator, a.item): a for a in store.read(task=task.name, annotator_prefix=HUMAN)}
    new = [answer for who, answer in latest.items()
           if who not in last or _newer(answer, labels[answer], last[who], task)]
    store.add([
        Annotation(item=answer.item, annotator=answer.annotator, task=task.name, task_version=task.version,
                   prompt_hash=f"{task.name}@{task.version}", label=labels[answer], provider=CHANNEL,
                   created_at=answer.at or datetime.now(UTC))
        for answer in new
    ])
    return Imported(len(new), len({answer.annotator for answer in new}), len(latest) - len(new),
                    len(given) - len(answers))


def _newer(answer: Answer, label: str, last: Annotation, task: TaskSpec) -> bool:
    return answer.at > last.created_at if answer.at else label != task.map_label(last.label)


def _when(answer: Answer) -> datetime:
    return answer.at or datetime.min.replace(tzinfo=UTC)


def _class(path: Path, answer: Answer, task: TaskSpec) -> str:
    found = {choice: task.map_label(choice) for choice in answer.choices}
    if unknown := [choice for choice, name in found.items() if name is None]:
        raise ReviewError(f"{path}, task {answer.number}: {unknown[0]!r} is not a class. Nothing was imported. "
                          f"Classes: {', '.join(task.names)}.")
    names = sorted({name for name in found.values() if name})
    if len(names) > 1:
        raise ReviewError(f"{path}, task {answer.number}: {answer.annotator} chose {' and '.join(names)}. Nothing was "
                          "imported. Leave one of them.")
    return names[0]


def _read(path: Path, task: TaskSpec, items: Container[str]) -> list[Answer]:
    found: list[Answer] = []
    strangers: list[str] = []
    for place, entry in enumerate(_entries(path), start=1):
        number = str(entry.get("id", place))
        try:
            data = entry.get("data", entry)
            item, name = data.get("item"), data.get("task")
            if name != task.name:
                strangers.append(f"{number} (of task {name!r})")
            elif item not in items:
                strangers.append(f"{number} (unknown item {item!r})")
            else:
                found += [Answer(number, item, *given) for given in _given(entry)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ReviewError(f"{path}, task {number} is not as Label Studio exports it: {error}. {WAY_OUT}") from error
    if strangers:
        raise ReviewError(f"{path} holds {len(strangers)} task(s) that are not of task {task.name!r} and this data: "
                          f"{', '.join(strangers[:3])}{' …' * (len(strangers) > 3)}. Nothing was imported. Remove them "
                          "in Label Studio, or import them with their own task and data.")
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise ReviewError(f"{path} cannot be read: {error}.") from error
    except ValueError as error:
        raise ReviewError(f"{path} is not JSON: {error}. {WAY_OUT}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ReviewError(f"{path} is not a list of tasks. {WAY_OUT}")
    if not any("annotations" in entry or "annotation_id" in entry for entry in entries):
        raise ReviewError(f"{path} holds no annotations. {WAY_OUT}")
    return entries


def _given(entry: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], datetime | None]]:
    """Who chose what and when, in either export."""
    if "data" not in entry:
        if entry.get("annotation_id") is not None:
            yield _annotator(entry["annotator"]), tuple(_flat(entry.get(CONTROL))), _time(entry)
        return
    for annotation in entry.get("annotations", []):
        results = [] if annotation.get("was_cancelled") else annotation["result"]
        chosen = [result["value"]["choices"] for result in results if result.get("from_name") == CONTROL]
        yield _annotator(annotation.get("completed_by")), tuple(_flat(chosen)), _time(annotation)


def _flat(chosen: Any) -> Iterator[str]:
    """JSON-MIN has a bare string for one choice, and lists or objects for several."""
    if isinstance(chosen, str):
        yield chosen
    elif isinstance(chosen, dict):
        yield from _flat(chosen["choices"])
    else:
        for one in chosen or []:
            yield from _flat(one)


def _annotator(who: Any) -> str:
    name = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
    return f"{HUMAN}{str(name).strip().lower() if name is not None else CHANNEL}"


def _time(annotation: dict[str, Any]) -> datetime | None:
    told = annotation.get("updated_at") or annotation.get("created_at")
    if not told:
        return None
    at = datetime.fromisoformat(told)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
