"""One question over the OpenAI chat-completions protocol → one Outcome.

The only place that sees the key. Knows nothing about retries, budgets or stores.
"""

import base64
import hashlib
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from src.errors import TeacherError
from src.labeling.outcome import Outcome, classify
from src.labeling.prompt import Prompt
from src.labeling.teacher import LOOPBACK, Teacher
from src.task import Failure, TaskSpec

SECRET_CHARS = 8  # the least length of a key that is worth hiding

class Client:
    """Asks one teacher with one prompt. Use as `async with Client(...) as client`."""

    def __init__(self, teacher: Teacher, prompt: Prompt, task: TaskSpec, *, connections: int) -> None:
        self._teacher = teacher
        self._prompt = prompt
        self._task = task
        self._connections = connections
        self._asked = hashlib.sha256((teacher.annotator + prompt.hash).encode()).hexdigest()[:12]
        self._address = teacher.base_url.rstrip("/") + "/chat/completions"

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

    def body(self, image: bytes) -> dict[str, Any]:
        """The request, with the image (JPEG bytes) in an `image_url` part: any other part goes unseen by the model."""
        teacher, prompt = self._teacher, self._prompt
        url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
        body: dict[str, Any] = {
            "model": teacher.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": [
                    {"type": "text", "text": prompt.user},
                    {"type": "image_url", "image_url": {"url": url}},
                ]},
            ],
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

    async def ask(self, image: bytes, question: str) -> Outcome:
        """Send one request. `question` names it, the same at every retry, so that a server can tell a repetition.

        Raises TeacherError for an address that cannot be one; every other fault is an Outcome.
        """
        started = time.perf_counter()
        try:
            async with self._session.post(self._address, json=self.body(image),
                                          headers={"Idempotency-Key": self._key_of(question)}) as response:
                text = (await response.read()).decode("utf-8", errors="replace")
                outcome = classify(response.status, response.headers, self._without_key(text), self._task,
                                   now=time.time())
        except TimeoutError:
            outcome = Outcome(failure=Failure.TIMEOUT, why=f"no answer within {self._teacher.timeout_s:g} s")
        except aiohttp.InvalidURL as error:
            raise TeacherError(f"teacher.base_url={self._teacher.base_url!r} is not an address.") from error
        except aiohttp.ClientConnectorError as error:  # nothing was sent, so nothing can be charged
            outcome = Outcome(failure=Failure.CONNECTION, why=str(error), cost_usd=0.0)
        except (aiohttp.ClientError, OSError) as error:
            outcome = Outcome(failure=Failure.CONNECTION, why=str(error) or type(error).__name__)
        # Once more, since a key that was escaped in the body is whole again in what was read from it.
        told: dict[str, Any] = {name: self._without_key(value) for name, value in vars(outcome).items()
                                if type(value) is str}
        return replace(outcome, **told, latency_s=time.perf_counter() - started)

    def _key_of(self, question: str) -> str:
        """With annotator and prompt in it: a gateway that honours the header must not replay another one's answer."""
        return f"{question}-{self._asked}"

    def _without_key(self, text: str) -> str:
        """Providers echo keys in their errors, and replies are stored. A placeholder such as `x`, which local servers
        are given, is no secret, and to strike it out would garble every reply."""
        key = self._teacher.key or ""
        return text.replace(key, "***") if len(key) >= SECRET_CHARS else text
