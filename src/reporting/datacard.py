"""`datacard.md`: what a run's labels are, where they come from, how good they look, and what they are not good for."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from src.data.folder import NAMED
from src.labeling.migrate import MIGRATED
from src.labels import Labelled
from src.quality.confidence import Trust
from src.quality.gold_size import advice
from src.reporting.terms import terms_and_privacy
from src.task import Failure, TaskSpec

CONFUSED = 5  # pairs of classes that are named


def datacard(made: Labelled, task: TaskSpec) -> str:
    """The page as Markdown."""
    answers = made.answers
    lines = [
        f"# Datacard: {task.name}, version {task.version}",
        *_headline(made),
        f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        "## Items", *_items(made),
        "## Annotators", *_annotators(made, task),
        "## Money", *_money(made),
        "## Terms and privacy",
        *terms_and_privacy(made.teachers, rehearsed=made.rehearsed, requests=answers.asked.requests,
                           earlier=answers.answered),
        "## Quality", *_quality(made, task),
        "## Limits", *_limits(made),
    ]
    return "\n\n".join(_blocks(lines)) + "\n"


def _headline(made: Labelled) -> list[str]:
    if made.rehearsed or made.dataset.drawn:
        return [f"**{made.stand_ins}: no figure here describes a real teacher"
                + (" or real images" if made.dataset.drawn else "") + ".**"]
    return [f"**{made.stand_ins.capitalize()}: nobody was asked for them in this run.**"] if made.stand_ins else []


def _items(made: Labelled) -> list[str]:
    dataset, splits = made.dataset, made.dataset.splits
    return [
        f"- Source: {_code(dataset.name)}, {_code(dataset.root.name)}; content and split hash "
        + _code(dataset.hash[:16]),
        "- Splits: " + ", ".join(f"{name} {size}" for name, size in splits.sizes().items())
        + f"; {splits.moved} moved out to keep groups and near-duplicates on one side",
        f"- {dataset.duplicates} identical {dataset.kind} merged; {dataset.near_duplicates}; {len(dataset.broken)} "
        "set aside as broken"
        + (": " + ", ".join(map(_code, list(dataset.broken)[:NAMED])) if dataset.broken else ""),
        "- Truth in the pool (never shown to a teacher): "
        + _counts(Counter(item.truth or "unknown" for item in splits.pool)),
    ]


def _annotators(made: Labelled, task: TaskSpec) -> list[str]:
    answers, panel = made.answers, made.answers.panel
    given = [a for a in answers.annotations if task.map_label(a.label) and panel.counts(a.annotator, a.pass_index)]
    by = Counter(a.annotator for a in given)
    rows = [f"- {_code(member)}: asked about every item, {panel.passes} time(s); {by[member]} answers"
            for member in panel.members]
    if panel.arbiter:
        rows.append(f"- {_code(panel.arbiter)}: asked where these disagree; {by[panel.arbiter]} answers")
    behind = Counter(label.source for label in made.labels if label.accepted)
    rows += [f"- Behind {count} accepted labels: {', '.join(map(_code, source.split(', ')))}"
             for source, count in behind.most_common()]
    answered = Counter((a.model or "a model not told", a.provider or "a provider not told") for a in given)
    rows.append("- What answered, as the replies say: "
                + "; ".join(f"{_code(model)} by {_code(provider)} ({n})"
                            for (model, provider), n in answered.most_common()))
    carried = Counter(a.job.removeprefix(MIGRATED) for a in given if a.job.startswith(MIGRATED))
    rows += [f"- {n} of these {len(given)} answers were given to version {version}'s prompt, another one than below, "
             "and carried over" for version, n in sorted(carried.items())]
    return [*rows, f"- Prompt {_code(answers.prompt.hash[:16])}, in full in `prompt.txt`"]


def _money(made: Labelled) -> list[str]:
    answers = made.answers
    paid = " as the stand-in reckons it; nothing was paid" if made.rehearsed else ""
    rows = [f"- Cost of these annotations, all runs together: ${answers.cost_usd:.4f}{paid}",
            f"- This run, preflight included: {answers.asked.requests} requests for ${answers.asked.cost_usd:.4f}; "
            f"{answers.answered} questions were answered before"]
    # One that cost nothing was never asked again: it only says that its run ended first.
    if lost := [a.cost_usd for a in answers.annotations if a.failure == Failure.LOST and a.cost_usd]:
        rows.append(f"- Lost: {len(lost)} requests were cut off, as a run was stopped or its process died. They stand "
                    f"in the sum at their worst case, ${sum(lost):.4f} together, and may have cost less")
    if any(a.job.startswith(MIGRATED) for a in answers.annotations):
        rows.append("- Answers carried over from another version were paid for there and are not in these sums")
    if others := {name: n for name, n in answers.asked.outcomes.items() if name != "answered"}:
        rows.append("- What else came back in this run: " + _counts(others))
    return rows


def _quality(made: Labelled, task: TaskSpec) -> list[str]:
    several = len(made.gold_accuracy) > 1
    rows = [f"- Accuracy of {_code(who) if several else 'the teacher'} on gold's *choose* part, first answers: {found} "
            "(95%)" + (", on what it was asked alone" if who == made.answers.panel.arbiter else "")
            for who, found in made.gold_accuracy.items()]
    for what, interval in (("accepted labels on gold's *choose* part", made.gold_accepted),
                           ("accepted labels against the whole pool's truth", made.truth_accuracy)):
        if interval:
            rows.append(f"- Accuracy of the {what}: {interval} (95%)")
    if made.audit:
        rows.append(f"- Accuracy of the accepted labels in a random sample that people checked: {made.audit.accuracy} "
                    f"(95%), {len(made.audit.wrong)} wrong")
    if made.reviewers:
        rows.append(f"- Reviewers who answered the same items agree on {made.reviewers} (95%)")
    if made.enough_gold:
        rows.append(f"- Gold is small: {advice(made.enough_gold)} would bring the teacher's accuracy within "
                    "quality.gold_half_width")
    rows += [f"- Mistaken most often by {_code(who) if several else 'the teacher'} on gold: {pairs}"
             for who, matrix in made.gold_confusion.items() if (pairs := _confused(matrix.tolist(), task.names))]
    if found := made.agreement:
        rows.append(f"- Agreement of opinions: {found.mapped} as classes, {found.raw.value:.3f} as spelt; corrected "
                    f"for chance: kappa {found.kappa:.3f}, alpha {found.alpha:.3f}")
    if (opinions := made.independence).asked > 1:
        worth = (f"{opinions.effective} (95%) independent ones by their mistakes on gold, which correlate by "
                 f"{opinions.correlation:.3f}" if opinions.effective and opinions.correlation is not None
                 else f"an unknown number of independent ones: {opinions.reason}")
        rows.append(f"- {opinions.asked} opinions on every item, worth {worth}")
    if trust := made.reliability:
        fitted = ("one probability for all, split votes apart, since there are too few mistakes to tell more; mean "
                  f"{trust.calibrated.mean:.3f}, Brier score {trust.calibrated.brier:.3f}"
                  if trust.one_for_all else _trust(trust.calibrated))
        rows.append(f"- Probability of being right, calibrated on {trust.accuracy.n} gold labels of which "
                    f"{trust.accuracy.value:.3f} are right: {fitted}"
                    + (f"; confidence as the annotators say it: {_trust(trust.said)}" if trust.said else ""))
    if made.suspects:
        rows.append(f"- {made.suspects} labels looked mistaken and were asked about once more")
    return [*rows,
            "- Accepted labels by class: " + _counts(Counter(label.label for label in made.labels if label.accepted)),
            "- How the labels ended: " + _counts(made.outcome())]


def _limits(made: Labelled) -> list[str]:
    rows = [
        "- Accepted is not right: answers of one model share their mistakes, and those of several models some of them; "
        "the figures on gold are what tells.",
        "- Items without an accepted label are missing from training, and they tend to be the hard ones.",
        "- Gold is a sample of the same source: elsewhere everything may be different.",
    ]
    if any(a.job.startswith(MIGRATED) for a in made.answers.annotations):
        rows.append("- Answers carried over from another version were given to another prompt, which may have shown "
                    "other choices: today's would not have brought all of them.")
    return rows


def _confused(matrix: list[list[int]], names: list[str]) -> str:
    """The pairs of classes that are mistaken most often, of a [C, C] confusion with truth by rows."""
    pairs = [(n, names[true], names[said]) for true, row in enumerate(matrix) for said, n in enumerate(row)
             if true != said and n]
    most = sorted(pairs, key=lambda pair: -pair[0])[:CONFUSED]
    return ", ".join(f"{true} taken for {said} ({n})" for n, true, said in most)


def _trust(trust: Trust) -> str:
    return f"mean {trust.mean:.3f}, calibration error {trust.ece:.3f}, Brier score {trust.brier:.3f}"


def _counts(counts: Mapping[str, int] | Mapping[str | None, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items(), key=lambda pair: str(pair[0]))) or "none"


def _code(text: str) -> str:
    """As it stands, whatever a model, a provider or a file is called."""
    return f"`{text.replace('`', chr(39))}`"


def _blocks(lines: list[str]) -> list[str]:
    """Paragraphs and lists: bullets that follow each other belong together."""
    blocks: list[str] = []
    for line in lines:
        if line.startswith("- ") and blocks and blocks[-1].startswith("- "):
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    return blocks
