"""Fifteen faults of tools that ask an LLM for labels, and the tests that reproduce each of them here.

`SHOWN_BY` is the index: each test named there fails where the fault is made. Those that belong to no other file stand
below it.
"""

import ast
import asyncio
import json
import random
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from scripted_server import (
    PROMPT,
    TASK,
    Asked,
    Server,
    answer,
    good,
    label,
    make_survey,
    make_teacher,
    make_texts,
    price,
    refuse,
    serving,
)

from src.config import Job
from src.errors import TeacherError
from src.labeling.budget import Budget
from src.labeling.client import Client, Fault
from src.labeling.labeler import Labeler, Tally
from src.labeling.outcome import Outcome
from src.labeling.plan import make_plan
from src.labeling.prompt import render
from src.labeling.spec import LabelerSpec
from src.labeling.stop import Stop
from src.labeling.writer import Writer
from src.store import Answered, Store
from src.task import Failure, Item

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# The fault, and by which tests (file::test) it is reproduced.
SHOWN_BY: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("a rate limit is known by one of its shapes alone", (
        "test_outcome::test_transient_faults",
        "test_outcome::test_unusable_content",
        "test_labeler::test_transient_failures_are_tried_again_and_cost_the_store_nothing",
    )),
    2: ("Retry-After is ignored, or heeded by one of many", (
        "test_outcome::test_retry_after",
        "test_labeler::test_retry_after_pauses_everyone",
        "test_pacing::test_a_pause_holds_everybody_and_lets_them_in_one_by_one",
        "test_pacing::test_processes_that_are_told_the_same_come_at_different_times",
    )),
    3: ("one after another in the end; one exception or slow row holds up all; failures wait until all are through", (
        "test_labeler::test_concurrency_is_a_bound_and_is_reached",
        "test_lessons::test_a_slow_question_holds_up_nobody_and_a_failed_one_is_tried_again_meanwhile",
        "test_lessons::test_an_exception_costs_no_answer_of_the_others",
        "test_labeler::test_a_bad_request_is_not_repeated",
    )),
    4: ("tokens are reserved by a rule of thumb; no plain limit on how many at once", (
        "test_quota::test_a_wrong_first_guess_is_corrected_by_what_is_measured",
        "test_quota::test_what_is_under_way_and_what_was_used_never_exceed_the_quota_by_more_than_the_errors",
        "test_lessons::test_what_a_reply_used_is_what_its_quota_is_charged",
        "test_labeler::test_concurrency_is_a_bound_and_is_reached",
    )),
    5: ("a price table is believed; failed tries are free", (
        "test_lessons::test_the_bill_is_booked_whatever_the_table_says",
        "test_labeler::test_a_price_table_that_is_too_low_is_found_out",
        "test_labeler::test_an_unusable_answer_is_asked_for_once_more_and_both_are_stored_with_their_cost",
        "test_labeler::test_a_transient_failure_that_cost_money_is_stored",
        "test_outcome::test_failed_tries_cost_money_too",
    )),
    6: ("the cost is unknown before it is paid, and nothing stops it", (
        "test_lessons::test_a_pilot_tells_what_the_rest_will_cost",
        "test_lessons::test_the_estimates_interval_holds_what_the_rest_costs",
        "test_labeler::test_a_budget_counts_what_is_in_flight",
        "test_labeler::test_the_cap_is_a_wall_whatever_becomes_of_what_is_in_flight",
    )),
    7: ("the key of an answer holds too little, or too much, or no pass; an exception is kept as an empty answer", (
        "test_prompt::test_another_question_has_another_hash",
        "test_prompt::test_how_an_item_is_shown_counts",
        "test_prompt::test_another_annotator_has_another_name",
        "test_asked_again::test_another_question_is_asked",
        "test_asked_again::test_the_same_question_is_not_asked_again",
        "test_asked_again::test_more_items_and_another_order_ask_for_the_new_ones_alone",
        "test_asked_again::test_the_second_pass_is_no_copy_of_the_first",
        "test_labeler::test_what_failed_for_now_is_asked_again_by_the_next_run",
    )),
    8: ("what was paid is lost by a crash, by Ctrl-C, or for a row that moved; everything is held in memory", (
        "test_kill::test_killed_at_a_hundred_moments_the_books_are_right_and_nothing_stored_is_asked_again",
        "test_kill::test_the_command_killed_goes_on_where_it_was",
        "test_interrupt::test_ctrl_c_keeps_what_is_in_flight_and_the_same_command_goes_on",
        "test_labeler::test_an_answer_is_on_disk_before_it_counts",
        "test_asked_again::test_more_items_and_another_order_ask_for_the_new_ones_alone",
        "test_lessons::test_memory_does_not_grow_with_what_was_answered",
    )),
    9: ("what an LLM says of its own confidence is believed; where it says nothing, everything is dropped", (
        "test_confidence::test_only_the_order_of_what_annotators_say_counts",
        "test_confidence::test_probabilities_keep_their_word_on_items_they_have_not_seen",
        "test_confidence::test_calibration_mends_over_confidence",
        "test_confidence::test_confidence_that_nobody_said_drops_nothing",
    )),
    10: ("thinking cuts the answer off, unnamed; a schema that some endpoints refuse, or pass over", (
        "test_outcome::test_unusable_content",
        "test_outcome::test_confidence",
        "test_prompt::test_the_schema_asks_for_strings_numbers_and_an_enum_alone",
        "test_lessons::test_hosted_teachers_do_not_think_and_must_heed_the_schema",
    )),
    11: ("two passes count as two opinions; disagreements, the hard items, vanish; labels are flipped by a score", (
        "test_consensus_study::test_agreement_shows_no_error_that_both_passes_make",
        "test_opinions::test_shared_mistakes_make_fewer_opinions",
        "test_consensus::test_crowdlab_is_cleanlabs",
        "test_conclude::test_disagreements_can_stay_as_probabilities",
        "test_conclude::test_disagreements_that_are_dropped_keep_votes_and_distribution",
        "test_conclude::test_a_second_look_can_only_agree_or_not",
        "test_opinions::test_people_gold_and_what_nobody_learns_from_are_never_suspected",
    )),
    12: ("Label Studio's export has no way back to the item, its paths are absolute, its tasks are not checked", (
        "test_label_studio::test_a_task_says_what_was_predicted_and_how_sure_that_is",
        "test_label_studio::test_local_addresses_are_relative_and_quoted",
        "test_label_studio::test_label_studios_own_validator_accepts_it",
    )),
    13: ("a package on the way of the money turns malicious", (
        "test_dependencies::test_every_dependency_is_pinned_and_none_is_known_to_be_bad",
        "test_dependencies::test_what_sees_the_key_imports_little",
        "test_dependencies::test_what_sees_the_key_loads_nobody_elses_client",
    )),
    14: ("the image goes into the wrong part, and every answer is the same, unseen for a whole run", (
        "test_rehearsal::test_a_breach_of_protocol_is_named",
        "test_preflight::test_a_teacher_that_does_not_look_is_stopped_after_a_handful",
        "test_preflight::test_a_teacher_that_ignores_the_schema_is_stopped_and_asked_again_once_mended",
        "test_preflight::test_a_blind_teacher_with_one_answer_never_passes",
        "test_preflight::test_a_good_teacher_passes",
        "test_agreement::test_nearly_one_class_stops",
        "test_third_party_server::test_every_request_is_taken_and_every_answer_stored",
    )),
    15: ("nobody asks whether another model may learn from the answers, or who keeps what was sent", (
        "test_lessons::test_conditions_are_sent_with_every_request",
        "test_lessons::test_a_teacher_that_may_be_learned_from_says_so_to_its_router",
        "test_labeler::test_what_is_stored_is_what_came",
        "test_datacard::test_every_condition_that_was_sent_is_told_and_what_was_not_is_named",
        "test_datacard::test_nothing_counts_as_enforced_where_another_endpoint_answers",
        "test_config::test_a_value_out_of_range_is_named",
    )),
}


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_fault_has_its_tests_and_they_exist() -> None:
    assert list(SHOWN_BY) == list(range(1, 16)) and all(tests for _, tests in SHOWN_BY.values())
    named = {test for _, tests in SHOWN_BY.values() for test in tests}
    there = {f"{path.stem}::{name}" for path in TESTS.glob("test_*.py") for name in names_in(path)}
    assert named <= there, sorted(named - there)
    own = {f"test_lessons::{name}" for name in names_in(Path(__file__))}
    assert own - named == {"test_lessons::test_every_fault_has_its_tests_and_they_exist"}


# 3


def test_a_slow_question_holds_up_nobody_and_a_failed_one_is_tried_again_meanwhile(store: Store) -> None:
    others = asyncio.Event()

    async def says(asked: Asked) -> web.StreamResponse:
        if asked.n == 1:
            # No answer before all others have theirs.
            await asyncio.wait_for(others.wait(), 60)
        if asked.n == 0 and asked.nth < 3:
            return refuse(503)
        # Each takes a moment, so that there is a while in which to try again.
        await asyncio.sleep(0.01)
        answered.add(asked.n)
        if len(answered) == 79:
            others.set()
        return answer(asked)

    answered: set[int] = set()
    server = Server(says)
    tally = label(server, 80, store, teacher={"timeout_s": 120.0})
    assert tally.outcomes == {"overloaded": 3, "answered": 80} and server.peak == 4
    tries = [asked.place for asked in server.asked if asked.n == 0]
    assert len(tries) == 4 and tries[-1] < 60


def test_an_exception_costs_no_answer_of_the_others(store: Store) -> None:
    """Also one that nobody has foreseen: what is in flight is kept, and the next run goes on from there."""
    class Asks:
        def __init__(self, broken: bool) -> None:
            self.broken, self.asked, self.raised = broken, Counter[str](), asyncio.Event()

        async def ask(self, shown: bytes | str, question: str, fault: Fault | None = None) -> Outcome:
            assert isinstance(shown, str)
            self.asked[shown] += 1
            if self.broken and len(self.asked) == 8:
                self.raised.set()
                raise ZeroDivisionError("nobody has foreseen this")
            if self.broken and len(self.asked) > 4:
                await asyncio.wait_for(self.raised.wait(), 60)
                await asyncio.sleep(0.05)
            return Outcome(label="pear", cost_usd=0.001)

    items = make_texts(40)
    first = Asks(broken=True)
    with pytest.raises((ZeroDivisionError, TeacherError)):
        ask_texts(items, store, first)
    kept = {a.item for a in store.read() if a.label == "pear"}
    (lost,) = [a for a in store.read() if a.item not in kept]
    assert len(first.asked) == 8 and len(kept) == 7 and lost.failure == Failure.LOST and lost.cost_usd > 0
    second = Asks(broken=False)
    ask_texts(items, store, second)
    assert len(second.asked) == 33 and not kept & second.asked.keys()
    assert len({a.item for a in store.read() if a.label == "pear"}) == 40


def ask_texts(items: list[Item], store: Store, client: Any, update: Callable[[Tally], None] = lambda tally: None,
              concurrency: int = 4, **changes: Any) -> Tally:
    """A labeler over a client of the test's own."""
    teacher, prompt = make_teacher("http://x/v1"), render(TASK, None)
    values: dict[str, Any] = {
        "max_items": 10, "passes": 1, "max_attempts": 4, "max_content_attempts": 2, "backoff_s": 0.001,
        "max_backoff_s": 0.01, "max_cost_usd": 1e6, "requests_per_minute": None, "tokens_per_minute": None,
        "adaptive": False, "preflight": False, "pilot": 0, "dry_run": False, "retry_failed": False}
    spec = LabelerSpec(concurrency=concurrency, **(values | changes))
    plan = make_plan(items, store.answered("t", prompt.hash), task=TASK, teacher=teacher, prompt=prompt,
                     passes=range(spec.passes), retry_failed=False)

    async def run() -> Tally:
        stop = Stop()
        labeler = Labeler(task=TASK, teacher=teacher, annotator="t", prompt=prompt, spec=spec, store=store,
                          show=lambda item: (str(item.payload), item.key), budget=Budget(spec.max_cost_usd), seed=0,
                          stop=stop)
        with stop.signals():
            async with Writer(store) as writer:
                return await labeler.run(iter(plan), client, writer, usual_tokens=100, dearest_usd=0.0, update=update)

    return asyncio.run(run())


# 4


def test_what_a_reply_used_is_what_its_quota_is_charged(store: Store) -> None:
    """The first guess is 100 tokens, a tenth of a minute's quota, and each reply used one."""
    class Asks:
        async def ask(self, shown: bytes | str, question: str, fault: Fault | None = None) -> Outcome:
            return Outcome(label="pear", cost_usd=0.0, tokens_in=1)

    started = time.monotonic()
    assert ask_texts(make_texts(20), store, Asks(), concurrency=1, tokens_per_minute=1000.0).answered == 20
    # A second of the quota; at the guess, two minutes of it.
    assert time.monotonic() - started < 60


# 5


@pytest.mark.parametrize("table_usd", [0.0, 0.0002, 0.02])
def test_the_bill_is_booked_whatever_the_table_says(store: Store, table_usd: float) -> None:
    """A table that is wrong by a factor of ten either way, and one that has the model for free."""
    async def says(asked: Asked) -> web.Response:
        assert "usage" not in asked.body, "the bill comes unasked; to ask for it is deprecated"
        if asked.n == 3 and asked.nth == 0:
            return answer(asked, content="no JSON", cost=0.002)
        return answer(asked, cost=0.002)

    tally = label(Server(says), 10, store, teacher=price(table_usd))
    assert [a.cost_usd for a in store.read()] == [0.002] * 11 and tally.cost_usd == pytest.approx(0.022)


# 6


def test_a_pilot_tells_what_the_rest_will_cost(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(0)

    async def says(asked: Asked) -> web.Response:
        server.billed.append(round(chance.lognormvariate(-6, 0.3), 6))
        return answer(asked, cost=server.billed[-1])

    items = make_texts(70)
    with serving(Server(says)) as server:
        make_survey(server.base_url, store, pilot=20, teacher=price(0.02)).run(items[:10], items[10:], lambda a: None)
    told = re.search(r"Pilot, m: 20 answers cost \$([\d.]+); the 50 questions left are estimated at \$([\d.]+), "
                     r"95% interval \[([\d.]+), ([\d.]+)\]; at the most \$([\d.]+)\.", capsys.readouterr().out)
    assert told
    paid, estimate, low, high, most = map(float, told.groups())
    rest = sum(server.billed[20:])
    assert paid == pytest.approx(sum(server.billed[:20]), abs=1e-4)
    assert low < estimate < high < most and low - 0.005 <= rest <= high + 0.005
    assert set(server.tries().values()) == {1}, "the pilot's answers are answers like all others"


def test_the_estimates_interval_holds_what_the_rest_costs() -> None:
    """Also where one try in five brought nothing and had to be paid for as well."""
    chance, teacher, held = random.Random(0), make_teacher("http://x/v1"), 0

    def tries(item: Item) -> list[Answered]:
        labels = [None] * (chance.random() < 0.2) + ["pear"]
        return [Answered(item.key, 0, n, label, None if label else "empty", chance.lognormvariate(-8, 0.3))
                for n, label in enumerate(labels)]

    items = make_texts(40)
    for _ in range(1000):
        bought = [tries(item) for item in items]
        paid = [row for rows in bought[:20] for row in rows]
        plan = make_plan(items, paid, task=TASK, teacher=teacher, prompt=PROMPT, passes=[0], retry_failed=False)
        assert plan.estimate and len(plan) == 20
        held += plan.estimate.low <= sum(row.cost_usd for rows in bought[20:] for row in rows) <= plan.estimate.high
    assert 930 <= held <= 980


# 8


def test_memory_does_not_grow_with_what_was_answered(store: Store) -> None:
    """Replies of 20 KB: 540 of them, held to the end, would be 11 MB."""
    class Asks:
        async def ask(self, shown: bytes | str, question: str, fault: Fault | None = None) -> Outcome:
            return Outcome(label="pear", cost_usd=0.0, reply=f"{shown!r} {'x' * 20_000}")

    held = {}

    def update(tally: Tally) -> None:
        if tally.done in (60, 600):
            held[tally.done] = tracemalloc.get_traced_memory()[0]

    items = make_texts(600)
    tracemalloc.start()
    try:
        ask_texts(items, store, Asks(), update)
    finally:
        tracemalloc.stop()
    assert held[600] - held[60] < 4e6


# 10 and 15

CONF = ROOT / "conf/teacher"
HOSTED = [path.stem for path in sorted(CONF.glob("*.yaml")) if "openrouter.ai" in path.read_text()]


def request(job: Job) -> dict[str, Any]:
    return Client(job.teacher, PROMPT, TASK, connections=1).body(b"\xff\xd8")


@pytest.mark.parametrize("name", HOSTED)
def test_hosted_teachers_do_not_think_and_must_heed_the_schema(name: str, make_job: Callable[..., Job]) -> None:
    body = request(make_job(f"teacher={name}"))
    assert body["response_format"]["type"] == "json_schema" and body["provider"]["require_parameters"] is True
    written = json.dumps(body["response_format"])
    assert not re.search("additionalProperties|inimum|aximum|pattern|oneOf|anyOf", written)
    if "gemini-2.5" in body["model"]:
        assert body["reasoning"] == {"effort": "none"}


def test_conditions_are_sent_with_every_request(store: Store) -> None:
    conditions = {"require_parameters": True, "data_collection": "deny", "enforce_distillable_text": True, "zdr": True,
                  "only": ["google-vertex"]}

    async def says(asked: Asked) -> web.StreamResponse:
        assert asked.body["provider"] == conditions
        # Also where a question is asked once more.
        return answer(asked, content="no JSON") if asked.n == 0 and asked.nth == 0 else await good(asked)

    server = Server(says)
    tally = label(server, 5, store, teacher={"routing": {"provider": conditions}})
    assert len(server.asked) == 6 and tally.outcomes == {"answered": 5, "invalid_json": 1}


def test_a_teacher_that_may_be_learned_from_says_so_to_its_router(make_job: Callable[..., Job]) -> None:
    assert len(HOSTED) >= 2
    for name in HOSTED:
        job = make_job(f"teacher={name}")
        provider = request(job)["provider"]
        assert provider["data_collection"] == "deny"
        if job.teacher.terms.training == "yes":
            assert provider["enforce_distillable_text"] is True
    added = make_job("+teacher.routing.provider.enforce_distillable_text=true")
    assert request(added)["provider"]["enforce_distillable_text"] is True
