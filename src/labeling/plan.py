"""What is still to be asked, given what the store holds, and what that would cost.

Pure: items, annotations and settings in, questions out. Holds a few bytes for each item and makes the questions one at
a time, so that a plan for a million of them is cheap.
"""

import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from scipy.special import stdtrit  # scipy.stats takes 60 MB

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
# Booked at a worst case, which is nobody's bill.
UNSEEN = frozenset({Failure.LOST, Failure.TIMEOUT, Failure.CONNECTION})


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
        each = spread * math.sqrt(1 + self.n / max(1, questions)) * float(stdtrit(self.n - 1, 0.975))
        return Interval(mean * questions, max(0.0, mean - each) * questions, (mean + each) * questions, self.n)


@dataclass(frozen=True)
class Plan:
    """`len` is how many questions are to be asked, and iterating makes them, item by item. `done` holds for each item,
    in their order, the passes that need no asking, as bits in the order of `passes`; `known` how often an open question
    was annotated. `answered` questions need no asking; `given_up` failed for good and are asked again only on request.

    `usual_tokens` is about what one question has, `usual_usd` what it is expected to cost by the price table,
    `worst_usd` what one can cost at the most.
    """

    items: Sequence[Item]
    passes: Sequence[int]
    done: Sequence[int]
    known: Mapping[tuple[str, int], int]
    answered: int
    given_up: int
    usual_tokens: int
    usual_usd: float
    worst_usd: float
    costs: Costs = field(default_factory=Costs)

    def __len__(self) -> int:
        return len(self.items) * len(self.passes) - sum(map(int.bit_count, self.done))

    def part(self, start: int) -> "Plan":
        """The same from the item at `start` on, whose answers are not counted again."""
        return replace(self, items=self.items[start:], done=self.done[start:])

    def __iter__(self) -> Iterator[Question]:
        everything = (1 << len(self.passes)) - 1
        for item, done in zip(self.items, self.done, strict=True):
            if done == everything:
                continue
            for place, pass_index in enumerate(self.passes):
                if not done >> place & 1:
                    yield Question(item, pass_index, self.known.get((item.key, pass_index), 0))

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
    bit = {pass_index: 1 << n for n, pass_index in enumerate(passes)}
    done = dict.fromkeys(map(attrgetter("key"), items), 0)
    usable: dict[str | None, bool] = {}
    last: dict[tuple[str, int], tuple[int, str | None]] = {}
    seen, total, squares, dearest, answered_usd = 0, 0.0, 0.0, 0.0, 0.0
    shown_again = again_usd(teacher, task)
    for item, pass_index, attempt, label, failure, cost_usd in stored:
        if label not in usable:
            usable[label] = task.map_label(label) is not None
        ok = usable[label]
        if cost_usd:  # what is free, or was carried over, says nothing of what the rest will cost
            if failure not in UNSEEN:
                # A later try may have been shown an unusable answer, which comes on top for such a try alone.
                dearest = max(dearest, cost_usd - shown_again if attempt else cost_usd)
            if failure != Failure.LOST:  # what a crash may have cost says nothing about the questions to come
                total += cost_usd
                squares += cost_usd * cost_usd
            if ok:
                seen += 1
                answered_usd += cost_usd
        settled, own = done.get(item), bit.get(pass_index)
        if settled is None or own is None:
            continue
        if ok and not again:
            done[item] = settled | own
        elif (before := last.get((item, pass_index))) is None or attempt > before[0]:
            last[item, pass_index] = attempt, failure
    answered = sum(map(int.bit_count, done.values()))
    given_up = 0
    if not (retry_failed or again):
        for (item, pass_index), (_, failure) in last.items():
            if not done[item] & bit[pass_index] and not (failure and Failure(failure).transient):
                done[item] |= bit[pass_index]
                given_up += 1
    known = {question: attempt + 1 for question, (attempt, _) in last.items()}
    usual_tokens, most_tokens = prompt_tokens(items, teacher, prompt)
    usual = teacher.cost(usual_tokens, min(USUAL_ANSWER_TOKENS, teacher.max_tokens))
    worst = max(teacher.cost(most_tokens, teacher.max_tokens), dearest)
    return Plan(items, passes, [done[item.key] for item in items], known, answered, given_up, usual_tokens, usual,
                worst, Costs(seen, total, squares, dearest, answered_usd))


def prompt_tokens(items: Sequence[Item], teacher: Teacher, prompt: Prompt) -> tuple[int, int]:
    """About how many tokens a question has, and how many it can have at the most: a tokenizer that works on bytes
    never makes more tokens than there are."""
    schema = len(str(prompt.schema)) if teacher.json_mode == "json_schema" else 0
    fixed = len((prompt.system + prompt.user).encode()) + schema
    texts = array("Q", (len(item.payload.encode()) for item in items if isinstance(item.payload, str)))
    usual, longest = (round(sum(texts) / len(texts)), max(texts)) if texts else (0, 0)
    image = 0 if texts else teacher.image_tokens
    return (fixed + usual) // BYTES_PER_TOKEN + image + FRAME_TOKENS, fixed + longest + image + FRAME_TOKENS


def worst_usd(teacher: Teacher, prompt: Prompt) -> Callable[[bytes | str], float]:
    """Tells of what is shown how much asking about it can cost at the most by the price table."""
    schema = len(str(prompt.schema)) if teacher.json_mode == "json_schema" else 0
    fixed = len((prompt.system + prompt.user).encode()) + schema + FRAME_TOKENS

    def worst(shown: bytes | str) -> float:
        tokens = fixed + (len(shown.encode()) if isinstance(shown, str) else teacher.image_tokens)
        return teacher.cost(tokens, teacher.max_tokens)

    return worst


def again_usd(teacher: Teacher, task: TaskSpec) -> float:
    """What it can add to a question's cost that an unusable answer is shown to its author: the answer, its label once
    more, the names that there are, and the words around them."""
    words = WORDS_AROUND_A_FAULT + len(json.dumps(task.names).encode())
    return teacher.cost(2 * teacher.max_tokens + words, 0)
