"""What an adapter brings of a tokenizer: its chat template goes into the card, what else the base lacks is told."""

import json
from pathlib import Path
from typing import Any

from glider.contribute.adapter_files import warn
from glider.errors import QueryError
from glider.experts.chat_template import bounded
from glider.experts.prompt_format import LONGEST_TEMPLATE, PromptFormat
from glider.files.disk import leads_out
from glider.files.json_text import read_json
from glider.files.opening import UnfitFile, read_beginning, read_text
from glider.inference.base_model import BaseModel

TEMPLATE_FILE, TOKENIZER_FILE, TOKENS_FILE = "chat_template.jinja", "tokenizer_config.json", "added_tokens.json"
OLD_TEMPLATE_FILE, SPECIAL_FILE, WHOLE_FILE = "chat_template.json", "special_tokens_map.json", "tokenizer.json"
TEXT_FILES = (TEMPLATE_FILE, TOKENIZER_FILE, TOKENS_FILE, OLD_TEMPLATE_FILE, SPECIAL_FILE)
_BEGINNING = 1 << 20  # bytes of a whole tokenizer's file, which begins with its added tokens


def prompt_of(directory: Path, loaded: BaseModel) -> PromptFormat:
    """The base's natural prompt, or the one by the chat template that the adapter brings.

    What the adapter's tokenizer has and the base's lacks is told.
    """
    natural, settings = PromptFormat.of(loaded.model, loaded.tokenizer), _json(directory / TOKENIZER_FILE)
    special = {**_json(directory / SPECIAL_FILE), **settings}
    _tell_tokens(directory, settings, special, loaded.tokenizer)
    template = _template(directory, settings)
    if template is None or template == loaded.tokenizer.chat_template:
        return natural
    if natural.kind == "encoder-decoder" or len(template) > LONGEST_TEMPLATE:
        warn(f"{directory} brings a chat template that is not used")
        return natural
    try:
        with bounded(template):
            pass  # it is compiled
    except QueryError as fault:
        warn(f"{directory} brings a chat template that is not used: {fault.got}. Prompts have the base's own form")
        return natural
    warn(f"{directory} brings a chat template other than the base's: it is kept in the card, and used")
    return PromptFormat(kind="chat", template=template)


def _tell_tokens(directory: Path, settings: dict[str, Any], special: dict[str, Any], tokenizer: Any) -> None:
    """Warn of tokens that the base's tokenizer lacks, and of another end of texts."""
    added = [*_json(directory / TOKENS_FILE), *_dict(settings.get("added_tokens_decoder")).values()]
    added += _list(special.get("additional_special_tokens")) + _list(special.get("extra_special_tokens"))
    added += _added_of_whole(directory / WHOLE_FILE)
    known = tokenizer.get_vocab()
    unknown = sorted({text for text in map(_text, added) if text and text not in known})
    if unknown:
        shown = ", ".join(map(repr, unknown[:5]))[:200]
        warn(f"{directory} brings tokens that the base's tokenizer lacks, which are read as plain text: {shown}")
    end = _text(special.get("eos_token"))
    if end and end != tokenizer.eos_token:
        said = "answers end with the base's" if end in known else "which the base's tokenizer lacks"
        warn(f"{directory} ends texts with {end[:60]!r}, the base with {tokenizer.eos_token!r}: {said}")


def _template(directory: Path, settings: dict[str, Any]) -> str | None:
    """The chat template that the adapter brings, in whichever of the forms that transformers has written."""
    try:
        _require_inside(directory / TEMPLATE_FILE)
        return read_text(directory / TEMPLATE_FILE, 4 * LONGEST_TEMPLATE)  # bytes; their characters are counted later
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as fault:
        warn(f"{directory / TEMPLATE_FILE} is not used: {fault}")
    for brought in (_json(directory / OLD_TEMPLATE_FILE).get("chat_template"), settings.get("chat_template")):
        if isinstance(brought, str):
            return brought
        named = [one for one in _list(brought) if isinstance(one, dict)]
        default = next((one.get("template") for one in reversed(named) if one.get("name") == "default"), None)
        if isinstance(default, str):
            return default
        if named:
            warn(f"{directory} brings chat templates, none of them the default: they are not used")
    return None


def _added_of_whole(path: Path) -> list[Any]:
    """The added tokens of a whole tokenizer's file, if they stand in its beginning."""
    try:
        _require_inside(path)
        text = read_beginning(path, _BEGINNING).decode("utf8", errors="ignore")
        place = text.index('"added_tokens"') + len('"added_tokens"')
        return _list(json.JSONDecoder().raw_decode(text, text.index("[", place))[0])
    except (OSError, ValueError, RecursionError):
        return []


def _text(token: object) -> str | None:
    """A token's text, of a string or of a token with settings."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _require_inside(path: Path) -> None:
    """Raise `UnfitFile` for a link out of the adapter: what it leads to would stand in the card, or in a warning."""
    if leads_out(path):
        raise UnfitFile("a link out of the directory")


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file beside an adapter says; nothing where there is none that can be read."""
    try:
        _require_inside(path)
        return _dict(read_json(path))
    except (OSError, ValueError, RecursionError):
        return {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
