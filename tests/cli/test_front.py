"""The first minutes with the command line: asking what is there, completing words, saying what takes long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glider.cli.main import build
from glider.contribute.build import PoolPlan
from glider.demo.base import BASE_ID, converted_place
from glider.experts.gains import Gain, read_gains, store_gains
from glider.experts.pool import Pool
from glider.inference.base_model import locate
from glider.progress import RESUMES, Bars
from glider.terminal import be_quiet


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters and rows for one of them and for another task, in the working directory."""
    for name in ("tone", "trivia"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        settings = {"base_model_name_or_path": "someone/small", "peft_type": "LORA"}
        (tmp_path / "adapters" / name / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "rows").mkdir()
    for name in ("tone.jsonl", "news.csv"):
        (tmp_path / "rows" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_plan_of_what_is_there_and_says_the_next_command(glider, adapters: Path) -> None:
    code, out, err = glider("init", "--adapter", "adapters", "--data", "rows", "--pool", "mine")
    assert code == 0, err
    plan = PoolPlan.read(adapters / "pool.yaml")
    assert plan.base == "someone/small"
    told = {expert.name: (expert.adapter, None if expert.data is None else str(expert.data)) for expert in plan.experts}
    assert told == {
        "tone": ("adapters/tone", "rows/tone.jsonl"),
        "trivia": ("adapters/trivia", None),
        "news": (None, "rows/news.csv"),
    }
    assert (
        "next: glider pool build pool.yaml --out mine" in out
        and "without an adapter of their name, so experts to be trained: news\n" in out
        and "without gates: trivia" in out
        and "--router arrow" in out
    )


def test_adapters_of_the_embedded_base_are_planned_with_its_short_name(glider, adapters: Path, edit_json) -> None:
    """They name its whole id, which no hub has, or its place in a cache, which others have elsewhere."""
    for name, base in (("tone", BASE_ID), ("trivia", str(converted_place()))):
        edit_json(adapters / "adapters" / name / "adapter_config.json", base_model_name_or_path=base)
    assert glider("init", "--adapter", "adapters")[0] == 0
    assert PoolPlan.read(adapters / "pool.yaml").base == "smollm2-135m"


def test_the_embedded_base_is_found_by_its_id_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("glider.demo.base.converted_base", lambda: tmp_path)
    assert locate(BASE_ID) == locate("smollm2-135m") == (str(tmp_path), BASE_ID)


def test_init_asks_on_a_terminal_for_what_no_option_says(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    import glider.cli.init as command

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(command, "sys", type("System", (), {"stdin": Terminal()}))
    ran = CliRunner().invoke(build("init"), ["init"], input="adapters/tone\nrows/tone.jsonl\nother/base\n")
    assert ran.exit_code == 0, ran.output
    plan = yaml.safe_load((adapters / "pool.yaml").read_text())
    data = {"name": "tone", "adapter": "adapters/tone", "data": "rows/tone.jsonl"}
    assert plan == {"base": "other/base", "experts": [data]}


@pytest.mark.parametrize("noun", ["expert", "pool", "report", "cache"])
def test_no_line_of_help_is_cut(glider, noun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = glider(noun, "--help")
    assert code == 0 and "Commands:" in out and "..." not in out.split("Commands:")[1]


def test_init_asks_nothing_beside_options(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asked for the base that an option gave, and took the next command that was pasted for the answer."""
    from typer.testing import CliRunner

    import glider.cli.init as command

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(command, "sys", type("System", (), {"stdin": Terminal()}))
    for options in (("--adapter", "adapters"), ("--data", "rows"), ("--adapter", "adapters", "--base", "other/base")):
        ran = CliRunner().invoke(build("init"), ["init", *options, "--force"], input="glider pool build pool.yaml\n")
        assert ran.exit_code == 0 and "PEFT" not in ran.output and "?" not in ran.output, ran.output
    assert PoolPlan.read(adapters / "pool.yaml").base == "other/base"


def test_init_bounds_the_training(glider, adapters: Path) -> None:
    """A plan of rows was trained for hours where nobody had read on."""
    code, out, _ = glider("init", "--data", "rows")
    assert "--out my-pool" in out and "--pool my-pool" in out  # as the README goes on
    assert code == 0 and "2 experts on smollm2-135m" in out and "--minutes 10" in out
    assert PoolPlan.read(adapters / "pool.yaml").defaults == {}
    code, out, _ = glider("init", "--data", "rows", "--minutes", "2.5", "--force")
    assert code == 0 and "1,000 steps" not in out
    assert PoolPlan.read(adapters / "pool.yaml").defaults == {"minutes": 2.5}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "neither"),
        (("--adapter", "nothing"), "an adapter at nothing"),
        (("--data", "nothing.jsonl"), "no such file"),
        (("--adapter", "adapters/tone", "--adapter", "other"), "one base model"),
        (("--adapter", "rows"), "no adapter_config.json"),
        (("--adapter", "adapters/tone/adapter_config.json"), "got the file adapters/tone/adapter_config.json"),
        (("--adapter", "shelf"), "but in shelf/small/tone. Give --adapter"),
    ],
)
def test_init_refuses_what_makes_no_plan(glider, adapters: Path, arguments: tuple[str, ...], told: str) -> None:
    for place in ("other", "shelf/small/tone"):
        (adapters / place).mkdir(parents=True)
    (adapters / "shelf" / "small" / "tone" / "adapter_config.json").write_text("{}")
    (adapters / "other" / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    code, _, err = glider("init", *arguments)
    assert code == 2 and told in err and err.count("\n") == 1, err
    assert not (adapters / "pool.yaml").exists()


@pytest.mark.parametrize("base", [5, ["a"], "a\nnext: rm -rf", "x" * 10**6, {"a": "b"}])
def test_init_takes_no_lines_of_an_adapters_author(glider, adapters: Path, base: object) -> None:
    """The base that an adapter names was printed as it stood, with lines of its own, or megabytes of it."""
    settings = json.dumps({"base_model_name_or_path": base})
    (adapters / "adapters" / "tone" / "adapter_config.json").write_text(settings)
    code, _, err = glider("init", "--adapter", "adapters/tone")
    assert code == 2 and "which is no name" in err and len(err) < 500 and err.count("\n") == 1


def test_init_plans_no_base_of_a_directory_that_has_none(glider, adapters: Path) -> None:
    code, _, err = glider("init", "--adapter", "adapters", "--base", "rows")
    assert code == 2 and "wanted a base model in rows; got no config.json there" in err
    assert not (adapters / "pool.yaml").exists()
    assert glider("init", "--adapter", "adapters", "--base", "x" * 5000)[0] == 0


@pytest.mark.parametrize("base", ["models/\U0001f600", "models/\u202eabc", 'a "b"\\c', "a\x85b"])
def test_init_writes_any_base_as_yaml_reads_it(glider, adapters: Path, base: str) -> None:
    code, _, err = glider("init", "--adapter", "adapters", "--base", base)
    assert code == 0, err
    assert PoolPlan.read(adapters / "pool.yaml").base == base
    assert "\u202e" not in (adapters / "pool.yaml").read_text("utf8")


def test_init_writes_over_nothing(glider, adapters: Path) -> None:
    (adapters / "pool.yaml").write_text("mine")
    code, _, err = glider("init", "--adapter", "adapters")
    assert code == 2 and "--force" in err and (adapters / "pool.yaml").read_text() == "mine"
    assert glider("init", "--adapter", "adapters", "--force")[0] == 0
    before = (adapters / "pool.yaml").read_bytes()
    (adapters / "rows" / "two words.jsonl").write_text("")
    code, _, err = glider("init", "--data", "rows", "--force")  # no expert can be named so
    assert code == 2 and "a plan in pool.yaml" in err and (adapters / "pool.yaml").read_bytes() == before


def test_init_and_build_make_a_pool_that_answers(glider, llama_directory: Path, random_expert, tmp_path: Path) -> None:
    from glider.inference.base_model import load_base

    adapter = random_expert(tmp_path / "tone", load_base(str(llama_directory)), rank=2)
    for file in ("card.json", "glider.safetensors"):
        (adapter.directory / file).unlink()
    plan, pool = tmp_path / "pool.yaml", tmp_path / "pool"
    assert glider("init", "--adapter", tmp_path / "tone", "--base", llama_directory, "--out", plan)[0] == 0
    code, _, err = glider("pool", "build", plan, "--out", pool)
    assert code == 0, err
    code, out, err = glider("generate", "hi", "--pool", pool, "--base", llama_directory, "--router", "arrow")
    assert code == 0 and out, err


def test_a_pools_list_in_a_pipe_has_no_line_filled_with_blanks(glider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = glider("pool", "ls", "demo")[1]
    assert "Judge whether a short movie-review snippet" in out
    assert max(map(len, out.splitlines())) < 400


def test_a_pool_is_listed_with_its_thresholds_gains_and_sizes(glider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = glider("pool", "ls", "demo")
    assert code == 0
    assert "signal examples: alpha = 103 above p = 0.5851, else 3" in out
    assert "margin below 0.4259; wrong for 0.0% of the experts' queries and 2.2% of everyday ones" in out
    assert "23.9 MB in demo" in out
    (line,) = [line for line in out.splitlines() if line.startswith("trec")]
    assert line.split()[:8] == ["trec", "4", "210", "210", "3.0", "3.0", "71.6", "+68.7"]
    facts = json.loads(glider("pool", "ls", "demo", "--json")[1])
    assert facts["verdicts"]["stranger"] == 0.4259 and facts["calibrations"]["examples"]["p"] == 0.5851
    assert facts["experts"][1]["gain"]["rows"] == 134


def test_a_narrow_terminal_has_a_line_for_each_expert(glider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = glider("pool", "ls", "demo")[1].splitlines()
    (head,) = [place for place, line in enumerate(lines) if line.startswith("expert")]
    rows = [line.split() for line in lines[head + 1 : -1]]
    assert len(rows) == 8 and rows[1][:8] == ["trec", "4", "210", "210", "3.0", "3.0", "71.6", "+68.7"]
    assert all(len(line) <= 80 for line in lines) and lines[head + 2].rstrip().endswith("…")


def test_gains_follow_an_adapter_and_not_its_name(make_pool, llama_directory: Path, glider) -> None:
    pool: Pool = make_pool(llama_directory, experts=2)
    gain = Gain(metric="accuracy", rows=10, base=0.2, alone=0.5, low=0.1, high=0.4)
    store_gains(pool, {"e0": gain})
    renamed = pool.rename("e0", "first")
    assert read_gains(renamed.path, renamed.index) == {"first": gain}
    out = glider("pool", "ls", pool.path)[1]
    assert "+30.0" in out and "no thresholds yet" in out
    (pool.path / "gains.json").write_text('{"format": 1, "adapters": {"x": {"rows": -1}}}')
    code, _, err = glider("pool", "ls", pool.path)
    assert code == 2 and "gains.json" in err


def test_the_embedded_pool_is_read_by_its_name(glider) -> None:
    """`ls` took the name, `show` and `verify` looked for a directory."""
    code, out, _ = glider("pool", "show", "demo")
    assert code == 0 and json.loads(out)["signal"] == "examples"
    assert json.loads(glider("pool", "show", "demo", "trec")[1])["name"] == "trec"
    assert glider("pool", "verify", "demo")[1] == "demo: 8 experts are as they were when they joined\n"


def test_words_are_completed() -> None:
    words = {"_GLIDER_COMPLETE": "complete_bash", "COMP_WORDS": "glider pool c", "COMP_CWORD": "2"}
    code = "import sys; sys.argv = ['glider']; from glider.cli.main import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True)
    assert set(ran.stdout.split()) == {"calibrate", "check"}, ran.stderr


def test_completion_can_be_installed(glider) -> None:
    assert "--install-completion" in glider("--help")[1]


def test_quiet_and_colourless(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> str:
        with Bars(stay=True) as bars:
            bars.update("Training", 0.5, "half")
        return capsys.readouterr().err

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = "\x1b[38;5;"
    assert "Training" in (bright := shown()) and coloured in bright
    monkeypatch.setenv("NO_COLOR", "1")
    assert "Training" in (plain := shown()) and coloured not in plain and "\x1b[3" not in plain
    be_quiet(True)
    try:
        assert shown() == ""
    finally:
        be_quiet(False)


def test_quiet_leaves_results_and_errors(glider, tmp_path: Path) -> None:
    assert "8 experts" in glider("--quiet", "pool", "ls", "demo")[1]
    code, _, err = glider("pool", "ls", tmp_path, "--quiet")
    assert code == 2 and err.startswith("glider: wanted")


def test_long_work_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Bars(resumes=True):
        raise KeyboardInterrupt
    assert "glider: interrupted; the same command continues where it stopped." in capsys.readouterr().err
    with pytest.raises(ValueError, match="other"), Bars(resumes=True):
        raise ValueError("other")
    assert "interrupted" not in capsys.readouterr().err


def test_the_list_of_commands_is_not_cut(glider) -> None:
    commands = glider("--help")[1].split("Commands:")[1]
    assert "serve" in commands and "..." not in commands


RESUMING = ("expert train", "expert import", "pool build", "pool train-router", "evaluate", "generate")


@pytest.mark.parametrize("words", [tuple(command.split()) for command in RESUMING])
def test_every_command_that_resumes_says_so_in_the_same_words(words: tuple[str, ...], glider) -> None:
    help_text = " ".join(glider(*words, "--help")[1].split())
    assert RESUMES.rstrip(".") in help_text


def test_a_model_of_the_hub_is_told_of_before_it_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from huggingface_hub import constants

    from glider.inference.downloads import tell_of_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    tell_of_download("someone/model")
    assert capsys.readouterr().err == ""  # offline, as tests are
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    tell_of_download(str(tmp_path))
    assert capsys.readouterr().err == ""
    tell_of_download("someone/model")
    assert "First use of someone/model" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_first_run_says_what_it_converts_and_how_large(tmp_path: Path) -> None:
    environment = {**os.environ, "GLIDER_CACHE": str(tmp_path)}
    code = "from glider.demo.base import converted_base; print(converted_base())"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    told = " ".join(ran.stderr.split())
    assert "First run" in told and "542 MB" in told and "Nothing is downloaded" in told and "Converted in" in told
    assert "it/s" not in told  # no second bar
    size = sum(file.stat().st_size for file in Path(ran.stdout.strip()).iterdir())
    assert round(size / 1e6) == 542


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--base", "", "hello"),
        ("generate", "--global", "", "hello"),
        ("generate", "--kernel", "", "hello"),
        ("compare", "--base", "", "--data", "rows.jsonl"),
        ("pool", "build", "plan.yaml", "--base", "", "--out", "pool"),
        ("init", "--base", "", "--data", "rows.jsonl"),
        ("expert", "import-official", "published", "--base", "", "--pool", "pool"),
    ],
)
def test_an_empty_name_is_not_the_default(
    glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """`--base "$BASE"` with a variable that is not set went on with the embedded model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "output": "b"}\n', "utf8")
    (tmp_path / "plan.yaml").write_text("experts: [{name: one, data: rows.jsonl}]", "utf8")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "one_best.pt").touch()
    code, _, err = glider(*arguments)
    assert code == 2 and ("base" in err or "signal" in err or "kernel" in err) and len(err.splitlines()) == 1, err
    assert not (tmp_path / "pool").exists() and not (tmp_path / "pool.yaml").exists()


@pytest.mark.parametrize("command", [("pool", "build"), ("evaluate",)])
def test_a_file_that_names_an_empty_base_is_refused(glider, tmp_path: Path, command: tuple[str, ...]) -> None:
    plan = 'base: ""\nrouters: [base]\nsets: {s: {tasks: [rows.jsonl]}}\n'
    if command == ("pool", "build"):
        plan = 'base: ""\nexperts: [{name: one, data: rows.jsonl}]\n'
    (tmp_path / "file.yaml").write_text(plan, "utf8")
    code, _, err = glider(*command, tmp_path / "file.yaml", "--out", tmp_path / "out")
    assert code == 2 and "base: String should have at least 1 character" in err
