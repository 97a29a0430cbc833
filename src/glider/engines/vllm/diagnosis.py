"""What `glider doctor` says of vLLM: whether it is there, which model runner it takes, and what would be refused."""

import os
from importlib import util
from typing import Any

from glider.engines.vllm import contract


def diagnosis() -> dict[str, Any]:
    """Version, runner, and for each mode why it would be refused here, or nothing. vLLM itself is not imported."""
    version = contract.installed()
    report: dict[str, Any] = {"version": version, "wanted": contract.VERSIONS, "runner": None, "modes": {}}
    if version is None:
        return report
    if not contract.known(version):
        return {**report, "modes": dict.fromkeys(("select", "route"), f"vLLM {contract.VERSIONS} is needed")}
    rust = "VLLM_USE_RUST_FRONTEND is set" if _set("VLLM_USE_RUST_FRONTEND") else None
    runner = _runner(version)
    second = "cpu" in version and runner == "V2"
    route = rust or ("the V2 model runner on a CPU: set VLLM_USE_V2_MODEL_RUNNER=0" if second else None)
    return {**report, "runner": runner, "modes": {"select": rust, "route": route}}


def _runner(version: str) -> str:
    """The model runner that vLLM takes by itself: V2 where Triton can run, unless it is told otherwise."""
    if "VLLM_USE_V2_MODEL_RUNNER" in os.environ:
        return "V2" if _set("VLLM_USE_V2_MODEL_RUNNER") else "V1"
    return "V1" if "cpu" in version or util.find_spec("triton") is None else "V2"


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false")
