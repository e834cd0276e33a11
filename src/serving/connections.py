"""The socket: who connects and says nothing is cut off, and what is not HTTP gets its answer in JSON too.

Knows nothing about what is served. aiohttp alone lets a client that never finishes its first head hold a connection
for ever, and answers a malformed one in plain text, with a traceback in the log.
"""

import asyncio
import contextlib
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
MOST_FILES = 2**14  # open at a time, connections among them, where the system allows so many
AT_ONCE = 128  # connections that wait to be taken, and are before any of them can be counted
SPARE_FILES = 200 + 2 * AT_ONCE  # beside the connections: the store's, images', the LLM's
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
                    head_within_s: float = HEAD_WITHIN_S, most: int | None = None) -> AsyncIterator[tuple[str, int]]:
    """The address on which `app` answers; port 0 takes any that is free. On leaving, handlers have `end_within_s`. More
    than `most` connections at a time are closed at once; by default, as many as this process may have files open.

    Raises ConfigError where nobody can listen there.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=end_within_s)
    await runner.setup()
    try:
        manager, loop = runner.server, asyncio.get_running_loop()
        assert manager is not None
        connected: set[_Connection] = set()
        room = _room() if most is None else most

        def connection() -> RequestHandler:
            return _Connection(manager, loop, head_within_s, connected, room)

        try:
            server = await loop.create_server(connection, host, port, backlog=AT_ONCE)
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


def _room() -> int:
    """How many connections there may be. Without any file left, asyncio would write a thousand tracebacks a second, and
    neither the store nor an image could be opened."""
    try:
        import resource  # not on Windows
    except ImportError:
        return MOST_FILES - SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if 0 <= soft < wanted:  # infinity is negative
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, (soft if 0 <= soft < MOST_FILES else MOST_FILES) - SPARE_FILES)


class _Connection(RequestHandler):
    """A client's connection, one of those `connected`, of which there is `room` for so many. `begun` is called once a
    head has come."""

    __slots__ = ("_connected", "_head", "_head_within_s", "_room")

    def __init__(self, manager: web.Server, loop: asyncio.AbstractEventLoop, head_within_s: float,
                 connected: "set[_Connection]", room: int) -> None:
        # A body is taken as it comes: uncompressing could make a thousand times as much of it.
        super().__init__(manager, loop=loop, auto_decompress=False, keepalive_timeout=KEPT_ALIVE_S, lingering_time=5.0,
                         access_log=None)  # type: ignore[arg-type]  # aiohttp's own way of having none
        self._head: asyncio.TimerHandle | None = None
        self._head_within_s = head_within_s
        self._connected, self._room = connected, room

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connected.add(self)
        if len(self._connected) > self._room:
            self.force_close()
            return
        self._head = asyncio.get_running_loop().call_later(self._head_within_s, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connected.discard(self)
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
