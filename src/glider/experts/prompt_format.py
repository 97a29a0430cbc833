"""How a row becomes tokens: the same at training and at use, recorded in the card."""

from typing import Any, Literal

from glider.config import Config

PromptKind = Literal["chat", "plain", "encoder-decoder", "raw"]


class PromptFormat(Config):
    """The form of a prompt.

    `chat` puts the input into one user turn of the tokenizer's own chat template; `plain` is the input, a line
    break, then the output; `encoder-decoder` gives the input to the encoder; `raw` is the input as it stands, which the
    output continues.
    """

    kind: PromptKind
    system: str | None = None  # a system turn of one's own; None leaves the template's default

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> "PromptFormat":
        """The natural format of a model: its chat template where the tokenizer has one."""
        if model.config.is_encoder_decoder:
            return cls(kind="encoder-decoder")
        return cls(kind="chat" if getattr(tokenizer, "chat_template", None) else "plain")

    def prompt_ids(self, tokenizer: Any, text: str) -> list[int]:
        """Token ids of a prompt, ready to be answered."""
        if self.kind == "chat":
            turns = [] if self.system is None else [{"role": "system", "content": self.system}]
            turns.append({"role": "user", "content": text})
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return tokenizer(rendered, add_special_tokens=False)["input_ids"]
        begun = self.kind == "raw" and tokenizer.bos_token and text.startswith(tokenizer.bos_token)
        return tokenizer(text + "\n" if self.kind == "plain" else text, add_special_tokens=not begun)["input_ids"]

    def target_ids(self, tokenizer: Any, text: str) -> list[int]:
        """Token ids of an answer, with the end token that the model must learn to write."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
