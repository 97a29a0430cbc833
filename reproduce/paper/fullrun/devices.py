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


def shares_of(plan: Plan) -> list[tuple[str, str, str]]:
    """What one process takes at a time: config, method and pool, so that a model is loaded once for all its sets."""
    return list(dict.fromkeys((cell.config, cell.label, cell.pool) for cell in plan.cells))


def run_on(
    devices: Sequence[str], plan: Plan, command: Sequence[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run the plan's shares by `command`, which gets config, method, pool and device; the next free device takes one.

    Returns the summaries in the plan's order. Raises `DeviceError` in the end where a process had none.
    """
    shares: queue.SimpleQueue[tuple[str, str, str]] = queue.SimpleQueue()
    for share in shares_of(plan):
        shares.put(share)
    told: list[dict[str, Any]] = []
    faults: list[str] = []
    children: set[subprocess.Popen[str]] = set()

    def work(device: str) -> None:
        while True:
            try:
                config, method, pool = shares.get_nowait()
            except queue.Empty:
                return
            chosen = [*command, config, "--method", method, "--pool", pool, "--device", device, "--json"]
            say(f"[{device}] {config} {method} {pool}")
            child = subprocess.Popen(chosen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            children.add(child)
            out, err = child.communicate()
            children.discard(child)
            if child.returncode not in (0, 1) or not out.strip():  # 1 with results: tasks are missing
                last = err.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
                faults.append(f"{config} {method} {pool} on {device}: {last[0]}")
                say(f"[{device}] {faults[-1]}")
                continue
            for cell in json.loads(out):
                told.append(cell)
                if cell["missing"]:
                    say(f"[{device}] {config} {method} {pool}/{cell['set']}: no {', '.join(cell['missing'])}")

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
    if faults:
        raise DeviceError(
            "results of every process", "; ".join(faults), "The same command goes on with what is missing."
        )
    order = {(cell.config, cell.label, cell.pool, cell.set): i for i, cell in enumerate(plan.cells)}
    return sorted(told, key=lambda one: order[one["config"], one["method"], one["pool"], one["set"]])
