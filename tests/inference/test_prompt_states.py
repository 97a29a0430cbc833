"""Early hidden states of the bare base model."""

import threading

import pytest
import torch

from glider.inference.base_model import load_base
from glider.inference.prompt_states import SHARE, prompt_states
from glider.inference.spec import load


def test_states_are_the_means_of_an_early_layer(llama_directory) -> None:
    base = load_base(str(llama_directory))
    text = "which river is this"
    ids = torch.tensor([base.tokenizer(text).input_ids])
    with torch.inference_mode():
        states = base.model.get_decoder()(input_ids=ids, output_hidden_states=True).hidden_states
    layer = max(1, round((len(states) - 1) / SHARE))
    wanted = torch.nn.functional.normalize(states[layer][0].mean(dim=0), dim=-1)
    torch.testing.assert_close(prompt_states(base, [text])[0], wanted, atol=1e-5, rtol=1e-4)


def test_padding_and_company_change_nothing(base_directory) -> None:
    base = load_base(str(base_directory))
    texts = ["a", "which river is this", "no"]
    together = prompt_states(base, texts)
    for text, state in zip(texts, together, strict=True):
        torch.testing.assert_close(prompt_states(base, [text])[0], state, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("kernel", [None, "torch"])
def test_a_routed_model_reads_without_its_experts(pool_with_profiles, llama_directory, kernel) -> None:
    pool = pool_with_profiles()
    model = load(str(llama_directory), pool.path, router="phatgoose", kernel=kernel)
    bare = load_base(str(llama_directory))
    torch.testing.assert_close(model.read(["which river"]), prompt_states(bare, ["which river"]))
    with model.attached.bare(), torch.inference_mode():
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(model.model(ids).logits, bare.model(ids).logits)


def test_another_thread_may_use_the_model_meanwhile(llama_directory) -> None:
    """The reading stops the model at an early layer: in its own thread alone."""
    base = load_base(str(llama_directory))
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        wanted = base.model(ids).logits
    layer, found = base.model.get_decoder().layers[0], []

    def elsewhere(*_: object) -> None:
        hook.remove()
        with torch.inference_mode():
            thread = threading.Thread(target=lambda: found.append(base.model(ids).logits.detach()))
            thread.start()
            thread.join()

    hook = layer.register_forward_pre_hook(elsewhere)
    prompt_states(base, ["which river"])
    assert len(found) == 1 and torch.equal(found[0], wanted)
