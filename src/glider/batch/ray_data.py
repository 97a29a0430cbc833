"""Chunks of prompts answered on a cluster: Ray Data hands them to actors, each of which keeps a routed model."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import glider
from glider.batch.answering import Answering, AnswerSettings
from glider.batch.prompts import PromptRow
from glider.batch.run import Answered
from glider.errors import ConfigError, GliderError
from glider.inference.spec import ModelSpec
from glider.jobs.base import Fault
from glider.jobs.local import threads
from glider.jobs.pool_source import pool_source
from glider.jobs.ray_cluster import Need, await_room, connected, telling_of_no_node
from glider.jobs.ray_executor import RayExecutor
from glider.jobs.ray_node import Shipment, node_name, place_of

Round = Callable[[Mapping[int, list[PromptRow]]], Answered]
"""Gives out numbered chunks once; what is lost is not told."""


@dataclass(frozen=True)
class Errand:
    """The model that an actor loads, and how it answers."""

    spec: ModelSpec
    settings: AnswerSettings
    pool: Shipment | None
    threads: int
    version: str = glider.__version__

    def load(self) -> Answering:
        """The model, on the node; raises `GliderError` where it cannot be loaded there."""
        if self.version != glider.__version__:
            expected = f"glider {self.version} on every node, as where the run began"
            raise ConfigError(expected, glider.__version__, "Install the same version there.")
        if self.pool is None:
            return Answering(self.spec.load(), self.settings)
        pool = str(place_of(self.pool))
        return Answering(self.spec.model_copy(update={"pool": pool, "require_key": None}).load(), self.settings)


class Answerer:
    """The actor. A failure comes back as a fault instead of answers."""

    def __init__(self, errand: Errand):
        self.errand = errand
        self.answering: Answering | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        answers, faults = [], []
        for text in batch["rows"]:
            rows = [PromptRow(**row) for row in json.loads(text)]
            try:
                with threads(self.errand.threads):
                    self.answering = self.answering or self.errand.load()
                    answers.append(json.dumps(self.answering.chunk(rows)))
                faults.append("")
            except Exception as error:  # what is raised here would end the run without a word that a user could use
                answers.append("")
                faults.append(json.dumps({**asdict(Fault.of(error)), "node": node_name()}))
        return {"chunk": list(batch["chunk"]), "answers": answers, "fault": faults}


def on_ray(
    executor: RayExecutor, spec: ModelSpec, settings: AnswerSettings
) -> Callable[[Sequence[list[PromptRow]]], Answered]:
    """Chunks answered by actors on a cluster, in the order in which they end; those of a process or node that is lost
    are answered again, by what is left or comes."""

    def answer(chunks: Sequence[list[PromptRow]]) -> Answered:
        with connected(executor.address) as ray:
            need = Need(executor.cpus, executor.gpus)
            if not executor.autoscaling:
                need.require(ray)
            executor.require_device([spec.device])
            errand = Errand(_absolute(spec), settings, _pool(ray, executor, spec), executor.threads)
            yield from every_chunk(ray, executor, chunks, lambda missing: _round(ray, executor, errand, missing))

    return answer


def every_chunk(ray: Any, executor: RayExecutor, chunks: Sequence[list[PromptRow]], once: Round) -> Answered:
    """The answers to all chunks, of rounds that each give out once what is missing.

    Raises `GliderError` where rounds bring nothing.
    """
    need = Need(executor.cpus, executor.gpus)
    missing, losses = dict(enumerate(chunks)), 0
    while missing:
        before = len(missing)
        await_room(ray, need)
        with telling_of_no_node(ray, need), _skipping_losses(ray.data.DataContext.get_current()):
            for number, answers in once(missing):
                del missing[number]
                yield number, answers
        losses = losses + 1 if len(missing) == before else 0
        if losses > executor.losses:
            expected = f"answers to chunk {min(missing) + 1} of {len(chunks)}"
            got = f"none in {losses} rounds: its process or node was lost, or never started"
            raise GliderError(expected, got, "See Ray's log; give it more memory, or a smaller --batch-size.")


def items_of(missing: Mapping[int, list[PromptRow]]) -> list[dict[str, Any]]:
    """Chunks as rows of a data set."""
    return [
        {"chunk": number, "rows": json.dumps([row.model_dump(mode="json") for row in rows])}
        for number, rows in missing.items()
    ]


def most_actors(ray: Any, executor: RayExecutor, chunks: int) -> int:
    """How many actors so many chunks are given to at most."""
    return min(chunks, executor.workers or max(1, Need(executor.cpus, executor.gpus).room(ray)))


def _round(ray: Any, executor: RayExecutor, errand: Errand, missing: Mapping[int, list[PromptRow]]) -> Answered:
    """Give out each chunk once. What is lost is not told.

    Ray Data would keep a lost actor's chunk for the actor that it starts in its place; where the cluster has no room
    for that one, the chunk would wait for ever.
    """
    items = items_of(missing)
    most = most_actors(ray, executor, len(items))
    answered = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Answerer,
        fn_constructor_args=(errand,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=executor.cpus,
        num_gpus=executor.gpus,
        max_restarts=-1,
        max_task_retries=0,
    )
    for reply in answered.iter_rows():
        if reply["fault"]:
            fail(json.loads(reply["fault"]))
        yield int(reply["chunk"]), json.loads(reply["answers"])


@contextmanager
def _skipping_losses(context: Any) -> Iterator[None]:
    """Let Ray Data leave lost blocks out, in this block alone: others of the process must be told of theirs."""
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # else it tells of every plan and loss
    before = context.enable_progress_bars, context.max_errored_blocks
    context.enable_progress_bars, context.max_errored_blocks = False, -1
    try:
        yield
    finally:
        context.enable_progress_bars, context.max_errored_blocks = before


def _absolute(spec: ModelSpec) -> ModelSpec:
    absolute = spec.with_absolute_path()
    assert isinstance(absolute, ModelSpec)
    return absolute


def _pool(ray: Any, executor: RayExecutor, spec: ModelSpec) -> Shipment | None:
    """The pool as it is sent: opened here, where its signature is required."""
    if spec.pool == "demo":
        return None
    source = pool_source(spec.open_pool())
    parcel = source.pack()
    sent = ray.put(parcel) if executor.files == "store" else None
    return Shipment(source, source.path.absolute(), parcel.digest, sent)


def fail(fault: dict[str, Any]) -> None:
    """Raise an actor's error here, with its own class."""
    node = f"{fault['node']}: "
    if len(fault["parts"]) == 3:
        expected, got, remedy = fault["parts"]
        raise GliderError(expected, node + got, remedy)
    raise GliderError("answers to a chunk of prompts", f"{node}{fault['type']}: {fault['text']}", "See the node's log.")
