"""The jobs of a sweep side by side: a table, a picture, and a page that links them; and which of them is best.

Knows nothing about where runs are kept. The best is chosen by agreement with the teacher on validation, or by accuracy
against truth on gold's *choose* part; test stands beside them and never chooses.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.errors import ConfigError
from src.metrics import Interval, proportion

if TYPE_CHECKING:  # takes memory while a million items are asked about
    import pandas as pd
    from matplotlib.figure import Figure

CHOICES = ("validation", "gold")  # what may choose
NONE = "–"
LISTED = 30  # jobs in the picture and on the page, which MLflow cuts at 8,000 characters; the table has them all
FAILURES = 8


@dataclass(frozen=True)
class Child:
    """One job. `values` are those of the swept keys; `failed` says why it failed, where it did. What was not measured
    is None; gold and test are in the task's own `metric`. Cost (in US dollars) and requests are what this job itself
    asked for; the time is in seconds. One that is `repeated` was given up, and another job has its values."""

    id: str
    name: str
    link: str
    status: str
    values: dict[str, str]
    metric: str
    agreement: Interval | None
    gold: Interval | None
    test: Interval | None
    cost_usd: float
    requests: int
    seconds: float
    failed: str = ""
    repeated: bool = False

    @property
    def became(self) -> str:
        return f"{self.status}, tried again" if self.repeated else self.status

    @property
    def told(self) -> str:
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items()) or self.name


def check_choice(by: str, key: str) -> str:
    """Raises ConfigError, naming `key`, for what may not choose: test, above all."""
    if by not in CHOICES:
        raise ConfigError(key, by, f"one of {', '.join(CHOICES)}; test never chooses")
    return by


def agreement(share: float | None, items: float | None) -> Interval | None:
    """With its interval, from the share of the validation items on which the student says what the teacher said."""
    return proportion(min(round(share * items), round(items)), round(items)) if share is not None and items else None


def score(child: Child, by: str) -> Interval | None:
    return child.agreement if by == "validation" else child.gold


def best(children: Sequence[Child], by: str) -> Child | None:
    """The finished job with the highest figure, of equals the first; None where none has it."""
    able = [child for child in children if child.status == "FINISHED" and score(child, by)]
    return max(able, key=lambda child: found.value if (found := score(child, by)) else 0.0, default=None)


def frame(children: Sequence[Child], chosen: Child | None) -> "pd.DataFrame":
    """A row for each job, the swept values first."""
    import pandas as pd

    keys = list(dict.fromkeys(key for child in children for key in child.values))
    rows = []
    for child in children:
        row: dict[str, object] = {key: child.values.get(key, "") for key in keys}
        row |= {"best": "best" if child is chosen else "", "status": child.became}
        for name, found in (("validation agreement", child.agreement), (f"gold {child.metric}", child.gold),
                            (f"test {child.metric}", child.test)):
            row |= {name: found.value, f"{name}, low": found.low, f"{name}, high": found.high, f"{name}, n": found.n} \
                if found else dict.fromkeys((name, f"{name}, low", f"{name}, high", f"{name}, n"))
        row |= {"cost_usd": child.cost_usd, "requests": child.requests, "seconds": round(child.seconds, 1),
                "failed": child.failed, "run": child.id}
        rows.append(row)
    return pd.DataFrame(rows)


def rows(children: Sequence[Child], chosen: Child | None) -> list[tuple[str, ...]]:
    """For the console: values, agreement on validation, accuracy on gold and on test, cost, seconds, what became of
    it."""
    return [(child.told, _short(child.agreement), _short(child.gold), _short(child.test), f"${child.cost_usd:.4f}",
             f"{child.seconds:.0f}", "best" if child is chosen else child.became) for child in children]


def statement(children: Sequence[Child], chosen: Child | None, by: str, lost: int = 0) -> str:
    """What came of the sweep, in a sentence or two; `lost` jobs left no run."""
    counted = [child for child in children if not child.repeated]
    failed = lost + sum(child.status != "FINISHED" for child in counted)
    text = f"{len(counted) + lost - failed} of {len(counted) + lost} jobs finished"
    text += f", {failed} did not. " if failed else ". "
    if lost:
        text += f"{lost} of them left no run: the sweep was stopped before, or a worker killed, as one is that takes " \
                "more memory than there is. What was labelled is kept: sweep the values again that are missing. "
    if again := len(children) - len(counted):
        text += f"{again} more died on the way and {'was' if again == 1 else 'were'} tried again. "
    if not chosen:
        return text + f"None has a figure on {by} to be chosen by."
    return text + f"Best by {by}: {chosen.told} ({score(chosen, by)}), beside it on test {_short(chosen.test)}."


def page(children: Sequence[Child], chosen: Child | None, by: str, note: str, lost: int = 0) -> str:
    """Markdown: what came of it, and a table that links the jobs, best first; `lost` jobs left no run."""
    metric = children[0].metric if children else "accuracy"
    lines = [f"**{note}**\n"] if note else []
    lines += [statement(children, chosen, by, lost), "", f"| job | validation agreement | gold {metric} | test "
              f"{metric} | cost | seconds | |", "|---|---|---|---|---|---|---|"]
    for child in _ranked(children, by)[:LISTED]:
        mark = "**best**" if child is chosen else "" if child.status == "FINISHED" else child.became
        title = f"[{_cell(child.told)}]({child.link})" if child.link else _cell(child.told)
        lines.append(f"| {title} | {_short(child.agreement)} | {_short(child.gold)} | {_short(child.test)} | "
                     f"${child.cost_usd:.4f} | {child.seconds:.0f} | {mark} |")
    lines += ["", f"Chosen by {by}; test never chooses. Table and picture: artifacts tables/sweep.json and "
              "figures/sweep.png."]
    if told := [f"- {_cell(child.told)}: {_cell(child.failed)[:160]}" for child in children if child.failed]:
        lines += ["", "Failed:", *told[:FAILURES], *([f"- and {len(told) - FAILURES} more"] if told[FAILURES:] else [])]
    return "\n".join(lines)


def figure(children: Sequence[Child], chosen: Child | None, by: str, *, title: str, note: str) -> "Figure":
    """Each job with its 95% intervals on validation and gold, best first, and a small mark for test; the best job is
    green."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from src.reporting.figures import BLUE, DPI, GREEN, GREY, INK, ORANGE, PALE, RED

    shown = [child for child in _ranked(children, by) if child.agreement or child.gold][:LISTED]
    head = [*textwrap.wrap(note, 95), *textwrap.wrap(title, 95)]
    drawn = Figure(figsize=(10, 1.5 + 0.45 * max(1, len(shown)) + 0.22 * len(head)), dpi=DPI, facecolor="white",
                   layout="constrained")
    drawn.suptitle("\n".join(head).replace("$", r"\$"), x=0.01, ha="left", size=12, color=RED if note else INK)
    axes = drawn.subplots()
    for y, child in enumerate(shown):
        colour = GREEN if child is chosen else BLUE
        for found, shift, shade in ((child.agreement, -0.14, colour), (child.gold, 0.14, ORANGE)):
            if found:
                axes.errorbar(found.value, y + shift, xerr=[[found.value - found.low], [found.high - found.value]],
                              fmt="o", color=shade, ms=5, lw=1.5)
        if child.test:
            axes.plot(child.test.value, y, "|", color=GREY, ms=9)
    axes.set_yticks(range(len(shown)), [child.told.replace("$", r"\$")[:60] for child in shown])
    axes.set_ylim(max(1, len(shown)) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("upper: agreement with the teacher on validation · orange: accuracy on gold, 95% intervals · "
                    "grey mark: test, which never chooses", color=GREY, size=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
    axes.grid(axis="x", color=PALE, lw=0.6)
    axes.set_axisbelow(True)
    return drawn


def _ranked(children: Sequence[Child], by: str) -> list[Child]:
    return sorted(children, key=lambda child: -found.value if (found := score(child, by)) else 1.0)


def _short(interval: Interval | None) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]" if interval else NONE


def _cell(text: str) -> str:
    """The text within a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
