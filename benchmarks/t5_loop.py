"""What does a routed T5 of the paper's layout cost, beside the bare model and beside a loop over all experts?

    python benchmarks/t5_loop.py [--experts 8 36] [--layers 24] [--width 512] [--input 256] [--target 8]
                                 [--rounds 7] [--device cuda --dtype bfloat16 --kernel triton] [--json out.json]

T5-XL's layout with random, narrower weights: 24 + 24 layers, gated feed-forward, so 432 sites (q, k, v, o of every
self- and cross-attention, wi_0, wi_1, wo); heads and feed-forward in XL's proportions. Random experts of rank 16 on all
of them, in bfloat16, router `glider` with a global term as in overhead.py, K = 2. The loop is what the published code
does at a site: the same router decides, in PyTorch, then each expert's output is computed for every token and added
by its weight; its experts are of the base's dtype, which saves it a conversion. "score" is one forward pass, a query
with its target; "step" is one decoding step with cache. The three models share the base's weights and run in turn in
one process.

Printed are medians and quartiles of the rounds' ratios to the bare model, and by how much loop and routed layer differ
at most on the same inputs, a token at a site: the length of the difference over that of what the experts add. (Logits
would not tell: a last bit grows through 48 layers of random weights, and turns a close decision.)
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from glider.cli.terminal import exit_code
from glider.files.disk import write_json
from glider.layers.attach import Attached, Storage
from glider.layers.caches import cache_after, with_cache
from glider.layers.routed_linear import RoutedLinear
from glider.routing.base import Decision
from glider.routing.condition import Condition
from glider.routing.methods.glider import Glider
from overhead import COSINES, clocked, random_experts
from steps import random_ids

ALPHA, VOCABULARY = 3.0, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 36])
    parser.add_argument("--layers", type=int, default=24, help="of the encoder, and of the decoder")
    parser.add_argument("--width", type=int, default=512, help="a multiple of 64; XL has 2048")
    parser.add_argument("--input", type=int, default=256, help="tokens of the query")
    parser.add_argument("--target", type=int, default=8, help="tokens of the target")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the base")
    parser.add_argument("--kernel", choices=("native", "triton", "torch", "reference"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = [measure(experts, arguments) for experts in arguments.experts]
    rows = [row for told in found for row in told["rows"]]
    differences = {str(told["experts"]): told["difference"] for told in found}
    print_table(rows)
    print(f"{found[0]['sites']} sites; a token's output differs by {max(differences.values()):.1e} at most")
    if arguments.json:
        settings = json.loads(json.dumps(vars(arguments), default=str))
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        told = {"settings": settings, "machine": machine, "sites": found[0]["sites"], "difference": differences}
        write_json(arguments.json, {**told, "rows": rows})


def measure(experts: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both cases with so many experts, over new models."""
    models, attached = three_models(experts, arguments)
    device = torch.device(arguments.device)
    scores = torch.normal(*COSINES, (1, experts), generator=torch.Generator().manual_seed(1)).to(device)
    condition = Condition.of(scores, torch.tensor([ALPHA], device=device))
    ids = random_ids(models["bare"], 1, arguments.input, seed=2)
    target = random_ids(models["bare"], 1, arguments.target, seed=3)
    rows = []
    with torch.inference_mode(), attached.routing(condition):
        scorers = {name: scorer(model, ids, target) for name, model in models.items()}
        difference = largest_difference(models, attached, scorers["routed"])
        for case, runs in (("score", scorers), ("step", {n: stepper(m, ids, target) for n, m in models.items()})):
            times = {name: [] for name in runs}
            for _ in range(arguments.rounds):
                for name, run in runs.items():
                    times[name].append(clocked(run, False))
            rows += [row_of(case, experts, name, times) for name in ("routed", "loop")]
    return {"experts": experts, "sites": len(attached.prepared.sites), "difference": difference, "rows": rows}


def three_models(experts: int, arguments: argparse.Namespace) -> tuple[dict[str, nn.Module], Attached]:
    """The bare model, the routed one, and the one that loops, over the same weights."""
    torch.manual_seed(0)
    layers, width = arguments.layers, arguments.width
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=min(64, width // 4),
        num_heads=max(4, width // 64),
        d_ff=width * 5 // 2,
        num_layers=layers,
        num_decoder_layers=layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # pyright: ignore[reportCallIssue]
    )
    with torch.device(arguments.device):
        routed: Any = T5ForConditionalGeneration(config)
    routed = routed.to(getattr(torch, arguments.dtype)).eval()
    bare, loop = (
        copy.deepcopy(routed, {id(tensor): tensor for tensor in (*routed.parameters(), *routed.buffers())})
        for _ in range(2)
    )
    attached = Attached(routed)
    storage = Storage(torch.bfloat16, arguments.kernel)
    attached.replace(Glider(p=0.8), random_experts(routed, experts, share=False), storage)
    for name in attached.prepared.sites:
        module = routed.get_submodule(name)
        assert isinstance(module, RoutedLinear)
        parent, _, child = name.rpartition(".")
        setattr(loop.get_submodule(parent), child, LoopedLinear(module))
    return {"bare": bare, "routed": routed, "loop": loop}, attached


class LoopedLinear(nn.Module):
    """A routed layer's experts, all of them computed one after another for all tokens."""

    def __init__(self, routed: RoutedLinear):
        super().__init__()
        site = routed.current
        self.base, self.site, self.router, self.context = routed.base, site.site, site.router, routed.context
        bank = site.bank.stack
        self.scaling = bank.scaling
        dtype = next(self.base.parameters()).dtype
        self.pairs = [(a.to(dtype), b.to(dtype).contiguous()) for a, b in zip(bank.A, bank.B, strict=True)]

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight: T5 asks its output layer for its dtype."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        tokens = x.reshape(-1, x.shape[-1])  # (T, D)
        [segment] = self.context.segments(len(tokens), x.shape[0], x.device)
        decision = self.router.route(self.site, tokens, segment.term_of(len(tokens)))
        assert isinstance(decision, Decision)
        chosen = decision.weights.to(tokens.dtype)
        weights = tokens.new_zeros(len(tokens), len(self.pairs)).scatter_(1, decision.experts, chosen)
        weights = weights * self.scaling.to(tokens.dtype)  # (T, E)
        flat = y.view(-1, y.shape[-1])
        for expert, (a, b) in enumerate(self.pairs):
            flat += weights[:, expert, None] * nn.functional.linear(nn.functional.linear(tokens, a), b)
        return y


def scorer(model: Any, ids: torch.Tensor, target: torch.Tensor) -> Callable[[], Any]:
    """One pass over a query and its target."""
    return lambda: model(input_ids=ids, decoder_input_ids=target, use_cache=False)


def stepper(model: Any, ids: torch.Tensor, target: torch.Tensor) -> Callable[[], Any]:
    """Takes one decoding step after the target, and takes it back."""
    states = model.get_encoder()(input_ids=ids)
    cache = cache_after(model(encoder_outputs=states, decoder_input_ids=target, use_cache=True))
    given = with_cache(model, cache)

    def run() -> None:
        model(encoder_outputs=states, decoder_input_ids=target[:, :1], **given, use_cache=True)
        cache.self_attention_cache.crop(-1)

    run()
    return run


def largest_difference(models: dict[str, nn.Module], attached: Attached, run: Callable[[], Any]) -> float:
    """Over all tokens and sites of a run of the routed model, what the loop gives for the same inputs beside it."""
    found = []

    def compare(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert isinstance(module, RoutedLinear)
        loop, base = models["loop"].get_submodule(module.name)(*inputs), module.base(*inputs)
        found.append(((loop - output).norm(dim=-1) / (output - base).norm(dim=-1)).max().item())

    hooks = [models["routed"].get_submodule(name).register_forward_hook(compare) for name in attached.prepared.sites]
    run()
    for hook in hooks:
        hook.remove()
    assert len(found) == len(hooks)
    return max(found)


def row_of(case: str, experts: int, model: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """The ratios of one model's rounds to the bare model's."""
    ratios = [own / bare for own, bare in zip(times[model], times["bare"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    told = {"case": case, "experts": experts, "model": model, "ratio": middle, "low": low, "high": high}
    return {**told, "bare_ms": 1e3 * statistics.median(times["bare"]), "seconds": times[model]}


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(*("case", "experts", "model", "ratio", "quartiles", "bare ms"), box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            *(row["case"], str(row["experts"]), row["model"], f"{row['ratio']:.2f}"),
            *(f"{row['low']:.2f} to {row['high']:.2f}", f"{row['bare_ms']:.1f}"),
        )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
