"""Signatures on pool.json: who made this pool, and is it as they made it."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glider.errors import ConfigError, MissingDependency, PoolError
from glider.sharing.signature import SIGNATURE_FILE, generate_keys, sign_pool, verify_signature

pytest.importorskip("cryptography")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A directory with a pool.json; signatures look at its bytes alone."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.json").write_bytes(b'{"format": 1}\n')
    return tmp_path / "pool"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    generate_keys(tmp_path / "key", tmp_path / "key.pub")
    return tmp_path / "key"


@pytest.fixture
def public(private: Path) -> Path:
    return private.with_name("key.pub")


def test_round_trip(pool: Path, private: Path, public: Path) -> None:
    assert sign_pool(pool, private) == pool / SIGNATURE_FILE
    verify_signature(pool, public)
    assert len(base64.b64decode((pool / SIGNATURE_FILE).read_bytes())) == 64
    assert sorted(file.name for file in pool.iterdir()) == ["pool.json", SIGNATURE_FILE]


def test_signature_is_plain_ed25519_over_the_bytes(pool: Path, private: Path, public: Path) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    sign_pool(pool, private)
    key = load_pem_public_key(public.read_bytes())
    key.verify(base64.b64decode((pool / SIGNATURE_FILE).read_bytes()), (pool / "pool.json").read_bytes())  # pyright: ignore


@pytest.mark.parametrize("position", [0, 5, -1])
def test_changed_byte_is_refused(pool: Path, private: Path, public: Path, position: int) -> None:
    sign_pool(pool, private)
    content = bytearray((pool / "pool.json").read_bytes())
    content[position] ^= 1
    (pool / "pool.json").write_bytes(content)
    with pytest.raises(PoolError, match="changed since it was signed"):
        verify_signature(pool, public)


def test_other_key_is_refused(pool: Path, private: Path, tmp_path: Path) -> None:
    sign_pool(pool, private)
    generate_keys(tmp_path / "other", tmp_path / "other.pub")
    with pytest.raises(PoolError, match="another key's signature"):
        verify_signature(pool, tmp_path / "other.pub")


def test_missing_signature_is_named(pool: Path, public: Path) -> None:
    with pytest.raises(PoolError, match=rf"{SIGNATURE_FILE}; got no such file"):
        verify_signature(pool, public)


@pytest.mark.parametrize("content", [b"", b"not base64!", b"AAAA", b"\xff" * 64, base64.b64encode(bytes(64))])
def test_damaged_signature_is_refused(pool: Path, public: Path, content: bytes) -> None:
    (pool / SIGNATURE_FILE).write_bytes(content)
    with pytest.raises(PoolError, match="another key's signature"):
        verify_signature(pool, public)


def test_no_pool_is_an_error(tmp_path: Path, private: Path, public: Path) -> None:
    with pytest.raises(PoolError, match=r"a pool with pool\.json"):
        sign_pool(tmp_path / "nowhere", private)
    with pytest.raises(PoolError, match=r"a pool with pool\.json"):
        verify_signature(tmp_path / "nowhere", public)


def test_keys_are_private_and_never_overwritten(tmp_path: Path, private: Path, public: Path) -> None:
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" in private.read_bytes() and b"PRIVATE" not in public.read_bytes()
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_keys(private, tmp_path / "new.pub")
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_keys(tmp_path / "new", public)
    assert (private.read_bytes(), public.read_bytes()) == before
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.pub").exists()


def test_what_is_no_key_is_refused(pool: Path, private: Path, public: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        pem, pkcs8, serialization.BestAvailableEncryption(b"secret")
    )
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, serialization.NoEncryption())
    for name, content in {"text": b"hello", "locked": locked, "other": other, "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="an unencrypted Ed25519PrivateKey"):
            sign_pool(pool, tmp_path / name)
    with pytest.raises(ConfigError, match="No such file"):
        sign_pool(pool, tmp_path / "missing")
    with pytest.raises(ConfigError):
        sign_pool(pool, public)
    sign_pool(pool, private)
    with pytest.raises(ConfigError, match="an unencrypted Ed25519PublicKey"):
        verify_signature(pool, private)


def test_missing_package_names_its_command(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    for call in (
        lambda: generate_keys(tmp_path / "a", tmp_path / "b"),
        lambda: sign_pool(pool, tmp_path / "a"),
        lambda: verify_signature(pool, tmp_path / "b"),
    ):
        with pytest.raises(MissingDependency, match=r"pip install 'glider-moe\[sign\]'"):
            call()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_an_index_that_is_a_pipe_is_not_waited_for(pool: Path, private: Path) -> None:
    """`pool remove`, `pool rename` and `pool build` of a pool with a signature waited for ever."""
    sign_pool(pool, private)
    (pool / "pool.json").unlink()
    os.mkfifo(pool / "pool.json")
    code = "import sys\nfrom pathlib import Path\nfrom glider.cli.signature import telling_signature\n"
    code += "with telling_signature(Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(pool)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert told.stderr == ""
