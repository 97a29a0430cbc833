"""glider: a pool of independently trained LoRA experts, routed per token as one model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_HOMES = {
    "load": "glider.inference.spec",
    "RoutedModel": "glider.inference.model",
    "Query": "glider.inference.queries",
    "Answer": "glider.inference.answers",
    "Pool": "glider.experts.pool",
    "Expert": "glider.experts.expert",
    "ExpertCard": "glider.experts.card",
    "PromptFormat": "glider.experts.prompt_format",
    "attach": "glider.layers.attach",
    "Trace": "glider.layers.trace",
    "router": "glider.routing.base",
    "routers": "glider.routing.base",
    "TopK": "glider.routing.select",
    "TopP": "glider.routing.select",
    "Glider": "glider.routing.methods.glider",
    "Phatgoose": "glider.routing.methods.phatgoose",
    "GliderError": "glider.errors",
    "TrainConfig": "glider.contribute.settings",
    "train_expert": "glider.contribute.protocol",
}
__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from glider.contribute.protocol import train_expert as train_expert
    from glider.contribute.settings import TrainConfig as TrainConfig
    from glider.errors import GliderError as GliderError
    from glider.experts.card import ExpertCard as ExpertCard
    from glider.experts.expert import Expert as Expert
    from glider.experts.pool import Pool as Pool
    from glider.experts.prompt_format import PromptFormat as PromptFormat
    from glider.inference.answers import Answer as Answer
    from glider.inference.model import RoutedModel as RoutedModel
    from glider.inference.queries import Query as Query
    from glider.inference.spec import load as load
    from glider.layers.attach import attach as attach
    from glider.layers.trace import Trace as Trace
    from glider.routing.base import router as router
    from glider.routing.base import routers as routers
    from glider.routing.methods.glider import Glider as Glider
    from glider.routing.methods.phatgoose import Phatgoose as Phatgoose
    from glider.routing.select import TopK as TopK
    from glider.routing.select import TopP as TopP


def __getattr__(name: str) -> Any:
    """Import public names when first used: `import glider` alone loads neither torch nor transformers."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'glider' has no attribute {name!r}")
