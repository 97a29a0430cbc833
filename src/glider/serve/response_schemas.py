"""The body of `/v1/responses`: items in, and the same question to the chat API."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag

from glider.serve.errors import ApiError
from glider.serve.schemas import (
    MAX_PARTS,
    Body,
    CalledFunction,
    ChatRequest,
    Function,
    FunctionName,
    JsonSchema,
    Message,
    Metadata,
    NamedChoice,
    Number,
    PlainFormat,
    PromptCacheKey,
    Role,
    SafetyIdentifier,
    Steering,
    Temperature,
    Tool,
    ToolCall,
)

_FIRST = Field(fail_fast=True)
Status = Literal["completed", "incomplete", "in_progress"]


class InputScore(Body):
    token: StrictStr
    bytes: Annotated[list[StrictInt], _FIRST] = []
    logprob: Number


class InputLogprob(InputScore):
    """Of a token of an earlier answer. It changes nothing: the text does."""

    top_logprobs: Annotated[list[InputScore], _FIRST] = []


class InputText(Body):
    type: Literal["input_text", "output_text"]
    text: StrictStr
    annotations: Annotated[list[Any], Field(max_length=0)] = []
    logprobs: Annotated[list[InputLogprob], _FIRST] = []


Content = StrictStr | Annotated[list[InputText], Field(max_length=MAX_PARTS, fail_fast=True)]


class InputItem(Body):
    """What all items have; an answer's item can be sent back as it came."""

    id: StrictStr | None = None
    status: Status | None = None


class InputMessage(InputItem):
    """A turn."""

    type: Literal["message"] = "message"
    role: Role
    content: Content


class InputCall(InputItem):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: StrictStr
    name: StrictStr
    arguments: StrictStr = Field(description="JSON of an object.")


class InputResult(InputItem):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: StrictStr
    output: Content


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: StrictStr


class InputReasoning(InputItem):
    """What an earlier answer set apart as reasoning; the item after it is the answer that it belongs to."""

    type: Literal["reasoning"]
    summary: Annotated[list[Any], Field(max_length=0)] = []
    content: Annotated[list[ReasoningText], Field(max_length=MAX_PARTS, fail_fast=True)] = []


def _kind(item: Any) -> Any:
    """What an item is; a turn need not say so."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputResult, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(_kind),
]


class NamedFormat(JsonSchema):
    """A schema's format as the responses API has it, on one level."""

    type: Literal["json_schema"]


class TextOptions(Body):
    format: Annotated[PlainFormat | NamedFormat, Field(discriminator="type")] | None = None

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The same in the form of the chat API."""
        if not isinstance(self.format, NamedFormat):
            return None if self.format is None else {"type": self.format.type}
        return {"type": "json_schema", "json_schema": self.format.model_dump(by_alias=True, exclude={"type"})}


class ObfuscationOptions(Body):
    include_obfuscation: Literal[False] | None = None


class NoReasoning(Body):
    """Settings of reasoning, of which there are none."""


class FunctionTool(Function):
    """A tool as the responses API has it, on one level."""

    type: Literal["function"]


class FunctionChoice(FunctionName):
    """A choice as the responses API has it, on one level."""

    type: Literal["function"]


class ResponsesRequest(Body):
    """Text and calls in, text and calls out; nothing is stored, so that there is nothing to go on from."""

    model: StrictStr
    input: StrictStr | Annotated[list[Item], Field(min_length=1, max_length=4096, fail_fast=True)]
    instructions: StrictStr | None = None
    max_output_tokens: StrictInt | None = Field(default=None, ge=1)
    temperature: Temperature | None = None
    top_p: Number | None = Field(default=None, gt=0, le=1)
    stream: StrictBool = False
    stream_options: ObfuscationOptions | None = None
    text: TextOptions | None = None
    metadata: Metadata = {}
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] = []
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=8, fail_fast=True)] = []
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: StrictStr | None = None
    safety_identifier: SafetyIdentifier | None = None
    prompt_cache_key: PromptCacheKey | None = None
    reasoning: NoReasoning | None = None
    glider: Steering = Steering()

    @property
    def chat(self) -> ChatRequest:
        """The same question to the chat API. Raises `ApiError` for reasoning that belongs to nothing, and for a number
        of likeliest tokens without log-probabilities."""
        if self.top_logprobs and not self.include:
            message = 'top_logprobs needs include: ["message.output_text.logprobs"]'
            raise ApiError(400, message, param="top_logprobs", code="invalid_value")
        turns = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        turns += [Message(role="user", content=self.input)] if isinstance(self.input, str) else _turns(self.input)
        choice = self.tool_choice
        if isinstance(choice, FunctionChoice):
            choice = NamedChoice(type="function", function=FunctionName(name=choice.name))
        return ChatRequest(
            model=self.model,
            messages=turns,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=bool(self.include),
            top_logprobs=self.top_logprobs if self.include else None,
            stream=self.stream,
            user=self.user,
            safety_identifier=self.safety_identifier,
            response_format=None if self.text is None else self.text.response_format,  # pyright: ignore
            tools=[_tool(one) for one in self.tools],
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
            glider=self.glider,
        )


def _tool(tool: FunctionTool) -> Tool:
    function = Function(**tool.model_dump(exclude={"type"}))
    return Tool(type="function", function=function)


def _turns(items: list[Any]) -> list[Message]:
    """Items as turns: reasoning, text and calls that follow one another are one turn of the assistant."""
    turns: list[Message] = []
    reasoning = ""
    for item in items:
        if isinstance(item, InputReasoning):
            reasoning += "".join(part.text for part in item.content)
            continue
        if reasoning and getattr(item, "role", "assistant" if isinstance(item, InputCall) else "") != "assistant":
            break
        if isinstance(item, InputCall) and turns and turns[-1].role == "assistant" and not reasoning:
            turns[-1].tool_calls = [*(turns[-1].tool_calls or []), _call(item)]
        elif isinstance(item, InputCall):
            turns.append(Message(role="assistant", tool_calls=[_call(item)], reasoning_content=reasoning or None))
        elif isinstance(item, InputResult):
            turns.append(Message(role="tool", tool_call_id=item.call_id, content=_text(item.output)))
        else:
            turns.append(Message(role=item.role, content=_text(item.content), reasoning_content=reasoning or None))
        reasoning = ""
    if reasoning:
        message = "reasoning that no message or call of the assistant follows"
        raise ApiError(400, message, param="input", code="invalid_value")
    return turns


def _call(item: InputCall) -> ToolCall:
    return ToolCall(id=item.call_id, type="function", function=CalledFunction(name=item.name, arguments=item.arguments))


def _text(content: str | list[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
