"""A certificate and a plan for one in words, tables and a picture. Knows nothing about runs or files."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from src.calibration.certificate import Certificate
from src.calibration.gold_needed import CHANCE, errors_allowed, highest_target, needed_gold
from src.calibration.reliability import Reliability
from src.metrics import Bools, Floats, accepted_and_correct
from src.reporting.calibrations import diagram, style
from src.reporting.figures import BLUE, DPI, GREEN, GREY, INK, ORANGE, RED

ERROR_RATES = (0.005, 0.01, 0.02, 0.03, 0.05)
COVERAGES = (1.0, 0.7, 0.5)


def statement(certificate: Certificate) -> str:
    """What is promised, with all that stands behind it, or that nothing is and what would help."""
    sure = f"with confidence {1 - certificate.delta:.2%}"
    step = certificate.certified
    if step:
        what = f"what the student answers with a confidence of {step.threshold:.4f} or more" if step.threshold else \
            "everything that the student answers"
        return (f"Certified: at least {certificate.target:.1%} of {what} is right, against truth, {sure}. Behind it: "
                f"{step.errors} error(s) in {step.accepted} answers, so {step.lower_bound:.1%} or more; the share of "
                f"items that it answers: {certificate.coverage}.")
    first = certificate.steps[0]
    error_rate, coverage = certificate.shown
    told = (f"Not certified: a precision of {certificate.target:.1%} {sure}. The first threshold tested, "
            f"{first.threshold:.4f}, accepts {first.accepted} of {certificate.n} items with {first.errors} error(s), "
            f"which shows {first.lower_bound:.1%} or more. ")
    if certificate.gold_needed:
        return told + (f"At this error rate ({error_rate:.1%}, with half an error more for luck) and coverage "
                       f"({coverage:.0%}), {certificate.gold_needed} new gold items would certify it with a chance of "
                       f"{CHANCE:.0%}; more if these are among them, since they have been looked at.")
    return told + (f"At this error rate ({error_rate:.1%}) no amount of gold would: a better student is needed (more "
                   "or better labels), or a lower calibration.target_precision.")


def gold_rows(targets: Sequence[float], delta: float) -> list[tuple[str, ...]]:
    """How many gold items each target takes, by assumed error rate among the accepted items, for each coverage."""
    rates = [(target, rate) for target in targets for rate in (0.0, *ERROR_RATES) if rate < 1 - target - 1e-9]
    return [(f"{target:.1%}", f"{rate:.1%}", *(_needed(target, rate, coverage, delta) for coverage in COVERAGES))
            for target, rate in rates]


def allowed_rows(sizes: Sequence[int], targets: Sequence[float], delta: float) -> list[tuple[str, ...]]:
    """How many errors each size of gold allows, for each target, and the highest target that it can ever certify."""
    rows = []
    for size in sizes:
        n = size // 2
        cells = []
        for target in targets:
            accepted = [round(n * coverage) for coverage in COVERAGES]
            allowed = errors_allowed(np.array(accepted), target, delta)
            cells.append(", ".join(f"{most} of {of}" if most >= 0 else f"– of {of}"
                                   for most, of in zip(allowed.tolist(), accepted, strict=True)))
        rows.append((str(size), *cells, f"{highest_target(n, delta):.1%}"))
    return rows


def figure(certificate: Certificate, before: Reliability, after: Reliability, *, confidence: Floats, correct: Bools,
           title: str, note: str = "") -> Figure:
    """Two panels: what confidence says and what is found, before and after calibration; precision by coverage.

    The curve is of gold's *choose* part (`confidence`, `correct`: [N]). Of *certify*, nothing is drawn but the
    thresholds that were tested: whoever sees more of it may be led by it.
    """
    drawn = Figure(figsize=(11, 5.4), dpi=DPI, facecolor="white", layout="constrained")
    drawn.suptitle(f"{note}\n{title}".strip(), x=0.01, ha="left", size=13, color=RED if note else INK)
    left, right = drawn.subplots(1, 2)
    diagram(left, before, after, "choose")
    accepted, found = accepted_and_correct(confidence, correct)
    right.plot(accepted / accepted[-1], found / accepted, color=BLUE, lw=1.4, label=f"choose, n={accepted[-1]}")
    right.axhline(certificate.target, color=GREY, lw=1, ls=(0, (4, 3)), label=f"target {certificate.target:.1%}")
    for step in certificate.steps:
        if not step.accepted:
            continue
        precision = 1 - step.errors / step.accepted
        held = step == certificate.certified
        label = (f"certified threshold {step.threshold:.3f}" if held else None)
        right.errorbar(step.accepted / certificate.n, precision, [[precision - step.lower_bound], [0.0]], fmt="o",
                       color=GREEN if held else ORANGE if step.passed else RED, ms=7 if held else 4, lw=1, label=label,
                       zorder=4 if held else 3)
    if not certificate.certified:
        right.plot([], [], "o", color=RED, label="not certified")
    style(right, "share of items accepted", f"precision; dots: tested on certify, n={certificate.n}, and exact bounds")
    # Where the few surest items are wrong, the curve's first points would squeeze everything else under the ceiling.
    lows = [1 - step.errors / step.accepted for step in certificate.steps if step.accepted]
    settled = (found / accepted)[accepted >= max(5, accepted[-1] // 10)]
    right.set_ylim(max(0.0, min([certificate.target, *lows, *settled[:1]]) - 0.15), 1.01)
    right.legend(loc="lower left", frameon=False, fontsize=8.5)
    return drawn


def _needed(target: float, rate: float, coverage: float, delta: float) -> str:
    try:
        return str(needed_gold(target, rate, coverage, delta))
    except ValueError:
        return "too many"
