"""The chat-completions protocol as the stand-in teacher insists on it: OpenAI's, with OpenRouter's three objects.

`read_request` turns a body into a `ChatRequest` or a `Violation`, and never passes over a field it does not know: a
wrong image part once went unnoticed for a whole paid run, with every item labelled alike. Knows nothing about tasks,
answers or servers.
"""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

MAGIC = {"data:image/jpeg;base64": b"\xff\xd8\xff", "data:image/png;base64": b"\x89PNG\r\n\x1a\n"}


@dataclass(frozen=True)
class Violation:
    """A request that is refused: HTTP status and the fields of OpenAI's error object."""

    status: int
    message: str
    param: str | None = None
    code: str | int | None = None
    type: str = "invalid_request_error"

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    """No unknown field, and no value of a nearly right type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None

    @field_validator("url")
    @classmethod
    def _is_image(cls, url: str) -> str:
        decode(url)
        return url


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(_Strict):
    """What is not the user's is text alone: image parts are refused here, as they are in life."""

    role: Literal["system", "developer", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class UserMessage(_Strict):
    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None


class JsonSchema(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    # pydantic's own `schema` is in the way of the wire's name.
    shape: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class PlainFormat(_Strict):
    type: Literal["text", "json_object"]


class SchemaFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class Provider(_Strict):
    """OpenRouter's routing; strict too, since a mistyped `data_collection` would give data away unseen."""

    order: list[str] | None = None
    only: list[str] | None = None
    ignore: list[str] | None = None
    quantizations: list[str] | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    enforce_distillable_text: bool | None = None
    sort: str | dict[str, Any] | None = None
    max_price: dict[str, float] | None = None
    preferred_min_throughput: float | dict[str, float] | None = None
    preferred_max_latency: float | dict[str, float] | None = None


class Reasoning(_Strict):
    effort: Literal["xhigh", "high", "medium", "low", "minimal", "none"] | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    exclude: bool | None = None
    enabled: bool | None = None


class Usage(_Strict):
    include: bool


class ChatRequest(_Strict):
    """One question. Temperatures, seeds and stops are accepted and change nothing in the stand-in's answers."""

    model: str
    messages: list[Annotated[SystemMessage | UserMessage, Field(discriminator="role")]] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    stop: str | list[str] | None = None
    stream: Literal[False] | None = None
    user: str | None = None
    provider: Provider | None = None
    reasoning: Reasoning | None = None
    usage: Usage | None = None

    @property
    def images(self) -> list[str]:
        """The sha256 (hex) of each image's bytes, in the order shown."""
        urls = [part.image_url.url for part in self._parts() if isinstance(part, ImagePart)]
        return [hashlib.sha256(decode(url)).hexdigest() for url in urls]

    @property
    def text(self) -> str:
        """The sha256 (hex) of the text that stands behind the prompt in the user's first message, or nothing."""
        first = next((m.content for m in self.messages if m.role == "user"), "")
        parts = [part.text for part in first if isinstance(part, TextPart)] if not isinstance(first, str) else []
        return hashlib.sha256(parts[-1].encode()).hexdigest() if len(parts) > 1 else ""

    @property
    def characters(self) -> int:
        """The length of all text in the prompt."""
        strings = [message.content for message in self.messages if isinstance(message.content, str)]
        return sum(map(len, strings)) + sum(len(part.text) for part in self._parts() if isinstance(part, TextPart))

    @property
    def limit(self) -> int | None:
        """How many tokens the answer may have, or None for as many as it takes."""
        return self.max_completion_tokens or self.max_tokens

    def _parts(self) -> list[TextPart | ImagePart]:
        return [part for message in self.messages if not isinstance(message.content, str) for part in message.content]


def decode(url: str) -> bytes:
    """The bytes of a JPEG or PNG in a base64 data URL; ValueError says what else it is."""
    head, _, payload = url.partition(",")
    if head not in MAGIC:
        raise ValueError(f"{head[:40]!r} is not one of {', '.join(MAGIC)} (and the stand-in fetches nothing)")
    try:
        data = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the image is not valid base64: {error}") from error
    if not data.startswith(MAGIC[head]):
        raise ValueError(f"the bytes, beginning with {data[:8]!r}, are not the image that {head!r} promises")
    return data


def read_request(body: bytes) -> ChatRequest | Violation:
    """The request in a body, or a 400 that names the field and what is wrong with it."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        # Where every branch of a union fails, the one that came furthest is the one that was meant.
        fault = max(error.errors(include_url=False, include_input=False), key=lambda fault: len(fault["loc"]))
    param = _path(body, fault["loc"]) if fault["type"] != "json_invalid" else ""
    message = fault["msg"].removeprefix("Value error, ")
    return Violation(400, f"{param}: {message}" if param else message, param or None, fault["type"])


def _path(body: bytes, location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].type`: pydantic's location, less the names of union branches, which no sender wrote."""
    path, here = "", json.loads(body)
    for depth, step in enumerate(location, start=1):
        if isinstance(here, list) and isinstance(step, int):
            path, here = f"{path}[{step}]", here[step]
        elif isinstance(here, dict) and (step in here or depth == len(location)):
            path, here = f"{path}.{step}" if path else str(step), here.get(step)
    return path
