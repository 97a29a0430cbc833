"""The line that the log has for each change of a pool that a key asked for, done or not."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from glider.printable import dump_json, printable
from glider.serve.errors import ApiError

log = logging.getLogger("glider.serve.changes")


@dataclass
class ChangeLine:
    """Who asked for what, and what came of it; neither a key's text nor a path of the disk is in it."""

    change: str  # the route
    request: str
    key: str
    adapter: str | None
    pool: str | None = None
    before: int | None = None  # generations, as the key knows them
    after: int | None = None
    routed: bool | None = None  # of an adapter that was loaded; one that is not has a generation beside the pool's
    outcome: str = "failed"
    code: str | None = None  # of a refusal

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the line when the change has ended, whichever way."""
        try:
            yield
            self.outcome = "done"
        except ApiError as fault:
            self.outcome, self.code, self.after = "refused", fault.code, self.before
            raise
        finally:
            line = asdict(self) | {"adapter": None if self.adapter is None else printable(self.adapter)}
            log.info(dump_json(line, indent=None))
