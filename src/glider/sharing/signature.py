"""Ed25519 signatures on `pool.json`.

`pool.json` holds the sha256 of every file of every expert, so that a signature on it, together with `Pool.verify`,
vouches for the whole pool. A changed pool (an expert added, a calibration stored) is signed again. Who must have
signed is said where a pool is opened (`glider.experts.trust`).
"""

import base64
import os
from pathlib import Path

from glider.errors import ConfigError, PoolError
from glider.experts.index import POOL_FILE, PoolIndex, parsed_index, read_pool_file
from glider.experts.trust import SIGNATURE_FILE, cryptography, load_key, read_key_file, require_signature
from glider.files.disk import write_file

__all__ = ["SIGNATURE_FILE", "generate_keys", "sign_pool", "verify_signature"]


def generate_keys(private_key_file: Path, public_key_file: Path) -> None:
    """Write a new key pair in PEM, the private one readable by its owner alone and not encrypted.

    Raises `ConfigError` if either file exists.
    """
    serialization, ed25519 = cryptography()
    for path in (private_key_file, public_key_file):
        if os.path.lexists(path):
            raise ConfigError(f"a new file {path}", "an existing one", "Keys are never overwritten; give another path.")
    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_file(private_key_file, lambda partial: partial.write_bytes(secret), mode=0o600, fresh=True)
    write_file(public_key_file, lambda partial: partial.write_bytes(public), fresh=True)


def sign_pool(pool_directory: Path, private_key_file: Path, verified: PoolIndex | None = None) -> Path:
    """Write `pool.json.sig`, base64 of the signature over the bytes of `pool.json`; returns its path.

    Raises `PoolError` without a `pool.json`, and for one that is not the `verified` index (any more), `ConfigError` for
    a key that is none.
    """
    serialization, ed25519 = cryptography()
    content = _pool_bytes(pool_directory)
    if verified is not None and parsed_index(content, pool_directory / POOL_FILE) != verified:
        got = "one that changed meanwhile"
        raise PoolError(f"the {POOL_FILE} that was verified in {pool_directory}", got, "Look who writes there.")
    pem = read_key_file(private_key_file, "Ed25519PrivateKey")
    load = serialization.load_pem_private_key
    key = load_key(pem, private_key_file, ed25519.Ed25519PrivateKey, load, password=None)
    path = pool_directory / SIGNATURE_FILE
    write_file(path, lambda partial: partial.write_bytes(base64.b64encode(key.sign(content)) + b"\n"))
    return path


def verify_signature(pool_directory: Path, public_key_file: Path) -> None:
    """Raise `PoolError` unless `pool.json` is, byte for byte, what the key's owner signed.

    The experts' files are vouched for by `Pool.verify`, which compares them with `pool.json`.
    """
    require_signature(_pool_bytes(pool_directory), pool_directory, public_key_file)


def _pool_bytes(directory: Path) -> bytes:
    if not (directory / POOL_FILE).exists():
        raise PoolError(f"a pool with {POOL_FILE}", f"{directory} without it", "Give the pool's directory.")
    return read_pool_file(directory)
