"""Prompts that the embedded pool knows, does not know, and is unsure of."""

FITS = "Put the concepts together to form a sentence: dog, beach, ball."
STRANGER = "What is the capital of Egypt?"
UNSURE = "Review: a dull, lifeless film. Sentiment?"
