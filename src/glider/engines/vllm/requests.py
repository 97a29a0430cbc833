"""Where requests come in: the one place below every route of vLLM's at which a request's condition is made.

`InputProcessor.process_inputs` of vLLM's is called for every request, of a server and offline, and knows tokens. Others
know more, and write it down for it: a renderer's `render_chat` the turns of a chat, `_maybe_get_adapters` of a serving
class the model's name and the field `glider`, `get_prompt` of a beam which requests are steps of one search.
"""

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

from glider.engines.vllm.front import Front, FrontRequest, Resolution, chat_text, turns_in
from glider.engines.vllm.metrics import metrics
from glider.engines.vllm.replies import note, steering_beside
from glider.engines.vllm.rows import ARGUMENT, Row
from glider.engines.vllm.settings import PluginSettings
from glider.errors import GliderError
from glider.inference.conversation import Turn
from glider.printable import printable
from glider.serve.errors import LONGEST, ApiError

TURNS = "glider_turns"  # of a rendered chat
DECIDED = "glider_decided"  # of the prompts of one beam search: an empty list, or the resolution of all
FRONT = "glider_front"  # of an input processor
_WRAPPED = "__glider_wrapped__"
_BESIDE_TEXT = ("prompt_embeds", "multi_modal_data", "multi_modal_uuids")  # of a prompt that vLLM has not read yet
_FIRST_NUMBER = 1 << 30  # of the experts as adapters, in an int32: the server's own have 1, 2, ...


def install() -> None:
    """Wrap what requests go through, once in a process; engines without a pool are served as before."""
    from vllm.entrypoints.generate.beam_search.utils import (  # pyright: ignore[reportMissingImports]
        BeamSearchSequence,
    )
    from vllm.entrypoints.serve.engine.serving import BaseServing  # pyright: ignore[reportMissingImports]
    from vllm.renderers.base import BaseRenderer  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]

    wrap(InputProcessor, "process_inputs", _process_inputs)
    wrap(BeamSearchSequence, "get_prompt", _get_prompt)
    wrap(BaseRenderer, "render_chat", _render_chat)
    wrap(BaseRenderer, "render_chat_async", _render_chat_async)
    wrap(BaseServing, "_maybe_get_adapters", _maybe_get_adapters)


def wrap(owner: type, name: str, make: Callable[[Callable], Callable]) -> None:
    """Replace a function of a class by one around it; a second time does nothing."""
    before = getattr(owner, name)
    if not hasattr(before, _WRAPPED):
        after = functools.wraps(before)(make(before))
        setattr(after, _WRAPPED, before)
        setattr(owner, name, after)


def _process_inputs(before: Callable) -> Callable:
    signature = inspect.signature(before)

    def process_inputs(self: Any, *args: Any, **more: Any) -> Any:
        front: Front | None = getattr(self, FRONT, None)
        if front is None:
            return before(self, *args, **more)
        bound = signature.bind(self, *args, **more)
        bound.arguments.update(_decided(front, self.tokenizer, bound.arguments))
        return before(*bound.args, **bound.kwargs)

    return process_inputs


def _decided(front: Front, tokenizer: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Prompt, parameters and adapter of a request as its condition makes them."""
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import SamplingParams  # pyright: ignore[reportMissingImports]

    prompt, params, adapter = _as_dict(arguments["prompt"]), arguments["params"], arguments.get("lora_request")
    if not isinstance(params, SamplingParams):
        raise VLLMValidationError("a pool answers by text; pooling and embeddings are not served")
    if arguments.get("resumable"):  # each piece would be treated by itself, and cached as the first one is
        raise VLLMValidationError("a pool is asked whole texts; one that comes in pieces is not served")
    extra = dict(params.extra_args or {})
    preset = extra.pop(ARGUMENT, None)
    if preset is not None and not isinstance(preset, Preset):
        raise VLLMValidationError(
            f"{ARGUMENT} is not the client's to set; use the field glider", parameter="vllm_xargs"
        )
    began, decided = time.perf_counter(), prompt.pop(DECIDED, None)
    try:
        if decided:
            resolution = decided[0]
        elif preset is not None:
            resolution = preset.resolve(front, prompt.get("cache_salt"))
        elif adapter is not None and not hasattr(adapter, "glider_way"):
            prompt.pop(TURNS, None)
            return {"prompt": prompt}  # an adapter of the server's own: it alone answers
        else:
            resolution = front.choose(_front_request(front, tokenizer, prompt, adapter))
    except (ApiError, GliderError) as fault:
        raise _refusal(fault) from fault
    if not decided:
        note(front, resolution, arguments["request_id"])
        metrics().count(front.settings.name, resolution.verdict, time.perf_counter() - began)
    if decided is not None:
        decided[:] = [resolution]
    prompt.pop(TURNS, None)
    params = params.clone()
    if resolution.row is not None:
        extra[ARGUMENT] = resolution.row.encoded
    params.extra_args = extra or None
    prompt.pop("cache_salt", None)
    if resolution.salt is not None:
        prompt["cache_salt"] = resolution.salt
    return {"prompt": prompt, "params": params, "lora_request": _adapter(front, resolution.expert)}


def _refusal(fault: Exception) -> Exception:
    """vLLM's error for a request that cannot be answered: a 404 or a 400, whatever a client wrote into its message."""
    from vllm.exceptions import VLLMNotFoundError, VLLMValidationError  # pyright: ignore[reportMissingImports]

    kind = VLLMNotFoundError if isinstance(fault, ApiError) and fault.status == 404 else VLLMValidationError
    return kind(printable(str(fault), LONGEST))


def _as_dict(prompt: Any) -> dict[str, Any]:
    """A prompt of text or tokens as a dictionary of its own. Raises vLLM's error for one of another kind."""
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, list) and all(isinstance(one, int) for one in prompt):
        return {"prompt_token_ids": prompt}
    known = isinstance(prompt, dict) and prompt.get("type", "token") == "token"
    if isinstance(prompt, dict) and any(prompt.get(name) is not None for name in _BESIDE_TEXT):
        known = False
    if not known or not {"prompt", "prompt_token_ids"} & set(prompt):
        raise VLLMValidationError("a routed pool answers text: a prompt, token ids or the turns of a chat")
    return dict(prompt)


def _front_request(front: Front, tokenizer: Any, prompt: dict[str, Any], adapter: Any) -> FrontRequest:
    """What a request asks, from what was written down on its way here."""
    way = front.way(None) if adapter is None else adapter.glider_way
    steering = front.steering(None if adapter is None else adapter.glider_steering)
    turns: tuple[Turn, ...] = tuple(prompt.pop(TURNS, ()))
    ids = prompt.get("prompt_token_ids") or ()
    if turns:
        text = chat_text(turns)
    elif isinstance(prompt.get("prompt"), str):
        text = front.prompt.input_in(tokenizer, prompt["prompt"])
    else:
        text = front.text_of(ids, tokenizer)
    return FrontRequest(way, text, ids, turns, steering, prompt.get("cache_salt"))


def _adapter(front: Front, expert: str | None) -> Any:
    """An expert of the pool as an adapter of vLLM's; its directory is one."""
    if expert is None:
        return None
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    record = next(record for record in front.pool.index.experts if record.name == expert)
    number = _FIRST_NUMBER + front.pool.names.index(expert)
    name = f"{front.settings.digest[:16]}/{expert}"
    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str((front.pool.path / record.home).resolve()))


class Preset:
    """A row that this very process made; no client can send one, who can send JSON alone."""

    def __init__(self, row: Row | None, verdict: str | None, router: str | None = None, expert: str | None = None):
        self.row, self.verdict, self.router, self.expert = row, verdict, router, expert

    def resolve(self, front: Front, client: str | None) -> Resolution:
        """What it comes to."""
        if self.expert is not None:
            return Resolution(self.verdict, None, self.expert, client)
        return front.by_row(self.row, self.verdict, client, self.router)


def _render_chat(before: Callable) -> Callable:
    def render_chat(self: Any, conversations: Any, *args: Any, **more: Any) -> Any:
        result = before(self, conversations, *args, **more)
        return _with_turns(self, result)

    return render_chat


def _render_chat_async(before: Callable) -> Callable:
    async def render_chat_async(self: Any, conversations: Any, *args: Any, **more: Any) -> Any:
        result = await before(self, conversations, *args, **more)
        return _with_turns(self, result)

    return render_chat_async


def _get_prompt(before: Callable) -> Callable:
    """Of a beam search every step of every beam is a request, with what is written so far as its prompt."""

    def get_prompt(self: Any) -> Any:
        prompt = before(self)
        prompt[DECIDED] = self.orig_prompt.setdefault(DECIDED, [])
        if TURNS in self.orig_prompt:
            prompt[TURNS] = self.orig_prompt[TURNS]
        return prompt

    return get_prompt


def _with_turns(renderer: Any, result: Any) -> Any:
    if PluginSettings.serves(renderer.config):
        conversations, prompts = result
        for conversation, prompt in zip(conversations, prompts, strict=True):
            prompt[TURNS] = turns_in(conversation)
    return result


def _maybe_get_adapters(before: Callable) -> Callable:
    def maybe_get_adapters(self: Any, request: Any, *args: Any, **more: Any) -> Any:
        adapter = before(self, request, *args, **more)
        processor = getattr(self.models, "input_processor", None)
        front: Front | None = getattr(processor, FRONT, None)
        if front is None:
            return adapter
        from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

        steering = (getattr(request, "model_extra", None) or {}).get("glider")
        if steering is None:
            steering = steering_beside()
        if adapter is not None:
            if steering is not None:
                message = "glider steers the pool, which decides nothing beside an adapter of the server's own"
                raise VLLMValidationError(message, parameter="glider")
            return adapter
        try:
            way = front.way(request.model)
            front.steering(steering)
        except ApiError as fault:
            raise _refusal(fault) from fault
        return _named(request.model or front.settings.name, way, steering)

    return maybe_get_adapters


@functools.cache
def _named_class() -> type:
    """A request for an adapter that says how a model's name is answered. It goes no further than `process_inputs`."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    class Named(LoRARequest, kw_only=True):  # pyright: ignore
        glider_way: Any = None
        glider_steering: Any = None

    return Named


def _named(name: str, way: Any, steering: Any) -> Any:
    return _named_class()(lora_name=name, lora_int_id=1, lora_path="glider:", glider_way=way, glider_steering=steering)
