"""Every text family that the installed transformers can build tiny, tried from import to streaming.

`python -m tests.families.sweep FILE [SECONDS] [FAMILY ...]` tries what FILE has no result of yet, adds a line of JSON
for each, and prints the table of docs/models.md.
"""

import copy
import json
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.auto import modeling_auto

from glider.contribute.adopt import import_adapter
from glider.errors import GliderError
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.spec import load

from ..conftest import byte_tokenizer
from .sizes import sized

KINDS = {
    "causal": ("AutoModelForCausalLM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq": ("AutoModelForSeq2SeqLM", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "image-text": ("AutoModelForImageTextToText", modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
}
# families of the registry that cannot take text alone, or write none
_PICTURE = "takes a picture in every pass"
NO_TEXT = {
    **dict.fromkeys(("blip", "blip-2", "idefics", "instructblip", "instructblipvideo", "kosmos-2"), _PICTURE),
    **dict.fromkeys(("pix2struct", "pp_formulanet", "vision-encoder-decoder"), _PICTURE),
    "udop": "takes places on a page in every pass",
    "evolla": "is listed, but not taken by the auto class",
    "voxtral_realtime": "takes sound in every pass",
    **dict.fromkeys(("musicgen", "musicgen_melody"), "writes codes of sound"),
    "pi0": "writes the movements of a robot",
    "shieldgemma2": "says yes or no of a picture",
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts on another model's keys and values"),
}
CHECKS = ("import", "all-linear", "PEFT", "batch", "scores", "packed", "stream")
PROMPTS = ["a short one", "and another that is quite a bit longer"]
ALIKE = ["x" * 90 + end for end in ("a short one", "another", "one that is quite a bit longer")]  # share a beginning
UNLIKE = [PROMPTS[0], ALIKE[2]]  # within every window of `sizes`, and past it


@dataclass
class Result:
    """What became of a family: its checks by name ("yes", or the error's name), or why it was not tried."""

    family: str
    kind: str
    checks: dict[str, str] = field(default_factory=dict)
    note: str = ""
    wrong: list[str] = field(default_factory=list)  # values that differ without a word, and foreign errors


def families() -> list[tuple[str, str]]:
    """Each family that takes and writes text, with each kind that it has a class of its own for."""
    classes: dict[str, set[str]] = {}
    pairs = []
    for kind, (_, names) in KINDS.items():
        for family, name in names.items():
            known = family in transformers.CONFIG_MAPPING and family not in NO_TEXT
            if known and name not in classes.setdefault(family, set()):
                classes[family].add(name)
                pairs.append((family, kind))
    return sorted(pairs)


def tiny(family: str, kind: str) -> Any:
    """A random model of a family, small enough to try."""
    config = sized(transformers.CONFIG_MAPPING[family])
    if kind == "causal" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    make = getattr(transformers, KINDS[kind][0]).from_config
    with torch.device("meta"):  # what is large by its defaults is not even made
        if sum(weight.numel() for weight in make(copy.deepcopy(config)).parameters()) > 20_000_000:
            raise ValueError("too large by its defaults")
    torch.manual_seed(0)
    model = make(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    for name, token in {**tokens, **({"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {})}.items():
        setattr(model.generation_config, name, token)
    return model.eval()


def sweep(family: str, kind: str) -> Result:
    """Try one family."""
    result = Result(family, kind)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory = Path(name)
        try:
            base = directory / family
            built = tiny(family, kind)
            built.save_pretrained(base)
            byte_tokenizer(chat=False).save_pretrained(base)
            load_base(str(base)).model.save_pretrained(base)  # Youtu's loading sets the padding token's row to zero
            with torch.no_grad():
                built(**_inputs(built))
        except GliderError as fault:
            result.checks, result.note = dict.fromkeys(CHECKS, "refused"), str(fault)[:160]
            return result
        except Exception as fault:  # a family that cannot be built so is no fault of ours
            result.note = f"not built: {type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"[:90]
            return result
        _attempt(result, base, directory)
    return result


def _attempt(result: Result, base: Path, directory: Path) -> None:
    model = None
    for check, targets in (("import", None), ("all-linear", "all-linear")):
        try:
            adapter, wanted = _adapter(base, directory / check, targets)
        except Exception as fault:
            result.checks[check] = "none by PEFT"
            result.note = result.note or f"PEFT: {type(fault).__name__}"
            continue
        model = _told(result, check, lambda a=adapter, c=check: _pool(base, a, directory / f"pool-{c}")) or model
        if model is not None and result.checks[check] == "yes":
            _told(result, "PEFT", lambda m=model, w=wanted: _same_as_peft(m, w))
    if model is None:
        return
    for check, ask in (("batch", _batch), ("scores", _scores), ("packed", _packed), ("stream", _stream)):
        _told(result, check, lambda a=ask: a(model))


def _told(result: Result, check: str, ask: Any) -> Any:
    try:
        value = ask()
        result.checks.setdefault(check, "yes")
        return value
    except GliderError as fault:
        result.checks[check] = "refused"
        result.note = result.note or str(fault)[:160]
    except AssertionError as fault:
        result.checks[check] = "WRONG"
        result.wrong.append(f"{check}: {str(fault).splitlines()[0] if str(fault) else ''}"[:120])
    except Exception as fault:
        result.checks[check] = type(fault).__name__
        result.wrong.append(
            f"{check}: {type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"[:160]
        )
    return None


def _inputs(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 240, (1, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {})}


def _adapter(base: Path, directory: Path, targets: Any) -> tuple[Path, torch.Tensor]:
    """A PEFT adapter with the logits of the model that it was saved from (PEFT does not load each of them again); by
    default on a few linear layers of the language model."""
    loaded = load_base(str(base)).model
    if targets is None:
        linear = [n for n, m in loaded.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
        inner = [n for n in linear if "." in n and "vision" not in n and "visual" not in n and "lm_head" not in n]
        taken = [n for n in inner if not n.endswith("out_proj") and "expert" not in n]  # (PEFT takes no Mamba's)
        targets = taken[:3] or inner[:3]
    task = "SEQ_2_SEQ_LM" if loaded.config.is_encoder_decoder else "CAUSAL_LM"
    peft = get_peft_model(loaded, LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type=task))
    draw = torch.Generator().manual_seed(1)
    for name, value in peft.named_parameters():
        if "lora_" in name:
            value.data = 0.5 * torch.randn(value.shape, generator=draw) / value.shape[-1] ** 0.5
    peft.save_pretrained(str(directory), save_embedding_layers=False)
    with torch.no_grad():
        return directory, peft.eval()(**_inputs(peft)).logits


def _pool(base: Path, adapter: Path, directory: Path) -> Any:
    pool = Pool.create(directory, load_base(str(base)).identity)
    import_adapter(adapter, str(base), pool.path / "ex")
    pool.add("ex")
    return load(str(base), pool.path, router="single:ex", prompt=PromptFormat(kind="raw"))


def _same_as_peft(model: Any, wanted: torch.Tensor) -> None:
    with torch.no_grad(), model.routing("x"):
        got = model.model(**_inputs(model.model)).logits
    assert torch.allclose(got, wanted, rtol=1e-3, atol=1e-3), f"{(got - wanted).abs().max():.3g} off PEFT's logits"


def _batch(model: Any) -> None:
    alone = [model.generate([prompt], max_new_tokens=5)[0].token_ids for prompt in UNLIKE]
    together = [answer.token_ids for answer in model.generate(UNLIKE, max_new_tokens=5)]
    assert together == alone, f"{together} in a batch, {alone} alone"


def _scores(model: Any) -> None:
    choices = ["yes", "no, not at all"]
    together = [(PROMPTS[:1], choices[:1]), (PROMPTS, choices), (ALIKE, choices)]
    for prompts, asked in together:
        _scored(model, prompts, asked)


def _scored(model: Any, prompts: list[str], choices: list[str]) -> None:
    (rows, _) = model.score_many(prompts, [choices] * len(prompts))
    for prompt, row in zip(prompts, rows, strict=True):
        for choice, score in zip(choices, row, strict=True):
            (ids,), target = model.encoder.rows([prompt], False, 0), model.prompt.target_ids(model.tokenizer, choice)
            wanted = _plain(model, ids, target, prompt)
            assert abs(score.log_likelihood - wanted) < 2e-3, f"{score.log_likelihood:.4f}, plainly {wanted:.4f}"


@torch.no_grad()
def _plain(model: Any, ids: list[int], target: list[int], prompt: str) -> float:
    with model.routing(prompt):
        if model.model.config.is_encoder_decoder:
            from glider.inference.forward import start_token

            fed = torch.tensor([[start_token(model.model), *target[:-1]]])
            logits = model.model(input_ids=torch.tensor([ids]), decoder_input_ids=fed).logits[0]
        else:
            logits = model.model(input_ids=torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(target)), target].sum())


def _packed(model: Any) -> None:
    wanted = [answer.token_ids for answer in model.generate(UNLIKE, max_new_tokens=5)]
    got = [answer.token_ids for answer in model.generate_batch(UNLIKE, max_new_tokens=5)]
    assert got == wanted, f"{got}, generate {wanted}"


def _stream(model: Any) -> None:
    wanted = model.generate(PROMPTS[:1], max_new_tokens=5)[0].text
    got = "".join(model.stream(PROMPTS[0], max_new_tokens=5))
    assert got.strip() == wanted, f"{got!r}, generate {wanted!r}"  # answers have no space around them


def table(results: list[Result]) -> str:
    """The families that were tried, as Markdown; then those that were not, in a line."""
    lines = [f"| family | as | {' | '.join(CHECKS)} | |", f"|---|---|{'---|' * len(CHECKS)}---|"]
    for one in results:
        if one.checks:
            cells = " | ".join(one.checks.get(check, "") for check in CHECKS)
            note = "; ".join(one.wrong) or one.note
            lines.append(f"| {one.family} | {one.kind} | {cells} | {note.replace('|', '/')} |")
    return "\n".join(lines)


def read(file: Path) -> list[Result]:
    """The results that a file has, in the order of the registry."""
    lines = file.read_text("utf8").splitlines() if file.exists() else []
    known = {(one["family"], one["kind"]): Result(**one) for one in map(json.loads, lines)}
    return [known[pair] for pair in families() if pair in known]


def main() -> None:
    file, limit = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1e9
    named, began = sys.argv[3:], time.monotonic()
    done = {(one.family, one.kind) for one in read(file)}
    for family, kind in families():
        if (named and family not in named) or (family, kind) in done or time.monotonic() - began > limit:
            continue
        one = sweep(family, kind)
        with file.open("a", encoding="utf8") as results:
            results.write(json.dumps(asdict(one)) + "\n")
        print(family, kind, one.checks or "", one.wrong or one.note, file=sys.stderr, flush=True)
    print(table(read(file)))
    print("\nNot built:", ", ".join(one.family for one in read(file) if not one.checks))


if __name__ == "__main__":
    main()
