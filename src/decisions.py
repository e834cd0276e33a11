"""Hand out what was decided: `python -m src.decisions task=cifar5 since=2026-11-23 file=decisions.csv`.

Every step of every item, oldest first, as CSV, JSON lines or Parquet, and a table of routes, reasons and costs. Needs
no more memory for a million steps than for a thousand. Asks nobody and changes nothing in the store.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from src.config import CONF, Decisions, moment, read
from src.console import entry_point, progress, say, table
from src.errors import ConfigError, StoreError
from src.quality.spreadsheet import harmless
from src.store import DecisionLog, Logged

COLUMNS = [f.name for f in fields(Logged)]
ROW_GROUP = 20_000  # steps that Parquet is handed at a time

Write = Callable[[Logged], None]


@hydra.main(config_path=CONF, config_name="decisions", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Decisions = read(cfg, Decisions)
    if "://" not in asked.store and not Path(asked.store).is_file():
        raise StoreError(f"There is no store at {asked.store}, so nothing was decided: name the one that python -m "
                         "src.serve writes, with home=… or store=…")
    log = DecisionLog(asked.store)
    tally = Tally()
    wanted: dict[str, Any] = {"task": asked.task.name if asked.task else None,
                              "since": moment("since", asked.since), "until": moment("until", asked.until)}
    total = log.count(**wanted)
    with writing(asked.file, overwrite=asked.overwrite) as write, progress("reading decisions", total) as update:
        for row in log.read(**wanted):
            write(row)
            tally.add(row)
            update(tally.steps)
    log.close()
    tally.show()
    if asked.file:
        say(f"{tally.steps} step(s): {asked.file}")


class Tally:
    """Steps and US dollars by route and reasons, and how many of the steps hold an answer."""

    def __init__(self) -> None:
        self.steps = 0
        self._steps: Counter[tuple[str, str, str]] = Counter()
        self._answers: Counter[tuple[str, str, str]] = Counter()
        self._usd: Counter[tuple[str, str, str]] = Counter()

    def add(self, row: Logged) -> None:
        self.steps += 1
        way = (row.route, row.escalated or "", row.human or "")
        self._steps[way] += 1
        self._answers[way] += row.answer is not None
        self._usd[way] += row.cost_usd  # type: ignore[assignment]

    def show(self) -> None:
        if not self.steps:
            return say("No step of a decision matches.")
        rows = [(*way, str(count), str(self._answers[way]), f"{self._usd[way]:.4f}")
                for way, count in sorted(self._steps.items(), key=lambda entry: (-entry[1], entry[0]))]
        total = ("all", "", "", str(self.steps), str(self._answers.total()), f"{self._usd.total():.4f}")
        table("Steps of decisions", [*rows, total],
              ("whose turn", "why escalated", "why a person", "steps", "with an answer", "US dollars"))


@contextmanager
def writing(file: str | None, *, overwrite: bool) -> Iterator[Write]:
    """What to hand each step to. The file is written beside its place and renamed once it is whole. Raises ConfigError
    where it is there already, or cannot be written."""
    if file is None:
        yield lambda row: None
        return
    path = Path(file).expanduser()
    if path.exists() and not overwrite:
        raise ConfigError("file", file, "it is there already; name another, or add overwrite=true")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FORMATS[path.suffix](partial) as write:
            yield write
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError("file", file, f"it cannot be written ({error.strerror or error}): check its folder and the "
                          "space that is left") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def as_csv(path: Path) -> Iterator[Write]:
    """Without anything that a spreadsheet would run; with the mark that Excel knows UTF-8 by."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)

        def write(row: Logged) -> None:
            cells = plain(row) | {"probabilities": json.dumps(row.probabilities)}
            rows.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in cells.values()])

        yield write


@contextmanager
def as_json_lines(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(plain(row), ensure_ascii=False), file=file)


@contextmanager
def as_parquet(path: Path) -> Iterator[Write]:
    import pyarrow  # type: ignore[import-untyped]  # takes as long to load as all the rest
    from pyarrow import parquet

    kinds = {"position": pyarrow.int32(), "step": pyarrow.int32(), "task_version": pyarrow.int32(),
             "probabilities": pyarrow.list_(pyarrow.float64()), "probability": pyarrow.float64(),
             "cost_usd": pyarrow.float64(), "latency_s": pyarrow.float64(),
             "created_at": pyarrow.timestamp("us", tz="UTC")}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    waiting: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, schema) as file:

        def flush() -> None:
            file.write_table(pyarrow.Table.from_pylist(waiting, schema))
            waiting.clear()

        def write(row: Logged) -> None:
            waiting.append(asdict(row))
            if len(waiting) >= ROW_GROUP:
                flush()

        yield write
        flush()


FORMATS = {".csv": as_csv, ".jsonl": as_json_lines, ".parquet": as_parquet}


def plain(row: Logged) -> dict[str, Any]:
    """By column, the time as ISO 8601."""
    return {name: getattr(row, name) for name in COLUMNS} | {"created_at": row.created_at.isoformat()}


if __name__ == "__main__":
    main()
