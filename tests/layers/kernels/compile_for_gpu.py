"""Compiles the programs of the Triton kernel for a GPU, cuda:80 or hip:gfx942, to machine code. No GPU is needed."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from glider.layers.kernels import gpu_programs

PROGRAMS = ("project_pair", "add_token", "project_block", "expand_block", "add_pairs", "weigh", "choose")
TILES = {"PAIRS": 32, "WIDTHS": 64, "OUTS": 64, "WIDEN": False}
TILES |= {"PARTS": 3, "EXPERTS": 64, "KEPT": 2}  # and 1 for the switches
NUMBERS = {"divisor": "fp32"}
ONES = {"x_column", "a_column", "b_row", "y_column"}  # strides that are 1: Triton makes constants of them


def compiled(program: str, target: GPUTarget, tokens: str, experts: str, ranks: int) -> bool:
    function = getattr(gpu_programs, program)
    types = dict.fromkeys(("a_at", "b_at"), experts) | dict.fromkeys(("x_at", "y_at"), tokens)
    types |= {"z_at": tokens if "block" in program else "fp32"}
    types |= dict.fromkeys(("outputs_at", "weights_at", "scaling_at", "products_at", "sums_at", "term_at"), "fp32")
    types |= {"absent_at": "u8"}
    signature, constants = {}, {}
    for place, name in enumerate(function.arg_names):
        if name.isupper() or name in ONES:
            signature[name], constants[(place,)] = "constexpr", ({"RANKS": ranks} | TILES).get(name, 1)
        else:
            signature[name] = f"*{types.get(name, 'i64')}" if name.endswith("_at") else NUMBERS.get(name, "i32")
    made = triton.compile(ASTSource(function, signature, constants), target=target)
    return bool(made.asm.get("cubin") or made.asm.get("hsaco"))


backend, arch = sys.argv[1].split(":")
target = GPUTarget(backend, int(arch), 32) if backend == "cuda" else GPUTarget(backend, arch, 64)
kinds = [("bf16", "bf16"), ("fp32", "bf16"), ("fp16", "fp32")]
done = [compiled(program, target, *kind, ranks) for kind in kinds for ranks in (16, 64) for program in PROGRAMS]
print(sum(done), "compiled")
