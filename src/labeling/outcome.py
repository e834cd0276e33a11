"""What came back, judged once: a label or a failure with a name, its cost, and whether the whole run must stop.

One classifier over HTTP status, error objects in the body (also within a 200) and content. Knows nothing about
retries, budgets or stores.
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from src.task import Failure, TaskSpec

SHOWN_CHARS = 300  # of a provider's own words, in messages
BARE_JSON = re.compile(r"\s*\{.*\}\s*", re.DOTALL)
DECODER = json.JSONDecoder()
ENDS_WHOLE = re.compile(r"\s*(```\w*\s*)?\{|.*\}[\s`]*\Z", re.DOTALL)  # beginning or ending with an object
NO_SUCH_MODEL = re.compile("not a valid model|invalid model name")
# OpenRouter's words where the request's wishes or the account's settings leave none of a model's providers.
NO_PROVIDER_LEFT = re.compile("no endpoints (found|available) (that|match)|no allowed providers")
MODERATED = re.compile("flagged|moderation")
SEVERAL_LABELS = "several_labels"
MOST_TOKENS = 2**31 - 1  # what every database takes for a whole number; more is no count


@dataclass(frozen=True)
class Outcome:
    """One reply. `cost_usd` is None where the provider did not say; `retry_after_s` likewise.

    `fatal` is a sentence for the user where every further question would fail as well. `flaws` name what was wrong
    with an answer, mostly one that could be used all the same; `started` marks a failure that may be billed like one.
    """

    label: str | None = None
    failure: Failure | None = None
    confidence: float | None = None
    why: str = ""
    cost_usd: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    model: str = ""
    provider: str = ""
    retry_after_s: float | None = None
    fatal: str | None = None
    reply: str = ""
    latency_s: float = 0.0
    flaws: tuple[str, ...] = ()
    started: bool = False

    @property
    def fault(self) -> str | None:
        """What to tell the author of an unusable answer, where telling may help."""
        if self.failure == Failure.INVALID_JSON:
            several = SEVERAL_LABELS in self.flaws
            return "it holds several objects with different labels" if several else "it is not one JSON object"
        if self.failure == Failure.UNKNOWN_LABEL:
            return f"its label is {self.label!r}" if self.label else 'it has no "label"'
        return None


def classify(status: int, headers: Mapping[str, str], text: str, task: TaskSpec, *, now: float,
             latency_s: float = 0.0) -> Outcome:
    """Judge one HTTP reply; `now` is the time in seconds since the epoch, for Retry-After given as a date.

    Never raises, whatever came; all texts are such that every database takes them.
    """
    body = _body(text)
    common: dict[str, Any] = {
        **_usage(body.get("usage")),
        "model": _words(body.get("model")),
        "provider": _words(body.get("provider")),
        "retry_after_s": _retry_after(headers, now),
        "reply": text.replace("\0", "\ufffd"),
        "latency_s": latency_s,
    }
    choice = _first_choice(body)
    error = body.get("error") or choice.get("error")
    if status != 200 or error:
        return _from_error(status, error, text, common)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    content = message.get("content")
    if isinstance(content, list):  # some servers answer in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    content = content if isinstance(content, str) else ""
    finish = choice.get("finish_reason")
    if message.get("refusal") or finish == "content_filter":
        return Outcome(failure=Failure.REFUSAL, why=_words(message.get("refusal") or finish), **common)
    # Some servers leave a model's thoughts before its answer, and they may weigh other labels.
    objects = _objects(content.rpartition("</think>")[2]) or _objects(content)
    answers = objects if len(objects) < 2 else [one for one in objects if "label" in one] or objects[:1]
    if finish == "length" and not (answers and ENDS_WHOLE.match(content)):
        return Outcome(failure=Failure.TRUNCATED, **common)
    if not content.strip():
        return Outcome(failure=Failure.EMPTY, **common)
    if not answers:
        return Outcome(failure=Failure.INVALID_JSON, why=_words(content), **common)
    if len(answers) > 1 and len({_meant(answer["label"], task) for answer in answers}) > 1:
        return Outcome(failure=Failure.INVALID_JSON, why=_words(content), flaws=(SEVERAL_LABELS,), **common)
    answer = answers[-1]
    raw, why = answer.get("label"), answer.get("why")
    label = _whole(raw) if isinstance(raw, str) else None
    confidence = _confidence(answer.get("confidence"))
    flaws = ["repaired_json"] * (len(objects) > 1 or not BARE_JSON.fullmatch(content))
    flaws += ["confidence_out_of_range"] * (confidence is None and answer.get("confidence") is not None)
    said: dict[str, Any] = {"label": label, "confidence": confidence, "flaws": tuple(flaws),
                            "why": _words(why) if isinstance(why, str) else ""}
    if task.map_label(label) is None:
        return Outcome(failure=Failure.UNKNOWN_LABEL, **said, **common)
    return Outcome(**said, **common)


def _from_error(status: int, error: object, text: str, common: dict[str, Any]) -> Outcome:
    """A code inside the body speaks for the upstream model and goes before the status that carried it."""
    fields = error if isinstance(error, dict) else {}
    words = _words(fields.get("message") or error or text)
    code = _words(fields.get("code"))
    # A provider's own numbers (1302, 0) are no HTTP status.
    at = int(code) if re.fullmatch("[45][0-9][0-9]", code) else status
    named = " ".join(str(value).lower() for value in (code, fields.get("type"), words))
    metadata = fields.get("metadata")
    flagged = isinstance(metadata, dict) and ("reasons" in metadata or "flagged_input" in metadata)
    flagged = flagged or (at in (400, 403) and MODERATED.search(named) is not None)

    def failed(failure: Failure, sentence: str | None = None) -> Outcome:
        return Outcome(failure=failure, why=words, fatal=sentence, **common)

    def fatal(what: str, way_out: str) -> Outcome:
        return failed(Failure.BAD_REQUEST, f"{what} ({words}). {way_out}")

    if flagged or "content_filter" in named or "content_policy" in named:
        return failed(Failure.REFUSAL)
    if at == 401 or "invalid_api_key" in named or "api key not valid" in named:
        return fatal("The key was not accepted", "Check the variable in teacher.key_env.")
    if at == 402 or "insufficient_quota" in named:
        return fatal("No credit is left at the provider", "Top it up and run again.")
    if at == 403:
        return fatal("The key may not use this model", "Check teacher.model and the key.")
    if at == 404 and NO_PROVIDER_LEFT.search(named):
        return fatal("No provider of this model does what is asked of it", "Ask for less in teacher.routing.provider "
                     "or the account's own settings, or take another teacher.model.")
    if at == 404 or "model_not_found" in named or (at == 400 and NO_SUCH_MODEL.search(named)):
        return fatal("No such model or address", "Check teacher.model and teacher.base_url.")
    if at == 429 or "rate_limit" in named or "rate limit" in named:
        return failed(Failure.RATE_LIMIT)
    if at in (408, 504, 524):  # a gateway gave up waiting, but the model may have answered, and be paid
        return failed(Failure.TIMEOUT)
    if at >= 500 or at == 200:
        # Within a 200 it comes from a model that had begun, unless it says that it had no room.
        started = status == 200 and at not in (503, 529)
        return Outcome(failure=Failure.OVERLOADED, why=words, started=started, **common)
    return failed(Failure.BAD_REQUEST)


def _body(text: str) -> dict[str, Any]:
    """The JSON object that was sent, if it was one; Google's endpoint puts its errors into a list."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    return body if isinstance(body, dict) else {}


def _whole(text: str) -> str:
    """JSON can escape half a character, which no database takes, or a NUL, which PostgreSQL does not."""
    return text.encode("utf-8", errors="replace").decode().replace("\0", "\ufffd")


def _words(value: object) -> str:
    """A provider's own words, fit for one line of a message; nothing where it said nothing."""
    return "" if value is None else " ".join(_whole(str(value)).split())[:SHOWN_CHARS]


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _objects(content: str) -> list[dict[str, Any]]:
    """The JSON objects in the content, without those inside of others, whatever fences or prose stand around them."""
    found: list[dict[str, Any]] = []
    at = content.find("{")
    while at >= 0:
        try:
            one, end = DECODER.raw_decode(content, at)
        except ValueError:
            end = at + 1
        except RecursionError:
            return []
        else:
            found.append(one)
        at = content.find("{", end)
    return found


def _meant(label: object, task: TaskSpec) -> str:
    """The same for two answers that name one label, whatever their spelling; nothing for what is no name."""
    return task.map_label(label) or label if isinstance(label, str) else ""


def _confidence(value: object) -> float | None:
    """A number in [0, 1], also where it came as a string; anything else was not said."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= 1 else None


def _usage(usage: object) -> dict[str, Any]:
    fields = usage if isinstance(usage, dict) else {}

    def count(key: str) -> int:
        value = fields.get(key)
        return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0

    cost: Any = fields.get("cost")
    told = isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost <= sys.float_info.max
    return {"tokens_in": count("prompt_tokens"), "tokens_out": count("completion_tokens"),
            "cost_usd": float(cost) if told else None}


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from a number of seconds or an HTTP date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
