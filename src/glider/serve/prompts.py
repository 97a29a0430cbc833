"""From a request's text to tokens, with room for the answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glider.experts.token_ids import token_ids
from glider.files.json_text import parse_json
from glider.inference.conversation import question_text
from glider.inference.prompts import require_known
from glider.inference.text_length import FEW_TOKENS, exceeds
from glider.serve.bodies import MOST_MEMBERS
from glider.serve.dialect import dialect_of, rendered
from glider.serve.errors import ApiError
from glider.serve.exchange import Prompt
from glider.serve.schemas import Message, ToolCall
from glider.serve.settings import ServeSettings
from glider.serve.tools import require_tools

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel


LONGEST_PROMPT = 2048  # tokens, where neither the base nor its tokenizer says
_NO_LENGTH = 1_000_000  # tokens: what tokenizers name that were given none


def require_short(tokenizer: Any, text: str, most: int, param: str) -> None:
    """Raise `ApiError` for a text of more than about `most` tokens, counted piece by piece until there are as many.

    The tokens of megabytes take seconds, and meanwhile no other request is prepared.
    """
    if exceeds(tokenizer, text, most):
        raise ApiError(400, f"a text of more than {most} tokens", param=param, code="context_length_exceeded")


def _require_fitting(model: "RoutedModel", text: str, param: str) -> None:
    """Raise `ApiError` for a text that is far beyond the context."""
    require_short(model.tokenizer, text, max(FEW_TOKENS, 2 * (model.encoder.context or 0)), param)


def chat_prompt(
    model: "RoutedModel",
    messages: Sequence[Message],
    generation_prompt: bool = True,
    tools: Sequence[dict[str, Any]] | None = None,
) -> Prompt:
    """A conversation in the chat template of the experts' cards, or the base's own; one user turn alone in their form.

    Raises `ApiError` where nobody asks anything, for a base without a template where there is more than one turn, and
    for one whose template does not write tools, calls or their results where there are any.
    """
    turns = [("system" if one.role == "developer" else one.role, one.text) for one in messages]
    text = question_text(turns)
    if not text.strip():
        raise ApiError(400, "a user's turn with text is needed", param="messages", code="invalid_value")
    form, tokenizer = model.prompt, model.tokenizer
    _require_fitting(model, "".join(turn for _, turn in turns), "messages")
    if len(turns) == 1 and generation_prompt and tools is None:
        return Prompt(form.prompt_ids(tokenizer, turns[0][1]), text, tuple(turns))
    if form.template is None and not getattr(tokenizer, "chat_template", None):
        param = "messages" if tools is None else "tools"
        message = f"this base has no chat template: send one user turn{'' if tools is None else ', without tools'}"
        raise ApiError(400, message, param=param, code="unsupported_value")
    if tools is not None:
        require_tools(model)
    conversation = _conversation(model, messages, tools is not None)
    if form.system is not None and all(role != "system" for role, _ in turns):
        conversation.insert(0, {"role": "system", "content": form.system})
    try:
        written = rendered(tokenizer, form.template, conversation, tools, generation_prompt)
    except Exception as fault:  # a template may raise what it likes about the order of turns
        message = f"the base's chat template refuses these turns: {fault}"
        raise ApiError(400, message, param="messages", code="invalid_value") from fault
    _require_fitting(model, written, "messages" if tools is None else "tools")
    return Prompt(token_ids(tokenizer, written, special=False), text, tuple(turns))


def _conversation(model: "RoutedModel", messages: Sequence[Message], with_tools: bool) -> list[dict[str, Any]]:
    """Turns as chat templates take them."""
    names: dict[str, str] = {}  # of the functions that were called, by the call's id
    conversation: list[dict[str, Any]] = []
    for one in messages:
        turn: dict[str, Any] = {"role": "system" if one.role == "developer" else one.role, "content": one.text}
        if one.reasoning_content is not None:
            turn["reasoning_content"] = one.reasoning_content
        if one.tool_calls is not None:
            turn["tool_calls"] = [_call(call) for call in one.tool_calls]
            names |= {call.id: call.function.name for call in one.tool_calls}
        if one.tool_call_id is not None:
            if one.tool_call_id not in names:
                message = "a tool_call_id that no call before it has"
                raise ApiError(400, message, param="messages", code="invalid_value")
            turn |= {"tool_call_id": one.tool_call_id, "name": names[one.tool_call_id]}
        conversation.append(turn)
    if names and not dialect_of(model.tokenizer, model.prompt.template, with_tools).turns:
        message = "the chat template of this base knows no calls of tools"
        raise ApiError(400, message, param="messages", code="unsupported_value")
    return conversation


def _call(call: ToolCall) -> dict[str, Any]:
    """A call as chat templates take it: its arguments are no text."""
    try:
        arguments = parse_json(call.function.arguments.encode(), MOST_MEMBERS)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        message = f"the arguments of the call {call.id!r} are no JSON object"
        raise ApiError(400, message, param="messages", code="invalid_value")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def plain_prompts(model: "RoutedModel", prompts: Sequence[Any]) -> list[Prompt]:
    """Texts unchanged, or token ids. Raises `ApiError` for an empty prompt or an invalid token."""
    plain = []
    size = model.model.get_input_embeddings().weight.shape[0]
    for prompt in prompts:
        if isinstance(prompt, str):
            _require_fitting(model, prompt, "prompt")
            ids, text = model.prompt.model_copy(update={"kind": "raw"}).prompt_ids(model.tokenizer, prompt), prompt
        else:
            if any(not 0 <= token < size for token in prompt):
                raise ApiError(400, f"token ids of 0 to {size - 1}", param="prompt", code="invalid_value")
            ids, text = list(prompt), model.tokenizer.decode(prompt, skip_special_tokens=True)
        if not ids:
            raise ApiError(400, "a prompt with text is needed", param="prompt", code="invalid_value")
        plain.append(Prompt(ids, text))
    return plain


def longest_prompt(model: "RoutedModel", settings: ServeSettings) -> int | None:
    """Tokens of a prompt at most: the base's context, or what bounds one whose positions never end.

    That is an encoder's, such as T5's, which reads all of a prompt in one pass, in memory that grows with its square;
    None for a decoder without a context, which reads it piece by piece.
    """
    if model.encoder.context is not None or not model.model.config.is_encoder_decoder:
        return model.encoder.context
    length = model.tokenizer.model_max_length
    return settings.prompt_tokens or (length if length < _NO_LENGTH else LONGEST_PROMPT)


def require_room(model: "RoutedModel", settings: ServeSettings, prompt: Prompt, param: str) -> None:
    """Raise `ApiError` for a prompt that is longer than the base reads."""
    require_known(prompt.ids, model.model)
    most = longest_prompt(model, settings)
    if most is not None and len(prompt.ids) > most:
        message = f"{len(prompt.ids)} tokens of a prompt, where {most} is the most"
        raise ApiError(400, message, param=param, code="context_length_exceeded")


def room(
    model: "RoutedModel",
    settings: ServeSettings,
    prompt: Prompt,
    requested: int | None,
    packed: bool,
    fields: tuple[str, str],
) -> int:
    """The longest answer to a prompt: the requested length, or up to the default as far as there is room.

    `fields` are those of the prompt and of the length in the request. Raises `ApiError` for a prompt and answer that
    are longer than the context or the cache.
    """
    require_known(prompt.ids, model.model)
    if model.model.config.is_encoder_decoder:
        require_room(model, settings, prompt, fields[0])
    used = 0 if model.model.config.is_encoder_decoder else len(prompt.ids)
    limits = [limit for limit in (model.encoder.context, settings.cache_tokens if packed else None) if limit]
    limit = min(limits, default=None)
    tokens = settings.default_tokens if requested is None else requested
    if limit is None:
        return tokens
    if used + (1 if requested is None else requested) > limit:
        answer = "" if requested is None else f" and {requested} of an answer"
        message = f"{len(prompt.ids)} tokens of a prompt{answer}, where {limit} is the most together"
        raise ApiError(400, message, param=fields[used < limit], code="context_length_exceeded")
    return min(tokens, limit - used)
