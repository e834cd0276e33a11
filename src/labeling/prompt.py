"""What a teacher is asked: the task's prompts filled in, the answer's schema, and the hash that names both.

Knows nothing about who is asked or over which protocol.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined

from src.data.spec import Shown
from src.errors import ConfigError
from src.task import TaskSpec

templates = Environment(undefined=StrictUndefined, autoescape=False)
# As compact as the published prompt writes it; class names may hold characters that a page would escape.
templates.filters["tojson"] = lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class Prompt:
    """The texts as sent and the JSON schema of the answer. `hash` covers these and how the item is shown, and is part
    of every annotation's key: what would be asked differently is another question, everything else is not."""

    system: str
    user: str
    schema: dict[str, Any]
    hash: str


def render(task: TaskSpec, shown: Shown | None) -> Prompt:
    """Fill in the task's templates; `shown` is None for texts. Raises ConfigError where one names something that does
    not exist."""
    texts = {}
    for key in ("system_prompt", "user_prompt"):
        try:
            template = templates.from_string(getattr(task, key))
            texts[key] = template.render(classes=task.names, definitions=task.classes,
                                           **({"size": shown.size} if shown else {}))
        except Exception as error:  # a template is a program: it can also divide by zero
            raise ConfigError(f"task.{key}", getattr(task, key),
                              f"a template over classes, definitions and size ({error})") from error
    # Only types and an enum: some endpoints reject ranges and `additionalProperties`, and we check ranges ourselves.
    schema = {
        "type": "object",
        "properties": {
            "label": {"type": "string", "enum": task.names},
            "confidence": {"type": "number"},
            "why": {"type": "string"},
        },
        "required": ["label", "confidence", "why"],
    }
    asked = json.dumps([texts, schema, asdict(shown) if shown else None], sort_keys=True)
    return Prompt(texts["system_prompt"], texts["user_prompt"], schema, hashlib.sha256(asked.encode()).hexdigest())
