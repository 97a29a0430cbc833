"""Verdicts: whether a query fits the pool, is nobody's, or lies between."""
