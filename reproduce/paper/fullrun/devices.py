"""One plan over several devices: plain processes of the same command, one a device, each a method on a pool."""

import json
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fullrun.plan import Plan
from glider.errors import ConfigError, GliderError


class DeviceError(GliderError):
    """A process on one of the devices ended without results."""


def devices_of(text: str) -> list[str]:
    """`0-7` and `0,2,5` are numbers of CUDA devices; other names stand for themselves, as in `cpu,cpu`."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if numbers is None:
            found.append(part)
            continue
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        found += [f"cuda:{number}" for number in range(first, last + 1)]
    if not found:
        raise ConfigError("devices such as 0-7 or 0,2", repr(text), "Mend --devices.")
    return found


def require_device(name: str, here: bool = True) -> None:
    """Raise `ConfigError` for what is no device, or (`here`) for one that this machine lacks: now, and not when all is
    downloaded."""
    import torch

    from glider.inference.spec import device_of

    device = device_of(name)
    try:
        torch.empty(1, device=device if here else "cpu")
    except (RuntimeError, AssertionError, NotImplementedError) as fault:  # by the build of PyTorch
        got = f"{name} ({' '.join(str(fault).split())[:120]})"
        raise ConfigError("a device of this machine", got, "Check --device, or --devices.") from fault


def shares_of(plan: Plan, devices: int) -> list[tuple[str, ...]]:
    """What one process takes at a time, as arguments of the command: a config, and of a table one method and pool of
    it, so that a model is loaded once for all its sets. The experts of a training are shared by a process on each
    device."""
    cells = dict.fromkeys((cell.config, "--method", cell.label, "--pool", cell.pool) for cell in plan.cells)
    return [*cells, *((training.config,) for training in plan.trainings for _ in range(devices))]


def run_on(
    devices: Sequence[str], plan: Plan, command: Sequence[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run the plan's shares by `command`, which gets a share and a device; the next free device takes one.

    Returns the summaries in the plan's order. Raises `DeviceError` in the end where a process had none.
    """
    shares: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
    for share in shares_of(plan, len(devices)):
        shares.put(share)
    told: list[dict[str, Any]] = []
    faults: list[str] = []
    children: set[subprocess.Popen[str]] = set()

    def work(device: str) -> None:
        while True:
            try:
                share = shares.get_nowait()
            except queue.Empty:
                return
            name = " ".join(part for part in share if not part.startswith("--"))
            chosen = [*command, *share, "--device", device, "--json"]
            say(f"[{device}] {name}")
            child = subprocess.Popen(chosen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            children.add(child)
            out, err = child.communicate()
            children.discard(child)
            cells = _cells(out) if child.returncode in (0, 1) else []  # 1 with results: tasks are missing
            if not cells:
                last = err.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
                faults.append(f"{name} on {device}: {last[0]}")
                say(f"[{device}] {faults[-1]}")
            for cell in cells:
                told.append(cell)
                if cell["missing"]:
                    say(f"[{device}] {name}/{cell['set']}: no {', '.join(cell['missing'])}")

    threads = [threading.Thread(target=work, args=(device,)) for device in devices]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        while not shares.empty():
            shares.get()
        for child in list(children):
            child.terminate()
        raise
    keys = [(cell.config, cell.label, cell.pool, cell.set) for cell in plan.cells]
    keys += [(training.config, "train", training.name, training.name) for training in plan.trainings]
    by_key = {(one["config"], one["method"], one["pool"], one["set"]): one for one in told}  # the last of a training's
    lost = [" ".join(dict.fromkeys(key)) for key in keys if key not in by_key]
    if faults or lost:
        got = "; ".join(faults) or f"none of {', '.join(lost)}"
        raise DeviceError("results of every process", got, "The same command goes on with what is missing.")
    return [by_key[key] for key in keys]


def _cells(text: str) -> list[dict[str, Any]]:
    """The summaries that a process prints; none where it printed something else."""
    try:
        return json.loads(text)
    except ValueError:
        return []
