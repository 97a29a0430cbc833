"""What a router makes of a model: answers in batches, beams and packed passes, kernels, verdicts."""

import torch

from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import ModelSpec
from glider.routing.base import Router, support_of
from glider.shapes import Float, Tensor

PROMPTS = ("hello there", "sort 3 1 2")


def check_kernels(router: Router, pool: Pool, base: BaseModel) -> None:
    """Reference, torch and whatever runs by itself here say the same; so does a folded expert."""
    logits = []
    for kernel in ("reference", "torch", None):
        model = ModelSpec(router=router, kernel=kernel).over(base, pool)
        try:
            logits.append(_logits(model))
            if kernel is None and len(model.attached.prepared.experts) == 1:
                model.fold()
                logits.append(_logits(model))
                model.unfold()
        finally:
            model.detach()
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=5e-3, rtol=1e-3, msg="kernels say the same")


def _logits(model: RoutedModel) -> Float[Tensor, "1 S V"]:
    """Those of a prompt in one pass; the first tokens of an answer stand behind it, or in the decoder."""
    condition = model.condition(PROMPTS[:1])
    ids = model.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    decoder = {"decoder_input_ids": ids[:, :3]} if model.model.config.is_encoder_decoder else {}
    with torch.inference_mode(), model.attached.routing(condition):
        return model.model(input_ids=ids, **decoder).logits.float()


def check_verdicts(router: Router, pool: Pool, base: BaseModel) -> None:
    """A query that is overruled has the base's answer, alone and beside one that is routed."""
    support = support_of(router)
    settings = {"max_new_tokens": 3, "use_cache": support.cache}
    bare = ModelSpec(router="base").over(base, pool)
    try:
        (of_base,) = bare.generate(PROMPTS[:1], **settings)
    finally:
        bare.detach()
    overruled = Query(PROMPTS[0], verdict="base")
    model = ModelSpec(router=router).over(base, pool)
    try:
        answers = model.generate([overruled], **settings)
        if support.mixed:
            (routed,) = model.generate(PROMPTS[1:], **settings)
            beside, other = model.generate([overruled, PROMPTS[1]], **settings)
            answers.append(beside)
            assert other.token_ids == routed.token_ids, "a query beside one that is left to the base is routed as alone"
    finally:
        model.detach()
    for answer in answers:
        assert answer.token_ids == of_base.token_ids, "a query that is left to the base has the base's answer"


def check_model(router: Router, pool: Pool, base: BaseModel) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    model = ModelSpec(router=router).over(base, pool)
    try:
        support = support_of(router)
        settings = {"max_new_tokens": 3, "use_cache": support.cache}
        alone = [model.generate([prompt], **settings)[0] for prompt in PROMPTS]
        if support.mixed:
            together = model.generate(PROMPTS, **settings)
            assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone], (
                "answers of a batch are those of each prompt alone"
            )
        if support.mixed:
            beams = [model.generate([prompt], num_beams=2, **settings)[0] for prompt in PROMPTS]
            assert [answer.token_ids for answer in model.generate(PROMPTS, num_beams=2, **settings)] == [
                answer.token_ids for answer in beams
            ], "beams of a batch are those of each prompt alone"
        if support.mixed and support.cache:
            packed = model.generate_batch(PROMPTS, max_new_tokens=3)
            assert [answer.token_ids for answer in packed] == [answer.token_ids for answer in alone], (
                "answers of packed passes are those of each prompt alone"
            )
        if support.cache and not support.sequences:
            without = model.generate(PROMPTS[:1], max_new_tokens=3, use_cache=False)
            assert without[0].token_ids == alone[0].token_ids, "answers with a cache are those without"
        if support.cache and (support.chunked or support.sequences):  # a prompt and its choices are decided apart
            for choice in model.score(PROMPTS[0], ["yes", "no"]):
                assert choice.log_likelihood < 0, "log-likelihoods below zero"
        assert bool(_logits(model).isfinite().all()), "finite logits"
    finally:
        model.detach()
    after = base.model.state_dict()
    assert after.keys() == before.keys(), "the model has its own modules again"
    assert all(torch.equal(value, before[name]) for name, value in after.items()), "the base model is as it was"
