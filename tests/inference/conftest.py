"""The endpoint stand-in and a cache of their own for these tests."""

from ..endpoint_stand_in import endpoint, store

__all__ = ["endpoint", "store"]
