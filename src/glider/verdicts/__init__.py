"""Verdicts: whether a query fits an expert of the pool, no expert, or lies between."""
