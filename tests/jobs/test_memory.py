"""What a job frees goes back to the system."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glider.jobs import memory

SCRIPT = """
import torch
from pathlib import Path
from glider.jobs.memory import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

def freed_between_survivors():
    tensors = [torch.ones(1 << 14) for _ in range(4000)]  # 64 KB each: of the heap, not maps of their own
    return tensors[::100]

before = resident()
survivors = freed_between_survivors()
kept = resident() - before
give_back()
print(kept, resident() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc's malloc_trim"
)
def test_pages_between_what_stays_are_given_back(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "MALLOC_"))}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    kept, after = map(int, ran.stdout.split())
    assert kept * os.sysconf("SC_PAGE_SIZE") > 200e6
    assert after < kept / 5


def test_jobs_that_end_at_once_wait_for_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took a tenth of a second: 3,000 adapters that are not on this machine were told after minutes."""
    collected, clock = [], [100.0]
    monkeypatch.setattr(memory.gc, "collect", lambda: collected.append(clock[0]))
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(memory, "_last", 0.0)
    for _ in range(12):
        memory.give_back()
        clock[0] += 0.25
    assert collected == [100.0, 101.0, 102.0]
