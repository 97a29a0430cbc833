"""How a row becomes tokens: the same at training and at use, recorded in the card."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from glider.config import Config
from glider.errors import GliderWarning, QueryError
from glider.experts.chat_template import bounded, rendered
from glider.experts.token_ids import token_ids

_TEXT = "TEXT"  # stands for a prompt's own text
LONGEST_TEMPLATE = 1 << 17  # characters of a chat template that a card may bring
PromptKind = Literal["chat", "plain", "encoder-decoder", "raw"]


class PromptFormat(Config):
    """The form of a prompt.

    Arguments:
        kind: One of the four below.
        system: System turn of a chat.
        template: Chat template in place of the tokenizer's.

    `chat` puts the input into one user turn of the tokenizer's own chat template; `plain` is the input, a line
    break, then the output; `encoder-decoder` gives the input to the encoder; `raw` is the input as it stands, which the
    output continues.
    """

    kind: PromptKind = Field(description="Form of the prompt: chat, plain, encoder-decoder or raw.")
    system: str | None = Field(default=None, description="System turn of a chat. Null: the template's default.")
    template: Annotated[str, Field(max_length=LONGEST_TEMPLATE)] | None = Field(
        default=None, description="Chat template in Jinja. Null: the tokenizer's own."
    )

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> "PromptFormat":
        """The natural format of a model: its chat template where the tokenizer has one."""
        if model.config.is_encoder_decoder:
            return cls(kind="encoder-decoder")
        return cls(kind="chat" if getattr(tokenizer, "chat_template", None) else "plain")

    def prompt_ids(self, tokenizer: Any, text: str) -> list[int]:
        """Token ids of a prompt, ready to be answered."""
        if self.kind == "chat":
            return self.chat_ids(tokenizer, [{"role": "user", "content": text}])
        begun = self.kind == "raw" and tokenizer.bos_token and text.startswith(tokenizer.bos_token)
        return token_ids(tokenizer, text + "\n" if self.kind == "plain" else text, special=not begun)

    def chat_ids(self, tokenizer: Any, turns: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of the turns of a chat, ready to be answered, by this format's template or the tokenizer's."""
        if self.system is not None and not any(turn["role"] == "system" for turn in turns):
            turns = [{"role": "system", "content": self.system}, *turns]
        with bounded(self.template):
            text = render_chat(tokenizer, turns, self.template, add_generation_prompt=True)
        ids = token_ids(tokenizer, text, special=False)
        if not ids:
            raise QueryError("a chat template that renders a prompt", "no token", "Mend the template.")
        return ids

    def input_of(self, tokenizer: Any, ids: list[int]) -> str:
        """The text that a prompt in tokens was made of; what is not of this form is read as it stands.

        Special tokens are left out of the latter.
        """
        inner = self._inner(tokenizer, tokenizer.decode(ids)) if self.kind == "chat" else None
        return self.input_in(tokenizer, tokenizer.decode(ids, skip_special_tokens=True)) if inner is None else inner

    def input_in(self, tokenizer: Any, text: str) -> str:
        """The text inside a prompt that is written out in this form; one of another form is read as it stands."""
        if self.kind == "plain":
            return text.removesuffix("\n")
        inner = self._inner(tokenizer, text) if self.kind == "chat" else None
        return text if inner is None else inner

    def _inner(self, tokenizer: Any, text: str) -> str | None:
        """What stands between begin and end of this chat form, or None; the begin may lack its special token."""
        begin, _, end = tokenizer.decode(self.prompt_ids(tokenizer, _TEXT)).partition(_TEXT)
        for start in (begin, begin.removeprefix(tokenizer.bos_token or "")):
            if text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end):
                return text[len(start) : len(text) - len(end)]
        return None

    def target_ids(self, tokenizer: Any, text: str) -> list[int]:
        """Token ids of an answer, with the end token that the model must learn to write."""
        ids = token_ids(tokenizer, text, special=False)
        return ids + ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])


def render_chat(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], template: str | None = None, **settings: Any
) -> str:
    """Turns of a chat by a card's template or the tokenizer's own; a system turn that it refuses is left out, with a
    warning. `settings` are those of `apply_chat_template`; a card's template takes `add_generation_prompt` alone."""
    from jinja2.exceptions import TemplateError

    def render(turns: Sequence[Mapping[str, Any]]) -> str:
        if template is not None:
            return rendered(tokenizer, template, turns, **settings)
        return tokenizer.apply_chat_template(list(turns), tokenize=False, **settings)

    try:
        return render(turns)
    except TemplateError as fault:
        others = [turn for turn in turns if turn.get("role") != "system"]
        if len(others) == len(turns):
            raise
        text = f"the system turn is left out: the chat template refuses it ({fault})"
        warnings.warn(text, GliderWarning, stacklevel=3)
        return render(others)
