"""The front door: the embedded base, the embedded pool, the demo command."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import glider
from glider.demo.base import converted_base, converted_place
from glider.demo.pool import DEMO_POOL
from glider.demo.prompts import PROMPTS
from glider.errors import BaseModelError
from glider.experts.pool import Pool
from glider.inference.base_model import load_base

MOST_BYTES = 3_000_000


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damage_of_the_converted_base_says_how_to_have_it_anew(
    file: str, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice was to give the name that had been given."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path))
    shutil.copytree(llama_directory, converted_place())
    (converted_place() / file).write_text("{")
    with pytest.raises(BaseModelError) as refusal:
        load_base("smollm2-135m")
    assert f"remove {converted_place()}: the base is then converted anew" in refusal.value.remedy


def test_embedded_pool_is_sound_and_small() -> None:
    pool = Pool.open(DEMO_POOL)
    pool.verify()
    assert len(pool) == 8
    assert pool.index.signal in pool.index.calibrations
    for expert in pool:
        assert sum(file.stat().st_size for file in expert.directory.iterdir()) <= MOST_BYTES
        assert expert.card.examples == ()
        assert expert.factors(next(iter(expert.sites)))[0].dtype == torch.bfloat16


def test_prompts_name_experts_of_the_pool() -> None:
    own = {prompt.expert for prompt in PROMPTS} - {None}
    assert own == set(Pool.open(DEMO_POOL).names)
    assert sum(prompt.expert is None for prompt in PROMPTS) >= 3


@pytest.mark.slow
def test_embedded_base_is_converted_once_and_is_the_pools_own() -> None:
    directory = converted_base()
    made = (directory / "config.json").stat().st_mtime_ns
    assert converted_base() == directory and (directory / "config.json").stat().st_mtime_ns == made
    identity, pools = load_base("smollm2-135m").identity, Pool.open(DEMO_POOL).index.base
    assert (identity.model_id, identity.hash) == (pools.model_id, pools.hash)


def test_a_first_run_converts_before_anything_else_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words of the conversion stood in the line of a wait that had begun before."""
    from glider.cli.demo import demo

    def convert() -> Path:
        raise RuntimeError(capsys.readouterr().err)

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("glider.demo.base.converted_base", convert)
    with pytest.raises(RuntimeError, match=r"^$"):
        demo()


@pytest.mark.slow
def test_own_experts_answer_own_prompts_in_one_mixed_batch() -> None:
    model = glider.load()
    answers = model.generate([prompt.text for prompt in PROMPTS], max_new_tokens=8, trace=True)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert (answer.verdict == "stranger") == (prompt.expert is None)
        assert sum(answer.usage.values()) == pytest.approx(0 if prompt.expert is None else 1, abs=1e-3)
        if answer.verdict == "fits":  # whoever is confident is right here, and one expert does the work
            assert max(answer.global_scores, key=answer.global_scores.__getitem__) == prompt.expert
            assert prompt.expert is not None and answer.usage[prompt.expert] == pytest.approx(1)
    assert sum(answer.verdict == "fits" for answer in answers) >= 5
    by_task = {prompt.expert: answer.text for prompt, answer in zip(PROMPTS, answers, strict=True)}
    assert by_task["trec"] == "Quantity"
    assert by_task["rotten_tomatoes"] == "positive"
    assert by_task["dbpedia_14"] == "Natural Place"


@pytest.mark.slow
def test_demo_command_prints_answers_and_the_path_of_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "heat.png"
    command = [sys.executable, "-m", "glider.cli.main", "demo", "--picture", str(picture), "--max-new-tokens", "8"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert str(picture) in ran.stdout and picture.read_bytes().startswith(b"\x89PNG")
    assert ran.stdout.count("   global ") == len(PROMPTS)
    assert ran.stdout.count("stranger: the base model alone") == sum(prompt.expert is None for prompt in PROMPTS)
    assert "█" in ran.stdout


@pytest.mark.slow
def test_example_of_a_growing_pool_runs() -> None:
    script = Path(__file__).parents[2] / "examples" / "growing_pool.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "alpha went from 3 to 103" in ran.stdout and "files are as they were" in ran.stdout
    assert "'positive' before, 'positive' after" in ran.stdout
