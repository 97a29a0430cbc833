"""Which kernel runs: the best that can, or the one asked for, or an error."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import KernelError
from glider.inference.spec import load
from glider.layers.context import Batch, RoutingContext
from glider.layers.kernels import choice, native
from glider.layers.routed_linear import RoutedLinear
from glider.layers.routed_site import RoutedSite
from glider.layers.trace import Trace
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.select import TopK, TopP

from .cases import random_case

needs_native = pytest.mark.skipif(native.extension() is None, reason=f"no native kernel: {native.why_absent()}")


def layer_of(kernel: str | None, seed: int = 0, dtype: torch.dtype = torch.float32, **router: Any) -> RoutedLinear:
    case = random_case(seed, dtype=dtype)
    torch.manual_seed(seed)
    base = torch.nn.Linear(20, 18)
    return RoutedLinear.over(base, RoutedSite(case.site, case.bank, Phatgoose(**router), kernel), RoutingContext())


@torch.inference_mode()
def traced(layer: RoutedLinear, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, int]]:
    trace = Trace([str(i) for i in range(5)], None, torch.ones(x.shape[:2], dtype=torch.bool))
    with layer.context.use(Batch.of(None, None, trace)):
        return layer(x), trace.kernels


@needs_native
@pytest.mark.parametrize("select", [TopK(2), TopK(9), TopP(0.6)])
@pytest.mark.parametrize("shape", [(1, 1, 20), (2, 7, 20), (3, 40, 20), (4, 20), (20,)])
def test_all_kernels_agree_and_the_trace_says_which_ran(shape: tuple[int, ...], select: Any) -> None:
    x = torch.randn(shape)
    outputs = []
    for kernel in (None, "native", "torch", "reference"):
        layer = layer_of(kernel, select=select)
        with torch.inference_mode():
            outputs.append(layer(x))
        if len(shape) == 3:
            output, kernels = traced(layer, x)
            torch.testing.assert_close(output, outputs[-1], atol=2e-5, rtol=2e-5)
            assert kernels == {kernel or "native": 1}
    for output in outputs:
        assert output.shape == (*shape[:-1], 18)
        torch.testing.assert_close(output, outputs[-1], atol=2e-5, rtol=2e-5)


@needs_native
def test_without_a_wish_the_best_that_can_run_is_taken() -> None:
    layer, x = layer_of(None), torch.randn(1, 4, 20)
    assert traced(layer, x)[1] == {"native": 1}
    assert traced(layer.double(), x.double())[1] == {"torch": 1}
    assert traced(layer.float(), x)[1] == {"native": 1}
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


@needs_native
def test_a_native_kernel_that_must_run_and_cannot_is_an_error() -> None:
    layer, x = layer_of("native"), torch.randn(1, 4, 20)
    with pytest.raises(KernelError, match="gradients"):
        layer(x)
    with torch.inference_mode():
        layer(x)
        layer.double()
        with pytest.raises(KernelError, match="stored in float64"):
            layer(x.double())
    with pytest.raises(KernelError, match="stored in float16"):
        layer_of("native", dtype=torch.float16)


def test_the_variable_chooses_and_the_argument_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIDER_KERNEL", "reference")
    x = torch.randn(1, 4, 20)
    assert traced(layer_of(None), x)[1] == {"reference": 1}
    assert traced(layer_of("torch"), x)[1] == {"torch": 1}
    monkeypatch.setenv("GLIDER_KERNEL", "fastest")
    with pytest.raises(KernelError, match="GLIDER_KERNEL 'fastest'"):
        layer_of(None)


def test_without_the_extension_pytorch_runs_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "extension", lambda: None)
    choice._say_once.cache_clear()
    layers = [layer_of(None) for _ in range(3)]
    assert [record.getMessage() for record in caplog.records] == [
        "no native kernel: it was not built (no C++ compiler at installation); routing runs in plain PyTorch"
    ]
    assert traced(layers[0], torch.randn(1, 4, 20))[1] == {"torch": 1}
    with pytest.raises(KernelError, match="not built"):
        layer_of("native")
    choice._say_once.cache_clear()


@needs_native
def test_nothing_that_belongs_to_somebody_else_is_written_to() -> None:
    """A base may give its own input, or a tensor that it keeps; and who listens to it keeps what it heard."""
    case = random_case(1, width=20, out=20)

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    layer = RoutedLinear.over(Same(), RoutedSite(case.site, case.bank, Phatgoose()), RoutingContext())
    x = torch.randn(2, 3, 20)
    before = x.clone()
    with torch.inference_mode():
        assert not torch.equal(layer(x), x)
        assert torch.equal(x, before)
        listened = layer_of(None)
        heard: list[torch.Tensor] = []
        listened.base.register_forward_hook(lambda module, inputs, output: heard.append(output))
        listened(x)
        torch.testing.assert_close(heard[0], torch.nn.functional.linear(x, listened.weight, listened.bias))


@needs_native
def test_a_view_as_input_gives_what_its_copy_gives() -> None:
    layer, wide = layer_of(None), torch.randn(3, 4, 40)
    with torch.inference_mode():
        for view in (wide[..., ::2], wide[:, 1:3, :20], wide[..., :20].transpose(0, 1)):
            assert not view.is_contiguous()
            torch.testing.assert_close(layer(view), layer(view.contiguous()))


def test_load_takes_a_kernel(make_pool, llama_directory: Path) -> None:
    pool = make_pool(llama_directory, 2)
    answers = []
    for kernel in ("torch", "reference"):
        model = load(str(llama_directory), pool.path, kernel=kernel)
        [answer], trace = model.generate_traced(["what?"], max_new_tokens=4)
        assert set(trace.kernels) == {kernel}
        answers.append(answer.token_ids)
    assert answers[0] == answers[1]
    with pytest.raises(KernelError, match="native, triton, torch, reference"):
        load(str(llama_directory), pool.path, kernel="cuda")
