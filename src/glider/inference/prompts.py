"""Prompts as tokens: formatted, their length checked, padded to a batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jinja2.exceptions import TemplateError

from glider.errors import QueryError
from glider.experts.prompt_format import PromptFormat
from glider.inference.forward import padded, positions, start_token
from glider.inference.queries import Prompt, Query, listed, require_text
from glider.inference.text_length import end_of, exceeds, most_tokens


def require_known(ids: Sequence[int], model: Any) -> None:
    """Raise `QueryError` for no tokens at all, and for one that the base has no embedding for, though its tokenizer has
    it: on a GPU one such ends the process."""
    if not ids:
        raise QueryError("a text of at least one token", "none", "Write more, or give the model's own tokenizer.")
    here = hasattr(model, "get_input_embeddings")  # else another process has it, and its settings are known
    size = model.get_input_embeddings().weight.shape[0] if here else model.config.get_text_config().vocab_size
    if (token := max(ids)) >= size:
        expected = f"tokens that the base has embeddings for, 0 to {size - 1}"
        remedy = "Leave that text out, or give a base whose embeddings have a row for every token of its tokenizer."
        raise QueryError(expected, f"token {token}, which only its tokenizer knows", remedy)


class PromptEncoder:
    """Makes the token ids of prompts, in a pool's prompt format, for a model with its tokenizer.

    `context` is the model's context length in tokens; None where there is no limit, as for T5. `answers` is the same of
    a decoder beside an encoder, whose answers have places of their own.
    """

    def __init__(self, prompt: PromptFormat, tokenizer: Any, model: Any):
        self.prompt, self.tokenizer, self.model = prompt, tokenizer, model
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        decoder = model.config.get_text_config(decoder=True) if model.config.is_encoder_decoder else None
        self.answers: int | None = getattr(decoder, "max_position_embeddings", None)

    def rows(self, prompts: Sequence[Prompt], truncate: bool, new_tokens: int | Sequence[int]) -> list[list[int]]:
        """Each prompt's token ids, with room for so many new tokens: the same number for all, or each its own.

        Raises `QueryError` for an empty prompt, for one that is too long unless its end is kept (`truncate`), for
        tokens that the base lacks, and for more new tokens than a decoder has places for.
        """
        prompts = listed(prompts, "prompts")
        if not prompts:
            raise QueryError("at least one prompt", "none", "Give a prompt.")
        rows = []
        rooms = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
        for number, (query, room) in enumerate(zip(map(Query.of, prompts), rooms, strict=True), start=1):
            if not query.text.strip():
                raise QueryError("a prompt with text", f"an empty one (prompt {number})", "Write a question.")
            rows.append(self._fit(self._ids(self._bounded(query, truncate, number)), truncate, room, number))
            require_known(rows[-1], self.model)
        return rows

    def length(self, text: str) -> int:
        """Tokens of a prompt whose end is kept where it is too long."""
        return len(self._ids(self._bounded(Query(text), True, 1)))

    def _bounded(self, query: Query, truncate: bool, number: int) -> Query:
        """The query, without the beginning of a text that is far beyond the context; `QueryError` where none may go."""
        most = most_tokens(self.context)
        text = "".join(turn["content"] for turn in query.messages) if query.messages else query.text
        if not exceeds(self.tokenizer, text, most):
            return query
        if not truncate or query.messages:
            expected, got = f"a prompt of at most {most} tokens", f"more (prompt {number})"
            raise QueryError(expected, got, "Shorten it, or give --truncate to keep the end of a text.")
        return replace(query, text=end_of(self.tokenizer, query.text, most))

    def _ids(self, query: Query) -> list[int]:
        """A prompt's tokens: a chat by its template, a text in the pool's form."""
        form = self.prompt
        if not query.messages:
            return form.prompt_ids(self.tokenizer, query.text)
        if form.template is not None or getattr(self.tokenizer, "chat_template", None):
            try:
                return form.chat_ids(self.tokenizer, query.messages)
            except TemplateError as fault:
                raise QueryError("turns that the chat template takes", str(fault)[:200], "Mend the chat.") from fault
        if len(query.messages) > 1:
            expected, got = "one turn, of the user, for a base without a chat template", f"{len(query.messages)} turns"
            raise QueryError(expected, got, "Write them as one text.")
        return form.prompt_ids(self.tokenizer, query.text)

    def targets(self, choices: Sequence[str]) -> list[list[int]]:
        """The token ids of each choice as an answer.

        Raises `QueryError` where there is none, for what is no text, and for one without a token.
        """
        if not choices:
            raise QueryError("at least one choice", "none", "Give the answers to choose from.")
        most = most_tokens(self.context)
        for choice in choices:
            if exceeds(self.tokenizer, require_text(choice, "a choice"), most):
                raise QueryError(f"choices of at most {most} tokens", f"more: {choice[:60]!r}...", "Shorten them.")
        targets = [self.prompt.target_ids(self.tokenizer, one) for one in choices]
        if not all(targets):
            empty = choices[targets.index([])]
            got = f"{empty!r}, for a tokenizer without an end token"
            raise QueryError(
                "choices of at least one token", got, "Leave it out: every other one would be less likely."
            )
        for target in targets:
            require_known(target, self.model)
        return targets

    def rooms(self, targets: Sequence[Sequence[list[int]]]) -> list[int]:
        """New tokens that the longest of each prompt's choices takes, with what a decoder is forced to write first."""
        settings, beside = self.model.generation_config, self.model.config.is_encoder_decoder
        first = int(beside and isinstance(getattr(settings, "forced_bos_token_id", None), int))
        return [first + max(map(len, row), default=0) for row in targets]

    def batch(self, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """Prompts in tokens as a batch: padded on the left for decoder-only models, else on the right."""
        return padded(rows, self.pad_id, self.model)

    @property
    def pad_id(self) -> int:
        """A token to pad with. It is masked, so any token that the model has an embedding for will do."""
        size = self.model.get_input_embeddings().weight.shape[0]
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in known if token is not None and token < size), 0)

    def ends(self, tokens: int | Sequence[int] | None = None) -> frozenset[int]:
        """Tokens that end an answer: the caller's, or the model's and the tokenizer's."""
        ends = self.model.generation_config.eos_token_id if tokens is None else tokens
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        more = [self.tokenizer.eos_token_id] if tokens is None and self.tokenizer.eos_token_id is not None else []
        return frozenset((*ends, *more))

    def forward_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs of a plain forward pass over prompts, with the positions of padded rows and a decoder's start."""
        if not self.model.config.is_encoder_decoder:
            return {**inputs, **positions(self.model, inputs["attention_mask"])}
        fed = torch.full((len(inputs["input_ids"]), 1), start_token(self.model), device=self.model.device)
        return {**inputs, "decoder_input_ids": fed}

    def _fit(self, ids: list[int], truncate: bool, new_tokens: int, number: int) -> list[int]:
        if self.answers is not None and new_tokens > self.answers:
            expected, got = f"an answer of at most {self.answers} tokens", f"{new_tokens} (prompt {number})"
            raise QueryError(
                expected, got, "Lower max_new_tokens, or shorten the choice: the decoder has no more places."
            )
        if (limit := self.context) is None:
            return ids
        room = limit - (0 if self.model.config.is_encoder_decoder else new_tokens)
        if len(ids) <= room:
            return ids
        if room < 1:
            got = f"{new_tokens} tokens of it for the answer alone"
            raise QueryError(f"room for a prompt in the context of {limit} tokens", got, "Lower max_new_tokens.")
        if not truncate:
            raise QueryError(
                f"a prompt of at most {room} tokens (context {limit}, {new_tokens} of it for the answer)",
                f"{len(ids)} tokens (prompt {number})",
                "Shorten it, or give --truncate to keep its end.",
            )
        return ids[-room:]
