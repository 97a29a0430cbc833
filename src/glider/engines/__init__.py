"""Pools inside engines of others. Nothing here is imported unless such an engine is used."""
