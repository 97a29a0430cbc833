"""Settings that read the tokens before an answer, in a padded batch: by each row's own tokens, without its padding.

transformers hands them the padded batch: a least length counts the padding, and a token of padding is one that must
not come again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process

from glider.inference.sampler import Processor, request_processors

_READING = (
    logits_process.EncoderNoRepeatNGramLogitsProcessor,
    logits_process.EncoderRepetitionPenaltyLogitsProcessor,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
)


def search_by_rows(rows: Sequence[Sequence[int]], callers: Sequence[Any], streamer: Any) -> Callable[..., Any]:
    """A `custom_generate` that searches as transformers does, with the settings that read tokens applied by row.

    Arguments:
        rows: The prompts in tokens, of unlike lengths.
        callers: The caller's own processors, which are left as they are.
        streamer: What new tokens are handed to (transformers passes none to a search that is not its own), or None.
    """

    def search(
        model: Any,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **more: Any,
    ) -> Any:
        alone = [request_processors(model, generation_config, row) for row in rows]
        width = 0 if model.config.is_encoder_decoder else input_ids.shape[1]
        processors = LogitsProcessorList()
        for processor in logits_processor:
            if type(processor) in _READING and not any(processor is one for one in callers):
                by_row = [next(one for one in row if type(one) is type(processor)) for row in alone]
                processor = _ByRow(by_row, [max(0, width - len(row)) for row in rows])
            processors.append(processor)
        if (generation_config.num_beams or 1) > 1:
            return model._beam_search(input_ids, processors, stopping_criteria, generation_config, **more)
        return model._sample(input_ids, processors, stopping_criteria, generation_config, streamer=streamer, **more)

    return search


class _ByRow(LogitsProcessor):
    """A processor of its own for each prompt; `padding` counts the tokens before each. Beams of a prompt are rows."""

    def __init__(self, processors: Sequence[Processor], padding: Sequence[int]):
        self._processors, self._padding = processors, padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        beams = len(input_ids) // len(self._processors)
        rows = [
            process(ids[:, padding:], part)
            for process, padding, ids, part in zip(
                self._processors, self._padding, input_ids.split(beams), scores.split(beams), strict=True
            )
        ]
        return torch.cat(rows)
