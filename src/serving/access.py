"""Who may do what: keys for clients and reviewers, what a browser may be made to send, how often anybody may ask.

The only module that reads keys, and it keeps their hashes alone: no message, log or exception can show one. Knows
nothing about handlers; a request is its kind (`client`, `reviewer`, or None for what is public) and its headers.
"""

import functools
import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable, Mapping

from src.errors import ConfigError
from src.serving.messages import Refused

CLIENT, REVIEWER = "client", "reviewer"
VARIABLES = {CLIENT: "FLYWHEEL_CLIENT_KEYS", REVIEWER: "FLYWHEEL_REVIEWER_KEYS"}
SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}", re.ASCII)
_KEY = re.compile(rf"[!-+\--~]{{{SHORTEST},200}}", re.ASCII)  # visible, and no comma, which ends a pair


class Access:
    """Raises ConfigError where an address that others can reach would have no keys, and for keys that are none.

    On a loopback `host` without any keys everybody on this machine may do everything, and pages of other hosts nothing:
    the browser's Host and Origin must be of this machine. Where only one kind of keys is set, nobody is the other kind.
    """

    def __init__(self, host: str, environment: Mapping[str, str]) -> None:
        self._hashes = {kind: _read(name, environment.get(name, "")) for kind, name in VARIABLES.items()}
        self.open = not any(self._hashes.values())
        if set(self._hashes[CLIENT]) & set(self._hashes[REVIEWER]):
            raise ConfigError(VARIABLES[REVIEWER], "(not shown)", f"a key of {VARIABLES[CLIENT]} is among them: every "
                              "key has one holder and one purpose")
        if not is_loopback(host):
            for kind, name in VARIABLES.items():
                if not self._hashes[kind]:
                    raise ConfigError("serving.host", host, f"others can reach it, so it wants keys: set {name} to "
                                      "name:key,name:key in the environment, or listen on 127.0.0.1")

    def who(self, kind: str | None, headers: Mapping[str, str]) -> str:
        """The name of who sent it, "" where that does not matter. Raises Refused."""
        if self.open:
            _check_from_here(headers)
            return _own_name(headers) if kind == REVIEWER else ""
        return self._holder(kind, headers.get("Authorization", "")) if kind else ""

    def _holder(self, kind: str, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # All keys of both kinds are compared, whichever fits: how long it takes says nothing about any of them.
        holders = {of: [name for known, name in hashes.items() if hmac.compare_digest(known, given)]
                   for of, hashes in self._hashes.items()}
        if scheme.lower() == "bearer" and holders[kind]:
            return holders[kind][0]
        if scheme.lower() == "bearer" and any(holders.values()):
            raise Refused(403, "forbidden", f"this wants a {kind}'s key, and that is not one")
        if not self._hashes[kind]:
            raise Refused(403, "forbidden", f"there are no {kind}s here: the server has no {VARIABLES[kind]}")
        raise Refused(401, "unauthorized", f"a {kind}'s key is needed: Authorization: Bearer …",
                      headers={"WWW-Authenticate": 'Bearer realm="flywheel"'})


class Rate:
    """A bucket of tokens for each client: `per_second` flow in, and it holds a second's worth, at least one.

    None sets no limit. Raises ConfigError unless it is more than 0.
    """

    def __init__(self, per_second: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if per_second is not None and not 0 < per_second < math.inf:
            raise ConfigError("serving.requests_per_second", per_second, "more than 0, or null for no limit")
        self._per_second, self._clock = per_second, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # by client: tokens, and when they were counted

    def take(self, client: str) -> None:
        """Raises Refused, with the time until there is a token again."""
        if self._per_second is None:
            return
        now, most = self._clock(), max(1.0, self._per_second)
        tokens, before = self._buckets.get(client, (most, now))
        tokens = min(most, tokens + (now - before) * self._per_second)
        if tokens < 1:
            self._buckets[client] = (tokens, now)
            raise Refused(429, "too_many_requests", f"more than serving.requests_per_second={self._per_second:g}: send "
                          "several items in one request, or wait", retry_after_s=(1 - tokens) / self._per_second)
        self._buckets[client] = (tokens - 1, now)


@functools.lru_cache(64)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`; of names, `localhost` alone is trusted to."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(variable: str, value: str) -> dict[bytes, str]:
    """Names by the hash of their keys. Nothing of it is told: a pair may be the wrong way round."""
    found: dict[bytes, str] = {}
    for n, pair in enumerate(value.split(",") if value.strip() else [], 1):
        name, _, key = pair.strip().partition(":")
        wrong = f"pair {n} (not shown)"
        if not _NAME.fullmatch(name):
            raise ConfigError(variable, wrong, "name:key,name:key with names of up to 40 letters, digits, - _ and .")
        if not _KEY.fullmatch(key):
            raise ConfigError(variable, wrong, f"keys have {SHORTEST} to 200 visible characters and no comma, as "
                              "`python -c 'import secrets; print(secrets.token_urlsafe())'` prints them")
        hashed = hashlib.sha256(key.encode()).digest()
        if name in found.values() or hashed in found:
            raise ConfigError(variable, wrong, "its name or its key is that of an earlier one: each only once")
        found[hashed] = name
    return found


def _check_from_here(headers: Mapping[str, str]) -> None:
    """A page of another host, open in a browser on this machine, can send to loopback, and by a name of its own even
    read what comes back (DNS rebinding). Its Origin or its Host gives it away."""
    host = headers.get("Host", "")
    if not is_loopback(_name_of(host)):
        raise Refused(403, "forbidden", "without keys this server is for this machine alone: ask for it as 127.0.0.1 "
                      "or localhost, or set keys")
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, "forbidden", "a page of another origin sent this: without keys none may")


def _name_of(host: str) -> str:
    """Of a Host header, without the port."""
    return host[:host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


def _own_name(headers: Mapping[str, str]) -> str:
    name = headers.get("X-Reviewer", "")
    if not _NAME.fullmatch(name):
        raise Refused(401, "unauthorized", "X-Reviewer: who are you? Up to 40 letters, digits, - _ and .")
    return name
