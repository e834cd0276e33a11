"""The page where people decide, and the JSON behind it: everything below `/review`.

An answer is a human annotation, in the store before the client hears of it; an undo withdraws it the same way. Whatever
fails, the item stays with its reviewer. Who they are stands in `request[WHO]`: keys are somebody else's business.
No path, address or markup is ever taken from a request: an image is found by its key, where the lane shows it.
"""

import asyncio
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from src.console import warn
from src.data.images import Unreadable, decode
from src.errors import StoreError
from src.quality.conclude import HUMAN
from src.serving.connections import WHO
from src.serving.lane import SECOND_OPINION, Lane, NotHeld, Waiting
from src.store import Store
from src.task import Annotation, Failure, TaskSpec

CHANNEL = "lane"  # the annotations' provider
MOST_BODY = 4096  # bytes; ours are a tenth of that
# Nothing from another host and nothing inline; images come as blobs, since an <img> cannot send a key.
PAGE_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
PAGE = {"/review": ("review.html", "text/html"), "/review/review.css": ("review.css", "text/css"),
        "/review/review.js": ("review.js", "text/javascript")}
KEY = re.compile(r"[0-9a-f]{64}")
# What every browser shows, by how it begins; the rest is shown as PNG.
BEGINNINGS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif",
              b"BM": "image/bmp"}
AGAIN = "It could not be written down. Nothing is lost: the item stays with you. Try again in a moment."

Answer = Callable[[str, str | None, str], Awaitable[None]]  # an item's key, its label or None, the annotator


class Payloads(Protocol):
    """Where the pictures lie."""

    def find(self, key: str) -> Path | None: ...


def routes(lane: Lane, task: TaskSpec, payloads: Payloads, store: Store, answered: Answer, *, keys: bool,
           rehearsal: bool, max_pixels: int) -> list[web.RouteDef]:
    """The page, which anybody may load and which holds no data, and its API, which wants `request[WHO]`.

    `answered` tells a person's answer to the clients that wait for it, and is only called after the store has it; None
    takes it back. `keys`: whether reviewers have keys, or just say their names. Pictures of more than `max_pixels` are
    shown only where the browser can do that by itself.
    """
    desk = _Desk(lane, task, payloads, store, answered, rehearsal=rehearsal, max_pixels=max_pixels)

    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"keys": keys, "rehearsal": rehearsal})

    return [
        *(web.get(path, _file(*what)) for path, what in PAGE.items()),
        web.get("/review/", _to_page),
        web.get("/review/hello", hello),
        web.get("/review/api/task", _guarded(desk.task)),
        web.get("/review/api/next", _guarded(desk.next)),
        web.get("/review/api/progress", _guarded(desk.progress)),
        web.get("/review/api/image/{key}", _guarded(desk.image)),
        web.post("/review/api/answer", _guarded(desk.answer)),
        web.post("/review/api/undo", _guarded(desk.undo)),
        web.post("/review/api/skip", _guarded(desk.skip)),
    ]


async def take_up(lane: Lane, task: TaskSpec, store: Store, answered: Answer) -> int:
    """What people said before this process began; returns how many waiting items it settled.

    To be called once, when everything that a former process left open waits in the lane again: an answer that it
    stored and did not live to pass on is passed on now, and nobody is asked twice. Raises StoreError.
    """
    found = await asyncio.to_thread(store.read, task=task.name, annotator_prefix=HUMAN, replies=False)
    last: dict[tuple[str, str], Annotation] = {}
    for said in found:
        if said.task_version == task.version:
            last.pop((said.item, said.annotator), None)  # in the order of last words
            last[said.item, said.annotator] = said
    for said in last.values():
        lane.recall(said.item, said.annotator.removeprefix(HUMAN), task.map_label(said.label),
                    here=said.provider == CHANNEL)
    return await _settle(lane, answered)


async def _settle(lane: Lane, answered: Answer) -> int:
    settled = lane.known()
    for key in settled:
        if said := lane.said(key):
            await answered(key, said[0], HUMAN + said[1])
            lane.remove(key)
    return len(settled)


class _Problem(Exception):
    """What the reviewer is told: a status, a code, and a sentence with the way out."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Desk:
    """The API's handlers. One reviewer's requests are dealt with one after the other."""

    def __init__(self, lane: Lane, task: TaskSpec, payloads: Payloads, store: Store, answered: Answer, *,
                 rehearsal: bool, max_pixels: int) -> None:
        self._lane, self._task, self._payloads, self._store, self._answered = lane, task, payloads, store, answered
        self._rehearsal, self._max_pixels = rehearsal, max_pixels
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # What the store has and the clients have not been told: trying again stores it no second time.
        self._stored: dict[tuple[str, str], str | None] = {}

    async def task(self, request: web.Request) -> web.Response:
        task = self._task
        return web.json_response({
            "task": task.name, "version": task.version, "reviewer": _who(request), "rehearsal": self._rehearsal,
            "classes": [{"name": name, "definition": definition} for name, definition in task.classes.items()],
            "lease_s": self._lane.lease_s,
        })

    async def next(self, request: web.Request) -> web.Response:
        who, reason = _who(request), request.query.get("reason") or None
        async with self._turns[who]:
            try:
                await _settle(self._lane, self._answered)
            except StoreError as error:
                warn(f"An answer that a person gave before could not be passed on: {error}")
            return web.json_response(await self._state(who, reason))

    async def progress(self, request: web.Request) -> web.Response:
        return web.json_response({"progress": self._progress(_who(request))})

    async def answer(self, request: web.Request) -> web.Response:
        who, body = _who(request), await _body(request, "key", "label")
        key, label = body["key"], body["label"]
        if label not in self._task.classes:
            raise _Problem(400, "unknown_label", f"label={label[:60]!r} is no class: {', '.join(self._task.names)}")
        async with self._turns[who]:
            try:
                waiting = self._lane.hold(who, key, answering=True)
            except NotHeld as error:
                done = self._lane.last(who)
                if done and (done.waiting.key, done.label) == (key, label):  # sent again, its response was lost
                    return web.json_response(await self._state(who, body.get("reason") or None))
                return await self._refused(error, who, body.get("reason") or None)
            try:
                seconds = self._lane.looked_at_s(key)
                await self._say(who, key, label, tell=waiting.reason != SECOND_OPINION, seconds=seconds)
            except BaseException:
                self._lane.hold(who, key)
                raise
            self._lane.answer(who, key, label)
            return web.json_response(await self._state(who, body.get("reason") or None))

    async def undo(self, request: web.Request) -> web.Response:
        """Of `key`, which is what the reviewer saw as their last answer: sent again, it does not undo another."""
        who, body = _who(request), await _body(request, "key")
        key = body["key"]
        async with self._turns[who]:
            done = self._lane.last(who)
            try:
                if done is None or done.waiting.key != key:
                    if self._lane.holds(who) == key:
                        return web.json_response(await self._state(who, None))
                    raise NotHeld("That answer cannot be taken back any more.")
                self._lane.take_back(who)
            except NotHeld as error:
                return await self._refused(error, who, body.get("reason") or None)
            try:
                await self._say(who, key, None, tell=done.first, seconds=0.0)
            except BaseException:
                self._lane.release(who)
                raise
            self._lane.undo(who)
            return web.json_response(await self._state(who, None))

    async def skip(self, request: web.Request) -> web.Response:
        who, body = _who(request), await _body(request, "key")
        async with self._turns[who]:
            try:
                self._lane.skip(who, body["key"])
            except NotHeld as error:
                return await self._refused(error, who, body.get("reason") or None)
            return web.json_response(await self._state(who, body.get("reason") or None))

    async def image(self, request: web.Request) -> web.Response:
        _who(request)
        key = request.match_info["key"]
        if not KEY.fullmatch(key) or not self._lane.shows(key):
            raise _Problem(404, "unknown_item", "No such item waits for review.")
        found = await asyncio.to_thread(self._picture, key)
        if found is None:
            raise _Problem(404, "picture_gone", "The picture is not kept any more: see serving.keep_days.")
        body, content_type = found
        return web.Response(body=body, content_type=content_type, headers={
            "Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"})

    async def _say(self, who: str, key: str, label: str | None, *, tell: bool, seconds: float) -> None:
        """Into the store, then to the clients that wait. Raises StoreError."""
        annotator = HUMAN + who
        if self._stored.get((who, key), "") != label:
            said = Annotation(
                item=key, annotator=annotator, task=self._task.name, task_version=self._task.version,
                prompt_hash=f"{self._task.name}@{self._task.version}", label=label, provider=CHANNEL,
                failure=None if label else Failure.WITHDRAWN, latency_s=seconds)
            await asyncio.to_thread(self._store.add, [said])
            self._stored[who, key] = label
        if tell:
            await self._answered(key, label, annotator)
        del self._stored[who, key]

    async def _state(self, who: str, reason: str | None) -> dict[str, Any]:
        """What the page shows next."""
        waiting = self._lane.next(who, reason)
        while waiting and waiting.reason == SECOND_OPINION and not await asyncio.to_thread(
                self._payloads.find, waiting.key):
            self._lane.forget(waiting.key)  # nobody waits for it, and nobody could tell what it was
            waiting = self._lane.next(who, reason)
        ahead, done = self._lane.ahead(who, reason), self._lane.last(who)
        return {
            "item": self._shown(who, waiting) if waiting else None,
            "ahead": ahead.key if ahead else None,
            "last": {"key": done.waiting.key, "label": done.label} if done else None,
            "progress": self._progress(who),
        }

    def _shown(self, who: str, waiting: Waiting) -> dict[str, Any]:
        """Of a second opinion, nothing that others said: it would no longer be one."""
        blind = waiting.reason == SECOND_OPINION
        student = {"label": waiting.student.answer, "probability": waiting.student.probability,
                   "probabilities": list(waiting.probabilities)}
        teacher = {"label": waiting.teacher, "probability": waiting.teacher_probability, "why": waiting.teacher_why}
        return {
            "key": waiting.key, "reason": waiting.reason, "escalated": waiting.escalated,
            "waits_s": self._lane.age_s(waiting), "left_s": self._lane.left_s(waiting.key),
            "skipped": self._lane.skipped(who, waiting.key),
            "student": None if blind else student,
            "teacher": None if blind or waiting.teacher is None else teacher,
        }

    def _progress(self, who: str) -> dict[str, Any]:
        found, agreed = self._lane.progress(who), self._lane.agreement()
        reasons = {**found.reasons, **({SECOND_OPINION: found.seconds} if found.seconds else {})}
        return {
            "mine": found.mine, "all": found.all, "waiting": found.waiting, "held": found.held,
            "oldest_s": found.oldest_s, "reasons": reasons, "disputed": found.disputed,
            "agreement": agreed and {
                "share": agreed.share.value, "low": agreed.share.low, "high": agreed.share.high, "n": agreed.share.n,
                "alpha": None if math.isnan(agreed.alpha) else agreed.alpha},
        }

    async def _refused(self, error: NotHeld, who: str, reason: str | None) -> web.Response:
        """Why not, and what there is to do instead."""
        return web.json_response({"error": {"code": "not_held", "message": str(error)},
                                  **await self._state(who, reason)}, status=409)

    def _picture(self, key: str) -> tuple[bytes, str] | None:
        path = self._payloads.find(key)
        try:
            payload = path.read_bytes() if path else None
        except FileNotFoundError:  # it has expired this very moment
            payload = None
        if payload is None:
            return None
        for beginning, content_type in BEGINNINGS.items():
            if payload.startswith(beginning):
                return payload, content_type
        if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
            return payload, "image/webp"
        try:
            encoded = io.BytesIO()
            decode(payload, self._max_pixels).save(encoded, format="PNG")
        except Unreadable as error:
            raise _Problem(415, "unreadable", f"The picture cannot be shown: {error}.") from error
        return encoded.getvalue(), "image/png"


Handler = Callable[[web.Request], Awaitable[web.Response]]


def _guarded(handler: Handler) -> Handler:
    async def guarded(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except _Problem as problem:
            status, code, message = problem.status, problem.code, str(problem)
        except StoreError as error:
            warn(f"A review could not be written down: {error}")  # where the store lies is not for the browser
            status, code, message = 503, "store", AGAIN
        return web.json_response({"error": {"code": code, "message": message}}, status=status)

    return guarded


def _who(request: web.Request) -> str:
    who: str = request.get(WHO, "")
    if not who:
        raise _Problem(401, "who", "Say who you are: a reviewer's key, or on this machine without keys the header "
                                   "X-Reviewer.")
    return who


async def _body(request: web.Request, *needed: str) -> dict[str, str]:
    """A JSON object of strings, with `reason` if it likes. A page of another origin cannot send that type unasked."""
    if request.content_type != "application/json":
        raise _Problem(415, "content_type", f"Content-Type is {request.content_type[:60]!r}: send application/json.")
    if (request.content_length or 0) > MOST_BODY:
        raise _Problem(413, "body", f"The body has {request.content_length} bytes: at most {MOST_BODY}.")
    try:
        body = json.loads(await request.read())
    except ValueError as error:  # of which wrong UTF-8 is one
        raise _Problem(400, "json", f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise _Problem(400, "json", "The body is nested too deeply: send one object of strings.") from error
    allowed = {*needed, "reason"}
    if not isinstance(body, dict) or not set(needed) <= body.keys() or not body.keys() <= allowed:
        raise _Problem(400, "fields", f"The body must be an object with {', '.join(needed)}; reason is optional.")
    if wrong := [name for name, value in body.items() if not isinstance(value, str)]:
        raise _Problem(400, "fields", f"{wrong[0]} must be a string.")
    if not KEY.fullmatch(body["key"]):
        raise _Problem(400, "key", f"key={body['key'][:80]!r}: 64 hexadecimal digits are wanted.")
    return body


async def _to_page(request: web.Request) -> web.Response:
    raise web.HTTPPermanentRedirect("/review")  # the page's addresses are relative to that


def _file(name: str, content_type: str) -> Handler:
    content = files("src.serving").joinpath("page", name).read_bytes()

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8", headers={
            "Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer"})

    return serve
