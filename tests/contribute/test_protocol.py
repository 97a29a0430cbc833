"""From rows to an expert: the same seed gives the same bytes, whatever interrupts the run."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from glider.contribute import loop as loop_module
from glider.contribute import protocol
from glider.contribute.loop import Progress
from glider.contribute.protocol import train_expert, versions
from glider.contribute.settings import TrainConfig
from glider.errors import ConfigError, DataError, EmbedderError, ExpertError, GliderError
from glider.experts.card import EmbedderIdentity
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.spec import BaseSpec

DEFINITION = "Answer with the letter x."
TRAINED_FILES = ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors")


class PowerCut(Exception):
    """Stands for whatever ends a run in the middle."""


def config(**changes: Any) -> TrainConfig:
    settings = {"rank": 2, "alpha": 4.0, "steps": 12, "gate_steps": 6, "batch_size": 4, "learning_rate": 0.02}
    return TrainConfig(**{**settings, "validation": 4, "validations": 3, "examples": 2, **changes})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty rows with a definition: many inputs, one answer."""
    rows = [{"input": f"say {i}" * (1 + i % 3), "output": "x", "definition": DEFINITION} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return tmp_path / "data.jsonl"


def bytes_of(expert: Expert) -> dict[str, bytes]:
    return {file: (expert.directory / file).read_bytes() for file in TRAINED_FILES}


def no_definition(data: Path) -> Path:
    """The same rows without one, so that no embedder is needed."""
    rows = [json.loads(line) for line in data.read_text("utf8").splitlines()]
    for row in rows:
        del row["definition"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return data


def test_training_lowers_the_loss_and_makes_a_whole_expert(base_directory: Path, data: Path, tmp_path: Path):
    losses: dict[str, list[float]] = {"lora": [], "gates": []}
    totals = set()

    def report(stage: str, now: Progress, steps: int) -> None:
        losses[stage].append(now.loss)
        totals.add((stage, steps))

    expert = train_expert(data, str(base_directory), tmp_path / "ex7", config(), report=report)
    assert sum(losses["lora"][-3:]) < 0.8 * sum(losses["lora"][:3])
    assert totals == {("lora", 12), ("gates", 6)}
    assert all(site.has_gate and site.rank == 2 for site in expert.sites.values())
    assert any((gate := expert.gate(site)) is not None and gate.abs().max() > 0 for site in expert.sites)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.jsonl", "ex7"]

    base = load_base(str(base_directory))
    pool = Pool.create(tmp_path / "pool", base.identity)
    shutil.copytree(expert.directory, pool.path / "ex7")
    pool.add("ex7").verify()


def test_a_trained_expert_answers_in_peft(llama_directory: Path, data: Path, tmp_path: Path):
    """What the loop measured last is what PEFT computes from the files, but for their rounding to bfloat16."""
    expert = train_expert(data, str(llama_directory), tmp_path / "ex7", config(steps=60, gate_steps=1))
    base = load_base(str(llama_directory))
    model = PeftModel.from_pretrained(base.model, str(expert.directory)).eval()
    prompt = expert.card.prompt.prompt_ids(base.tokenizer, "say 3")
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    assert base.tokenizer.decode([first]) == "x"


def test_the_card_records_how_the_expert_came_about(llama_directory: Path, data: Path, tmp_path: Path):
    chosen = config(max_tokens=22)
    expert = train_expert(data, str(llama_directory), tmp_path / "ex7", chosen, task="say-x", licence="CC0-1.0")
    card, base = expert.card, load_base(str(llama_directory))
    assert (card.name, card.task, card.licence) == ("ex7", "say-x", "CC0-1.0")
    assert card.base == base.identity
    assert card.prompt.kind == "chat"
    assert len(card.examples) == 2 and all(example.output == "x" for example in card.examples)
    training = card.training
    assert training["config"] == chosen.content
    assert training["data_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert training["versions"] == versions()
    assert training["versions"]["torch"] == torch.__version__
    assert training["rows"] + training["rows_too_long"] == 36
    assert training["rows_too_long"] > 0
    assert (training["lora"]["step"], training["gates"]["step"]) == (12, 6)
    assert training["lora"]["best_loss"] == min(loss for _, loss in training["lora"]["validation"])


def test_the_task_is_the_directorys_name_unless_given(llama_directory: Path, data: Path, tmp_path: Path):
    assert train_expert(data, str(llama_directory), tmp_path / "ex7", config(steps=1, gate_steps=1)).card.task == "ex7"


def test_the_description_comes_from_the_rows(
    llama_directory: Path, data: Path, tmp_path: Path, embedder_identity: EmbedderIdentity
):
    expert = train_expert(data, str(llama_directory), tmp_path / "ex7", config(steps=1, gate_steps=1))
    assert expert.card.description == DEFINITION
    assert expert.card.embedder is not None and expert.card.embedder.matches(embedder_identity)
    assert expert.instruction is not None
    assert expert.instruction.norm().item() == pytest.approx(1.0, abs=1e-4)


def test_a_given_description_goes_before_that_of_the_rows(llama_directory: Path, data: Path, tmp_path: Path):
    quick = config(steps=1, gate_steps=1)
    one = train_expert(data, str(llama_directory), tmp_path / "a", quick)
    other = train_expert(data, str(llama_directory), tmp_path / "b", quick, description="Sort numbers.")
    assert other.card.description == "Sort numbers."
    assert one.instruction is not None and other.instruction is not None
    assert not torch.allclose(one.instruction, other.instruction)


def test_without_any_description_there_is_no_embedding(llama_directory: Path, data: Path, tmp_path: Path):
    expert = train_expert(no_definition(data), str(llama_directory), tmp_path / "e", config(steps=1, gate_steps=1))
    assert (expert.card.description, expert.card.embedder, expert.instruction) == (None, None, None)


def test_the_same_seed_gives_the_same_bytes(base_directory: Path, data: Path, tmp_path: Path):
    one = train_expert(data, str(base_directory), tmp_path / "one" / "e", config())
    torch.randn(7)
    other = train_expert(data, str(base_directory), tmp_path / "other" / "e", config())
    assert bytes_of(one) == bytes_of(other)


def test_another_seed_gives_other_weights(llama_directory: Path, data: Path, tmp_path: Path):
    one = train_expert(data, str(llama_directory), tmp_path / "one", config())
    other = train_expert(data, str(llama_directory), tmp_path / "other", config(seed=1))
    assert bytes_of(one)["adapter_model.safetensors"] != bytes_of(other)["adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("stage", "step"), [("lora", 7), pytest.param("lora", 12, marks=pytest.mark.slow), ("gates", 4)]
)
def test_an_interrupted_run_gives_the_same_bytes(
    base_directory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
):
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)
    data = no_definition(data)
    whole = train_expert(data, str(base_directory), tmp_path / "whole" / "e", config())

    def cut(now_stage: str, now: Progress, steps: int) -> None:
        if (now_stage, now.step) == (stage, step):
            raise PowerCut

    with pytest.raises(PowerCut):
        train_expert(data, str(base_directory), tmp_path / "cut" / "e", config(), report=cut)
    assert [file.name for file in (tmp_path / "cut").iterdir()] == [".e.training"]
    seen: list[tuple[str, int]] = []
    resumed = train_expert(
        data, str(base_directory), tmp_path / "cut" / "e", config(), report=lambda s, now, n: seen.append((s, now.step))
    )
    assert seen[0] == (stage, step)
    assert bytes_of(resumed) == bytes_of(whole)
    assert [file.name for file in (tmp_path / "cut").iterdir()] == ["e"]


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_the_settings_of_a_large_model_give_the_same_bytes_after_an_interruption(
    base_directory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
):
    """Autocast, parts and recomputed activations; what is trained stays float32 where the base is kept in bfloat16."""
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)
    data, base = no_definition(data), BaseSpec(base=str(base_directory), dtype=dtype)
    settings = config(precision="bfloat16", accumulation=2, checkpointing=True, decay="linear", minutes=None)
    whole = train_expert(data, base, tmp_path / "whole" / "e", settings)
    assert whole.card.training.get("dtype", "float32") == dtype
    assert whole.card.training["config"]["checkpointing"] is True

    def cut(now_stage: str, now: Progress, steps: int) -> None:
        if (now_stage, now.step) == ("lora", 7):
            states = load_file(tmp_path / "cut" / ".e.training" / "lora.safetensors")
            assert {value.dtype for value in states.values()} == {torch.float32}
        if (now_stage, now.step) == ("gates", 4):
            raise PowerCut

    with pytest.raises(PowerCut):
        train_expert(data, base, tmp_path / "cut" / "e", settings, report=cut)
    assert bytes_of(train_expert(data, base, tmp_path / "cut" / "e", settings)) == bytes_of(whole)


def test_a_run_begun_in_one_arithmetic_does_not_go_on_in_another(
    llama_directory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)
    data = no_definition(data)

    def cut(stage: str, now: Progress, steps: int) -> None:
        if now.step == 5:
            raise PowerCut

    with pytest.raises(PowerCut):
        train_expert(data, str(llama_directory), tmp_path / "e", config(), report=cut)
    seen: list[int] = []
    coarse = BaseSpec(base=str(llama_directory), dtype="bfloat16")
    train_expert(data, coarse, tmp_path / "e", config(), report=lambda stage, now, steps: seen.append(now.step))
    assert seen[0] == 1


def test_state_of_a_run_with_other_settings_is_not_taken_up(
    llama_directory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)
    data = no_definition(data)
    whole = train_expert(data, str(llama_directory), tmp_path / "whole" / "e", config(seed=1))

    def cut(stage: str, now: Progress, steps: int) -> None:
        if now.step == 7:
            raise PowerCut

    with pytest.raises(PowerCut):
        train_expert(data, str(llama_directory), tmp_path / "cut" / "e", config(seed=0), report=cut)
    other = train_expert(data, str(llama_directory), tmp_path / "cut" / "e", config(seed=1))
    assert bytes_of(other) == bytes_of(whole)


KILLED_RUN = """
import os
import signal
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from glider.contribute import loop
from glider.contribute.protocol import train_expert
from glider.contribute.settings import TrainConfig

loop.SAVE_SECONDS = 0.0
data, base, out, settings, moment = sys.argv[1:]

def told(stage, now, steps):
    print(stage, now.step, flush=True)
    if f"{stage} {now.step}" == moment:
        os.kill(os.getpid(), signal.SIGKILL)

train_expert(data, base, out, TrainConfig.model_validate_json(settings), report=told)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "step"), [("lora", 9), ("gates", 3)])
def test_a_killed_run_gives_the_same_bytes(llama_directory: Path, data: Path, tmp_path: Path, stage: str, step: int):
    data, settings = no_definition(data), config(steps=40, gate_steps=20).model_dump_json()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out: Path, moment: str = "") -> tuple[int, list[str]]:
        command = [sys.executable, "-c", KILLED_RUN, data, llama_directory, out, settings, moment]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
        return ran.returncode, ran.stdout.splitlines()

    code, all_lines = run(tmp_path / "whole" / "e")
    assert code == 0
    assert run(tmp_path / "cut" / "e", f"{stage} {step}")[0] == -signal.SIGKILL
    assert not (tmp_path / "cut" / "e").exists()
    code, lines = run(tmp_path / "cut" / "e")
    assert code == 0
    assert 0 < len(lines) < len(all_lines)
    assert bytes_of(Expert.open(tmp_path / "cut" / "e")) == bytes_of(Expert.open(tmp_path / "whole" / "e"))


def test_minutes_end_the_run_early(llama_directory: Path, data: Path, tmp_path: Path):
    chosen = config(steps=100_000, gate_steps=100_000, minutes=0.02)
    expert = train_expert(no_definition(data), str(llama_directory), tmp_path / "e", chosen)
    assert 0 < expert.card.training["lora"]["step"] < 100_000
    assert 0 < expert.card.training["gates"]["step"] < 100_000
    assert expert.card.training["lora"]["seconds"] >= 0.9
    expert.verify()


def test_an_existing_directory_is_not_touched(llama_directory: Path, data: Path, tmp_path: Path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "mine").write_text("mine")
    with pytest.raises(ExpertError, match=str(tmp_path / "e")):
        train_expert(data, str(llama_directory), tmp_path / "e", config())
    assert [file.name for file in (tmp_path / "e").iterdir()] == ["mine"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.jsonl", "e"]


def test_rows_that_are_no_file_are_told_before_an_existing_expert_is(llama_directory: Path, tmp_path: Path):
    """A directory or a device in place of rows was a traceback where the expert was there already."""
    (tmp_path / "e").mkdir()
    for data in (tmp_path, Path("/dev/null")):
        with pytest.raises(DataError, match="no regular file"):
            train_expert(data, str(llama_directory), tmp_path / "e", config())


def test_rows_that_are_all_too_long_are_an_error(llama_directory: Path, data: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"max-tokens") as raised:
        train_expert(data, str(llama_directory), tmp_path / "e", config(max_tokens=5))
    assert "36 rows" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("my expert", {}, GliderError),
        (".hidden", {}, GliderError),
        ("e", {"sites": "no_such_layer"}, GliderError),
        ("e", {"sites": ".*embed_tokens"}, GliderError),
        ("e", {"embedder": "nobody/no-such-embedder"}, EmbedderError),
    ],
    ids=str,
)
def test_a_mistake_is_found_before_training_begins(
    llama_directory: Path,
    data: Path,
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
    error: type[GliderError],
):
    steps: list[int] = []
    report: Callable[..., None] = lambda stage, now, total: steps.append(now.step)  # noqa: E731
    with pytest.raises(error):
        train_expert(data, str(llama_directory), tmp_path / name, config(**changes), report=report)
    assert steps == []
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("sites", "names"),
    [
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        ("q_proj", {"q_proj"}),
        (r".*\.(up|down)_proj", {"up_proj", "down_proj"}),
    ],
)
def test_chosen_sites_are_the_only_ones(llama_directory: Path, data: Path, tmp_path: Path, sites: str, names: set[str]):
    chosen = config(sites=sites, steps=2, gate_steps=2)
    expert = train_expert(no_definition(data), str(llama_directory), tmp_path / "e", chosen)
    assert {site.rsplit(".", 1)[1] for site in expert.sites} == names
    gates = [name for name in load_file(expert.directory / "glider.safetensors") if name.endswith(".gate")]
    assert len(gates) == len(expert.sites) == 2 * len(names)


def test_bfloat16_arithmetic_trains_too(llama_directory: Path, data: Path, tmp_path: Path):
    losses: list[float] = []
    chosen = config(precision="bfloat16")
    report: Callable[..., None] = lambda stage, now, total: losses.append(now.loss)  # noqa: E731
    train_expert(no_definition(data), str(llama_directory), tmp_path / "e", chosen, report=report).verify()
    assert sum(losses[9:12]) < 0.8 * sum(losses[:3])


def test_a_run_that_is_complete_says_so(llama_directory: Path, data: Path, tmp_path: Path):
    """Killed after its last write the same command finds nothing to do."""
    train_expert(data, str(llama_directory), tmp_path / "ex", config())
    with pytest.raises(ExpertError, match="a complete one, of these rows and settings"):
        train_expert(data, str(llama_directory), tmp_path / "ex", config())
    with pytest.raises(ExpertError, match="an existing one"):
        train_expert(data, str(llama_directory), tmp_path / "ex", config(seed=5))


def test_the_state_of_a_training_that_was_killed_at_its_end_goes(
    llama_directory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same command says that nothing is left to do; the state of its optimizer stayed for ever."""
    state = tmp_path / ".ex.training"
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "empty", lambda place: None)
        with pytest.raises(OSError, match="not empty"):
            train_expert(data, str(llama_directory), tmp_path / "ex", config())
    assert (state / "lora.safetensors").exists()
    its_key = json.loads((state / "run.json").read_text())["run"]
    for marker, stays in (("of other work", True), (its_key, False)):
        (state / "run.json").write_text(json.dumps({"run": marker}))
        with pytest.raises(ExpertError, match="a complete one, of these rows and settings"):
            train_expert(data, str(llama_directory), tmp_path / "ex", config())
        assert state.exists() == stays


@pytest.mark.parametrize("settings", ["same", "other"])
def test_a_second_training_of_one_expert_leaves_the_first_its_state(tmp_path: Path, settings: str):
    """With other settings it threw away what the first had done; with the same, both wrote into one state."""
    with protocol.training_state(tmp_path / "e", {"settings": "same"}) as state:
        (state / "lora.safetensors").write_bytes(b"hours")
        with (
            pytest.raises(ConfigError, match=r"one process that works in .*\.e\.training"),
            protocol.training_state(tmp_path / "e", {"settings": settings}),
        ):
            raise AssertionError
        assert (state / "lora.safetensors").read_bytes() == b"hours"
    assert not list(tmp_path.iterdir())
    with protocol.training_state(tmp_path / "e", {"settings": settings}):
        pass
