"""A describer that repeats the last words it was shown: no model, for trying what a description does."""

from collections.abc import Callable, Sequence

from glider.instructions.describers import Written, describer


@describer("first-words")
class FirstWords:
    """`--describer first-words`."""

    name = "first-words"
    makes = {"describer": "first-words", "version": 1}  # what a text depends on beside its prompt: the cache's key

    def write(self, prompts: Sequence[str], tick: Callable[[int], None] = lambda done: None) -> list[Written]:
        """A sentence for each prompt."""
        return [Written(prompt.split("\n")[-3][:80]) for prompt in prompts]
