"""Families of models, from the import of an adapter to streaming: each is right, or refused by name."""

import pytest

from .sweep import Result, families, sweep, table

# of every kind of attention, cache, position and layer one that builds in seconds; the module has all of them
CHOSEN = (
    *("llama", "qwen3", "gemma2", "phi3", "gpt2", "gptj", "falcon", "bloom", "opt", "mpt", "mamba", "lfm2"),
    *("mixtral", "t5", "bart", "mbart", "smolvlm", "aria"),
)


@pytest.mark.slow
@pytest.mark.parametrize("family", CHOSEN)
def test_a_family_is_right_or_refused_by_name(family: str) -> None:
    for kind in [kind for name, kind in families() if name == family]:
        result = sweep(family, kind)
        assert result.checks, result.note
        assert result.wrong == []


def test_the_table_names_what_was_refused() -> None:
    result = Result("some", "causal", {"import": "yes", "packed": "refused"}, "wanted a; got b. c.")
    assert "| some | causal | yes |  |  |  |  | refused |  | wanted a; got b. c. |" in table([result])
