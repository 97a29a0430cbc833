"""What a query costs whose description and vector are in the cache: no LLM, no embedder.

    python benchmarks/warm_query.py

Prints the median and the 95th percentile of `QueryReader.features` for one query at a time, and of one look-up.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from glider.cli.terminal import exit_code
from glider.inference.queries import Query, QueryReader
from glider.instructions.cache import Cache, key_of
from glider.instructions.embedders import load_embedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    identity = load_embedder().identity
    queries = [Query(f"What is {i} plus {i}? " + "Think. " * 100) for i in range(arguments.queries)]
    with tempfile.TemporaryDirectory() as folder:
        store = Cache(Path(folder) / "cache.sqlite3", 64)
        reader = QueryReader(identity, store=store)
        reader.features(queries, {"instructions"})
        show("a warm query", [clocked(lambda q=q: reader.features([q], {"instructions"})) for q in queries])
        keys = [key_of("benchmark", {}, str(i)) for i in range(arguments.queries)]
        store.put("embedding", {key: os.urandom(1536) for key in keys})
        show("a look-up", [clocked(lambda key=key: store.get([key])) for key in keys])
        store.close()


def clocked(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def show(name: str, clock: list[float]) -> None:
    print(f"{name}: median {median(clock):.3f} ms, 95th percentile {sorted(clock)[int(0.95 * len(clock))]:.3f} ms")


if __name__ == "__main__":
    sys.exit(exit_code(main))
