"""Selects the kernel: the requested one, or for each call the best that can run it."""

import logging
import os
from functools import cache

from glider.errors import KernelError
from glider.layers.bank import Bank
from glider.layers.kernels import gpu, native

KERNELS = ("native", "triton", "torch", "reference")
VARIABLE = "GLIDER_KERNEL"


def requested_kernel(kernel: str | None) -> str | None:
    """The kernel requested by argument or by `GLIDER_KERNEL`; None leaves the choice to each call.

    Raises `KernelError` for an unknown name, and for a kernel that can run nowhere here: the native one where it was
    not built, Triton's without Triton or a GPU.
    """
    requested = kernel or os.environ.get(VARIABLE) or None
    if requested not in (None, *KERNELS):
        place = "kernel" if kernel else f"the variable {VARIABLE}"
        raise KernelError(f"a kernel of {', '.join(KERNELS)}", f"{place} {requested!r}", "Check the spelling.")
    absent = native.why_absent()
    if absent and requested == "native":
        raise KernelError("the native kernel", absent, "Install again with a C++ compiler, or choose torch.")
    if requested == "triton" and (reason := gpu.why_absent()):
        raise KernelError("the triton kernel", reason, "Choose kernel torch.")
    if absent and requested is None:
        _say_once(absent)
    return requested


def require_native(bank: Bank, site: str) -> None:
    """Raise `KernelError` where a requested kernel cannot serve a site."""
    if reason := native.refusal(bank):
        raise KernelError(f"experts that the native kernel can run at {site}", reason, "Choose kernel torch.")


@cache
def _say_once(reason: str) -> None:
    logging.getLogger("glider").warning("no native kernel: %s; routing runs in plain PyTorch", reason)
