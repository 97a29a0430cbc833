"""Guessed tokens under a routed pool. The last file with an engine in this process: what guesses by n-grams loads
llvmlite, beside which vLLM 0.32 cannot start a further one."""

import pytest

from glider.inference.model import RoutedModel

from .conftest import needs_vllm, opened
from .requests_of_three_kinds import ask, counted, rows_of, tokens_of

pytestmark = [*needs_vllm, pytest.mark.slow]


def test_ngram_speculation(library: RoutedModel, wanted: list) -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    engine = {"speculative_config": speculative, "disable_log_stats": False}
    with opened(abstain=False, engine=engine) as model:
        assert tokens_of(ask(model, rows_of(library))) == wanted
        assert counted(model.llm, "vllm:spec_decode_num_accepted_tokens") > 0
