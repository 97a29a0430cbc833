"""Settings of a training: the recipes, and what is given beside them."""

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from glider.cli.options import with_settings
from glider.contribute.settings import TrainConfig
from glider.errors import ConfigError

PUBLISHED = {"steps": 1500, "gate_steps": 200, "learning_rate": 3e-3, "decay": "linear", "batch_size": 128}
PUBLISHED |= {"warmup_ratio": 0.02, "validations": 15}


def test_the_defaults_are_the_papers_and_validate_ten_times() -> None:
    config = TrainConfig()
    assert (config.rank, config.steps, config.gate_steps) == (16, 1000, 100)
    assert (config.learning_rate, config.warmup_ratio, config.decay) == (5e-3, 0.06, "constant")
    marks = [step + 1 for step in range(1000) if config.schedule("lora").validates_after(step)]
    assert marks == list(range(100, 1001, 100))
    assert TrainConfig(recipe="paper") == config


def test_the_published_recipe_sets_what_is_not_given() -> None:
    config = TrainConfig(recipe="published")
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED
    assert config.batch_size / config.accumulation == 16
    schedule = config.schedule("gates")
    assert (schedule.steps, schedule.decay, schedule.accumulation) == (200, "linear", 8)
    chosen = TrainConfig(recipe="published", steps=1000, decay="constant")
    assert (chosen.steps, chosen.decay, chosen.learning_rate) == (1000, "constant", 3e-3)
    assert TrainConfig(**chosen.model_dump()) == chosen  # as a card keeps it
    with pytest.raises(ConfigError, match="recipe"):
        TrainConfig.parse(recipe="mine")
    with pytest.raises(ConfigError, match="recipe"):
        TrainConfig.parse(recipe=["paper"])


def test_what_was_trained_before_recipes_is_known_again() -> None:
    """The hash of a training would have changed with every setting that is new, and pools been trained anew."""
    before = TrainConfig(validations=5).content
    assert not before.keys() & {"recipe", "accumulation", "decay"}
    published = TrainConfig(recipe="published")
    assert published.content["accumulation"] == 8 and TrainConfig(**published.content).content == published.content
    explicit = {**PUBLISHED, "accumulation": 8}
    assert TrainConfig(**explicit).content == published.content


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"steps": 1000, "batch_size": 16}),
        (["--recipe", "published"], PUBLISHED),
        (["--recipe", "published", "--steps", "1000"], {**PUBLISHED, "steps": 1000}),  # though it is the default
        (["--steps", "7"], {"steps": 7, "learning_rate": 5e-3}),
    ],
)
def test_an_option_that_is_given_counts_beside_a_recipe(words: list[str], expected: dict[str, Any]) -> None:
    seen: list[TrainConfig] = []

    def command(config: TrainConfig) -> None:
        seen.append(config)

    app = typer.Typer()
    app.command()(with_settings(TrainConfig, "config")(command))
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    assert {name: getattr(seen[0], name) for name in expected} == expected
