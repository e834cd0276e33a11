"""What a run left behind, read back from a folder of its files: all that its report is made of.

The same files lie in the job's output folder while it runs and in the run's artifacts afterwards, so that a report of
today and one of a year from now are made alike. Knows nothing about MLflow, and decides nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from PIL import Image

from src.data.images import Unreadable, load
from src.errors import DataError
from src.metrics import Interval
from src.quality.spreadsheet import plain

CONFIG, LABELS, PREDICTIONS = "config.yaml", "labels_llm.csv", "predictions.csv"
EVALUATION, CALIBRATION, PROMPT, DATACARD = "eval.json", "calibration.json", "prompt.txt", "datacard.md"
COST = "cost.json"  # of a run of src.cost about this one
TABLES = "tables"
NEEDED = (CONFIG, LABELS)
FILES = (*NEEDED, PREDICTIONS, EVALUATION, CALIBRATION, PROMPT, DATACARD)


@dataclass(frozen=True)
class Replay:
    """A cascade replayed behind this run's student: `rows` are `cascades.comparison_table`'s."""

    run: str
    when: datetime
    rows: pd.DataFrame


@dataclass(frozen=True)
class Findings:
    """`stand_ins` says what was not real, or nothing. `figures` are those of `Labelled.figures`. Tables of labels and
    predictions hold text as it stands in their files. `evaluation`, `predictions` and `calibration` are there once a
    student was trained; certificates and replays, newest first, where they were made; in `cost` what `src.cost` found
    last. `images` holds by an item's key where its image lies."""

    run: str
    when: datetime
    stand_ins: str
    config: Mapping[str, Any]
    figures: Mapping[str, float]
    labels: pd.DataFrame
    annotators: pd.DataFrame
    confusions: Mapping[str, pd.DataFrame]
    prompt: str
    datacard: str
    evaluation: Mapping[str, Any] | None = None
    predictions: pd.DataFrame | None = None
    calibration: Mapping[str, Any] | None = None
    certificates: Sequence[Mapping[str, Any]] = ()
    replays: Sequence[Replay] = ()
    cost: Mapping[str, Any] | None = None
    images: Mapping[str, Path] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.config["task"]["classes"]]

    def picture(self, item: str) -> Image.Image | None:
        """An item's image; None where it is not at hand any more."""
        try:
            return load(self.images[item], int(self.config["data"]["max_pixels"])) if item in self.images else None
        except (OSError, Unreadable):
            return None

    def part(self, name: str) -> pd.DataFrame:
        """The predictions about one part; none without a student, or where it wrote none down."""
        if self.predictions is None:
            return pd.DataFrame(columns=["item", "part", "target", "answer", "confidence"])
        return self.predictions[self.predictions.part == name]


def read_findings(folder: Path, *, run: str, when: datetime, stand_ins: str, figures: Mapping[str, float],
                  certificates: Sequence[Mapping[str, Any]] = (), replays: Sequence[Replay] = (),
                  cost: Path | None = None, images: Mapping[str, Path] | None = None) -> Findings:
    """Read whatever of FILES and of `tables/` the folder holds, and the file `cost`. Raises DataError where one of
    NEEDED is missing or a file is broken."""
    if lacking := [name for name in NEEDED if not (folder / name).exists()]:
        raise DataError(f"run={run!r} holds no {' and no '.join(lacking)}, so there is nothing to report on: name a "
                        "finished run of src.train or src.label.")
    name = ""
    try:
        held = {}
        for name in FILES:
            if (path := folder / name).exists():
                held[name] = _read(path)
        if cost is not None:
            name = COST
            held[COST] = _read(cost)
        tables = {}
        for path in sorted((folder / TABLES).glob("*.json")):
            name = path.name
            tables[path.stem] = pd.DataFrame(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{name} of run={run!r} cannot be read ({type(error).__name__}): make the run again, or name "
                        "another one.") from error
    return Findings(
        run=run, when=when, stand_ins=stand_ins, config=held[CONFIG], figures=figures, labels=held[LABELS],
        annotators=tables.get("annotators", pd.DataFrame()),
        confusions={name: table for name, table in tables.items() if name.startswith("confusion_teacher")},
        prompt=held.get(PROMPT, ""), datacard=held.get(DATACARD, ""), evaluation=held.get(EVALUATION),
        predictions=held.get(PREDICTIONS), calibration=held.get(CALIBRATION), certificates=certificates,
        replays=replays, cost=held.get(COST), images=images or {},
    )


def interval(figures: Mapping[str, Any], name: str, n: str | None = None) -> Interval | None:
    """The figure `name` with what stands beside it as `…_low`, `…_high` and `…_n` (or `n`); None where it is not."""
    if figures.get(name) is None or figures.get(f"{name}_low") is None:
        return None
    count = figures.get(n or f"{name}_n")
    return Interval(figures[name], figures[f"{name}_low"], figures[f"{name}_high"], int(count or 0))


def _read(path: Path) -> Any:
    if path.suffix == ".csv":  # a class may be called "nan", and a key 007
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for name in frame.columns:
            if name == "confidence" or name.startswith("p_"):
                frame[name] = pd.to_numeric(frame[name])
            elif path.name == LABELS:  # a class may be called -1, which stands there with a quote before it
                frame[name] = frame[name].map(plain)
        return frame
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    return (yaml.safe_load(text) or {}) if path.suffix == ".yaml" else text
