"""Change files at random, and see that every reader of them refuses them well, or takes them.

    python tests/hostile/fuzz.py --out DIR [--cases 1000000] [--seed 0] [--processes 2]

Well is: by an error of glider's own, in two seconds, in memory of twice the file. What is not lies in DIR/faults.jsonl
with the number of its case, which `--case` repeats. The same command goes on where it was stopped.
"""

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from mutations import mutate
from readers import Reader, readers

from glider.errors import GliderError

SECONDS = 2.0  # of the processor: what waits is ended by HANGS
HANGS = 30
SLACK = 48 << 20  # bytes that a reader may take whatever the file: parsers, caches, a page for each tensor
MEMORY = 6 << 30  # bytes of address space, beyond what the process has at its start
READ = 256 << 20  # bytes of a file that any reader takes
BLOCK = 500  # cases between two notes of how far it is


class Hung(BaseException):
    """A case that did not end."""


def run_case(number: int, seed: int, known: dict[str, Reader], scratch: Path) -> tuple[str, str, dict | None]:
    """The reader's name, how it ended, and the fault if it ended badly."""
    chance = random.Random(f"{seed}/{number}")
    name = chance.choice(sorted(known))
    reader = known[name]
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(reader.directory, scratch)
    others = [(reader.directory / file).read_bytes() for file in reader.files]
    for _ in range(chance.choice((1, 1, 1, 1, 2))):
        target = scratch / chance.choice(reader.files)
        if target.is_file() and not target.is_symlink():
            mutate(target, chance, others)
    signal.alarm(HANGS)
    reader.prepare(scratch, chance)
    sizes = [file.stat().st_size for file in scratch.rglob("*") if file.is_file() and not file.is_symlink()]
    before, began = _memory(reset=True), time.process_time()
    signal.alarm(HANGS)
    try:
        reader.read(scratch, chance)
        ended, told = "taken", ""
    except GliderError as fault:
        ended, told = "refused", str(fault)
    except Hung:
        ended, told = "hung", traceback.format_exc()
    except BaseException as fault:
        ended, told = type(fault).__name__, traceback.format_exc()
    finally:
        signal.alarm(0)
    seconds, grown = time.process_time() - began, _memory() - before
    if seconds > SECONDS:
        ended = "slow"
    elif grown > 2 * sum(min(size, READ) for size in sizes) + SLACK:
        ended = "large"
    if ended == "refused" and (len(told) > 7000 or "\n" in told or "\x1b" in told):
        ended = "long"
    if ended in ("taken", "refused"):
        return name, ended, None
    return (
        name,
        ended,
        {"case": number, "reader": name, "ended": ended, "seconds": seconds, "bytes": grown, "told": told},
    )


def _memory(reset: bool = False) -> int:
    """Bytes of the process at most since the last reset; at the reset, now."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        kind = "VmRSS:" if reset else "VmHWM:"
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith(kind))) << 10
    except OSError:  # a system that does not tell
        return 0 if reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if sys.platform == "none" else 0


def _bound_memory() -> None:
    """Let a case that takes the machine's memory be a fault, and not the end of whatever else runs there."""
    try:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # a system that does not tell
        return
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def _alarm(number: int, frame: object) -> None:
    raise Hung


def run_share(out: Path, seed: int, cases: int, place: int, of: int) -> None:
    """The cases of one process, from where its note says."""
    signal.signal(signal.SIGALRM, _alarm)
    warnings.simplefilter("ignore")
    _bound_memory()
    known, note = readers(out / "seeds"), out / f"done-{place}-of-{of}.json"
    told = json.loads(note.read_text()) if note.exists() else {"seed": seed, "next": place, "ended": {}}
    if told["seed"] != seed:
        raise SystemExit(f"{note} is of the seed {told['seed']}: give another --out")
    ended = Counter(told["ended"])
    scratch = out / f"scratch-{place}"
    for number in range(told["next"], cases, of):
        name, how, fault = run_case(number, seed, known, scratch)
        ended[f"{name}: {how}"] += 1
        if fault is not None:
            with (out / "faults.jsonl").open("a") as faults:
                faults.write(json.dumps(fault) + "\n")
        if (number // of) % BLOCK == 0 or number + of >= cases:
            partial = note.with_suffix(".partial")
            partial.write_text(json.dumps({"seed": seed, "next": number + of, "ended": dict(ended)}))
            partial.replace(note)
    shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    """How many faults there are: 0 or 1 as exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--case", type=int, help="Run this case alone, and show its fault.")
    arguments = parser.parse_args()
    out, seed, of = arguments.out, arguments.seed, arguments.processes
    out.mkdir(parents=True, exist_ok=True)
    known = readers(out / "seeds")
    if arguments.case is not None:
        signal.signal(signal.SIGALRM, _alarm)
        name, how, fault = run_case(arguments.case, seed, known, out / "scratch")
        print(f"{name}: {how}\n{fault['told'] if fault else ''}")
        return int(fault is not None)
    shares = [(out, seed, arguments.cases, place, of) for place in range(of)]
    if of == 1:
        run_share(*shares[0])
    else:
        workers = [multiprocessing.get_context("spawn").Process(target=run_share, args=share) for share in shares]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise SystemExit("a process ended before its cases did")
    ended = Counter()
    for note in sorted(out.glob(f"done-*-of-{of}.json")):
        ended += Counter(json.loads(note.read_text())["ended"])
    for how, count in sorted(ended.items()):
        print(f"{count:9d}  {how}")
    faults = (out / "faults.jsonl").read_text().splitlines() if (out / "faults.jsonl").exists() else []
    print(f"{sum(ended.values())} cases, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
