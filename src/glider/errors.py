"""Errors that teach: what was expected, what was there instead, what to do.

Every mistake a user can make is a `GliderError`. The command line prints its one line and exits with
`exit_code`; a library caller catches the subclass that names the part it came from. What an error quotes may be a
stranger's: it is made printable and cut here, for all of them.
"""

import errno

from glider.printable import printable

LONGEST_PART = 2000  # characters of what was wanted, what was got and what to do


class GliderError(Exception):
    """A mistake that the user can correct.

    Arguments:
        wanted: What was expected.
        got: What was there instead.
        remedy: What to do, a sentence.
    """

    exit_code = 2

    def __init__(self, wanted: str, got: str, remedy: str):
        self.wanted, self.got, self.remedy = (printable(part, LONGEST_PART) for part in (wanted, got, remedy))
        super().__init__(f"wanted {self.wanted}; got {self.got}. {self.remedy}")


class ConfigError(GliderError):
    """A setting that does not exist or does not fit."""


class DataError(GliderError):
    """Training or evaluation rows that cannot be used."""


class ExpertError(GliderError):
    """An expert directory that is incomplete, damaged or not an expert."""


class TrainingError(GliderError):
    """Training that cannot go on."""


class PoolError(GliderError):
    """A pool whose experts do not fit together or changed on disk."""


class BaseModelError(GliderError):
    """A base model that is missing, or is not the one an expert was made for."""


class RouterError(GliderError):
    """An unknown router, or one that the pool cannot serve."""


class KernelError(GliderError):
    """A kernel that is not there, or cannot run what it was asked to."""


class QueryError(GliderError):
    """A prompt that cannot be answered as given."""


class BatchingError(GliderError):
    """Continuous batching that this transformers, model or cache cannot do.

    `fixable` says that the caller can change that: otherwise padded batches are the way.
    """

    def __init__(self, wanted: str, got: str, remedy: str, *, fixable: bool = True):
        super().__init__(wanted, got, remedy)
        self.fixable = fixable


class EngineError(GliderError):
    """A serving engine that is missing, of another version, or set so that it could not serve a pool right."""


class EmbedderError(GliderError):
    """An embedder that is missing, or is not the pool's own."""


class DescriberError(GliderError):
    """A describer that does not exist, whose settings do not fit, or that wrote nothing usable."""


class EndpointError(GliderError):
    """A model endpoint that is down, slow, refusing, or answering nonsense.

    `passing` says that a later try may succeed; `down` that other requests will meet the same fate.
    """

    def __init__(self, wanted: str, got: str, remedy: str, *, passing: bool = False, down: bool = False):
        super().__init__(wanted, got, remedy)
        self.passing, self.down = passing, down


class GliderWarning(UserWarning):
    """Something failed, and the work goes on without it."""

    def __init__(self, message: str):
        super().__init__(printable(str(message), 3 * LONGEST_PART))


class MissingDependency(GliderError):
    """An optional package is not installed."""

    def __init__(self, package: str, purpose: str, command: str):
        super().__init__(f"the package {package} to {purpose}", "no such package", f"Install it: {command}")


def first_line(fault: BaseException) -> str:
    """The first line of what another library's error says; its type's name where it says nothing."""
    return next(iter(str(fault).splitlines()), type(fault).__name__)


def system_refusal(fault: OSError) -> tuple[str, str, str]:
    """What was wanted, what the system said and what to do; `fault` has a text of the system's."""
    if fault.filename is None and str(fault.strerror).startswith("No usable temporary directory"):  # Python's own
        return "to write temporary files", str(fault.strerror), "Free space there, or set TMPDIR."
    place = printable(str(fault.filename), LONGEST_PART) if fault.filename else "a file"
    remedy = "Free space" if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Check the path"
    return f"to use {place}", str(fault.strerror), f"{remedy}, or choose another place."


def refused_by_system(fault: OSError) -> str:
    """The same in a line."""
    wanted, got, remedy = system_refusal(fault)
    return f"wanted {wanted}; got: {got}. {remedy}"
