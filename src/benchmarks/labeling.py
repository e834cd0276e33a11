"""How close asking comes to what server and machine allow, and how large a store it bears.

Speed stands beside a bare aiohttp loop that posts the same bodies, and the official client, in turns within one run;
every server, and every run whose memory counts, is a process of its own. Nothing leaves the machine.
"""

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from src.benchmarks import defaults, texts
from src.benchmarks.askers import Questions, Timing, bare, labeler, openai_client
from src.benchmarks.machine import processor
from src.benchmarks.servers import serving
from src.console import progress, say, table
from src.errors import DataError
from src.labeling.prompt import render

IMAGE_BYTES = 10_000
DISTINCT = 256  # things to show; from there on they repeat themselves
FEW = 0.1  # of the questions go to the official client, which takes many times as long
OFFICIAL_WAVES = 6
BESIDE = 2  # turns of what stands beside a bar
SETTLED_S = 5.0  # the time that pacing has to find its rate
ASKED_ANEW = 1000  # texts without an answer, behind those of the large store
LABELER, BARE, BY_HAND, OFFICIAL = "labeler", "bare aiohttp loop", "the same, JSON in and out", "openai client"
HEADER = ("at a time", "who asks", "questions/s", "of the bare loop", "CPU, ms a question")


@dataclass(frozen=True)
class Bar:
    """What is wanted, what came out, and whether that is enough."""

    what: str
    wanted: str
    figure: str
    reached: bool


def run(*, repeats: int, latency_s: float, concurrency: Sequence[int], waves: int, requests: int, rate: float,
        bucket_s: float, stored_items: int, labelled_items: int) -> list[Bar]:
    began = time.monotonic()
    say(f"{date.today()} · {processor()} · servers on loopback in processes of their own · medians over the turns, in "
        "brackets their range")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bars = [
            *waiting(folder, latency_s=latency_s, concurrency=concurrency, waves=waves, repeats=repeats),
            *at_once(folder, concurrency=concurrency[0], requests=requests, repeats=repeats),
            *paced(folder, rate=rate, seconds=bucket_s, concurrency=concurrency[0]),
            *resumed(folder, stored=stored_items, repeats=min(3, repeats)),
            *growing(folder, count=labelled_items),
        ]
    rows = [(bar.what, bar.wanted, bar.figure, "yes" if bar.reached else "NO") for bar in bars]
    table(f"All bars, in {time.monotonic() - began:.0f} s", rows, ("what", "bar", "figure", "reached"))
    return bars


def waiting(folder: Path, *, latency_s: float, concurrency: Sequence[int], waves: int, repeats: int) -> list[Bar]:
    """A server that takes its time: what is lost between an answer and the next question? A wave is as many questions
    as are asked at a time; the bar is about the first concurrency, the others stand beside it."""
    rows, bars = [], []
    with serving(texts.LABEL, latency_s=latency_s) as server:
        for width in concurrency:
            rate = partial(Timing.steady_rate, wave=width)
            main = width == concurrency[0]
            ways = _ways(folder, server.base_url, width, images=True, count=width * waves, few=width * OFFICIAL_WAVES)
            names = (LABELER, BARE, OFFICIAL) if main else (LABELER, BARE)
            found = _in_turns(f"answers after {latency_s:g} s, {width} at a time",
                              {name: way for name, way in ways.items() if name in names}, repeats if main else BESIDE)
            rows += _rows(found, rate, width=width, ideal=width / latency_s)
            rows.append((str(width), "ideal: concurrency/latency", f"{width / latency_s:.1f}", "", "", "100.0%"))
            bars.append(_bar(f"answers after {latency_s:g} s, {width} at a time", found, rate, least=0.98))
    table(f"Answers after {latency_s:g} s: {IMAGE_BYTES // 1000} KB images, {waves} waves of questions of which the "
          f"first and the last do not count ({OFFICIAL}: {OFFICIAL_WAVES}), {repeats} turns, and {BESIDE} beside the "
          f"{concurrency[0]} at a time that the bar is about", rows, (*HEADER, "of the ideal"))
    return bars[:1]


def at_once(folder: Path, *, concurrency: int, requests: int, repeats: int) -> list[Bar]:
    """A server that answers at once: what does a question take, with its answer on disk?"""
    bars = []
    with serving(texts.LABEL) as server:
        for what, images in (("10 KB images", True), ("texts", False)):
            few = max(concurrency, round(FEW * requests))
            ways = _ways(folder, server.base_url, concurrency, images=images, count=requests, few=few)
            before = server.count()
            found = _in_turns(f"answers at once, {what}", ways, repeats)
            after = server.count()
            served = 1e3 * (after["cpu_s"] - before["cpu_s"]) / (after["answered"] - before["answered"])
            table(f"Answers at once: {what}, {requests} questions ({OFFICIAL}: {few}), {repeats} turns; every answer "
                  f"of the labeler found in its store; the server took {served:.2f} ms of its own core for each",
                  _rows(found, lambda timing: timing.rate, width=concurrency), HEADER)
            bars.append(_bar(f"answers at once, {what}, {concurrency} at a time", found, lambda timing: timing.rate,
                             least=0.6))
    return bars


def paced(folder: Path, *, rate: float, seconds: float, concurrency: int) -> list[Bar]:
    """A server that takes `rate` requests a second and refuses what comes faster: is the rate found, and kept?"""
    questions = _questions(round(rate * (seconds + 1) * 2), images=True)
    spec = defaults.labeler(concurrency=concurrency, passes=1, adaptive=True)
    say(f"A token bucket of {rate:g} requests a second, for {seconds:g} s …")
    with serving(texts.LABEL, rate=rate) as server:
        labeler(questions, defaults.teacher(server.base_url), spec, folder, most_s=seconds)
        times = server.times()
        began = server.count()["first_at"]
    answered, refused = ([at - began for at in times[kind] if at - began <= seconds]
                         for kind in ("answered", "refused"))
    late = [sum(at > SETTLED_S for at in kind) for kind in (answered, refused)]
    share = len(answered) / seconds / rate
    settled = late[0] / max(seconds - SETTLED_S, 1e-9) / rate
    refused_share = late[1] / max(1, sum(late))
    what = f"token bucket of {rate:g}/s, {concurrency} at a time"
    rows = [("all", str(len(answered)), f"{share:.1%}", str(len(refused)),
             f"{len(refused) / max(1, len(answered) + len(refused)):.1%}"),
            (f"after the first {SETTLED_S:g} s", str(late[0]), f"{settled:.1%}", str(late[1]), f"{refused_share:.1%}")]
    table(f"A token bucket of {rate:g} requests a second that begins full and answers 429 with Retry-After beyond it: "
          f"{concurrency} at a time, labeler.adaptive, {seconds:g} s, one run", rows,
          ("requests", "accepted", "of the bucket's rate", "refused", "share refused"))
    return [Bar(f"{what}: accepted", "90% of its rate", f"{share:.1%}", share >= 0.9),
            Bar(f"{what}: refused after {SETTLED_S:g} s", "at most 2%", f"{refused_share:.1%}", refused_share <= 0.02)]


def resumed(folder: Path, *, stored: int, repeats: int) -> list[Bar]:
    """A run over `stored` texts that all have their answers, and some more that have none: how long from having its
    items to its first question, and what does it hold by then?"""
    store = folder / "large.db"
    waits, peaks, bases = [], [], []
    with serving(texts.LABEL) as server:
        list(texts.watched(store, server, 2 * texts.GOLD))  # real answers, for the others to be like
        held = texts.fill(store, 2 * texts.GOLD, stored)
        size = store.stat().st_size
        for _ in range(repeats):
            server.anew()
            looks = []
            with closing(texts.watched(store, server, stored + ASKED_ANEW)) as watching:
                for look in watching:
                    looks.append(look)
                    if look.first_s is not None:
                        break
            waits.append(looks[-1].first_s or math.inf)
            bases.append(looks[0].resident)
            peaks.append(max(look.resident for look in looks))
            if math.isinf(waits[-1]):
                say(f"Nothing was asked within {texts.PATIENCE_S:g} s; no second try.")
                break
    wait, peak = statistics.median(waits), max(peaks)
    table(f"A store of {held:,} annotations ({size / 1e6:,.0f} MB, as the page cache has it) of {stored:,} texts, and "
          f"{ASKED_ANEW:,} new texts: a run that goes on from it, {len(waits)} times",
          [("its items in hand (Survey.run and opening the store to come) → its first new question at the server",
            f"{_seconds(wait)} [{_seconds(min(waits))}, {_seconds(max(waits))}]"),
           ("memory with its items, before", _mb(statistics.median(bases))),
           ("most memory up to that question", f"{_mb(peak)} [{_mb(min(peaks))}, {_mb(peak)}]")], ("what", "figure"))
    return [Bar(f"{held:,} stored: first question", "within 5 s", _seconds(wait), wait <= 5),
            Bar(f"{held:,} stored: memory until then", "below 500 MB", _mb(peak), peak < 500e6)]


def growing(folder: Path, *, count: int) -> list[Bar]:
    """A new run over `count` texts: does what it holds grow with what it has asked?"""
    total = count * texts.PASSES
    with serving(texts.LABEL) as server:
        looks = list(texts.watched(folder / "growing.db", server, count))
    during = [look for look in looks if 0.1 * total <= look.answered < total]
    if len(during) < 2:
        raise DataError(f"labelled_items={count} are labelled too soon to be watched")
    growth = max(look.resident for look in during) - during[0].resident
    rate = (during[-1].answered - during[0].answered) / (during[-1].seconds - during[0].seconds)
    table(f"{count:,} texts, {texts.PASSES} passes, against a server that answers at once: one run", [
        ("memory with its items, before", _mb(looks[0].resident)),
        ("memory at 10% of the questions", _mb(during[0].resident)),
        ("memory at 100%", _mb(during[-1].resident)),
        ("most of it between these, beyond that at 10%", _mb(growth)),
        ("most of it at all, when all annotations are read back", _mb(max(look.resident for look in looks))),
        ("questions/s, the whole way", f"{rate:.0f}"),
    ], ("what", "figure"))
    return [Bar(f"labelling {count:,} texts: memory from 10% to 100%", "within 50 MB", _mb(growth),
                growth <= 50e6)]


def _questions(count: int, *, images: bool) -> Questions:
    chance = random.Random(0)
    shown: list[bytes | str] = [chance.randbytes(IMAGE_BYTES) if images else texts.text(n) for n in range(DISTINCT)]
    return Questions(texts.TASK, render(texts.TASK, None), shown, count)


def _ways(folder: Path, base_url: str, width: int, *, images: bool, count: int, few: int
          ) -> dict[str, Callable[[], Timing]]:
    """Who asks, each `width` questions at a time: `count` in all, of the official client `few`."""
    teacher, spec = defaults.teacher(base_url), defaults.labeler(concurrency=width, passes=1)
    asked = _questions(count, images=images)
    ways: dict[str, Callable[[], Timing]] = {LABELER: partial(labeler, asked, teacher, spec, folder),
                                             BARE: partial(bare, asked, teacher, width),
                                             BY_HAND: partial(bare, asked, teacher, width, parsed=True)}
    if find_spec("openai"):
        ways[OFFICIAL] = partial(openai_client, replace(asked, count=few), teacher, width)
    else:
        say("The openai client is not installed (it is a development dependency), and is left out.")
    return ways


def _in_turns(what: str, ways: Mapping[str, Callable[[], Timing]], repeats: int) -> dict[str, list[Timing]]:
    """Each way once a turn; every other turn goes backwards, so that none always comes first."""
    found: dict[str, list[Timing]] = {name: [] for name in ways}
    with progress(what, repeats) as update:
        for turn in range(repeats):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                found[name].append(ways[name]())
            update(turn + 1)
    return found


def _rows(found: Mapping[str, Sequence[Timing]], rate: Callable[[Timing], float], *, width: int,
          ideal: float | None = None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, timings in found.items():
        median = statistics.median(map(rate, timings))
        cpu_ms = statistics.median(timing.cpu_ms for timing in timings)
        row = (str(width), name, f"{median:.1f}", _spread(_shares(timings, found[BARE], rate)), f"{cpu_ms:.2f}")
        rows.append((*row, f"{median / ideal:.1%}") if ideal else row)
    return rows


def _bar(what: str, found: Mapping[str, Sequence[Timing]], rate: Callable[[Timing], float], *, least: float) -> Bar:
    shares = _shares(found[LABELER], found[BARE], rate)
    return Bar(what, f"{least:.0%} of the bare loop", _spread(shares), statistics.median(shares) >= least)


def _shares(timings: Sequence[Timing], reference: Sequence[Timing], rate: Callable[[Timing], float]) -> list[float]:
    """The rates over the reference's, turn by turn: what slows the machine for a while slows both."""
    return [rate(timing) / rate(other) for timing, other in zip(timings, reference, strict=True)]


def _spread(shares: Sequence[float]) -> str:
    return f"{statistics.median(shares):.1%} [{min(shares):.1%}, {max(shares):.1%}]"


def _seconds(wait: float) -> str:
    return f"over {texts.PATIENCE_S:g} s" if math.isinf(wait) else f"{wait:.1f} s"


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
