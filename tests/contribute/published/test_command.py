"""`glider expert import-official`."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from glider.cli.import_official import import_official
from glider.errors import GliderError
from glider.experts.pool import Pool

from .checkpoints import NAMES, Tensors, left_behind, save_phatgoose


@pytest.fixture
def command() -> Callable[..., Any]:
    """`command(*arguments)` runs the command by itself; a `GliderError` comes through."""
    app = typer.Typer()
    app.command()(import_official)

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, GliderError):
            raise result.exception
        return result

    return run


def test_command(command: Callable[..., Any], experts: list[Tensors], t5_directory: Path, tmp_path: Path) -> None:
    path = save_phatgoose(experts, tmp_path / "best.pt")
    torch.save({name: torch.randn(768) for name in NAMES}, tmp_path / "nomic.pt")
    (tmp_path / "says.json").write_text(json.dumps({"p3yelp": "Rate a review."}))
    (tmp_path / "order.txt").write_text("\n".join(NAMES) + "\n")
    options = ["--base", t5_directory, "--embeddings", tmp_path / "nomic.pt", "--descriptions", tmp_path / "says.json"]
    options += ["--dtype", "bfloat16", "--licence", "MIT", "--without", "p3agnews"]
    for number, order in enumerate((",".join(NAMES), tmp_path / "order.txt")):
        pool = tmp_path / f"pool{number}"
        ran = command(path, "--pool", pool, "--order", order, *options)
        assert ran.exit_code == 0, ran.output
        assert "2 experts" in ran.output and "trained gates" in ran.output
        opened = Pool.open(pool)
        assert opened.names == ["p3xsum", "p3yelp"]
        assert opened["p3yelp"].card.description == "Rate a review." and opened["p3yelp"].card.licence == "MIT"
        assert opened["p3yelp"].factors(opened.sites[0])[0].dtype == torch.bfloat16


def test_command_refuses(command: Callable[..., Any], experts: list[Tensors], t5_directory: Path, tmp_path: Path):
    path, pool = save_phatgoose(experts, tmp_path / "best.pt"), tmp_path / "pool"
    for arguments, message in (
        ([path, "--pool", pool], "--order"),
        ([path, "--pool", tmp_path], "existing"),
        ([path, "--pool", pool, "--order", ",".join(NAMES), "--descriptions", path], "JSON"),
        ([path, "--pool", pool, "--order", ",".join(NAMES), "--descriptions", tmp_path / "no"], "no such file"),
        ([path, "--pool", pool, "--order", path], "one name a line"),  # no text: was a traceback
    ):
        with pytest.raises(GliderError, match=message):
            command(*arguments, "--base", t5_directory)
    assert left_behind(tmp_path, "best.pt") == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory of a part of a run is Linux's")
def test_many_experts_need_the_memory_of_one(tmp_path: Path) -> None:
    """Peak memory of importing two experts of 32 MB, and of six from one file: less than half of one more.

    Not by `getrusage`, whose peak begins with that of the process that started this one.
    """
    script = """
        import re, sys
        from pathlib import Path
        import peft, torch
        from glider.experts.base_identity import BaseIdentity
        from glider.contribute.published_format import open_checkpoint
        from glider.contribute.published_import import OfficialBase, import_checkpoint

        here, sites = Path(sys.argv[1]), ("encoder.a", "encoder.b")
        base = OfficialBase(BaseIdentity(model_id="m", config_hash="c", weight_hashes={}), torch.ones(2, 2),
                            {site: (4096, 4096) for site in sites})

        def memory(field):
            return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

        def growth(count):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is used now
            before = memory("VmRSS")
            names = [f"e{i}" for i in range(count)]
            import_checkpoint(open_checkpoint(here / f"{count}.pt", names), here / f"pool{count}", base)
            return memory("VmHWM") - before

        growth(1)  # whatever is loaded or kept once
        print(growth(2), growth(6))
    """
    for count in (1, 2, 6):
        tensors = {}
        for number in range(count):
            for site in ("encoder.a", "encoder.b"):
                prefix = f"{site}._addons."
                tensors[f"{prefix}expert_lora.layer1__{number}"] = torch.randn(4096, 500)
                tensors[f"{prefix}expert_lora.layer2__{number}"] = torch.randn(500, 4096)
                tensors[f"{prefix}router.expert_embeddings__{number}"] = torch.randn(4096)
        torch.save(tensors, tmp_path / f"{count}.pt")
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    two, six = map(float, subprocess.check_output(command, text=True).split())
    assert six < two + 16, (two, six)
    assert six < 4 * 32, (two, six)
