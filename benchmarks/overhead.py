"""What does routing every token among experts cost, beside the bare base model?

    python benchmarks/overhead.py [--experts 8 36 166] [--kernel native] [--cases prefill-1x512 decode-1 ...]
                                  [--peft lora|arrow] [--share] [--alpha 103] [--cpu] [--pairs 5] [--steps 30]
                                  [--device cuda] [--dtype bfloat16] [--shape llama-8b] [--graph] [--compile]
                                  [--quantise int8] [--json out.json]

Random experts of rank 16 on all linear layers of SmolLM2-135M, stored in bfloat16, K = 2, the base in float32. Routed
and bare model run in turn in one process, over the same base weights; printed are the median of the ratios of the
pairs, their quartiles, and the bare model's time. Prefill makes the cache and the last token's logits; decode is one
step after 64 tokens. --peft measures PEFT in place of routing: one LoRA, unmerged, or its Arrow with as many experts.
With --share all layers use one layer's experts (the decisions differ still): the bytes read for a token are the same,
those resident are not. Queries have global scores as descriptions of tasks have them (COSINES), times --alpha: 3, as
where no expert suits the query (the default), or 103. --verdict takes queries that a verdict has settled instead: their
nearest expert, three mixed alike, or nobody. --cpu takes the processor time of all threads in place of the
clock's, for a machine that others use. --shape takes a model of that shape with random weights, made on the device.
With --graph decoding steps are replays of CUDA graphs, of both models, over a static cache of 65 tokens; with
--compile both models are one graph of torch.compile, and step over such a cache. --quantise int8 keeps the weights of
the base's linear layers in 8 bits.
"""

import argparse
import copy
import json
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from glider.cli.terminal import exit_code
from glider.experts.sites import ExpertSite
from glider.files.disk import write_json
from glider.inference.base_model import load_base
from glider.layers.attach import Attached, Storage
from glider.layers.bank import Bank
from glider.layers.hot_bank import HotBank
from glider.layers.kernels import gpu, native
from glider.layers.routed_linear import RoutedLinear
from glider.routing.base import Prepared, Site
from glider.routing.condition import Condition, Settled
from glider.routing.methods.glider import Glider
from glider.routing.scores import standardise
from steps import compiled_stepper, filler, graphed_stepper, random_ids, stepper

CASES = {
    "prefill-1x512": (1, 512),
    "prefill-8x128": (8, 128),
    "prefill-8x512": (8, 512),
    "decode-1": (1, 1),
    "decode-8": (8, 1),
    "decode-32": (32, 1),
}
RANK, MOST_ROWS = 16, 32
SHAPES = {  # hidden size, feed-forward, layers, heads, heads of keys, vocabulary
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152),
    "llama-1b": (2048, 8192, 16, 32, 8, 128256),
    "llama-8b": (4096, 14336, 32, 32, 8, 128256),
}
COSINES = 0.27, 0.13  # mean and deviation, 166 GPT-4 descriptions against 525 others (all-MiniLM-L6-v2), about normal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 36, 166])
    parser.add_argument("--cases", nargs="+", type=case_of, default=list(CASES), help="also prefill-1x40 and the like")
    parser.add_argument("--kernel", choices=("native", "triton", "torch", "reference"))
    parser.add_argument("--peft", choices=("lora", "arrow"))
    parser.add_argument("--share", action="store_true", help="all layers use one layer's experts")
    parser.add_argument(
        "--verdict", choices=("unsure", "fits", "stranger"), help="settled queries, as verdicts make them"
    )
    parser.add_argument("--alpha", type=float, default=3.0, help="weight of the global scores (103: a known task)")
    parser.add_argument("--cpu", action="store_true", help="processor time in place of the clock's")
    parser.add_argument("--pairs", type=int, default=5, help="of prefill")
    parser.add_argument("--steps", type=int, default=30, help="pairs of decoding steps")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, in place of --base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the base")
    parser.add_argument("--graph", action="store_true", help="decode by CUDA graphs")
    parser.add_argument("--compile", action="store_true", help="both models by torch.compile")
    parser.add_argument("--quantise", choices=("int8",), help="weights of the base's linear layers, by torchao")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    if arguments.shape:
        model = random_base(arguments.shape, torch.device(arguments.device), dtype)
    else:
        model = load_base(arguments.base, dtype=dtype, device=arguments.device).model
    if arguments.quantise:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

        quantize_(model, Int8WeightOnlyConfig())
    rows = []
    for experts in [1] if arguments.peft == "lora" else arguments.experts:
        bare = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
        with changed(model, arguments, experts) as (changed_model, routing, kernel), ExitStack() as closing:
            for one in (bare, changed_model) if arguments.compile else ():
                one.forward = torch.compile(one.forward, fullgraph=True, dynamic=False)
                closing.callback(one.__dict__.pop, "forward")
            for case in arguments.cases:
                if arguments.compile:
                    torch.compiler.reset()  # each case has shapes of its own, and a limit counts those of all
                rows.append(measure(case, bare, changed_model, routing, arguments, experts, kernel))
                print_row(rows[-1])
    print_table(rows)
    if arguments.json:
        settings = json.loads(json.dumps(vars(arguments), default=str))
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        if model.device.type == "cuda":
            machine["device"] = torch.cuda.get_device_name()
        write_json(arguments.json, {"settings": settings, "machine": machine, "rows": rows})


def case_of(name: str) -> str:
    """The name of a case; those of other sizes than CASES join it."""
    found = re.fullmatch(r"(prefill|decode)-(\d+)(?:x(\d+))?", name)
    if found is None or (found[1] == "prefill") is not bool(found[3]):
        raise argparse.ArgumentTypeError(f"{name!r} is no prefill-ROWSxTOKENS and no decode-ROWS")
    rows, tokens = int(found[2]), int(found[3] or 1)
    if not 1 <= rows <= MOST_ROWS or tokens < 1 + bool(found[3]):
        raise argparse.ArgumentTypeError(f"{name!r}: 1 to {MOST_ROWS} rows, and of a prompt at least two tokens")
    CASES.setdefault(name, (rows, tokens))
    return name


def random_base(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A Llama of a known shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, key_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


@contextmanager
def changed(model: Any, arguments: argparse.Namespace, experts: int) -> Iterator[tuple[Any, Callable[[int], Any], str]]:
    """The model with experts on it, what sets the queries of a batch, and what computes the experts."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peft:
            with peft_model(model, arguments.peft, experts, Path(folder)) as own:
                yield own, lambda rows: torch.no_grad(), f"PEFT {arguments.peft}"
            return
    attached = Attached(model)
    prepared, storage = random_experts(model, experts, arguments.share), Storage(torch.bfloat16, arguments.kernel)
    attached.replace(Glider(p=0.8), prepared, storage)
    if arguments.share:
        share_banks(model)
    extension = native.extension()
    native_runs = extension is not None and model.device.type == "cpu"
    on_gpu = arguments.device.startswith("cuda") and gpu.why_absent() is None
    names = arguments.kernel or ("triton" if on_gpu else "native" if native_runs else "torch")
    chance = torch.Generator().manual_seed(1)
    scores = torch.normal(*COSINES, (MOST_ROWS, experts), generator=chance).to(model.device)
    try:
        yield (
            model,
            lambda rows: attached.routing(condition_of(arguments, scores[:rows])),
            f"{names} {extension.isa()}" if names == "native" and extension is not None else names,
        )
    finally:
        attached.detach()


def condition_of(arguments: argparse.Namespace, scores: torch.Tensor) -> Condition:
    """Queries that are routed by token with these scores, or what a verdict makes of them."""
    rows = len(scores)
    if arguments.verdict == "stranger":
        return Condition.nobody(rows)
    if arguments.verdict is None:
        return Condition.of(scores, torch.full((rows,), arguments.alpha, device=scores.device))
    experts = scores.cpu().topk(1 if arguments.verdict == "fits" else 3, dim=-1).indices
    return Condition(rows, settled=Settled(experts, torch.full(experts.shape, 1 / experts.shape[1])))


@dataclass(frozen=True)
class RandomExpert:
    """An expert whose pairs are made when asked for; without a name for its layer, the same in every layer."""

    name: str
    sites: dict[str, ExpertSite]
    share: bool
    device: torch.device

    def factors(self, site: str) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self.sites[site]
        if self.share and not site.startswith("model.layers.0."):
            return torch.zeros(1, shape.in_features), torch.zeros(shape.out_features, 1)  # its bank is replaced
        where: dict[str, Any] = {"dtype": torch.bfloat16, "device": self.device}
        a = torch.randn(RANK, shape.in_features, **where) / shape.in_features**0.5
        return a, 0.1 * torch.randn(shape.out_features, RANK, **where)

    def scaling(self, site: str) -> float:
        return 1.0


def random_experts(model: Any, count: int, share: bool) -> Prepared:
    """Experts with gates on every linear layer but the output head."""
    torch.manual_seed(0)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    shapes = {
        name: ExpertSite(
            rank=1 if share and not name.startswith("model.layers.0.") else RANK,
            in_features=module.in_features,
            out_features=module.out_features,
            has_gate=True,
            stored="BF16",
        )
        for name, module in linears.items()
    }
    absent = torch.zeros(count, dtype=torch.bool)
    sites = {
        name: Site(name, absent, {"gates": standardise(torch.randn(count, module.in_features))})
        for name, module in linears.items()
    }
    device = next(model.parameters()).device
    return Prepared(tuple(RandomExpert(f"e{i}", shapes, share, device) for i in range(count)), sites)


def share_banks(model: Any) -> None:
    """Give every layer the experts of the first."""
    banks: dict[str, Bank | HotBank] = {}
    for name, module in model.named_modules():
        if isinstance(module, RoutedLinear):
            site = module.current
            site.bank = banks.setdefault(name.split(".", 3)[3], site.bank)


@contextmanager
def peft_model(model: Any, kind: str, experts: int, folder: Path) -> Iterator[Any]:
    """One LoRA of PEFT on the model, or its Arrow over as many experts, read from disk as a user does."""
    from peft import ArrowConfig, LoraConfig, create_arrow_model, get_peft_model

    settings = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    own = get_peft_model(model, settings)
    if kind == "arrow":
        paths = [folder / f"e{i}" for i in range(experts)]
        for path in paths:
            with torch.no_grad():
                for name, parameter in own.named_parameters():
                    if "lora_" in name:
                        parameter.normal_(std=0.02)
            own.save_pretrained(str(path))
        model = own.unload()
        own = create_arrow_model(model, [str(path) for path in paths], ArrowConfig(top_k=2))
    try:
        yield own.eval()
    finally:
        own.unload()


def measure(
    case: str,
    bare: Any,
    routed: Any,
    routing: Callable[[int], Any],
    arguments: argparse.Namespace,
    experts: int,
    kernel: str,
) -> dict[str, Any]:
    """Times of interleaved pairs of one case."""
    rows, length = CASES[case]
    ids = random_ids(bare, rows, length, seed=2)
    make = filler if length > 1 else stepper
    if length == 1 and (arguments.graph or arguments.compile):
        make = graphed_stepper if arguments.graph else compiled_stepper
    runs = [make(bare, ids, routing), make(routed, ids, routing)]
    pairs = []
    for _ in range(arguments.steps if length == 1 else arguments.pairs):
        pairs.append([clocked(run, arguments.cpu) for run in runs])
    ratios = sorted(own / base for base, own in pairs)
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "case": case,
        "experts": experts,
        "kernel": kernel,
        "ratio": statistics.median(ratios),
        "low": quarters[0],
        "high": quarters[2],
        "best": min(own for _, own in pairs) / min(base for base, _ in pairs),
        "bare_ms": 1e3 * statistics.median(base for base, _ in pairs),
        "peak_resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "pairs": pairs,
    }


def clocked(run: Callable[[], Any], cpu: bool) -> float:
    """Seconds of one run: the clock's, or of the processor in all threads."""
    clock = time.process_time if cpu else time.perf_counter
    on_gpu = torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.synchronize()
    began = clock()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - began


def print_row(row: dict[str, Any]) -> None:
    Console(stderr=True, highlight=False).print(
        f"{row['kernel']}, {row['experts']} experts, {row['case']}: {row['ratio']:.2f}"
        f" ({row['low']:.2f} to {row['high']:.2f})"
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(*("kernel", "experts", "case", "ratio", "quartiles", "bare ms", "peak MB"), box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            *(row["kernel"], str(row["experts"]), row["case"], f"{row['ratio']:.2f}"),
            *(f"{row['low']:.2f} to {row['high']:.2f}", f"{row['bare_ms']:.1f}"),
            f"{row['peak_resident_megabytes']:.0f}",
        )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
