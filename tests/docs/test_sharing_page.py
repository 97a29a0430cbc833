"""Every command of docs/sharing.md runs, in its order, against the stand-in for the hub."""

from pathlib import Path
from typing import Any

import pytest

from glider.experts.pool import Pool
from glider.inference.base_model import load_base

from ..sharing.conftest import HubStandIn, hub  # noqa: F401
from .snippets import glide, lines, page

TYPED = "hf auth login"  # asks at the terminal; the stand-in's token is in HF_TOKEN, as the page says


@pytest.mark.filterwarnings("ignore:the files name the directory of the base model")  # a test's base has no hub id
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's, of its HTTP library
def test_the_page_runs(
    hub: HubStandIn,  # noqa: F811
    make_pool: Any,
    random_expert: Any,
    llama_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = make_pool(llama_directory, experts=1)
    for seed, place in enumerate(("my-expert", "elsewhere/tone"), start=1):
        random_expert(Path(place), load_base(str(llama_directory)), seed=seed)
    commands = lines(page("sharing.md"))
    assert commands.pop(0) == TYPED and len(commands) == 11
    for line in commands:
        line = line.replace("~", str(tmp_path)).replace("their-key.pub", str(tmp_path / ".glider-key.pub"))
        if "5d9f0932..." in line:
            line = line.replace("5d9f0932...", list(hub.repositories["someone/my-pool"].commits)[-1])
        glide(line, monkeypatch, capsys)
    assert hub.repositories["someone/my-expert"].private
    assert Pool.open(pool.path).names == Pool.open("pool-2").names == ["e0", "my-expert", "voice"]
    assert Pool.open("theirs", require_key=tmp_path / ".glider-key.pub").names == ["e0", "my-expert", "voice"]
