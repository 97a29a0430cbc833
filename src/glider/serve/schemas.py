"""The requests' bodies. A field that is not here is refused by name; null is as good as absent."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from glider.serve.errors import absent

Role = Literal["system", "developer", "user", "assistant"]
ChatRole = Literal["system", "developer", "user", "assistant", "tool"]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
MOST_WEIGHT = 10.0  # of an expert: far larger ones give NaN, in the passes and caches that requests share
Weight = Annotated[float, Field(strict=True, ge=-MOST_WEIGHT, le=MOST_WEIGHT, allow_inf_nan=False)]
_FIRST = Field(fail_fast=True)  # one fault is told; a million of them would be made
MAX_PARTS = 1024  # of a message, and prompts of a request: the event loop would feel the reading of far more
_SHORT = Field(max_length=MAX_PARTS, fail_fast=True)
_SEVERAL = Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)
Texts = Annotated[list[StrictStr], _FIRST]
Ids = Annotated[list[StrictInt], Field(min_length=1, fail_fast=True)]
_Label = Annotated[str, Field(strict=True, max_length=64)]
_Note = Annotated[str, Field(strict=True, max_length=512)]
Metadata = Annotated[
    dict[_Label, _Note], Field(max_length=16, description="Notes of the client's. They change nothing.")
]
SafetyIdentifier = Annotated[
    str, Field(strict=True, max_length=64, description="Written into the log beside the request.")
]
PromptCacheKey = Annotated[
    str, Field(strict=True, description="It changes nothing: the cache finds what prompts share by itself.")
]
MAX_STOPS = 16
MAX_EXAMPLES = 16
LONGEST_DESCRIPTION = 10_000  # characters
LEAST_TEMPERATURE = 1e-6  # logits divided by less are beyond float32
LEAST_PENALTY = 0.01


def _divisor(value: float) -> float:
    if 0 < value < LEAST_TEMPERATURE:
        raise ValueError(f"0, or at least {LEAST_TEMPERATURE:g}")
    return value


Temperature = Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False), AfterValidator(_divisor)]


class Body(BaseModel):
    """The base of every body."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict) or None not in value.values():
            return value
        return {key: one for key, one in value.items() if one is not None}


class Part(Body):
    type: Literal["text"]
    text: StrictStr


class CalledFunction(Body):
    name: StrictStr
    arguments: StrictStr = Field(description="JSON of an object.")


class ToolCall(Body):
    """A call of an earlier turn, as an answer had it."""

    id: StrictStr
    type: Literal["function"]
    function: CalledFunction


class Message(Body):
    """One turn. Of other modalities and names nothing is known here."""

    role: ChatRole
    content: StrictStr | Annotated[list[Part], _SHORT] = ""
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, fail_fast=True)] | None = None
    tool_call_id: StrictStr | None = None
    reasoning_content: StrictStr | None = None

    @model_validator(mode="after")
    def _of_its_role(self) -> "Message":
        if self.role != "assistant" and (self.tool_calls is not None or self.reasoning_content is not None):
            raise ValueError("tool_calls and reasoning_content are the assistant's")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("the role tool, and no other, has a tool_call_id")
        if "content" not in self.model_fields_set and self.tool_calls is None:
            raise absent("content")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Steering(Body):
    """The field `glider`: what this request asks of the router."""

    verdict: Literal["route", "base"] | None = Field(
        default=None, description="Route whatever the verdict, or not at all."
    )
    experts: Texts | dict[str, Weight] | None = Field(
        default=None, description="Choose among these alone; or their weights, for every token the same."
    )
    exclude: Texts = Field(default=[], description="Experts to leave out.")
    description: StrictStr | None = Field(
        default=None, min_length=1, max_length=LONGEST_DESCRIPTION, description="One sentence that names the task."
    )
    examples: list[tuple[StrictStr, StrictStr]] = Field(
        default=[], max_length=MAX_EXAMPLES, fail_fast=True, description="Pairs of input and output."
    )
    trace: StrictBool = Field(default=False, description="Tell the weights of the experts, by token, layer and site.")


class StreamOptions(Body):
    include_usage: StrictBool = False
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: StrictBool = False


class PlainFormat(Body):
    type: Literal["text", "json_object"]


class JsonSchema(Body):
    """A schema that the answer keeps to, whatever `strict` says."""

    name: StrictStr = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: StrictStr | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]


class Sampling(Body):
    """How an answer is sampled; the fields that both APIs share."""

    model: StrictStr
    n: StrictInt = Field(default=1, ge=1, le=128)
    seed: StrictInt | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: StrictStr | Texts = []
    stop_token_ids: list[StrictInt] = Field(default=[], max_length=MAX_STOPS, fail_fast=True)
    ignore_eos: StrictBool = False
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Number | None = Field(default=None, gt=0, le=1)
    top_k: StrictInt | None = Field(default=None, ge=-1, description="0 and -1: all tokens.")
    min_p: Number | None = Field(default=None, ge=0, le=1)
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: Number | None = Field(default=None, ge=LEAST_PENALTY, le=10)
    logit_bias: dict[str, Annotated[float, Field(strict=True, ge=-100, le=100)]] = Field(default={}, max_length=1024)
    return_token_ids: StrictBool = False
    user: StrictStr | None = Field(default=None, description="Written into the log beside the request.")
    response_format: ResponseFormat | None = None
    glider: Steering = Steering()

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Function(Body):
    name: StrictStr = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of type object.")
    strict: StrictBool | None = None

    @model_validator(mode="after")
    def _of_an_object(self) -> "Function":
        if self.parameters is not None and self.parameters.get("type") != "object":
            raise ValueError("parameters are a JSON schema of type object")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The schema of its arguments; without parameters there are none."""
        if self.parameters is not None:
            return self.parameters
        return {"type": "object", "properties": {}, "additionalProperties": False}


class Tool(Body):
    type: Literal["function"]
    function: Function

    @property
    def rendered(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**function, "parameters": self.function.arguments}}


class FunctionName(Body):
    name: StrictStr


class NamedChoice(Body):
    type: Literal["function"]
    function: FunctionName


class ChatRequest(Sampling):
    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    max_tokens: StrictInt | None = Field(default=None, ge=1)
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1)
    logprobs: StrictBool = False
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: Annotated[list[Literal["text"]], _FIRST] | None = None
    metadata: Metadata = {}
    safety_identifier: SafetyIdentifier | None = None
    prompt_cache_key: PromptCacheKey | None = None


class CompletionRequest(Sampling):
    prompt: StrictStr | Ids | Annotated[list[StrictStr], _SEVERAL] | Annotated[list[Ids], _SEVERAL]
    max_tokens: StrictInt = Field(default=16, ge=0)
    logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    echo: StrictBool = False
    best_of: Literal[1] | None = None

    @property
    def prompts(self) -> list[Any]:
        """Each prompt, a text or token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


class TokenizeRequest(Body):
    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Annotated[list[Message], Field(max_length=4096, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] = []
    add_special_tokens: StrictBool = True
    add_generation_prompt: StrictBool = True
    return_token_strs: StrictBool = False


class DetokenizeRequest(Body):
    model: StrictStr | None = None
    tokens: Annotated[list[StrictInt], _FIRST]


class EmbeddingRequest(Body):
    model: StrictStr
    input: StrictStr | Annotated[Texts, Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(default=None, ge=1, description="The embedder's own number, and no other.")
    user: StrictStr | None = None


class RouteRequest(Body):
    """What would this prompt use? Nothing is generated."""

    model: StrictStr
    prompt: StrictStr | None = None
    messages: Annotated[list[Message], Field(max_length=4096, fail_fast=True)] | None = None
    glider: Steering = Steering()


class LoadRequest(Body):
    lora_name: StrictStr
    lora_path: StrictStr
    model: StrictStr | None = Field(default=None, description="The pool, where there are several.")
    expected_generation: StrictInt | None = None


class UnloadRequest(Body):
    lora_name: StrictStr
    model: StrictStr | None = None
    expected_generation: StrictInt | None = None


class ReloadRequest(Body):
    model: StrictStr | None = None
    expected_generation: StrictInt | None = None
