"""Write the background that comes with the package, out of the everyday requests of `everyday_requests.py`.

    python reproduce/background/make.py [FILE]

Requests of a kind are in one fold, those of all other languages than English in another.
"""

import sys
from pathlib import Path

from everyday_requests import everyday_requests

from glider.verdicts.background import JUDGED, SHIPPED, Background


def background() -> Background:
    """As it is shipped."""
    english, foreign = everyday_requests()
    return Background.of([*english.values(), foreign], JUDGED)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    shipped = background()
    shipped.save(path)
    print(f"{path}: {path.stat().st_size} bytes, {len(shipped.grams)} n-grams")
