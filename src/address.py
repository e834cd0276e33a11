"""Addresses of databases and servers, and the passwords in them."""

import re

_PASSWORD = re.compile(r"(://[^/\s:@]*:)\S+@|((?i:[?&]password=))[^&\s'\"]+")
_QUERY = re.compile(r"(?<=/)([^?]*)\?\w+=.*", re.S)  # of a path
HOW = "in a password, write @ as %40, / as %2F, ? as %3F and # as %23"


def without_passwords(text: str) -> str:
    """The text with the passwords of all addresses in it struck out."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def is_clear(address: str) -> bool:
    """Whether everybody finds the same password in it. Where one holds a sign that parts addresses, libraries take some
    of it for the host's or the database's name, connect to that, and print it."""
    scheme, _, rest = address.partition("://")
    user, _, password = _QUERY.sub(r"\1", rest).rpartition("@")[0].partition(":")
    return scheme.partition("+")[0] in ("sqlite", "file") or "/" in user or not set("@/?#") & set(password)
