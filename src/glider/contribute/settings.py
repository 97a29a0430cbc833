"""Settings of the contributor's protocol; imports no torch, so that the command line can show them at once."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from glider.config import EMBEDDED_EMBEDDER, Config

Decay = Literal["constant", "linear"]
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},  # the defaults of `TrainConfig`
    "published": {
        "steps": 1500,
        "gate_steps": 200,
        "learning_rate": 3e-3,
        "warmup_ratio": 0.02,
        "decay": "linear",
        "validations": 15,
        "batch_size": 128,
        "accumulation": 8,
    },
}


class Schedule(Config):
    """How long and how fast to train. The optimiser is AdamW without weight decay (GLIDER, section 5.1)."""

    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_ratio: float = Field(ge=0, lt=1)
    clip_norm: float = Field(gt=0)
    minutes: float | None = Field(gt=0)
    validations: int = Field(ge=1)
    accumulation: int = Field(default=1, ge=1)  # parts in which the rows of a step are computed, one after the other
    decay: Decay = "constant"

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then constant, or falling to zero behind the last step."""
        warmup = max(1, round(self.warmup_ratio * self.steps))
        if step < warmup or self.decay == "constant":
            return self.learning_rate * min(1.0, (step + 1) / warmup)
        return self.learning_rate * (self.steps - step) / (self.steps - warmup + 1)

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows this step: evenly spaced, the last step included."""
        marks = {round(self.steps * (i + 1) / self.validations) for i in range(self.validations)}
        return step + 1 in marks


class TrainConfig(Config):
    """Settings of `glider expert train`, each described with its field.

    Rank, steps, learning rate and warm-up are the paper's by default (section 5.1), constant rate and ten validations
    those of PHATGOOSE's code, which it follows. The paper names no batch; 16 rows are ours. A recipe sets what is not
    given otherwise.

    Raises: `ConfigError` naming every field that does not fit.
    """

    recipe: Literal["paper", "published"] = Field(
        "paper",
        description="What sets the steps, rates and batch that are not given: the paper's, or the published code's.",
    )
    rank: int = Field(16, gt=0, description="LoRA rank.")
    alpha: float = Field(1.0, gt=0, description="LoRA alpha; the scaling is alpha / rank.")
    columns: str = Field("", description="Columns of the rows, as input=question,output=answer.")
    sites: str = Field("all-linear", description="PEFT target modules: all-linear, a regex, or comma-separated names.")
    steps: int = Field(1000, gt=0, description="LoRA steps.")
    gate_steps: int = Field(100, gt=0, description="Gate steps.")
    batch_size: int = Field(16, gt=0, description="Rows a step.")
    accumulation: int = Field(
        1, ge=1, description="Parts in which a step's rows are computed, for a batch that memory does not hold at once."
    )
    checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass: less memory, about a third more time.",
    )
    learning_rate: float = Field(5e-3, gt=0, description="AdamW learning rate, for LoRA and gates.")
    decay: Decay = Field("constant", description="After the warm-up: constant, or linear to zero.")
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="Share of the steps with rising learning rate.")
    clip_norm: float = Field(1.0, gt=0, description="Gradient norm limit.")
    max_tokens: int = Field(512, gt=1, description="Longer rows are left out.")
    validation: int = Field(64, ge=0, description="Rows held back to choose the best checkpoint.")
    validations: int = Field(10, ge=1, description="Validations in each stage.")
    minutes: float | None = Field(None, gt=0, description="Time budget; LoRA takes 3/4 of it, gates the rest.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic: bfloat16 runs under autocast and pays only where the CPU or GPU has it."
    )
    seed: int = Field(0, ge=0, lt=2**30, description="Order of rows and initial weights.")
    examples: int = Field(3, ge=0, le=64, description="Training rows kept in the card.")
    stored: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Training inputs that the profile stores one by one, for retrieval(by=examples); its paper: 1000.",
    )
    embedder: str = Field(EMBEDDED_EMBEDDER, description="sentence-transformers model for the description.")
    embedder_prefix: str = Field("", description="Text put before whatever is embedded (nomic wants one).")

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        recipe = value.get("recipe", "paper")
        return {**RECIPES.get(recipe if isinstance(recipe, str) else "paper", {}), **value}

    @property
    def content(self) -> dict[str, Any]:
        """What decides the result, for cards and hashes: without the recipe, whose settings stand there, and without
        later settings where they change nothing, so that what was trained before they were known stays known."""
        later = {"accumulation": 1, "decay": "constant", "checkpointing": False, "stored": 0}
        values = self.model_dump(mode="json", exclude={"recipe"})
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    @property
    def gate_share(self) -> float:
        """The gates' part of the minutes."""
        return 0.25

    def schedule(self, stage: Literal["lora", "gates"]) -> Schedule:
        """The schedule of one stage."""
        share = self.gate_share if stage == "gates" else 1 - self.gate_share
        return Schedule(
            steps=self.steps if stage == "lora" else self.gate_steps,
            learning_rate=self.learning_rate,
            warmup_ratio=self.warmup_ratio,
            clip_norm=self.clip_norm,
            minutes=None if self.minutes is None else self.minutes * share,
            validations=self.validations,
            accumulation=self.accumulation,
            decay=self.decay,
        )

    @property
    def target_modules(self) -> str | list[str]:
        """`sites` as PEFT takes it."""
        plain = re.fullmatch(r"[\w.]+(,\s*[\w.]+)*", self.sites) is not None and self.sites != "all-linear"
        return [part.strip() for part in self.sites.split(",")] if plain else self.sites


class RouterTraining(Config):
    """Settings of `glider pool train-router`."""

    steps: int = Field(100, ge=1, description="Steps of a router that is trained by the loss.")
    batch_size: int = Field(8, ge=1, description="Rows a step.")
    learning_rate: float = Field(5e-3, gt=0, description="AdamW learning rate.")
    rows: int = Field(64, ge=2, description="Rows of each expert's task, an eighth of them to validate by.")
    max_tokens: int = Field(512, gt=1, description="Longer rows are left out.")
    seed: int = Field(0, ge=0, lt=2**30, description="Order of rows and first codes.")
    codes: int = Field(32, ge=2, le=4096, description="vq: codes of a site.")
    penalty: float = Field(0.1, ge=0, description="mindskip: price of a token (block) that is computed.")
    centroids: int = Field(4, ge=1, le=256, description="ariadne: centroids of an expert.")
    signal: str = Field("examples", description="task-moe: the global signal that represents a task.")

    @property
    def schedule(self) -> Schedule:
        """Warm-up, then a constant rate; validated five times."""
        return Schedule(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_ratio=0.06,
            clip_norm=1.0,
            minutes=None,
            validations=min(5, self.steps),
        )
