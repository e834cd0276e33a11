"""Who is asked: the address, the model and its settings, as `conf/teacher/` holds them.

Knows nothing about how a question is asked or paid for.
"""

import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from src.errors import ConfigError

JSON_MODES = ("json_schema", "json_object", "none")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Price:
    """US dollars per million tokens, for endpoints that do not report what a request cost."""

    input_usd: float
    output_usd: float
    source: str
    date: str


@dataclass
class Teacher:
    """An OpenAI-compatible chat-completions endpoint and one model behind it.

    `key_env` names the environment variable with the key, or is null where none is needed; the key itself is read
    when a request is made and stands nowhere else. `sampling` holds request fields that change the answers, and is
    part of the annotator's name; `routing` holds fields that do not. `image_tokens` is what one shown image counts
    as in the provider's prompt tokens.
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

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.base_url)
            whole = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # a port beyond 65535, half an IPv6 address
            whole = False
        if not whole:
            shown = re.sub("//.*@", "//***@", self.base_url)
            raise ConfigError("teacher.base_url", shown, "an address such as http://localhost:11434/v1")
        if address.username or address.password:
            raise ConfigError("teacher.base_url", f"{address.scheme}://***@{address.hostname}",
                              "no credentials in the address; put the key into the variable that teacher.key_env names")
        if not self.model:
            raise ConfigError("teacher.model", self.model, "the model's name at that address")
        if self.json_mode not in JSON_MODES:
            raise ConfigError("teacher.json_mode", self.json_mode, f"one of {', '.join(JSON_MODES)}")
        for key in ("max_tokens", "timeout_s"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"teacher.{key}", getattr(self, key), "more than 0")
        if min(self.price.input_usd, self.price.output_usd) < 0:
            raise ConfigError("teacher.price", (self.price.input_usd, self.price.output_usd), "0 or more")

    @property
    def annotator(self) -> str:
        """Endpoint, model and sampling settings: two teachers that could answer differently never share a name."""
        address = urlsplit(self.base_url)
        place = address.hostname or ""
        if address.port:
            place += f":{address.port}"
        place += address.path.rstrip("/")
        settings = {"temperature": self.temperature, **self.sampling}
        return f"{place}/{self.model}?" + "&".join(f"{key}={_plain(value)}" for key, value in sorted(settings.items()))

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


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
