"""Judge the student of any training run again, and replay the cascade behind it: `python -m src.evaluate run=<id>`.

Figures and pictures go to a run of their own, which names the one it judged; that one stays as it was.
"""

from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.cascade.cases import cases, replies
from src.cascade.replay import asked as answered
from src.cascade.replay import compare, cost_curve, coverage_at, coverage_curve, escalation_table, replay, worth
from src.config import CONF, Evaluation, output_folder, read
from src.console import entry_point, say, table, warn
from src.data.folder import scan
from src.errors import DataError, TeacherError
from src.labeling.ask import Survey
from src.labeling.migrate import MIGRATED
from src.labeling.replay import RECORDED
from src.record import record_judgements, refresh_report, result_rows, speed_figures
from src.reopen import Past, reopen, student_of
from src.store import Store
from src.student.device import resolve
from src.student.images import decode
from src.student.judge import Judged, judge
from src.student.protocol import Student
from src.task import Annotation, Item
from src.tracking import Run, open_run
from src.trust import Trust, is_rehearsed, trusted


@hydra.main(config_path=CONF, config_name="evaluate", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Evaluation = read(cfg, Evaluation)
    device, out = resolve(asked.accelerator, "accelerator"), output_folder()
    past = reopen(asked.tracking.uri, asked.run, home=Path(asked.home), out=out)
    stored, job = past.stored, past.job
    if not past.same_items:
        warn("The items or their split are no longer those of that run: some may have been trained on.")
    items = items_of(past, asked)
    student = student_of(past, runtime=asked.runtime, dtype=asked.dtype, margin=asked.margin, device=device, out=out)
    tags = {"flywheel.stage": "evaluate", "flywheel.evaluates": stored.id, "task": job.task.name,
            "student": job.student.name, "runtime": student.runtime, "dtype": student.dtype,
            "rehearsal": past.note or "no"}
    with open_run(uri=asked.tracking.uri, experiment=stored.experiment, artifacts=Path(asked.tracking.artifacts),
                  name=f"again: {stored.name}", tags=tags) as run:
        judged = judge(student, past.dataset.splits, max_pixels=job.data.max_pixels, seed=job.seed)
        run.metrics(speed_figures(judged))
        record_judgements(run, judged, student.classes, job.data.max_pixels, past.note)
        table(f"{stored.name}, judged again {past.note}".strip(), result_rows(judged, job.task.metric),
              ("what", "figure"))
        gold = judged.parts["gold"]
        trust = trusted(past, student, gold.probabilities, gold.truth, cascade=asked.cascade,
                        target_precision=asked.target_precision, uri=asked.tracking.uri)
        if items:
            said = opinions(past, items, asked, run)
            record_cascade(run, past, student, judged, trust, items, said, asked)
        else:
            warn(f"No items in the {asked.part} part, so no cascade was replayed: part=gold, or items=FOLDER.")
    say(f"Pictures and tables: MLflow run {run.id}")
    refresh_report(asked.tracking.uri, stored.id, past.dataset.splits, out)


def items_of(past: Past, asked: Evaluation) -> list[Item]:
    """What the cascade is replayed on: nothing that the student learned from, was chosen by or is certified on."""
    splits, job = past.dataset.splits, past.job
    if asked.items is None:
        return [item for item in (splits.test if asked.part == "test" else splits.choose) if item.truth]
    folder = Path(asked.items).expanduser()
    if not folder.is_dir():
        raise DataError(f"items={asked.items!r} is not a folder. Name one that holds images of this task.")
    found = scan(folder, job.task, max_pixels=job.data.max_pixels, near_bits=None)
    seen = [item for part in (splits.pool, splits.choose, splits.certify) for item in part]
    keys, looks = {item.key for item in seen}, {item.twin for item in seen if item.twin}
    fresh = [item for item in [*found.train, *found.test] if item.key not in keys and item.twin not in looks]
    if left_out := len(found.train) + len(found.test) - len(fresh):
        say(f"{left_out} of {left_out + len(fresh)} images in {folder} are items that the run learned from or that "
            "gold holds; they are left out.")
    if not fresh:
        raise DataError(f"items={asked.items!r} holds no image that the run has not seen.")
    return fresh


def opinions(past: Past, items: list[Item], asked: Evaluation, run: Run) -> dict[str, list[Annotation]]:
    """By annotator, what is stored about these items and gold, after asking about what is missing if that is allowed.
    The run's own teacher stands first."""
    job = past.job
    rehearsed = is_rehearsed(past)
    asks = asked.ask == "always" or (asked.ask == "auto" and rehearsed)
    if rehearsed and (unknown := sum(item.truth is None for item in items)):
        warn(f"{unknown} of {len(items)} items have no known truth, and a stand-in teacher cannot answer about them.")
        items = [item for item in items if item.truth]
    spec = replace(job.labeler, passes=1, preflight=False, dry_run=not asks, max_cost_usd=asked.max_cost_usd)
    store = Store(job.store)
    survey = Survey(task=job.task, teachers=job.teachers, arbiter=None, how=job.data.shown, spec=spec, store=store,
                    rehearsal=job.rehearsal if rehearsed else None, max_pixels=job.data.max_pixels, seed=job.seed,
                    job=run.id)
    try:
        answers = survey.run(past.dataset.splits.choose, items, lambda _: None)
    except TeacherError as error:
        raise TeacherError(f"{error} Here the cap is max_cost_usd; ask=never replays what is answered.") from error
    finally:
        run.metrics(survey.figures())
        store.close()
    if unpriced := sum(a.job.startswith(MIGRATED) or a.provider == RECORDED for a in answers.annotations):
        warn(f"{unpriced} of {len(answers.annotations)} answers were carried over or recorded: what they would cost is "
             "not known, and counts as 0.")
    return {name: [a for a in answers.annotations if a.annotator == name] for name in answers.panel.members}


def record_cascade(run: Run, past: Past, student: Student, judged: Judged, trust: Trust, items: list[Item],
                   said: dict[str, list[Annotation]], asked: Evaluation) -> None:
    """Figures, tables and pictures of the cascade on these items, beside what each of its parts is worth alone."""
    from src.reporting import cascades

    job, names = past.job, student.classes
    if asked.items is None and asked.part == "gold":
        warn("Calibration and the usual threshold were picked on these very items, and look better than they are.")
    truths = {item.key: item.truth for item in past.dataset.splits.choose if item.truth}
    images = decode(items, student.input_size, sharpen=student.sharpen, max_pixels=job.data.max_pixels,
                    what="decoding what is replayed")
    probabilities = trust.probabilities(student.predict(images))
    replied = {who: replies(annotations, truths, job.task) for who, annotations in said.items()}
    teacher = next(iter(replied))
    everything = cases(items, probabilities, names, replied[teacher])
    usable = answered(everything)
    if not usable:
        way = "A stand-in needs their truth: class folders." if trust.rehearsed else \
            f"ask=always asks it, for {asked.max_cost_usd:g} US dollars (max_cost_usd) at the most."
        warn(f"The teacher has said nothing about these {len(items)} items, so no cascade was replayed. {way}")
        return
    if len(usable) < len(everything):
        warn(f"The teacher has answered about {len(usable)} of {len(everything)} items; the rest is left out."
             + ("" if trust.rehearsed else " ask=always asks about them."))
    rivals = {f"{model.model} ({who[-8:]})": replied[who]
              for who, model in zip(replied, job.teachers, strict=True) if who != teacher}
    compared = compare(usable, trust.policies, rivals, student_ms=judged.speed.p50_ms)
    policy = trust.policy
    outcomes = replay(usable, policy)
    found = worth(usable, outcomes, student_ms=judged.speed.p50_ms)
    threshold = {} if policy.threshold is None else {"cascade/threshold": policy.threshold}
    run.metrics({**found.flat(), **threshold})
    run.table(cascades.comparison_table(compared), "cascade")
    note, where = past.note, asked.items or asked.part
    run.figure(cascades.cost_accuracy(cost_curve(usable, policy), compared,
                                      title=f"{past.stored.name}: accuracy and cost ({where}, n={len(usable)})",
                                      note=note), "cost_accuracy")
    for by in ("answer", "truth"):
        rows = escalation_table(usable, outcomes, names, by=by)
        run.table(rows, f"escalations_by_{by}")
        run.figure(cascades.escalations(rows, by=by, title=f"Who answers, by class ({where})", note=note),
                   f"escalations_by_{by}")
    thresholds = [policy.threshold for policy in trust.policies.values()]
    marked = [coverage_at(usable, at) if at is not None else None for at in thresholds]
    run.figure(cascades.coverage_accuracy(coverage_curve(usable), target=trust.target, certified=marked[0],
                                          usual=marked[-1], name=trust.name, title=f"Accuracy by coverage ({where})",
                                          note=note), "coverage_accuracy")
    table(f"Cascade on {len(usable)} items ({where}) {note}".strip(), cascades.comparison_rows(compared),
          cascades.COLUMNS)
    say(f"{trust.statement} {note}".strip())


if __name__ == "__main__":
    main()
