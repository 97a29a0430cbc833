"""Log-probabilities of a prompt's own tokens, for `echo`."""

from typing import TYPE_CHECKING

import torch

from glider.serve.exchange import Prompt, Token

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel
    from glider.layers.attach import Generation
    from glider.routing.condition import Condition


def prompt_tokens(
    model: "RoutedModel", generation: "Generation", condition: "Condition", prompt: Prompt, logprobs: int | None
) -> list[Token]:
    """The prompt's tokens; with `logprobs`, what the model gives each by those before it, by one pass of its own.

    The first has none. The model is a decoder, which writes its prompt.
    """
    if logprobs is None:
        return [Token(token, None, ()) for token in prompt.ids]
    ids = torch.tensor([prompt.ids], device=model.model.device)
    with torch.inference_mode(), model.attached.routing(condition, generation=generation):
        logits = model.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    values = logits.log_softmax(dim=-1)  # (S - 1, V)
    observed = values.gather(1, ids[0, 1:, None])[:, 0].tolist()
    best = values.topk(min(logprobs, values.shape[1]), dim=-1)
    likeliest = [
        tuple(zip(row, scores, strict=True))
        for row, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    first = Token(prompt.ids[0], None, ())
    rest = zip(prompt.ids[1:], observed, likeliest, strict=True)
    return [first, *(Token(token, value, top) for token, value, top in rest)]
