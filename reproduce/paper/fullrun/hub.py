"""Files of the hub: found by data set and split, fetched in parts so that a fetch goes on where it stopped, checked.

huggingface_hub begins a broken file anew in the next process; here a file grows beside its place, and the next process
asks for the bytes that are missing. Of a split whose first rows are wanted, those row groups alone are asked for.
"""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from fullrun.notes import noted
from glider.errors import DataError, MissingDependency
from glider.files.disk import naming_target, sha256, write_json

Kind = Literal["dataset", "model"]
CONVERTED = "refs/convert/parquet"  # the hub's own copy of a data set, as <config>/<split>/0000.parquet
PART = 16 << 20  # bytes asked for at once
TRIES = 5
LONGEST_WAIT = 300.0  # seconds, whatever a server asks for
SILENCE = 60.0  # seconds without an answer that are waited
_BUSY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class HubFile:
    """One file of a repository; `sha256` where the hub tells it."""

    repository: str
    kind: Kind
    revision: str
    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Hub:
    """The hub at an address (default: that of huggingface_hub). `wait` sleeps for so many seconds."""

    endpoint: str | None = None
    wait: Callable[[float], None] = time.sleep

    def files(self, repository: str, kind: Kind, revision: str = "main", folder: str = "") -> list[HubFile]:
        """Files of a repository in a folder and below; none where it has no such folder or revision.

        Asked for once in a process. Raises `DataError` where the hub does not answer, or knows no such repository.
        """
        return list(_listed(self.endpoint, repository, kind, revision, folder))

    def parquet(self, name: str, config: str | None, split: str) -> list[HubFile]:
        """The Parquet files of a split in order: the authors' own, else the hub's copy's; none where there are none."""
        parquet = [file for file in self.files(name, "dataset") if file.path.endswith(".parquet")]
        if selected := _of_split(parquet, config, split):
            return selected
        copied = [f for f in self.files(name, "dataset", CONVERTED, config or "") if f.path.endswith(".parquet")]
        return _of_copy(copied, name, config, split)

    def bytes_of(self, file: HubFile, first: int, last: int) -> bytes:
        """The bytes of a file from `first` up to and without `last`; waits and asks again while the hub is busy.

        Raises `DataError` for what is not these bytes.
        """
        answer = self._ask(file, first, last)
        for attempt in range(TRIES - 1):
            if answer.status_code not in _BUSY:
                break
            self.wait(_asked_wait(answer.headers.get("Retry-After"), 2.0**attempt))
            answer = self._ask(file, first, last)
        where = f"{file.repository}/{file.path}"
        if answer.status_code in _BUSY:
            got = f"HTTP {answer.status_code}, {TRIES} times"
            raise DataError(f"{where} from the hub", got, "Wait a while; the same command goes on.")
        content = answer.content
        if answer.status_code == 200 and len(content) == file.size:  # a server that knows no ranges
            return content[first:last]
        if answer.status_code != 206 or len(content) != last - first:
            got = f"HTTP {answer.status_code} and {len(content)} bytes"
            raise DataError(f"bytes {first} to {last} of {where}", got, "Check it on the hub.")
        return content

    def _ask(self, file: HubFile, first: int, last: int) -> Any:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        place = {"repo_type": file.kind, "revision": file.revision, "endpoint": self.endpoint}
        address = hf_hub_url(file.repository, file.path, **place)
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}
        for attempt in range(TRIES):
            try:
                return get_session().get(address, headers=headers, timeout=SILENCE)
            except Exception as fault:  # of requests or httpx, by the version of huggingface_hub
                if attempt + 1 == TRIES or not _of_network(fault):
                    raise _fault(f"{file.repository}/{file.path} from the hub", fault) from fault
                self.wait(2.0**attempt)
        raise AssertionError("unreachable")

    def fetch(self, file: HubFile, place: Path, part: int = PART) -> Path:
        """The file at `place`, fetched where it is not there yet; what an earlier process fetched of it counts.

        Raises `DataError` for content of another hash than the hub tells, which is thrown away.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        growing, beside = place.with_name(place.name + ".part"), place.with_name(place.name + ".part.json")
        with FileLock(place.with_name(place.name + ".lock")):
            if place.exists() and place.stat().st_size == file.size:
                return place
            expected = {"repository": file.repository, "path": file.path, "size": file.size, "sha256": file.sha256}
            if noted(beside) != expected:
                growing.unlink(missing_ok=True)  # of another file, or of an older state of it
                write_json(beside, expected)
            with naming_target(place), growing.open("ab") as out:
                for first in range(out.tell(), file.size, part):
                    out.write(self.bytes_of(file, first, min(first + part, file.size)))
                    out.flush()
            if file.sha256 is not None and (got := sha256(growing)) != file.sha256:
                growing.unlink()
                expected_file = f"{file.repository}/{file.path} of sha256 {file.sha256[:12]}"
                raise DataError(expected_file, got[:12], "The same command fetches it anew.")
            growing.replace(place)
            beside.unlink()
        return place

    def open(self, file: HubFile) -> "RangeFile":
        """The file for reading here and there."""
        return RangeFile(self, file)


class RangeFile(io.RawIOBase):
    """A file of the hub that is read by ranges: a reader of Parquet asks for the end and for what it needs."""

    def __init__(self, hub: Hub, file: HubFile):
        super().__init__()
        self._hub, self._file, self._place = hub, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        last = min(self._place + len(buffer), self._file.size)
        if last <= self._place:
            return 0
        content = self._hub.bytes_of(self._file, self._place, last)
        buffer[: len(content)] = content
        self._place = last
        return len(content)


@cache
def _listed(endpoint: str | None, repository: str, kind: Kind, revision: str, folder: str) -> tuple[HubFile, ...]:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
    except ModuleNotFoundError:
        raise MissingDependency("huggingface-hub", "download", "pip install huggingface-hub") from None
    where = {"repo_type": kind, "revision": revision, "path_in_repo": folder or None, "recursive": True}
    try:
        entries = list(HfApi(endpoint=endpoint).list_repo_tree(repository, **where))
    except (EntryNotFoundError, RevisionNotFoundError):
        return ()
    except Exception as fault:
        if isinstance(fault, HfHubHTTPError | OSError | ValueError | TypeError | KeyError) or _of_network(fault):
            raise _fault(f"the list of files of {repository} from the hub", fault) from fault
        raise
    files = []
    for entry in entries:
        if (size := getattr(entry, "size", None)) is not None:  # a folder has none
            lfs = getattr(entry, "lfs", None)
            files.append(HubFile(repository, kind, revision, entry.path, size, lfs.sha256 if lfs else None))
    return tuple(files)


def _of_split(files: Sequence[HubFile], config: str | None, split: str) -> list[HubFile]:
    """As the hub documents them: `<config>/<split>-00000-of-00002.parquet`, `data/<split>-...` for a sole config."""
    folders = [config] if config else ["data", "", "default"]
    for folder in folders:
        begin = f"{folder}/{split}-" if folder else f"{split}-"
        if selected := [file for file in files if file.path.startswith(begin)]:
            return sorted(selected, key=lambda file: file.path)
    return []


def _of_copy(files: Sequence[HubFile], name: str, config: str | None, split: str) -> list[HubFile]:
    """Files of the hub's copy; `partial-<split>` holds the first 5 GB of a longer one."""
    configs = sorted({file.path.partition("/")[0] for file in files})
    if config is None and len(configs) > 1 and "default" not in configs:
        raise DataError(f"one config of {name}", ", ".join(configs[:8]), "Name it in the set's file.")
    config = config or ("default" if "default" in configs else next(iter(configs), ""))
    for folder in (split, f"partial-{split}"):
        if selected := [file for file in files if file.path.startswith(f"{config}/{folder}/")]:
            return sorted(selected, key=lambda file: file.path)
    return []


def _asked_wait(text: str | None, usual: float) -> float:
    """Seconds that a server asks to wait, within bounds."""
    try:
        return min(max(float(text or usual), 0.0), LONGEST_WAIT)
    except ValueError:  # a date
        return usual


def _of_network(fault: BaseException) -> bool:
    return any(kind.__name__ in ("ConnectionError", "Timeout", "TransportError") for kind in type(fault).__mro__)


def _fault(expected: str, fault: BaseException) -> DataError:
    remedy = "Check the connection and the name; the same command goes on."
    return DataError(expected, f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:300], remedy)
