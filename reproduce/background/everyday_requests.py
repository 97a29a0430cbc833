"""Everyday requests by kind, written out of `phrases.yaml` by a seed.

python reproduce/background/everyday_requests.py            # prints how many of each kind, and one of each
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

EACH = 16  # requests made of a template
SEED = 0
_SLOT = re.compile(r"\{(\w+)\}")
_PHRASES = Path(__file__).parent / "phrases.yaml"


def everyday_requests(seed: int = SEED, each: int = EACH) -> tuple[dict[str, list[str]], list[str]]:
    """Distinct requests by kind, every template filled some times; and those in other languages, as they are."""
    draw = random.Random(seed)
    phrases = yaml.safe_load(_PHRASES.read_text("utf8"))
    filled = {kind: _filled(templates, phrases["words"], draw, each) for kind, templates in phrases["english"].items()}
    return filled, [text for texts in phrases["foreign"].values() for text in texts]


def _filled(templates: Sequence[str], words: Mapping[str, list[str]], draw: random.Random, each: int) -> list[str]:
    def word(slot: re.Match[str]) -> str:
        return draw.choice(words[slot[1]]) if slot[1] in words else slot[0]

    every = [_SLOT.sub(word, text) for text in templates for _ in range(each if "{" in text else 1)]
    return list(dict.fromkeys(every))


if __name__ == "__main__":
    english, foreign = everyday_requests()
    for kind, texts in {**english, "other languages": foreign}.items():
        print(f"{kind:16} {len(texts):5}  {texts[-1][:90]!r}")
    print(sum(map(len, english.values())) + len(foreign))
