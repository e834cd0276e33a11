"""The first half of every job: items in, labels out, everything re-used that exists.

`src.label` ends here, `src.train` goes on. Knows nothing about students or tracking, and imports no torch.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src.console import say, table, warn
from src.data.dataset import Dataset, open_dataset
from src.data.spec import DataSpec
from src.errors import QualityError
from src.labeling.ask import Answers, RehearsalSpec, ask, rehearses
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.metrics import Interval
from src.quality.agreement import Agreement, agreement, check_collapse, label_accuracy, teacher_accuracy
from src.quality.conclude import conclude
from src.quality.files import ReviewFile, write_labels
from src.quality.spec import QualitySpec
from src.store import Store
from src.task import Label, TaskSpec


@dataclass(frozen=True)
class Labelled:
    """The pool's labels, and how good they look. `gold_accuracy` is the teacher's first answers against truth on
    gold's *choose* part; `gold_accepted` that of the labels that were accepted there; `truth_accuracy` that of the
    accepted labels of the pool, known only where the whole pool's truth is. `files` are the two CSV files."""

    dataset: Dataset
    answers: Answers
    labels: list[Label]
    rehearsed: bool
    agreement: Agreement | None
    gold_accuracy: Interval | None
    gold_accepted: Interval | None
    truth_accuracy: Interval | None
    files: tuple[Path, ...]
    passes: int

    @property
    def stand_ins(self) -> str:
        """What of this was not real, or nothing."""
        parts = ["stand-in teacher"] * self.rehearsed + ["drawn images"] * self.dataset.drawn
        return f"REHEARSAL ({', '.join(parts)})" if parts else ""

    def outcome(self) -> dict[str, int]:
        """How many labels ended how: accepted, by a person, or why not."""
        found: dict[str, int] = {"accepted": 0}
        for label in self.labels:
            ending = "accepted" if label.accepted else label.reason.split(":")[0]
            ending = "accepted, by a person" if label.accepted and label.reason == "reviewed" else ending
            found[ending] = found.get(ending, 0) + 1
        return found

    def figures(self) -> dict[str, float]:
        """Under the names that runs are compared by."""
        asked, plan = self.answers.asked, self.answers.plan
        found = {
            "label/accepted": sum(label.accepted for label in self.labels),
            "label/failed": sum(label.reason.startswith("failed") for label in self.labels),
            "label/items": len(self.labels),
            "label/cost_usd": self.answers.cost_usd,
            "label/cost_usd_this_run": asked.cost_usd,
            "label/requests": asked.requests,
            "label/reused": plan.answered,
            **{f"label/outcome/{name}": float(count) for name, count in asked.outcomes.items()},
        }
        if asked.seconds:
            found["label/items_per_second"] = asked.answered / self.passes / asked.seconds
        intervals = {"label/gold_accuracy": self.gold_accuracy, "label/gold_accuracy_accepted": self.gold_accepted,
                     "label/truth_accuracy": self.truth_accuracy}
        if self.agreement:
            intervals |= {"label/agreement": self.agreement.raw, "label/mapped_agreement": self.agreement.mapped}
            found |= {"label/kappa": self.agreement.kappa, "label/spelt_as_class": self.agreement.spelt}
        for name, interval in intervals.items():
            if interval:
                found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high,
                          f"{name}_n": interval.n}
        return {name: float(value) for name, value in found.items() if not math.isnan(value)}


def make_labels(*, task: TaskSpec, data: DataSpec, teacher: Teacher, labeler: LabelerSpec, quality: QualitySpec,
                rehearsal: RehearsalSpec, home: Path, store: Store, out: Path, seed: int) -> Labelled:
    """Bring the data, import a person's edits, ask what was not asked yet, conclude, and write the two CSV files.

    With `labeler.dry_run`, nobody is asked and no file is written. Raises FlywheelError of every kind.
    """
    dataset = open_dataset(task, data, home=home, download=rehearsal.mode != "always",
                           stand_in=rehearsal.mode != "never")
    splits = dataset.splits
    # A dry run tells what the real teacher would be asked, and needs neither its key nor anybody's truth.
    dry = labeler.dry_run and rehearsal.mode != "always"
    rehearsed = not dry and rehearses(rehearsal.mode, teacher, drawn=dataset.drawn)
    if rehearsed:
        warn("REHEARSAL: a stand-in teacher on loopback answers. Nothing is paid, and no figure is a real one.")
    review = ReviewFile(home / "review" / task.name / "review_labels.csv", task, quality.reviewer)
    if not labeler.dry_run and (imported := review.import_edits(store)):
        say(f"Review: {imported} edit(s) imported from {review.path}")
    pool = splits.pool[: labeler.max_items]
    truths = {item.key: item.truth for item in pool if item.truth}
    gold_truths = {item.key: item.truth for item in splits.choose if item.truth}
    answers = ask(
        splits.choose, pool, task=task, teacher=teacher, how=data.shown, spec=labeler, store=store,
        errors=rehearsal.errors if rehearsed else None, max_pixels=data.max_pixels, seed=seed,
        check=partial(check_collapse, truths=gold_truths, task=task),
    )
    reviewed = review.annotations(store)
    known = {item.key: item for item in splits.pool}
    in_pool = {item.key for item in pool} | {a.item for a in reviewed if a.item in known}
    given = [*answers.annotations, *reviewed]
    labels = conclude([item for item in splits.pool if item.key in in_pool], given, task=task, passes=labeler.passes,
                      spec=quality)
    on_gold = conclude(splits.choose, answers.annotations, task=task, passes=labeler.passes, spec=quality)
    files: tuple[Path, ...] = ()
    if not labeler.dry_run:
        listed = out / "labels_llm.csv"
        write_labels(listed, labels, known)
        files = (listed, review.export(labels, known, store))
    judged_pool = all(item.truth for item in pool)
    made = Labelled(
        dataset, answers, labels, rehearsed, agreement(answers.annotations, task),
        teacher_accuracy(answers.annotations, gold_truths, task), label_accuracy(on_gold, gold_truths),
        label_accuracy(labels, truths) if judged_pool else None, files, labeler.passes,
    )
    if not labeler.dry_run:
        _show(made)
        if not any(label.accepted for label in labels):
            raise QualityError(f"None of {len(labels)} labels was accepted ({made.outcome()}). Lower "
                               "quality.min_confidence, or look at the file of labels: " + str(files[0]))
    return made


def _show(made: Labelled) -> None:
    rows = [("labels " + ending, str(count)) for ending, count in made.outcome().items()]
    if made.agreement:
        rows += [("agreement of passes, as spelt", str(made.agreement.raw)),
                 ("agreement of passes, as classes", str(made.agreement.mapped)),
                 ("kappa (chance-corrected)", f"{made.agreement.kappa:.3f}")]
    for name, interval in (("teacher's accuracy on gold", made.gold_accuracy),
                           ("accepted labels' accuracy on gold", made.gold_accepted)):
        if interval:
            rows.append((name, str(interval)))
    paid = " (rehearsed: nothing was paid)" if made.rehearsed else ""
    rows.append(("cost of these labels, all runs", f"${made.answers.cost_usd:.4f}{paid}"))
    rows.append(("requests in this run", str(made.answers.asked.requests)))
    failures = {name: n for name, n in made.answers.asked.outcomes.items() if name != "answered"}
    if failures:
        rows.append(("tries that brought no label", ", ".join(f"{name} {n}" for name, n in sorted(failures.items()))))
    table(f"Labels {made.stand_ins}".strip(), rows, ("what", "figure"))
    say(f"All labels: {made.files[0]}")
    say(f"To review: {made.files[1]}. Write a class into label_final; the next run imports it.")
