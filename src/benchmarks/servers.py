"""Teachers to measure against: chat completions on loopback, answered from bytes that lie ready.

`python -m src.benchmarks.servers` is one in a process of its own, which ends with its standard input; `serving` starts
it. Says the same answer to everything, and knows nothing about who asks.
"""

import argparse
import asyncio
import http.client
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from src.benchmarks.machine import in_a_process
from src.console import say

PRICE_USD = 0.0001  # of one answer, told as OpenRouter tells it


class Endpoint:
    """Answers `latency_s` after a request has arrived. With a `rate`, a token bucket of that size stands before it:
    what finds it empty gets 429 and Retry-After in whole seconds, as the standard has it.

    Beside the completions, GET /count tells how many were answered and refused, the first arrival (seconds since the
    epoch) and this process's CPU seconds; GET /times when each was answered and refused; GET /anew begins again.
    """

    def __init__(self, label: str, latency_s: float, rate: float | None) -> None:
        self._latency_s, self._rate = latency_s, rate
        self._answer = completion(label)
        self._refusal = json.dumps({"error": {"message": "Rate limit exceeded.", "code": 429}}).encode()
        self._begin()

    def _begin(self) -> None:
        self._tokens = self._rate or 0.0
        self._filled_at = time.monotonic()
        self._first_at: float | None = None
        self._answered: list[float] = []
        self._refused: list[float] = []

    async def respond(self, request: web.BaseRequest) -> web.Response:
        if request.method == "GET":
            if request.path == "/anew":
                self._begin()
            return web.json_response(self._times() if request.path == "/times" else self._count())
        await request.read()
        if self._first_at is None:
            self._first_at = time.time()
        if self._rate and (wait_s := self._wait_s(self._rate)):
            self._refused.append(time.time())
            return web.Response(body=self._refusal, status=429, content_type="application/json",
                                headers={"Retry-After": str(math.ceil(wait_s))})
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        self._answered.append(time.time())
        return web.Response(body=self._answer, content_type="application/json")

    def _wait_s(self, rate: float) -> float:
        """Take a token and return 0, or how long the next one takes."""
        now = time.monotonic()
        self._tokens = min(rate, self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / rate
        self._tokens -= 1
        return 0.0

    def _count(self) -> dict[str, Any]:
        return {"answered": len(self._answered), "refused": len(self._refused), "first_at": self._first_at,
                "cpu_s": time.process_time()}

    def _times(self) -> dict[str, list[float]]:
        return {"answered": self._answered, "refused": self._refused}


@dataclass(frozen=True)
class Server:
    """An endpoint in another process."""

    base_url: str

    def count(self) -> dict[str, Any]:
        return self._get("/count")

    def times(self) -> dict[str, list[float]]:
        return self._get("/times")

    def anew(self) -> None:
        """Forget what was asked so far."""
        self._get("/anew")

    def _get(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(urlsplit(self.base_url).netloc, timeout=60)
        try:
            connection.request("GET", path)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


def completion(label: str) -> bytes:
    """What a chat-completions server says, as long as a real one's answer."""
    content = json.dumps({"label": label, "confidence": 0.95, "why": "said to everything, for it is a measurement"})
    return json.dumps({
        "id": "gen-benchmark-0123456789abcdef", "object": "chat.completion", "created": 1764000000,
        "model": "benchmark", "provider": "benchmark",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": content, "refusal": None}}],
        "usage": {"prompt_tokens": 350, "completion_tokens": 25, "total_tokens": 375, "cost": PRICE_USD},
    }).encode()


@contextmanager
def serving(label: str, *, latency_s: float = 0.0, rate: float | None = None) -> Iterator[Server]:
    """An endpoint in a process of its own, gone at the end."""
    limit = ["--rate", str(rate)] if rate else []
    command = in_a_process("src.benchmarks.servers", "--label", label, "--latency-s", str(latency_s), *limit)
    with subprocess.Popen(**command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.stdin.close()


async def _serve(endpoint: Endpoint) -> None:
    runner = web.ServerRunner(web.Server(endpoint.respond))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    host, port = runner.addresses[0][:2]
    say(f"http://{host}:{port}/v1")
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=Endpoint.__doc__)
    parser.add_argument("--label", required=True)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--rate", type=float)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who measures
    asyncio.run(_serve(Endpoint(args.label, args.latency_s, args.rate)))


if __name__ == "__main__":
    main()
