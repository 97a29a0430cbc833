"""What needs no vLLM: rows, salts, what is chosen, what is refused, what a shell makes of the arguments."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from glider.engines.vllm import contract
from glider.engines.vllm.arguments import command_line, engine_arguments, plugin_settings
from glider.engines.vllm.front import Front, FrontRequest, turns_in
from glider.engines.vllm.refusals import faults
from glider.engines.vllm.row_table import RowTable
from glider.engines.vllm.rows import ARGUMENT, Row, salt
from glider.engines.vllm.settings import PluginSettings
from glider.engines.vllm.sites import GroupedOutputs, require_triton
from glider.engines.vllm.step import STEP, Step, add_requests, prepare_batch
from glider.errors import ConfigError, EngineError, MissingDependency, QueryError, RouterError
from glider.inference.spec import ModelSpec
from glider.layers.kernels import gpu
from glider.routing.condition import Condition, Settled
from glider.serve.errors import ApiError
from glider.serve.schemas import Steering
from glider.serve.steering import Way

FITS = "Put the concepts together to form a sentence: dog, beach, ball."
STRANGER = "What is the capital of Egypt?"
UNSURE = "Review: a dull, lifeless film. Sentiment?"


@pytest.fixture(scope="module")
def select() -> Front:
    return Front(plugin_settings(ModelSpec(), "select"))


@pytest.fixture(scope="module")
def route() -> Front:
    return Front(plugin_settings(ModelSpec(), "route"))


def settled(*pairs: tuple[int, float]) -> Condition:
    experts, weights = zip(*pairs, strict=True)
    return Condition(1, settled=Settled(torch.tensor([experts]), torch.tensor([weights])))


@pytest.mark.parametrize(
    "condition",
    [
        Condition.of(torch.tensor([[0.1, -torch.inf, 0.7]]), torch.tensor([103.0])),
        Condition.local(1),
        settled((2, 1.0)),
        settled((2, 0.25), (0, 0.75), (1, 0.0)),
    ],
)
def test_a_row_comes_back_from_json_as_it_was_to_the_bit(condition: Condition) -> None:
    row = Row.of(condition)
    assert row is not None
    got = Row.decoded(json.loads(json.dumps(row.encoded)), 3)
    assert got == row
    again = got.condition
    assert again.digest(0) == condition.digest(0) or not condition.all_routed
    if condition.term is not None:
        assert again.term is not None and torch.equal(again.term, condition.term)


def test_a_bare_condition_has_no_row_and_a_broken_one_is_refused() -> None:
    assert Row.of(Condition.nobody(1)) is None
    with pytest.raises(QueryError, match="finite"):
        Row.of(Condition.of(torch.tensor([[torch.nan, 0.0]]), torch.ones(1)))


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], {"term": [1.0]}, {"term": [float("nan")] * 3}, {"term": [float("inf"), 0.0, 0.0]}, {"term": "abc"}),
        *({"experts": [3], "weights": [1.0]}, {"experts": [0], "weights": []}, {"experts": ["0"], "weights": [1.0]}),
        {"term": [1, 2, 3]},
    ],
)
def test_what_is_no_row_is_left_to_the_base_and_raises_nothing(value: Any) -> None:
    assert Row.decoded(value, 3) is None
    step = Step(3)
    step.prepare(["a"], [value], [4])
    assert step.segments(4, torch.device("cpu")) == (0, ())


def test_salts_tell_conditions_pools_routers_and_clients_apart() -> None:
    row, other = Row((0.5, 1.0)), Row((0.5, 1.0 + 2**-23))
    parts = ("pool", "glider")
    salts = [
        *(salt(row, parts, None), salt(other, parts, None), salt(row, ("pool", "arrow"), None)),
        *(
            salt(row, ("other", "glider"), None),
            salt(row, parts, "mine"),
            salt(None, parts, "mine"),
            salt(Row(), parts, None),
        ),
    ]
    assert len(set(salts)) == len(salts) and None not in salts
    assert salt(row, parts, None) == salt(Row((0.5, 1.0)), parts, None)
    assert salt(None, parts, None) is None
    stolen = salts[0]
    assert salt(None, parts, stolen) not in salts and salt(row, parts, stolen) not in salts


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


def test_select_names_the_expert_of_what_fits_and_the_base_for_strangers(select: Front) -> None:
    chosen = [select.choose(FrontRequest(Way("routed"), text)) for text in (FITS, STRANGER, UNSURE)]
    assert [(one.verdict, one.expert) for one in chosen] == [
        *(("fits", "common_gen"), ("stranger", None), ("unsure", "rotten_tomatoes")),
    ]
    assert all(one.row is None and one.salt is None for one in chosen)
    base = Front(plugin_settings(ModelSpec(), "select", unsure="base"))
    assert base.choose(FrontRequest(Way("routed"), UNSURE)).expert is None
    assert base.choose(FrontRequest(Way("routed"), FITS)).expert == "common_gen"


def test_select_follows_names_and_steering(select: Front) -> None:
    def expert(text: str, way: Way | None = None, **steering: Any) -> str | None:
        return select.choose(FrontRequest(way or Way("routed"), text, steering=Steering(**steering))).expert

    assert expert(STRANGER, Way("single", expert="paws")) == "paws"
    assert expert(FITS, Way("base")) is None
    assert expert(FITS, verdict="base") is None
    assert expert(STRANGER, verdict="route") in select.names
    assert expert(FITS, exclude=["common_gen"]) not in (None, "common_gen")
    assert expert(FITS, experts=["paws"]) == "paws"
    with pytest.raises(ApiError, match="weights of experts need --mode route"):
        select.steering({"experts": {"paws": 0.5, "trec": 0.5}})


def test_route_settles_routes_and_bares_as_the_library_does(route: Front) -> None:
    chosen = {text: route.choose(FrontRequest(Way("routed"), text)) for text in (FITS, STRANGER, UNSURE)}
    assert chosen[FITS].row == Row((), (route.names.index("common_gen"),), (1.0,))
    assert chosen[STRANGER].row is None and chosen[STRANGER].salt is None
    assert chosen[UNSURE].row is not None and len(chosen[UNSURE].row.experts) == 3
    forced = route.choose(FrontRequest(Way("routed"), STRANGER, steering=Steering(verdict="route")))
    assert forced.row is not None and len(forced.row.term) == len(route.names) and forced.verdict == "stranger"


def test_a_router_that_differs_in_its_term_is_served_beside(route: Front) -> None:
    local = route.choose(FrontRequest(route.way("demo:phatgoose"), FITS))
    assert local.row == Row() and local.salt != route.choose(FrontRequest(Way("routed"), FITS)).salt
    with pytest.raises(ApiError) as refused:
        route.choose(FrontRequest(route.way("demo:arrow"), FITS))
    assert refused.value.status == 400
    with pytest.raises(ApiError) as unknown:
        route.way("nobody")
    assert unknown.value.status == 404


def test_of_a_chat_the_users_turns_are_asked(route: Front) -> None:
    turns = turns_in(
        [
            {"role": "user", "content": FITS},
            {"role": "assistant", "content": "A dog and a ball."},
            {"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image_url"}]},
        ]
    )
    assert turns[-1] == ("user", "Why?")
    chosen = route.choose(FrontRequest(Way("routed"), "Why?", turns=turns))
    assert chosen.verdict == "fits"  # the follow-up stays with what it follows


@pytest.mark.parametrize("told", [{"verdict": "maybe"}, {"nothing": 1}, {"trace": True}, "base"])
def test_steering_that_cannot_be_followed_is_a_400(route: Front, told: Any) -> None:
    with pytest.raises(ApiError) as refused:
        route.steering(told)
    assert refused.value.status == 400


def test_the_command_line_is_words_that_no_shell_changes(tmp_path: Path, make_wide_pool: Any) -> None:
    pool = make_wide_pool(name="a pool")
    words = command_line(plugin_settings(ModelSpec(pool=str(pool.path), abstain=False), "route"))
    line = " ".join(words)
    script = f"for word in $(cat {tmp_path}/line); do printf '%s\\n' \"$word\"; done"
    (tmp_path / "line").write_text(line)
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [part for word in words for part in word.split()] == told
    settings = json.loads(told[told.index("--additional-config") + 1])["glider"]
    assert settings["spec"]["pool"] == str(pool.path) and " " in settings["spec"]["pool"]


def test_a_pool_that_changed_is_not_served_by_old_arguments(
    make_wide_pool: Any, grow_pool: Any, wide_llama: Path
) -> None:
    pool = make_wide_pool()
    settings = plugin_settings(ModelSpec(pool=str(pool.path), abstain=False), "route")
    settings.open_pool()
    grow_pool(pool, wide_llama, "more")
    with pytest.raises(EngineError, match="another state"):
        settings.open_pool()


def test_select_asks_for_lora_of_the_pools_rank() -> None:
    demo = engine_arguments(plugin_settings(ModelSpec(), "select"))
    assert demo["max_lora_rank"] == 8 and demo["max_loras"] == demo["max_cpu_loras"] == 8


@pytest.mark.parametrize(
    ("spec", "mode", "fault"),
    [
        ({"abstain": False}, "select", EngineError),
        ({"router": "phatgoose"}, "select", EngineError),
        ({"expert_memory": "1GB"}, "route", ConfigError),
        ({"router": "nobody"}, "route", RouterError),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(spec: dict, mode: Any, fault: type) -> None:
    with pytest.raises(fault):
        plugin_settings(ModelSpec(**spec), mode)


def config(**changes: Any) -> Any:
    parts: dict[str, Any] = {
        "load_config": {"load_format": "glider"},
        "model_config": {"runner_type": "generate", "is_encoder_decoder": False, "is_multimodal_model": False},
        "lora_config": None,
        "device_config": {"device_type": "cpu"},
        "cache_config": {"kv_sharing_fast_prefill": False},
        "parallel_config": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "use_ubatching": False},
    }
    for name, value in changes.items():
        parts[name] = {**(parts.get(name) or {}), **value}
    spaces = {name: value and SimpleNamespace(**value) for name, value in parts.items()}
    return SimpleNamespace(use_v2_model_runner=changes.pop("v2", None) is not None, **spaces)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"load_config": {"load_format": "auto"}}, "--load-format"),
        ({"model_config": {"runner_type": "pooling"}}, "generates"),
        ({"model_config": {"is_encoder_decoder": True}}, "decoder-only"),
        ({"model_config": {"is_multimodal_model": True}}, "language model"),
        ({"device_config": {"device_type": "cuda"}}, None),
        ({"device_config": {"device_type": "cuda"}, "v2": {}}, None),
        ({"v2": {}}, "V1 model runner"),
        ({"device_config": {"device_type": "xpu"}}, "a CPU or a GPU of NVIDIA's"),
        ({"speculative_config": {"enable_adaptive_verification": True}}, "as many tokens"),
        ({"parallel_config": {"tensor_parallel_size": 2}}, "one worker"),
        ({"parallel_config": {"pipeline_parallel_size": 2}}, "one worker"),
        ({"parallel_config": {"use_ubatching": True}}, "whole batches"),
        ({"cache_config": {"kv_sharing_fast_prefill": True}}, "every token"),
    ],
)
def test_engines_that_would_not_be_right_are_refused(changes: dict, told: str | None) -> None:
    settings = PluginSettings(mode="route", digest="0" * 64, name="demo", base="b")
    wanted = [fault[0] for fault in faults(config(**changes), settings)]
    assert wanted == [] if told is None else len(wanted) == 1 and told in wanted[0]


def test_select_needs_lora_of_the_experts_rank_and_runs_on_any_device() -> None:
    settings = plugin_settings(ModelSpec(), "select")
    (without,) = faults(config(), settings)
    assert "--enable-lora" in without[0]
    (low,) = faults(config(lora_config={"max_lora_rank": 1}), settings)
    assert "--max-lora-rank" in low[0]
    on_gpus = {"lora_config": {"max_lora_rank": 8}, "device_config": {"device_type": "cuda"}, "v2": {}}
    assert not list(faults(config(**on_gpus, parallel_config={"tensor_parallel_size": 4}), settings))


def test_the_rust_front_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    settings = PluginSettings(mode="route", digest="0" * 64, name="demo", base="b")
    assert [fault[0] for fault in faults(config(), settings)] == ["vLLM's Python front end"]


@pytest.mark.parametrize(
    ("version", "known"),
    [("0.31.2", False), ("0.32.0", True), ("0.32.0+cpu", True), ("0.33.4", True), ("0.34.0", False)],
)
def test_versions_that_the_plug_in_is_written_for(version: str, known: bool) -> None:
    assert contract.known(version) is known


def test_without_vllm_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "installed", lambda: None)
    with pytest.raises(MissingDependency, match=r"pip install 'glider-moe\[vllm\]'"):
        contract.require_vllm()


def test_a_name_that_is_gone_or_changed_is_told_with_the_versions_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "installed", lambda: "0.33.9")
    gone = contract.Touched("glider.errors", "NoSuchError")
    changed = contract.Touched("glider.errors", "GliderError.__init__", ("wanted", "price"))
    right = contract.Touched("glider.errors", "GliderError.__init__", ("wanted", "got"))
    with pytest.raises(EngineError) as fault:
        contract.require_contract((right, gone, changed))
    assert ">=0.32,<0.34" in str(fault.value) and "0.33.9" in str(fault.value)
    assert "NoSuchError" in str(fault.value) and "without price" in str(fault.value)
    contract.require_contract((right,))


@pytest.mark.parametrize(
    ("version", "variables", "runner", "route"),
    [
        (None, {}, None, None),
        ("0.32.0+cpu", {}, "V1", None),
        ("0.32.0+cpu", {"VLLM_USE_V2_MODEL_RUNNER": "1"}, "V2", "V2"),
        ("0.33.0", {"VLLM_USE_V2_MODEL_RUNNER": "0"}, "V1", None),
        ("0.40.0", {}, None, ">=0.32,<0.34"),
        ("0.32.0+cpu", {"VLLM_USE_RUST_FRONTEND": "1"}, "V1", "RUST"),
    ],
)
def test_the_doctor_says_what_would_be_refused(
    monkeypatch: pytest.MonkeyPatch, version: str | None, variables: dict, runner: str | None, route: str | None
) -> None:
    from glider.engines.vllm.diagnosis import diagnosis

    monkeypatch.setattr(contract, "installed", lambda: version)
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = diagnosis()
    assert (told["version"], told["runner"]) == (version, runner)
    if version is None:
        assert told["modes"] == {}
    elif route is None:
        assert told["modes"] == {"select": None, "route": None}
    else:
        assert route in told["modes"]["route"]
