"""`datacard.md`: what a run's labels are, where they come from, how good they look, and what they are not good for."""

from collections import Counter
from datetime import UTC, datetime

from src.data.folder import NAMED
from src.labels import Labelled
from src.task import TaskSpec


def datacard(made: Labelled, task: TaskSpec) -> str:
    """The page as Markdown."""
    dataset, answers, splits = made.dataset, made.answers, made.dataset.splits
    truth = Counter(item.truth or "unknown" for item in splits.pool)
    accepted = Counter(label.label for label in made.labels if label.accepted)
    sources = Counter(label.source for label in made.labels if label.accepted)
    models = Counter((a.model or "not told", a.provider or "not told") for a in answers.annotations)
    lines = [
        f"# Datacard: {task.name}, version {task.version}",
        *([f"**{made.stand_ins}: no figure here describes a real teacher"
           + (" or real images" if dataset.drawn else "") + ".**"] if made.stand_ins else []),
        f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        "## Items",
        f"- Source: `{dataset.name}`, {dataset.root.name}; content and split hash `{dataset.hash[:16]}`",
        "- Splits: " + ", ".join(f"{name} {size}" for name, size in splits.sizes().items())
        + f"; {splits.moved} moved to keep groups and look-alikes on one side",
        f"- {dataset.duplicates} byte-identical files merged; {len(dataset.broken)} broken files set aside"
        + (": " + ", ".join(f"`{name}`" for name in list(dataset.broken)[:NAMED]) if dataset.broken else ""),
        "- Truth in the pool (never shown to the teacher): " + _counts(truth),
        "## Annotators",
        *(f"- `{source}`: {count} accepted labels" for source, count in sources.most_common()),
        "- Models that answered: "
        + "; ".join(f"{model} by {provider} ({n})" for (model, provider), n in models.items()),
        f"- Prompt `{answers.prompt.hash[:16]}`, in full in `prompt.txt`",
        f"- Cost of these annotations, all runs together: ${answers.cost_usd:.4f}"
        + (" as the stand-in reckons it; nothing was paid" if made.rehearsed else ""),
        "## Quality",
        *_quality(made),
        "- Accepted labels by class: " + _counts(accepted),
        "- How the labels ended: " + _counts(Counter(made.outcome())),
        "## Limits",
        "- Accepted means that the passes agree. Passes of one model share their errors, so agreement is not accuracy; "
        "the figures on gold are.",
        "- Items on which the passes disagree are missing from training, and they tend to be the hard ones.",
        "- Gold is a sample of the same source: on other pictures everything may be different.",
        "- Whether the provider's terms allow training on its model's answers was not checked here.",
    ]
    return "\n\n".join(block for block in _blocks(lines)) + "\n"


def _quality(made: Labelled) -> list[str]:
    rows = []
    for what, interval in (("teacher's first answer against gold's *choose* part", made.gold_accuracy),
                           ("accepted labels against gold's *choose* part", made.gold_accepted),
                           ("accepted labels against truth, whole pool", made.truth_accuracy)):
        if interval:
            rows.append(f"- Accuracy of the {what}: {interval} (95%)")
    if made.agreement:
        rows.append(f"- Agreement of passes: {made.agreement.mapped} as classes, {made.agreement.raw.value:.3f} as "
                    f"spelt; kappa {made.agreement.kappa:.3f}")
    return rows


def _counts(counts: Counter[str | None] | Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items(), key=lambda pair: str(pair[0])))


def _blocks(lines: list[str]) -> list[str]:
    """Paragraphs and lists: bullets that follow each other belong together."""
    blocks: list[str] = []
    for line in lines:
        if line.startswith("- ") and blocks and blocks[-1].startswith("- "):
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    return blocks
