"""How well a row is answered at a given alpha, with an expert or without."""

from collections.abc import Callable

import torch

from glider.data.rows import Row
from glider.errors import RouterError
from glider.inference.likelihood import likelihoods
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.routing.condition import Condition

_TAKEN_OUT = -1e6  # global score of an expert that may not be chosen


def alpha_loss(model: RoutedModel) -> Callable[[Row, float, int | None], float]:
    """What gives the negative log-likelihood of a row's answer for each of its tokens, end token included.

    It is called with the row, alpha, and the number of an expert that is taken out (or None). Raises `RouterError` for
    a router without a global term.
    """
    term = model.attached.prepared.global_term
    if term is None:
        raise RouterError("a router with a global term", "one without", "Use glider.")

    def loss(row: Row, alpha: float, without: int | None) -> float:
        features, _ = model.reader.features([Query(row.input)], term.scores.needs)
        scores = term.scores.of(features, without).clamp(min=_TAKEN_OUT)
        inputs = model.encoder.batch([model.prompt.prompt_ids(model.tokenizer, row.input)])
        target = model.prompt.target_ids(model.tokenizer, row.output)
        condition = Condition.of(scores, torch.tensor([alpha]), term.signal)
        ((likelihood,),) = likelihoods(model.model, model.attached, inputs, [[target]], condition)
        return -likelihood.total / likelihood.tokens

    return loss
