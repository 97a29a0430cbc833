"""What no client is told: where the directories of a server lie."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glider.serve.service import Service


def without_directories(service: "Service", text: str) -> str:
    """What is wrong, with paths as a client gives them: within the pool, or the directory of `--changes-from`."""
    roots = [pool.model.pool.path for pool in service.pools.pools.values()]
    roots += [Path(service.settings.changes_from)] if service.settings.changes_from else []
    for place in sorted({str(way) for root in roots for way in (root, root.absolute(), root.resolve())}, key=len):
        alone = r"|(?=[\s,;:.'\")`]|$)" if Path(place).is_absolute() else ""  # else it may be any word
        text = re.sub(rf"(?<![^\s'\"(`]){re.escape(place)}(?:/{alone})", "", text)
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/glider-adapter-[^/\s]+/", "", text)
