"""From a request's words to tokens, with room for the answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glider.experts.chat_template import bounded, rendered
from glider.inference.conversation import asked_text
from glider.serve.errors import ApiError
from glider.serve.exchange import Prompt
from glider.serve.schemas import Message
from glider.serve.settings import ServeSettings

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel


def chat_prompt(model: "RoutedModel", messages: Sequence[Message], generation_prompt: bool = True) -> Prompt:
    """A conversation in the chat template of the experts' cards, or the base's own; one user turn alone in their form.

    Raises `ApiError` where nobody asks anything, and for a base without a template where there is more than one turn.
    """
    turns = [("system" if one.role == "developer" else one.role, one.text) for one in messages]
    text = asked_text(turns)
    if not text.strip():
        raise ApiError(400, "a user's turn with text is needed", param="messages", code="invalid_value")
    form, tokenizer = model.prompt, model.tokenizer
    if len(turns) == 1 and generation_prompt:
        return Prompt(form.prompt_ids(tokenizer, turns[0][1]), text, tuple(turns))
    if form.template is None and not getattr(tokenizer, "chat_template", None):
        message = "this base has no chat template: send one user turn"
        raise ApiError(400, message, param="messages", code="unsupported_value")
    said = tuple(turns)
    if form.system is not None and all(role != "system" for role, _ in turns):
        turns.insert(0, ("system", form.system))
    conversation = [{"role": role, "content": content} for role, content in turns]
    try:
        with bounded(form.template):
            if form.template is None:
                text_of_turns = tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=generation_prompt
                )
            else:
                text_of_turns = rendered(tokenizer, form.template, conversation, generation_prompt)
    except Exception as fault:  # a template may raise what it likes about the order of turns
        message = f"the base's chat template refuses these turns: {fault}"
        raise ApiError(400, message, param="messages", code="invalid_value") from fault
    return Prompt(tokenizer(text_of_turns, add_special_tokens=False)["input_ids"], text, said)


def plain_prompts(model: "RoutedModel", prompts: Sequence[Any]) -> list[Prompt]:
    """Texts as they stand, or token ids. Raises `ApiError` for what is empty or no token."""
    plain = []
    size = model.model.get_input_embeddings().weight.shape[0]
    for prompt in prompts:
        if isinstance(prompt, str):
            ids, text = model.prompt.model_copy(update={"kind": "raw"}).prompt_ids(model.tokenizer, prompt), prompt
        else:
            if any(not 0 <= token < size for token in prompt):
                raise ApiError(400, f"token ids of 0 to {size - 1}", param="prompt", code="invalid_value")
            ids, text = list(prompt), model.tokenizer.decode(prompt, skip_special_tokens=True)
        if not ids:
            raise ApiError(400, "a prompt with text is needed", param="prompt", code="invalid_value")
        plain.append(Prompt(ids, text))
    return plain


def room(
    model: "RoutedModel", settings: ServeSettings, prompt: Prompt, requested: int | None, param: str, packed: bool
) -> int:
    """The longest answer to a prompt: what was asked for, or as much as there is room for up to the default.

    Raises `ApiError` for a prompt and answer that are longer than the context or the cache.
    """
    used = 0 if model.model.config.is_encoder_decoder else len(prompt.ids)
    limits = [limit for limit in (model.encoder.context, settings.cache_tokens if packed else None) if limit]
    limit = min(limits, default=None)
    tokens = settings.default_tokens if requested is None else requested
    if limit is None:
        return tokens
    if used + (max(1, requested) if requested is not None else 1) > limit:
        answer = "" if requested is None else f" and {requested} of an answer"
        message = f"{len(prompt.ids)} tokens of a prompt{answer}, where {limit} is the most together"
        raise ApiError(400, message, param=param if used < limit else "messages", code="context_length_exceeded")
    return min(tokens, limit - used)
