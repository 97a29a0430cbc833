"""The base model: found by hub id, local path or the name of the embedded one, and always identified."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from glider.config import EMBEDDED_BASE
from glider.errors import BaseModelError, ConfigError, QueryError, first_line
from glider.experts.base_identity import BaseIdentity, identify
from glider.experts.token_ids import tokenizer_faults
from glider.files.json_text import LARGEST_JSON, MOST_MEMBERS, require_small
from glider.files.opening import from_home, read_bytes
from glider.inference.base_settings import require_settings
from glider.inference.downloads import tell_of_download
from glider.inference.setting_values import checked_values
from glider.inference.sharing import missing_cache, oddity
from glider.inference.text_growth import require_bounded_files, require_bounded_tokenizer
from glider.layers.routed_linear import RoutedLinear

SELF_EXPLAINING = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)  # by their texts alone
_MOST_LAYERS, _MOST_PARTS, _MOST_ROWS, _MOST_LABELS, _MOST_BEAMS = 1000, 5000, 1 << 24, 100_000, 1000  # of any model's
_BOUNDS = {  # by the last word of a setting's name
    **dict.fromkeys(("layer", "layers"), _MOST_LAYERS),
    **dict.fromkeys(("head", "heads", "expert", "experts"), _MOST_PARTS),
    **dict.fromkeys(("positions", "embeddings", "buckets", "ctx", "size"), _MOST_ROWS),
    "labels": _MOST_LABELS,
    **dict.fromkeys(("beams", "sequences"), _MOST_BEAMS),
}
_SQUARE_MASKS = ("gpt_bigcode", "gpt_neo", "imagegpt", "openai-gpt")  # families that make a mask of each layer's
_LARGEST_MASKS = 1 << 32  # entries of all layers' masks; the largest known model of these has 2.7e9
# without it transformers asks on stdin whether a model's own code is to run, and a `y` in a piped prompt is a yes
NO_FOREIGN_CODE = {"trust_remote_code": False}
_MEND = "Mend the base's files."


@dataclass(frozen=True)
class BaseModel:
    """A transformers model with its tokenizer and identity."""

    model: Any
    tokenizer: Any
    identity: BaseIdentity
    source: str | None = None  # the path or id that it was loaded from


def load_base(
    base: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **arguments: Any
) -> BaseModel:
    """Load a base model by hub id, by local path, or by the name `smollm2-135m` (the embedded one).

    The identity's id is the hub id; of a local path the directory's own name, beside the whole path.
    `arguments` are transformers' `from_pretrained`'s: device_map, attn_implementation, quantization_config, ...
    With a device_map or quantised weights the model stays where they put it. Raises `BaseModelError` where there is no
    such model, where its files lack weights, and for one that reads ahead (BERT, XLNet), and `ConfigError` for
    `trust_remote_code`.
    """
    if arguments.get("trust_remote_code"):
        raise ConfigError("a model that transformers knows", "trust_remote_code", "Leave it out: no foreign code runs.")
    from transformers import AutoConfig
    from transformers.utils import logging

    source, model_id = locate(base)
    _require_place(base, source)
    require_device(device)
    with _telling_of_conversion(base, source):
        require_plain_files(Path(source))
        require_buildable(Path(source))
        tell_of_download(source)
        try:
            config = AutoConfig.from_pretrained(source, **_where(arguments), **NO_FOREIGN_CODE)
            architecture = architecture_of(config)
            shown = logging.is_progress_bar_enabled()
            logging.disable_progress_bar()  # loading a local model takes under a second; downloads show their own bar
            try:
                model, report = architecture.from_pretrained(
                    source, dtype=dtype, output_loading_info=True, **{**arguments, **NO_FOREIGN_CODE}
                )
            finally:
                if shown:
                    logging.enable_progress_bar()
        except Exception as fault:  # of transformers, for a configuration of another form, anything
            named = "" if isinstance(fault, SELF_EXPLAINING) else f"{type(fault).__name__}: "
            raise BaseModelError(
                f"a transformers model at {base}",
                named + first_line(fault)[:300],
                f"Give a hub id, a local path, or {EMBEDDED_BASE} for the embedded model.",
            ) from fault
        tokenizer = tokenizer_beside(source, base, **_where(arguments))
        _require_weights(model, report["missing_keys"], base)
        if arguments.get("device_map") is None and getattr(model, "hf_quantizer", None) is None:
            model.to(device)  # pyright: ignore[reportArgumentType]
        return _completed(model, tokenizer, model_id, source, local_path(base))


@contextmanager
def _telling_of_conversion(base: str, source: str) -> Iterator[None]:
    """Let what is wrong with the converted files of the embedded base say how to have them made anew."""
    from glider.demo.base import BASE_ID

    try:
        yield
    except BaseModelError as fault:
        if base not in (EMBEDDED_BASE, BASE_ID):
            raise
        remedy = f"Check the arguments, or remove {source}: the base is then converted anew."
        raise BaseModelError(fault.wanted, fault.got, remedy) from fault


def tokenizer_beside(source: str, base: str, **arguments: Any) -> Any:
    """The tokenizer of a model's directory or hub id; raises `BaseModelError` where there is none to be read."""
    from transformers import AutoTokenizer

    try:
        require_bounded_files(source, **arguments)
        with tokenizer_faults():
            return AutoTokenizer.from_pretrained(source, **arguments, **NO_FOREIGN_CODE)
    except BaseModelError:
        raise
    except Exception as fault:  # of files of another form, anything
        got = " ".join(str(fault).split())[:300] or type(fault).__name__
        named = "" if isinstance(fault, SELF_EXPLAINING) else f"{type(fault).__name__}: "
        remedy = "Write its files there (anew): tokenizer.save_pretrained(DIRECTORY)."
        raise BaseModelError(f"the tokenizer of a transformers model at {base}", named + got, remedy) from fault


def _require_place(base: str, source: str) -> None:
    """Raise `BaseModelError` for what can only be a path, and leads to no directory."""
    expected = f"a transformers model at {base}"
    if Path(source).is_file():
        raise BaseModelError(expected, "a file", "Give the directory that save_pretrained wrote.")
    if (base.startswith(("/", "./", "../", "~")) or base.count("/") > 1) and not Path(source).exists():
        remedy = f"Check the path, or give a hub id, or {EMBEDDED_BASE} for the embedded model."
        raise BaseModelError(expected, "no such directory", remedy)


def require_target(*where: Any, **settings: Any) -> None:
    """Raise `ConfigError` where `Module.to` is asked, by these arguments, for a device that is not here."""
    for device in (*where[:1], settings.get("device")):
        if isinstance(device, str | int | torch.device):
            require_device(device)


def require_device(device: str | int | torch.device) -> None:
    """Raise `ConfigError` for a device that is not here, before anything is loaded for it."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as fault:  # AssertionError: a build of PyTorch without the device
        remedy = "Give cpu, or install a PyTorch with the device's support (`glider doctor` shows what is here)."
        raise ConfigError("a device that PyTorch can use here", f"{device}: {first_line(fault)}", remedy) from fault


def _require_weights(model: Any, missing: Collection[str], base: str) -> None:
    """Raise `BaseModelError` for weights that transformers would draw at random, others at every loading."""
    absent = sorted(name for name, _ in model.named_parameters() if name in missing)
    if absent:
        raise BaseModelError(
            f"every weight of {type(model).__name__} in {base}",
            f"{len(absent)} of them absent, {absent[0]} first",
            "Give a checkpoint that was saved from a model of this class: the others would be drawn at random.",
        )


def require_plain_files(directory: Path) -> None:
    """Raise `BaseModelError` for a pipe or a device in a model's directory: transformers would wait for it, or read it
    without end."""
    if not directory.is_dir():
        return
    for entry in sorted(directory.iterdir()):
        if entry.exists() and not entry.is_dir() and not entry.is_file():
            raise BaseModelError(f"files alone in {directory}", f"{entry.name}, a pipe or a device", "Remove it.")


def require_buildable(directory: Path) -> None:
    """Raise `BaseModelError` for settings of more layers, heads or experts than any model has, of longer tables or more
    beams: transformers would make them one by one, without end, or ask for all memory."""
    for name in ("config.json", "generation_config.json"):
        if (directory / name).is_file():
            _require_bounded(directory / name)


def _require_bounded(file: Path) -> None:
    try:
        content = read_bytes(file, LARGEST_JSON)
        require_small(content, MOST_MEMBERS)
        waiting: list[Any] = [json.loads(content)]  # with whatever else transformers takes
    except (ValueError, RecursionError, OSError) as fault:
        got = " ".join(str(fault).split())[:300]
        raise BaseModelError(f"a readable {file}", got, "Write the base anew: save_pretrained().") from fault
    _require_masks(waiting[0], file)
    while waiting:
        value = waiting.pop()
        for name, one in value.items() if isinstance(value, dict) else []:
            bound = _BOUNDS.get(name.split("_")[-1])
            if isinstance(one, dict):
                waiting.append(one)
            elif bound is not None and isinstance(one, int | float) and one > bound:
                raise BaseModelError(f"{name} of at most {bound} in {file}", f"{one}"[:40], "Mend the file.")


def _require_masks(settings: Any, file: Path) -> None:
    """Raise `BaseModelError` where the square of positions, which these families make for each layer, is large."""
    if not isinstance(settings, dict) or settings.get("model_type") not in _SQUARE_MASKS:
        return
    largest: dict[str, float] = {}
    for name, one in settings.items():
        if isinstance(one, int | float):
            word = name.split("_")[-1].removesuffix("s")
            largest[word] = max(one, largest.get(word, 0))
    positions = max((largest.get(word, 0) for word in ("position", "embedding", "ctx")), default=0)
    entries = positions**2 * max(1, largest.get("layer", 1))
    if entries > _LARGEST_MASKS:
        expected = f"masks of at most {_LARGEST_MASKS} entries in {file}"
        got = f"{settings['model_type']} of {positions} positions, which makes {entries:.1e}"
        raise BaseModelError(expected, got, "Mend the file: give the positions that the model was trained for.")


def base_of_loaded(model: Any, tokenizer: Any = None) -> BaseModel:
    """A base model of one that is loaded already; it is put into evaluation mode and stays where it is.

    Without a tokenizer it is the one beside the model's own weights. Raises `BaseModelError` for what is no model of
    transformers, and where there is no such tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        got = type(model).__name__
        peft = " PEFT's model.unload() gives the one inside." if hasattr(model, "peft_config") else ""
        raise BaseModelError("a path, a hub id or a transformers model", got, f"Give one of them as the base.{peft}")
    if any(isinstance(module, RoutedLinear) for module in model.modules()):
        raise BaseModelError("a model with no pool attached", "one that is routed", "Call detach() first.")
    source = str(model.name_or_path or "")
    if tokenizer is None:
        try:
            require_bounded_files(source)
            with tokenizer_faults():
                tokenizer = AutoTokenizer.from_pretrained(source, **NO_FOREIGN_CODE)
        except BaseModelError:
            raise
        except Exception as fault:  # likewise
            expected, got = "a tokenizer for the model", f"none at {source!r}"
            raise BaseModelError(expected, got, "Give tokenizer=.") from fault
    model_id = Path(source).resolve().name if source and Path(source).exists() else source or type(model).__name__
    return _completed(model, tokenizer, model_id, source, local_path(source) if source else None)


def _completed(model: Any, tokenizer: Any, model_id: str, source: str, path: str | None) -> BaseModel:
    model.eval()
    require_settings(model)
    _require_numbers(model, tokenizer)
    if (odd := oddity(model)) is not None:
        raise BaseModelError(
            "a language model whose layers take rows of tokens, and whose tokens see those before them alone",
            f"{type(model).__name__}, {odd}",
            "Give another model; of one that was trained as a decoder, set is_decoder in its config.json.",
        )
    if (fault := missing_cache(model)) is not None:
        import transformers

        raise BaseModelError(
            "a model whose keys and values transformers can keep from one token to the next",
            f"{type(model).__name__}, where every pass with a cache fails: {fault}",
            f"Give another model, or another version of transformers (this is {transformers.__version__}).",
        )
    identity = identify(model, model_id).model_copy(update={"path": path})
    return BaseModel(model, completed_tokenizer(tokenizer), identity, source)


def _require_numbers(model: Any, tokenizer: Any) -> None:
    """Raise `BaseModelError` for numbers of a model's files that are none, which are used long after they are read."""
    length = getattr(tokenizer, "model_max_length", 0)
    if not isinstance(length, int | float):
        raise BaseModelError("a number as model_max_length of the tokenizer", repr(length)[:60], _MEND)
    if model.generation_config is None:
        return
    try:
        checked_values(model.generation_config.to_diff_dict(), bounded=False)
    except QueryError as fault:
        raise BaseModelError(f"{fault.wanted} of generation", fault.got, _MEND) from fault


def completed_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, which pads by its end token where it has no other; raises `BaseModelError` for one that makes
    texts longer without bound."""
    require_bounded_tokenizer(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def located(base: str) -> str:
    """Where a base model lies: the path of the embedded one by its name, any other id or path as it is."""
    return locate(base)[0]


def locate(base: str) -> tuple[str, str]:
    """Where transformers finds a base model, and its id; the embedded one has a short name beside its id.

    Raises `BaseModelError` for an empty name.
    """
    from glider.demo.base import BASE_ID, converted_base

    if base in (EMBEDDED_BASE, BASE_ID):
        return str(converted_base()), BASE_ID
    if not base:  # which the system would take as the directory it works in
        remedy = f"Give a hub id, a local path, or {EMBEDDED_BASE} for the embedded model."
        raise BaseModelError("the name of a base model", "an empty one", remedy)
    path = from_home(base)
    if path.exists():
        return str(path), path.resolve().name
    return base, base


def local_path(base: str) -> str | None:
    """The whole path of a base that is a directory here, to be found from anywhere; None for an id or the embedded one.

    A link is kept as one: it may point to another version some day.
    """
    path = from_home(base)
    if base == EMBEDDED_BASE or not path.exists():
        return None
    whole = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    try:
        return whole.as_posix().encode().decode()
    except UnicodeEncodeError:
        return None  # bytes that are no text: JSON cannot keep them


def _where(arguments: dict[str, Any]) -> dict[str, Any]:
    """What of `from_pretrained`'s arguments tells where files lie: configurations and tokenizers take no others."""
    names = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
    return {name: arguments[name] for name in names if name in arguments}


def architecture_of(config: Any) -> Any:
    """The auto class of a family: an encoder-decoder's, a language model's, that of images and text, or of speech and
    text, which transformers lists among the encoder-decoders."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    plain = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    known = (plain, AutoModelForImageTextToText, AutoModelForSeq2SeqLM)
    return next((one for one in known if type(config) in one._model_mapping), plain)
