"""What is public says how it is used."""

import inspect

import pytest

import glider


@pytest.mark.parametrize("name", [name for name in glider.__all__ if name != "__version__"])
def test_a_public_name_lists_its_arguments_and_what_it_raises(name: str):
    value = getattr(glider, name)
    documented = inspect.getdoc(value if inspect.isroutine(value) or inspect.isclass(value) else type(value)) or ""
    arguments = (
        [one for one in inspect.signature(value).parameters if not one.startswith("_")] if callable(value) else []
    )
    if name not in ("TrainConfig",):  # its fields carry their own descriptions
        assert not arguments or "Arguments:" in documented, name
    data = name in ("Answer", "Trace", "GliderError", "PromptFormat")  # nothing can go wrong with them
    assert data or "Raises" in documented, name
    if inspect.isfunction(value):
        assert "Returns:" in documented, name
