"""Ed25519 signatures on `pool.json`.

`pool.json` holds the sha256 of every file of every expert, so that a signature on it, together with `Pool.verify`,
vouches for the whole pool. A changed pool (an expert added, a calibration stored) is signed again.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from glider.errors import ConfigError, MissingDependency, PoolError
from glider.experts.pool import POOL_FILE
from glider.files.disk import write_file

SIGNATURE_FILE = f"{POOL_FILE}.sig"
_LARGEST_KEY_FILE = 1 << 16  # bytes; a PEM file of an Ed25519 key has about 120


def generate_keys(private_key_file: Path, public_key_file: Path) -> None:
    """Write a new key pair in PEM, the private one readable by its owner alone and not encrypted.

    Raises `ConfigError` if either file exists.
    """
    serialization, ed25519 = _cryptography()
    for path in (private_key_file, public_key_file):
        if os.path.lexists(path):
            raise ConfigError(f"a new file {path}", "an existing one", "Keys are never overwritten; give another path.")
    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_new(private_key_file, secret, 0o600)
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write_new(public_key_file, public, 0o644)


def sign_pool(pool_directory: Path, private_key_file: Path) -> Path:
    """Write `pool.json.sig`, base64 of the signature over the bytes of `pool.json`; returns its path.

    Raises `PoolError` without a `pool.json`, `ConfigError` for a key that is none.
    """
    serialization, ed25519 = _cryptography()
    content = _pool_bytes(pool_directory)
    key = _load(private_key_file, ed25519.Ed25519PrivateKey, serialization.load_pem_private_key, password=None)
    path = pool_directory / SIGNATURE_FILE
    write_file(path, lambda partial: partial.write_bytes(base64.b64encode(key.sign(content)) + b"\n"))
    return path


def verify_signature(pool_directory: Path, public_key_file: Path) -> None:
    """Raise `PoolError` unless `pool.json` is, byte for byte, what the key's owner signed.

    The experts' files are vouched for by `Pool.verify`, which compares them with `pool.json`.
    """
    serialization, ed25519 = _cryptography()
    from cryptography.exceptions import InvalidSignature

    content, path = _pool_bytes(pool_directory), pool_directory / SIGNATURE_FILE
    key = _load(public_key_file, ed25519.Ed25519PublicKey, serialization.load_pem_public_key)
    try:
        key.verify(base64.b64decode(path.read_bytes().strip(), validate=True), content)
    except FileNotFoundError:
        raise PoolError(
            f"a signed pool with {path}", "no such file", "Ask the pool's author to sign it, or give no key."
        ) from None
    except (InvalidSignature, binascii.Error) as fault:
        raise PoolError(
            f"{pool_directory / POOL_FILE} as signed by the owner of {public_key_file}",
            "another key's signature, or a file changed since it was signed",
            "Check the key; if it is right, do not trust this pool. If you changed the pool yourself, sign it again.",
        ) from fault


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingDependency(
            "cryptography", "sign pools and verify signatures", "pip install 'glider-moe[sign]'"
        ) from None
    return serialization, ed25519


def _pool_bytes(directory: Path) -> bytes:
    try:
        return (directory / POOL_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise PoolError(f"a pool with {POOL_FILE}", f"{directory} without it", "Give the pool's directory.") from None


def _load(path: Path, kind: type, load: Any, **settings: Any) -> Any:
    """The key in a PEM file; raises `ConfigError` if there is none of this kind, or it is encrypted."""
    from cryptography.exceptions import UnsupportedAlgorithm

    wanted, remedy = f"an unencrypted {kind.__name__} in PEM in {path}", "Make a pair with `glider pool keygen`."
    try:
        with path.open("rb") as file:
            key = load(file.read(_LARGEST_KEY_FILE), **settings)
    except OSError as fault:
        raise ConfigError(wanted, fault.strerror or str(fault), remedy) from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:  # TypeError: encrypted
        raise ConfigError(wanted, str(fault).split(".")[0], remedy) from fault
    if not isinstance(key, kind):
        raise ConfigError(wanted, "another kind of key", remedy)
    return key


def _write_new(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
