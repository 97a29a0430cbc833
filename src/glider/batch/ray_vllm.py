"""Chunks of prompts answered by vLLM on a cluster: `ray.data.llm`'s processor, whose engines have glider's plug-in.

A stage before the engines writes each row as tokens, with what decides of its experts among its sampling parameters;
the plug-in in the engine follows that. What the engine wrote is read here.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import glider
from glider.batch.answering import AnswerSettings, answers_of, entry
from glider.batch.prompts import PromptRow
from glider.batch.ray_data import every_chunk, fail, items_of, most_actors
from glider.batch.run import Answered
from glider.engines.vllm.contract import require_vllm
from glider.engines.vllm.offline import Requests, arguments_of, source_of
from glider.errors import ConfigError, GliderError, QueryError
from glider.inference.spec import ModelSpec
from glider.jobs.base import Fault
from glider.jobs.ray_cluster import Need, connected
from glider.jobs.ray_executor import RayExecutor
from glider.jobs.ray_node import node_name

_FAULT = "__inference_error__"  # the column by which `ray.data.llm` lets a row pass by the engine
_LONGEST_START = 3600  # seconds for the first engine; on clusters that grow, with its node
_NO_FAULT, _BESIDE = "", "not asked"


def on_ray_by_vllm(
    executor: RayExecutor, spec: ModelSpec, settings: AnswerSettings
) -> Callable[[Sequence[list[PromptRow]]], Answered]:
    """Chunks answered by engines of vLLM on a cluster, in the order in which they end.

    Raises `GliderError` for what vLLM cannot serve, and where pool and base would have to be sent: engines read them by
    their paths.
    """
    require_vllm()
    if executor.files != "path" and spec.pool != "demo":
        remedy = "Put it where all nodes see it, and say --files path."
        raise ConfigError("a pool at a path that every node can read (--engine vllm)", "files to be sent", remedy)

    spec = _by_whole_paths(spec)

    def answer(chunks: Sequence[list[PromptRow]]) -> Answered:
        requests = Requests.of_spec(spec)  # refuses here what engines would refuse there
        with connected(executor.address) as ray:
            if not executor.autoscaling:
                Need(executor.cpus, executor.gpus).require(ray)

            def once(missing: Mapping[int, list[PromptRow]]) -> Answered:
                with _awaiting_engines(ray.data.DataContext.get_current()):
                    data = _data(ray, executor, spec, settings, missing)
                    yield from _replies(ray, data, requests, settings.max_new_tokens, missing)

            yield from every_chunk(ray, executor, chunks, once)

    return answer


def _by_whole_paths(spec: ModelSpec) -> ModelSpec:
    """The spec for processes that work elsewhere: base, pool and keys by their whole paths."""
    whole: dict[str, Any] = {} if spec.pool == "demo" else {"pool": str(Path(spec.pool).absolute())}
    if spec.require_key is not None:
        whole["require_key"] = str(Path(spec.require_key).absolute())
    absolute = spec.with_absolute_path()
    assert isinstance(absolute, ModelSpec)
    return absolute.model_copy(update=whole)


class Writer:
    """The actor before the engines: the rows of a chunk as requests."""

    def __init__(self, spec: ModelSpec, settings: AnswerSettings, version: str):
        self.spec, self.settings, self.version = spec, settings, version
        self.requests: Requests | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {"chunk": number, **row}
            for number, text in zip(batch["chunk"], batch["rows"], strict=True)
            for row in self._chunk([PromptRow(**row) for row in json.loads(text)])
        ]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        columns["sampling_params"] = _objects(columns["sampling_params"])
        columns["tokenized_prompt"] = _objects(columns["tokenized_prompt"])
        return columns

    def _chunk(self, rows: list[PromptRow]) -> list[dict[str, Any]]:
        try:
            if self.version != glider.__version__:
                expected = f"glider {self.version} on every node, as where the run began"
                raise ConfigError(expected, glider.__version__, "Install the same version there.")
            self.requests = self.requests or Requests.of_spec(self.spec)
            return self._requests(rows)
        except Exception as error:  # what is raised here would be a lost chunk, without a word
            fault = json.dumps({**asdict(Fault.of(error)), "node": node_name()})
            return [_passed(row, {}, fault) for row in rows]

    def _requests(self, rows: list[PromptRow]) -> list[dict[str, Any]]:
        assert self.requests is not None
        try:
            batch = self.requests.of(*answers_of(rows, self.settings))
        except QueryError as fault:
            if len(rows) > 1:
                return [request for row in rows for request in self._requests([row])]
            return [_passed(rows[0], {**entry(rows[0], None), "fault": str(fault)}, _NO_FAULT)]
        return [
            {
                "row": row.row,
                "tokenized_prompt": batch.rows[i],
                "sampling_params": batch.settings[i],
                "entry": json.dumps(entry(row, batch.answer(i, ()))),
                "stopped": _NO_FAULT,
                _FAULT: _NO_FAULT,
            }
            for i, row in enumerate(rows)
        ]


def _passed(row: PromptRow, answer: dict[str, Any], stopped: str) -> dict[str, Any]:
    """A row that no engine is asked: `answer` is its entry, or `stopped` what ends the run."""
    request: dict[str, Any] = {"tokenized_prompt": [], "sampling_params": {}}
    return {"row": row.row, **request, "entry": json.dumps(answer), "stopped": stopped, _FAULT: _BESIDE}


def _objects(values: Sequence[Any]) -> np.ndarray:
    """A column of Python objects."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _processor(executor: RayExecutor, spec: ModelSpec, settings: AnswerSettings, most: int) -> Any:
    """Ray's processor: engines alone, as all before and after is glider's."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    bundle = {"CPU": executor.cpus, "GPU": executor.gpus} if executor.gpus else {"CPU": executor.cpus}
    variables = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
    variables = {"VLLM_PLUGINS": "glider", "VLLM_LOGGING_LEVEL": "WARNING", **variables}
    config = vLLMEngineProcessorConfig(
        model_source=source_of(spec),
        engine_kwargs={**arguments_of(spec), "enforce_eager": not executor.gpus},
        concurrency=(1, most),
        batch_size=settings.batch_size,
        log_engine_metrics=False,
        should_continue_on_error=True,
        placement_group_config={"bundles": [bundle]},
        runtime_env={"env_vars": {**variables, "OMP_NUM_THREADS": str(executor.threads)}},
        prepare_multimodal_stage=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    return build_processor(config)


@contextmanager
def _awaiting_engines(context: Any) -> Iterator[None]:
    """Let an engine that cannot start be an error: Ray Data would start it again and again, without a word."""
    before, context.wait_for_min_actors_s = context.wait_for_min_actors_s, _LONGEST_START
    try:
        yield
    finally:
        context.wait_for_min_actors_s = before


def _data(
    ray: Any, executor: RayExecutor, spec: ModelSpec, settings: AnswerSettings, missing: Mapping[int, list[PromptRow]]
) -> Any:
    """Chunks, through the actors that write their rows as requests, and through the engines."""
    most = most_actors(ray, executor, len(missing))
    requests = ray.data.from_items(items_of(missing), override_num_blocks=len(missing)).map_batches(
        Writer,
        fn_constructor_args=(spec, settings, glider.__version__),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
    )
    return _processor(executor, spec, settings, most)(requests)


def _replies(ray: Any, data: Any, requests: Requests, limit: int, missing: Mapping[int, list[PromptRow]]) -> Answered:
    """The answers to chunks, each when all of its rows are there. What is lost is not told."""
    read: dict[int, dict[int, dict[str, Any]]] = {number: {} for number in missing}
    try:
        for reply in data.iter_rows():
            if reply["stopped"]:
                fail(json.loads(reply["stopped"]))
            chunk = read[int(reply["chunk"])]
            chunk[int(reply["row"])] = _answered(reply, requests, limit)
            if len(chunk) == len(missing[int(reply["chunk"])]):
                yield int(reply["chunk"]), [chunk[row] for row in sorted(chunk)]
    except ray.exceptions.RayError as error:
        got = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        raise GliderError("engines of vLLM on the cluster", got, "See Ray's logs of the node.") from error


def _answered(reply: Mapping[str, Any], requests: Requests, limit: int) -> dict[str, Any]:
    """The entry of a row, with what the engine wrote or why it did not."""
    line = json.loads(reply["entry"])
    if reply[_FAULT] == _BESIDE:
        return line
    if reply[_FAULT]:
        return {**line, "text": None, "finish_reason": None, "fault": str(reply[_FAULT])[:600]}
    text, _, reason = requests.written(list(reply["generated_tokens"]), limit)
    return {**line, "text": text.strip(), "finish_reason": reason}
