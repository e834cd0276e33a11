"""What stands at the head of a run's page in MLflow, in Markdown: the headline figures, and what the run belongs to.

Knows nothing about where runs are kept: links come as they are to be written.
"""

from collections.abc import Mapping, Sequence


def training(*, note: str, task: str, teacher: str, student: str, figures: Sequence[tuple[str, str]],
             links: Mapping[str, str]) -> str:
    """Of a training run. `figures` are rows of a name and what was found; `links` lead from words to addresses. `note`
    says what was not real, and stands first."""
    lines = [f"**{_cell(note)}**", ""] if note else []
    lines += [f"Task **{_cell(task)}**, labelled by {_cell(teacher)}, learned by {_cell(student)}.", "",
              "| what | figure |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(found)} |" for name, found in figures]
    if links:
        lines += ["", " · ".join(f"[{_cell(words)}]({address})" for words, address in links.items())]
    lines += ["", "`report.html` below Artifacts tells the whole of it."]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """The text within a Markdown table, and not as Markdown of its own."""
    for sign in "\\|*[]<":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
