"""The endpoint stand-in, a cache of their own and odd models for these tests."""

from ..endpoint_stand_in import endpoint, store
from .odd_models import base_of, routed

__all__ = ["base_of", "endpoint", "routed", "store"]
