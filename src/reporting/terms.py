"""What was asked of those who serve a teacher, what their terms say, and what is left for the user to check.

Never claims more than was sent: a condition counts only where the endpoint is one that heeds it, and what the endpoint
makes of it is the endpoint's word. Knows nothing about labels.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from src.labeling.teacher import LOOPBACK, Teacher

# OpenRouter's conditions on who may answer, as its documentation describes them.
CONDITIONS = {
    "require_parameters": "providers that support every parameter sent, the answer's schema among them",
    "data_collection": "providers that do not collect what they are sent",
    "zdr": "endpoints that retain nothing of what they are sent",
    "enforce_distillable_text": "models whose authors let others train on their answers",
    "only": "the providers named",
    "ignore": "providers other than those named",
    "allow_fallbacks": "the first choice of providers, without any in their place",
}
SET = {"data_collection": "deny", "allow_fallbacks": False}  # where another value than `true` makes a condition of it
MISSED = ("require_parameters", "data_collection", "zdr", "enforce_distillable_text", "only")  # is said where absent
TRAINING = {
    "yes": "training another model on its answers is allowed",
    "no": "training another model on its answers is FORBIDDEN",
    "unknown": "nobody has found out whether its answers may train another model",
}


def terms_and_privacy(teachers: Sequence[Teacher], *, rehearsed: bool, requests: int, earlier: int) -> list[str]:
    """Markdown bullets. `requests` is how many this run sent, `earlier` how many answers are from runs before it."""
    lines = [line for teacher in teachers for line in (_sent(teacher, rehearsed, requests), _read(teacher))]
    if earlier and not rehearsed:
        lines.append(f"- {earlier} answers are from earlier runs: the conditions under which these were asked stand in "
                     "the `config.yaml` of those runs, not here")
    return [*lines, *_to_check(teachers, rehearsed)]


def _sent(teacher: Teacher, rehearsed: bool, requests: int) -> str:
    if teacher.answers:
        return (f"- `{teacher.annotator}`: answers from a file. Nobody was asked in this run, and the file does not "
                "say under which conditions somebody was before")
    host = urlsplit(teacher.base_url).hostname or ""
    asked = teacher.asked_of_providers
    name = f"- `{teacher.model}` at {host}"
    if rehearsed:
        name += ", whose place a stand-in on this machine took: nothing was sent there and nothing enforced"
        return name + (f". A run that is paid for asks {_conditions(teacher)}" if teacher.by_openrouter else "")
    if not requests:
        return name + ": this run sent no request"
    if teacher.by_openrouter:
        return f"{name}: every request of this run asked {_conditions(teacher)}"
    if asked:
        return (f"{name}: every request of this run held OpenRouter's {_names(asked)}, which mean nothing at another "
                "endpoint unless it says so. Count on no condition")
    return f"{name}: no condition was sent; what is kept there is between you and whoever runs it"


def _conditions(teacher: Teacher) -> str:
    asked = teacher.asked_of_providers
    held = [key for key in CONDITIONS if _is_condition(key, asked.get(key))]
    told = [f"{CONDITIONS[key]} (`{key}: {_value(asked[key])}`)" for key in held]
    others = {key: value for key, value in asked.items() if key not in held}
    missed = ", ".join(f"`{key}`" for key in MISSED if key not in held)
    return ("OpenRouter for " + ("; ".join(told) or "nothing in particular")
            + (f". Also sent: {_names(others)}" if others else "") + (f". Not asked for: {missed}" if missed else ""))


def _is_condition(key: str, value: object) -> bool:
    return value == SET[key] if key in SET else bool(value)


def _read(teacher: Teacher) -> str:
    terms = teacher.terms
    return f"- Terms of `{teacher.model}`: {TRAINING[terms.training]} (as of {terms.date}: {terms.source})"


def _to_check(teachers: Sequence[Teacher], rehearsed: bool) -> list[str]:
    hosts = sorted({urlsplit(teacher.base_url).hostname or "" for teacher in teachers if not teacher.answers})
    abroad = [host for host in hosts if host not in LOOPBACK]
    rows = ["whether the model's licence and its provider's terms, as they are today, let you train on these answers "
            "and use what was trained"]
    if abroad:
        rows.append(f"whether these items may be sent to {', '.join(abroad)} at all (personal data, contracts, "
                    "copyright)")
    if any(teacher.by_openrouter for teacher in teachers):
        rows.append("your account's privacy settings at OpenRouter, which count besides: it applies a request's "
                    "conditions by what it knows of models and providers, at its best effort")
    if any(teacher.answers for teacher in teachers):
        rows.append("who gave the recorded answers, and what they let you do with them")
    return [f"- **For you to check{' before you pay' if rehearsed else ''}**: {row}" for row in rows]


def _names(fields: dict[str, object]) -> str:
    return ", ".join(f"`{key}: {_value(value)}`" for key, value in fields.items())


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
