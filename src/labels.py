"""The first half of every job: items in, labels out, everything re-used that exists.

`src.label` ends here, `src.train` goes on. Knows nothing about students, except that one may be asked what it thinks of
items it did not learn from, nor about tracking; imports no torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from src.console import say, table, warn
from src.data.dataset import Dataset, askable, open_dataset
from src.data.spec import DataSpec
from src.errors import ConfigError, QualityError
from src.labeling.ask import Answers, RehearsalSpec, Survey, rehearses
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.metrics import Interval
from src.quality.agreement import (
    Agreement,
    agreement,
    check_collapse,
    label_accuracy,
    teacher_accuracy,
    teacher_confusion,
)
from src.quality.conclude import conclude, to_learn
from src.quality.confidence import Reliability, reliability
from src.quality.gold_size import advice, needed_gold
from src.quality.labels_csv import write_labels
from src.quality.opinions import Independence, independence
from src.quality.refusals import ways_out
from src.quality.review_file import ReviewFile
from src.quality.reviewers import reviewer_agreement
from src.quality.spec import QualitySpec
from src.quality.spot_checks import Audit, audit
from src.quality.suspects import suspects
from src.store import Store
from src.task import Annotation, Item, Label, TaskSpec

OutOfFold = Callable[[Sequence[Item], Sequence[Label], Sequence[Item]], Mapping[str, npt.NDArray[np.float64]]]
Note = Callable[[Mapping[str, float]], None]
Tag = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True)
class Labelled:
    """The pool's labels, and how good they look.

    `gold_accuracy` holds by annotator how right its first answers are on gold's *choose* part, `gold_accepted` how
    right the labels are that were accepted there; `truth_accuracy` that of the accepted labels of the pool, known only
    where the whole pool's truth is. `audit` is what people found in spot checks, `reviewers` how often two of them
    agree. `unreviewed` are the labels as they would be without people. `suspects` were asked about once more.
    `enough_gold` is the size of all gold that would tell the teacher's accuracy closely enough, None where it does.
    """

    dataset: Dataset
    teachers: tuple[Teacher, ...]
    answers: Answers
    labels: list[Label]
    unreviewed: list[Label]
    rehearsed: bool
    agreement: Agreement | None
    independence: Independence
    gold_accuracy: Mapping[str, Interval]
    gold_confusion: Mapping[str, npt.NDArray[np.int64]]
    gold_accepted: Interval | None
    truth_accuracy: Interval | None
    reliability: Reliability | None
    audit: Audit | None
    reviewers: Interval | None
    enough_gold: int | None
    suspects: int
    files: tuple[Path, ...] = ()

    @property
    def stand_ins(self) -> str:
        """What of this was not real, or nothing."""
        return _stand_ins(self.rehearsed, self.dataset, self.teachers)

    def outcome(self) -> dict[str, int]:
        """How many labels ended how: accepted, by a person, or why not."""
        found: dict[str, int] = {"accepted": 0}
        for label in self.labels:
            ending = "accepted" if label.accepted else label.reason.split(":")[0]
            ending = "accepted, by a person" if label.accepted and label.reason == "reviewed" else ending
            soft = label.accepted and len({vote for vote in label.votes if vote}) > 1 and label.reason != "reviewed"
            ending = "accepted, though opinions differ" if soft else ending
            found[ending] = found.get(ending, 0) + 1
        return found

    def figures(self) -> dict[str, float]:
        """Under the names that runs are compared by."""
        asked = self.answers.asked
        found = {
            "label/accepted": sum(label.accepted for label in self.labels),
            "label/failed": sum(label.reason.startswith("failed") for label in self.labels),
            "label/items": len(self.labels),
            "label/cost_usd": self.answers.cost_usd,
            "label/cost_usd_this_run": asked.cost_usd,
            "label/requests": asked.requests,
            "label/reused": self.answers.answered,
            "label/second_looks": self.suspects,
            **{f"label/outcome/{name}": float(count) for name, count in asked.outcomes.items()},
        }
        if asked.seconds:
            found["label/items_per_second"] = asked.answered / self.answers.panel.passes / asked.seconds
        intervals = {"label/gold_accuracy": self.gold_accuracy.get(self.answers.annotator),
                     "label/gold_accuracy_accepted": self.gold_accepted, "label/truth_accuracy": self.truth_accuracy,
                     "label/effective_opinions": self.independence.effective,
                     "label/audit_accuracy": self.audit.accuracy if self.audit else None,
                     "label/reviewer_agreement": self.reviewers}
        for place, member in enumerate(self.answers.panel.members[1:], start=2):
            intervals[f"label/gold_accuracy_teacher{place}"] = self.gold_accuracy.get(member)
        if self.agreement:
            intervals |= {"label/agreement": self.agreement.raw, "label/mapped_agreement": self.agreement.mapped}
            found |= {"label/kappa": self.agreement.kappa, "label/alpha": self.agreement.alpha,
                      "label/spelt_as_class": self.agreement.spelt}
        if self.independence.correlation is not None:
            found["label/error_correlation"] = self.independence.correlation
        if self.reliability:
            found["label/probability_brier"] = self.reliability.calibrated.brier
            if not self.reliability.one_for_all:
                found["label/probability_ece"] = self.reliability.calibrated.ece
            if said := self.reliability.said:
                found |= {"label/confidence_mean": said.mean, "label/confidence_ece": said.ece,
                          "label/confidence_brier": said.brier}
        if self.enough_gold:
            found["label/gold_needed"] = self.enough_gold
        for name, interval in intervals.items():
            if interval:
                found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high,
                          f"{name}_n": interval.n}
        return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def make_labels(*, task: TaskSpec, data: DataSpec, teachers: Sequence[Teacher], arbiter: Teacher | None,
                labeler: LabelerSpec, quality: QualitySpec, rehearsal: RehearsalSpec, home: Path, store: Store,
                out: Path | None, seed: int, job: str = "", note: Note | None = None, tag: Tag | None = None,
                out_of_fold: OutOfFold | None = None) -> Labelled:
    """Bring the data, import a person's edits, ask what was not asked yet, conclude, and write the two CSV files.

    With `labeler.dry_run`, nobody is asked and no file is written; without `out`, labels are concluded from what is
    stored, and nothing is printed about them. `job` names who pays. `tag` gets what of this is a rehearsal before
    anybody is asked, `note` what was asked and paid where a run ends before its time. `out_of_fold(pool, labels, gold)`
    gives a student's class probabilities by item. Raises FlywheelError of every kind.
    """
    everybody = [*teachers, *([arbiter] if arbiter else [])]
    _check_student(quality, out_of_fold)
    dataset = open_dataset(task, data, home=home, download=rehearsal.mode != "always",
                           stand_in=rehearsal.mode != "never")
    # A dry run tells what the real teacher would be asked, and needs neither its key nor anybody's truth.
    dry = labeler.dry_run and rehearsal.mode != "always"
    rehearsed = not dry and rehearses(rehearsal.mode, everybody, drawn=dataset.drawn)
    dataset = askable(dataset, task, home=home, rehearsed=rehearsed)
    splits = dataset.splits
    asks = not labeler.dry_run and out is not None
    if tag:
        tag({"rehearsal": _stand_ins(rehearsed, dataset, everybody) or "no"})
    if rehearsed and asks:
        warn("REHEARSAL: a stand-in teacher on loopback answers. Nothing is paid, and no figure is a real one.")
    review = ReviewFile(home / "review" / task.name / "review_labels.csv", task, quality.reviewer)
    if asks and (imported := review.import_edits(store)):
        say(f"Review: {imported} edit(s) imported from {review.path}")
    pool = splits.pool[: labeler.max_items]
    gold_truths = {item.key: item.truth for item in splits.choose if item.truth}
    images = data.kind == "images"
    survey = Survey(
        task=task, teachers=teachers, arbiter=arbiter, how=data.shown if images else None,
        spec=labeler if asks else replace(labeler, dry_run=True), store=store,
        rehearsal=rehearsal if rehearsed else None, max_pixels=data.max_pixels, seed=seed, job=job,
        second_looks=quality.second_looks if quality.second_look_share else 0,
    )
    try:
        answers = survey.run(splits.choose, pool, partial(check_collapse, truths=gold_truths, task=task, images=images))
        by_people = review.annotations(store)
        known = {item.key: item for item in splits.pool}
        in_pool = {item.key for item in pool} | {a.item for a in by_people if a.item in known}
        concerned = [*splits.choose, *(item for item in splits.pool if item.key in in_pool)]

        def concluded(annotations: Sequence[Annotation], student: Mapping[str, npt.NDArray[np.float64]] | None = None,
                      spec: QualitySpec = quality, second_looks: int = survey.panel.second_looks) -> list[Label]:
            return conclude(concerned, annotations, task=task, panel=replace(survey.panel, second_looks=second_looks),
                            spec=spec, truths=gold_truths, out_of_fold=student)

        student, looked_at = None, 0
        if out_of_fold and asks and (quality.consensus == "crowdlab" or quality.second_look_share):
            first = concluded([*answers.annotations, *by_people], None, replace(quality, consensus="majority"), 0)
            labels = [label for label in first if label.item in known]
            student = out_of_fold([known[label.item] for label in labels], to_learn(labels, quality), splits.choose)
        if quality.second_look_share and asks:
            # Without the looks of earlier runs, or every run would find other items to look at.
            ranked = suspects(concluded([*answers.annotations, *by_people], student, second_looks=0), gold=gold_truths,
                              names=task.names, out_of_fold=student)
            doubtful = ranked[: math.ceil(quality.second_look_share * len(pool))]
            answers = survey.second_looks([known[label.item] for label in doubtful])
            looked_at = len(doubtful)
    except BaseException:
        if note and asks:
            note(survey.figures())
        raise
    everything = concluded([*answers.annotations, *by_people], student)
    labels = [label for label in everything if label.item in known]
    without_people = concluded(answers.annotations, student)
    on_gold = [label for label in without_people if label.item in gold_truths]
    judged = teacher_accuracy(answers.annotations, gold_truths, task, answers.panel)
    accuracy = judged.get(answers.annotator)
    truths = {item.key: item.truth for item in pool if item.truth}
    unreviewed = [label for label in without_people if label.item in known]
    made = Labelled(
        dataset=dataset, teachers=tuple(everybody), answers=answers, labels=to_learn(labels, quality),
        unreviewed=unreviewed,
        rehearsed=rehearsed, agreement=agreement(answers.annotations, task, answers.panel),
        independence=independence(answers.annotations, gold_truths, task, answers.panel, seed=seed),
        gold_accuracy=judged, gold_confusion=teacher_confusion(answers.annotations, gold_truths, task, answers.panel),
        gold_accepted=label_accuracy(on_gold, gold_truths),
        truth_accuracy=label_accuracy(labels, truths) if len(truths) == len(pool) else None,
        reliability=reliability(on_gold, gold_truths),
        audit=audit(unreviewed, by_people, task=task, spot_checks=quality.spot_checks, seed=data.split_seed),
        reviewers=reviewer_agreement(by_people, task),
        enough_gold=needed_gold(accuracy, len(gold_truths), quality.gold_half_width) if accuracy else None,
        suspects=looked_at,
    )
    if not asks or out is None:
        return made
    listed = out / "labels_llm.csv"
    write_labels(listed, labels, known)
    to_review = review.export(labels, known, store, unreviewed=unreviewed, spot_checks=quality.spot_checks,
                              seed=data.split_seed)
    made = replace(made, files=(listed, to_review))
    _show(made)
    if not any(label.accepted for label in labels):
        endings = ", ".join(f"{ending} {count}" for ending, count in made.outcome().items() if count)
        ways = ways_out(labels, on_gold, truths=gold_truths, spec=quality)
        raise QualityError(f"None of {len(labels)} labels was accepted ({endings}). {ways} All labels: {listed}")
    return made


def _stand_ins(rehearsed: bool, dataset: Dataset, teachers: Sequence[Teacher]) -> str:
    parts = ["stand-in teacher"] * rehearsed + ["drawn images"] * dataset.drawn
    recorded = any(teacher.answers for teacher in teachers)
    return f"REHEARSAL ({', '.join(parts)})" if parts else "recorded answers" if recorded else ""


def _check_student(quality: QualitySpec, out_of_fold: OutOfFold | None) -> None:
    if quality.consensus == "crowdlab" and out_of_fold is None:
        raise ConfigError("quality.consensus", "crowdlab", "a student's opinion is part of it, so python -m src.train, "
                          "with images; dawid_skene and majority do without")


def _show(made: Labelled) -> None:
    rows = [("labels " + ending, str(count)) for ending, count in made.outcome().items()]
    if made.agreement:
        rows += [("agreement of opinions, as spelt", str(made.agreement.raw)),
                 ("agreement of opinions, as classes", str(made.agreement.mapped)),
                 ("kappa, alpha (chance-corrected)", f"{made.agreement.kappa:.3f}, {made.agreement.alpha:.3f}")]
    if made.independence.asked > 1:
        effective = made.independence.effective
        rows.append((f"independent opinions, of {made.independence.asked}",
                     str(effective) if effective else f"unknown: {made.independence.reason}"))
    for who, interval in made.gold_accuracy.items():
        name = "teacher's" if len(made.gold_accuracy) == 1 else f"{who}:"
        alone = ", on what it was asked alone" if who == made.answers.panel.arbiter else ""
        rows.append((f"{name} accuracy on gold{alone}", str(interval)))
    if made.gold_accepted:
        rows.append(("accepted labels' accuracy on gold", str(made.gold_accepted)))
    if made.reliability:
        said, fitted = made.reliability.said, made.reliability.calibrated
        error = "one probability for all, split votes apart" if made.reliability.one_for_all else f"{fitted.ece:.3f}"
        rows.append(("calibration error of probabilities", error
                     + (f" (of confidence as said {said.ece:.3f})" if said else "")))
    if made.audit:
        rows.append((f"accepted labels' accuracy, {made.audit.accuracy.n} spot checks", str(made.audit.accuracy)))
    if made.reviewers:
        rows.append(("agreement of reviewers", str(made.reviewers)))
    if made.suspects:
        rows.append(("items looked at twice", str(made.suspects)))
    paid = " (rehearsed: nothing was paid)" if made.rehearsed else ""
    rows.append(("cost of these labels, all runs", f"${made.answers.cost_usd:.4f}{paid}"))
    rows.append(("cost of this run", f"${made.answers.asked.cost_usd:.4f}"))
    rows.append(("requests in this run", str(made.answers.asked.requests)))
    failures = {name: n for name, n in made.answers.asked.outcomes.items() if name != "answered"}
    if failures:
        rows.append(("what else came back", ", ".join(f"{name} {n}" for name, n in sorted(failures.items()))))
    table(f"Labels {made.stand_ins}".strip(), rows, ("what", "figure"))
    if made.enough_gold:
        say(f"Gold is small: {advice(made.enough_gold)} would bring the teacher's accuracy within "
            "quality.gold_half_width.")
    say(f"All labels: {made.files[0]}")
    say(f"To review: {made.files[1]}. Write a class into label_final; the next run imports it.")
