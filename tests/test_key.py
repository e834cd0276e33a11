"""The key: sent to whom it is for, and kept nowhere; and by which way requests go out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from picture_survey import pictures, put
from scripted_server import Asked, Server, answer, free_address, good, label, refuse
from stand_in import make_errors

import src.labeling.ask as asking
from src.errors import TeacherError
from src.labeling.rehearsal import Rehearsal
from src.store import Store

KEY = "sk-test-0123456789/abcdef"


def leaks(path: Path, key: str) -> list[str]:
    return [file.name for file in path.iterdir() if file.is_file() and key.encode() in file.read_bytes()]


def escaped(text: str) -> str:
    """A JSON body with every slash escaped, as some servers write it."""
    return text.replace("/", "\\/")


@pytest.mark.parametrize("shape", ["answer", "error", "page", "escaped"])
def test_the_key_is_sent_and_never_kept(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str,
                                        capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FRUIT_KEY", f" {KEY}\n")

    async def says(asked: Asked) -> web.Response:
        echo = asked.headers["Authorization"]
        assert echo == f"Bearer {KEY}"
        if shape == "answer":
            content = json.dumps({"label": "pear" if asked.place % 2 else echo, "why": f"you sent {echo}"})
            return answer(asked, content=content, model=echo, provider=echo)
        if shape == "error":
            return refuse(401, message=f"Incorrect API key provided: {echo}")
        if shape == "page":
            return web.Response(status=400, text=f"<html>{echo}</html>")
        body = json.dumps({"error": {"message": f"Incorrect key {echo}", "code": 401}})
        return web.Response(status=401, text=escaped(body), content_type="application/json")

    message = ""
    try:
        label(Server(says), 30, store, teacher={"key_env": "FRUIT_KEY"})
    except TeacherError as error:
        message = repr(error)
    assert (message == "") == (shape == "answer") and KEY not in message
    stored = store.read()
    assert KEY not in repr(stored) and ("***" in repr(stored) or "***" in message)
    store.close()
    assert leaks(tmp_path, KEY) == []
    out, err = capfd.readouterr()
    assert KEY not in out + err


def test_a_placeholder_for_a_key_garbles_no_reply(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRUIT_KEY", "e")
    assert label(Server(good), 2, store, teacher={"key_env": "FRUIT_KEY"}).answered == 2
    assert {a.why for a in store.read()} == {"because"}


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_for_other_hosts_than_this_one(store: Store, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, free_address().removesuffix("/v1"))
    assert label(Server(good), 3, store).answered == 3


def test_other_hosts_are_asked_through_the_proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = free_address()
    monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
    with pytest.raises(TeacherError, match=re.escape(proxy.removeprefix("http://").removesuffix("/v1").split(":")[1])):
        label("http://teacher.invalid/v1", 3, store)


def test_the_key_is_never_sent_to_the_stand_in(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Nosy(Rehearsal):
        def _unwelcome(self, request: web.Request) -> Any:
            seen.append(dict(request.headers))
            return super()._unwelcome(request)

    monkeypatch.setattr(asking, "Rehearsal", Nosy)
    monkeypatch.setenv("FRUIT_KEY", KEY)
    put(pictures(tmp_path, 4), store, errors=make_errors(), teacher={"key_env": "FRUIT_KEY"})
    assert len(seen) == 4 and all("Authorization" not in headers for headers in seen) and KEY not in repr(seen)
