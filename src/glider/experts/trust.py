"""Whose signature a pool must carry. `pool.json` has the digest of every file, so that its signature vouches for all.

The bytes that are checked are the ones that are parsed afterwards: nothing is read twice.
"""

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Any, Literal

from glider.errors import ConfigError, MissingDependency, PoolError
from glider.experts.index import POOL_FILE
from glider.files.opening import from_home, read_bytes

SIGNATURE_FILE = f"{POOL_FILE}.sig"
TRUSTED_KEYS_VARIABLE = "GLIDER_TRUSTED_KEYS"
LARGEST_KEY_FILE = 1 << 16  # bytes; a PEM file of an Ed25519 key has about 120
_LARGEST_SIGNATURE = 1 << 10
_MOST_KEYS = 256
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
UNSIGNED: Literal["unsigned"] = "unsigned"

Trust = Path | str | None
"""A file of public keys (PEM), one of which must have signed; None: those of `$GLIDER_TRUSTED_KEYS`, if it is set;
`UNSIGNED`: nobody's, for what this very process has just written, and for what the package itself brings."""


def trusted_keys(trust: Trust) -> Path | None:
    """The file of the required keys, or None where no signature is required."""
    if trust is None:
        named = os.environ.get(TRUSTED_KEYS_VARIABLE)
        return from_home(named) if named else None
    return None if trust == UNSIGNED else Path(trust)


def require_signature(content: bytes, pool: Path, keys_file: Path) -> None:
    """Raise `PoolError` unless these bytes of `pool.json` are what the owner of one of the keys signed."""
    cryptography()
    from cryptography.exceptions import InvalidSignature

    keys, path = read_public_keys(keys_file), pool / SIGNATURE_FILE
    signature = read_signature(path)
    for key in keys:
        try:
            key.verify(signature, content)
            return
        except InvalidSignature:
            continue
    raise PoolError(
        f"{pool / POOL_FILE} as signed by the owner of {keys_file}",
        "another key's signature, or a file changed since it was signed",
        "Check the key; if it is right, do not trust this pool. If you changed the pool yourself, sign it again.",
    )


def read_public_keys(path: Path) -> list[Any]:
    """The Ed25519 public keys in a file, one PEM block after another; raises `ConfigError` for anything else."""
    serialization, ed25519 = cryptography()
    content = read_key_file(path, "Ed25519PublicKey")
    blocks = [match[0] for match in _PEM.finditer(content)] or [content]
    if len(blocks) > _MOST_KEYS:
        raise ConfigError(f"at most {_MOST_KEYS} keys in {path}", str(len(blocks)), "Leave out some.")
    load = serialization.load_pem_public_key
    return [load_key(block, path, ed25519.Ed25519PublicKey, load) for block in blocks]


def read_key_file(path: Path, kind: str) -> bytes:
    """The bytes of a file of keys; raises `ConfigError` where there is none that can be read."""
    expected, remedy = _expected_key(path, kind)
    try:
        return read_bytes(path, LARGEST_KEY_FILE)
    except OSError as fault:
        raise ConfigError(expected, fault.strerror or str(fault), remedy) from None
    except ValueError as fault:
        raise ConfigError(expected, str(fault), remedy) from None


def load_key(content: bytes, path: Path, kind: type, load: Any, **settings: Any) -> Any:
    """The key in a text of PEM; raises `ConfigError` if there is none of this kind, or it is encrypted."""
    from cryptography.exceptions import UnsupportedAlgorithm

    expected, remedy = _expected_key(path, kind.__name__)
    try:
        key = load(content, **settings)
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:  # TypeError: encrypted
        raise ConfigError(expected, str(fault).split(".")[0], remedy) from fault
    if not isinstance(key, kind):
        raise ConfigError(expected, "another kind of key", remedy)
    return key


def cryptography() -> tuple[Any, Any]:
    """The modules that read keys and know Ed25519; raises `MissingDependency`."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingDependency(
            "cryptography", "sign pools and verify signatures", "pip install 'glider-moe[sign]'"
        ) from None
    return serialization, ed25519


def read_signature(path: Path) -> bytes:
    """The bytes of a signature, empty where the file has no base64; raises `PoolError` where there is no file."""
    try:
        return base64.b64decode(read_bytes(path, _LARGEST_SIGNATURE).strip(), validate=True)
    except FileNotFoundError:
        raise PoolError(
            f"a signed pool with {path}", "no such file", "Ask the pool's author to sign it, or ask for no key."
        ) from None
    except binascii.Error:
        return b""  # nobody's signature
    except (OSError, ValueError) as fault:
        raise PoolError(f"a signature in {path}", str(fault), "Ask the pool's author to sign it again.") from fault


def _expected_key(path: Path, kind: str) -> tuple[str, str]:
    return f"an unencrypted {kind} in PEM in {path}", "Make a pair with `glider pool keygen`."
