"""The replies' bodies, as `/openapi.json` describes them; the routes write them, and a test compares."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """A reply has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Reply):
    """What OpenAI's clients read of a fault."""

    error: ErrorBody


class Trace(Reply):
    """Weights of the experts: `tokens` by layer, `heatmap` by site."""

    experts: list[str]
    layers: list[str]
    tokens: list[dict[str, Any]]
    sites: list[str]
    heatmap: list[list[float]]


class Routing(Reply):
    """The field `glider` of an answer."""

    verdict: str | None
    alpha: float | None
    experts: dict[str, float] | None
    scores: dict[str, float]
    generation: int
    fault: str = ""
    trace: Trace | None = None


class PromptDetails(Reply):
    cached_tokens: int


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CalledFunction(Reply):
    name: str
    arguments: str


class ToolCall(Reply):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Reply):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(Reply):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] = []


class Chat(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    glider: Routing


class TokenScore(Reply):
    token: str
    bytes: list[int]
    logprob: float


class OutputLogprob(TokenScore):
    top_logprobs: list[TokenScore]


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[OutputLogprob]


class OutputMessage(Reply):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete", "in_progress"]
    content: list[OutputText]


class OutputCall(Reply):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete", "in_progress"]


class ReasoningText(Reply):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Reply):
    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    status: Literal["completed", "incomplete", "in_progress"]
    content: list[ReasoningText]


class InputDetails(Reply):
    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Reply):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Response(Reply):
    """Of the responses API."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete", "in_progress"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    output: list[OutputMessage | OutputCall | OutputReasoning]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    safety_identifier: str | None
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Literal["none", "auto", "required"] | dict[str, str]
    tools: list[Any]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    glider: Routing | None = None


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = []


class Completion(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    glider: Routing


class Tokens(Reply):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Text(Reply):
    prompt: str


class Embedding(Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Reply):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Status(Reply):
    status: str


class Version(Reply):
    version: str


class Load(Reply):
    server_load: int


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    kind: Literal["pool", "expert", "adapter", "base", "router"]
    max_model_len: int | None
    generation: int = 0


class Models(Reply):
    object: Literal["list"]
    data: list[ModelCard]


class TaskGain(Reply):
    """Mean scores, between 0 and 1, of the same rows of an expert's own task: by the base, and by the expert alone."""

    metric: str
    rows: int
    base: float
    alone: float


class ExpertCard(Reply):
    name: str
    model: str | None
    task: str | None = None
    description: str | None = None
    licence: str | None = None
    metrics: dict[str, float] = {}
    gain: TaskGain | None = None


class AdapterName(Reply):
    name: str
    model: str


class PoolCard(Reply):
    id: str
    base: str
    generation: int
    router: str
    signal: str | None
    threshold: float | None
    allow_changes: bool
    experts: list[ExpertCard]
    adapters: list[AdapterName]


class PoolCards(Reply):
    object: Literal["list"]
    data: list[PoolCard]


class Route(Reply):
    """What a prompt would use."""

    object: Literal["route"]
    model: str
    verdict: str | None
    alpha: float | None
    experts: dict[str, float]
    scores: dict[str, float]
    generation: int
    description: str | None
    fault: str | None
    tokens: int
    trace: Trace | None = None


class Reloaded(Reply):
    object: Literal["pool"]
    id: str
    generation: int
    experts: list[str]


class Loaded(Reply):
    object: Literal["adapter"]
    id: str
    routed: bool
    generation: int
    message: str


class Unloaded(Reply):
    object: Literal["adapter"]
    id: str
    generation: int


FAULTS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "A request that is refused; `param` names the field"},
    "5XX": {"model": Error, "description": "A request that failed here"},
}


def described(reply: type[Reply], *, streams: bool = False, **others: type[Reply]) -> dict[str, Any]:
    """What a route is declared with, so that the schema has its reply; `others` by status, as `s503`."""
    whole: dict[str, Any] = {"model": reply}
    if streams:
        whole["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    more = {int(status[1:]): {"model": other} for status, other in others.items()}
    return {"response_model": None, "responses": {200: whole, **more}}
