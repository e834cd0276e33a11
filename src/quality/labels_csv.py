"""`labels_llm.csv`: every label, accepted or not, with its reason. To read, not to edit."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from src.quality.spreadsheet import csv_text, write_whole
from src.task import Item, Label

COLUMNS = ("item", "file", "label", "accepted", "source", "reason", "confidence", "probability", "votes", "why")
TEXT_SHOWN = 500  # characters


def write_labels(path: Path, labels: Sequence[Label], items: Mapping[str, Item]) -> None:
    names = columns(items[label.item] for label in labels)
    write_whole(path, csv_text(names, (row(names, label, items[label.item]) for label in labels)))


def columns(items: Iterable[Item]) -> list[str]:
    """Items that are texts have a column for them: a text has no file that could be opened."""
    texts = any(isinstance(item.payload, str) for item in items)
    return [*COLUMNS[:2], *["text"] * texts, *COLUMNS[2:]]


def row(names: Iterable[str], label: Label, item: Item) -> list[str]:
    cells = {
        "item": label.item, "file": item.name, "text": shortened(item.payload) if isinstance(item.payload, str) else "",
        "label": label.label or "", "accepted": str(label.accepted).lower(), "source": label.source,
        "reason": label.reason, "confidence": _figure(label.confidence), "probability": _figure(label.probability),
        "votes": said(label), "why": label.why,
    }
    return [cells[name] for name in names]


def said(label: Label) -> str:
    """Who said what, in the order of the passes."""
    return " | ".join(vote or "?" for vote in label.votes)


def shortened(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else f"{text[: TEXT_SHOWN - 1]}…"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
