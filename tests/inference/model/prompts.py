"""Prompts of these tests."""

PROMPTS = ["What is the capital of France?", "sort 3 1 2", "Übersetze: guten Tag"]
