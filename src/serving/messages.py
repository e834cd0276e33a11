"""What clients send and what they get: bodies into payloads, tickets into answers, and refusals.

JSON and multipart bodies are parsed whole. `Ask`, `Answer` and `Refusal` are what the OpenAPI document is made of; what
goes out is written as plain dictionaries, which tests hold against `Answer`. Knows nothing about connections or keys.

Pydantic reads base64 three times as fast as the standard library. multipart/form-data is parsed here: aiohttp's reader
takes 0.3 ms for each part, a third of what it costs to decode a small image; this takes 0.006 to 0.03.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.cascade.policy import Opinion
from src.store import Logged

WAITS = ("final", "student", "poll")
MOST_TOLD = 5  # faults that one message names
PART_HEAD = 4096  # bytes of a part's headers; a file name has 255 at the most
_PARAMETER = re.compile(rb';[ \t]*([\w*-]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"\s]*)')


class Refused(Exception):
    """A request that is turned away; `message` names the field, the value and the way out, and is sent as it stands."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s, self.headers = retry_after_s, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}}


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Picture(_Message):
    """One item to decide on."""

    model_config = ConfigDict(val_json_bytes="base64")
    image: bytes = Field(min_length=1, description=(
        "The bytes of an image file (PNG, JPEG, WebP, GIF, BMP or TIFF) in base64: one line, without a data: prefix"))


class Ask(_Message):
    """The items of one request, and how long its client would wait."""

    items: list[Picture] = Field(min_length=1)
    wait: Literal["final", "student", "poll"] | None = Field(None, description=(
        "final (the default): until every item is answered by who may; student: not at all, and doubtful answers of "
        "the student stand in for those still to come; poll: not at all"))
    timeout_s: float | None = Field(None, ge=0, allow_inf_nan=False, description="Seconds, with wait=final")


class Doubtful(_Message):
    """What the student thinks, and how probably it is right, calibrated."""

    label: str
    probability: float = Field(ge=0, le=1)


class Answered(_Message):
    """What is known about one item. `route` is who answered, or, where it is not final, whose turn it is."""

    position: int = Field(ge=0, description="In the request, from 0")
    label: str | None = Field(description="null while nobody who may has answered")
    probability: float | None = Field(ge=0, le=1, description="That the label is right, calibrated; null where unknown")
    route: Literal["student", "teacher", "human"]
    final: bool = Field(description="false: `label`, where given, is the student's and doubtful")
    escalated: Literal["doubtful", "uncertified", "audit"] | None = Field(description="Why not the student alone")
    human: Literal["teacher_unsure", "teacher_failed", "over_budget", "disagreement"] | None = Field(
        description="Why the LLM did not settle it")
    student: Doubtful


class Answer(_Message):
    """All items of a request, in their order."""

    request: str = Field(pattern="^[0-9a-f]{32}$", description="The name to ask for it again by")
    model: str
    task: str
    rehearsal: bool = Field(description="Whether stand-ins had a hand in it: then its figures are not real")
    latency_ms: float = Field(ge=0, description="From the request's arrival to this answer, or to the latest decision")
    items: list[Answered]


class Fault(_Message):
    """What was wrong, for a program and for a person."""

    code: str
    message: str


class Refusal(_Message):
    """Every answer that is not a success."""

    error: Fault


@dataclass
class Wanted:
    """A request as it was meant: what to decide on, and how long to wait; None where nothing was said."""

    payloads: list[bytes] = field(default_factory=list)
    wait: str | None = None
    timeout_s: float | None = None


def of_json(body: bytes | bytearray, most_items: int) -> Wanted:
    """Raises Refused."""
    # 32 MB of `1,` would be millions of objects before anybody counts them. An item has one comma, base64 has none.
    if body.count(b",") > 4 * most_items + 16:
        raise _too_many(most_items)
    try:
        ask = Ask.model_validate_json(body)
    except ValidationError as error:
        raise _misread(error) from None
    _check_count(len(ask.items), most_items)
    return Wanted([item.image for item in ask.items], ask.wait, ask.timeout_s)


def of_multipart(body: bytes | bytearray, boundary: str, most_items: int) -> Wanted:
    """Parts named `image`, in their order, and fields `wait` and `timeout_s`. Raises Refused."""
    wanted = Wanted()
    given: set[str] = set()
    for name, content in _parts(body, boundary):
        if name == "image":
            wanted.payloads.append(content)
            _check_count(len(wanted.payloads), most_items)
        elif name in ("wait", "timeout_s"):
            if name in given:
                raise Refused(422, "bad_field", f"{name} is given twice: once will do")
            given.add(name)
            put(wanted, name, content[:100].decode("utf-8", "replace"))
        else:
            raise Refused(422, "bad_field", f"part {_short(name)}: unknown; there are image, wait and timeout_s")
    if not wanted.payloads:
        raise Refused(422, "bad_field", "no part is named image: one for each image is needed")
    for n, payload in enumerate(wanted.payloads):
        if not payload:
            raise Refused(422, "bad_field", f"image {n} is empty: an image file's bytes are needed")
    return wanted


def put(wanted: Wanted, name: str, value: str) -> None:
    """Set `wait` or `timeout_s` from text. Raises Refused for a value that it cannot have."""
    if name == "wait":
        if value not in WAITS:
            raise Refused(422, "bad_field", f"wait={_short(value)}: one of {', '.join(WAITS)}")
        wanted.wait = value
    else:
        wanted.timeout_s = seconds(name, value)


def seconds(name: str, value: str) -> float:
    """Raises Refused unless it is a number as JSON writes them, and not negative."""
    # float() would also take "nan", "1_0" and " 1 ", of which the OpenAPI document says nothing.
    number = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", value[:100], re.ASCII)
    found = float(value) if number else math.nan
    if not 0 <= found < math.inf:
        raise Refused(422, "bad_field", f"{name}={_short(value)}: a number of seconds, 0 or more, is needed")
    return found


def boundary_of(content_type: str) -> str:
    """Of a multipart/form-data content type, quotes removed. Raises Refused."""
    boundary = _parameter(content_type.encode("utf-8", "surrogateescape"), b"boundary") or ""
    if not re.fullmatch(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", boundary, re.ASCII):
        raise Refused(400, "bad_multipart", "Content-Type: multipart/form-data needs a boundary of 1 to 70 characters")
    return boundary


def answer(rows: Sequence[tuple[Logged, Opinion]], *, rehearsal: bool, latency_ms: float,
           doubtful: bool = False) -> dict[str, Any]:
    """An `Answer`: by item its latest step and the student's opinion, at least one. With `doubtful`, the student's
    answer stands for one that is still to come."""
    first = rows[0][0]
    return {"request": first.request, "model": first.student, "task": first.task, "rehearsal": rehearsal,
            "latency_ms": round(latency_ms, 3), "items": [_item(row, opinion, doubtful) for row, opinion in rows]}


def _item(row: Logged, opinion: Opinion, doubtful: bool) -> dict[str, Any]:
    final = row.answer is not None
    stand_in = doubtful and not final
    return {"position": row.position, "label": opinion.answer if stand_in else row.answer,
            "probability": opinion.probability if stand_in else row.probability, "route": row.route, "final": final,
            "escalated": row.escalated, "human": row.human,
            "student": {"label": opinion.answer, "probability": opinion.probability}}


def unreadable(positions: Mapping[int, str]) -> Refused:
    """Of images that cannot be used, by position why."""
    told = [f"image {n}: {why[:200]}" for n, why in sorted(positions.items())]
    return Refused(422, "bad_images", f"nothing was decided: {_listed(told)}")


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise _too_many(most)


def _too_many(most: int) -> Refused:
    return Refused(413, "too_many_items", f"more than serving.most_items={most} items: send several requests")


def _misread(error: ValidationError) -> Refused:
    faults = error.errors(include_url=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return Refused(400, "bad_json", f"the body is not JSON: {faults[0]['msg'].removeprefix('Invalid JSON: ')}")
    told = [f"{_place(fault['loc'])}: {_because(fault['type'], fault['msg'], fault['input'])}" for fault in faults]
    return Refused(422, "bad_field", _listed(told))


def _because(kind: str, said: str, given: object) -> str:
    if kind == "extra_forbidden":
        return "unknown field"
    if kind == "bytes_invalid_encoding" and str(given).startswith("data:"):
        return "leave out the data: prefix, base64 alone is needed"
    return said[:1].lower() + said[1:]


def _place(path: Iterable[int | str]) -> str:
    named = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:40]}" for step in path).lstrip(".")
    return named or "the body"


def _listed(told: Sequence[str]) -> str:
    more = f"; and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return "; ".join(told[:MOST_TOLD]) + more


def _short(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "…")


def _parts(body: bytes | bytearray, boundary: str) -> Iterable[tuple[str, bytes]]:
    """Names and contents of a multipart body's parts (RFC 2046, 7578). Raises Refused."""
    mark = b"--" + boundary.encode()
    view = memoryview(body)
    # A preamble may stand before the first delimiter, which then begins a line like every other.
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise Refused(400, "bad_multipart", f"the boundary {_short(boundary)} does not occur in the body")
    while True:
        at += len(mark)
        if body[at:at + 2] == b"--":
            return
        head = body.find(b"\r\n", at, at + 80)
        if head < 0 or body[at:head].strip(b" \t"):
            raise Refused(400, "bad_multipart", "a boundary is not followed by a line's end: cut off, or not multipart")
        # The blank line follows the head's line at once where a part has no headers.
        content = body.find(b"\r\n\r\n", head, head + PART_HEAD)
        end = body.find(b"\r\n" + mark, content + 2 if content >= 0 else head)
        if content < 0 or end < 0:
            raise Refused(400, "bad_multipart", "a part is not closed by the boundary: the body was cut off, or its "
                          f"headers are longer than {PART_HEAD} bytes")
        yield _name(bytes(body[head:content])), bytes(view[content + 4:end])
        at = end + 2


def _name(head: bytes) -> str:
    """A part's name by its headers."""
    name = None
    for line in head.split(b"\r\n"):
        field_name, _, value = line.partition(b":")
        lowered = field_name.strip().lower()
        if lowered == b"content-disposition":
            kind = value.split(b";", 1)[0].strip().lower()
            name = _parameter(value, b"name") if kind == b"form-data" else None
        elif lowered == b"content-transfer-encoding" and value.strip().lower() not in (b"binary", b"8bit", b"7bit"):
            raise Refused(422, "bad_field", "a part has a Content-Transfer-Encoding: send the bytes as they are")
    if name is None:
        raise Refused(400, "bad_multipart", "a part has no Content-Disposition: form-data; name=\"image\"")
    return name


def _parameter(value: bytes, name: bytes) -> str | None:
    """Of a header's value: the text of `; name=text`, with or without quotes."""
    for found, text in _PARAMETER.findall(value):
        if found.lower() == name:
            return bytes(text).strip(b'"').decode("utf-8", "replace")
    return None
