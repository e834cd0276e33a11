"""What came back, judged once: a label or a failure with a name, its cost, and whether the whole run must stop.

One classifier over HTTP status, error objects in the body (also within a 200) and content. Knows nothing about
retries, budgets or stores.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from src.task import Failure, TaskSpec

SHOWN_CHARS = 300  # of a provider's own words, in messages


@dataclass(frozen=True)
class Outcome:
    """One reply. `cost_usd` is None where the provider did not say; `retry_after_s` likewise.

    `fatal` is a sentence for the user where every further question would fail as well.
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


def classify(status: int, headers: Mapping[str, str], text: str, task: TaskSpec, *, now: float) -> Outcome:
    """Judge one HTTP reply; `now` is the time in seconds since the epoch, for Retry-After given as a date."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    common: dict[str, Any] = {
        **_usage(body.get("usage")),
        "model": str(body.get("model") or ""),
        "provider": str(body.get("provider") or ""),
        "retry_after_s": _retry_after(headers, now),
        "reply": text,
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
    finish = choice.get("finish_reason")
    if message.get("refusal") or finish == "content_filter":
        return Outcome(failure=Failure.REFUSAL, why=str(message.get("refusal") or finish), **common)
    answer = _json_object(content) if isinstance(content, str) else None
    if finish == "length" and answer is None:
        return Outcome(failure=Failure.TRUNCATED, **common)
    if not isinstance(content, str) or not content.strip():
        return Outcome(failure=Failure.EMPTY, **common)
    if answer is None:
        return Outcome(failure=Failure.INVALID_JSON, why=content[:SHOWN_CHARS], **common)
    raw = answer.get("label")
    why = answer.get("why")
    said = {"label": raw if isinstance(raw, str) else None, "confidence": _confidence(answer.get("confidence")),
            "why": why[:SHOWN_CHARS] if isinstance(why, str) else ""}
    if not isinstance(raw, str) or task.map_label(raw) is None:
        return Outcome(failure=Failure.UNKNOWN_LABEL, **said, **common)
    return Outcome(**said, **common)


def _from_error(status: int, error: object, text: str, common: dict[str, Any]) -> Outcome:
    """A code inside the body speaks for the upstream model and goes before the status that carried it."""
    fields = error if isinstance(error, dict) else {}
    words = str(fields.get("message") or error or text).strip()[:SHOWN_CHARS]
    code = fields.get("code")
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    at = code if isinstance(code, int) and not isinstance(code, bool) else status
    named = " ".join(str(value).lower() for value in (code, fields.get("type"), words))
    metadata = fields.get("metadata")
    flagged = isinstance(metadata, dict) and ("reasons" in metadata or "flagged_input" in metadata)

    def failed(failure: Failure, fatal: str | None = None) -> Outcome:
        return Outcome(failure=failure, why=words, fatal=fatal, **common)

    if flagged or "content_filter" in named or "content_policy" in named:
        return failed(Failure.REFUSAL)
    if at == 401:
        return failed(Failure.BAD_REQUEST, f"The key was not accepted ({words}). Check the variable in teacher.key_env.")
    if at == 402 or "insufficient_quota" in named:
        return failed(Failure.BAD_REQUEST, f"No credit is left at the provider ({words}). Top it up and run again.")
    if at == 403:
        return failed(Failure.BAD_REQUEST, f"The key may not use this model ({words}). Check teacher.model and the key.")
    if at == 404 or "model_not_found" in named or "not a valid model" in named:
        return failed(Failure.BAD_REQUEST, f"No such model or address ({words}). Check teacher.model and teacher.base_url.")
    if at == 429 or "rate_limit" in named or "rate limit" in named:
        return failed(Failure.RATE_LIMIT)
    if at == 408:
        return failed(Failure.TIMEOUT)
    if at >= 500 or at == 200:
        return failed(Failure.OVERLOADED)
    return failed(Failure.BAD_REQUEST)


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _json_object(content: str) -> dict[str, Any] | None:
    """The first JSON object in the content, whatever fences or prose stand around it."""
    for match in re.finditer(r"\{", content):
        try:
            found, _ = json.JSONDecoder().raw_decode(content, match.start())
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None


def _confidence(value: object) -> float | None:
    """A number in [0, 1], also where it came as a string; anything else was not said."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None


def _usage(usage: object) -> dict[str, Any]:
    fields = usage if isinstance(usage, dict) else {}

    def count(key: str) -> int:
        value = fields.get(key)
        return value if isinstance(value, int) and value >= 0 else 0

    cost = fields.get("cost")
    told = isinstance(cost, int | float) and not isinstance(cost, bool) and math.isfinite(cost) and cost >= 0
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
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
