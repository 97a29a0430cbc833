"""Where the embedded pool lies."""

from pathlib import Path

DEMO_POOL = Path(__file__).parent / "experts"
