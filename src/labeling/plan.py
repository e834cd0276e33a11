"""What is still to be asked, given what the store holds, and what that would cost.

Pure: items, annotations and settings in, questions out. Holds a few bytes for each item and makes the questions one at
a time, so that a plan for a million of them is cheap.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from scipy.stats import t as student_t

from src.labeling.prompt import Prompt
from src.labeling.teacher import Teacher
from src.metrics import Interval
from src.store import Answered
from src.task import Annotation, Failure, Item, TaskSpec

BYTES_PER_TOKEN = 4  # what English text usually takes; a worst case counts every byte as a token
USUAL_ANSWER_TOKENS = 40
FRAME_TOKENS = 50  # roles and separators around the texts
WORDS_AROUND_A_FAULT = 200  # in bytes, and so at the most in tokens
LEAST_COSTS = 5  # stored costs from which the next ones can be estimated with an interval
UNSEEN = (Failure.LOST, Failure.TIMEOUT, Failure.CONNECTION)  # booked at a worst case, which is nobody's bill


@dataclass(frozen=True, slots=True)
class Question:
    """`known` is how many annotations of it the planner has seen."""

    item: Item
    pass_index: int
    known: int = 0

    @property
    def name(self) -> str:
        """The same for every try, so that a server can tell a repetition."""
        return f"{self.item.key[:32]}-{self.pass_index}"


@dataclass(frozen=True)
class Costs:
    """What stored answers cost: their number, the sum and the sum of squares over every try, failed ones included, the
    sum over the answers alone, and the dearest try."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    dearest: float = 0.0
    answered_usd: float = 0.0

    def mean(self, questions: int) -> Interval:
        """The 95% interval of what `questions` more would cost together (Student's t over the stored ones)."""
        mean = self.total / self.n
        # A ratio of two sums over tries, cost to answers: the scatter is that of what each try cost above its share.
        rest = max(0.0, self.squares - 2 * mean * self.answered_usd + mean**2 * self.n)
        spread = math.sqrt(rest / (self.n - 1) / self.n)
        # The questions to come scatter as well.
        each = spread * math.sqrt(1 + self.n / max(1, questions)) * float(student_t.ppf(0.975, self.n - 1))
        return Interval(mean * questions, max(0.0, mean - each) * questions, (mean + each) * questions, self.n)


@dataclass(frozen=True)
class Plan:
    """`len` is how many questions are to be asked, and iterating makes them, item by item. `answered` questions need no
    asking; `given_up` failed for good and are asked again only on request.

    `usual_usd` is what one question is expected to cost by the price table, `worst_usd` what one can cost at the most.
    """

    items: Sequence[Item]
    passes: Sequence[int]
    open: Mapping[str, Mapping[int, int]] | None
    done: Mapping[str, int]
    size: int
    answered: int
    given_up: int
    usual_usd: float
    worst_usd: float
    costs: Costs = field(default_factory=Costs)

    def __len__(self) -> int:
        return self.size

    def part(self, items: Sequence[Item]) -> "Plan":
        """The same for some of the items, whose answers are not counted again."""
        left = sum(len(self.passes) - self.done[item.key].bit_count() for item in items)
        return replace(self, items=items, size=left)

    def __iter__(self) -> Iterator[Question]:
        for item in self.items:
            done = self.done.get(item.key, 0)
            tried = (self.open or {}).get(item.key, {})
            for place, pass_index in enumerate(self.passes):
                if not done >> place & 1:
                    yield Question(item, pass_index, tried.get(pass_index, 0))

    @property
    def estimate_usd(self) -> float:
        """What is left will cost about this: by what was paid so far, or else by the price table."""
        each = self.costs.total / self.costs.n if self.costs.n else self.usual_usd
        return each * len(self)

    @property
    def estimate(self) -> Interval | None:
        """With its 95% interval, where enough was paid already to tell."""
        return self.costs.mean(len(self)) if self.costs.n >= LEAST_COSTS else None

    def __str__(self) -> str:
        reused = f"{self.answered} answers re-used"
        given_up = f", {self.given_up} failed for good before (labeler.retry_failed=true asks them again)"
        worst = self.worst_usd * len(self)
        cost = f"${self.estimate_usd:.2f}"
        if self.estimate and len(self):
            cost += f" [{self.estimate.low:.2f}, {self.estimate.high:.2f}]"
        return (f"{len(self)} questions to ask, estimated cost {cost} "
                f"(at the most ${worst:.2f}); {reused}{given_up if self.given_up else ''}")


def answers(annotation: Annotation, task: TaskSpec) -> bool:
    """Whether this annotation is a usable answer today: an alias added later turns an unknown label into one."""
    return task.map_label(annotation.label) is not None


def make_plan(items: Sequence[Item], stored: Iterable[Answered], *, task: TaskSpec, teacher: Teacher, prompt: Prompt,
              passes: Sequence[int], retry_failed: bool, again: bool = False) -> Plan:
    """Every pass of every item that has no answer yet, or, `again`, every one; item by item in the order given."""
    place = {pass_index: n for n, pass_index in enumerate(passes)}
    done = dict.fromkeys((item.key for item in items), 0)
    usable: dict[str | None, bool] = {}
    tried: dict[str, dict[int, int]] = {}
    last: dict[tuple[str, int], tuple[int, str | None]] = {}
    seen, total, squares, dearest, answered_usd = 0, 0.0, 0.0, 0.0, 0.0
    shown_again = again_usd(teacher, task)
    for row in stored:
        if row.cost_usd and row.failure not in UNSEEN:
            # A later try may have been shown an unusable answer, which comes on top for such a try alone.
            dearest = max(dearest, row.cost_usd - (shown_again if row.attempt else 0.0))
        if row.failure != Failure.LOST:  # what a crash may have cost says nothing about the questions to come
            total += row.cost_usd
            squares += row.cost_usd**2
        if row.label not in usable:
            usable[row.label] = task.map_label(row.label) is not None
        ok = usable[row.label]
        if ok and row.cost_usd:  # what is free, or was carried over, says nothing of what the rest will cost
            seen += 1
            answered_usd += row.cost_usd
        if row.item not in done or row.pass_index not in place:
            continue
        if ok and not again:
            done[row.item] |= 1 << place[row.pass_index]
            continue
        attempts = tried.setdefault(row.item, {})
        attempts[row.pass_index] = max(attempts.get(row.pass_index, 0), row.attempt + 1)
        question = (row.item, row.pass_index)
        if question not in last or row.attempt >= last[question][0]:
            last[question] = (row.attempt, row.failure)
    answered = sum(mask.bit_count() for mask in done.values())
    given_up = 0
    if not (retry_failed or again):
        for (item, pass_index), (_, failure) in last.items():
            if not done[item] >> place[pass_index] & 1 and not (failure and Failure(failure).transient):
                done[item] |= 1 << place[pass_index]
                given_up += 1
    sizes = prompt_tokens(items, teacher, prompt)
    usual = teacher.cost(sizes[0], min(USUAL_ANSWER_TOKENS, teacher.max_tokens))
    worst = max(teacher.cost(sizes[1], teacher.max_tokens), dearest)
    size = len(done) * len(passes) - answered - given_up
    return Plan(items, passes, tried, done, size, answered, given_up, usual, worst,
                Costs(seen, total, squares, dearest, answered_usd))


def prompt_tokens(items: Sequence[Item], teacher: Teacher, prompt: Prompt) -> tuple[int, int]:
    """About how many tokens a question has, and how many it can have at the most: a tokenizer that works on bytes
    never makes more tokens than there are."""
    schema = len(str(prompt.schema)) if teacher.json_mode == "json_schema" else 0
    fixed = len((prompt.system + prompt.user).encode()) + schema
    texts = [len(item.payload.encode()) for item in items if isinstance(item.payload, str)]
    usual, worst = (round(fmean(texts)), max(texts)) if texts else (0, 0)
    image = 0 if texts else teacher.image_tokens
    return (fixed + usual) // BYTES_PER_TOKEN + image + FRAME_TOKENS, fixed + worst + image + FRAME_TOKENS


def worst_usd(shown: bytes | str, teacher: Teacher, prompt: Prompt) -> float:
    """What one question can cost at the most by the price table."""
    schema = len(str(prompt.schema)) if teacher.json_mode == "json_schema" else 0
    text = len(shown.encode()) if isinstance(shown, str) else teacher.image_tokens
    tokens = len((prompt.system + prompt.user).encode()) + schema + text + FRAME_TOKENS
    return teacher.cost(tokens, teacher.max_tokens)


def again_usd(teacher: Teacher, task: TaskSpec) -> float:
    """What it can add to a question's cost that an unusable answer is shown to its author: the answer, its label once
    more, the names that there are, and the words around them."""
    words = WORDS_AROUND_A_FAULT + len(json.dumps(task.names).encode())
    return teacher.cost(2 * teacher.max_tokens + words, 0)
