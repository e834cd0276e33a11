"""The policy: every combination has one route, and a replay and a server take the same one."""

import asyncio
import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from scipy.stats import binomtest

from src.cascade.policy import (
    Decision,
    Escalation,
    EscalationReason,
    HumanReason,
    Opinion,
    Policy,
    Reply,
    Route,
    decide,
    first,
    then,
)
from src.cascade.spec import CascadeSpec
from src.errors import ConfigError
from src.task import Failure

DEFAULT = Path(__file__).parents[1] / "conf/cascade/default.yaml"
CONFIDENCES = [0.2, 0.5, 0.8, 0.95, 1.0]
THRESHOLDS = [None, 1.0, 0.95, 0.8, 0.5, 0.0]  # strictest first
REPLIES = [*(Reply(answer, probability) for answer in ("cat", "dog") for probability in (None, 0.0, 0.4, 0.6, 1.0)),
           *(Reply(failure=failure) for failure in Failure), Reply(over_budget=True)]
EVERYTHING = list(itertools.product(THRESHOLDS, (0.0, 0.5, 0.6, 1.0), (0.0, 0.3, 1.0), ("a", "b", "c", "d"),
                                    CONFIDENCES, REPLIES))


def reference(threshold: float | None, least: float, audited: bool, confidence: float,
              reply: Reply) -> tuple[str, str | None, str | None]:
    """Route, why escalated, why a person's: the task's own words, once more and in another order."""
    differ = reply.answer != "cat"
    sure = reply.answer is not None and (least == 0 or (reply.probability or -1.0) >= least)
    confident = threshold is not None and confidence >= threshold
    if confident and not audited:
        return "student", None, None
    why = "audit" if confident else "uncertified" if threshold is None else "doubtful"
    if sure and not (confident and differ):
        return "teacher", why, None
    if sure:
        return "human", why, "disagreement"
    if reply.over_budget:
        return "human", why, "over_budget"
    return "human", why, "teacher_failed" if reply.failure else "teacher_unsure"


def decided(policy: Policy, key: str, confidence: float, reply: Reply) -> Decision:
    return decide(policy, key, Opinion("cat", confidence), lambda escalation: reply)


def test_every_combination_takes_the_route_that_the_task_says() -> None:
    routes = set()
    for threshold, least, share, key, confidence, reply in EVERYTHING:
        policy = Policy(threshold, least, share, seed=3)
        found = decided(policy, key, confidence, reply)
        expected = reference(threshold, least, policy.audits(key), confidence, reply)
        assert (found.route, found.escalated, found.human) == expected, (policy, key, confidence, reply)
        if found.route == Route.STUDENT:
            assert (found.answer, found.probability, found.reply) == ("cat", confidence, None)
        elif found.route == Route.TEACHER:
            assert (found.answer, found.probability, found.reply) == (reply.answer, reply.probability, reply)
        else:
            assert (found.answer, found.probability, found.reply) == (None, None, reply)
        assert found.key == key and found.student == Opinion("cat", confidence)
        routes.add(expected)
    # All that can be: the student alone, and for each way in, each way out; two can only differ where both are sure.
    ways = {(why, human) for _, why, human in routes}
    out = [None, HumanReason.TEACHER_UNSURE, HumanReason.TEACHER_FAILED, HumanReason.OVER_BUDGET]
    assert ways == {(None, None), *itertools.product(EscalationReason, out),
                    (EscalationReason.AUDIT, HumanReason.DISAGREEMENT)}


def test_a_higher_threshold_gives_the_student_no_item() -> None:
    for least, share, key, confidence, reply in itertools.product((0.0, 0.6), (0.0, 0.3), "abcd", CONFIDENCES, REPLIES):
        alone = [decided(Policy(threshold, least, share), key, confidence, reply).route == Route.STUDENT
                 for threshold in THRESHOLDS]
        assert alone == sorted(alone)


def test_a_threshold_is_reached_by_what_equals_it() -> None:
    policy = Policy(0.8, 0.5, 0.0)
    assert isinstance(first(policy, "a", Opinion("cat", 0.8)), Decision)
    assert isinstance(first(policy, "a", Opinion("cat", math.nextafter(0.8, 0))), Escalation)


def test_who_is_not_needed_is_not_asked() -> None:
    def ask(escalation: Escalation) -> Reply:
        raise AssertionError(f"asked about {escalation}")

    assert decide(Policy(0.8, 0.5, 0.0), "a", Opinion("cat", 0.9), ask).route == Route.STUDENT
    with pytest.raises(AssertionError, match="asked about Escalation"):
        decide(Policy(0.8, 0.5, 1.0), "a", Opinion("cat", 0.9), ask)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_as_many_are_audited_as_was_asked_for_whatever_the_confidence(share: float) -> None:
    """By the exact binomial test, for the doubtful half and the sure one."""
    rng = random.Random(0)
    for seed in (0, 1):
        policy = Policy(0.0, 0.5, share, seed)
        cases = [(f"item-{n}", rng.random()) for n in range(20_000)]
        drawn = [(confidence, policy.audits(key)) for key, confidence in cases]
        halves = [[audited for confidence, audited in drawn if (confidence < 0.5) == low] for low in (True, False)]
        for half in halves:
            assert binomtest(sum(half), len(half), share).pvalue > 0.001
        escalated = [isinstance(first(policy, key, Opinion("cat", sure)), Escalation) for key, sure in cases]
        assert escalated == [audited for _, audited in drawn]


def test_no_share_audits_nothing_and_the_whole_share_all() -> None:
    keys = [f"item-{n}" for n in range(2000)]
    assert not any(Policy(0.0, 0.5, 0.0).audits(key) for key in keys)
    assert all(Policy(0.0, 0.5, 1.0).audits(key) for key in keys)


def test_the_draw_is_the_keys_and_the_seeds_alone_and_a_larger_share_adds_to_it() -> None:
    keys = [f"item-{n}" for n in range(5000)]

    def drawn(share: float, seed: int = 0, **others: float) -> set[str]:
        return {key for key in keys if Policy(**{"threshold": 0.5, "teacher_confidence": 0.5, **others},
                                              audit_share=share, seed=seed).audits(key)}

    assert drawn(0.1) == drawn(0.1, threshold=0.9, teacher_confidence=0.1)
    assert drawn(0.01) < drawn(0.1) < drawn(0.2)
    both = drawn(0.1, 0) & drawn(0.1, 1)
    assert binomtest(len(both), len(keys), 0.01).pvalue > 0.001  # another seed draws as if it knew nothing of the first
    # Written down: another version that draws otherwise would audit other items than the log says.
    assert [key for key in keys[:60] if Policy(0.5, 0.5, 0.05).audits(key)] == ["item-5", "item-53"]


def test_a_server_and_a_replay_take_the_same_routes() -> None:
    """Replies come in another order than the questions, which are all on their way at once."""
    rng = random.Random(1)
    policy = Policy(0.8, 0.6, 0.1, seed=7)
    items = [(f"request-{n}", Opinion(rng.choice(["cat", "dog"]), rng.random()), rng.choice(REPLIES))
             for n in range(4000)]

    async def serve(key: str, student: Opinion, reply: Reply) -> Decision:
        step = first(policy, key, student)
        if isinstance(step, Decision):
            return step
        for _ in range(random.Random(key).randrange(5)):
            await asyncio.sleep(0)
        return then(policy, step, reply)

    async def everything() -> list[Decision]:
        return await asyncio.gather(*(serve(*item) for item in items))

    live = asyncio.run(everything())
    simulated = [decide(policy, key, student, lambda _, reply=reply: reply) for key, student, reply in items]
    assert live == simulated
    assert {found.route for found in live} == set(Route) and {found.human for found in live} == {None, *HumanReason}


def test_an_opinion_is_the_most_probable_class_and_of_several_the_first() -> None:
    assert Opinion.of([0.2, 0.4, 0.4], ["a", "b", "c"]) == Opinion("b", 0.4)
    assert Opinion.of([0.0, 1.0000001], ["a", "b"]) == Opinion("b", 1.0)  # float32 sums to one as well as it can


@pytest.mark.parametrize(("given", "message"), [
    ([0.5, 0.2], "sum to one"), ([math.nan, 0.5], "nan"), ([1.5, -0.5], "not negative"), ([math.inf, 0.0], "finite"),
    ([1.0], "2 are needed, one for each of a, b"), ([], "2 are needed"),
])
def test_what_is_no_probability_is_no_opinion(given: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Opinion.of(given, ["a", "b"])


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_what_does_not_lie_in_the_unit_interval_is_named(value: float) -> None:
    good = Policy(0.5, 0.5, 0.5)
    for name in ("threshold", "teacher_confidence", "audit_share"):
        with pytest.raises(ValueError, match=f"^{name}={value}: must lie in"):
            replace(good, **{name: value})
    for make in (lambda: Opinion("cat", value), lambda: Reply("cat", value)):
        with pytest.raises(ValueError, match=f"^probability={value}: must lie in"):
            make()


@pytest.mark.parametrize(("given", "message"), [
    ({}, "a reply is one of the three"), ({"answer": "cat", "failure": Failure.TIMEOUT}, "one of the three"),
    ({"answer": "cat", "over_budget": True}, "over_budget=True"),
    ({"failure": Failure.LOST, "probability": 0.5}, r"probability=0\.5 without an answer"),
    ({"answer": "cat", "cost_usd": -1.0}, r"cost_usd=-1\.0"),
    ({"answer": "cat", "latency_s": math.nan}, "latency_s=nan"),
])
def test_a_reply_that_contradicts_itself_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reply(**given)


def test_a_decision_that_contradicts_itself_is_refused() -> None:
    """Of all combinations of route, reasons, answer and reply, those that the policy can make, and a person's answer
    to come."""
    student, reply = Opinion("cat", 0.9), Reply("dog", 0.9)
    allowed = set()
    for route, why, human, answer, given in itertools.product(
            Route, (None, EscalationReason.AUDIT), (None, HumanReason.DISAGREEMENT), (None, "cat"), (None, reply)):
        try:
            Decision("a", answer, None, route, why, human, student, given)
        except ValueError:
            continue
        allowed.add((str(route), why is not None, human is not None, answer, given is not None))
    assert allowed == {("student", False, False, "cat", False), ("teacher", True, False, "cat", True),
                       ("human", True, True, None, True), ("human", True, True, "cat", True)}


def test_an_outcome_reads_like_a_heading() -> None:
    policy = Policy(0.8, 0.5, 0.0)
    sure, doubtful, audited = (0.9, policy), (0.3, policy), (0.9, replace(policy, audit_share=1.0))
    found = [decided(at, "a", confidence, reply).outcome for (confidence, at), reply in (
        (sure, REPLIES[0]), (doubtful, Reply("cat", 0.9)), (doubtful, Reply("cat")), (audited, Reply("dog", 0.9)))]
    assert found == ["student", "doubtful: teacher", "doubtful: teacher_unsure", "audit: disagreement"]
    assert Escalation("a", Opinion("cat", 0.9), EscalationReason.AUDIT).outcome == "audit: unknown"


def spec(**changes: object) -> CascadeSpec:
    return CascadeSpec(**{**OmegaConf.to_container(OmegaConf.load(DEFAULT)), **changes})


def test_the_defaults_take_the_certified_threshold() -> None:
    assert spec().policy(0.9) == Policy(0.9, 0.5, 0.01, 0)
    assert spec().policy(None).threshold is None
    assert spec(threshold=0.0).policy(0.9).threshold == spec(threshold=0.0).policy(None).threshold == 0.0


@pytest.mark.parametrize(("key", "value"), [
    ("threshold", 1.1), ("threshold", -0.1), ("threshold", math.nan), ("teacher_confidence", 2.0),
    ("teacher_confidence", math.nan), ("audit_share", -0.01), ("audit_share", 1.5), ("seed", -1),
])
def test_a_value_out_of_range_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        spec(**{key: value})
    assert f"cascade.{key}={value!r} is not allowed: " in str(error.value)
