"""The lane: one holder for one item, whatever the order of things; and the API behind the page, where it fails too."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, test_utils
from review_server import Desk, make_desk

from src.cascade.policy import Opinion
from src.metrics import proportion
from src.serving.lane import SECOND_OPINION, Lane, NotHeld, Waiting
from src.serving.review import take_up
from src.task import Annotation, Failure

START = datetime(2026, 11, 23, tzinfo=UTC)


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def waiting(key: str, reason: str = "teacher_unsure", since: datetime = START) -> Waiting:
    return Waiting(key, reason, "doubtful", Opinion("pear", 0.6), "apple", "red", since)


def lane_of(keys: str, *, share: float = 0.0, lease_s: float = 60) -> tuple[Lane, Clock]:
    clock = Clock()
    lane = Lane(lease_s=lease_s, second_opinion_share=share, clock=clock)
    for number, key in enumerate(keys):
        lane.add(waiting(key, since=START - timedelta(seconds=100 - number)))
    return lane, clock


def key_of(found: Waiting | None) -> str | None:
    return found.key if found else None


def test_each_gets_the_oldest_that_nobody_holds() -> None:
    lane, _ = lane_of("abc")
    assert [key_of(lane.next(who)) for who in ("ada", "ben", "cyd", "dan")] == ["a", "b", "c", None]
    assert key_of(lane.next("ada")) == "a"  # asking again is no way to a second one
    lane.release("ben")
    assert key_of(lane.next("dan")) == "b"


def test_a_hold_ends_and_a_late_answer_counts_only_where_nobody_took_over() -> None:
    lane, clock = lane_of("ab", lease_s=60)
    lane.next("ada")
    clock.tick(59)
    assert key_of(lane.next("ben")) == "b"
    clock.tick(2)
    assert lane.answer("ada", "a", "apple").first  # late, and still hers
    clock.tick(60)
    assert key_of(lane.next("cyd")) == "b"
    with pytest.raises(NotHeld, match="another reviewer has it now"):
        lane.answer("ben", "b", "pear")
    lane.answer("cyd", "b", "pear")
    with pytest.raises(NotHeld, match="not waiting any more"):
        lane.answer("ben", "b", "pear")


def test_a_hold_does_not_end_while_the_answer_is_written_down() -> None:
    lane, clock = lane_of("a")
    lane.next("ada")
    lane.hold("ada", "a", answering=True)
    clock.tick(10_000)
    lane.remove("a")  # the cascade lets go of what it is just being told
    assert lane.next("ben") is None
    assert lane.answer("ada", "a", "apple").first


def test_what_is_skipped_comes_last_and_only_for_the_one_who_did() -> None:
    lane, _ = lane_of("abc")
    seen = []
    for _ in range(5):
        seen.append(key_of(lane.next("ada")))
        lane.skip("ada", seen[-1] or "")
    assert seen == ["a", "b", "c", "a", "b"]
    assert lane.skipped("ada", "a") and not lane.skipped("ben", "a")
    assert key_of(lane.next("ben")) == "a"


def test_a_reason_filters_and_changing_it_gives_the_item_back() -> None:
    lane, _ = lane_of("a")
    lane.add(waiting("b", "over_budget"))
    assert key_of(lane.next("ada")) == "a"
    assert key_of(lane.next("ada", "over_budget")) == "b"
    assert key_of(lane.next("ben")) == "a"
    assert lane.next("cyd", "over_budget") is None
    assert lane.progress("ada").reasons == {"teacher_unsure": 1, "over_budget": 1}


def test_undo_goes_back_one_by_one_and_the_items_stand_where_they_stood() -> None:
    lane, _ = lane_of("abcd")
    for key, label in zip("abc", ("apple", "pear", "plum"), strict=True):
        assert key_of(lane.next("ada")) == key
        lane.answer("ada", key, label)
    lane.next("ada")
    assert [key_of(lane.undo("ada")) for _ in range(4)] == ["c", "b", "a", None]
    assert lane.progress("ada").mine == 0 and lane.said("a") is None
    assert [key_of(lane.next(who)) for who in ("ada", "ben", "cyd", "dan")] == ["a", "b", "c", "d"]


def test_nobody_undoes_what_another_said() -> None:
    lane, _ = lane_of("ab")
    lane.answer("ada", "a", "apple")
    assert lane.last("ben") is None and lane.undo("ben") is None
    assert lane.said("a") == ("apple", "ada")


def test_a_second_opinion_is_another_persons_and_not_the_clients() -> None:
    lane, clock = lane_of("ab", share=1.0)
    assert lane.answer("ada", "a", "apple").first
    clock.tick(1)
    assert key_of(lane.next("ada", SECOND_OPINION)) is None  # never one's own
    second = lane.next("ben", SECOND_OPINION)
    assert second and second.key == "a" and second.reason == SECOND_OPINION
    assert not lane.answer("ben", "a", "apple").first
    assert lane.next("cyd", SECOND_OPINION) is None  # they agree: that settles it
    assert key_of(lane.next("ada")) == "b"


def test_where_two_differ_a_third_settles_it_and_agreement_counts_the_two() -> None:
    lane, _ = lane_of("ab", share=1.0)
    for key in "ab":
        lane.answer("ada", key, "apple")
    lane.answer("ben", "a", "pear")
    assert lane.progress("ada").disputed == 1 and lane.progress("ada").seconds == 0
    assert key_of(lane.next("cyd", SECOND_OPINION)) == "b"
    lane.answer("cyd", "b", "apple")
    assert key_of(lane.next("cyd", SECOND_OPINION)) == "a"
    lane.answer("cyd", "a", "apple")
    assert lane.progress("ada").disputed == 0
    agreed = lane.agreement()
    assert agreed and agreed.share == proportion(1, 2)
    # Three times apple and once pear in two pairs: observed disagreement 1/2, expected by chance 1/2.
    assert agreed.alpha == pytest.approx(0.0)
    assert lane.said("a") == ("apple", "cyd")


def test_the_undo_of_a_first_answer_takes_it_from_who_was_to_give_a_second() -> None:
    lane, _ = lane_of("a", share=1.0)
    lane.answer("ada", "a", "apple")
    lane.next("ben")
    assert key_of(lane.undo("ada")) == "a"
    with pytest.raises(NotHeld):
        lane.answer("ben", "a", "pear")
    assert lane.answer("ada", "a", "pear").first
    lane.next("ben")
    lane.hold("ben", "a", answering=True)
    with pytest.raises(NotHeld, match="at this moment"):
        lane.undo("ada")
    assert not lane.answer("ben", "a", "pear").first
    assert lane.undo("ben") and key_of(lane.next("ben")) == "a"
    assert lane.agreement() is None


def test_draws_hold_their_share_and_a_larger_one_only_adds() -> None:
    small, large = (Lane(lease_s=1, second_opinion_share=share, seed=3) for share in (0.1, 0.3))
    keys = [f"{n:064x}" for n in range(4000)]
    drawn = [{key for key in keys if lane.draws(key)} for lane in (small, large)]
    assert drawn[0] < drawn[1]
    assert proportion(len(drawn[0]), 4000, 0.9999).low < 0.1 < proportion(len(drawn[0]), 4000, 0.9999).high


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nobody_shares_an_item_and_none_is_lost(seed: int) -> None:
    draw, people = random.Random(seed), ["ada", "ben", "cyd"]
    lane, clock = lane_of("", share=0.5, lease_s=30)
    first: dict[str, str] = {}  # what clients were told
    added: set[str] = set()
    screens: dict[str, tuple[str, datetime]] = {}  # who looks at what, until when
    for step in range(400):
        who, do = draw.choice(people), draw.choice(["add", "next", "next", "answer", "answer", "skip", "undo", "time"])
        if do == "add":
            lane.add(waiting(f"{step}", draw.choice(["teacher_unsure", "over_budget"]), clock.now))
            added.add(f"{step}")
        elif do == "time":
            clock.tick(draw.uniform(0, 20))
        elif do == "next":
            found = lane.next(who, draw.choice([None, None, "over_budget", SECOND_OPINION]))
            screens.pop(who, None)
            if found:
                assert all(key != found.key or until <= clock.now for key, until in screens.values()), (step, who)
                screens[who] = found.key, clock.now + timedelta(seconds=30)
        elif do == "undo":
            if (last := lane.last(who)) and lane.undo(who):
                if last.first:
                    assert first.pop(last.waiting.key) == last.label
                screens = {other: screen for other, screen in screens.items() if screen[0] != last.waiting.key}
                screens[who] = last.waiting.key, clock.now + timedelta(seconds=30)
        elif who in screens:
            key, until = screens.pop(who)
            try:
                if do == "skip":
                    lane.skip(who, key)
                elif lane.answer(who, key, label := draw.choice(["apple", "pear"])).first:
                    assert key not in first
                    first[key] = label
            except NotHeld:
                assert until <= clock.now  # who holds it may answer it
    for _ in people:
        lane.release(_)
    clock.tick(100)
    assert lane.progress("ada").waiting == len(added) - len(first)
    left = set()
    while found := lane.next("dan"):
        if lane.answer("dan", found.key, "pear").first:
            left.add(found.key)
    assert left == added - first.keys()


# The API.


@asynccontextmanager
async def client(desk: Desk) -> AsyncIterator[Callable[..., Awaitable[tuple[int, Any]]]]:
    async with test_utils.TestServer(desk.app()) as server, ClientSession() as session:
        async def ask(path: str, body: Any = None, *, who: str = "ada", raw: bytes | None = None,
                      kind: str = "application/json") -> tuple[int, Any]:
            data = raw if raw is not None else json.dumps(body) if body is not None else None
            headers = {"X-Reviewer": who} | ({"Content-Type": kind} if data is not None else {})
            async with session.request("GET" if data is None else "POST", server.make_url(f"/review{path}"), data=data,
                                       headers=headers) as response:
                if response.content_type == "application/json":
                    return response.status, await response.json()
                return response.status, (response.content_type, await response.read(), response.headers)

        yield ask
    desk.store.close()


def run(desk: Desk, talk: Callable[..., Awaitable[None]]) -> None:
    async def main() -> None:
        async with client(desk) as ask:
            await talk(ask)

    asyncio.run(main())


def test_an_answer_is_stored_as_src_review_would_and_only_then_told(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, count=3)

    async def talk(ask: Any) -> None:
        _, before = await ask("/api/next")
        key = before["item"]["key"]
        status, after = await ask("/api/answer", {"key": key, "label": "pear"})
        assert status == 200 and after["item"]["key"] == before["ahead"]
        assert after["last"] == {"key": key, "label": "pear"}
        [said] = desk.store.read(items=[key])
        assert (said.annotator, said.prompt_hash, said.label, said.task, said.task_version, said.failure) == (
            "human:ada", "cifar5@1", "pear", "cifar5", 1, None)
        assert desk.told.words == [(key, "pear", "human:ada")] and not desk.told.before_store
        # The same again, as when its response was lost, and then the undo twice.
        assert (await ask("/api/answer", {"key": key, "label": "pear"}))[0] == 200
        assert len(desk.store.read(items=[key])) == 1
        for _ in range(2):
            status, undone = await ask("/api/undo", {"key": key})
            assert status == 200 and undone["item"]["key"] == key and undone["last"] is None
        assert [a.failure for a in desk.store.read(items=[key])] == [None, Failure.WITHDRAWN]
        assert desk.told.words[1:] == [(key, None, "human:ada")]

    run(desk, talk)


@pytest.mark.parametrize("broken", ["store", "log"])
def test_what_cannot_be_written_stays_with_its_reviewer(tmp_path: Path, broken: str,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    desk = make_desk(tmp_path, count=2)

    async def talk(ask: Any) -> None:
        _, before = await ask("/api/next")
        key = before["item"]["key"]
        desk.store.locked, desk.told.fails = broken == "store", broken == "log"
        for _ in range(2):
            status, said = await ask("/api/answer", {"key": key, "label": "pear"})
            assert status == 503 and "stays with you" in said["error"]["message"]
            assert "/somewhere" not in json.dumps(said)
        assert (await ask("/api/next", who="ben"))[1]["item"]["key"] != key
        assert (await ask("/api/next"))[1]["item"]["key"] == key
        desk.store.locked = desk.told.fails = False
        assert (await ask("/api/answer", {"key": key, "label": "pear"}))[0] == 200
        assert len(desk.store.read(items=[key])) == 1 and desk.told.words == [(key, "pear", "human:ada")]
        desk.store.locked, desk.told.fails = broken == "store", broken == "log"
        assert (await ask("/api/undo", {"key": key}))[0] == 503
        assert (await ask("/api/progress"))[1]["progress"]["mine"] == 1
        desk.store.locked = desk.told.fails = False
        status, undone = await ask("/api/undo", {"key": key})
        assert status == 200 and undone["item"]["key"] == key and len(desk.store.read(items=[key])) == 2

    run(desk, talk)
    assert "/somewhere" in capsys.readouterr().out  # where the one who runs it reads it


def test_three_at_once_never_get_the_same(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, count=30, share=0.5)

    async def talk(ask: Any) -> None:
        async def work(who: str) -> list[str]:
            done = []
            _, state = await ask("/api/next", who=who)
            while state["item"]:
                key = state["item"]["key"]
                status, state = await ask("/api/answer", {"key": key, "label": "pear"}, who=who)
                assert status == 200, state
                done.append(key)
            return done

        people = ("ada", "ben", "cyd")
        done = await asyncio.gather(*(work(who) for who in people))
        for who, keys in zip(people, done, strict=True):  # second opinions of what was answered after they had gone
            keys += await work(who)
        assert all(len(set(keys)) == len(keys) for keys in done)  # nobody was asked twice
        told = [key for key, _, _ in desk.told.words]
        assert len(told) == len(set(told)) == 30  # a second opinion is not the client's
        twice = sum(desk.lane.draws(key) for key in told)
        assert sum(map(len, done)) == 30 + twice and twice
        assert desk.lane.agreement() and desk.lane.agreement().share == proportion(twice, twice)

    run(desk, talk)


def test_a_second_opinion_is_shown_without_what_was_said(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, count=1, share=1.0)

    async def talk(ask: Any) -> None:
        key = (await ask("/api/next"))[1]["item"]["key"]
        await ask("/api/answer", {"key": key, "label": "orange"})
        item = (await ask("/api/next", who="ben"))[1]["item"]
        assert item["key"] == key and item["student"] is None and item["teacher"] is None
        assert "orange" not in json.dumps(item)
        await ask("/api/answer", {"key": key, "label": "pear"}, who="ben")
        assert desk.told.words == [(key, "orange", "human:ada")]
        assert [a.label for a in desk.store.read(items=[key])] == ["orange", "pear"]
        desk.pictures.paths[key].unlink()  # expired: nobody could settle it any more
        assert (await ask("/api/next", who="cyd"))[1]["item"] is None
        assert desk.lane.progress("cyd").disputed == 0

    run(desk, talk)


def test_a_restart_asks_nobody_again(tmp_path: Path) -> None:
    """Answers that were stored and did not reach the log are passed on; what was withdrawn waits."""
    before = make_desk(tmp_path, count=4, share=1.0)
    a, b, c, d = list(before.lane._waiting)

    def said(key: str, who: str, label: str | None, minute: int, provider: str = "lane") -> Annotation:
        return Annotation(key, f"human:{who}", "cifar5@1", "cifar5", label=label, provider=provider,
                          failure=None if label else Failure.WITHDRAWN, created_at=START + timedelta(minutes=minute))

    before.store.add([said(a, "ada", "apple", 0), said(a, "ben", "pear", 1), said(b, "ada", "pear", 2),
                      said(c, "ada", "pear", 0, provider="")])
    before.store.add([said(b, "ada", None, 3)])
    before.store.close()
    after = make_desk(tmp_path, count=4, share=1.0)
    assert asyncio.run(take_up(after.lane, after.task, after.store, after.told)) == 2
    assert sorted(after.told.words) == sorted([(a, "pear", "human:ben"), (c, "pear", "human:ada")])
    found = after.lane.progress("ada")
    assert (found.waiting, found.mine, found.all) == (2, 1, 2)
    assert [key_of(after.lane.next(who)) for who in ("ada", "ben", "cyd")] == [b, d, None]
    agreed = after.lane.agreement()
    assert agreed and agreed.share == proportion(0, 1)
    # The same picture comes once more: the answer is known.
    after.lane.add(waiting(a))
    assert after.lane.known() == [a] and after.lane.said(a) == ("pear", "ben")
    after.store.close()


def test_pictures_come_by_key_alone_and_only_those_of_the_lane(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, count=2)
    key, other = desk.lane._waiting
    stranger = "f" * 64
    desk.pictures.paths[stranger] = tmp_path / "annotations.db"

    async def talk(ask: Any) -> None:
        status, (kind, body, headers) = await ask(f"/api/image/{key}")
        assert (status, kind, body) == (200, "image/png", desk.pictures.paths[key].read_bytes())
        assert headers["X-Content-Type-Options"] == "nosniff" and "no-store" in headers["Cache-Control"]
        for path in (stranger, "..%2f..%2fetc%2fpasswd", key.upper(), key[:-1]):
            assert (await ask(f"/api/image/{path}"))[0] == 404, path
        await ask("/api/answer", {"key": key, "label": "pear"})
        assert (await ask(f"/api/image/{key}"))[0] == 200  # it can be undone
        desk.pictures.paths[other].write_bytes(b"MM\0*, which no browser shows")
        assert (await ask(f"/api/image/{other}"))[0] == 415
        desk.pictures.paths[other].unlink()
        assert (await ask(f"/api/image/{other}"))[1]["error"]["code"] == "picture_gone"

    run(desk, talk)


def test_a_tiff_is_shown_as_png(tmp_path: Path) -> None:
    from PIL import Image

    desk = make_desk(tmp_path, count=1)
    [key] = desk.lane._waiting
    Image.new("RGB", (40, 30), "red").save(tmp_path / "scan.tiff")
    desk.pictures.paths[key] = tmp_path / "scan.tiff"

    async def talk(ask: Any) -> None:
        _, (kind, body, _) = await ask(f"/api/image/{key}")
        assert kind == "image/png" and body.startswith(b"\x89PNG")

    run(desk, talk)


BAD = [
    ({"key": "a" * 64}, 400, "must be an object with key, label"),
    ({"key": "a" * 64, "label": "pear", "path": "/etc"}, 400, "must be an object"),
    ({"key": "../x", "label": "pear"}, 400, "64 hexadecimal digits"),
    ({"key": "a" * 64, "label": "lion"}, 400, "'lion' is no class: apple, mushroom"),
    ({"key": "a" * 64, "label": 3}, 400, "label must be a string"),
    ({"key": "a" * 64, "label": ["pear"]}, 400, "label must be a string"),
    ({"key": "a" * 64, "label": "pear", "reason": 1}, 400, "reason must be a string"),
    ({"key": "a" * 64, "label": "pear"}, 409, "not waiting any more"),
    ([], 400, "must be an object"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD)
def test_a_bad_answer_is_told_what_is_wrong(tmp_path: Path, body: Any, status: int, words: str) -> None:
    desk = make_desk(tmp_path, count=1)

    async def talk(ask: Any) -> None:
        got, said = await ask("/api/answer", body)
        assert got == status and words in said["error"]["message"]
        assert not desk.told.words and desk.lane.progress("ada").waiting == 1

    run(desk, talk)


def test_what_is_not_json_or_too_much_or_nobodys(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, count=1)

    async def talk(ask: Any) -> None:
        for raw in (b"{", b"\xff\xfe", b"[" * 3000):
            assert (await ask("/api/answer", raw=raw))[0] == 400
        assert (await ask("/api/answer", raw=b"{}", kind="text/plain"))[0] == 415  # what any page can send
        assert (await ask("/api/answer", raw=b" " * 5000))[0] == 413
        for path in ("/api/next", "/api/task", "/api/progress", f"/api/image/{'a' * 64}"):
            assert (await ask(path, who=""))[0] == 401

    run(desk, talk)


def test_the_page_loads_without_a_key_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, count=1, keys=True)
    page = Path(__file__).parents[1] / "src/serving/page"

    async def talk(ask: Any) -> None:
        for path, kind in (("", "text/html"), ("/review.css", "text/css"), ("/review.js", "text/javascript")):
            status, (found, body, headers) = await ask(path)
            assert (status, found) == (200, kind)
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'") and "unsafe" not in policy
            assert not any(key.encode() in body for key in desk.lane._waiting)
        assert (await ask("/hello"))[1] == {"keys": True, "rehearsal": True}
        assert (await ask("/api/next"))[0] == 401

    run(desk, talk)
    for name, word in itertools.product(("review.html", "review.css", "review.js"), ("http://", "https://", "style=")):
        text = (page / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert word not in text, name
