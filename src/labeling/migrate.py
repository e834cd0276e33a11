"""A task's earlier version → today's: which of its answers still answer today's question, and which must be asked
again.

A renaming or a merging of classes tells what an old answer means today; a class that was split does not. What is
carried over costs nothing, keeps everything by which its origin can be told, and says in `job` which version it was
given to, for it answers another prompt. `plan_migration` is pure; `migrate` reads, shows and writes. Knows nothing
about the data set, and so counts every item that was ever annotated.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from src.console import say, table, warn
from src.errors import ConfigError
from src.labeling.prompt import Prompt
from src.labeling.teacher import Teacher
from src.store import Store
from src.task import Annotation, Failure, TaskSpec, spelling

MIGRATED = "migrated:"  # a carried annotation's job: this, and the version that its answer was given to
REHEARSED = "rehearsal:"
HUMAN = "human:"
CARRIED = ("as it was", "renamed", "merged")
AGAIN = ("split", "gone", "not placed", "no usable answer")
LISTED = ("item", "annotator", "pass", "answer", "can_mean", "why")  # the columns of `Migration.listed`

NAMED = 5  # examples in a message

Question = tuple[str, str, int]  # annotator, item, pass


@dataclass(frozen=True)
class Fate:
    """What becomes of one answer. `old` is the class that it meant, or its spelling where that is unknown; `new` are
    the classes that it can mean today; `how` is one of CARRIED or AGAIN."""

    annotation: Annotation
    old: str
    new: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class Migration:
    """From one version of a task to today's: a fate for every question that was asked then and has no answer to
    today's prompt; `known` counts those that have one. `cost_usd` holds by annotator what a question of this task cost
    on average, whatever the version; who was paid nowhere here is missing.
    """

    version: int
    task: TaskSpec
    prompt_hash: str
    fates: tuple[Fate, ...]
    known: int
    cost_usd: Mapping[str, float]

    @property
    def carried(self) -> list[Annotation]:
        """The annotations to be added: under today's prompt and version, at no cost, as old as their answers."""
        return [self._carried(fate) for fate in self.fates if fate.how in CARRIED]

    @property
    def again(self) -> list[Fate]:
        """What has to be asked again, and where a person's word is lost, reviewed."""
        return [fate for fate in self.fates if fate.how in AGAIN]

    @property
    def listed(self) -> list[list[str]]:
        """The same as rows of a table, under LISTED."""
        return [[fate.annotation.item, fate.annotation.annotator, str(fate.annotation.pass_index), fate.old,
                 " | ".join(fate.new), fate.how] for fate in self.again]

    def figures(self) -> dict[str, float]:
        """Under the names that runs are compared by."""
        counts = Counter(fate.how for fate in self.fates)
        return {"migration/carried": float(sum(counts[how] for how in CARRIED)),
                **{f"migration/{how.replace(' ', '_')}": float(counts[how]) for how in (*CARRIED, *AGAIN)}}

    def _carried(self, fate: Fate) -> Annotation:
        a = fate.annotation
        return replace(
            a, prompt_hash=_target(a.annotator, self.task, self.prompt_hash), task_version=self.task.version,
            # The annotator's own spelling, where it still means the same.
            label=a.label if self.task.map_label(a.label) == fate.new[0] else fate.new[0], failure=None, attempt=0,
            # Booked once, where it was paid.
            cost_usd=0.0, tokens_in=0, tokens_out=0,
            job=a.job if a.job.startswith(MIGRATED) else f"{MIGRATED}{self.version}",
        )


def migrate(store: Store, task: TaskSpec, prompt: Prompt, version: int, *, teachers: Sequence[Teacher],
            dry_run: bool) -> Migration:
    """Carry over what `version`'s annotations tell, and show what was and what was not; a dry run only shows.

    `teachers` are those whom this job asks. To be repeated as often as one likes: nothing is carried twice. Raises
    ConfigError for a version without annotations, naming those that have some.
    """
    annotations = store.read(task=task.name)
    versions = Counter(a.task_version for a in annotations if a.task_version < task.version)
    if version not in versions:
        there = ", ".join(f"{known} ({n} annotations)" for known, n in sorted(versions.items()))
        raise ConfigError("migrate_from", version, f"an earlier version of task {task.name}, which is at "
                          f"version {task.version}, with annotations in this store: {there or 'there is none'}")
    found = plan_migration(annotations, task, prompt.hash, version)
    if not dry_run:
        store.add(found.carried)
    _show(found, {teacher.annotator for teacher in teachers}, dry_run)
    return found


def plan_migration(annotations: Iterable[Annotation], task: TaskSpec, prompt_hash: str, version: int) -> Migration:
    """`annotations` are all of the task's, oldest first; `prompt_hash` is today's prompt.

    Of several answers by one annotator in one pass the latest usable one counts, whichever prompt it was given to.
    Failures are not carried, nor what a person took back, nor anything that today's prompt has an answer to.
    """
    moves = task.successors(version)
    answered: set[Question] = set()
    last: dict[Question, Annotation] = {}
    spent: dict[str, float] = defaultdict(float)
    told: Counter[str] = Counter()
    for a in annotations:
        question = (a.annotator, a.item, a.pass_index)
        if a.prompt_hash == _target(a.annotator, task, prompt_hash):
            if a.failure == Failure.WITHDRAWN or task.map_label(a.label):
                answered.add(question)
        elif a.task_version == version:
            tells = a.failure in (None, Failure.WITHDRAWN) or _place(a, task, moves)[1] is not None
            if tells or question not in last:
                last[question] = a
        if not a.job.startswith(MIGRATED):  # what was carried over was paid for where it comes from
            spent[a.annotator] += a.cost_usd
            told[a.annotator] += a.failure is None
    open_ones = [a for question, a in last.items() if question not in answered and a.failure != Failure.WITHDRAWN]
    places = [(a, *_place(a, task, moves)) for a in open_ones]
    # Only the task tells which names were merged: an answer with the new one may be an old alias of the one renamed.
    merged = Counter(new[0] for new in moves.values() if len(new) == 1)
    fates = tuple(Fate(a, old, new or (), _how(a, old, new, old in moves, merged)) for a, old, new in places)
    known = sum(question in answered for question in last)
    return Migration(version, task, prompt_hash, fates, known,
                     {annotator: spent[annotator] / n for annotator, n in told.items() if n})


def _target(annotator: str, task: TaskSpec, prompt_hash: str) -> str:
    """The hash under which answers to today's version stand: people see no prompt."""
    return f"{task.name}@{task.version}" if annotator.startswith(HUMAN) else prompt_hash


def _place(a: Annotation, task: TaskSpec, moves: Mapping[str, list[str]]) -> tuple[str, tuple[str, ...] | None]:
    """The old class that an answer meant and the classes that it can mean today; None where nobody says.

    Old names stand in the task's migrations; what is not there kept its name. The old version's aliases are not known
    any more: today's count, unless they lead to a name that means something else than it did, or to one of those that
    a class was split into: what was understood may have been an alias of the whole.
    """
    name = spelling(a.label or "")
    if name in moves:
        return name, tuple(dict.fromkeys(moves[name]))
    meant = task.map_label(a.label)
    parts = {part for new in moves.values() if len(new) > 1 for part in new} if a.failure is None else set()
    if meant is None or meant in parts or moves.get(meant, [meant]) != [meant]:
        return name, None
    return name, (meant,)


def _how(a: Annotation, old: str, new: tuple[str, ...] | None, moved: bool, merged: Mapping[str, int]) -> str:
    if new is None:
        return "no usable answer" if a.failure else "not placed"
    if len(new) != 1:
        return "split" if new else "gone"
    if merged[new[0]] > 1:
        return "merged"
    return "renamed" if moved and old != new[0] else "as it was"


def _show(found: Migration, teachers: set[str], dry_run: bool) -> None:
    task, again = found.task, found.again
    table(f"{task.name}, from version {found.version} to version {task.version}", _by_class(found.fates),
          ("answer", "class now", "what becomes of it", "teachers' answers", "people's"))
    if found.fates:
        table("Of whom", _by_annotator(found, teachers), ("annotator", "carried over", "to be asked again", "about"))
    say(f"{len(found.fates) - len(again)} answers {'would be' if dry_run else 'are'} carried over at no cost; "
        f"{found.known} questions have an answer to today's prompt already. What is carried over was said to another "
        "prompt, and figures on gold judge it as it is.")
    people = sorted({fate.annotation.item for fate in again if fate.annotation.annotator.startswith(HUMAN)})
    if people:
        say(f"To be reviewed again by people: {len(people)} items, {', '.join(item[:16] for item in people[:NAMED])}"
            + (" and others." if len(people) > NAMED else "."))
    if unplaced := Counter(fate.old for fate in again if fate.how == "not placed"):
        named = ", ".join(f"{old!r} ({n})" for old, n in unplaced.most_common(NAMED))
        warn(f"{unplaced.total()} answers cannot be placed: {named}. Say what became of them in "
             f"task.migrations.{found.version} of conf/task/{task.name}.yaml, or they are asked again.")


def _by_class(fates: Iterable[Fate]) -> list[tuple[str, ...]]:
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for fate in fates:
        old = "" if fate.how == "no usable answer" else fate.old
        counts[fate.how, old, " or ".join(fate.new)][fate.annotation.annotator.startswith(HUMAN)] += 1
    order = (*CARRIED, *AGAIN)
    ending = {**dict.fromkeys(CARRIED, "carried over"), **dict.fromkeys(AGAIN, "to be asked again")}
    return [(old or "-", new or "-", f"{how}: {ending[how]}", *map(str, counts[how, old, new]))
            for how, old, new in sorted(counts, key=lambda kind: (order.index(kind[0]), kind[1]))]


def _by_annotator(found: Migration, teachers: set[str]) -> list[tuple[str, ...]]:
    counts = Counter((fate.annotation.annotator, fate.how in CARRIED) for fate in found.fates)
    rows: list[tuple[str, ...]] = []
    for who in sorted({annotator for annotator, _ in counts}):
        again = counts[who, False]
        each = found.cost_usd.get(who)
        cost = "" if not again else "unknown" if each is None else f"${each * again:.4f}"
        # A rehearsal's name holds its stand-in's error model as well.
        behind = who.removeprefix(REHEARSED).rpartition("#")[0] if who.startswith(REHEARSED) else who
        if who.startswith(HUMAN):
            cost = "a review" if again else ""
        elif behind not in teachers:
            cost = "not of this job"
        rows.append((who, str(counts[who, True]), str(again), cost))
    return rows
