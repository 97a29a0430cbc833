"""What the hub and the way there can answer, as one of our errors: what was got, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (of whichever HTTP library the client stands on)
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from glider.errors import ExpertError, PoolError

_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
_FAULTS = (HTTPError, EntryNotFoundError, FileMetadataError, ConnectionError, TimeoutError, RuntimeError, ValueError)
_MISREAD = (KeyError, TypeError)  # of the client, where an answer has another form

Error = type[ExpertError] | type[PoolError]


@contextmanager
def hub_faults_as(expected: str, error: Error) -> Iterator[None]:
    """Turn what the hub and the way there can answer into an `error` of ours, which names what was `expected`."""
    try:
        yield
    except (*_FAULTS, *_MISREAD) as fault:
        raise error(expected, *_explain(fault)) from fault


def _explain(fault: BaseException) -> tuple[str, str]:
    """What was got and what to do, for a fault of the hub's client."""
    if isinstance(fault, LocalEntryNotFoundError | RuntimeError) and fault.__cause__ is not None:
        return _explain(fault.__cause__)
    if isinstance(fault, OfflineModeIsEnabled):
        return "offline mode", "Unset HF_HUB_OFFLINE to reach the hub."
    if isinstance(fault, HfHubHTTPError):
        return _explain_status(fault)
    if isinstance(fault, HFValidationError):
        return "no such directory, and no name that a repository can have", "Check the path, or give owner/name."
    if isinstance(fault, _MISREAD):
        return f"an answer of another form ({type(fault).__name__}: {fault})", "Check HF_ENDPOINT; this is no hub."
    if isinstance(fault, ValueError):
        return str(fault), "Mend the name, or what it says of the repository."
    return f"no answer ({type(fault).__name__}: {fault})", "Check the network and HF_ENDPOINT, then try again."


def _explain_status(fault: HfHubHTTPError) -> tuple[str, str]:
    status = fault.response.status_code
    if isinstance(fault, GatedRepoError):
        return f"a gated repository ({status})", f"Ask for access on its page. {_LOG_IN}"
    if isinstance(fault, RepositoryNotFoundError):
        return f"no such repository, or no access to it ({status})", f"Check the name. {_LOG_IN}"
    if isinstance(fault, RevisionNotFoundError):
        return f"no such revision ({status})", "Check the branch, tag or commit."
    if status in (401, 403):
        return f"no permission ({status})", f"{_LOG_IN} To push, the token needs write access."
    said = f": {fault.server_message}" if fault.server_message else ""
    return f"HTTP status {status}{said}", "Try again later." if status >= 500 else "Check the name and the settings."
