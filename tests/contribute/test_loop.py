"""The training loop: it learns, keeps the best parameters, ends in time and goes on where it stopped."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glider.contribute import loop as loop_module
from glider.contribute.examples import Batches, EncodedRow, collate
from glider.contribute.loop import Loop, Progress
from glider.contribute.lora import add_lora, lora_parameters
from glider.contribute.settings import Schedule
from glider.inference.base_model import load_base

X, Y = 100, 150


class PowerCut(Exception):
    """Stands for whatever ends a run in the middle."""


def schedule(**changes: Any) -> Schedule:
    settings = {"steps": 12, "learning_rate": 0.02, "warmup_ratio": 0.1, "clip_norm": 1.0}
    return Schedule(**{**settings, "minutes": None, "validations": 3, **changes})


def answering(token: int, rows: int = 12) -> list[EncodedRow]:
    """Rows of many prompts and one answer."""
    return [EncodedRow([20 + i] * (3 + i % 4), [token, 1]) for i in range(rows)]


@pytest.fixture
def make_loop(tmp_path: Path) -> Callable[..., Loop]:
    """`make_loop(base_directory, **schedule)`: a loop over a fresh LoRA; its state lies in one place."""

    def make(base_directory: Path, autocast: bool = False, **changes: Any) -> Loop:
        base = load_base(str(base_directory))
        model = add_lora(base.model, rank=2, alpha=4.0, sites="all-linear", seed=0)
        state = tmp_path / "state.safetensors"
        return Loop(model, lora_parameters(model), schedule(**changes), 0, state, autocast=autocast, seed=7)

    return make


def run(
    loop: Loop, rows: list[EncodedRow], validation: list[EncodedRow], report: Callable[[Progress], None] | None = None
) -> Progress:
    return loop.run(Batches(rows, 4, seed=0), validation, report or (lambda progress: None))


def values(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in loop.parameters.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("autocast", [False, True])
def test_training_lowers_the_loss(base_directory: Path, make_loop: Callable[..., Loop], autocast: bool):
    losses: list[float] = []
    done = run(make_loop(base_directory, autocast), answering(X), answering(X, 4), lambda now: losses.append(now.loss))
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert done.best_loss == min(loss for _, loss in done.validation) < losses[0]


def test_the_base_is_not_trained(llama_directory: Path, make_loop: Callable[..., Loop]):
    loop = make_loop(llama_directory)
    before = {n: v.detach().clone() for n, v in loop.model.named_parameters() if "lora_" not in n}
    run(loop, answering(X), [])
    assert all(torch.equal(value, loop.model.get_parameter(name)) for name, value in before.items())


def test_the_loss_is_the_mean_over_target_tokens(base_directory: Path, make_loop: Callable[..., Loop]):
    rows = [EncodedRow([5, 6, 7], [X]), EncodedRow([8] * 6, [X, Y, X, 1]), EncodedRow([9], [Y, 1])]
    loop = make_loop(base_directory)
    total = 0.0
    with torch.no_grad():
        for row in rows:
            if loop.model.config.is_encoder_decoder:
                shifted = torch.tensor([[0, *row.target[:-1]]])
                logits = loop.model(input_ids=torch.tensor([row.prompt]), decoder_input_ids=shifted).logits[0]
            else:
                logits = loop.model(torch.tensor([row.prompt + row.target])).logits[0, len(row.prompt) - 1 : -1]
            total += nn.functional.cross_entropy(logits, torch.tensor(row.target), reduction="sum").item()
        summed, count = loop._loss(rows)
    assert count == 7
    assert summed.item() == pytest.approx(total, rel=1e-4)


def test_the_best_parameters_are_kept(llama_directory: Path, make_loop: Callable[..., Loop]):
    """Training on one answer and validating on another makes the first validation the best."""
    loop = make_loop(llama_directory, validations=6, learning_rate=0.05)
    after: dict[int, dict[str, torch.Tensor]] = {}
    done = run(loop, answering(X), answering(Y, 4), lambda now: after.update({now.step: values(loop)}))
    assert [step for step, _ in done.validation] == [2, 4, 6, 8, 10, 12]
    assert done.best_step == min(done.validation, key=lambda entry: entry[1])[0] < 12
    assert same(values(loop), after[done.best_step])
    assert not same(values(loop), after[12])


def test_validation_goes_without_dropout(t5_directory: Path, make_loop: Callable[..., Loop]):
    loop = make_loop(t5_directory, steps=1, validations=1)
    for module in loop.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    rows = answering(X, 4)
    done = run(loop, rows, rows)
    batch = collate(rows, 0, encoder_decoder=True)
    with torch.no_grad():
        loss = loop.model.eval()(**batch).loss.item()
    assert done.best_loss == pytest.approx(loss, rel=1e-4)


def test_without_validation_the_last_parameters_are_kept(llama_directory: Path, make_loop: Callable[..., Loop]):
    loop = make_loop(llama_directory)
    after: dict[int, dict[str, torch.Tensor]] = {}
    done = run(loop, answering(X), [], lambda now: after.update({now.step: values(loop)}))
    assert done.best_step == 12
    assert same(values(loop), after[12])


def test_without_validation_no_loss_is_claimed(llama_directory: Path, make_loop: Callable[..., Loop]):
    done = run(make_loop(llama_directory), answering(X), [])
    assert not any(loss == 0.0 for _, loss in done.validation)
    assert done.best_loss != 0.0


@pytest.mark.parametrize("stop", [1, 5, 12])
def test_an_interrupted_run_ends_with_the_same_bits(
    base_directory: Path,
    make_loop: Callable[..., Loop],
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
):
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)
    whole = make_loop(base_directory)
    done = run(whole, answering(X), answering(Y, 4))
    whole.state_file.unlink()

    def cut(now: Progress) -> None:
        if now.step == stop:
            raise PowerCut

    with pytest.raises(PowerCut):
        run(make_loop(base_directory), answering(X), answering(Y, 4), cut)
    seen: list[int] = []
    resumed = make_loop(base_directory)
    again = run(resumed, answering(X), answering(Y, 4), lambda now: seen.append(now.step))

    assert seen == list(range(stop, 13))
    assert same(values(resumed), values(whole))
    assert (again.validation, again.best_step, again.tokens) == (done.validation, done.best_step, done.tokens)


def test_a_model_with_dropout_goes_on_with_the_same_bits(
    t5_directory: Path, make_loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
):
    """Every published T5 has dropout: what it draws must depend on seed and step, not on where the run began."""
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)

    def loop() -> Loop:
        made = make_loop(t5_directory)
        for module in made.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        return made

    def cut(now: Progress) -> None:
        if now.step == 5:
            raise PowerCut

    whole = loop()
    run(whole, answering(X), answering(X, 4))
    whole.state_file.unlink()
    with pytest.raises(PowerCut):
        run(loop(), answering(X), answering(X, 4), cut)
    resumed = loop()
    run(resumed, answering(X), answering(X, 4))
    assert same(values(resumed), values(whole))


def test_a_finished_run_is_not_trained_again(llama_directory: Path, make_loop: Callable[..., Loop]):
    first, second = make_loop(llama_directory), make_loop(llama_directory)
    run(first, answering(X), answering(X, 4))
    seen: list[int] = []
    run(second, answering(X), answering(X, 4), lambda now: seen.append(now.step))
    assert seen == []
    assert same(values(first), values(second))


@pytest.mark.parametrize("early", [{}, {"steps": 100_000, "minutes": 0.001}], ids=["steps", "minutes"])
def test_a_finished_stage_is_left_as_it_is(
    early: dict[str, Any], llama_directory: Path, make_loop: Callable[..., Loop]
):
    """A state that is written anew is taken for progress by who watches its file, and a second validation is none."""
    first, second = make_loop(llama_directory, **early), make_loop(llama_directory, **early)
    done = run(first, answering(X), answering(X, 4))
    before = first.state_file.stat()
    again = run(second, answering(X), answering(X, 4))
    after = first.state_file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert again.validation == done.validation
    assert same(values(first), values(second))


def test_minutes_end_a_run_early_with_a_validation(llama_directory: Path, make_loop: Callable[..., Loop]):
    done = run(make_loop(llama_directory, steps=100_000, minutes=0.01), answering(X), answering(X, 4))
    assert 0 < done.step < 100_000
    assert done.seconds >= 0.6
    assert done.validation[-1][0] == done.step


def test_a_loss_that_is_no_number_is_an_error(llama_directory: Path, make_loop: Callable[..., Loop]):
    """Else the untrained adapter would be handed over as the result."""
    from glider.errors import GliderError

    loop = make_loop(llama_directory)
    with torch.no_grad():
        next(iter(loop.parameters.values())).fill_(float("nan"))
    with pytest.raises(GliderError):
        run(loop, answering(X), answering(X, 4))


def test_the_rate_warms_up_and_stays():
    rates = [schedule(steps=100, learning_rate=0.5, warmup_ratio=0.1).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[4] == pytest.approx(0.25)
    assert set(rates[9:]) == {0.5}


def test_the_rate_may_fall_to_zero_after_the_warm_up():
    rates = [schedule(steps=100, learning_rate=0.5, warmup_ratio=0.1, decay="linear").rate(step) for step in range(100)]
    assert rates[4] == pytest.approx(0.25) and max(rates) == rates[9] == 0.5
    falls = [one - other for one, other in pairwise(rates[9:])]
    assert falls == pytest.approx([0.5 / 91] * 90) and rates[-1] == pytest.approx(0.5 / 91)
    assert schedule(steps=1, decay="linear", learning_rate=0.5).rate(0) == 0.5


@pytest.mark.parametrize(("accumulation", "batch"), [(2, 8), (3, 8), (8, 8), (20, 8)])
def test_a_batch_in_parts_is_the_whole_batch_within_rounding(
    base_directory: Path, make_loop: Callable[..., Loop], accumulation: int, batch: int
):
    """Answers of unlike length: a mean of the parts' means would weigh the tokens of short ones more."""
    rows = [EncodedRow([20 + i] * (3 + i % 4), [X] * (1 + 2 * (i % 3)) + [1]) for i in range(12)]
    whole, parts = make_loop(base_directory), make_loop(base_directory, accumulation=accumulation)
    losses = []
    for loop in (whole, parts):
        losses.append(loop._step(rows[:batch], 0))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, value in whole.parameters.items():
        one, other = (loop.optimiser.state[loop.parameters[name]]["exp_avg"] for loop in (whole, parts))
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-3)  # a tenth of the gradient
        assert value.shape == parts.parameters[name].shape


def test_only_a_part_of_the_batch_is_computed_at_a_time(llama_directory: Path, make_loop: Callable[..., Loop]):
    loop = make_loop(llama_directory, accumulation=4)
    sizes: list[int] = []
    loop.model.register_forward_pre_hook(
        lambda _, positional, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    loop._step(answering(X)[:10], 0)
    sizes.clear()  # what the model may share has been tried
    loop._step(answering(X)[:10], 1)
    assert max(sizes) == 3 and sum(sizes) >= 10
    whole = make_loop(llama_directory)
    whole.model.register_forward_pre_hook(
        lambda _, positional, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    whole._step(answering(X)[:10], 0)
    assert max(sizes) == 10


@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_in_parts_goes_on_with_the_same_bits(
    t5_directory: Path, make_loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, stop: int
):
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0.0)
    settings = {"accumulation": 2, "decay": "linear"}
    whole = make_loop(t5_directory, **settings)
    run(whole, answering(X), answering(Y, 4))
    whole.state_file.unlink()

    def cut(now: Progress) -> None:
        if now.step == stop:
            raise PowerCut

    with pytest.raises(PowerCut):
        run(make_loop(t5_directory, **settings), answering(X), answering(Y, 4), cut)
    resumed = make_loop(t5_directory, **settings)
    run(resumed, answering(X), answering(Y, 4))
    assert same(values(resumed), values(whole))


@pytest.mark.parametrize(("steps", "validations"), [(12, 3), (100, 7), (5, 5), (3, 10), (1, 1)])
def test_validations_are_spread_and_include_the_last_step(steps: int, validations: int):
    marks = [step for step in range(steps) if schedule(steps=steps, validations=validations).validates_after(step)]
    assert marks[-1] == steps - 1
    assert len(marks) == min(steps, validations)
