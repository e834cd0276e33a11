"""One question over the OpenAI chat-completions protocol → one Outcome.

The only place that sees the key. Knows nothing about retries, budgets or stores.
"""

import base64
import hashlib
import json
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from src.errors import TeacherError
from src.labeling.outcome import Outcome, classify
from src.labeling.prompt import Prompt
from src.labeling.teacher import LOOPBACK, Teacher
from src.task import Failure, TaskSpec

SECRET_CHARS = 8  # the least length of a key that is worth hiding
HERE = "the shown item goes here"  # marks its place in the request that is written once for all of them
SHOWN_OF_A_FAULT = 1000  # characters of an unusable reply that are shown to its author


@dataclass(frozen=True)
class Fault:
    """An unusable answer to the question that is asked again: its words, and what is wrong with them."""

    reply: str
    what: str


class Client:
    """Asks one teacher with one prompt, in the name of `annotator` where that is not the teacher's own. Use as
    `async with Client(...) as client`."""

    def __init__(self, teacher: Teacher, prompt: Prompt, task: TaskSpec, *, connections: int,
                 annotator: str | None = None) -> None:
        self._teacher = teacher
        self._prompt = prompt
        self._task = task
        self._connections = connections
        # Providers echo keys in their errors, and replies are stored. A placeholder such as `x`, which local servers
        # are given, is no secret, and to strike it out would garble every reply.
        key = teacher.key or ""
        self._secret = key if len(key) >= SECRET_CHARS else ""
        self._asked = hashlib.sha256(((annotator or teacher.annotator) + prompt.hash).encode()).hexdigest()[:12]
        self._address = teacher.base_url.rstrip("/") + "/chat/completions"
        self._image_frame: tuple[bytes, bytes] | None = None
        self._text_frame: tuple[bytes, bytes] | None = None

    async def __aenter__(self) -> "Client":
        headers = {"Authorization": f"Bearer {self._teacher.key}"} if self._teacher.key else {}
        # A proxy from the environment is for other hosts than this one.
        local = urlsplit(self._address).hostname in LOOPBACK
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=self._teacher.timeout_s),
            trust_env=not local,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def body(self, shown: bytes | str, fault: Fault | None = None) -> dict[str, Any]:
        """The request. An image (JPEG bytes) goes into an `image_url` part, for any other part goes unseen by the
        model; a text into a text part of its own, behind the prompt's."""
        teacher, prompt = self._teacher, self._prompt
        if isinstance(shown, bytes):
            url = "data:image/jpeg;base64," + base64.b64encode(shown).decode()
            part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
        else:
            part = {"type": "text", "text": shown}
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": [{"type": "text", "text": prompt.user}, part]},
        ]
        if fault:
            messages += [
                {"role": "assistant", "content": fault.reply[:SHOWN_OF_A_FAULT]},
                {"role": "user", "content": f"This answer cannot be used: {fault.what}. Answer again with one JSON "
                                            f'object alone, whose "label" is one of {json.dumps(self._task.names)}.'},
            ]
        body: dict[str, Any] = {
            "model": teacher.model,
            "messages": messages,
            "temperature": teacher.temperature,
            "max_tokens": teacher.max_tokens,
            **teacher.sampling,
            **teacher.routing,
        }
        if teacher.json_mode == "json_schema":
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": prompt.schema},
            }
        elif teacher.json_mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    async def ask(self, shown: bytes | str, question: str, fault: Fault | None = None) -> Outcome:
        """Send one request. `question` names it, the same at every retry, so that a server can tell a repetition.

        Raises TeacherError for an address that cannot be one; every other fault is an Outcome.
        """
        started = time.perf_counter()
        headers = {"Idempotency-Key": self._key_of(question), "Content-Type": "application/json"}
        try:
            async with self._session.post(self._address, data=self._written(shown, fault), headers=headers) as response:
                text = (await response.read()).decode("utf-8", errors="replace")
                return self._without_key(classify(
                    response.status, response.headers, text.replace(self._secret, "***") if self._secret else text,
                    self._task, now=time.time(), latency_s=time.perf_counter() - started))
        except TimeoutError:
            outcome = Outcome(failure=Failure.TIMEOUT, why=f"no answer within {self._teacher.timeout_s:g} s")
        except aiohttp.InvalidURL as error:
            raise TeacherError(f"teacher.base_url={self._teacher.base_url!r} is not an address.") from error
        except aiohttp.ClientConnectorError as error:  # nothing was sent, so nothing can be charged
            outcome = Outcome(failure=Failure.CONNECTION, why=str(error), cost_usd=0.0)
        except (aiohttp.ClientError, OSError) as error:
            outcome = Outcome(failure=Failure.CONNECTION, why=str(error) or type(error).__name__)
        return self._without_key(replace(outcome, latency_s=time.perf_counter() - started))

    def _written(self, shown: bytes | str, fault: Fault | None) -> bytes:
        """The body as JSON. All but the item is the same in every question, and is written once."""
        if fault:
            return json.dumps(self.body(shown, fault)).encode()
        if isinstance(shown, bytes):
            if not self._image_frame:
                place = base64.b64encode(HERE.encode())
                head, _, tail = json.dumps(self.body(HERE.encode())).encode().partition(place)
                self._image_frame = head, tail
            return self._image_frame[0] + base64.b64encode(shown) + self._image_frame[1]
        if not self._text_frame:
            head, _, tail = json.dumps(self.body(HERE)).encode().rpartition(json.dumps(HERE).encode())
            self._text_frame = head, tail
        return self._text_frame[0] + json.dumps(shown).encode() + self._text_frame[1]

    def _key_of(self, question: str) -> str:
        """With annotator and prompt in it: a gateway that honours the header must not replay another one's answer."""
        return f"{question}-{self._asked}"

    def _without_key(self, outcome: Outcome) -> Outcome:
        """A key that was escaped in the body is whole again in what was read from it."""
        found: dict[str, Any] = {name: value.replace(self._secret, "***") for name, value in vars(outcome).items()
                                 if type(value) is str and self._secret in value} if self._secret else {}
        return replace(outcome, **found) if found else outcome
