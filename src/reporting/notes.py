"""What stands at the head of a run's page in MLflow, in Markdown: the headline figures, and what the run belongs to.

Knows nothing about where runs are kept: links come as they are to be written.
"""

from collections.abc import Mapping, Sequence


def training(*, note: str, headline: str, task: str, teacher: str, student: str, figures: Sequence[tuple[str, str]],
             links: Mapping[str, str]) -> str:
    """Of a training run. `figures` are rows of a name and what was found; `links` lead from words to addresses. `note`
    says what was not real. The UI folds away all but the first lines: these hold the `headline` and the links."""
    first = [f"**{_cell(note)}**."] if note else []
    lines = [" ".join([*first, f"**{_cell(headline)}**."]), ""]
    lines += [" · ".join([*(f"[{_cell(words)}]({address})" for words, address in links.items()),
                          "`report.html` below Artifacts"]), "",
              f"Task {_cell(task)}, labelled by {_cell(teacher)}, learned by {_cell(student)}.", "",
              "| what | figure |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(found)} |" for name, found in figures]
    lines += ["", "Curves go by epoch; the last point of val/loss and of val/teacher_agreement is the student that was "
                  "kept."]
    return "\n".join(lines)


def model(*, note: str, headline: str, task: str, student: str, classes: Sequence[str], run: str) -> str:
    """Of a model; `run` is the id of the training run. Plain words first: the registry's lists show no Markdown."""
    first = f"{note}. {headline}." if note else f"{headline}."
    return "\n".join([first, "", f"{_cell(student)}, for the task {_cell(task)}.", "",
                      f"Takes a column `image` of encoded images; answers with one of {_cell(', '.join(classes))}, its "
                      "confidence, and a probability for each class. Nothing is promised of its answers before "
                      f"`python -m src.certify run={run}`."])


def _cell(text: str) -> str:
    """The text within a Markdown table, and not as Markdown of its own."""
    for sign in "\\|*[]<":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
