"""The name under which `load_base` was first published."""

from glider.inference.base_model import BaseModel, load_base

__all__ = ["BaseModel", "load_base"]
