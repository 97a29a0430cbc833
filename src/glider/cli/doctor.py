"""`glider doctor`: what runs here, and why."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from glider.cli.arguments import JsonOption
from glider.cli.terminal import plain_table
from glider.terminal import console, say_json

PACKAGES = ("torch", "triton", "transformers", "peft", "safetensors")


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Show versions, threads, the kernels there are, and which one runs."""
    report = diagnosis()
    if as_json:
        say_json(report)
        return
    table = plain_table("", "")
    table.show_header = False
    for package, number in report["versions"].items():
        table.add_row(package, number or "not installed")
    table.add_row("machine", report["machine"])
    table.add_row("threads", str(report["threads"]))
    for kernel, refused in report["kernels"].items():
        table.add_row(f"kernel {kernel}", refused or "available")
    if report["instruction_sets"]:
        table.add_row("instruction set", f"{report['instruction_set']} (of {', '.join(report['instruction_sets'])})")
    table.add_row("runs", f"{report['runs']}: {report['why']}")
    table.add_row("embedded base", report["embedded_base"] or "not converted yet: `glider demo` does it once")
    table.add_row("vllm", report["vllm"]["version"] or "not installed")
    for mode, refused in report["vllm"]["modes"].items():
        table.add_row(f"vllm-args --mode {mode}", refused or "served")
    console().print(table)


def diagnosis() -> dict[str, Any]:
    """What `glider doctor --json` prints: for each kernel why it cannot run, or nothing if it can."""
    import torch

    import glider
    from glider.layers.kernels import gpu, native
    from glider.layers.kernels.choice import KERNELS, VARIABLE, requested_kernel

    absent = native.why_absent()
    reasons = dict[str, str | None].fromkeys(KERNELS) | {"native": absent, "triton": gpu.why_absent()}
    kernel = requested_kernel(None)
    if kernel:
        runs, why = kernel, f"{VARIABLE} says so"
    elif absent:
        runs, why = "torch", f"no native kernel: {absent}"
    else:
        runs, why = "native", "on the CPU in float32 or bfloat16 without gradients; torch elsewhere"
    from glider.engines.vllm.diagnosis import diagnosis as of_vllm

    extension = native.extension()
    return {
        "versions": {"glider": glider.__version__, "python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, CUDA "
        + ("available" if torch.cuda.is_available() else "not available"),
        "threads": torch.get_num_threads(),
        "native_threads": None if extension is None else extension.threads(),
        "kernels": reasons,
        "instruction_sets": [] if extension is None else extension.isas(),
        "instruction_set": None if extension is None else extension.isa(),
        "runs": runs,
        "why": why,
        "embedded_base": _embedded_base(),
        "vllm": of_vllm(),
    }


def _embedded_base() -> str | None:
    """The directory of the embedded base in transformers' format, for other tools; None before it is converted."""
    from glider.demo.base import converted_place

    place = converted_place()
    return str(place) if (place / "config.json").exists() else None


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
