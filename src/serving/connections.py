"""The socket: who connects and says nothing is cut off, and what is not HTTP gets its answer in JSON too.

Knows nothing about what is served. aiohttp alone lets a client that never finishes its first head hold a connection
for ever, and answers a malformed one in plain text, with a traceback in the log.
"""

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from src.errors import ConfigError
from src.serving.messages import Refused

WHO = web.RequestKey("who", str)  # the name of who sent a request
HEAD_WITHIN_S = 10.0
KEPT_ALIVE_S = 75.0
HEADERS = {
    "Server": "flywheel",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int, *, end_within_s: float = 1.0,
                    head_within_s: float = HEAD_WITHIN_S) -> AsyncIterator[tuple[str, int]]:
    """The address on which `app` answers; port 0 takes any that is free. On leaving, handlers have `end_within_s`.

    Raises ConfigError where nobody can listen there.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=end_within_s)
    await runner.setup()
    try:
        manager, loop = runner.server, asyncio.get_running_loop()
        assert manager is not None

        def connection() -> RequestHandler:
            return _Connection(manager, loop, head_within_s)

        try:
            server = await loop.create_server(connection, host, port, backlog=1024)
        except (OSError, UnicodeError) as error:
            raise ConfigError("serving.host", f"{host}:{port}", f"nobody can listen there ({error}); "
                              "serving.port=0 takes any that is free") from error
        address = server.sockets[0].getsockname()
        try:
            yield address[0], address[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()


def refusal(error: Refused) -> web.Response:
    """The answer to a request that is turned away."""
    headers = error.headers
    if error.retry_after_s is not None:
        headers = {**headers, "Retry-After": str(max(1, -int(-error.retry_after_s // 1)))}
    return web.json_response(error.body, status=error.status, headers=headers)


def unforeseen(where: str, error: BaseException | None) -> Refused:
    """What the client is told of a mistake of ours; the rest is written to stderr."""
    told = "".join(traceback.format_exception(error)) if error else "no exception\n"
    sys.stderr.write(f"{where}: not foreseen\n{told}")
    return Refused(500, "internal", "a mistake on this side; it has been written down")


class _Connection(RequestHandler):
    """A client's connection. `begun` is called once a head has come."""

    __slots__ = ("_head", "_head_within_s")

    def __init__(self, manager: web.Server, loop: asyncio.AbstractEventLoop, head_within_s: float) -> None:
        # A body is taken as it comes: uncompressing could make a thousand times as much of it.
        super().__init__(manager, loop=loop, auto_decompress=False, keepalive_timeout=KEPT_ALIVE_S, lingering_time=5.0,
                         access_log=None)  # type: ignore[arg-type]  # aiohttp's own way of having none
        self._head: asyncio.TimerHandle | None = None
        self._head_within_s = head_within_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head = asyncio.get_running_loop().call_later(self._head_within_s, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.begun()
        super().connection_lost(exc)

    def begun(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                     message: str | None = None) -> web.StreamResponse:
        """What never became a request, as its head is malformed or too long; or what went wrong outside of `app`."""
        self.begun()
        if isinstance(exc, ConnectionError):
            raise exc  # nobody is there any more
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun, there cannot be another")
        if status < 500:
            error = Refused(status, "bad_request", "this is not HTTP as it is understood here: the first line or a "
                            "header is malformed, or longer than 8190 bytes")
        else:
            error = unforeseen("a connection", exc)
        response = refusal(error)
        response.headers.update(HEADERS)
        response.force_close()
        return response


def begun(request: web.Request) -> None:
    """Its head has come: from here on, time is limited elsewhere."""
    if isinstance(request.protocol, _Connection):
        request.protocol.begun()
