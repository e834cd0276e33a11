"""Compare the runs of a sweep by one key: `python -m src.compare sweep=<id> key=student.input_size baseline=224`.

Pairs the answers of every value's students with the baseline's, item by item and seed by seed, on validation and gold's
*choose* part, and says which values are shown to be better or worse. The same difference on test stands beside it and
has no say. A multirun does all this by itself at its end where `CompareSweep` is among its callbacks, as in
`conf/ablation/`.
"""

import atexit
import csv
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import numpy as np
import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from src.address import keys_to_find
from src.config import CONF, Comparison, TrackingSpec, read
from src.console import entry_point, say, table, warn
from src.errors import ConfigError, DataError, FlywheelError
from src.metrics import Bools, Interval, bootstrap, over_seeds, paired_difference
from src.reporting import comparisons
from src.reporting.comparisons import Compared, Metric
from src.tracking import PARENT, Child, StoredSweep, find_sweep, open_run, swept_values

CHOOSE = ("validation", "gold")  # what may choose
BESIDE = "test"  # what may not
COLUMNS = ["item", "part", "target", "answer"]
SPEED = ("student.name", "student.input_size", "student.flip_average", "student", "trainer.accelerator")
CONFIG, PREDICTIONS = "config.yaml", "predictions.csv"

Answers = Mapping[tuple[str, str], tuple[str, str]]  # by part and item: target and answer


@dataclass(frozen=True)
class Training:
    """A run of the sweep, its config under dotted keys; `answers` is None where it did not finish or holds none."""

    child: Child
    value: str
    seed: int
    config: dict[str, Any]
    answers: Answers | None

    def __str__(self) -> str:
        return f"{self.value}, seed {self.seed}"


@hydra.main(config_path=CONF, config_name="compare", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Comparison = read(cfg, Comparison)
    compare(asked.sweep, asked.key, asked.baseline, asked.parts, asked.metrics, asked.tracking)


class CompareSweep(Callback):
    """Hydra callback: at the end of a multirun, its runs are compared by `key`. Stands after `ParentRun`, whose run
    they are children of. `parts` and `metrics` are those of `conf/compare.yaml`. Where a job failed or was
    interrupted, it says how to compare what there is."""

    def __init__(self, key: str, baseline: Any, parts: Sequence[str] = CHOOSE, metrics: Sequence[str] = ()) -> None:
        self.key, self.baseline, self.parts, self.metrics = key, baseline, tuple(parts), tuple(metrics)
        self.compared = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        # Hydra does not call `on_multirun_end` where a job failed.
        atexit.register(self.tell, str(config.tracking.uri), keys_to_find(str(config.home), str(config.tracking.uri)))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        # The jobs are over: what is opened now is a run of its own, as it is when somebody compares later.
        sweep, self.compared = os.environ.pop(PARENT, None), True
        if sweep is None:  # a dry run leaves no runs
            return
        tracking = TrackingSpec(config.tracking.uri, config.tracking.experiment, config.tracking.artifacts)
        try:
            compare(sweep, self.key, self.baseline, self.parts, self.metrics, tracking)
        except FlywheelError as error:
            # Hydra would make a warning of it, and the command would seem to have worked.
            sys.stderr.write(f"{error}\n")
            raise SystemExit(1) from error
        say(f"Compare again: {self.command(sweep, keys_to_find(str(config.home), tracking.uri))}")

    def tell(self, uri: str, where: str) -> None:
        sweep = os.environ.get(PARENT)
        if not sweep or self.compared:
            return
        try:
            find_sweep(uri, sweep, ())
        except FlywheelError:  # no job was begun
            return
        say(f"The sweep did not end well. What there is of it: {self.command(sweep, where)}")

    def command(self, sweep: str, where: str) -> str:
        parts = "" if self.parts == CHOOSE else f" parts=[{','.join(self.parts)}]"
        metrics = f" metrics=[{','.join(self.metrics)}]" if self.metrics else ""
        return (f".venv/bin/python -m src.compare sweep={sweep} key={self.key} baseline={spelt(self.baseline)}"
                f"{parts}{metrics}{where}")


def compare(sweep: str, key: str, baseline: Any, parts: Sequence[str], metrics: Sequence[str],
            tracking: TrackingSpec) -> None:
    """Compare, print, and record in a run of its own that names the sweep. Raises ConfigError, DataError or
    TrackingError."""
    stored = find_sweep(tracking.uri, sweep, (CONFIG, PREDICTIONS))
    rows = compared(stored, key, spelt(baseline), parts, metrics)
    record(rows, stored, key, spelt(baseline), tracking)


def compared(stored: StoredSweep, key: str, baseline: str, parts: Sequence[str] = CHOOSE,
             metrics: Sequence[str] = ()) -> list[Compared]:
    """A row for each value of `key` that was trained with every seed, numbers in ascending order; what is left out is
    said. Raises ConfigError or DataError."""
    for why in stored.failed:
        warn(f"A job of the sweep failed: {why}")
    trainings = complete(distinct(trainings_by(stored, key), key), key, baseline, stored.id)
    check_same_data(trainings)
    others = sorted(name for name in varying(trainings) - {key, "seed"}
                    if not name.startswith(f"{key.replace('/', '.')}."))
    if others:
        warn(f"With {key}, these keys vary as well, and the differences are of all of them: {', '.join(others)}")
    right, left_out = common(trainings, parts)
    if left_out:
        warn(f"{left_out} item(s) are left out that not all runs hold with the same target.")
    runs = [training.child for of in trainings.values() for training in of]
    told = [name for name in metrics if all(name in run.metrics for run in runs)]
    if some := [name for name in metrics if name not in told and any(name in child.metrics for child in runs)]:
        warn(f"Not shown, since not all runs logged it: {', '.join(some)}")
    if none := [name for name in metrics if not any(name in child.metrics for child in runs)]:
        warn(f"Not shown, since no run logged it: {', '.join(none)}. They logged such as "
             f"{', '.join(sorted(runs[0].metrics)[:8])}")
    rows = compare_values(right, baseline, {value: [t.child for t in of] for value, of in trainings.items()}, parts,
                          told)
    if key in SPEED:
        return rows
    # Other keys leave what answers as it is: where its speed differs, something else ran on the machine.
    return [replace(row, items_per_second=math.nan, p50_ms=math.nan) for row in rows]


def trainings_by(stored: StoredSweep, key: str) -> list[Training]:
    """The sweep's runs with their value of `key`. Raises ConfigError where none has it, DataError where none holds
    predictions; runs that cannot take part are named."""
    found, lacking = [], []
    keys: set[str] = set()
    for child in stored.children:
        config = flatten(yaml.safe_load(child.files.get(CONFIG, "{}")))
        if "/" in key and (choice := swept_values(child.tags).get(key)):  # a folder of conf/, not a key of the run
            config[key] = choice
        keys |= config.keys()
        if not {key, "seed"} <= config.keys():
            lacking.append(f"{child.name} ({child.status}, without the key {key})")
            continue
        usable = child.status == "FINISHED" and PREDICTIONS in child.files
        answers = read_predictions(child.files[PREDICTIONS], child) if usable else None
        found.append(Training(child, spelt(config[key]), int(config["seed"]), config, answers))
        if not usable:
            why = child.status if child.status != "FINISHED" else f"no {PREDICTIONS}"
            lacking.append(f"{found[-1]} ({child.name}, {why})")
    if keys and key not in keys:
        inner = sorted(name for name in keys if name.startswith(f"{key}."))
        raise ConfigError("key", key, f"no run of sweep={stored.id!r} has it; " + (
            f"give one of {', '.join(inner[:8])}" if inner else f"give one of their {CONFIG}, such as student.name"))
    if not any(training.answers is not None for training in found):
        raise DataError(f"No finished run of sweep={stored.id!r} ({stored.name}) holds {PREDICTIONS}, which src.train "
                        f"leaves: name a sweep of python -m src.train, or run it again. Its runs: "
                        f"{', '.join(sorted({child.status for child in stored.children}))}.")
    if lacking:
        warn(f"Left out, since they did not finish or hold no predictions: {'; '.join(lacking)}")
    return found


def distinct(trainings: Sequence[Training], key: str) -> list[Training]:
    """One run for each value and seed: of runs with one configuration, the latest that has answers. Raises DataError
    where they differ in other keys."""
    latest: dict[tuple[str, int], Training] = {}
    for training in trainings:
        place = (training.value, training.seed)
        earlier = latest.get(place)
        if earlier and earlier.answers is not None:
            if training.answers is None:
                continue
            if differ := sorted(name for name in earlier.config.keys() | training.config.keys()
                                if earlier.config.get(name) != training.config.get(name)):
                raise DataError(f"Two runs of the sweep have {key}={training}, and differ in {', '.join(differ)}: "
                                "sweep one key and the seed at a time.")
        latest[place] = training
    return list(latest.values())


def complete(trainings: Sequence[Training], key: str, baseline: str, sweep: str) -> dict[str, list[Training]]:
    """The values that were trained with every seed of the sweep, numbers in ascending order, and their runs by seed.
    The others are named and left out. Raises ConfigError or DataError where no comparison is left."""
    values = list(dict.fromkeys(training.value for training in trainings))
    if all(comparisons.number(value) is not None for value in values):
        values.sort(key=float)
    if baseline not in values:
        raise ConfigError("baseline", baseline, f"no run of the sweep has {key}={baseline}; it has {', '.join(values)}")
    seeds = sorted({training.seed for training in trainings})
    have = {(training.value, training.seed): training for training in trainings if training.answers is not None}
    missing = {value: [seed for seed in seeds if (value, seed) not in have] for value in values}
    told = "; ".join(f"{value}: seed {', '.join(map(str, lost))}" for value, lost in missing.items() if lost)
    # What a folder's run was given is known of a sweep's jobs alone.
    way_out = f"sweep again: python -m src.train -m … {key}={','.join(values)} seed={','.join(map(str, seeds))}" \
        if "/" in key else \
        f"train these below the same sweep: FLYWHEEL_PARENT_RUN={sweep} python -m src.train … {key}=… seed=…"
    full = [value for value in values if not missing[value]]
    if missing[baseline]:
        raise DataError(f"The baseline {key}={baseline} was not trained with every seed. Missing, {told}; {way_out}")
    if len(full) < 2:
        raise DataError(f"{key} has fewer than two values to compare ({', '.join(full)}). " + (
            f"Missing, {told}; {way_out}" if told else f"Sweep it: src.train -m {key}={full[0]},… seed=0,1,2"))
    if told:
        warn(f"Values without a run for every seed are not compared. Missing, {told}; {way_out}")
    return {value: [have[value, seed] for seed in seeds] for value in full}


def check_same_data(trainings: Mapping[str, Sequence[Training]]) -> None:
    """Raises DataError where the runs did not see the same items in the same split."""
    hashes: dict[str, list[str]] = {}
    for of in trainings.values():
        for training in of:
            hashes.setdefault(training.child.tags.get("dataset_hash", "none"), []).append(str(training))
    if len(hashes) > 1:
        told = "; ".join(f"{name[:12]} of {', '.join(of)}" for name, of in hashes.items())
        raise DataError(f"The runs did not see the same items in the same split, by the tag dataset_hash ({told}): "
                        "what one trained on another may be judged by. Sweep again with data.* held fixed.")


def varying(trainings: Mapping[str, Sequence[Training]]) -> set[str]:
    """The keys that are not the same in all runs."""
    configs = [training.config for of in trainings.values() for training in of]
    return {key for key in set().union(*configs) if len({spelt(config.get(key)) for config in configs}) > 1}


def common(trainings: Mapping[str, Sequence[Training]],
           parts: Sequence[str]) -> tuple[dict[str, dict[str, Bools]], int]:
    """By value and part, [S, N] whether each seed's answer about each item is right; and how many items of `parts` were
    left out, since not all runs hold them with the same target. Raises DataError where hardly any are left."""
    answers = {value: [t.answers or {} for t in of] for value, of in trainings.items()}
    held = [given for of in answers.values() for given in of]
    items = set().union(*held)
    shared = sorted(item for item in items if all(item in given for given in held)
                    and len({given[item][0] for given in held}) == 1)
    by_part = {part: [item for item in shared if item[0] == part] for part in (*CHOOSE, BESIDE)}
    kept, had = sum(len(by_part[part]) for part in parts), sum(item[0] in parts for item in items)
    if kept < 2:
        raise DataError(f"The runs share {kept} item(s) of {' and '.join(parts)} with the same target, of {had}: "
                        "nothing to compare them on. Sweep with data.*, labeler.* and quality.* held fixed.")
    right = {value: {part: np.array([[given[item][0] == given[item][1] for item in of_part] for given in of])
                     for part, of_part in by_part.items()} for value, of in answers.items()}
    return right, had - kept


def compare_values(right: Mapping[str, Mapping[str, Bools]], baseline: str, children: Mapping[str, Sequence[Child]],
                   parts: Sequence[str] = CHOOSE, metrics: Sequence[str] = ()) -> list[Compared]:
    """A row for each value, in the order given; all runs hold the `metrics`."""
    theirs = right[baseline]
    both = np.hstack([theirs[part] for part in parts])
    rows = []
    for value, ours in right.items():
        pooled = np.hstack([ours[part] for part in parts])
        row = Compared(
            value=value, parts=tuple(parts), difference=paired_difference(pooled, both),
            items_alone=paired_difference(*(side.mean(axis=0, keepdims=True) for side in (pooled, both))),
            by_seed=tuple((pooled.mean(axis=1) - both.mean(axis=1)).tolist()),
            # Of labels that differ, those that are the same are the easy ones.
            agreement=_mean(ours["validation"]) if "validation" in parts else None,
            on_validation=_paired(ours["validation"], theirs["validation"]) if "validation" in parts else None,
            accuracy=_mean(ours["gold"]), on_gold=_paired(ours["gold"], theirs["gold"]),
            on_test=_paired(ours[BESIDE], theirs[BESIDE]), test=_mean(ours[BESIDE]),
            metrics={name: Metric(over_seeds(_logged(children[value], name)),
                                  over_seeds(np.subtract(_logged(children[value], name),
                                                         _logged(children[baseline], name)))) for name in metrics},
            items_per_second=_median(children[value], "throughput/items_per_second"),
            p50_ms=_median(children[value], "latency/p50_ms"),
        )
        if value == baseline:  # there is no doubt about a difference to itself
            none = Interval(0.0, 0.0, 0.0, row.difference.n)
            row = replace(row, difference=none, items_alone=none, on_validation=None, on_gold=None, on_test=None)
        rows.append(row)
    return rows


def record(rows: list[Compared], stored: StoredSweep, key: str, baseline: str, tracking: TrackingSpec) -> None:
    """Table, figures, picture and answer, in a run of their own that names the sweep, and on the console."""
    tags = [child.tags for child in stored.children]
    note = next((said for tag in tags if (said := tag.get("rehearsal", "no")) != "no"), "")
    told = comparisons.statement(rows, key, baseline)
    own = {"flywheel.stage": "compare", "flywheel.compares": stored.id, "task": tags[0].get("task", ""),
           "student": tags[0].get("student", ""), "key": key, "baseline": baseline, "rehearsal": note or "no"}
    title = f"{stored.name}: {key} against {baseline}"
    with open_run(uri=tracking.uri, experiment=stored.experiment, artifacts=Path(tracking.artifacts),
                  name=f"{key} compared", tags=own) as run:
        run.tags({"answer": told})
        run.metrics({f"compare/{row.value}/{name}": figure for row in rows for name, figure in row.flat().items()})
        if chosen := comparisons.smallest(rows):
            run.metrics({"compare/smallest_not_worse": float(chosen.value)})
        run.table(comparisons.frame(rows, baseline), "comparison")
        run.figure(comparisons.figure(rows, baseline, title=title, note=note), "comparison")
    short = key.rpartition(".")[2]  # 120 columns are few
    table(f"{title}; means over {len(rows[0].by_seed)} seed(s) (speed: their median) {note}".strip(),
          comparisons.score_rows(rows), (short, *comparisons.scores(rows)))
    table(f"More often right than {baseline}; 95% intervals, for fresh items and seeds",
          comparisons.difference_rows(rows, baseline), (short, *comparisons.differences(rows)))
    if rows[0].metrics:
        table(f"Means over seeds, and how much more than {baseline}; 95% intervals over seeds",
              comparisons.metric_rows(rows, baseline), (short, *rows[0].metrics))
    say(told + (f" {note}" if note else ""))
    say(f"Table and picture: MLflow run {run.id}")


def read_predictions(text: str, child: Child) -> Answers:
    """What was answered about items whose target is known. Raises DataError for a file of another kind."""
    lines = csv.DictReader(io.StringIO(text, newline=""))
    lacking = [column for column in COLUMNS if column not in (lines.fieldnames or [])]
    if lacking:
        raise DataError(f"{PREDICTIONS} of run={child.id!r} ({child.name}) lacks the column(s) {', '.join(lacking)}: "
                        "it is not what src.train leaves. Train again.")
    answers: dict[tuple[str, str], tuple[str, str]] = {}
    for line in lines:
        place = (line["part"], line["item"])
        if line["part"] not in (*CHOOSE, BESIDE) or not line["target"]:
            continue
        if place in answers:
            raise DataError(f"{PREDICTIONS} of run={child.id!r} ({child.name}) holds the item {line['item']!r} of "
                            f"{line['part']} twice: it is not what src.train leaves. Train again.")
        answers[place] = (line["target"], line["answer"])
    return answers


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All leaves, under dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, Mapping) and value
        leaves |= flatten(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return leaves


def spelt(value: Any) -> str:
    """A value as people write it; 1 and 1.0 are one value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=list)


def _mean(right: Bools) -> Interval | None:
    by_item = right.mean(axis=0)
    return bootstrap(lambda index: float(by_item[index].mean()), len(by_item), seed=0) if len(by_item) else None


def _paired(ours: Bools, theirs: Bools) -> Interval | None:
    return paired_difference(ours, theirs) if ours.shape[1] > 1 else None


def _logged(children: Sequence[Child], metric: str) -> list[float]:
    return [child.metrics[metric] for child in children]


def _median(children: Sequence[Child], metric: str) -> float:
    measured = [child.metrics[metric] for child in children if metric in child.metrics]
    return median(measured) if measured else float("nan")


if __name__ == "__main__":
    main()
