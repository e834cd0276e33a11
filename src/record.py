"""What a job leaves behind in its MLflow run and on the console.

The files that a report is made of lie in the job's output folder as they lie in the run, so that it is made alike at
the end of a job (`record_report`) and ever after (`report_again`).

Joins the records with the pictures and pages of `reporting/`; decides nothing. What draws is loaded where it is needed:
it takes memory while a million items are asked about.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from omegaconf import DictConfig
from PIL import Image

from src.address import keys_to_find
from src.config import Job, output_folder
from src.console import say, table, warn
from src.data.images import load
from src.data.splits import Splits
from src.errors import FlywheelError
from src.labels import Labelled
from src.reporting import notes
from src.reporting.datacard import datacard
from src.task import TaskSpec
from src.tracking import Run, certificates, open_run
from src.tracking.kept import Kept, about, keep, kept
from src.tracking.server import reached
from src.written import recorded

TABLES = "tables"

if TYPE_CHECKING:  # importing these loads torch, which labelling alone does without
    from src.calibration.calibrate import Calibrated
    from src.reporting.findings import Findings
    from src.student.distil import Distilled
    from src.student.judge import Judged, Judgement


@contextmanager
def run_of(cfg: DictConfig, job: Job, *, stage: str) -> Iterator[Run | None]:
    """The job's MLflow run with its config recorded, or None for a dry run, which leaves no trace."""
    if job.labeler.dry_run:
        yield None
        return
    # What tells runs apart comes first: the UI shows twenty characters of a name in a table.
    name = f"labels by {job.teacher.model}, {job.task.name}" if stage == "label" else \
        f"s{job.seed} {job.student.input_size}px {job.student.name}, {job.task.name}"
    tags = {"flywheel.stage": stage, "task": job.task.name, "metric": job.task.metric, "data": job.data.name,
            "teacher": job.teacher.model, "student": job.student.name}
    with open_run(uri=job.tracking.uri, experiment=job.tracking.experiment, artifacts=Path(job.tracking.artifacts),
                  name=name, tags=tags) as run:
        if stage == "train":
            run.compare(job.task.metric)
            if job.tracking.register is not None:
                run.check_register(job.tracking.register)
        config = recorded(cfg)
        run.params(config)
        _text(run, yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "config.yaml")
        yield run


def record_labels(run: Run, made: Labelled, task: TaskSpec) -> None:
    """Figures, files, data set and prompt of the labelling half."""
    from src.reporting import figures

    run.tags({"dataset_hash": made.dataset.hash, "prompt_hash": made.answers.prompt.hash,
              "annotator": made.answers.annotator})
    run.metrics(made.figures())
    for path in made.files:
        run.file(path)
    run.figure(figures.label_votes(made.outcome(), title="Where the labels stand", note=made.stand_ins), "labels")
    judged = made.gold_accuracy.items()
    _table(run, pd.DataFrame([{"annotator": who, "accuracy": i.value, "low": i.low, "high": i.high, "n": i.n}
                              for who, i in judged], columns=["annotator", "accuracy", "low", "high", "n"]),
           "annotators")
    for place, (who, matrix) in enumerate(made.gold_confusion.items(), start=1):
        counts = pd.DataFrame(matrix, columns=task.names)
        counts.insert(0, "truth", task.names)
        name = f"confusion_teacher{place if len(made.gold_confusion) > 1 else ''}_gold"
        _table(run, counts, name)
        run.figure(figures.confusion(matrix, task.names, title=f"Teacher's answers on gold: {who[:60]}",
                                     note=made.stand_ins), name)
    prompt = made.answers.prompt
    schema = json.dumps(prompt.schema, indent=1)
    registered = run.prompt(f"{task.name}-{task.version}", system=prompt.system, user=prompt.user,
                            schema=prompt.schema, digest=prompt.hash, template=task.user_prompt)
    run.tags({"prompt": registered} if registered else {})
    _text(run, f"SYSTEM\n{prompt.system}\n\nUSER\n{prompt.user}\n\nANSWER'S SCHEMA\n{schema}\n", "prompt.txt")
    parts = made.dataset.splits.sizes()
    rows = [{"item": item.key, "file": item.name, "split": part, "group": item.group or ""}
            for part in parts for item in getattr(made.dataset.splits, part)]
    run.dataset(pd.DataFrame(rows), name=made.dataset.name, source=str(made.dataset.root), digest=made.dataset.hash)
    run.metrics({f"data/{part}": float(size) for part, size in parts.items()})
    card = output_folder() / "datacard.md"
    card.write_text(datacard(made, task), encoding="utf-8")
    run.file(card)
    record_report(run, made)  # labels are worth one even where no student comes of them


def record_student(run: Run, student: "Distilled", judged: "Judged", calibrated: "Calibrated", made: Labelled,
                   job: Job) -> None:
    """Figures, pictures, files and the loadable model of the student half; the recipe's four files by their names."""
    record_predictions(run, student, judged)
    rows = record_calibration(run, calibrated, judged, job, made.stand_ins)
    run.metrics(student.figures())
    run.metrics(speed_figures(judged))
    record_judgements(run, judged, student.trained.classes, job.data.max_pixels, made.stand_ins)
    for path in (student.checkpoint, *([student.exported] if student.exported else [])):
        run.file(path)
    example = next(iter(judged.parts.values())).items[0]
    model = run.model(student.checkpoint, student.trained.classes, Path(example.payload).read_bytes(),
                      register=job.tracking.register)
    summary = output_folder() / "eval.json"
    summary.write_text(json.dumps(evaluation(run.id, judged, student, made, job), indent=2), encoding="utf-8")
    run.file(summary)
    record_report(run, made)
    rows = [*result_rows(judged, job.task.metric), *rows]
    rows.insert(0, ("agreement with the teacher (validation)",
                    f"{student.fitted.val_agreement:.3f}, n={len(student.validation)}"))
    if teacher := made.gold_accuracy.get(made.answers.annotator):
        rows.append(("the teacher's own accuracy on gold", str(teacher)))
    paid = " (rehearsed)" if made.rehearsed else ""
    rows.append(("cost of the labels", f"${made.answers.cost_usd:.4f}{paid}"))
    task, net = f"{job.task.name}, version {job.task.version}", f"{job.student.name} at {job.student.input_size} px"
    headline = _headline(judged, made, job)
    run.describe(notes.training(note=made.stand_ins, headline=headline, task=task, teacher=job.teacher.model,
                                student=net, figures=rows, links=run.links(model.address)))
    run.describe_model(model, notes.model(note=made.stand_ins, headline=headline, task=task, student=net,
                                            classes=student.trained.classes, run=run.id),
                       {"task": job.task.name, "student": job.student.name, "teacher": job.teacher.model,
                        "rehearsal": made.stand_ins or "no"})
    table(f"Results {made.stand_ins}".strip(), rows, ("what", "figure"))


def _headline(judged: "Judged", made: Labelled, job: Job) -> str:
    """The one figure that a run is opened for, and what it is to be held against."""
    part = "test" if "test" in judged.parts else next(iter(judged.parts))
    scores = judged.parts[part].scores
    own = scores.accuracy if job.task.metric == "accuracy" else scores.f1_macro
    text = f"{'Accuracy' if job.task.metric == 'accuracy' else 'Macro-F1'} {own} against truth ({part})"
    if teacher := made.gold_accuracy.get(made.answers.annotator):
        text += f"; the teacher's own accuracy is {teacher.value:.3f} (gold)"
    return text


def record_report(run: Run, made: Labelled) -> None:
    """`report.html`, of what lies in the output folder by now."""
    from src.reporting.findings import read_findings

    folder = output_folder()
    found = read_findings(folder, run=run.id, when=datetime.now(UTC), stand_ins=made.stand_ins, figures=made.figures(),
                          images=images_of(made.dataset.splits))
    run.file(_write_report(found, folder))


def report_again(uri: str, past: Kept, images: Mapping[str, Path], out: Path) -> Path:
    """The same for a run of earlier, with the certificates, replays and costs that there are of it by now; in the run
    it takes the place of the one before. Raises DataError and TrackingError."""
    from src.reporting.findings import COST, Replay, read_findings

    tables = [(one, one.folder / TABLES / "cascade.json") for one in
              about(uri, past.id, "flywheel.evaluates", (), TABLES, out / "evaluations")]
    replays = [Replay(one.id, one.when, pd.DataFrame(**json.loads(path.read_text(encoding="utf-8"))))
               for one, path in tables if path.exists()]
    costs = [path for one in about(uri, past.id, "flywheel.costs", (COST,), TABLES, out / "costs")
             if (path := one.folder / COST).exists()]
    found = read_findings(past.folder, run=past.id, when=past.when, cost=costs[0] if costs else None,
                          stand_ins=past.tags.get("rehearsal", "no").removeprefix("no"), figures=past.metrics,
                          certificates=[one for one, _ in certificates(uri, past.id, out)], replays=replays,
                          images=images)
    path = _write_report(found, out)
    keep(uri, past.id, path)
    return path


def refresh_report(uri: str, run_id: str, splits: Splits, out: Path) -> None:
    """Make the report of a training run again, now that more is known. What was found stands without it, so that it
    raises nothing."""
    from src.reporting.findings import FILES

    try:
        with reached(uri):
            path = report_again(uri, kept(uri, run_id, FILES, TABLES, out / "report"), images_of(splits), out)
        say(f"Report, with this in it: {path}  (and report.html in the MLflow run {run_id})")
    except (FlywheelError, OSError) as error:
        warn(f"The report was not made again: {error}")


def images_of(splits: Splits) -> dict[str, Path]:
    """Where the image of each item lies, by its key, but for those that certify: nobody is to look at these."""
    return {item.key: item.payload for part in (splits.choose, splits.pool, splits.test) for item in part
            if isinstance(item.payload, Path)}


def record_predictions(run: Run, student: "Distilled", judged: "Judged") -> None:
    """`predictions.csv`: what the student says about every item that it was chosen by or judged on. The target is the
    truth, and on validation the label, which is the teacher's."""
    classes = student.trained.classes
    parts = [("validation", student.validation, student.probabilities, student.labels)]
    parts += [(part, found.items, found.probabilities, found.truth) for part, found in judged.parts.items()]
    frames = []
    for part, items, probabilities, target in parts:
        frame = pd.DataFrame(probabilities.round(6), columns=[f"p_{name}" for name in classes])
        first = {"item": [item.key for item in items], "part": part, "target": [classes[n] for n in target],
                 "answer": [classes[n] for n in probabilities.argmax(axis=1)],
                 "confidence": probabilities.max(axis=1).round(6)}
        frames.append(pd.concat([pd.DataFrame(first), frame], axis=1))
    path = output_folder() / "predictions.csv"
    pd.concat(frames).to_csv(path, index=False)
    run.file(path)


def record_calibration(run: Run, calibrated: "Calibrated", judged: "Judged", job: Job,
                       note: str) -> list[tuple[str, str]]:
    """`calibration.json`, figures and diagrams of what calibration is worth, on the items it was fitted on and on test;
    returns rows for the console."""
    from src.calibration.calibrate import before_and_after
    from src.reporting import calibrations

    parts = {"gold, by folds": (calibrated.before, calibrated.after)}
    run.metrics(calibrated.figures())
    if test := judged.parts.get("test"):
        parts["test"] = before_and_after(calibrated.calibrator, test.probabilities, test.truth)
        before, after = parts["test"]
        run.metrics({**before.flat("calibration_test", "before"), **after.flat("calibration_test", "after")})
    document = {"format": 1, "run": run.id, "task": job.task.name, "task_version": job.task.version,
                "classes": job.task.names, "target_precision": job.calibration.target_precision, **calibrated.to_dict()}
    path = output_folder() / "calibration.json"
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    run.file(path)
    run.figure(calibrations.figure(parts, title="What confidence says, and what is found", note=note), "reliability")
    rows = [(f"calibration error (ECE; {part})", f"{before.ece:.3f} → {after.ece:.3f} "
             f"({calibrated.calibrator.method})") for part, (before, after) in parts.items()]
    target, threshold = job.calibration.target_precision, calibrated.provisional_threshold
    taken = "none reaches it" if threshold is None else \
        f"{threshold:.3f}, {(calibrated.confidence >= threshold).mean():.0%} of gold"
    rows.append((f"threshold for precision {target:g} on gold, provisional (src.certify promises one)", taken))
    return rows


def record_judgements(run: Run, judged: "Judged", classes: list[str], max_pixels: int, note: str) -> None:
    """Confusion, per-class table, mistakes and coverage of every part that was judged."""
    from src.reporting import figures

    for part, judgement in judged.parts.items():
        scores = judgement.scores
        run.metrics(scores.flat(part))
        # One figure for each class; precision, recall and support are in the table, for dozens of charts help nobody.
        run.metrics({f"{part}_f1/{row.name}": row.f1 for row in scores.per_class if not math.isnan(row.f1)})
        run.table(pd.DataFrame(scores.per_class), f"per_class_{part}")
        confusion = pd.DataFrame(scores.confusion, columns=classes)
        confusion.insert(0, "truth", classes)
        run.table(confusion, f"confusion_{part}")
        pictures = {
            "confusion": figures.confusion(scores.confusion, classes, title=f"Confusion, {part}", note=note),
            "per_class": figures.per_class(scores.per_class, title=f"By class, {part}", note=note),
            "coverage": figures.coverage_curve(
                judgement.probabilities.max(axis=1), judgement.probabilities.argmax(axis=1) == judgement.truth,
                title=f"Accuracy of what the student is surest of, {part}", note=note),
            "mistakes": _mistakes(judgement, classes, max_pixels, f"Surest mistakes, {part}", note),
        }
        for name, picture in pictures.items():
            if picture:
                run.figure(picture, f"{name}_{part}")


def speed_figures(judged: "Judged") -> dict[str, float]:
    speed = judged.speed
    return {"throughput/items_per_second": speed.items_per_second, "latency/p50_ms": speed.p50_ms,
            "latency/p95_ms": speed.p95_ms}


def result_rows(judged: "Judged", metric: str) -> list[tuple[str, str]]:
    """The task's own metric stands first."""
    rows = []
    for part, judgement in judged.parts.items():
        figures = [(f"accuracy against truth ({part})", str(judgement.scores.accuracy)),
                   (f"macro-F1 against truth ({part})", str(judgement.scores.f1_macro))]
        rows += figures if metric == "accuracy" else figures[::-1]
    speed = judged.speed
    rows.append((f"student's speed on {speed.device}", f"{speed.items_per_second:.0f} images/s in batches of "
                 f"{speed.batch_size}; one image {speed.p50_ms:.1f} ms (p95 {speed.p95_ms:.1f})"))
    return rows


def evaluation(run_id: str, judged: "Judged", student: "Distilled", made: Labelled, job: Job) -> dict[str, Any]:
    """`eval.json`: every figure of the run with its interval and n."""
    scored = {part: judgement.scores for part, judgement in judged.parts.items()}
    parts = {part: {"scores": scores.flat(part), "per_class": [row._asdict() for row in scores.per_class],
                    "confusion": scores.confusion.tolist()} for part, scores in scored.items()}
    found = {
        "run": run_id, "rehearsal": made.stand_ins or False,
        "task": job.task.name, "task_version": job.task.version, "metric": job.task.metric,
        "classes": job.task.names, "student": job.student.name, "input_size": job.student.input_size, "seed": job.seed,
        "dataset": {"name": made.dataset.name, "hash": made.dataset.hash, **made.dataset.splits.sizes()},
        "labels": {"annotator": made.answers.annotator, "prompt_hash": made.answers.prompt.hash, **made.figures()},
        "training": student.figures(), "parts": parts, "speed": asdict(judged.speed),
    }
    return {key: _without_nan(value) for key, value in found.items()}


def show_where(run: Run, job: Job) -> None:
    say(f"Files: {output_folder()}  (and in the MLflow run {run.id})")
    *_, beside = run.links("").values()
    if job.tracking.uri.startswith("sqlite"):
        say(f"Look at it: .venv/bin/mlflow ui --backend-store-uri {job.tracking.uri}")
        say(f"Beside other runs, once that is up: http://127.0.0.1:5000/{beside}")
    elif job.tracking.uri.startswith("http"):
        scheme, _, rest = job.tracking.uri.partition("://")
        say(f"Look at it, beside other runs: {scheme}://{rest.rsplit('@', 1)[-1].rstrip('/')}/{beside}")
    else:
        say(f"Look at it: {job.tracking.uri.rsplit('@', 1)[-1]}")
    where = keys_to_find(job.home, job.tracking.uri)
    say(f"Figures and pictures again: .venv/bin/python -m src.evaluate run={run.id}{where}")
    say(f"Promise how right its answers are: .venv/bin/python -m src.certify run={run.id}{where}")


def _write_report(found: "Findings", folder: Path) -> Path:
    from src.reporting.report import page

    path = folder / "report.html"
    path.write_text(page(found), encoding="utf-8")
    return path


def _text(run: Run, text: str, name: str) -> None:
    path = output_folder() / name
    path.write_text(text, encoding="utf-8")
    run.file(path)


def _table(run: Run, rows: pd.DataFrame, name: str) -> None:
    """In the run, and in the output folder as it lies there."""
    run.table(rows, name)
    path = output_folder() / TABLES / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(rows.to_json(orient="split", index=False), encoding="utf-8")


def _mistakes(judgement: "Judgement", classes: list[str], max_pixels: int, title: str, note: str) -> Any:
    """The mistakes that the student was surest of, or None where it made none."""
    from src.reporting import figures

    answers, confidence = judgement.probabilities.argmax(axis=1), judgement.probabilities.max(axis=1)
    wrong = sorted((n for n in range(len(answers)) if answers[n] != judgement.truth[n]), key=lambda n: -confidence[n])
    if not wrong:
        return None
    images: list[Image.Image] = [load(Path(judgement.items[n].payload), max_pixels) for n in wrong[:25]]
    wrong = wrong[:25]
    return figures.mistakes(images, [classes[judgement.truth[n]] for n in wrong], [classes[answers[n]] for n in wrong],
                            [float(confidence[n]) for n in wrong], title=title, note=note)


def _without_nan(value: Any) -> Any:
    """JSON has no nan: what is undefined is null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
