"""Who is asked: the address, the model and its settings, as `conf/teacher/` holds them.

Knows nothing about how a question is asked or paid for.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from src.errors import ConfigError
from src.labeling.protocol import Provider

JSON_MODES = ("json_schema", "json_object", "none")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPENROUTER = "openrouter.ai"  # the one endpoint whose routing fields are known here
ROUTING = ("provider", "usage", "user")  # of its request fields, those that leave the answers as they are


@dataclass
class Price:
    """US dollars per million tokens, for endpoints that do not report what a request cost. `source` and `date` say who
    read them where, and when."""

    input_usd: float
    output_usd: float
    source: str
    date: str

    def __post_init__(self) -> None:
        for key in ("input_usd", "output_usd"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ConfigError(f"teacher.price.{key}", getattr(self, key), "0 or more")
        if (self.input_usd or self.output_usd) and (self.source or self.date):
            _check_day("teacher.price.date", self.date)


@dataclass
class Terms:
    """What the provider allows. `training` says whether its terms let answers train another model: yes, no, or
    unknown; `source` and `date` say who read that where, and when."""

    training: str
    source: str
    date: str

    def __post_init__(self) -> None:
        # YAML takes a bare yes or no for true or false.
        self.training = {"True": "yes", "False": "no"}.get(str(self.training), self.training)
        if self.training not in ("yes", "no", "unknown"):
            raise ConfigError("teacher.terms.training", self.training, "yes, no or unknown")
        _check_day("teacher.terms.date", self.date)


@dataclass
class Teacher:
    """An OpenAI-compatible chat-completions endpoint and one model behind it.

    `key_env` names the environment variable with the key, or is null where none is needed; the key itself is read
    when a request is made and stands nowhere else. `sampling` holds request fields that change the answers, and is
    part of the annotator's name; `routing` holds fields that do not. `image_tokens` is what one shown image counts
    as in the provider's prompt tokens. `answers`, where given, is a file of recorded answers that stands in the
    endpoint's place, and `answer_column` the column that holds them: nobody is asked then, and the address is not
    looked at.
    """

    base_url: str
    model: str
    key_env: str | None
    temperature: float
    max_tokens: int
    timeout_s: float
    json_mode: str
    image_tokens: int
    sampling: dict[str, Any]
    routing: dict[str, Any]
    price: Price
    terms: Terms
    answers: str | None = None
    answer_column: str = "label"

    def __post_init__(self) -> None:
        if not self.answers:
            self._check_address()
        if not self.model:
            raise ConfigError("teacher.model", self.model, "the model's name at that address")
        if self.json_mode not in JSON_MODES:
            raise ConfigError("teacher.json_mode", self.json_mode, f"one of {', '.join(JSON_MODES)}")
        for key in ("max_tokens", "timeout_s"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"teacher.{key}", getattr(self, key), "more than 0")
        for key in ("image_tokens", "temperature"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"teacher.{key}", getattr(self, key), "0 or more")
        if self.by_openrouter:
            self._check_routing()

    def _check_address(self) -> None:
        try:
            address = urlsplit(self.base_url)
            whole = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # a port beyond 65535, half an IPv6 address
            whole = False
        if not whole:
            shown = re.sub("//.*@", "//***@", self.base_url)
            raise ConfigError("teacher.base_url", shown, "an address such as http://localhost:11434/v1; or a file of "
                              "recorded answers in teacher.answers")
        if address.username or address.password:
            raise ConfigError("teacher.base_url", f"{address.scheme}://***@{address.hostname}",
                              "no credentials in the address; put the key into the variable that teacher.key_env names")

    def _check_routing(self) -> None:
        """OpenRouter passes over what it does not know: a mistyped `data_collection` would give data away unseen."""
        for key, value in self.routing.items():
            if key not in ROUTING:
                raise ConfigError(f"teacher.routing.{key}", value, f"one of {', '.join(ROUTING)}; fields that change "
                                  "the answers belong into teacher.sampling")
        if "provider" in self.sampling:
            raise ConfigError("teacher.sampling.provider", self.sampling["provider"], "it belongs into teacher.routing")
        try:
            Provider.model_validate(self.routing.get("provider", {}))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            known = f"one of {', '.join(Provider.model_fields)}"
            allowed = known if fault["type"] == "extra_forbidden" else fault["msg"]
            raise ConfigError(".".join(map(str, ("teacher.routing.provider", *fault["loc"]))), fault["input"],
                              allowed) from None

    @property
    def annotator(self) -> str:
        """Endpoint, model and sampling settings: two teachers that could answer differently never share a name."""
        if self.answers:
            return f"replay:{Path(self.answers).name}#{self.answer_column}@{_digest(Path(self.answers))}"
        address = urlsplit(self.base_url)
        place = address.hostname or ""
        if address.port:
            place += f":{address.port}"
        place += address.path.rstrip("/")
        settings = {"temperature": self.temperature, **self.sampling}
        return f"{place}/{self.model}?" + "&".join(f"{key}={_plain(value)}" for key, value in sorted(settings.items()))

    @property
    def by_openrouter(self) -> bool:
        """Whether OpenRouter answers, and so heeds `routing.provider`."""
        host = "" if self.answers else urlsplit(self.base_url).hostname or ""
        return host == OPENROUTER or host.endswith("." + OPENROUTER)

    @property
    def asked_of_providers(self) -> dict[str, Any]:
        """What every request asks of whoever serves it: OpenRouter's `provider` object."""
        wishes = self.routing.get("provider")
        return dict(wishes) if isinstance(wishes, dict) else {}

    @property
    def warnings(self) -> list[str]:
        """What to know before paying for answers that another model shall learn from."""
        found = []
        if self.terms.training == "no" and not self.answers:
            found.append(f"The terms of {self.model} do not let its answers train another model, as read on "
                         f"{self.terms.date} ({self.terms.source}), and training a student is what labels are for. Ask "
                         "for leave, or take another teacher, such as teacher=openrouter_distillable.")
        if self.asked_of_providers and not self.by_openrouter and not self.answers:
            found.append(f"teacher.routing.provider ({', '.join(self.asked_of_providers)}) is a request to OpenRouter, "
                         f"and {urlsplit(self.base_url).hostname} is another endpoint: nothing says that it is heeded.")
        return found

    @property
    def key(self) -> str | None:
        # A line end that came along with the key would break the request's head.
        return os.environ.get(self.key_env, "").strip() or None if self.key_env else None

    @property
    def lacks_key(self) -> bool:
        return self.key_env is not None and not self.key

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """US dollars by the price table."""
        return (tokens_in * self.price.input_usd + tokens_out * self.price.output_usd) / 1e6


def _check_day(key: str, day: str) -> None:
    try:
        date.fromisoformat(day)
    except ValueError:
        raise ConfigError(key, day, "the day of reading, as in 2026-11-22") from None


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(path: Path) -> str:
    """A recording that was edited is another annotator."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ConfigError("teacher.answers", str(path), f"a CSV file of recorded answers ({error.strerror})") from error
