"""What docs/vllm.md hands to `vllm serve` is made without vLLM; tests/engines runs the rest where that is installed."""

import json
import re

import pytest

from .snippets import glide, lines, page


def test_the_arguments_of_the_page_are_printed(
    pool_with_profiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = pool_with_profiles(experts=2)
    asked = [inside for line in lines(page("vllm.md")) for inside in re.findall(r"\$\((.*?)\)", line)]
    assert [line.split()[2] for line in asked] == ["POOL", "POOL", "demo"]
    glide(f"glider pool calibrate {pool.path}", monkeypatch, capsys)
    modes = []
    for line in asked:
        words = glide(line.replace("POOL", str(pool.path)), monkeypatch, capsys).split()
        modes.append(json.loads(words[words.index("--additional-config") + 1])["glider"]["mode"])
        assert ("--enable-lora" in words) == (modes[-1] == "select")
    assert modes == ["select", "route", "select"]


def test_the_guide_shows_commands_of_the_page() -> None:
    shown = lines(page("guides/vllm.md"))
    assert len(shown) == 6 and set(shown) <= set(lines(page("vllm.md")))
