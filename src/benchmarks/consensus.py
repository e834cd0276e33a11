"""What several opinions make of a label, at equal spend: a study with simulated teachers.

It buys labels for scikit-learn's handwritten digits in several ways and sweeps the share of errors that all teachers
and passes have in common. The rehearsal's own error model answers, without HTTP; the project's own quality room
concludes. So it tells which way of buying opinions pays, not how good any real teacher is. Three things to keep in
mind: items cost nothing here, answers do; the student is linear, and bears mistakes well; and which items are hard does
not depend on their looks, so that it finds nearly all mistakes, which flatters whatever leans on it. `recorded` has a
real LLM's mistakes.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from omegaconf import OmegaConf
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB

from src.benchmarks import recorded
from src.config import CONF
from src.console import progress, say, table
from src.errors import DataError
from src.labeling.error_model import ErrorModel, StandInTeacher
from src.metrics import Floats, Interval, Ints
from src.quality.agreement import label_accuracy
from src.quality.conclude import conclude, to_learn
from src.quality.confidence import OutOfFold
from src.quality.spec import QualitySpec
from src.quality.suspects import suspects
from src.reporting.figures import DPI, GREY, INK, PALE, RED
from src.task import SECOND_LOOK, Annotation, Item, Label, Panel, TaskSpec

POOL = 1200  # of the 1,797 digits; the others judge the students
FOLDS = 5
# Assumptions. The cheap teachers together, and the outer two, err as often as the one that is asked alone.
ALONE, GOOD, POOR, STRONG = "alone", "good", "poor", "stronger"
ERROR_RATES = {ALONE: 0.15, GOOD: 0.10, POOR: 0.20, STRONG: 0.05}
# In cheap answers: about what lies between the small and the large model of one provider.
STRONGER_PRICE = 5
CHEAP_USD = 0.0004  # an answer in the published run: 1,499 labels for $0.60
SECOND_LOOKS_SPEND = 1 / 3  # of all that is spent, where the stronger one looks at suspicious labels


@dataclass(frozen=True)
class Bought:
    """The labels of the first `items` of the pool, what they cost in US dollars, and what students make of those on
    which opinions differ (`quality.disagreements`)."""

    items: int
    labels: list[Label]
    cost_usd: float
    disagreements: str = "drop"


@dataclass(frozen=True)
class Outcome:
    """One way of buying labels, at one share of common errors and with one seed. Accuracies are against truth: that of
    the accepted labels, and on other digits that of the `student` that learns from them as the project's own would.
    `softness` is how much better it is with probabilities for the accepted labels on which opinions differ than with
    classes alone, whichever of the two it does."""

    items: int
    coverage: float
    accuracy: float
    student: float
    softness: float
    cost_usd: float


Results = dict[float, dict[str, list[Outcome]]]  # by share of common errors and way of buying, one for each seed


class Crowd:
    """Digits with known truth and simulated teachers, which answer for a price.

    `seed` draws which digits are the pool and what is answered. Of each teacher's errors, the share `common` is the
    same in all passes and for all teachers who err as often; the others are drawn anew in each pass.
    """

    def __init__(self, *, common: float, seed: int) -> None:
        self._pixels, self._digits, self.task, self.quality = _material()
        order = np.random.default_rng(seed).permutation(len(self._digits))
        self._rest = order[POOL:]
        self.items = [Item(f"digit-{n:04d}", "", "", truth=self.task.names[self._digits[n]]) for n in order[:POOL]]
        self._place = {item.key: n for item, n in zip(self.items, order[:POOL].tolist(), strict=True)}
        self._seed = seed
        self._teachers = {
            name: StandInTeacher(self.task, replace(_error_model(), seed=seed, teacher=place, error_rate=rate,
                                                    shared_errors=common, common_errors=1.0))
            for place, (name, rate) in enumerate(ERROR_RATES.items())
        }

    def ask(self, who: str, items: Sequence[Item], pass_index: int = 0) -> list[Annotation]:
        teacher, price = self._teachers[who], CHEAP_USD * (STRONGER_PRICE if who == STRONG else 1)
        return [Annotation(item.key, who, "", self.task.name, pass_index, cost_usd=price, label=teacher.label(
            item.key, str(item.truth), f"{item.key}-{pass_index}-{who}")) for item in items]

    def conclude(self, items: Sequence[Item], annotations: Sequence[Annotation], panel: Panel, *,
                 consensus: str = "agreement", disagreements: str = "drop",
                 student: OutOfFold | None = None) -> list[Label]:
        spec = replace(self.quality, consensus=consensus, disagreements=disagreements)
        return conclude(items, annotations, task=self.task, panel=panel, spec=spec, truths={}, out_of_fold=student)

    def out_of_fold(self, labels: Sequence[Label]) -> OutOfFold:
        """Every label's item → [C] probabilities of a student that learned from the other folds' accepted labels."""
        fold = np.random.default_rng(self._seed).permutation(len(labels)) % FOLDS
        found = np.zeros((len(labels), len(self.task.names)))
        for n in range(FOLDS):
            fitted = self._student([label for label, k in zip(labels, fold, strict=True) if k != n and label.accepted])
            found[np.ix_(fold == n, fitted.classes_)] = fitted.predict_proba(self._seen(labels)[fold == n])
        return dict(zip((label.item for label in labels), found, strict=True))

    def judge(self, bought: Bought) -> Outcome:
        accepted = [label for label in bought.labels if label.accepted]
        accuracy = label_accuracy(accepted, {item.key: str(item.truth) for item in self.items})
        if accuracy is None:
            raise DataError("No label was accepted, so nothing can be learned: raise spend.")
        soft, hard = (float(self._student(accepted, disagreements).score(
            self._pixels[self._rest], self._digits[self._rest])) for disagreements in ("soft", "drop"))
        return Outcome(bought.items, len(accepted) / bought.items, accuracy.value,
                       soft if bought.disagreements == "soft" else hard, soft - hard, bought.cost_usd)

    def _seen(self, labels: Sequence[Label]) -> Floats:
        return self._pixels[[self._place[label.item] for label in labels]]

    def _student(self, labels: Sequence[Label], disagreements: str = "drop") -> LogisticRegression:
        """Linear, on 64 pixels. A tolerance ten times the usual costs no accuracy here, and half of the time is saved.
        """
        names = self.task.names
        labels = to_learn(labels, replace(self.quality, disagreements=disagreements))
        said = np.array([label.distribution or [float(name == label.label) for name in names] for label in labels])
        # A probability for each class becomes a row for each class, weighted by it: the loss is the same.
        row, column = np.nonzero(said > 1e-6)
        return LogisticRegression(max_iter=1000, tol=1e-3).fit(
            self._seen(labels)[row], column, sample_weight=said[row, column])


# The ways of buying: each gets the crowd and how many cheap answers may be paid for.


def one_pass(crowd: Crowd, spend: int) -> Bought:
    return _panel(crowd, spend, (ALONE,), 1)


def two_passes(crowd: Crowd, spend: int) -> Bought:
    return _panel(crowd, spend, (ALONE,), 2)


def two_passes_soft(crowd: Crowd, spend: int) -> Bought:
    return _panel(crowd, spend, (ALONE,), 2, disagreements="soft")


def majority(crowd: Crowd, spend: int) -> Bought:
    return _panel(crowd, spend, (ALONE, GOOD, POOR), 1, consensus="majority")


def dawid_skene(crowd: Crowd, spend: int) -> Bought:
    return _panel(crowd, spend, (ALONE, GOOD, POOR), 1, consensus="dawid_skene")


def stronger_alone(crowd: Crowd, spend: int) -> Bought:
    return _panel(crowd, spend // STRONGER_PRICE, (STRONG,), 1)


def arbiter(crowd: Crowd, spend: int) -> Bought:
    """Two cheap teachers item by item, and the stronger one where they differ, until the spend is used up."""
    asked: list[Annotation] = []
    left, items = spend, 0
    for item in crowd.items:
        given = crowd.ask(GOOD, [item]) + crowd.ask(POOR, [item])
        differ = given[0].label != given[1].label
        price = 2 + STRONGER_PRICE * differ
        if price > left:
            break
        asked += given + (crowd.ask(STRONG, [item]) if differ else [])
        left, items = left - price, items + 1
    labels = crowd.conclude(crowd.items[:items], asked, Panel((GOOD, POOR), 1, STRONG))
    return _bought(items, labels, asked)


def second_looks(crowd: Crowd, spend: int) -> Bought:
    """Labels that the stronger one contradicts are dropped."""
    return _second_looks(crowd, spend, (ALONE,), "agreement")


def crowdlab_one(crowd: Crowd, spend: int) -> Bought:
    return _second_looks(crowd, spend, (ALONE,), "crowdlab")


def crowdlab_two(crowd: Crowd, spend: int) -> Bought:
    return _second_looks(crowd, spend, (GOOD, POOR), "crowdlab")


ARMS: dict[str, Callable[[Crowd, int], Bought]] = {
    "one pass": one_pass,
    "two passes, agreement": two_passes,
    "two passes, disagreements soft": two_passes_soft,
    "three teachers, majority": majority,
    "three teachers, Dawid-Skene": dawid_skene,
    "two teachers, arbiter": arbiter,
    "one pass, re-asked, agreement": second_looks,
    "one pass, re-asked, CROWDLAB": crowdlab_one,
    "two teachers, re-asked, CROWDLAB": crowdlab_two,
    "stronger teacher alone": stronger_alone,
}
BASE = "one pass"


def _panel(crowd: Crowd, spend: int, members: tuple[str, ...], passes: int, *, consensus: str = "agreement",
           disagreements: str = "drop") -> Bought:
    items = crowd.items[: spend // (len(members) * passes)]
    asked = [a for who in members for n in range(passes) for a in crowd.ask(who, items, n)]
    labels = crowd.conclude(items, asked, Panel(members, passes), consensus=consensus, disagreements=disagreements)
    return _bought(len(items), labels, asked, disagreements)


def _second_looks(crowd: Crowd, spend: int, members: tuple[str, ...], consensus: str) -> Bought:
    """Every label is judged by a student that did not learn from it, and the stronger teacher looks at those that it
    doubts most: the steps of a labelling run, which would ask it as well where two teachers differ."""
    looks = math.floor(spend * SECOND_LOOKS_SPEND / STRONGER_PRICE)
    items = crowd.items[: (spend - looks * STRONGER_PRICE) // len(members)]
    asked = [a for who in members for a in crowd.ask(who, items)]
    panel = Panel(members, 1, STRONG, second_looks=1)
    student = crowd.out_of_fold(crowd.conclude(items, asked, panel, consensus="majority"))
    first = crowd.conclude(items, asked, panel, consensus=consensus, student=student)
    doubted = {label.item for label in suspects(first, gold={}, names=crowd.task.names, out_of_fold=student)[:looks]}
    asked += crowd.ask(STRONG, [item for item in items if item.key in doubted], SECOND_LOOK)
    return _bought(len(items), crowd.conclude(items, asked, panel, consensus=consensus, student=student), asked)


def _bought(items: int, labels: list[Label], asked: Sequence[Annotation], disagreements: str = "drop") -> Bought:
    return Bought(items, labels, sum(a.cost_usd for a in asked), disagreements)


# The study


def run(*, spend: int, shares: Sequence[float], seeds: int, reviews: Path | None, out: Path,
        chart: Path | None) -> None:
    """Print one table for each share of common errors, what they say in words, and where the chart is: below `out`, and
    in `chart` where one is named; then the recorded answers of the file `reviews`."""
    say(f"Simulated teachers, real digits. Spend: {spend} answers of a cheap teacher (${spend * CHEAP_USD:.2f}), whose "
        f"error rate is {ERROR_RATES[ALONE]:.2f}; one answer of the stronger teacher ({ERROR_RATES[STRONG]:.2f}) costs "
        f"as much as {STRONGER_PRICE}. Figures in percent: means over {seeds} seeds ± half their 95% interval.")
    results = study(spend=spend, shares=shares, seeds=seeds)
    for share, by_arm in results.items():
        table(f"SIMULATED: {share:.0%} of errors common to all teachers and passes", _rows(by_arm), HEADER)
    say("In words, where “surely” means that the 95% interval of that one comparison, seed by seed, leaves zero out:")
    for line in findings(results):
        say(line)
    picture = figure(results, spend=spend)
    for path in filter(None, (out / "consensus.png", chart)):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path)
        say(f"Chart: {path}")
    if reviews is None:
        say("Recorded answers of a real LLM: skipped; reviews=FILE names a CSV file with text, gold and llm_label.")
    else:
        recorded.run(reviews, _material()[3])


def study(*, spend: int, shares: Sequence[float], seeds: int) -> Results:
    results: Results = {share: {arm: [] for arm in ARMS} for share in shares}
    with progress("buying labels", len(shares) * seeds) as update:
        for n, (share, seed) in enumerate(((share, seed) for share in shares for seed in range(seeds)), start=1):
            crowd = Crowd(common=share, seed=seed)
            for arm, buy in ARMS.items():
                results[share][arm].append(crowd.judge(buy(crowd, spend)))
            update(n)
    return results


HEADER = ("bought", "items", "coverage", "labels right", "student", "less one pass's", "soft less hard", "cost")


def _rows(by_arm: dict[str, list[Outcome]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for arm, found in by_arm.items():
        items, coverage, cost = (statistics.fmean(figure) for figure in zip(
            *((o.items, o.coverage, o.cost_usd) for o in found), strict=True))
        rows.append((arm, f"{items:.0f}", f"{100 * coverage:.1f}", _percent(mean([o.accuracy for o in found])),
                     _percent(mean([o.student for o in found])),
                     "" if arm == BASE else _percent(gain(by_arm, arm), "+"), _percent(softness(found), "+"),
                     f"${cost:.2f}"))
    return rows


def mean(values: Sequence[float]) -> Interval:
    """The mean with its 95% interval (Student's t)."""
    n, centre = len(values), statistics.fmean(values)
    half = float(student_t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(centre, centre - half, centre + half, n)


def gain(by_arm: dict[str, list[Outcome]], arm: str) -> Interval:
    """How much better the student is than that of one pass: seed by seed, since they share digits and teachers."""
    return mean([o.student - b.student for o, b in zip(by_arm[arm], by_arm[BASE], strict=True)])


def softness(found: Sequence[Outcome]) -> Interval:
    """How much better students are for learning from probabilities where opinions differ."""
    return mean([o.softness for o in found])


def findings(results: Results) -> list[str]:
    """In words: which labels are best, and which students surely better or worse than that of one pass and than with
    hard labels, each comparison by itself."""
    lines = []
    for share, by_arm in results.items():
        accuracy = {arm: statistics.fmean(o.accuracy for o in found) for arm, found in by_arm.items()}
        best = max(accuracy, key=lambda arm: accuracy[arm])
        gains = {arm: gain(by_arm, arm) for arm in by_arm if arm != BASE}
        lines.append(f"{share:.0%} common: labels are best by “{best}” ({accuracy[best]:.1%} right, {BASE} "
                     f"{accuracy[BASE]:.1%}). Students surely better than after one pass: {_above(gains)}; surely "
                     f"worse: {_below(gains)}. Students surely better for soft labels: "
                     f"{_above(soft := {arm: softness(found) for arm, found in by_arm.items()})}; surely worse: "
                     f"{_below(soft)}.")
    return lines


def _above(gains: dict[str, Interval]) -> str:
    return _listed(arm for arm, gained in gains.items() if gained.low > 0)


def _below(gains: dict[str, Interval]) -> str:
    return _listed(arm for arm, gained in gains.items() if gained.high < 0)


def _listed(arms: Iterable[str]) -> str:
    return ", ".join(f"“{arm}”" for arm in arms) or "none"


def figure(results: Results, *, spend: int) -> Figure:
    """Two panels over the share of common errors, a line for each way of buying; bars are 95% intervals over seeds."""
    drawn = Figure(figsize=(11, 6.4), dpi=DPI, facecolor="white", layout="constrained")
    seeds = min(len(found) for by_arm in results.values() for found in by_arm.values())
    title = f"Simulated teachers: what the price of {spend} answers buys (means of {seeds} draws, 95% intervals)"
    drawn.suptitle(title, x=0.01, ha="left", size=13, color=INK)
    panels = drawn.subplots(1, 2)
    shares = np.array(sorted(results))
    for axes, kind, title in zip(panels, ("accuracy", "student"),
                                 ("accepted labels that are right", "test accuracy of the student"), strict=True):
        for place, arm in enumerate(ARMS):
            points = [mean([getattr(o, kind) for o in results[share][arm]]) for share in shares]
            # Side by side, or the bars would hide each other.
            where = shares + (place - (len(ARMS) - 1) / 2) * 0.004
            colour, marker = LINES[place]
            axes.errorbar(where, [p.value for p in points], [p.value - p.low for p in points], color=colour,
                          marker=marker, ms=5, lw=1.5, elinewidth=0.7, label=arm)
        axes.set_title(title, loc="left", size=10.5, color=INK)
        axes.set_xlabel("share of errors common to all teachers and passes", color=GREY)
        axes.set_xticks(shares)
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(PALE)
        axes.tick_params(length=0, labelcolor=INK, labelsize=9)
        axes.grid(axis="y", color=PALE, lw=0.6)
    handles, names = panels[0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    return drawn


# The palette of Okabe and Ito (2008); what it has too few colours for is told by the marker.
LINES = (("#000000", "o"), ("#0072B2", "v"), ("#56B4E9", "^"), ("#E69F00", "s"), ("#F0C000", "D"), ("#009E73", "P"),
         (RED, "*"), ("#CC79A7", "<"), ("#7A4B8C", ">"), (GREY, "x"))


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.value:{sign}.1f} ± {100 * (interval.high - interval.value):.1f}"


@cache
def _material() -> tuple[Floats, Ints, TaskSpec, QualitySpec]:
    """Pixels [N, 64] in [0, 1], classes [N], and the task, whose teachers take for each other what looks alike: what
    naive Bayes takes for each other."""
    pixels, digits = load_digits(return_X_y=True)
    confused = confusion_matrix(digits, cross_val_predict(GaussianNB(), pixels, digits, cv=FOLDS))
    task = TaskSpec(**_config("task", "digits"))
    return (pixels / 16, digits, replace(task, confusion=dict(zip(task.names, confused.tolist(), strict=True))),
            replace(QualitySpec(**_config("quality", "default")), heuristics="off"))


def _error_model() -> ErrorModel:
    return ErrorModel(**_config("rehearsal/errors", "none"))


@cache
def _config(group: str, name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(Path(CONF, group, f"{name}.yaml")), resolve=True)
