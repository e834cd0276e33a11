"""Items → their annotations by a panel of teachers: plan, look, ask (or rehearse, or only say), and read back.

The synchronous door to the labeler. Knows nothing about what the answers are good for; `check` does, and may stop the
run after gold, before the larger part is paid for.
"""

import asyncio
import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from src.console import progress, say, warn
from src.data.images import Unreadable, load, shown
from src.data.spec import Shown
from src.errors import ConfigError, DataError, TeacherError
from src.labeling import preflight
from src.labeling.budget import Budget
from src.labeling.client import Client
from src.labeling.labeler import Labeler, Tally, book_the_dead
from src.labeling.migrate import MIGRATED
from src.labeling.plan import Plan, make_plan
from src.labeling.prompt import Prompt, render
from src.labeling.rehearsal import ErrorModel, Rehearsal
from src.labeling.replay import Replay
from src.labeling.spec import LabelerSpec
from src.labeling.stop import Stop
from src.labeling.teacher import Teacher
from src.labeling.writer import Writer
from src.store import Store
from src.task import SECOND_LOOK, Annotation, Item, Panel, TaskSpec

MODES = ("auto", "always", "never")
PREFLIGHT = 2 * SECOND_LOOK  # the pass of answers that are looked at and are no labels
FEW = 2000  # items whose answers are looked up one by one; of more, all that is stored is read


@dataclass
class RehearsalSpec:
    """When the stand-in takes the teacher's place, and how it errs. `error_rates`, by model name, tells a stronger
    stand-in from a weaker one."""

    mode: str
    errors: ErrorModel
    error_rates: dict[str, float]

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("rehearsal", self.mode, f"one of {', '.join(MODES)}")
        for model, rate in self.error_rates.items():
            if not 0 <= rate <= 1:
                raise ConfigError(f"rehearsal.error_rates.{model}", rate, "a share in [0, 1]")


@dataclass(frozen=True)
class Answers:
    """Everything that the panel has said so far about these items with this prompt.

    `asked` is what this run did, `by_annotator` the same for each; `answered` counts questions that needed no asking;
    `preflight_usd` is what answers about blank items cost.
    """

    panel: Panel
    prompt: Prompt
    annotations: list[Annotation]
    answered: int
    by_annotator: dict[str, Tally] = field(default_factory=dict)
    preflight_usd: float = 0.0

    @property
    def annotator(self) -> str:
        """The first of the panel."""
        return self.panel.members[0]

    @property
    def asked(self) -> Tally:
        return sum(self.by_annotator.values(), Tally())

    @property
    def cost_usd(self) -> float:
        """What these annotations cost in all runs together."""
        return sum(a.cost_usd for a in self.annotations) + self.preflight_usd


def rehearses(mode: str, teachers: Sequence[Teacher], *, drawn: bool) -> bool:
    """Whether the stand-in teacher answers. Raises where `never` forbids what would be needed."""
    asked = [teacher for teacher in teachers if not teacher.answers]
    lacking = next((teacher for teacher in asked if teacher.lacks_key), None)
    if mode == "never":
        if lacking:
            raise ConfigError("rehearsal", mode, f"the teacher needs a key: export {lacking.key_env}=…, or drop "
                              "rehearsal=never to rehearse without one")
        if drawn:
            raise DataError("rehearsal=never with drawn images: choose real ones with data=…, or drop rehearsal=never.")
        return False
    return bool(asked) and (mode == "always" or lacking is not None or drawn)


@contextmanager
def set_aside() -> Iterator[None]:
    """Spare the garbage collector what is there already: a million items take it a third of a second each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class Seat:
    """One teacher: under which name it answers, and how a stand-in in its place errs (None where none stands there)."""

    teacher: Teacher
    annotator: str
    errors: ErrorModel | None


class Survey:
    """Asks `teachers` about every item, and the `arbiter` where they disagree. With `labeler.dry_run` nobody is asked.

    `how` is how images are shown, None for texts; `rehearsal`, where given, puts stand-ins in the teachers' places;
    `job` names who pays, and may already have spent something. Raises TeacherError, StoreError, DataError (an item of
    unknown truth cannot be rehearsed), KeyboardInterrupt, or what `check` raises.
    """

    def __init__(self, *, task: TaskSpec, teachers: Sequence[Teacher], arbiter: Teacher | None, how: Shown | None,
                 spec: LabelerSpec, store: Store, rehearsal: RehearsalSpec | None, max_pixels: int, seed: int, job: str,
                 second_looks: int = 0) -> None:
        self._task, self._how, self._spec, self._store = task, how, spec, store
        self._max_pixels, self._seed, self._job = max_pixels, seed, job
        self.prompt = render(task, how)
        self._seats = [seated(task, teacher, rehearsal, place) for place, teacher in enumerate(teachers)]
        self._arbiter = seated(task, arbiter, rehearsal, len(self._seats)) if arbiter else None
        names = [seat.annotator for seat in self._everybody]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError("panel", twice, "each teacher once: two of them would give the very same answers; "
                              "labeler.passes asks one several times")
        self.panel = Panel(tuple(names[: len(self._seats)]), spec.passes,
                           self._arbiter.annotator if self._arbiter else None, second_looks)
        self._budget = Budget(spec.max_cost_usd)
        nothing = preflight.blank(how)
        bare = nothing if isinstance(nothing, bytes) else nothing.encode()
        self._blank = Item(hashlib.sha256(b"blank " + bare).hexdigest(), Path() if how else str(nothing), "(blank)")
        self._tallies: dict[str, Tally] = {}
        self._labelers: dict[str, Labeler] = {}
        self._items: Sequence[Item] = ()
        self._answered = 0

    @property
    def _everybody(self) -> list[Seat]:
        return [*self._seats, *([self._arbiter] if self._arbiter else [])]

    @property
    def answers(self) -> Answers:
        """What was said about the items of `run` up to now."""
        blank_usd = sum(a.cost_usd for seat in self._everybody for a in self._said(seat, [self._blank]))
        return Answers(self.panel, self.prompt, self._stored(self._everybody), self._answered, dict(self._tallies),
                       blank_usd)

    def figures(self) -> dict[str, float]:
        """What this run asked and paid, whatever became of it."""
        asked = sum(self._tallies.values(), Tally())
        return {"label/requests": asked.requests, "label/cost_usd_this_run": asked.cost_usd,
                **{f"label/outcome/{name}": float(count) for name, count in asked.outcomes.items()}}

    @set_aside()
    def run(self, gold: Sequence[Item], pool: Sequence[Item], check: Callable[[list[Annotation]], None]) -> Answers:
        """Bring every item to as many answers as the panel has members and passes: gold first, then `check`."""
        items = self._items = [*gold, *pool]
        dry = self._spec.dry_run
        if not dry:
            self._refuse_unknown_truth(items)
            book_the_dead(self._store)
        # A large store takes its time, for much of which it does without Python: both look-ups at once.
        with ThreadPoolExecutor(max_workers=1) as beside:
            # What the dead may have spent counts, where this job paid for it.
            spent = beside.submit(self._store.spent, self._job) if self._job and not dry else None
            plans = {seat.annotator: self._plan(seat, items) for seat in self._seats}
            self._budget = Budget(self._spec.max_cost_usd, spent.result() if spent else 0.0)
        self._answered = sum(plan.answered for plan in plans.values())
        for annotator, plan in plans.items():
            say(f"Labels: {annotator}: {plan}")
        if self._arbiter:
            say(f"Labels: {self._arbiter.annotator}: asked only where these disagree")
        if dry:
            return self.answers
        self._warn_of_prices(plans)
        if self._spec.preflight and any(map(len, plans.values())):
            self._preflight(gold)
        for seat in self._seats:
            if len(plan := plans[seat.annotator]) > self._spec.pilot > 0 and not plan.estimate:
                plans[seat.annotator] = self._pilot(seat, items)
        self._warn_of_the_cap(list(plans.values()))
        for what, part in (("labelling gold", gold), ("labelling", pool)):
            # A plan over a million answers takes seconds: nothing of the pool was asked since these were made.
            known = {name: plan.part(len(gold)) for name, plan in plans.items()} if part is pool else {}
            self._ask(what, {seat.annotator: (seat, part, range(self._spec.passes)) for seat in self._seats},
                      known=known)
            if self._arbiter:
                self._ask(f"{what}: the arbiter", {self._arbiter.annotator: (self._arbiter, self._split(part), [0])})
            check(self._stored(self._seats, part))
        return self.answers

    def second_looks(self, items: Sequence[Item]) -> Answers:
        """Ask once more about items that look mislabelled: the arbiter, or else the first teacher."""
        seat = self._arbiter or self._seats[0]
        passes = range(SECOND_LOOK, SECOND_LOOK + self.panel.second_looks)
        self._ask("second looks", {seat.annotator: (seat, items, passes)})
        return self.answers

    def _plan(self, seat: Seat, items: Sequence[Item], passes: Sequence[int] | None = None, *,
              again: bool = False) -> Plan:
        keys = [item.key for item in items] if len(items) <= FEW else None
        return make_plan(items, self._store.answered(seat.annotator, self.prompt.hash, keys), task=self._task,
                         teacher=seat.teacher, prompt=self.prompt, retry_failed=self._spec.retry_failed, again=again,
                         passes=range(self._spec.passes) if passes is None else passes)

    def _stored(self, seats: Sequence[Seat], items: Sequence[Item] | None = None) -> list[Annotation]:
        """What these said about all items, or about some, without the replies."""
        keys = None if items is None or len(items) > FEW else [item.key for item in items]
        found = (self._store.read(annotator=seat.annotator, prompt_hash=self.prompt.hash, items=keys, replies=False)
                 for seat in seats)
        asked_about = {item.key for item in (self._items if items is None else items)}
        return [a for part in found for a in part if a.item in asked_about]

    def _said(self, seat: Seat, items: Sequence[Item]) -> list[Annotation]:
        return self._store.read(annotator=seat.annotator, prompt_hash=self.prompt.hash,
                                items=[item.key for item in items])

    def _split(self, items: Sequence[Item]) -> list[Item]:
        """Items about which the members do not agree, or of which not all gave a label."""
        labels: dict[str, set[str | None]] = {item.key: set() for item in items}
        counts = dict.fromkeys(labels, 0)
        for a in self._stored(self._seats, items):
            label = self._task.map_label(a.label)
            if a.item in labels and label and self.panel.counts(a.annotator, a.pass_index):
                labels[a.item].add(label)
                counts[a.item] += 1
        expected = len(self._seats) * self._spec.passes
        return [item for item in items if len(labels[item.key]) > 1 or counts[item.key] < expected]

    def _refuse_unknown_truth(self, items: Sequence[Item]) -> None:
        stand_in = next((seat for seat in self._everybody if seat.errors), None)
        if stand_in and (unknown := [item.name for item in items if item.truth is None]):
            raise DataError(
                f"{len(unknown)} of {len(items)} items, {unknown[0]} among them, have no known truth and cannot be "
                "rehearsed: the stand-in teacher would not know what to answer. Give their truth; or set "
                f"{stand_in.teacher.key_env or 'a teacher'}, and leave out rehearsal=always, to have them labelled."
            )

    def _warn_of_prices(self, plans: dict[str, Plan]) -> None:
        for seat in self._everybody:
            plan = plans.get(seat.annotator)
            if not seat.errors and (plan is None or len(plan)):
                for text in seat.teacher.warnings:
                    warn(text)
            if plan and len(plan) and not seat.errors and seat.teacher.key_env and plan.worst_usd == 0:
                warn(f"No price is known for {seat.teacher.model}, so labeler.max_cost_usd cannot hold unless its "
                     "replies name their cost. Give teacher.price.input_usd and teacher.price.output_usd (US dollars "
                     "per million tokens).")

    def _preflight(self, gold: Sequence[Item]) -> None:
        """Raise TeacherError where a handful of answers show that the rest would be worth nothing."""
        # What was carried over from another version's prompt says nothing about today's.
        carried = {a.item for a in self._stored(self._everybody, gold) if a.job.startswith(MIGRATED)}
        looked_at = preflight.chosen([item for item in gold if item.key not in carried], self._task)
        nothing, empty = preflight.blank(self._how), self._blank
        for seat in self._everybody:
            if seat.teacher.answers:
                continue
            # A member's answers are its first pass; an arbiter's would count where nobody asked for it.
            number = PREFLIGHT if seat is self._arbiter else 0
            truths = {item.key: item.truth for item in looked_at if item.truth}
            for again in (False, True):
                before = self._requests(seat)
                self._ask("preflight", {seat.annotator: (seat, [*looked_at, empty], [number])}, again=again,
                          blank={empty.key: nothing})
                said = {a.item: a for a in self._said(seat, [*looked_at, empty]) if a.pass_index == number}
                why = preflight.objection([said[key] for key in truths if key in said], said.get(empty.key), truths,
                                          self._task, images=self._how is not None)
                # Answers of an earlier run may be what was mended since: they are asked for, and replaced, once more.
                if not why or self._requests(seat) > before:
                    break
            if why:
                raise TeacherError(f"Preflight, {seat.teacher.model}: {why} What was answered is kept; "
                                   "labeler.preflight=false goes on all the same.")

    def _requests(self, seat: Seat) -> int:
        return self._tallies[seat.annotator].requests if seat.annotator in self._tallies else 0

    def _pilot(self, seat: Seat, items: Sequence[Item]) -> Plan:
        """Pay for a few questions, then say what the rest will cost; returns the plan of that."""
        first = -(-self._spec.pilot // self._spec.passes)
        todo = islice(self._plan(seat, items), self._spec.pilot)
        few = list({question.item.key: question.item for question in todo}.values())[:first]
        self._ask("pilot", {seat.annotator: (seat, few, range(self._spec.passes))})
        plan = self._plan(seat, items)
        if (estimate := plan.estimate) and estimate.value:
            say(f"Pilot, {seat.teacher.model}: {estimate.n} answers cost ${plan.costs.total:.4f}; the {len(plan)} "
                f"questions left are estimated at ${estimate.value:.2f}, 95% interval [{estimate.low:.2f}, "
                f"{estimate.high:.2f}]; at the most ${plan.worst_usd * len(plan):.2f}.")
        return plan

    def _warn_of_the_cap(self, plans: Sequence[Plan]) -> None:
        """Where all teachers together may need more than is left."""
        needed = sum(plan.estimate.high for plan in plans if plan.estimate)
        left = self._budget.cap_usd - self._budget.spent_usd
        if needed > left:
            warn(f"labeler.max_cost_usd={self._budget.cap_usd:g} may stop this before its end, perhaps after "
                 f"{max(0.0, left / needed):.0%} of what is left. Every answer is kept; a higher cap goes on from "
                 "there.")

    def _ask(self, what: str, parts: dict[str, tuple[Seat, Sequence[Item], Sequence[int]]], *,
             blank: dict[str, bytes | str] | None = None, again: bool = False,
             known: Mapping[str, Plan] | None = None) -> None:
        """Ask all seats at once, each about its items, under one bar, one budget and one signal handler."""
        plans = {name: (seat, (known or {}).get(name) or self._plan(seat, items, passes, again=again))
                 for name, (seat, items, passes) in parts.items()}
        total = sum(len(plan) for _, plan in plans.values())
        if not total:
            return
        tallies: dict[str, Tally] = {}
        with progress(what, total) as show_progress:

            def update(name: str, tally: Tally) -> None:
                tallies[name] = tally
                together = sum(tallies.values(), Tally()) if len(plans) > 1 else tally
                together_s = max(t.seconds for t in tallies.values())
                left = (total - together.done) * together_s / together.done if together.done else 0.0
                show_progress(together.done, f"{together} · {left:.0f} s left")

            try:
                asyncio.run(self._run(plans, update, tallies, blank or {}))
            finally:
                for name, tally in tallies.items():
                    self._tallies[name] = self._tallies.get(name, Tally()) + tally

    async def _run(self, plans: dict[str, tuple[Seat, Plan]], update: Callable[[str, Tally], None],
                   tallies: dict[str, Tally], blank: dict[str, bytes | str]) -> None:
        stop = Stop()
        with stop.signals():
            async with AsyncExitStack() as stack:
                writer = await stack.enter_async_context(Writer(self._store))
                running = []
                for place, (name, (seat, plan)) in enumerate(plans.items()):
                    client, show = await self._connect(stack, seat, blank)
                    labeler = Labeler(
                        task=self._task, teacher=seat.teacher, annotator=name, prompt=self.prompt,
                        # A recording says the same again.
                        spec=replace(self._spec, max_content_attempts=1) if seat.teacher.answers else self._spec,
                        store=self._store, show=show, budget=self._budget, seed=self._seed + place, stop=stop,
                        job=self._job, earlier=self._labelers.get(name))
                    tallies[name] = labeler.tally
                    self._labelers[name] = labeler
                    running.append(labeler.run(
                        iter(plan), client, writer, dearest_usd=plan.costs.dearest,
                        usual_tokens=plan.usual_tokens,
                        update=lambda tally, name=name: update(name, tally)))  # type: ignore[misc]
                results = await asyncio.gather(*running, return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result

    async def _connect(self, stack: AsyncExitStack, seat: Seat, blank: dict[str, bytes | str]
                       ) -> tuple[Client | Replay, Callable[[Item], tuple[bytes | str, str]]]:
        """The seat's teacher, a stand-in or a recording in its place, and what it is shown of an item."""
        client: Client | Replay
        stand_in = None
        if seat.teacher.answers:
            client = await stack.enter_async_context(
                Replay(Path(seat.teacher.answers), seat.teacher.answer_column, self._task, self._items))
        else:
            client, stand_in = await connect(stack, seat, self.prompt, self._task, connections=self._spec.concurrency)

        # The passes of an item are asked close together: encode it once.
        @lru_cache(maxsize=2 * self._spec.concurrency)
        def show(item: Item) -> tuple[bytes | str, str]:
            seen = blank[item.key] if item.key in blank else self._show(item)
            digest = hashlib.sha256(seen if isinstance(seen, bytes) else seen.encode()).hexdigest()
            if stand_in and item.truth:
                stand_in.learn(digest, item.key, item.truth)
            return seen, digest

        return client, show

    def _show(self, item: Item) -> bytes | str:
        if self._how is None:
            return str(item.payload)
        try:
            return shown(load(Path(item.payload), self._max_pixels), self._how)
        except (OSError, Unreadable) as error:
            raise DataError(f"{item.name} could be read when the run began and cannot now: {error}. What was "
                            "answered is kept; run again.") from error


def seated(task: TaskSpec, teacher: Teacher, rehearsal: RehearsalSpec | None, place: int) -> Seat:
    """The teacher at its `place` in the panel, from 0, rehearsed where `rehearsal` is given and it is no recording."""
    if rehearsal is None or teacher.answers:
        return Seat(teacher, teacher.annotator, None)
    # Another teacher errs in other places; what all of them err in is the error model's own affair.
    errors = replace(rehearsal.errors, teacher=place,
                     error_rate=rehearsal.error_rates.get(teacher.model, rehearsal.errors.error_rate))
    drawn_from = [asdict(errors), list(task.confusion.values())]  # not by name: a class may be called something else
    model = hashlib.sha256(json.dumps(drawn_from, sort_keys=True).encode()).hexdigest()[:8]
    return Seat(teacher, f"rehearsal:{teacher.annotator}#{model}", errors)


async def connect(stack: AsyncExitStack, seat: Seat, prompt: Prompt, task: TaskSpec, *, connections: int
                  ) -> tuple[Client, Rehearsal | None]:
    """A client of the seat's teacher, or of a stand-in in its place, which must learn what it will be shown."""
    teacher, stand_in = seat.teacher, None
    if seat.errors:
        price = teacher.price
        stand_in = await stack.enter_async_context(Rehearsal(
            task, seat.errors, model=teacher.model, price_in=price.input_usd, price_out=price.output_usd))
        # The stand-in asks for no key, and a real one must never be sent to it.
        teacher = replace(teacher, base_url=stand_in.base_url, key_env=None)
    client = Client(teacher, prompt, task, annotator=seat.annotator, connections=connections)
    return await stack.enter_async_context(client), stand_in
