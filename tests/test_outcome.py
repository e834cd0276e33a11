"""Replies → outcomes: every shape of a rate limit, fatal faults, refusals, broken answers, and nothing ever raises."""

import json
import math
import random
import string
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from src.labeling.outcome import Outcome, classify
from src.store import Store
from src.task import Annotation, Failure, TaskSpec

NOW = 1_772_366_400.0  # Sun, 01 Mar 2026 12:00:00 GMT
TASK = TaskSpec(
    name="fruit", version=1, kind="classify", classes={"apple": "", "pear": "", "sweet_pepper": ""},
    aliases={"pears": "pear", "Bell Pepper": "sweet_pepper"}, system_prompt="", user_prompt="", metric="accuracy",
)
ANSWER = {"label": "pear", "confidence": 0.9, "why": "narrow towards the stem"}


def judge(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Outcome:
    text = body if isinstance(body, str) else json.dumps(body)
    outcome = classify(status, headers or {}, text, TASK, now=NOW)
    assert outcome.reply == text.replace("\0", "\ufffd"), "the reply is stored as it came, but for what is no text"
    return outcome


def completion(content: object, finish: str | None = "stop", usage: object = None, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return {"id": "x", "model": "served-model", "provider": "somebody", "choices": [choice], "usage": usage}


def answered(**changes: Any) -> Outcome:
    return judge(completion(json.dumps(ANSWER | changes)))


def error(code: object = None, message: str = "it failed", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **more}}


def test_a_plain_answer() -> None:
    usage = {"prompt_tokens": 300, "completion_tokens": 25, "cost": 0.00015}
    outcome = judge(completion(json.dumps(ANSWER), usage=usage))
    assert asdict(outcome) == {
        "label": "pear", "failure": None, "confidence": 0.9, "why": "narrow towards the stem", "cost_usd": 0.00015,
        "tokens_in": 300, "tokens_out": 25, "model": "served-model", "provider": "somebody", "retry_after_s": None,
        "fatal": None, "reply": outcome.reply, "latency_s": 0.0, "flaws": (),
        "started": False,
    }


# Errors: status, body, words

TRANSIENT = [
    # HTTP 429, with OpenAI's body, with OpenRouter's, with none and with a page.
    (429, error("rate_limit_exceeded", "Rate limit reached", type="requests"), Failure.RATE_LIMIT),
    (429, error(429, "Provider returned error", metadata={"raw": "slow", "provider_name": "x"}), Failure.RATE_LIMIT),
    (429, "", Failure.RATE_LIMIT),
    (429, "<html>Too Many Requests</html>", Failure.RATE_LIMIT),
    (429, {"message": "API rate limit exceeded"}, Failure.RATE_LIMIT),
    # The error comes inside a 200, its code a number, a string or a word; beside or within the choice.
    (200, error(429), Failure.RATE_LIMIT),
    (200, error("429"), Failure.RATE_LIMIT),
    (200, error("rate_limit_exceeded"), Failure.RATE_LIMIT),
    (200, error(None, "Rate limit exceeded: free-models-per-min"), Failure.RATE_LIMIT),
    (200, {"error": "rate limit exceeded"}, Failure.RATE_LIMIT),
    (200, {"choices": [{"error": {"code": 429, "message": "up"}, "message": {"content": ""}}]}, Failure.RATE_LIMIT),
    (200, completion(json.dumps(ANSWER)) | error("429"), Failure.RATE_LIMIT),
    # The body's code is the upstream model's and goes before the status that carried it.
    (400, error(429), Failure.RATE_LIMIT),
    (502, error("429"), Failure.RATE_LIMIT),
    (500, error(None, "upstream said: rate_limit"), Failure.RATE_LIMIT),
    (200, error(502, "Provider returned error"), Failure.OVERLOADED),
    (200, error("503"), Failure.OVERLOADED),
    (200, error("server_error"), Failure.OVERLOADED),
    (200, {"error": {"message": "unspecific"}}, Failure.OVERLOADED),
    (200, {"error": "unspecific"}, Failure.OVERLOADED),
    (200, {"error": ["odd"]}, Failure.OVERLOADED),
    (500, "", Failure.OVERLOADED),
    (503, error(None), Failure.OVERLOADED),
    (529, error("overloaded_error"), Failure.OVERLOADED),
    (504, "<html>Gateway Timeout</html>", Failure.TIMEOUT),
    (524, "<html>A timeout occurred</html>", Failure.TIMEOUT),
    (408, error(408), Failure.TIMEOUT),
    (200, error(408), Failure.TIMEOUT),
    # Codes that are no HTTP status say nothing.
    (429, error(1302), Failure.RATE_LIMIT),
    (429, error(True), Failure.RATE_LIMIT),
    (429, error("²"), Failure.RATE_LIMIT),
    (429, error("9" * 5000), Failure.RATE_LIMIT),
    (503, error(0), Failure.OVERLOADED),
    (503, error(-1), Failure.OVERLOADED),
]


@pytest.mark.parametrize(("status", "body", "failure"), TRANSIENT)
def test_transient_faults(status: int, body: object, failure: Failure) -> None:
    outcome = judge(body, status)
    assert (outcome.failure, outcome.fatal, outcome.label) == (failure, None, None) and failure.transient


FATAL = [
    (401, error("invalid_api_key", "Incorrect API key provided"), "teacher.key_env"),
    (401, error(401, "No auth credentials found"), "teacher.key_env"),
    (401, "", "teacher.key_env"),
    (200, error(401), "teacher.key_env"),
    # Google's own endpoint answers in a list, and a wrong key with 400.
    (400, [error(400, "API key not valid. Please pass a valid one.", status="INVALID_ARGUMENT")], "teacher.key_env"),
    (402, error(402, "Insufficient credits"), "Top it up"),
    (200, error("402"), "Top it up"),
    (429, error("insufficient_quota", "You exceeded your current quota"), "Top it up"),
    (403, error(403, "Key limit exceeded"), "teacher.model and the key"),
    (403, "Forbidden", "teacher.model and the key"),
    (404, error("model_not_found", "The model `x` does not exist"), "teacher.model and teacher.base_url"),
    (404, error(None, 'model "x" not found, try pulling it', type="api_error"), "teacher.model and teacher.base_url"),
    (404, "<html>404 page not found</html>", "teacher.model and teacher.base_url"),
    (400, error(400, "x/y is not a valid model ID"), "teacher.model and teacher.base_url"),
    (400, error(400, "Invalid model name passed in model=x"), "teacher.model and teacher.base_url"),
    (200, error("model_not_found"), "teacher.model and teacher.base_url"),
    (404, error(404, "No endpoints found for x/y:free."), "teacher.model and teacher.base_url"),
    # The model is there, but none of its providers does all that teacher.routing.provider asks.
    (404, error(404, "No endpoints found that support the requested parameters."), "teacher.routing.provider"),
    (404, error(404, "No endpoints found matching your data policy (Paid model training). Configure: https://x/y"),
     "teacher.routing.provider"),
    (404, error(404, "No endpoints available matching your guardrail restrictions and data policy."),
     "teacher.routing.provider"),
    (200, error(404, "No allowed providers are available for the selected model."), "teacher.routing.provider"),
]


@pytest.mark.parametrize(("status", "body", "way_out"), FATAL)
def test_faults_that_every_question_would_meet(status: int, body: object, way_out: str) -> None:
    outcome = judge(body, status)
    assert outcome.failure == Failure.BAD_REQUEST and outcome.label is None
    assert outcome.fatal and way_out in outcome.fatal and "\n" not in outcome.fatal
    fields = body[0] if isinstance(body, list) else body
    words = fields["error"]["message"] if isinstance(fields, dict) else str(fields)
    assert words in outcome.fatal, "the provider's own words are told"


@pytest.mark.parametrize(("status", "body"), [
    (400, error(400, "image too large")),
    (413, "Payload Too Large"),
    (422, error(None, "temperature: must be at most 1")),
    (400, error("string_above_max_length")),
    (302, ""),
])
def test_faults_of_one_question(status: int, body: object) -> None:
    outcome = judge(body, status)
    assert outcome.failure == Failure.BAD_REQUEST and outcome.fatal is None and not Failure.BAD_REQUEST.transient


MODERATED = error(403, "Input was flagged", metadata={"reasons": ["violence"], "flagged_input": "…"})


@pytest.mark.parametrize(("status", "body"), [
    (403, MODERATED),
    (200, MODERATED),
    (403, error(403, "Your input was flagged")),
    (403, error(None, "Request blocked", type="moderation_error")),
    (400, error("moderation_blocked", "Your request was rejected")),
    (400, error("content_filter", "The response was filtered")),
    (400, error(None, "Your request was rejected: content_policy_violation")),
    (200, completion("", "content_filter")),
    (200, completion(None, "content_filter")),
    (200, completion(None, refusal="I can't help with that.")),
    (200, completion("", refusal="I can't help with that.")),
])
def test_refusals(status: int, body: object) -> None:
    outcome = judge(body, status)
    assert (outcome.failure, outcome.fatal) == (Failure.REFUSAL, None) and outcome.why


def test_a_long_page_is_cut_and_set_on_one_line() -> None:
    outcome = judge("<html>\n\n  <h1>Not\tFound</h1>\n" + "x" * 10_000, 404)
    assert outcome.why.startswith("<html> <h1>Not Found</h1> x") and len(outcome.why) <= 300


# Retry-After


@pytest.mark.parametrize(("value", "seconds"), [
    ("7", 7.0), ("0", 0.0), ("1.5", 1.5), (" 20 ", 20.0), ("-3", 0.0),
    ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0), ("Sun, 01 Mar 2026 11:59:00 GMT", 0.0),
    ("Sunday, 01-Mar-26 12:00:09 GMT", 9.0),
    ("Sun, 01 Mar 2026 13:00:30 +0100", 30.0),
    ("soon", None), ("", None), ("nan", None), ("inf", None), ("1e999", None), ("Sun, 99 Mar 2026 12:00:30 GMT", None),
    ("Sun, 01 Mar 99999 12:00:30 GMT", None), ("2026-03-01T12:00:30Z", None), (None, None),
])  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    headers = {} if value is None else {"Retry-After": value}
    assert judge(error(429), 429, headers).retry_after_s == seconds
    assert judge(error(429), 200, headers).retry_after_s == seconds, "also beside an error in a 200"


# Content


@pytest.mark.parametrize("content", [
    json.dumps(ANSWER),
    "\n  " + json.dumps(ANSWER, indent=2) + "\n",
    f"```json\n{json.dumps(ANSWER)}\n```",
    f"```\n{json.dumps(ANSWER)}\n```\nAnything else?",
    f"Here is my answer:\n{json.dumps(ANSWER)}\nLet me know.",
    f"Looking at {{the stem}}, I say {json.dumps(ANSWER)} {{sure}}",
    f"[{json.dumps(ANSWER)}]",
    [{"type": "text", "text": json.dumps(ANSWER)[:20]}, {"type": "text", "text": json.dumps(ANSWER)[20:]}],
    [{"type": "reasoning", "summary": "…"}, {"type": "text", "text": json.dumps(ANSWER)}, "stray", None],
])
def test_dressed_answers(content: object) -> None:
    outcome = judge(completion(content))
    assert (outcome.label, outcome.confidence, outcome.failure) == ("pear", 0.9, None)


APPLE, PEAR = '{"label": "apple"}', '{"label": "pear", "confidence": 0.9}'


@pytest.mark.parametrize("content", [
    f"{PEAR}{PEAR}",
    f'{{"label": "Pear."}}\n{PEAR}',
    f'{{"label": "pears"}} is what I say.\n```json\n{PEAR}\n```',
    f'{{"reasoning": "narrow", "guess": {APPLE}}}\n{PEAR}',
    f'{{"reasoning": "narrow"}} {PEAR} {{"done": true}}',
    f"<think>{{stem}} {{}}</think>{PEAR}",
    f"<think>Perhaps {APPLE}? No.</think>{PEAR}",
])
def test_of_several_objects_those_with_a_label_count(content: str) -> None:
    outcome = judge(completion(content))
    assert (outcome.label, outcome.confidence, outcome.failure) == ("pear", 0.9, None)
    assert outcome.flaws == ("repaired_json",)


@pytest.mark.parametrize("content", [
    f"For example {APPLE} would be wrong. Answer: {PEAR}",
    f"{PEAR}{APPLE}",
    f"[{PEAR}, {APPLE}]",
    f'{{"answers": [{PEAR}, {APPLE}] oops',
    f'{PEAR} {{"label": null}}',
    f'{PEAR} {{"label": "plum"}}',
    '{"label": "<one>"} {"label": "plum"}',
])
def test_different_labels_in_one_reply_are_no_answer(content: str) -> None:
    """Which of them is meant, its author is asked."""
    outcome = judge(completion(content))
    assert (outcome.failure, outcome.label, outcome.flaws) == (Failure.INVALID_JSON, None, ("several_labels",))
    assert outcome.fault == "it holds several objects with different labels" and outcome.why
    assert judge(completion("pear")).fault == "it is not one JSON object"


@pytest.mark.parametrize(("content", "failure"), [
    (f"<think>Perhaps {APPLE}? No, the stem", Failure.TRUNCATED),
    (f"Perhaps {APPLE}? Rather {PEAR[:12]}", Failure.TRUNCATED),
    (f"{PEAR} I say so because", None),
    (f"```json\n{PEAR}\n``", None),
    (f"I say:\n{PEAR}\n", None),
])
def test_what_was_thought_aloud_before_it_was_cut_is_no_answer(content: str, failure: Failure | None) -> None:
    assert judge(completion(content, "length")).failure == failure


@pytest.mark.parametrize("finish", ["stop", "length", None, "eos", 7])
def test_a_whole_answer_counts_whatever_ended_it(finish: Any) -> None:
    assert judge(completion(json.dumps(ANSWER), finish)).failure is None


@pytest.mark.parametrize(("content", "finish", "failure"), [
    (json.dumps(ANSWER)[:20], "length", Failure.TRUNCATED),
    ("", "length", Failure.TRUNCATED),
    (None, "length", Failure.TRUNCATED),
    ("", "stop", Failure.EMPTY),
    (" \n", "stop", Failure.EMPTY),
    (None, "stop", Failure.EMPTY),
    ([], "stop", Failure.EMPTY),
    (17, "stop", Failure.EMPTY),
    ({"label": "pear"}, "stop", Failure.EMPTY),
    (json.dumps(ANSWER)[:20], "stop", Failure.INVALID_JSON),
    (json.dumps(ANSWER).replace(",", ""), "stop", Failure.INVALID_JSON),
    (json.dumps(ANSWER).replace('"', "'"), "stop", Failure.INVALID_JSON),
    ("pear", "stop", Failure.INVALID_JSON),
    ('"pear"', "stop", Failure.INVALID_JSON),
    ("[]", "stop", Failure.INVALID_JSON),
    ("null", "stop", Failure.INVALID_JSON),
    ("{}", "stop", Failure.UNKNOWN_LABEL),
    ('{"label": ["pear"]}', "stop", Failure.UNKNOWN_LABEL),
    ('{"label": null}', "stop", Failure.UNKNOWN_LABEL),
    ('{"label": 3}', "stop", Failure.UNKNOWN_LABEL),
    ('{"class": "pear"}', "stop", Failure.UNKNOWN_LABEL),
])  # fmt: skip
def test_unusable_content(content: object, finish: str, failure: Failure) -> None:
    outcome = judge(completion(content, finish))
    assert (outcome.failure, outcome.label, outcome.fatal) == (failure, None, None) and not failure.transient


@pytest.mark.parametrize("body", [
    "", "null", "[]", "17", '"text"', "<html></html>", "{", "{}", "[1, 2]",
    {"choices": []}, {"choices": None}, {"choices": [None]},
    {"choices": {"0": {}}}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": [{"message": "pear"}]},
    {"error": None}, {"error": {}}, {"error": ""},
])  # fmt: skip
def test_a_200_that_holds_no_answer(body: object) -> None:
    assert judge(body).failure == Failure.EMPTY


@pytest.mark.parametrize(("raw", "means"), [
    ("pear", "pear"), ("Pear", "pear"), (" pear. ", "pear"), ("PEARS", "pear"), ('"pear"', "pear"),
    ("sweet pepper", "sweet_pepper"), ("Sweet-Pepper", "sweet_pepper"), ("bell  pepper", "sweet_pepper"),
    ("", None), ("plum", None), ("pear or apple", None), ("<one>", None), ("péar", None),
])  # fmt: skip
def test_labels_are_kept_as_spelt(raw: str, means: str | None) -> None:
    outcome = answered(label=raw)
    assert outcome.label == raw and TASK.map_label(outcome.label) == means
    assert outcome.failure == (None if means else Failure.UNKNOWN_LABEL)
    assert outcome.confidence == 0.9 and outcome.why == ANSWER["why"], "an unknown label keeps what was said with it"


@pytest.mark.parametrize(("said", "confidence"), [
    (0, 0.0), (1, 1.0), (0.5, 0.5), ("0.7", 0.7), (" 1 ", 1.0),
    ("95%", None), ("high", None), ("", None), (1.01, None), (-0.1, None), (95, None), ("95", None),
    (True, None), (False, None), (None, None),
    (math.nan, None), (math.inf, None), (-math.inf, None), ("nan", None), ("inf", None), ([0.9], None),
    ({"value": 0.9}, None), (10**400, None), ("9" * 5000, None),
])  # fmt: skip
def test_confidence(said: object, confidence: float | None) -> None:
    outcome = answered(confidence=said)
    assert (outcome.label, outcome.failure, outcome.confidence) == ("pear", None, confidence)


def test_no_confidence_and_no_reason_are_no_fault() -> None:
    outcome = judge(completion('{"label": "pear"}'))
    assert (outcome.label, outcome.failure, outcome.confidence, outcome.why) == ("pear", None, None, "")
    assert answered(why=["odd"]).why == "" and len(answered(why="x" * 9999).why) == 300


# Usage


@pytest.mark.parametrize(("cost", "booked"), [
    (0.00015, 0.00015), (0, 0.0), (2, 2.0), (1e-9, 1e-9),
    (None, None), (-0.1, None), (True, None), ("0.00015", None), (math.nan, None), (math.inf, None),
    (10**400, None), ([], None),
])  # fmt: skip
def test_cost_as_the_provider_says_it(cost: object, booked: float | None) -> None:
    outcome = judge(completion(json.dumps(ANSWER), usage={"prompt_tokens": 3, "completion_tokens": 4, "cost": cost}))
    assert outcome.cost_usd == booked and (outcome.tokens_in, outcome.tokens_out) == (3, 4) and outcome.label == "pear"


@pytest.mark.parametrize("usage", [
    None, [], "many", 17, {}, {"prompt_tokens": None}, {"prompt_tokens": "300"}, {"prompt_tokens": -1},
    {"prompt_tokens": True, "completion_tokens": True}, {"prompt_tokens": 10**30},
])  # fmt: skip
def test_usage_that_says_nothing(usage: object) -> None:
    outcome = judge(completion(json.dumps(ANSWER), usage=usage))
    assert (outcome.tokens_in, outcome.tokens_out, outcome.cost_usd, outcome.label) == (0, 0, None, "pear")


def test_failed_tries_cost_money_too() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.25}
    for body in (completion("", usage=usage), completion("{", "length", usage=usage), completion("no", usage=usage),
                 completion(None, refusal="no", usage=usage), {"usage": usage} | error(502)):
        outcome = judge(body)
        assert outcome.failure and (outcome.cost_usd, outcome.tokens_in) == (0.25, 3)


# Anything at all


@pytest.mark.parametrize("text", [
    "[" * 100_000,
    '{"a":' * 100_000,
    json.dumps(completion("[" * 100_000)),
    json.dumps(completion('{"label":' * 20_000)),
    json.dumps(completion("{" * 20_000)),
    json.dumps(completion("{}" * 50_000 + '{"a":' * 20_000)),
    json.dumps(completion((PEAR + APPLE) * 20_000)),
    json.dumps(completion(f'{{"label": {"[" * 700}{"]" * 700}}}' * 2 + PEAR)),
    '{"usage": {"cost": ' + "9" * 5000 + "}}",
    "\x00\x01\ufffd",
])
def test_pathological_bodies_end_soon(text: str) -> None:
    started = time.perf_counter()
    assert judge(text).failure in (Failure.EMPTY, Failure.INVALID_JSON)
    assert time.perf_counter() - started < 5


KEYS = ["error", "code", "message", "type", "metadata", "reasons", "choices", "content", "finish_reason", "refusal",
        "usage", "cost", "prompt_tokens", "completion_tokens", "model", "provider", "label", "confidence", "why",
        "text"]
ATOMS: list[Any] = [
    None, True, False, 0, -1, 429, 503, 2**63, 10**400, 0.5, -0.0, math.nan, math.inf, "", "429", "²", "pear", "{",
    '{"label": "pear"}', "\ud83d", "\x00", "rate limit", "length", "stop", "content_filter", "x" * 2000,
]


def anything(chance: random.Random, depth: int) -> Any:
    kind = chance.random() if depth else 0.0
    if kind < 0.4:
        return chance.choice([*ATOMS, "".join(chance.choices(string.printable, k=5))])
    if kind < 0.6:
        return [anything(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {chance.choice(KEYS): anything(chance, depth - 1) for _ in range(chance.randrange(6))}


def odd_reply(chance: random.Random) -> str:
    """A completion in which any part may be anything, or its content odd JSON, or cut anywhere."""
    content: Any = json.dumps(anything(chance, 2))
    body = completion(content if chance.random() < 0.5 else anything(chance, 3), usage=anything(chance, 2))
    for _ in range(chance.randrange(4)):
        inside: Any = body
        while isinstance(inside, dict | list) and inside:
            key = chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            if not isinstance(inside[key], dict | list) or chance.random() < 0.3:
                inside[key] = anything(chance, 3)
                break
            inside = inside[key]
    text = json.dumps(body)
    return text[: chance.randrange(len(text))] if chance.random() < 0.1 else text


def test_nothing_raises_and_everything_can_be_stored(tmp_path: Path) -> None:
    chance = random.Random(0)
    kept, seen = [], set()
    for n in range(2500):
        status = chance.choice([200, 200, 200, 400, 403, 429, 500])
        headers = {"Retry-After": str(anything(chance, 0))} if chance.random() < 0.3 else {}
        outcome = judge(odd_reply(chance), status, headers)
        seen.add(outcome.failure)
        mapped = TASK.map_label(outcome.label)
        assert (outcome.failure is None) == (mapped is not None and not outcome.fatal)
        assert outcome.confidence is None or 0 <= outcome.confidence <= 1
        assert outcome.cost_usd is None or 0 <= outcome.cost_usd < math.inf
        assert outcome.retry_after_s is None or 0 <= outcome.retry_after_s < math.inf
        assert all(type(text) is str and len(text) <= 300 for text in (outcome.why, outcome.model, outcome.provider))
        kept.append(Annotation(
            f"{n:064d}", "a", "p", "fruit", label=outcome.label, failure=outcome.failure,
            confidence=outcome.confidence, why=outcome.why, cost_usd=outcome.cost_usd or 0.0,
            tokens_in=outcome.tokens_in, tokens_out=outcome.tokens_out,
            model=outcome.model, provider=outcome.provider, reply=outcome.reply,
        ))
    not_told = {Failure.TIMEOUT, Failure.CONNECTION, Failure.TRUNCATED, Failure.WITHDRAWN, Failure.LOST}
    assert seen >= {None, *Failure} - not_told
    store = Store(tmp_path / "a.db")
    store.add(kept)
    assert sorted(store.read(), key=lambda a: a.item) == kept
