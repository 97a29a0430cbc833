"""Grammars that answers keep to: checked apart, compiled once, one matcher for each answer."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glider.printable import printable
from glider.serve import grammar_child
from glider.serve.errors import ApiError
from glider.serve.finite_schemas import endless_places

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel

log = logging.getLogger("glider.serve")
LONGEST_SCHEMA = 64 * 1024  # bytes of JSON, of all schemas of a request
DEEPEST_SCHEMA = 32
_COMPILED = 64  # grammars that are kept
_AT_ONCE = 2
_WAITING = 16  # requests whose grammars are being compiled, or wait for that
_PATIENCE = 60.0  # seconds; what a machine under load needs to start a process, beside the child's own limits


@dataclass(frozen=True)
class Schema:
    """A JSON schema as text, and the request's field that it came in."""

    text: str
    param: str

    @classmethod
    def of(cls, value: dict[str, Any], param: str) -> "Schema":
        """Raises `ApiError` for one that is too deep, or that sets options of the compiler."""
        if "x-guidance" in value:
            raise _unfit("x-guidance is not taken", param)
        if _depth(value) > DEEPEST_SCHEMA:
            raise _unfit(f"deeper than {DEEPEST_SCHEMA}", param)
        return cls(json.dumps(value, ensure_ascii=False), param)


@dataclass(frozen=True)
class Grammar:
    """What an answer must be: a grammar in llguidance's form, and the schemas in it.

    `json` says that the answer as a whole is JSON, `calls` that it has calls of tools. `param` is the field that asked
    for it.
    """

    text: str
    schemas: tuple[Schema, ...]
    param: str
    json: bool = False
    calls: bool = False

    @classmethod
    def of_schema(cls, schema: Schema) -> "Grammar":
        """Answers that are JSON of this schema."""
        from llguidance import LLMatcher

        try:
            text = LLMatcher.grammar_from_json_schema(schema.text, overrides=grammar_child.SPACING)
        except ValueError as fault:
            raise _unfit(str(fault), schema.param) from fault
        return cls(text, (schema,), schema.param, json=True)


class Grammars:
    """Compiles the grammars of requests for one base."""

    def __init__(self, model: "RoutedModel"):
        self._model = model
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()  # of these two
        self._workers = ThreadPoolExecutor(_AT_ONCE, "glider-grammars")
        self._begun: set[Future[Any]] = set()

    async def matcher(self, grammar: Grammar) -> Any:
        """A matcher (llguidance's) at the start of the grammar, to be copied for each answer. Raises `ApiError`."""
        if len(self._begun) >= _WAITING:
            raise ApiError(429, "many grammars are being compiled", code="rate_limit_exceeded", retry=2)
        done = self._workers.submit(self.compile, grammar)
        self._begun.add(done)
        done.add_done_callback(self._begun.discard)
        return await asyncio.wrap_future(done)

    @property
    def spelling(self) -> Any:
        """The base's tokens by their bytes (llguidance's table); None where they cannot be read."""
        try:
            return self._tokens("response_format")
        except ApiError:
            return None

    def compile(self, grammar: Grammar) -> Any:
        """As `matcher`, in this thread."""
        with self._lock:
            if grammar.text in self._compiled:
                self._compiled.move_to_end(grammar.text)
                return self._compiled[grammar.text]
        size = sum(len(schema.text.encode()) for schema in grammar.schemas)
        if size > LONGEST_SCHEMA:
            raise _unfit(f"{size} bytes, where {LONGEST_SCHEMA} is the most", grammar.param)
        tokenizer = self._tokens(grammar.param)
        check(grammar.schemas, grammar.param)
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**grammar_child.LIMITS)
        matcher = LLMatcher(tokenizer, grammar.text, log_level=0, limits=limits)
        mask = b"" if matcher.is_error() else matcher.deep_copy().compute_bitmask()
        if matcher.is_error():
            raise _unfit(matcher.get_error().split("\n<non-verbose/>")[0], grammar.param)
        if not any(mask):
            raise _unfit("the tokens of this base cannot write it", grammar.param)
        with self._lock:
            self._compiled[grammar.text] = matcher
            while len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        return matcher

    def close(self) -> None:
        """Compile nothing more."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _tokens(self, param: str) -> Any:
        """The base's tokens, read once."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _read(self._model, param)
            return self._tokenizer


def check(schemas: Sequence[Schema], param: str) -> None:
    """Try schemas in another process; `ApiError` for what cannot be kept, or takes more than it may."""
    if not schemas:
        return
    texts = json.dumps([schema.text for schema in schemas])
    command = [sys.executable, "-I", str(Path(grammar_child.__file__))]
    try:
        done = subprocess.run(command, input=texts.encode(), capture_output=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise ApiError(503, "no time to compile this schema", param=param, code="timeout", retry=5) from None
    lines = done.stdout.decode().splitlines()
    for schema, line in zip(schemas, lines, strict=False):
        if (fault := json.loads(line)) is not None:
            raise _unfit(fault, schema.param)
    if done.returncode > 0:
        log.error("the check of a schema failed: %s", printable(done.stderr.decode(errors="replace"), 2000))
        raise ApiError(500, "schemas cannot be checked here; the server's log says why", code="internal_error")
    if done.returncode < 0 or len(lines) < len(schemas):
        name = signal.Signals(-done.returncode).name if done.returncode else "no answer"
        limit = f"{grammar_child.CPU_SECONDS} s, {grammar_child.MEMORY >> 20} MiB"
        raise _unfit(f"it takes more time, memory or depth than it may ({limit}; {name})", schemas[len(lines)].param)
    for schema in schemas:
        if (places := endless_places(json.loads(schema.text))) is not None:
            raise _unfit("no finite JSON fits it: {} needs another of itself, by {}".format(*places), schema.param)


def _read(model: "RoutedModel", param: str) -> Any:
    """The base's tokens in llguidance's form."""
    from llguidance.hf import from_tokenizer

    ends = sorted(model.encoder.ends())
    output: Any = model.model.get_output_embeddings()
    if not ends:
        raise ApiError(400, "this base has no end token", param=param, code="unsupported_value")
    size = max(len(model.tokenizer), output.weight.shape[0])
    try:
        return from_tokenizer(model.tokenizer, n_vocab=size, eos_token=ends)
    except ValueError as fault:  # no tokenizer of the tokenizers library, or one whose bytes cannot be told
        message = f"the tokenizer of this base cannot be kept to a form: {printable(str(fault))}"
        raise ApiError(400, message, param=param, code="unsupported_value") from fault


def _unfit(fault: str, param: str) -> ApiError:
    message = f"this schema cannot be kept: {printable(fault)}"
    return ApiError(400, message, param=param, code="invalid_json_schema")


def _depth(value: Any) -> int:
    depth, layer = 0, [value]
    while layer:
        depth += 1
        layer = [
            below
            for one in layer
            if isinstance(one, dict | list)
            for below in (one.values() if isinstance(one, dict) else one)
        ]
    return depth
