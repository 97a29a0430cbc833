"""A describer without a model: it names the words that it was shown most often."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from glider.instructions.describers import Written, describer


@describer("common-words")
class CommonWords:
    """`--describer common-words`."""

    name = "common-words"
    makes = {"describer": "common-words", "version": 1}  # what a text depends on beside its prompt: the cache's key

    def write(self, prompts: Sequence[str], tick: Callable[[int], None] = lambda done: None) -> list[Written]:
        """A sentence for each prompt."""
        return [Written(f"Work on texts about {', '.join(_common(prompt))}.") for prompt in prompts]


def _common(prompt: str) -> list[str]:
    return [word for word, _ in Counter(re.findall(r"[a-z]{5,}", prompt.lower())).most_common(3)]
