"""Labels of four items, the file in which a person reviews them, and that person at a spreadsheet."""

import csv
import io
from pathlib import Path

from src.store import Store
from src.task import Item, Label, TaskSpec

TASK = TaskSpec(
    name="fruit", version=3, kind="classify", classes={"apple": "", "pear": "", "plum": ""},
    aliases={"apples": "apple"}, system_prompt="", user_prompt="", metric="accuracy",
)
ITEMS = {key * 64: Item(key * 64, Path(f"{key}.png"), f"images/{key}.png") for key in "abcd"}
A, B, C, D = ITEMS
# One label that everybody is sure of, and three that deserve a look.
LABELS = [
    Label(A, "apple", True, "teacher", "", 0.9, ("apple", "apple"), "red", 0.97),
    Label(B, None, False, "teacher", "passes disagree", None, ("apple", "pear"), "green"),
    Label(C, "pear", True, "teacher", "admits doubt: blurry", 0.5, ("pear", "pear"), "blurry"),
    Label(D, None, False, "teacher", "failed: refusal", None, (None, "plum"), ""),
]
Rows = list[dict[str, str]]


def rows_of(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        return list(csv.DictReader(lines))


def save(path: Path, rows: Rows, *, delimiter: str = ",", encoding: str = "utf-8", end: str = "\r\n") -> bytes:
    """As a spreadsheet saves it: its own line ends and quotes."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path.read_bytes()


def edit(path: Path, **finals: str) -> bytes:
    """Write `label_final` of the items whose keys begin with a, b, c, d."""
    rows = rows_of(path)
    for row in rows:
        row["label_final"] = finals.get(row["item"][0], row["label_final"])
    return save(path, rows)


def finals(path: Path) -> dict[str, str]:
    return {row["item"][0]: row["label_final"] for row in rows_of(path)}


def said(store: Store, task: str = "fruit") -> list[tuple[str, str | None]]:
    """What people said so far: item and label, oldest first within an item."""
    found = [(a.item[0], a.label) for a in store.read(task=task, annotator_prefix="human:")]
    return sorted(found, key=lambda pair: pair[0])
