"""Addresses of databases and servers, and the passwords in them."""

import os
import re

_PASSWORD = re.compile(r"(://[^/\s:]*:)\S+@|((?i:[?&]password=))[^&\s'\"]+")
_AUTHORITY = re.compile(r"[^/?#]*")
_QUERY = re.compile(r"\?\w+=.*", re.S)
_PORT = re.compile(r"[^@]*:\d+")
HOW = "in a password, write @ as %40, / as %2F, ? as %3F and # as %23; in a path, @ as %40"


def without_passwords(text: str) -> str:
    """The text with the passwords of all addresses in it struck out."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def keys_to_find(home: str, uri: str) -> str:
    """What a command line must say to find runs that stand at the address `uri`, or nothing. What the environment says
    need not be said again, and a password stands there alone."""
    told = [] if home == "mlruns" else [f"home={home}"]
    known = (f"sqlite:///{home}/mlflow.db", os.environ.get("MLFLOW_TRACKING_URI"))
    if uri not in known and without_passwords(uri) == uri:
        told.append(f"tracking.uri={uri}")
    return "".join(f" {key}" for key in told)


def is_clear(address: str) -> bool:
    """Whether everybody finds the same password in it. Where one holds a sign that parts addresses, libraries take some
    of it for the host's or the database's name, connect to that, and print it."""
    scheme, _, rest = address.partition("://")
    authority = _AUTHORITY.match(rest)[0]  # type: ignore[index]
    if scheme.partition("+")[0] in ("sqlite", "file") or ":" not in authority:
        return True  # no password
    after = rest[len(authority):]
    if "@" in authority or _PORT.fullmatch(authority):  # what follows may be a password's end, but for a path's query
        after = _QUERY.sub("", after) if after.startswith("/") else after
    return "@" not in after and "@" not in authority.rpartition("@")[0].partition(":")[2]
