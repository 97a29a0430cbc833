"""What comes back: answers, and how likely choices are."""

from collections.abc import Sequence
from dataclasses import dataclass

from glider.layers.attach import Generation
from glider.routing.condition import Condition


@dataclass(frozen=True)
class Answer:
    """What the model wrote for one query, and what guided it.

    Arguments:
        text: The answer.
        token_ids: Its tokens, the end token included where it was written.
        finish_reason: "stop" or "length".
        global_scores: Score of each expert for the whole query; empty where the router has no global term.
        alpha: The factor of the global scores.
        usage: Mean weight of each expert over sites and tokens, if a trace was requested.
        description: The description used for the query.
        fault: Why the global term, a description or examples were not used.
        verdict: "fits", "unsure" or "stranger", the pool's own also where the query overrides it; None without any.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop": the model or a stop string ended it; "length": max_new_tokens or max_time did
    global_scores: dict[str, float]  # by expert; empty for a router without a global term
    alpha: float | None
    usage: dict[str, float]  # mean weight of each expert over tokens and sites; empty unless traced
    description: str | None = None  # what was embedded for the global term
    fault: str | None = None  # why the global term, or what the query brings for it, was left out
    verdict: str | None = None  # fits, unsure, stranger; None where nobody judged

    @classmethod
    def of(
        cls,
        text: str,
        ids: Sequence[int],
        reason: str,
        condition: Condition,
        generation: Generation,
        usage: dict[str, float] | None = None,
    ) -> "Answer":
        """What was written, with what its condition (one row) says."""
        values = [] if condition.global_scores is None else condition.global_scores[0].tolist()
        described = condition.described[0] if condition.described else None
        return cls(
            text=text.strip(),
            token_ids=tuple(ids),
            finish_reason=reason,
            global_scores=dict(zip(generation.names, values, strict=False)),  # empty without a global term
            alpha=None if condition.alpha is None else condition.alpha[0].item(),
            usage=usage or {},
            description=described and described.text,
            fault=described and described.fault,
            verdict=condition.verdicts[0] or None if condition.verdicts else None,
        )


@dataclass(frozen=True)
class ChoiceScore:
    """How likely a choice is as the answer. Tokens include the end token."""

    choice: str
    log_likelihood: float
    tokens: int

    @property
    def normalised(self) -> float:
        """Log-likelihood per token: what rank classification compares."""
        return self.log_likelihood / self.tokens
