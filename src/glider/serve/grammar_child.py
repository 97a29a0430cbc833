"""Tries JSON schemas in a process of its own, which they may hang, fill or crash (a compiler's recursion does).

It is run as a program that imports nothing of glider, with schemas in (a list of JSON texts) and a line for each out:
what is wrong with it, or nothing. The server compiles what passed.
"""

import json
import random
import resource
import sys
import threading
from typing import Any

CPU_SECONDS = 2  # for all schemas of a request; ordinary ones take milliseconds
MEMORY = 1 << 30  # bytes of address space beside what the process has at the start
STACK = 1 << 20  # bytes; the server's threads have more
STEPS = 40  # tokens of one byte that are written by each schema
LIMITS: dict[str, Any] = {  # of llguidance, for one grammar and for each of its steps
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
SPACING: Any = {  # between the parts of JSON: one space or line, not as many as a model likes to write
    "whitespace_pattern": r"( |\n {0,8})?",
    "lenient": False,
    "coerce_one_of": False,
}


def fault_of(schema: str, tokenizer: Any) -> str | None:
    """Why no JSON can be written by a schema; None where some can."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=SPACING)
    except ValueError as fault:
        return str(fault)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    draw = random.Random(0)
    for step in range(STEPS):
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            fault = matcher.get_error().split("\n<non-verbose/>")[0]
            return "no JSON fits it" if fault.startswith("NoExtension") else fault
        tokens = [token for token in range(256) if mask[token // 8] >> (token % 8) & 1]
        if not tokens:
            return "no JSON fits it" if step == 0 else None
        matcher.consume_token(draw.choice(tokens))
    return None


def main() -> None:
    """Read schemas, and tell what is wrong with each."""
    from llguidance import LLTokenizer

    schemas = json.load(sys.stdin)
    tokenizer = LLTokenizer("byte")
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as pages:  # noqa: PTH123 (nothing more is imported)
            used = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for schema in schemas:
        sys.stdout.write(json.dumps(fault_of(schema, tokenizer)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    threading.stack_size(STACK)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
