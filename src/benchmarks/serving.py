"""What the cascade's server adds to the student it serves: in processor time, in waiting, under too much load, and in
memory over a million decisions.

Server, clients, the student without a server, and every process whose memory counts are processes of their own. What is
compared takes turns, and ratios are taken within a turn. Nothing leaves the machine.
"""

import base64
import json
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from src.benchmarks import defaults, served
from src.benchmarks.labeling import Bar
from src.benchmarks.machine import Elsewhere, Helper, in_a_process, processor
from src.benchmarks.traffic import Seen, Target, Traffic
from src.console import progress, say, table, warn
from src.errors import ConfigError, DataError
from src.reopen import reopen, student_of
from src.student.protocol import Student
from src.student.runtimes import cores
from src.tracking import run_of

BATCH = 32
FILES = 320  # different images that are sent, in turn
BOUNDARY = "flywheel-benchmark"
SHARES = (("a quarter", 0.25), ("half", 0.5), ("full", 1.0))
CLIENTS = 32  # that find out about how much can be done
PROBES = 6
GROWS = 3.0  # times as slow in the last third of a probe as in the first: its queue would never end
GROWS_MS = 50.0
RECOVERS_S = 5.0
SINGLES = 200
MB = 1e6
BUSY = 0.25  # cores at work for others, from where on figures say little


@dataclass(frozen=True)
class Subject:
    """What is measured: the run, its student as it answers here, image files, and what the server takes of them."""

    run: str
    uri: str
    home: Path
    student: Student
    model: Path
    max_pixels: int
    files: Sequence[bytes]


@dataclass(frozen=True)
class Load:
    """Streams of one rate, one for each turn; `cpu_s` of the server and `others`, the cores at work elsewhere."""

    what: str
    rate: float
    seen: Sequence[Seen]
    cpu_s: Sequence[float]
    others: Sequence[float]

    def percentile(self, share: float) -> float:
        """Milliseconds, median over the turns."""
        return statistics.median(seen.percentiles(share)[0] for seen in self.seen)


def run(*, runs: Sequence[str], uri: str, home: Path, out: Path, repeats: int, load_s: float, log_decisions: int,
        replay_decisions: int, beside: bool = True) -> list[Bar]:
    """Print the tables, and whether the bars are reached. `beside` measures `mlflow models serve` too. Raises what
    reopening a run raises, and DataError where a process fails."""
    began = time.monotonic()
    subject = _subject(runs, uri=uri, home=home, out=out)
    student = subject.student
    spec = defaults.serving()
    size = statistics.mean(map(len, subject.files))
    say(f"{date.today()} · {processor()} · {student.name} at {student.input_size} px in {student.dtype} on "
        f"{student.runtime}, {cores()} threads · {len(subject.files)} image files of the run's test part, {size:,.0f} "
        "bytes each on average, sent in turn · servers and clients on loopback in processes of their own · medians "
        "over the turns, in brackets their range")
    others: list[float] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        many = _bodies(folder / "batches", [_form(subject.files[n:n + BATCH])
                                            for n in range(0, len(subject.files) - BATCH + 1, BATCH)])
        one = _bodies(folder / "singles", [_form([payload]) for payload in subject.files])
        server = stack.enter_context(_cascade(subject, folder))
        traffic = stack.enter_context(Traffic())
        alone = stack.enter_context(_alone(subject, folder))
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        singles, batches = (Target(f"{server.url}/v1/decide", bodies, kind) for bodies in (one, many))
        bars = [batched(server, traffic, alone, batches, count=max(2, round(2 * load_s)), repeats=repeats,
                        others=others)]
        full = full_load(traffic, singles, probe_s=load_s / 2)
        loads = streams(server, traffic, singles, full, load_s=load_s, repeats=min(3, repeats), others=others)
        full = loads[-1].rate
        bars.append(waited(loads, alone, wait_ms=spec.batch_wait_ms))
        bars += shed(traffic, singles, full, loads[-1], load_s=load_s)
        if beside:
            beside_mlflow(subject, server, traffic, singles, folder, load_s=load_s, repeats=min(3, repeats))
    bars += [grown(f"{log_decisions:,} decisions through Log.write", "--logged", log_decisions),
             grown(f"{replay_decisions:,} images through Cascade.submit", "--replayed", replay_decisions)]
    rows = [(bar.what, bar.wanted, bar.figure, "REACHED" if bar.reached else "NOT REACHED") for bar in bars]
    table(f"All bars, in {time.monotonic() - began:.0f} s", rows, ("what", "bar", "figure", ""))
    busy = statistics.median(others)
    told = f"Other work took {busy:.2f} of {cores()} cores meanwhile (median; at most {max(others):.2f})"
    if busy > BUSY:
        warn(f"{told}: run this again on a quiet machine.")
    else:
        say(f"{told}.")
    return bars


def batched(server: served.Server, traffic: Traffic, alone: Helper, target: Target, *, count: int, repeats: int,
            others: list[float]) -> Bar:
    """Requests of 32 images, one after the other, against the same in one process."""
    over_http, by_itself, rates = [], [], []
    traffic.in_turn(target, 3)
    with progress(f"batches of {BATCH}", repeats) as update:
        for turn in range(repeats):
            with Elsewhere([server.pid, traffic.pid]) as elsewhere:
                seen = traffic.in_turn(target, count)
            _check_all_answered(seen, "batches")
            over_http.append(BATCH * seen.answered / elsewhere.cpu_s[0])
            found = alone.ask(size=BATCH, count=count)
            by_itself.append(found["images"] / found["cpu_s"])
            rates.append((BATCH * seen.rate, found["images"] / found["seconds"]))
            others.append(elsewhere.cores)
            update(turn + 1)
    shares = [ours / theirs for ours, theirs in zip(over_http, by_itself, strict=True)]
    table(f"Requests of {BATCH} images, {count} a turn, one after the other, {repeats} turns", [
        ("server, its clients not counted", _range(over_http, ".0f"),
         f"{statistics.median(r[0] for r in rates):.0f}", _range(shares, ".0%")),
        ("decode and student in one process", _range(by_itself, ".0f"), f"{statistics.median(r[1] for r in rates):.0f}",
         "100%")], ("", "images per CPU-second", "images/s", "of one process"))
    share = statistics.median(shares)
    return Bar(f"batches of {BATCH}: images per CPU-second", "60% of decode and student in one process",
               _range(shares, ".0%"), share >= 0.6)


def full_load(traffic: Traffic, target: Target, *, probe_s: float) -> float:
    """The highest rate, in single images a second, at which nobody is turned away and nobody waits ever longer."""
    traffic.in_turn(target, 4 * CLIENTS, clients=CLIENTS)
    rough = traffic.in_turn(target, 20 * CLIENTS, clients=CLIENTS).rate
    low, high = 0.0, 2 * rough
    with progress("looking for full load", PROBES) as update:
        for probe in range(PROBES):
            rate = (low + high) / 2
            if _bears(traffic.stream(target, [(rate, probe_s)], seed=probe)):
                low = rate
            else:
                high = rate
            update(probe + 1, f"{rate:.0f}/s")
    if not low:
        raise DataError(f"Not even {high:.0f} images a second are borne: something else is wrong here.")
    return low


def _bears(seen: Seen) -> bool:
    if seen.answered < len(seen.status):
        return False
    first, last = (statistics.median(part.ms) if len(part.ms) else 0.0
                   for part in (seen.between(0, seen.seconds / 3), seen.between(2 * seen.seconds / 3, seen.seconds)))
    return last <= max(GROWS * first, GROWS_MS)


def streams(server: served.Server, traffic: Traffic, target: Target, full: float, *, load_s: float, repeats: int,
            others: list[float]) -> list[Load]:
    """Single images at a quarter, half and full load, in turns. Where full load turns out to be too much over this
    time, it is a tenth less."""
    while not all(_bears(traffic.stream(target, [(full, load_s)], seed=100 + again)) for again in range(2)):
        full *= 0.9
    found: dict[str, list[tuple[Seen, float, float]]] = {name: [] for name, _ in SHARES}
    with progress("single images", repeats) as update:
        for turn in range(repeats):
            for name, share in SHARES:
                with Elsewhere([server.pid, traffic.pid]) as elsewhere:
                    seen = traffic.stream(target, [(share * full, load_s)], seed=turn)
                found[name].append((seen, elsewhere.cpu_s[0], elsewhere.cores))
                others.append(elsewhere.cores)
            update(turn + 1)
    return [Load(name, share * full, *zip(*found[name], strict=True)) for name, share in SHARES]


def waited(loads: Sequence[Load], alone: Helper, *, wait_ms: float) -> Bar:
    half = next(load for load in loads if load.what == "half")
    hot = alone.ask(count=SINGLES, gap_s=0.0)
    paced = alone.ask(count=SINGLES, gap_s=1 / half.rate)
    ms, paced_ms = (statistics.median(found["ms"]) for found in (hot, paced))
    rows = [(load.what, f"{load.rate:.0f}", *(f"{load.percentile(share):.1f}" for share in (50, 95, 99)),
             f"{load.percentile(50) / ms:.1f}", str(sum(seen.count(429) for seen in load.seen)),
             f"{statistics.median(1e3 * cpu_s / max(1, seen.answered) for seen, cpu_s in _each(load)):.2f}",
             f"{max(seen.late_ms for seen in load.seen):.0f}",
             f"{statistics.median(load.others):.2f}") for load in loads]
    rows.append(("in one process, no server", f"{1e3 / ms:.0f}", f"{ms:.1f}", "", "", "1.0", "",
                 f"{1e3 * hot['cpu_s'] / SINGLES:.2f}", "", ""))
    rows.append(("the same, paced as at half load", f"{half.rate:.0f}", f"{paced_ms:.1f}", "", "",
                 f"{paced_ms / ms:.1f}", "", f"{1e3 * paced['cpu_s'] / SINGLES:.2f}", "", ""))
    table(f"Single images at random moments, {loads[0].seen[0].seconds:g} s, {len(loads[0].seen)} turns; late: how far "
          "behind their time 1% were sent", rows,
          ("load", "images/s", "p50, ms", "p95", "p99", "× one process", "429", "CPU, ms an image", "late, ms",
           "cores of others"))
    bound = wait_ms + 3 * ms
    p50 = half.percentile(50)
    beyond = max(0.0, p50 - wait_ms)
    return Bar(f"half load ({half.rate:.0f}/s): p50", f"{wait_ms:g} + 3 × {ms:.2f} = {bound:.1f} ms",
               f"{p50:.1f} ms ({wait_ms:g} + {beyond / ms:.1f} × {ms:.2f}, or {beyond / paced_ms:.1f} × the paced "
               f"{paced_ms:.2f})", p50 <= bound)


def _each(load: Load) -> list[tuple[Seen, float]]:
    return list(zip(load.seen, load.cpu_s, strict=True))


def shed(traffic: Traffic, target: Target, full: float, at_full: Load, *, load_s: float) -> list[Bar]:
    """Half load, twice the full load, half load again."""
    after_s = load_s + RECOVERS_S
    say(f"{full / 2:.0f} images a second for {load_s:g} s, {2 * full:.0f} for {load_s:g} s, {full / 2:.0f} for "
        f"{after_s:g} s …")
    seen = traffic.stream(target, [(full / 2, load_s), (2 * full, load_s), (full / 2, after_s)], seed=7)
    before, during, after = (seen.between(start, end) for start, end in (
        (0.0, load_s), (load_s, 2 * load_s), (2 * load_s, 2 * load_s + after_s)))
    refused = during.count(429)
    told = int((during.retry_after_s[during.status == 429] >= 1).sum())
    lost = len(seen.status) - seen.answered - seen.count(429)
    full_p99, p99, normal = at_full.percentile(99), during.percentiles(99)[0], before.percentiles(99)[0]
    back = _back(after, 2 * load_s, normal)
    table("Twice the load it can carry, once", [
        (what, f"{rate:.0f}", f"{part.rate:.0f}", f"{part.count(429) / max(1, len(part.status)):.0%}",
         *(f"{found:.1f}" for found in part.percentiles(50, 95, 99)))
        for what, rate, part in (("before, half load", full / 2, before), ("twice the full load", 2 * full, during),
                                 ("after, half load", full / 2, after))],
          ("", "sent/s", "accepted/s", "429", "p50, ms", "p95", "p99"))
    ratio = p99 / full_p99
    return [
        Bar("twice the full load: sheds with 429 and Retry-After", "all that is not accepted",
            f"{refused} turned away, {told} with Retry-After, {lost} lost",
            refused > 0 and told == refused and not lost),
        Bar("twice the full load: p99 of what is accepted", f"2 × full load's {full_p99:.0f} ms",
            f"{ratio:.2f} × ({p99:.0f} ms)", ratio <= 2),
        Bar("back to normal: p99 within 1.5 × half load's before", f"within {RECOVERS_S:g} s",
            "never" if math.isinf(back) else f"after {back:.0f} s", back <= RECOVERS_S)]


def _back(after: Seen, start_s: float, normal_ms: float) -> float:
    """Whole seconds after which p99 of all that follows is within 1.5 of the normal; inf where it never is."""
    for second in range(int(after.seconds)):
        rest = after.between(start_s + second, start_s + after.seconds)
        if rest.percentiles(99)[0] <= 1.5 * normal_ms and rest.answered == len(rest.status):
            return float(second)
    return math.inf


def beside_mlflow(subject: Subject, server: served.Server, traffic: Traffic, singles: Target, folder: Path, *,
                  load_s: float, repeats: int) -> None:
    """The same student and files under `mlflow models serve`: one client, and several."""
    bodies = _bodies(folder / "json", [json.dumps({"dataframe_split": {
        "columns": ["image"], "data": [[base64.b64encode(payload).decode()]]}}).encode() for payload in subject.files])
    say("Starting mlflow models serve …")
    with served.mlflow(subject.run, uri=subject.uri, folder=folder) as theirs:
        target = Target(f"{theirs.url}/invocations", bodies, "application/json")
        rows = []
        for clients in (1, 8):
            ways = {"src.serve": (singles, server), "mlflow models serve": (target, theirs)}
            counts = {}
            for name, (where, _) in ways.items():
                warm = traffic.in_turn(where, 10 * clients, clients=clients)
                _check_all_answered(warm, name)
                counts[name] = max(clients, round(warm.rate * load_s / 2))
            found: dict[str, list[tuple[Seen, float]]] = {name: [] for name in ways}
            for _ in range(repeats):
                for name, (where, which) in ways.items():
                    with Elsewhere([which.pid]) as elsewhere:
                        seen = traffic.in_turn(where, counts[name], clients=clients)
                    found[name].append((seen, elsewhere.cpu_s[0]))
            base = [seen.rate for seen, _ in found["mlflow models serve"]]
            for name, turns in found.items():
                ratios = [seen.rate / other for (seen, _), other in zip(turns, base, strict=True)]
                rows.append((str(clients), name, _range([seen.rate for seen, _ in turns], ".0f"), _range(ratios, ".1f"),
                             *(f"{statistics.median(seen.percentiles(share)[0] for seen, _ in turns):.1f}"
                               for share in (50, 95, 99)),
                             f"{statistics.median(1e3 * cpu_s / seen.answered for seen, cpu_s in turns):.1f}"))
    table(f"One image a request, clients that wait for their answer, {repeats} turns of about {load_s / 2:g} s; of "
          "src.serve every answer is in its log", rows,
          ("clients", "", "requests/s", "× mlflow", "p50, ms", "p95", "p99", "CPU, ms an image"))


def grown(what: str, kind: str, count: int) -> Bar:
    """In a process of its own: how much more it holds at the end than at a tenth."""
    say(f"{what} …")
    with tempfile.TemporaryDirectory() as folder:
        command = in_a_process("src.benchmarks.decisions", "--folder", folder, kind, str(count))
        with subprocess.Popen(**command, stdout=subprocess.PIPE, text=True) as process:
            try:
                words = process.communicate()[0]
            except BaseException:
                process.terminate()
                raise
    if process.returncode:
        raise DataError(f"{what}: the process failed (status {process.returncode}), see its words above.")
    found = json.loads(words)
    growth = found["most"] - found["early"]
    asked = [("escalated and answered by an LLM that answers at once", f"{found['escalated']:,}"),
             ("an hour's traffic at", f"{count / 3600:.0f}/s")] if "escalated" in found else []
    table(f"{what}, 64 at a time, every one on disk before its writer goes on", [
        ("a second", f"{count / found['seconds']:,.0f}"), ("seconds", f"{found['seconds']:.1f}"),
        ("CPU, µs a decision", f"{1e6 * found['cpu_s'] / count:.0f}"),
        ("wait p50/p99, ms", f"{found['p50_ms']:.1f}/{found['p99_ms']:.1f}"),
        ("bytes a step on disk", f"{found['bytes']:.0f}"),
        ("memory at 10%", f"{found['early'] / MB:.0f} MB"), ("most from there on", f"{found['most'] / MB:.0f} MB"),
        *asked], ("what", "figure"))
    return Bar(f"{what}: memory from 10% to 100%", "within 50 MB", f"{growth / MB:.0f} MB", growth <= 50 * MB)


def _subject(runs: Sequence[str], *, uri: str, home: Path, out: Path) -> Subject:
    if len(runs) > 1:
        raise ConfigError("runs", list(runs), "one training run, or none for the newest")
    run = run_of(uri, runs[0] if runs else "latest")[0]
    past = reopen(uri, run, home=home, out=out)
    student = student_of(past, runtime="auto", dtype="fp32", margin=0.0, device="cpu", out=out)
    items = past.dataset.splits.test
    if len(items) < BATCH:
        raise DataError(f"run={run!r} has {len(items)} test images, and {BATCH} at least are needed.")
    model = past.checkpoint if student.runtime == "torch" else Path(getattr(student, "path"))  # noqa: B009
    return Subject(run, uri, home, student, model, past.job.data.max_pixels,
                   [Path(item.payload).read_bytes() for item in items[:FILES]])


def _cascade(subject: Subject, folder: Path) -> AbstractContextManager[served.Server]:
    say("Starting src.serve …")
    return served.cascade(subject.run, uri=subject.uri, home=subject.home, folder=folder,
                          runtime=subject.student.runtime, dtype=subject.student.dtype)


def _alone(subject: Subject, folder: Path) -> Helper:
    files = _bodies(folder / "files", subject.files)
    return Helper("src.benchmarks.in_process", "--model", str(subject.model.absolute()), "--files", str(files),
                  "--runtime", subject.student.runtime, "--dtype", subject.student.dtype, "--max-pixels",
                  str(subject.max_pixels))


def _bodies(folder: Path, contents: Sequence[bytes]) -> Path:
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:05d}").write_bytes(content)
    return folder


def _form(payloads: Sequence[bytes]) -> bytes:
    """As curl -F sends them."""
    head = (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n").encode()
    return b"".join(head + payload + b"\r\n" for payload in payloads) + f"--{BOUNDARY}--\r\n".encode()


def _check_all_answered(seen: Seen, what: str) -> None:
    if seen.answered < len(seen.status):
        raise DataError(f"{what}: {len(seen.status) - seen.answered} of {len(seen.status)} requests were not answered "
                        f"by 200, but by {sorted(set(seen.status.tolist()))}.")


def _range(found: Sequence[float], how: str) -> str:
    return f"{statistics.median(found):{how}} [{min(found):{how}}, {max(found):{how}}]"
