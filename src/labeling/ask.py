"""Items → their annotations by one teacher: plan, ask (or rehearse, or only say what would be asked), and read back.

The synchronous door to the labeler. Knows nothing about what the answers are good for; `check` does, and may stop the
run after gold, before the larger part is paid for.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from src.console import Update, progress, say, warn
from src.data.images import Unreadable, load, shown
from src.data.spec import Shown
from src.errors import ConfigError, DataError
from src.labeling.budget import Budget
from src.labeling.labeler import Labeler, Tally
from src.labeling.plan import Plan, make_plan
from src.labeling.prompt import Prompt, render
from src.labeling.rehearsal import ErrorModel, Rehearsal
from src.labeling.spec import LabelerSpec
from src.labeling.teacher import Teacher
from src.store import Store
from src.task import Annotation, Item, TaskSpec

MODES = ("auto", "always", "never")


@dataclass
class RehearsalSpec:
    """When the stand-in takes the teacher's place, and how it errs."""

    mode: str
    errors: ErrorModel

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("rehearsal", self.mode, f"one of {', '.join(MODES)}")


@dataclass(frozen=True)
class Answers:
    """Everything that one annotator has said so far about these items with this prompt.

    `asked` is what this run did; `plan` is what it found to do, gold and pool together.
    """

    annotator: str
    prompt: Prompt
    annotations: list[Annotation]
    plan: Plan
    asked: Tally = field(default_factory=Tally)

    @property
    def cost_usd(self) -> float:
        """What these annotations cost in all runs together."""
        return sum(a.cost_usd for a in self.annotations)


def rehearses(mode: str, teacher: Teacher, *, drawn: bool) -> bool:
    """Whether the stand-in teacher answers. Raises where `never` forbids what would be needed."""
    if mode == "never":
        if teacher.lacks_key:
            raise ConfigError("rehearsal", mode, f"the teacher needs a key: export {teacher.key_env}=…, or drop "
                              "rehearsal=never to rehearse without one")
        if drawn:
            raise DataError("rehearsal=never with drawn images: choose real ones with data=…, or drop rehearsal=never.")
        return False
    return mode == "always" or teacher.lacks_key or drawn


def ask(gold: Sequence[Item], pool: Sequence[Item], *, task: TaskSpec, teacher: Teacher, how: Shown, spec: LabelerSpec,
        store: Store, errors: ErrorModel | None, max_pixels: int, seed: int,
        check: Callable[[list[Annotation]], None]) -> Answers:
    """Bring every item to `spec.passes` answers, gold first. With `spec.dry_run`, ask nobody and only say.

    `errors`, where given, is the error model of the stand-in that takes the teacher's place. Raises TeacherError,
    StoreError, DataError (an item of unknown truth cannot be rehearsed), KeyboardInterrupt, or what `check` raises.
    """
    prompt = render(task, how)
    items = [*gold, *pool]
    annotator = teacher.annotator
    if errors:
        unknown = [item.name for item in items if item.truth is None]
        if unknown and not spec.dry_run:
            raise DataError(
                f"{len(unknown)} of {len(items)} items, {unknown[0]} among them, have no known truth and cannot be "
                f"rehearsed: the stand-in teacher would not know what to answer. Set {teacher.key_env or 'a teacher'} "
                "to have them labelled, or give truth with class folders or data.truth_csv."
            )
        model = hashlib.sha256(json.dumps([asdict(errors), task.confusion], sort_keys=True).encode()).hexdigest()[:8]
        annotator = f"rehearsal:{annotator}#{model}"

    def stored() -> list[Annotation]:
        keys = {item.key for item in items}
        return [a for a in store.read(annotator=annotator, prompt_hash=prompt.hash) if a.item in keys]

    def plan_for(part: Sequence[Item]) -> Plan:
        return make_plan(part, stored(), task=task, teacher=teacher, prompt=prompt, passes=spec.passes,
                         retry_failed=spec.retry_failed)

    whole = plan_for(items)
    say(f"Labels: {annotator}: {whole}")
    if spec.dry_run:
        return Answers(annotator, prompt, stored(), whole)
    if whole.questions and not errors and teacher.key_env and whole.worst_usd == 0:
        warn("No price is known for this teacher, so labeler.max_cost_usd cannot hold unless its replies name their "
             "cost. Give teacher.price.input_usd and teacher.price.output_usd (US dollars per million tokens).")
    budget = Budget(spec.max_cost_usd)
    asked = Tally()
    for what, part in (("labelling gold", gold), ("labelling", pool)):
        plan = plan_for(part)
        if plan.questions:
            with progress(what, len(plan.questions)) as update:
                tally = asyncio.run(_run(plan, update, task=task, teacher=teacher, annotator=annotator, prompt=prompt,
                                         how=how, spec=spec, store=store, errors=errors, max_pixels=max_pixels,
                                         budget=budget, seed=seed))
            asked = asked + tally
        check(stored())
    return Answers(annotator, prompt, stored(), whole, asked)


async def _run(plan: Plan, update: Update, *, task: TaskSpec, teacher: Teacher, annotator: str, prompt: Prompt,
               how: Shown, spec: LabelerSpec, store: Store, errors: ErrorModel | None, max_pixels: int,
               budget: Budget, seed: int) -> Tally:
    async with AsyncExitStack() as stack:
        stand_in = None
        if errors:
            price = teacher.price
            stand_in = await stack.enter_async_context(
                Rehearsal(task, errors, model=teacher.model, price_in=price.input_usd, price_out=price.output_usd)
            )
            # The stand-in asks for no key, and a real one must never be sent to it.
            teacher = replace(teacher, base_url=stand_in.base_url, key_env=None)

        # Both passes of an item are asked close together: encode it once.
        @lru_cache(maxsize=2 * spec.concurrency)
        def show(item: Item) -> tuple[bytes, str]:
            try:
                image = shown(load(Path(item.payload), max_pixels), how)
            except (OSError, Unreadable) as error:
                raise DataError(f"{item.name} could be read when the run began and cannot now: {error}. What was "
                                "answered is kept; run again.") from error
            digest = hashlib.sha256(image).hexdigest()
            if stand_in and item.truth:
                stand_in.learn(digest, item.key, item.truth)
            return image, digest

        labeler = Labeler(task=task, teacher=teacher, annotator=annotator, prompt=prompt, spec=spec, store=store,
                          show=show, budget=budget, seed=seed)
        return await labeler.run(plan, update)
