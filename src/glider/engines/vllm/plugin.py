"""What vLLM calls in each of its processes, through the entry point `vllm.general_plugins`.

It does nothing to an engine whose `--additional-config` has no pool in it.
"""

import logging
from collections.abc import Callable
from typing import Any

from glider.engines.vllm import contract
from glider.engines.vllm.settings import LOAD_FORMAT, PluginSettings
from glider.errors import GliderError


def register() -> None:
    """Make the load format known, and let input processors of engines with a pool decide what requests use.

    What is amiss with this vLLM stops engines with a pool alone: they ask for a load format that it then has not.
    """
    try:
        contract.require_vllm()
        from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]

        from glider.engines.vllm.loader import register_loader
        from glider.engines.vllm.requests import wrap
    except (GliderError, ImportError, AttributeError) as fault:
        message = "no pool can be served, and --load-format %s is not known: %s"
        logging.getLogger("glider").warning(message, LOAD_FORMAT, fault)
        return
    register_loader()
    wrap(InputProcessor, "__init__", _opening)


def _opening(before: Callable) -> Callable:
    def opened(self: Any, vllm_config: Any, *args: Any, **more: Any) -> None:
        settings = PluginSettings.of(vllm_config)
        if settings is None:
            before(self, vllm_config, *args, **more)
            return
        from glider.engines.vllm.front import Front
        from glider.engines.vllm.refusals import require_right
        from glider.engines.vllm.requests import FRONT, install

        contract.require_contract(contract.FRONT)
        require_right(vllm_config, settings)
        install()  # before `before`: it keeps `process_inputs` as it finds it
        before(self, vllm_config, *args, **more)
        front = Front(settings, vllm_config.device_config.device_type != "cpu")
        front.require_names(vllm_config.model_config)
        setattr(self, FRONT, front)

    return opened
