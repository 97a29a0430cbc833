"""The passes of a worker: which tokens have which row."""

from types import SimpleNamespace

import numpy
import pytest
import torch

from glider.engines.vllm.front import Front, FrontRequest
from glider.engines.vllm.row_table import RowTable
from glider.engines.vllm.rows import ARGUMENT, Row
from glider.engines.vllm.sites import GroupedOutputs, require_triton
from glider.engines.vllm.step import STEP, Step, add_requests, prepare_batch
from glider.errors import EngineError
from glider.layers.kernels import gpu
from glider.serve.errors import ApiError
from glider.serve.steering import Way

from .prompts import FITS


def test_a_pass_maps_tokens_to_requests_and_keeps_that_for_the_next_of_the_same_form() -> None:
    step = Step(2)
    rows = [Row((0.0, 1.0)).encoded, None, Row(experts=(1,), weights=(1.0,)).encoded]
    step.prepare(["a", "b", "c"], rows, [3, 2, 1])
    count, segments = step.segments(8, torch.device("cpu"))  # two of padding
    assert count == 6 and [one.index.tolist() for one in segments if one.index is not None] == [[0, 1, 2], [5]]
    assert step.segments(4, torch.device("cpu")) == (0, ())  # vLLM tries itself
    step.prepare(["a", "b", "c"], rows, [3, 2, 1])
    assert step.segments(6, torch.device("cpu"))[1] is segments
    step.forget(["a"])
    step.prepare(["b", "c"], rows[1:], [1, 1])
    count, segments = step.segments(2, torch.device("cpu"))
    assert count == 2 and [one.index.tolist() for one in segments if one.index is not None] == [[1]]


def test_a_request_that_goes_on_with_another_row_gets_it() -> None:
    step = Step(2)
    step.prepare(["a"], [Row((0.0, 1.0)).encoded], [2])
    assert step.segments(2, torch.device("cpu"))[0] == 2
    step.prepare(["a"], [None], [2])
    assert step.segments(2, torch.device("cpu")) == (0, ())


def test_an_engine_forgets_requests_whose_end_no_pass_told() -> None:
    """The last request before an engine was idle stayed, so that a server with one client kept them all."""
    step = Step(2)
    for number in range(20):
        step.prepare([str(number)], [Row((0.0, 1.0)).encoded], [2])
    assert list(step._known) == ["19"]


def test_a_table_holds_the_rows_of_requests_and_each_tokens_row() -> None:
    table = RowTable(2, 3, requests=4, tokens=16, device=torch.device("cpu"))
    step = Step(2, table)
    rows = [Row((0.5, -1.0)).encoded, None, Row(experts=(1,), weights=(0.25,)).encoded, Row().encoded]
    step.prepare(["a", "b", "c", "d"], rows, [3, 2, 1, 1])
    addresses = [tensor.data_ptr() for tensor in (table.row_of, table.queries.term, table.queries.weights)]
    assert table.row_of.tolist() == [1, 1, 1, 2, 2, 3, 4] + [0] * 9
    assert table.queries.term[:3].tolist() == [[0, 0], [0.5, -1.0], [0, 0]]
    assert table.queries.routed.tolist() == [0, 1, 0, 0, 1]
    assert table.queries.experts[3].tolist() == [1, 0, 0] and table.queries.weights[3].tolist() == [0.25, 0, 0]
    step.prepare(["a", "b", "c", "d"], rows, [1, 1, 1, 1])  # the same requests, fewer tokens
    assert table.row_of.tolist() == [1, 2, 3, 4] + [0] * 12
    step.forget(["a", "b"])
    step.prepare(["c", "e"], [rows[2], None], [1, 1])
    assert table.row_of.tolist() == [1, 2] + [0] * 14
    assert table.queries.routed[1:3].tolist() == [0, 0] and table.queries.weights[1].tolist() == [0.25, 0, 0]
    assert table.queries.weights[2].tolist() == [0, 0, 0]
    step.prepare(["c"], [Row((1.0, 1.0)).encoded], [2])  # goes on with another row
    assert table.queries.routed[1] == 1 and table.row_of.tolist() == [1, 1] + [0] * 14
    assert addresses == [tensor.data_ptr() for tensor in (table.row_of, table.queries.term, table.queries.weights)]


def test_the_second_runner_tells_rows_when_requests_come_and_go() -> None:
    table = RowTable(2, 3, requests=4, tokens=16, device=torch.device("cpu"))
    step = Step(2, table)
    runner = SimpleNamespace(
        vllm_config=SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={STEP: step}))
    )
    row = Row((0.5, -1.0)).encoded
    params = SimpleNamespace(extra_args={ARGUMENT: row})
    new = SimpleNamespace(req_id="a", sampling_params=params)
    bare = SimpleNamespace(req_id="b", sampling_params=None)
    began = SimpleNamespace(finished_req_ids=set(), preempted_req_ids=None, scheduled_new_reqs=[new, bare])
    calls: list[str] = []
    add_requests(lambda self, output: calls.append("added"))(runner, began)
    state = SimpleNamespace(req_ids=["b", "a"], num_scheduled_tokens=numpy.array([2, 1]))
    prepare_batch(lambda self, output, state, *rest: calls.append("prepared"))(runner, None, state, None, 0)
    assert calls == ["added", "prepared"]
    assert table.row_of[:4].tolist() == [1, 1, 2, 0] and table.queries.routed[1:3].tolist() == [0, 1]
    ended = SimpleNamespace(finished_req_ids={"a"}, preempted_req_ids={"b"}, scheduled_new_reqs=[])
    add_requests(lambda self, output: None)(runner, ended)
    assert step.rows == {}


@pytest.mark.parametrize("kernel", ["torch", "native", "reference"])
def test_on_a_gpu_another_kernel_than_tritons_is_refused(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_absent", lambda: None)
    require_triton(None)
    require_triton("triton")
    with pytest.raises(EngineError, match=f"got kernel {kernel}"):
        require_triton(kernel)
    monkeypatch.setattr(gpu, "why_absent", lambda: "triton is not installed")
    with pytest.raises(EngineError, match="triton is not installed"):
        require_triton(None)


def test_a_pass_longer_than_the_table_is_refused() -> None:
    outputs = GroupedOutputs([], RowTable(2, 3, requests=4, tokens=16, device=torch.device("cpu")))
    outputs.add(torch.zeros(16, 4), torch.zeros(16, 4))
    with pytest.raises(EngineError, match="at most 16 tokens"):
        outputs.add(torch.zeros(17, 4), torch.zeros(17, 4))


def test_on_a_device_a_request_has_room_for_a_few_experts(route: Front) -> None:
    steering = {"experts": dict.fromkeys(route.names, 0.25)}
    assert len(steering["experts"]) > 3
    asked = FrontRequest(Way("routed"), FITS, steering=route.steering(steering))
    assert route.choose(asked).row is not None
    on_device = Front(route.settings, on_device=True)
    with pytest.raises(ApiError, match="at most 3 experts") as fault:
        on_device.choose(asked)
    assert fault.value.status == 400
    few = {"experts": dict.fromkeys(route.names[:3], 0.25)}
    assert on_device.choose(FrontRequest(Way("routed"), FITS, steering=route.steering(few))).row is not None
