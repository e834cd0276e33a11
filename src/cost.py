"""What the flywheel saves, and whether it pays: `python -m src.cost volume=1000000`, or `run=<id>` as measured.

With a run, its figures and those of its newest evaluation take the place of what is assumed, but for what the command
line gives, and all goes to an MLflow run of its own that names the training run. Asks nobody.
"""

import json
import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.address import keys_to_find
from src.config import CONF, Cost, output_folder, read
from src.console import entry_point, say, table, warn
from src.cost_model import Economics, Inputs, claims, curve, draw, economics, sensitivity
from src.cost_model.inputs import COUNTED
from src.errors import DataError, StoreError
from src.reporting import costs
from src.store import Store
from src.task import Annotation
from src.tracking import Child, open_run, run_of
from src.tracking.judged import Past, find_judged

CONFIG, COMPARED = "config.yaml", "tables/cascade.json"
GIVEN, ASSUMED, PUBLISHED = "given", "assumed", "published"


@dataclass(frozen=True)
class Measured:
    """A value, where it comes from, and for a share the number of items it was counted on."""

    value: float
    source: str
    n: int | None = None


@hydra.main(config_path=CONF, config_name="cost", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Cost = read(cfg, Cost)
    inputs, sources = as_given(asked)
    past = None
    if asked.run is not None:
        past = find_judged(asked.tracking.uri, run_of(asked.tracking.uri, asked.run)[0], (CONFIG, COMPARED))
        inputs, sources = as_measured(inputs, sources, measured(past, keys_to_find(asked.home, asked.tracking.uri)))
    found = economics(inputs, draws=asked.draws, seed=asked.seed)
    show(inputs, sources, found, past, asked)


def as_given(asked: Cost) -> tuple[Inputs, dict[str, str]]:
    """The inputs as configured, and for each key who said so. A share that the command line gives is no longer the one
    that was counted: without its own n it is exact."""
    inputs = Inputs(**{field.name: getattr(asked, field.name) for field in fields(Inputs)})
    words = HydraConfig.get()
    given = {override.partition("=")[0].lstrip("+") for override in words.overrides.task}
    choice = words.runtime.choices.get("cost")
    chosen = set(OmegaConf.load(Path(CONF, "cost", f"{choice}.yaml")) if choice else ())
    sources = {field.name: GIVEN if field.name in given else f"conf/cost/{choice}.yaml" if field.name in chosen else
               ASSUMED for field in fields(Inputs)}
    exact: dict[str, Any] = {n: None for share, n in COUNTED.items() if share in given and n not in given}
    return replace(inputs, **exact), sources


def as_measured(inputs: Inputs, sources: Mapping[str, str],
                found: Mapping[str, Measured]) -> tuple[Inputs, dict[str, str]]:
    """With what was measured in the place of what nobody gave. Tokens or prices that are given price the LLM, even
    where a run paid another price; and where another share is escalated, how right the cascade is was not measured."""
    given = {key for key, source in sources.items() if source == GIVEN}
    priced = {"tokens_in", "tokens_out", "llm_input_usd", "llm_output_usd"} & given
    cheap = {"tokens_in", "tokens_out", "cheap_input_usd", "cheap_output_usd"} & given
    escalated = {"escalation_rate"} & given
    taken = {key: one for key, one in found.items() if key not in given
             and not (key == "llm_usd_per_item" and priced) and not (key == "cheap_usd_per_item" and cheap)
             and not (key == "cascade_accuracy" and escalated)}
    values: dict[str, Any] = {key: one.value for key, one in taken.items()}
    values |= {n: taken[share].n for share, n in COUNTED.items() if share in taken and n not in given}
    return replace(inputs, **values), {**sources, **{key: one.source for key, one in taken.items()}}


def measured(past: Past, where: str = "") -> dict[str, Measured]:
    """By key, what the run, its annotations and its newest evaluation with a cascade found. `where` are the keys by
    which a command finds the run."""
    found = of_training(past.trained) | of_annotations(past.trained)
    judged = next((one for one in past.evaluations if "cascade/escalation_rate" in one.metrics), None)
    if judged is None:
        warn(f"No evaluation of this run has replayed a cascade, so that escalation rate and accuracies are assumed or "
             f"the student's alone: .venv/bin/python -m src.evaluate run={past.trained.id}{where}")
        return found
    return found | of_evaluation(judged)


def of_training(run: Child) -> dict[str, Measured]:
    """Labels, gold, and what the student is worth by itself."""
    m, where, found = run.metrics, f"measured: {{}} of run {run.id[:8]}", {}
    if items := m.get("label/items"):
        found["labels"] = Measured(int(items), where.format("label/items"))
        found["label_usd"] = Measured(m.get("label/cost_usd", 0.0) / items,
                                      where.format("label/cost_usd / label/items"))
    gold = [m[key] for key in ("data/choose", "data/certify") if key in m]
    if gold:
        found["gold_items"] = Measured(int(sum(gold)), where.format("data/choose + data/certify"))
    for key, metric in (("student_accuracy", "test/accuracy"), ("llm_accuracy", "label/gold_accuracy")):
        n = m.get("test/n" if metric.startswith("test") else f"{metric}_n")
        if metric in m and n:
            found[key] = Measured(m[metric], where.format(metric), int(n))
    return found | _speed(run)


def of_evaluation(run: Child) -> dict[str, Measured]:
    """What the cascade was worth, and each of its parts alone, on the same items. People are taken to be right."""
    m, where, found = run.metrics, f"measured: {{}} of evaluation {run.id[:8]}", _speed(run)
    n, judged = int(m["cascade/n"]), int(m.get("cascade/judged", 0))
    for key, metric in (("escalation_rate", "cascade/escalation_rate"), ("human_rate", "cascade/human_rate")):
        if metric in m:
            found[key] = Measured(m[metric], where.format(metric), n)
    if judged and "cascade/accuracy_with_people" in m:
        found["cascade_accuracy"] = Measured(m["cascade/accuracy_with_people"],
                                             where.format("cascade/accuracy_with_people"), judged)
    rows = _rows(run)
    alone = {"student": next((row for row in rows if row["kind"] == "student"), None),
             "llm": next((row for row in rows if row["kind"] == "llm"), None),
             "cheap": next((row for row in rows if row["best_cheap"]), None)}
    for name, row in alone.items():
        if row is None:
            continue
        told = where.format(f"tables/cascade ({row['what']})")
        wanted = {f"{name}_accuracy": "accuracy_with_people"}
        if name != "student":
            wanted |= {f"{name}_usd_per_item": "llm_usd_per_million", f"{name}_human_rate": "human_rate"}
        if name == "llm":
            wanted["llm_latency_ms"] = "latency_p95_ms"
        for key, column in wanted.items():
            if (value := row.get(column)) is not None and math.isfinite(value):
                scale = 1e-6 if column == "llm_usd_per_million" else 1.0
                counted = int(row["judged"]) if "accuracy" in key else n if "human" in key else None
                found[key] = Measured(value * scale, told, counted)
    return found


def of_annotations(run: Child) -> dict[str, Measured]:
    """Tokens of a question and their spread, from the store that the run wrote to; nothing where it is gone."""
    config = yaml.safe_load(run.files.get(CONFIG, "{}")) or {}
    address, annotator, prompt = str(config.get("store", "")), *(run.tags.get(tag) for tag in ("annotator",
                                                                                              "prompt_hash"))
    if not annotator or not prompt or not address or ("://" not in address and not Path(address).is_file()) \
            or "***" in address:  # passwords are struck out of what is recorded
        warn("The run's annotation store cannot be opened from here, so that tokens are assumed.")
        return {}
    try:
        with closing(Store(address)) as store:
            return tokens(store.read(annotator=annotator, prompt_hash=prompt, replies=False))
    except StoreError as error:
        warn(f"Tokens are assumed, since the run's annotations cannot be read: {error}")
        return {}


def tokens(annotations: list[Annotation]) -> dict[str, Measured]:
    """Of a question with all its attempts. Nothing where none was counted: recorded answers have no tokens."""
    by_question: dict[tuple[str, int], list[Annotation]] = {}
    for annotation in annotations:
        by_question.setdefault((annotation.item, annotation.pass_index), []).append(annotation)
    n = len(by_question)
    if n < 2 or not any(annotation.tokens_in for annotation in annotations):
        return {}
    spent = np.array([math.fsum(one.cost_usd for one in of) for of in by_question.values()])
    if not spent.any():  # a free server: its tokens vary all the same
        spent = np.array([float(sum(one.tokens_in + one.tokens_out for one in of)) for of in by_question.values()])
    where = f"measured: {len(annotations):,} annotations of {n:,} questions"
    return {"tokens_in": Measured(sum(one.tokens_in for one in annotations) / n, where),
            "tokens_out": Measured(sum(one.tokens_out for one in annotations) / n, where),
            "token_error": Measured(float(spent.std(ddof=1) / spent.mean() / math.sqrt(n)), where)}


def show(inputs: Inputs, sources: dict[str, str], found: Economics, past: Past | None, asked: Cost) -> None:
    """On the console, in files, and with a training run in an MLflow run of its own."""
    note = past.trained.tags.get("rehearsal", "no").removeprefix("no") if past else ""
    told = costs.statement(found, inputs)
    volume = f"{inputs.volume:,.0f} items a month"
    name = f"{past.trained.name}: " if past else ""
    world = draw(inputs, asked.draws, asked.seed)
    swings = sensitivity(inputs, world)
    checked = claims(inputs) if _is_published(sources) else []
    pictures = {
        "cost_curve": costs.cost_curve(curve(inputs, world), found, inputs, note=note,
                                       title=f"{name}what a million items cost, with 95% bands"),
        "cost_sensitivity": costs.sensitivity(swings, found.saving_usd_per_month,
                                              title=f"{name}what a month saves at {volume}", note=note),
    }
    out = output_folder()
    out.mkdir(parents=True, exist_ok=True)
    document = out / "cost.json"
    document.write_text(json.dumps(_plain({
        "rehearsal": note or False, "run": past.trained.id if past else None, "verdict": found.verdict.value,
        "statement": " ".join(told), "inputs": asdict(inputs), "sources": sources, "economics": asdict(found),
        "sensitivity": [asdict(one) for one in swings], "published": [asdict(one) for one in checked]}), indent=2),
        encoding="utf-8")
    table(f"{name}inputs {note}".strip(), costs.source_rows(inputs, sources), costs.SOURCES)
    say(costs.assumed(inputs, sources, ASSUMED))
    mistakes = f", ${inputs.mistake_usd:g} for each mistake" if inputs.mistake_usd else ""
    table(f"{name}{volume}; 95% intervals from {found.draws:,} draws, building spread over {inputs.horizon_months:g} "
          f"months{mistakes} {note}".strip(), costs.option_rows(found), costs.COLUMNS)
    if checked:
        say("The published figures, worked out again", style="bold")
        for line in costs.claim_lines(checked):
            say(line)
    say(told[0] + (f" {note}" if note else ""), style="bold")
    for more in told[1:]:
        say(more)
    for more in found.beware:
        warn(more)
    if past is None:
        for title, picture in pictures.items():
            picture.savefig(out / f"{title}.png")
        say(f"Figures and pictures: {out}")
        return
    tags = {"flywheel.stage": "cost", "flywheel.costs": past.trained.id, "rehearsal": note or "no",
            "answer": " ".join(told), "verdict": found.verdict.value,
            **{tag: past.trained.tags.get(tag, "") for tag in ("task", "student", "teacher")}}
    with open_run(uri=asked.tracking.uri, experiment=past.experiment, artifacts=Path(asked.tracking.artifacts),
                  name=f"cost at {inputs.volume:,.0f} a month: {past.trained.name}", tags=tags) as run:
        run.params({**asdict(inputs), "draws": asked.draws, "seed": asked.seed})
        run.metrics(found.flat())
        run.table(costs.option_frame(found), "cost")
        run.table(costs.swing_frame(swings), "cost_sensitivity")
        for title, picture in pictures.items():
            run.figure(picture, title)
        run.file(document)
    say(f"Tables and pictures: MLflow run {run.id}; into the report: .venv/bin/python -m src.report "
        f"run={past.trained.id}{keys_to_find(asked.home, asked.tracking.uri)}")


def _is_published(sources: Mapping[str, str]) -> bool:
    """Whether these are the published recipe's inputs and nothing else."""
    known = {ASSUMED, f"conf/cost/{PUBLISHED}.yaml"}
    return f"conf/cost/{PUBLISHED}.yaml" in sources.values() and set(sources.values()) <= known


def _speed(run: Child) -> dict[str, Measured]:
    found = {}
    for key, metric in (("items_per_second", "throughput/items_per_second"), ("student_latency_ms", "latency/p95_ms")):
        if metric in run.metrics:
            found[key] = Measured(run.metrics[metric], f"measured: {metric} of {run.id[:8]}")
    return found


def _rows(run: Child) -> list[dict[str, Any]]:
    """The evaluation's table of what could answer. Raises DataError for a file of another kind."""
    if COMPARED not in run.files:
        return []
    try:
        held = json.loads(run.files[COMPARED])
        return [dict(zip(held["columns"], row, strict=True)) for row in held["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{COMPARED} of evaluation {run.id!r} cannot be read ({type(error).__name__}): evaluate "
                        "again.") from error


def _plain(value: Any) -> Any:
    """As JSON has it, which knows neither nan nor infinity: null, and "never"."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "never" if value > 0 else "-never"
    return value


if __name__ == "__main__":
    main()
