"""The model card of an expert or a pool on the hub: a README written from what the cards say.

What a card says is a stranger's. It stands here as text: it makes no heading, no list, no link, no code and no HTML.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from glider.experts.base_identity import BaseIdentity
from glider.experts.card import ExpertCard
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptKind
from glider.printable import printable

LIBRARY = "peft"
TAGS = ("glider", "lora")
_LONGEST_TEXT = 2000  # characters of a description
_LONGEST_NAME = 96
# where GitHub and the hub make links of bare addresses; nothing but an element keeps the halves apart in both
_ADDRESS = re.compile(r"(?i):(?=//)|www(?=\.)|(?:mailto|xmpp):|@(?=\S)")
_HASH_SHOWN = 12  # characters of a digest in the training table


def expert_model_card(card: ExpertCard, repo_id: str) -> str:
    """README of an expert's repository. The licence is stated only where the card states one."""
    base = _base_name(card.base)
    return _render(
        _metadata(card.base, card.licence, card.name, card.prompt.kind),
        f"# {card.name}",
        _text(card.description or f"A LoRA expert for the task {card.task}."),
        f"Task {_code(card.task)}, base model `{base}` (fingerprint `{card.base.hash}`).",
        *_table("Training", card.training),
        *_table("Metrics", card.metrics),
        "## Use",
        "The adapter is PEFT's format, as it is:",
        _peft_example(card.prompt.kind, base, repo_id),
        "Served by vLLM (`--max-lora-rank` too, if the rank is above 16):",
        f"```sh\nvllm serve {base} --enable-lora --lora-modules {card.name}={repo_id}\n```",
        "As one of a pool of experts, routed per token by glider:",
        f"```sh\nglider expert pull {repo_id} --out pool/{card.name}\nglider pool add pool {card.name}\n"
        'glider generate --pool pool "..."\n```',
    )


def pool_model_card(pool: Pool, repo_id: str) -> str:
    """README of a pool's repository. A licence is stated only where all experts state the same one."""
    cards = [expert.card for expert in pool]
    licences = {card.licence for card in cards}
    kind = cards[0].prompt.kind if cards else "plain"
    base, directory = _base_name(pool.index.base), repo_id.rpartition("/")[2]
    rows = [
        (expert.name, expert.card.description or expert.card.task, expert.card.licence or "not stated")
        for expert in pool
    ]
    load = _peft_example(kind, base, repo_id, subfolder=pool.index.experts[0].home) if cards else ""
    return _render(
        _metadata(pool.index.base, licences.pop() if len(licences) == 1 else None, directory, kind),
        f"# {directory}",
        f"A pool of {len(cards)} LoRA experts for `{base}` (fingerprint `{pool.index.base.hash}`).",
        "## Experts",
        _rows(("expert", "what it does", "licence"), rows),
        "## Use",
        "Every token, at every layer, goes to the experts that suit it:",
        f'```sh\nglider pool pull {repo_id} --out {directory}\nglider generate --pool {directory} "..."\n```',
        *(("One expert alone, by PEFT:", load) if cards else ()),
    )


def _metadata(base: BaseIdentity, licence: str | None, name: str, kind: PromptKind) -> ModelCardData:
    return ModelCardData(
        library_name=LIBRARY,
        base_model=base.model_id if _on_hub(base.model_id) else None,
        tags=list(TAGS),
        license=printable(licence).lower() if licence else None,  # the hub writes SPDX names in small letters
        model_name=name,
        pipeline_tag=None if kind == "encoder-decoder" else "text-generation",
    )


def _render(metadata: ModelCardData, *parts: str) -> str:
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"))


def _on_hub(model_id: str) -> bool:
    """Whether a base model's id is one of the hub's, `owner/name`, and not a directory of its author's machine."""
    try:
        validate_repo_id(model_id)
    except HFValidationError:
        return False
    return "/" in model_id


def _base_name(base: BaseIdentity) -> str:
    """The id on the hub, or the last part of a directory's name, fit for a line of code."""
    if _on_hub(base.model_id):
        return base.model_id
    return re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(base.model_id).name)[:_LONGEST_NAME] or "BASE_MODEL"


def _peft_example(kind: PromptKind, base: str, repo_id: str, subfolder: str | None = None) -> str:
    auto = "AutoModelForSeq2SeqLM" if kind == "encoder-decoder" else "AutoModelForCausalLM"
    where = f'"{repo_id}"' + (f', subfolder="{subfolder}"' if subfolder else "")
    return (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {auto}\n\n"
        f'model = PeftModel.from_pretrained({auto}.from_pretrained("{base}"), {where})\n```'
    )


def _table(title: str, record: Mapping[str, Any]) -> Sequence[str]:
    rows = list(_flat(record))
    return (f"## {title}", _rows(("", "value"), rows)) if rows else ()


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The plain values of a nested record under dotted names; lists (loss curves) stay in `card.json`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield prefix + name, f"{value:.4g}"
        elif isinstance(value, str):
            yield prefix + name, value[:_HASH_SHOWN] if name.endswith("sha256") else value
        elif isinstance(value, bool | int):
            yield prefix + name, str(value)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """A card's own words on one line of Markdown, where they are words and nothing else."""
    line = printable(value, _LONGEST_TEXT).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~$])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)
    line = re.sub(r"^(\d*)([.)+-])(?=\s|$)", r"\1\\\2", line)  # a list
    line = re.sub(r"^(?=#|[-=]+[-= ]*$)", r"\\", line)  # a heading, or a line
    return _ADDRESS.sub(r"\g<0><!-- -->", line)


def _code(value: str) -> str:
    """A card's own words as code within a line."""
    return "`" + (printable(value).replace("`", "'") or "-") + "`"
