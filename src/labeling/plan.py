"""What is still to be asked, given what the store holds, and what that would cost.

Pure: items, annotations and settings in, questions out.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from src.labeling.prompt import Prompt
from src.labeling.teacher import Teacher
from src.task import Annotation, Item, TaskSpec

CHARS_PER_TOKEN = 3  # low on purpose: an estimate for a hard cap may only be too high
USUAL_ANSWER_TOKENS = 40


@dataclass(frozen=True)
class Question:
    item: Item
    pass_index: int

    @property
    def name(self) -> str:
        """The same for every try, so that a server can tell a repetition."""
        return f"{self.item.key[:32]}-{self.pass_index}"


@dataclass(frozen=True)
class Plan:
    """`answered` questions need no asking; `given_up` failed for good and are asked again only on request.

    `usual_usd` is what one question is expected to cost, `worst_usd` what one can cost at the most.
    """

    questions: list[Question]
    answered: int
    given_up: int
    usual_usd: float
    worst_usd: float

    @property
    def estimate_usd(self) -> float:
        return self.usual_usd * len(self.questions)

    def __str__(self) -> str:
        reused = f"{self.answered} answers re-used"
        given_up = f", {self.given_up} failed for good before (labeler.retry_failed=true asks them again)"
        worst = self.worst_usd * len(self.questions)
        return (f"{len(self.questions)} questions to ask, estimated cost ${self.estimate_usd:.2f} "
                f"(at the most ${worst:.2f}); {reused}{given_up if self.given_up else ''}")


def answers(annotation: Annotation, task: TaskSpec) -> bool:
    """Whether this annotation is a usable answer today: an alias added later turns an unknown label into one."""
    return task.map_label(annotation.label) is not None


def make_plan(items: Iterable[Item], stored: Sequence[Annotation], *, task: TaskSpec, teacher: Teacher, prompt: Prompt,
              passes: int, retry_failed: bool) -> Plan:
    """Every pass of every item that has no answer yet, item by item in the order given."""
    history: dict[tuple[str, int], list[Annotation]] = defaultdict(list)
    for annotation in stored:
        history[annotation.item, annotation.pass_index].append(annotation)
    questions, answered, given_up = [], 0, 0
    for item in items:
        for pass_index in range(passes):
            past = history[item.key, pass_index]
            if any(answers(a, task) for a in past):
                answered += 1
            elif past and not retry_failed and not (past[-1].failure and past[-1].failure.transient):
                given_up += 1
            else:
                questions.append(Question(item, pass_index))
    tokens_in = -(-len(prompt.system + prompt.user) // CHARS_PER_TOKEN) + teacher.image_tokens
    usual = teacher.cost(tokens_in, min(USUAL_ANSWER_TOKENS, teacher.max_tokens))
    if stored:
        usual = sum(a.cost_usd for a in stored) / len(stored)
    worst = max([teacher.cost(tokens_in, teacher.max_tokens), *(a.cost_usd for a in stored)])
    return Plan(questions, answered, given_up, usual, worst)
