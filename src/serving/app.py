"""The cascade over HTTP: what is asked and answered at which address, and how it is told what went wrong.

Handlers are thin: bodies are read in `messages`, keys in `access`; who decides is `live`. A request that was accepted
is decided and logged whether its client waits or not.

To stop: set `app[STOPPING]`, and readiness and new requests answer 503; drain the cascade; set `app[HURRY]`, and who
still waits for a person is answered with what there is, and where to ask for the rest; then leave `listening`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from aiohttp import ClientError, http_exceptions, web

from src.cascade.policy import Opinion
from src.console import warn
from src.errors import StoreError
from src.serving import messages
from src.serving.access import CLIENT, REVIEWER, Access, Rate
from src.serving.admission import Busy
from src.serving.connections import HEADERS, WHO, begun, refusal, unforeseen
from src.serving.counters import CONTENT_TYPE, Counters
from src.serving.live import BadImages, Ticket
from src.serving.log import new_request
from src.serving.messages import Refused, Wanted
from src.serving.openapi import document
from src.serving.spec import ServingSpec
from src.store import Logged
from src.task import TaskSpec

STOPPING = web.AppKey("stopping", asyncio.Event)
HURRY = web.AppKey("hurry", asyncio.Event)

CAME = web.RequestKey("came", float)

BODY_WITHIN_S = 30.0
BODIES = 8  # bodies of the largest size that may be read at the same time; smaller ones, as many as fill that memory
IN_THREAD = 2**20  # bytes of a body from which on the loop would stand still for milliseconds
OTHER_BODIES = 2**16  # bytes, of what is not /v1/decide
AGAIN_S = 2.0  # when to ask again where nobody knows better
NAMES = {"/v1/decide": "decide", "/v1/requests/{request}": "requests", "/metrics": "metrics", "/healthz": "healthz",
         "/readyz": "readyz", "/openapi.json": "openapi"}
PUBLIC = {"/healthz", "/readyz", "/openapi.json"}
VANISHED = 499  # in the metrics alone: nobody is there to be told

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Decides(Protocol):
    """What is asked of `live.Cascade`."""

    async def submit(self, request: str, payloads: Sequence[bytes], *, client: str) -> list[Ticket]: ...
    def tickets(self, request: str) -> list[Ticket]: ...


class Decisions(Protocol):
    """What is asked of `store.DecisionLog`."""

    def of(self, request: str) -> list[Logged]: ...


def make_app(cascade: Decides, *, decisions: Decisions, spec: ServingSpec, access: Access, counters: Counters,
             task: TaskSpec, rehearsal: bool, max_pixels: int, review: Iterable[web.AbstractRouteDef] = (),
             body_within_s: float = BODY_WITHIN_S, clock: Callable[[], float] = time.monotonic) -> web.Application:
    """An application that `connections.listening` serves; to be made in the loop that it runs in.

    `review` is mounted as it is; below `/review/api` it finds the reviewer's name in `request[WHO]`, and the rest of
    it is public. `clock`, in seconds, is that of the limit of requests a second.
    """
    desk = _Desk(cascade, decisions, spec, counters, task, rehearsal, body_within_s)
    door = _Door(access, Rate(spec.requests_per_second, clock), counters, body_within_s)
    described = document(task, spec, max_pixels=max_pixels, keys=not access.open)
    app = web.Application(middlewares=[door.answered, door.admitted], client_max_size=OTHER_BODIES)
    app[STOPPING], app[HURRY] = asyncio.Event(), asyncio.Event()

    async def openapi(request: web.Request) -> web.Response:
        return web.json_response(described)

    app.add_routes([
        web.post("/v1/decide", desk.decide, expect_handler=_expected),
        web.get("/v1/requests/{request}", desk.look_up),
        web.get("/healthz", _alive),
        web.get("/readyz", _ready),
        web.get("/metrics", desk.metrics),
        web.get("/openapi.json", openapi),
        *review,
    ])
    app.on_response_prepare.append(_head)
    return app


class _Door:
    """What every request passes: limits, keys, and one shape for all that goes wrong."""

    def __init__(self, access: Access, rate: Rate, counters: Counters, body_within_s: float) -> None:
        self._access, self._rate, self._counters, self._body_within_s = access, rate, counters, body_within_s

    @web.middleware
    async def answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever happens becomes an answer, and is counted."""
        begun(request)
        came = request[CAME] = time.perf_counter()
        status = VANISHED
        try:
            response = await _outcome(request, handler)
            status = response.status
        finally:
            self._counters.request(_endpoint(request), status, time.perf_counter() - came)
        if request.app[STOPPING].is_set():
            response.force_close()
        return response

    @web.middleware
    async def admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = _path(request)
        kind = _kind(path)
        request[WHO] = self._access.who(kind, request.headers)
        if kind == CLIENT and path != "/metrics":
            self._rate.take(request[WHO])
        if path != "/v1/decide" and request.can_read_body:
            async with _in_time(self._body_within_s):
                await request.read()  # kept, and what the handler reads then
        return await handler(request)


async def _outcome(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as error:
        return refusal(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _of_aiohttp(request, error)
    except StoreError as error:
        warn(f"{_what(request)}: {error}")  # where the store lies is not for clients
        return refusal(Refused(503, "store", "the log cannot be written or read, and nothing was decided: ask again",
                               retry_after_s=AGAIN_S))
    except (ConnectionError, ClientError, http_exceptions.HttpProcessingError, web.PayloadAccessError) as error:
        if request.transport is None or request.transport.is_closing():
            raise ConnectionError("the client is gone") from error
        return refusal(Refused(400, "bad_request", "the body broke off, or its chunks are malformed"))
    except Exception as error:
        return refusal(unforeseen(_what(request), error))


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> web.Response:
    """Unknown addresses, wrong methods, bodies that are too large."""
    told = {404: ("not_found", f"there is nothing at {request.path[:80]!r}: /openapi.json says what there is"),
            413: ("body_too_large", f"the body has more than {OTHER_BODIES} bytes")}
    headers = {}
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = error.headers["Allow"]
        told[405] = ("method_not_allowed", f"{request.method[:20]!r} is not possible here: {headers['Allow']}")
    code, message = told.get(error.status, ("bad_request", error.reason))
    return refusal(Refused(error.status, code, message, headers=headers))


async def _head(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = HEADERS["Server"]  # aiohttp has set its own by now


async def _alive(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _ready(request: web.Request) -> web.Response:
    _check_open(request)
    return web.json_response({"status": "ok"})


def _check_open(request: web.Request) -> None:
    if request.app[STOPPING].is_set():
        raise Refused(503, "stopping", "the server is stopping and takes nothing new: ask again",
                      retry_after_s=AGAIN_S)


class _Desk:
    """The handlers of /v1."""

    def __init__(self, cascade: Decides, decisions: Decisions, spec: ServingSpec, counters: Counters, task: TaskSpec,
                 rehearsal: bool, body_within_s: float) -> None:
        self._cascade, self._decisions, self._spec, self._counters = cascade, decisions, spec, counters
        self._task, self._rehearsal, self._body_within_s = task, rehearsal, body_within_s
        self._most_body = int(spec.most_body_mb * 1e6)
        self._reading = 0  # bytes of bodies in memory

    async def decide(self, request: web.Request) -> web.Response:
        _check_open(request)
        name = new_request(datetime.now(UTC))
        tickets, wait, timeout_s = await self._accept(request, name)
        if wait == "final":
            await _settled(tickets, timeout_s, request.app[HURRY])
        return self._answer([(ticket.latest, ticket.opinion) for ticket in tickets],
                            _milliseconds(request), doubtful=wait == "student")

    async def look_up(self, request: web.Request) -> web.Response:
        query = _query(request, "wait_s")
        wait_s = self._within("wait_s", messages.seconds("wait_s", query.get("wait_s", "0")))
        name = request.match_info["request"]
        await _settled(self._of_client(name, request[WHO]), wait_s, request.app[HURRY])
        rows = await asyncio.to_thread(self._decisions.of, name)
        # Another client's request is as unknown as one that never was.
        if not rows or (rows[0].client, rows[0].task, rows[0].task_version) != (
                request[WHO], self._task.name, self._task.version):
            raise Refused(404, "unknown_request", f"request={name[:40]!r}: none of yours has that name, in this "
                          "version of the task")
        return self._answer([(row, Opinion.of(row.probabilities, self._task.names)) for row in rows],
                            1000 * max(row.latency_s for row in rows))

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._counters.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _accept(self, request: web.Request, name: str) -> tuple[list[Ticket], str, float]:
        """The tickets; how, and how long, the client would wait. The body is not kept beyond."""
        wanted = await self._wanted(request)
        timeout_s = self._spec.wait_s if wanted.timeout_s is None else self._within("timeout_s", wanted.timeout_s)
        _check_open(request)  # it may have been told so while the body came
        try:
            tickets = await self._cascade.submit(name, wanted.payloads, client=request[WHO])
        except BadImages as error:
            raise messages.unreadable(error.positions) from None
        except Busy as error:
            _check_open(request)  # where that is why
            raise Refused(429, "busy", "more is in work than can be answered soon (at most serving.most_pending="
                          f"{self._spec.most_pending} images): ask again", retry_after_s=error.retry_after_s) from None
        return tickets, wanted.wait or "final", timeout_s

    async def _wanted(self, request: web.Request) -> Wanted:
        query = _query(request, "wait", "timeout_s")
        kind, read = self._reader(request)
        if request.content_length is None and "chunked" not in request.headers.get("Transfer-Encoding", "").lower():
            raise Refused(411, "length_required", "Content-Length is missing: a body with the items is needed")
        body = bytearray()
        try:
            await self._read(request, body)
            wanted = await asyncio.to_thread(read, body) if len(body) > IN_THREAD else read(body)
        finally:
            self._reading -= len(body)
        for field, value in query.items():
            if getattr(wanted, field) is not None:
                raise Refused(422, "bad_field", f"{field} stands in the address and in the {kind} body: once will do")
            messages.put(wanted, field, value)
        return wanted

    def _reader(self, request: web.Request) -> tuple[str, Callable[[bytearray], Wanted]]:
        """How its content type is read."""
        most = self._spec.most_items
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(415, "unsupported_media_type", "the body is compressed: send it as it is, images are already")
        if request.content_type == "application/json":
            return "JSON", lambda body: messages.of_json(body, most)
        if request.content_type == "multipart/form-data":
            boundary = messages.boundary_of(request.headers["Content-Type"])
            return "multipart", lambda body: messages.of_multipart(body, boundary, most)
        raise Refused(415, "unsupported_media_type", f"Content-Type {request.headers.get('Content-Type', '')[:80]!r}: "
                      "application/json or multipart/form-data is needed")

    async def _read(self, request: web.Request, body: bytearray) -> None:
        """Into `body`. Raises Refused for one that is too large, too slow, or more than there is memory for."""
        if (request.content_length or 0) > self._most_body:
            raise self._too_large()
        async with _in_time(self._body_within_s):
            while chunk := await request.content.readany():
                if len(body) + len(chunk) > self._most_body:
                    raise self._too_large()
                if self._reading + len(chunk) > BODIES * self._most_body:
                    raise Refused(429, "busy", "too much is being sent at once: ask again", retry_after_s=AGAIN_S)
                body += chunk
                self._reading += len(chunk)

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", f"the body has more than serving.most_body_mb="
                       f"{self._spec.most_body_mb:g} megabytes: send several requests, or smaller images")

    def _within(self, name: str, given: float) -> float:
        if given > self._spec.wait_s:
            raise Refused(422, "bad_field", f"{name}={given:g}: at most serving.wait_s={self._spec.wait_s:g} seconds; "
                          "then ask again at /v1/requests/…")
        return given

    def _of_client(self, name: str, client: str) -> list[Ticket]:
        return [ticket for ticket in self._cascade.tickets(name) if ticket.latest.client == client]

    def _answer(self, rows: Sequence[tuple[Logged, Opinion]], latency_ms: float, *,
                doubtful: bool = False) -> web.Response:
        body = messages.answer(rows, rehearsal=self._rehearsal, latency_ms=latency_ms, doubtful=doubtful)
        done = doubtful or all(row.answer is not None for row, _ in rows)
        headers = {} if done else {"Location": f"/v1/requests/{body['request']}"}
        return web.json_response(body, status=200 if done else 202, headers=headers)


async def _settled(tickets: Sequence[Ticket], seconds: float, hurry: asyncio.Event) -> None:
    """Return once all are, or the time is over, or there is a hurry."""
    waiting = [ticket for ticket in tickets if not ticket.settled.is_set()]
    if not waiting or not seconds:
        return

    async def all_of_them() -> None:
        for ticket in waiting:
            await ticket.settled.wait()

    either = [asyncio.ensure_future(all_of_them()), asyncio.ensure_future(hurry.wait())]
    try:
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in either:
            task.cancel()


class _in_time:
    """`async with` a limit of seconds on reading a body, after which it is refused."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._seconds = seconds

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise Refused(408, "too_slow", f"the body took longer than {self._seconds:g} s: send less at once",
                          headers={"Connection": "close"}) from None


async def _expected(request: web.Request) -> None:
    """Of the header `Expect`: other words than 100-continue are nobody's business, and no error."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def _query(request: web.Request, *known: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise Refused(422, "bad_field", f"query parameter {name[:40]!r}: unknown; there are {', '.join(known)}")
        if name in found:
            raise Refused(422, "bad_field", f"query parameter {name} is given twice: once will do")
        found[name] = value
    return found


def _path(request: web.Request) -> str:
    """The address as it is routed, "" for one that nothing is at: never as it was spelt, which could be otherwise."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else ""


def _kind(path: str) -> str | None:
    """Whose key is wanted there. What is not known to be public wants one."""
    if path in PUBLIC or not path:
        return None
    if path == "/review" or path.startswith("/review/"):
        return REVIEWER if path.startswith("/review/api/") else None
    return CLIENT


def _endpoint(request: web.Request) -> str:
    path = _path(request)
    return NAMES.get(path, "review" if path.startswith("/review") else "other")


def _what(request: web.Request) -> str:
    return f"{request.method[:20]} {_path(request) or 'elsewhere'}"


def _milliseconds(request: web.Request) -> float:
    return 1000 * (time.perf_counter() - request[CAME])
