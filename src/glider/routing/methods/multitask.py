"""One expert trained on the data of the whole pool: the reference that no zero-shot method can use."""

from dataclasses import dataclass
from typing import ClassVar

from glider.errors import PoolError, RouterError
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import router
from glider.routing.static import Static


@router("multitask")
@dataclass(frozen=True)
class Multitask(Static):
    """`multitask:PATH`: one LoRA trained on the union of the pool's data, the reference that needs all data.

    PATH is its own expert directory, outside the pool, for the pool's base model and with its prompt format.
    """

    argument: str
    argument_is_path: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.argument:
            raise RouterError("the directory of an expert", "none", "Write multitask:PATH.")

    def expert(self, pool: Pool) -> Expert:
        pool.refuse_unsigned(self.argument)
        expert = Expert.open(self.argument)
        for member in pool:
            if member.directory.resolve() == expert.directory.resolve():
                raise RouterError(
                    "an expert outside the pool",
                    f"{member.name}, one of its experts",
                    f"Write single:{member.name}, or give the one trained on the union of the pool's data.",
                )
        mine, base = expert.card.base, pool.index.base
        if mine.hash != base.hash:
            raise PoolError(
                f"an expert for the pool's base model {base.model_id} ({base.hash})",
                f"{expert.name} at {expert.directory}, made for {mine.model_id} ({mine.hash})",
                "Train it on the pool's base model.",
            )
        formats = list(dict.fromkeys(member.card.prompt for member in pool))
        if formats and expert.card.prompt not in formats:
            raise RouterError(
                f"the pool's prompt format ({'; '.join(str(form) for form in formats)})",
                f"{expert.card.prompt} for {expert.name}",
                "Train it with the pool's prompt format.",
            )
        expert.verify()
        return expert
