"""What filters and audits do to labels, on answers that a real LLM once gave about texts whose truth is known.

There is one answer an item and no confidence, so what can be filtered is what a student doubts, and people who are said
to look at labels answer the truth. Asks nobody.
"""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from src.console import say, table
from src.errors import DataError
from src.metrics import Interval
from src.quality.agreement import label_accuracy, teacher_accuracy
from src.quality.conclude import HUMAN, conclude
from src.quality.spec import QualitySpec
from src.quality.spot_checks import audit, sample
from src.quality.suspects import suspects
from src.task import Annotation, Failure, Item, Label, Panel, TaskSpec

DROPPED = (0.05, 0.1, 0.2)
AUDITED = (200, 800)
GOLD_SIZE = 200
FOLDS = 5

HEADER = ("labels", "n", "coverage", "right", "what those looked at would say")


def run(path: Path, quality: QualitySpec) -> None:
    """Print what filters and audits do, and whether gold tells how right the LLM is."""
    recorded = Recorded(path, quality)
    table(f"RECORDED: a real LLM on the {len(recorded.items)} items of {path.name}", recorded.rows(), HEADER)
    covers = recorded.gold_covers(GOLD_SIZE, 1000, 0)
    say(f"The LLM is right on {recorded.accuracy} of what it answered. The 95% interval of {GOLD_SIZE} gold items, "
        f"drawn at random, holds that figure in {covers:.1%} of 1,000 draws.")


class Recorded:
    """One LLM's answers about texts with known truth, from a CSV file with `text`, `gold` and `llm_label` (empty where
    it gave none). There is one answer an item and no confidence, so what can be filtered is what a student doubts.

    Raises DataError where the file is another one.
    """

    annotator = "recorded"

    def __init__(self, path: Path, quality: QualitySpec) -> None:
        rows = _texts(path)
        names = sorted({row["gold"] for row in rows})
        self.task = TaskSpec(path.stem, 1, "classify", dict.fromkeys(names, ""), {}, "", "", "accuracy")
        self._quality = quality
        self.items = [Item(hashlib.sha256(row["text"].encode()).hexdigest(), row["text"], "", truth=row["gold"])
                      for row in rows]
        self.truths = {item.key: str(item.truth) for item in self.items}
        self.annotations = [
            Annotation(item.key, self.annotator, "", self.task.name, label=row["llm_label"] or None,
                       failure=None if row["llm_label"] else Failure.EMPTY)
            for item, row in zip(self.items, rows, strict=True)]
        self.labels = self.concluded([])
        self._annotation = {a.item: a for a in self.annotations}

    def concluded(self, reviewed: Sequence[Annotation]) -> list[Label]:
        return conclude(self.items, [*self.annotations, *reviewed], task=self.task,
                        panel=Panel((self.annotator,), 1), spec=self._quality, truths={})

    @property
    def accuracy(self) -> Interval:
        """Of all answers."""
        return teacher_accuracy(self.annotations, self.truths, self.task)[self.annotator]

    def gold_covers(self, size: int, draws: int, seed: int) -> float:
        """The share of draws of `size` gold items in which the interval of the teacher's accuracy holds that of all."""
        rng, true, held = np.random.default_rng(seed), self.accuracy.value, 0
        for _ in range(draws):
            gold = [self.items[n].key for n in rng.choice(len(self.items), size, replace=False)]
            found = teacher_accuracy([self._annotation[key] for key in gold],
                                     {key: self.truths[key] for key in gold}, self.task)[self.annotator]
            held += found.low <= true <= found.high
        return held / draws

    def suspects(self) -> list[Label]:
        """All labels, most suspicious first, by a student of words that learned from the LLM's other answers."""
        answered = [label for label in self.labels if label.accepted]
        text = {item.key: item.payload for item in self.items}
        student = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
                                LogisticRegression(C=5, max_iter=1000))
        found = cross_val_predict(student, [text[label.item] for label in answered],
                                  [self.task.names.index(str(label.label)) for label in answered], cv=FOLDS,
                                  method="predict_proba")
        return suspects(self.labels, gold={}, names=self.task.names,
                        out_of_fold=dict(zip((label.item for label in answered), found, strict=True)))

    def people(self, labels: Sequence[Label]) -> list[Annotation]:
        """What people who know the truth say of these."""
        return [Annotation(label.item, f"{HUMAN}study", "", self.task.name, label=self.truths[label.item])
                for label in labels]

    def right(self, labels: Sequence[Label]) -> Interval:
        found = label_accuracy(labels, self.truths)
        assert found is not None
        return found

    def corrected(self, looked_at: Sequence[Label]) -> Interval:
        """How right all labels are once people looked at these."""
        return self.right(self.concluded(self.people(looked_at)))

    def audited(self, looked_at: Sequence[Label], *, size: int, seed: int) -> Interval | None:
        """What those looked at say of all labels; None where they are not the `size` spot checks that `seed` draws."""
        found = audit(self.labels, self.people(looked_at), task=self.task, spot_checks=size, seed=seed)
        return found.accuracy if found else None

    def rows(self) -> list[tuple[str, ...]]:
        ranked, n = self.suspects(), len(self.items)

        def row(what: str, labels: Interval, told: str = "") -> tuple[str, ...]:
            return what, str(labels.n), f"{labels.n / n:.3f}", f"{labels.value:.4f}", told

        unusable = self.right([replace(label, accepted=True) for label in self.labels])
        rows = [row("every item, no answer counted as wrong", unusable),
                row("without items that got no answer", self.accuracy)]
        for share in DROPPED:
            rest = ranked[round(share * len(ranked)):]
            rows.append(row(f"… and without the {share:.0%} most suspicious", self.right(rest)))
        for size in AUDITED:
            drawn, doubted = sample(self.labels, size, 0), ranked[:size]
            rows.append(row(f"{size} at random looked at by people", self.corrected(drawn),
                            str(self.audited(drawn, size=size, seed=0))))
            rows.append(row(f"{size} most suspicious looked at by people", self.corrected(doubted),
                            f"{self.right(doubted)}: not an estimate"))
        return rows


def _texts(path: Path) -> list[dict[str, str]]:
    """The file's rows, each text once."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = {row.get("text", ""): row for row in csv.DictReader(lines, restval="")}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"reviews={str(path)!r} cannot be read as a UTF-8 CSV file: {error}") from error
    first = next(iter(rows.values()), {})
    if missing := [name for name in ("text", "gold", "llm_label") if name not in first]:
        raise DataError(f"reviews={str(path)!r} lacks the column {missing[0]!r}: text, gold and llm_label are needed.")
    return list(rows.values())
