"""A pool inside vLLM: the plug-in, its arguments, and models for use without a server."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glider.engines.vllm.offline import VllmModel as VllmModel
    from glider.engines.vllm.offline import load as load

__all__ = ["VllmModel", "load"]


def __getattr__(name: str) -> Any:
    """Import what is public when it is first used: the plug-in is loaded by every vLLM process there is."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("glider.engines.vllm.offline"), name)
    raise AttributeError(f"module 'glider.engines.vllm' has no attribute {name!r}")
