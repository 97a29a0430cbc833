"""How long does it take to factorise a large pool, and to prepare `arrow` and `spectr` once that is done?

    python benchmarks/spectra.py [--experts 1000] [--rank 16] [--threads 2] [--json out.json]

Makes a pool of different random experts in the shape of SmolLM2-135M (210 sites) in a temporary directory; with a rank
of 16 a thousand take 10 GB there. "Factorise" checks the files' hashes, finds every spectrum and keeps it; "prepare" is
all a router does with spectra that are kept.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from glider.cli.terminal import exit_code
from glider.experts.expert import EXPERT_FILES
from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE
from glider.experts.pool import POOL_FILE, ExpertRecord, Pool, PoolIndex
from glider.files.disk import save_tensors, write_json
from glider.routing.methods.arrow import Arrow
from glider.routing.methods.spectr import Spectr
from glider.routing.spectra_files import spectra_file
from glider.routing.spectral import bases, spectra_of
from large_pool import BASE, EMBEDDER, link_expert, record, sites, write_template


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["GLIDER_CACHE"] = str(Path(directory) / "cache")
        pool = make_pool(Path(directory) / "pool", arguments.experts, arguments.rank)
        busy = time.process_time()
        factorised = seconds(lambda: spectra_of(pool))
        results = {
            "factorise_seconds": factorised,
            "factorise_cpu_seconds": time.process_time() - busy,  # of all threads, whatever else the machine does
            "read_spectra_seconds": seconds(lambda: spectra_of(pool)),
            "cache_megabytes": sum(spectra_file(key).stat().st_size for key in keys(pool)) / 1e6,
            "prepare_arrow_seconds": seconds(lambda: Arrow().prepare(pool)),
            "prepare_spectr_seconds": seconds(lambda: consume(pool)),
            "peak_resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }
        if arguments.experts <= 100:  # holds E * R * D floats a site: 10 GB for a thousand of rank 16
            results["prepare_spectr_whole_seconds"] = seconds(lambda: Spectr().prepare(pool))
    table = Table("", "", box=None, title=f"{arguments.experts} experts of rank {arguments.rank}, 210 sites")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    Console().print(table)
    if arguments.json:
        settings = {"experts": arguments.experts, "rank": arguments.rank, "threads": arguments.threads}
        write_json(arguments.json, {"settings": settings, "results": results})


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def consume(pool: Pool) -> None:
    """Every basis of a pool, one after the other, none kept."""
    for _ in bases(pool):
        pass


def keys(pool: Pool) -> list[str]:
    """The hashes of the experts' adapter files."""
    return [known.files[ADAPTER_WEIGHTS_FILE].sha256 for known in pool.index.experts]


def make_pool(path: Path, experts: int, rank: int) -> Pool:
    """A pool of experts that all differ in their tensors."""
    template = write_template(path / "template", rank, None)
    records = []
    for i in track(range(experts), "Making experts", console=Console(stderr=True), transient=True):
        home = link_expert(template, path / f"expert{i:04d}")
        adapter = home / ADAPTER_WEIGHTS_FILE
        adapter.unlink()
        save_tensors(random_adapter(rank, i), adapter, {"format": "pt"})
        records.append(
            ExpertRecord(name=home.name, directory=None, files={file: record(home / file) for file in EXPERT_FILES})
        )
    index = PoolIndex(base=BASE, embedder=EMBEDDER, experts=tuple(records))
    write_json(path / POOL_FILE, index.model_dump(mode="json", exclude_none=True))
    return Pool.open(path)


def random_adapter(rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Normal LoRA pairs in bfloat16 at every site, under PEFT's names."""
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for site, width, out in sites():
        for factor, shape in (("A", (rank, width)), ("B", (out, rank))):
            values = torch.randn(shape, generator=chance).bfloat16()
            tensors[f"base_model.model.{site}.lora_{factor}.weight"] = values
    return tensors


if __name__ == "__main__":
    sys.exit(exit_code(main))
