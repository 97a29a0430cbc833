"""Kill every command at every event of the file system, and see that what it changes is as before or as after.

    python tests/hostile/kills.py --out DIR [--every 1] [COMMAND ...]

A hook of the interpreter counts events below the directory that a command works in: files opened to write, renamed,
linked, removed, directories made and removed. A process is forked for each of them and killed there. Then whatever was
there before opens, old or new; the same command, run again, ends as if nothing had been; nothing is left lying about.
"""

import argparse
import asyncio
import importlib.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_root import TEMPORARY, make_root
from kill_states import (
    answers_state,
    expert_state,
    file_state,
    files_state,
    gains_state,
    imported_state,
    new_state,
    pool_state,
    pulled_state,
    results_state,
    routers_state,
    served_state,
)

from glider.cli.main import main as command_line
from glider.instructions.embedders import load_embedder

EVENTS = {"os.rename": 2, "os.link": 2, "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.symlink": 2, "os.truncate": 1}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TRAINING = ("--rank", "2", "--steps", "2", "--gate-steps", "2", "--batch-size", "4", "--validation", "4")
# what a process that is gone may leave: locks, which say nothing, and the state that the same command goes on from
LEFT = (".lock", ".training", ".making", ".answering")
DONE = (".lock", ".making")  # what it may leave once the same command has come to its end


@dataclass(frozen=True)
class Command:
    """Arguments of the command line, and what is to be the same: `{root}` is the directory it works in."""

    arguments: tuple[str, ...]
    state: Callable[[Path], object]
    again: bool = True  # whether it may be run again once it was done
    finishes: bool = True  # whether it may be run again after a part of it: keys are never overwritten
    run: Callable[[Path], None] | None = None  # what is done in place of a command line
    changes: bool = True  # whether it is to change what is looked at


def serve_and_ask(root: Path) -> None:
    """What a server does with files: adapters that come and go while it answers, and a pool that is read again."""
    from bodies import served

    async def ask() -> None:
        async with served(root) as client:
            asked = [{"role": "user", "content": "say 2 words"}]
            for path, body in (
                ("/v1/load_lora_adapter", {"lora_name": "more", "lora_path": "extra"}),
                ("/v1/load_lora_adapter", {"lora_name": "bare", "lora_path": "bare"}),
                ("/v1/chat/completions", {"model": "bare", "messages": asked, "max_tokens": 2}),
                ("/v1/pool/reload", {"model": "pool"}),
                ("/v1/unload_lora_adapter", {"lora_name": "bare"}),
            ):
                answer = await client.post(path, json=body)
                assert answer.status_code == 200, answer.text

    tempfile.tempdir = str(root / TEMPORARY)
    asyncio.run(ask())


def pull_of_hub(root: Path) -> None:
    """Get a pool of a hub, which this very process stands in for."""
    place = Path(__file__).parents[1] / "sharing" / "conftest.py"
    spec = importlib.util.spec_from_file_location("hub_stand_in", place)
    assert spec is not None and spec.loader is not None
    stand_in = sys.modules["hub_stand_in"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    with pytest.MonkeyPatch.context() as patch, stand_in.standing_in(patch) as hub:
        hub.repositories["me/pool"] = repository = stand_in.Repository("me/pool")
        files = [file for file in (root / "pool").rglob("*") if file.is_file()]
        repository.commit("main", {file.relative_to(root / "pool").as_posix(): file.read_bytes() for file in files})
        sys.argv = ["glider", "pool", "pull", "me/pool", "--out", str(root / "pulled")]
        command_line()


BASE = ("--base", "{root}/base")
ANSWERING = ("--out", "{root}/answers.jsonl", "--max-new-tokens", "2", "--batch-size", "12")
PICTURED = ("--rows", "1", "--split", "val", "--out", "{root}/pictures/routing.json")
TASKS = "{root}/tasks/{name}.jsonl"
COMMANDS = {
    "pool add": Command(("pool", "add", "{root}/pool", "extra"), pool_state),
    "pool remove": Command(("pool", "remove", "{root}/pool", "places"), pool_state, again=False),
    "pool rename": Command(("pool", "rename", "{root}/pool", "places", "sites"), pool_state, again=False),
    "pool calibrate": Command(("pool", "calibrate", "{root}/pool"), pool_state),
    "pool sign": Command(("pool", "sign", "{root}/pool", "--key", "{root}/key"), file_state("pool/pool.json.sig")),
    "pool keygen": Command(("pool", "keygen", "{root}/k"), file_state("k", "k.pub"), False, False),
    "expert describe": Command(("expert", "describe", "{root}/pool/reviews", "Judge films."), expert_state),
    "expert gates": Command(
        ("expert", "gates", "{root}/pool/reviews", "{root}/rows.jsonl", "--how", "mean", *BASE, "--validation", "4"),
        expert_state,
    ),
    "expert profile": Command(
        ("expert", "profile", "{root}/pool/reviews", "{root}/rows.jsonl", *BASE, "--validation", "4"), expert_state
    ),
    "expert import": Command(
        ("expert", "import", "{root}/pool/reviews", "--out", "{root}/pool/new", *BASE), new_state, again=False
    ),
    "expert train": Command(
        ("expert", "train", "{root}/rows.jsonl", "--out", "{root}/pool/new", *BASE, *TRAINING, "--sites", "all-linear"),
        new_state,
        again=False,
    ),
    "pool build": Command(("pool", "build", "{root}/plan.yaml", "--out", "{root}/pool"), pool_state),
    "pool push": Command(("pool", "push", "{root}/pool", "{root}/pulled"), pulled_state, again=False),
    "pool pull": Command(("pool", "pull", "{root}/pool", "--out", "{root}/pulled"), pulled_state, again=False),
    "pool pull of a hub": Command(
        ("pool", "pull", "me/pool", "--out", "{root}/pulled"), pulled_state, again=False, run=pull_of_hub
    ),
    "expert pull": Command(
        ("expert", "pull", "{root}/pool/reviews", "--out", "{root}/pool/new"), new_state, again=False
    ),
    "expert import-official": Command(
        ("expert", "import-official", "{root}/published", "--base", "{root}/t5", "--pool", "{root}/imported"),
        imported_state,
        again=False,
    ),
    "serve": Command((), served_state, run=serve_and_ask, changes=False),
    **{
        f"pool train-router {kind}": Command(
            ("pool", "train-router", "{root}/pool", "--router", kind, "--data", TASKS, *BASE, "--steps", "2"),
            routers_state,
        )
        for kind in (*("vq", "joint", "mindskip", "mindskip-attention", "task-moe", "seqr", "ariadne", "lorauter"),)
    },
    "report paper": Command(("report", "paper", "{root}/results"), files_state("results/report")),
    "report scores": Command(
        ("report", "scores", "--pool", "{root}/pool", "--global", "examples", "--out", "{root}/pictures/scores.png"),
        files_state("pictures"),
    ),
    "report routing": Command(
        ("report", "routing", "--pool", "{root}/pool", *BASE, "--data", "{root}/rows.jsonl", *PICTURED),
        files_state("pictures"),
    ),
    "pool check": Command(
        ("pool", "check", "{root}/pool", "--data", TASKS, "--store", "--rows", "2", *BASE),
        gains_state,
    ),
    "generate": Command(
        ("generate", "--pool", "{root}/pool", *BASE, "--data", "{root}/rows.jsonl", *ANSWERING),
        answers_state,
    ),
    "init": Command(
        ("init", "--data", "{root}/tasks", "--base", "{root}/base", "--out", "{root}/made.yaml", "--force"),
        file_state("made.yaml"),
    ),
    "evaluate": Command(("evaluate", "{root}/run.yaml", "--out", "{root}/out"), results_state),
}


@dataclass(frozen=True)
class Ran:
    """How a command ended: its exit status, how many events there were, what it printed."""

    code: int
    events: int
    log: str


def run(command: Command, root: Path, kill_at: int | None = None, full: bool = False) -> Ran:
    """Run a command in a forked process, killed at an event, or on a disk that is `full`: no file takes a byte."""
    events, log = os.pipe(), os.pipe()
    if (process := os.fork()) == 0:
        code = 3
        try:
            for descriptor in (1, 2):
                os.dup2(log[1], descriptor)
            sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
            code = _child(command, root, kill_at, full, events[1])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(events[1])
    os.close(log[1])
    with os.fdopen(log[0], errors="replace") as pipe:
        text = pipe.read()
    with os.fdopen(events[0]) as pipe:
        count = int(pipe.read() or -1)
    return Ran(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), count, text)


def _child(command: Command, root: Path, kill_at: int | None, full: bool, write: int) -> int:
    if full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    torch.set_num_threads(1)  # its pool is made anew now, and not by several threads at once
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if not writing and event not in EVENTS:
            return
        places = arguments[: EVENTS.get(event, 1)]
        texts = [_real(os.fsdecode(place)) for place in places if isinstance(place, str | bytes | os.PathLike)]
        if not any(text.startswith(str(root)) for text in texts):
            return
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(hook)
    sys.argv = ["glider", *(part.replace("{root}", str(root)) for part in command.arguments)]
    code = 0
    try:
        command_line() if command.run is None else command.run(root)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    os.write(write, str(count).encode())
    return code


def _real(text: str) -> str:
    """The path of a file in a directory that is held by its descriptor."""
    folder, name = os.path.split(text)
    return os.path.join(os.path.realpath(folder), name) if text.startswith("/proc/") else text  # noqa: PTH118


def sweep(name: str, out: Path, every: int = 1) -> tuple[int, list[str]]:
    """Kill a command at its events; how many kills there were, and what was wrong after them."""
    command, fresh, root = COMMANDS[name], out / "fresh", out / "root"
    if not fresh.exists():
        make_root(fresh)
    _renew(fresh, root)
    old = command.state(root)
    whole = run(command, root)
    if whole.code:
        raise SystemExit(f"{name} fails by itself: {whole.log}")
    new = command.state(root)
    assert new != old or not command.changes, f"{name} changes nothing that is looked at"
    faults, kills = [], 0
    for event in range(0, whole.events, every):
        _renew(fresh, root)
        if run(command, root, event).code != -signal.SIGKILL:
            break  # there are fewer events this time
        kills += 1
        where = f"{name}, killed at event {event} of {whole.events}"
        try:
            state = command.state(root)
            if state != old and state != new and not _between(state, old, new):
                faults.append(f"{where}: neither old nor new")
            if command.finishes and (command.again or state != new):
                again = run(command, root)
                if again.code or command.state(root) != new:
                    faults.append(f"{where}, run again: exit code {again.code}: {again.log[-500:]}")
                if left := _left(root, DONE):
                    faults.append(f"{where}: {left} left")
        except (Exception, SystemExit) as fault:
            faults.append(f"{where}: {type(fault).__name__}: {fault}")
    return kills, [*faults, *_full_disk(name, command, fresh, root, old)]


def _full_disk(name: str, command: Command, fresh: Path, root: Path, old: object) -> list[str]:
    """What is wrong after a command on a full disk: it tells one line with a file of the directory, and leaves all."""
    _renew(fresh, root)
    ran = run(command, root, full=True)
    lines = [line for line in ran.log.splitlines() if line.startswith("glider: ")]
    told = len(lines) == 1 and str(root) in ran.log and ".partial" not in ran.log and "Traceback" not in ran.log
    if not command.changes:  # what it needs a disk for it does without, or not
        return [] if command.state(root) == old else [f"{name} on a full disk: something changed"]
    faults = [] if ran.code in (1, 2) and told else [f"{name} on a full disk: exit code {ran.code}: {ran.log[-2000:]}"]
    if command.state(root) != old or _left(root):
        faults.append(f"{name} on a full disk: something changed, or {_left(root)} left")
    return faults


def _between(state: object, old: object, new: object) -> bool:
    """Whether a state is of whole parts, each old or new: files one after another."""
    if isinstance(state, list) and isinstance(new, list):
        return set(state) <= set(new)
    if isinstance(state, dict) and isinstance(new, dict) and isinstance(old, dict) and "calibrations" in state:
        return state["experts"] in (old["experts"], new["experts"])  # calibrated after the experts came
    return isinstance(state, dict) and isinstance(new, dict) and state.items() <= new.items()


def _left(root: Path, may: tuple[str, ...] = LEFT) -> list[str]:
    files = (file.relative_to(root) for file in root.rglob(".*") if not file.name.endswith(may))
    return [str(file) for file in files if file.parts[0] != TEMPORARY]


def _renew(fresh: Path, root: Path) -> None:
    """The first state, by paths that the run files name."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(fresh, root)
    for file in ("plan.yaml", "run.yaml"):
        (root / file).write_text((root / file).read_text("utf8").replace(str(fresh), str(root)), "utf8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="Kill at every so manieth event.")
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), metavar="COMMAND")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    load_embedder().embed(["read before the fork"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    all_kills, all_faults = 0, []
    for name in arguments.commands:
        kills, faults = sweep(name, arguments.out.resolve(), arguments.every)
        print(f"{kills:5d} kills of {name}: {len(faults)} faults", flush=True)
        for fault in faults:
            print(f"      {fault}", flush=True)
        all_kills, all_faults = all_kills + kills, [*all_faults, *faults]
    print(f"{all_kills} kills, {len(all_faults)} faults")
    return int(bool(all_faults))


if __name__ == "__main__":
    raise SystemExit(main())
