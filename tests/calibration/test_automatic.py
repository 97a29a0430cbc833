"""What a pool that was never calibrated gets when it is made or takes up an expert, and what loading one says."""

from pathlib import Path

import pytest

import glider
from glider.calibration.automatic import calibrated
from glider.calibration.threshold import calibrate
from glider.calibration.verdict import choose_thresholds
from glider.cli.main import build
from glider.errors import GliderWarning


def command(*arguments: object):
    from typer.testing import CliRunner

    return CliRunner().invoke(build("pool"), ["pool", *map(str, arguments)])


def test_a_pool_gets_what_the_command_chooses(pool_with_profiles) -> None:
    pool = pool_with_profiles()
    result = calibrated(pool)
    assert result.index.signal == "examples"
    assert result.index.calibrations == {"examples": calibrate(pool, "examples")}
    assert result.index.verdicts == choose_thresholds(pool)
    assert calibrated(result).index == result.index


def test_what_was_chosen_before_stays(pool_with_profiles) -> None:
    pool = pool_with_profiles()
    pool = pool.calibrate("ensemble", calibrate(pool, "ensemble").model_copy(update={"p": 0.3}))
    result = calibrated(pool).index
    assert (
        result.signal == "ensemble"
        and result.calibrations["ensemble"].p == 0.3
        and "examples" not in result.calibrations
    )
    assert result.verdicts is not None


def test_an_expert_without_a_profile_leaves_the_verdicts(pool_with_profiles, grow_pool, llama_directory: Path) -> None:
    pool = grow_pool(pool_with_profiles(), llama_directory, "silent", seed=9)
    with pytest.warns(GliderWarning, match="no threshold p.*none in silent"):
        result = calibrated(pool)
    assert result.index.calibrations == {} and result.index.verdicts == choose_thresholds(pool)


def test_the_command_calibrates_such_a_pool_too(pool_with_profiles, grow_pool, llama_directory: Path) -> None:
    pool = grow_pool(pool_with_profiles(), llama_directory, "silent", seed=9)
    result = command("calibrate", pool.path)
    assert result.exit_code == 0 and "no p, the verdicts alone" in result.stderr and "none in silent" in result.stderr
    model = glider.load(str(llama_directory), pool.path)
    assert model.condition(["e0 e0word7 e0word9 e0word11"]).verdicts is not None


@pytest.mark.parametrize("experts", [1, 3])
def test_a_pool_of_bare_adapters_stays_as_it_is(make_pool, llama_directory: Path, experts: int) -> None:
    pool = make_pool(llama_directory, experts=experts)
    assert calibrated(pool).index == pool.index


def test_adding_the_first_experts_calibrates(pool_with_profiles, tmp_path: Path) -> None:
    source, made = pool_with_profiles().path, tmp_path / "new"
    for name, signal in (("e0", None), ("e1", "examples")):
        result = command("add", made, source / name)
        index = glider.Pool.open(made).index
        assert result.exit_code == 0 and index.verdicts is not None and index.signal == signal
    assert "of the experts' own queries" not in result.stderr  # told when they were first chosen
    bare = tmp_path / "bare"
    result = command("add", bare, source / "e0", "--no-calibrate")
    assert glider.Pool.open(bare).index.verdicts is None
    assert f"glider pool calibrate {bare}" in result.stderr


def test_a_pool_that_falls_to_one_expert_says_nothing(pool_with_profiles, llama_directory: Path) -> None:
    pool = calibrated(pool_with_profiles(experts=2))
    assert command("remove", pool.path, "e1").exit_code == 0
    (answer,) = glider.load(str(llama_directory), pool.path).generate(["the e0 e01 of e02"], max_new_tokens=1)
    assert answer.verdict in ("fits", "unsure")
    assert command("add", pool.path, pool.path / "e1").exit_code == 0
    assert glider.Pool.open(pool.path).index.calibrations["examples"].experts == ("e0", "e1")


def test_loading_an_uncalibrated_pool_names_the_command(pool_with_profiles, llama_directory: Path) -> None:
    pool = pool_with_profiles()
    with pytest.warns(GliderWarning, match=f"{pool.path} is not calibrated.*glider pool calibrate"):
        glider.load(str(llama_directory), pool.path)
    glider.load(str(llama_directory), pool.path, router="phatgoose")
    glider.load(str(llama_directory), pool.path, abstain=False)
    calibrated(pool)
    glider.load(str(llama_directory), pool.path)
