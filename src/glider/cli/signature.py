"""Keys and signatures of `glider pool`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from glider.errors import ConfigError, PoolError
from glider.terminal import say


def keygen(
    private_key: Annotated[Path, typer.Argument(help="New file for the private key; the public one gets .pub.")],
) -> None:
    """Make an Ed25519 key pair to sign pools with."""
    from glider.sharing.signature import generate_keys

    if not private_key.name:
        raise ConfigError("the name of a new file for the private key", "none", "Give one, such as my-key.")
    public = private_key.with_name(f"{private_key.name}.pub")
    generate_keys(private_key, public)
    say(f"{private_key}: keep it secret\n{public}: hand it to those who use your pools")


def sign(
    path: Annotated[Path, typer.Argument(help="Directory of the pool.")],
    key: Annotated[Path, typer.Option("--key", help="Private key (PEM).")],
) -> None:
    """Sign a pool, which is verified first.

    The signature is that of pool.json, which has the hash of every file.
    """
    from glider.experts.pool import Pool
    from glider.experts.trust import UNSIGNED
    from glider.sharing.signature import sign_pool

    pool = Pool.open(path, UNSIGNED)
    pool.verify()
    say(str(sign_pool(path, key, pool.index)))


@contextmanager
def telling_signature(path: Path) -> Iterator[None]:
    """Around what may change a pool: where it was signed and is another now, tells that it is to be signed anew."""
    from glider.experts.trust import SIGNATURE_FILE

    before = _index_of(path) if (path / SIGNATURE_FILE).exists() else None
    yield
    if before is not None and _index_of(path) != before:
        say(f"glider: {path} is not as it was signed; to sign it anew: glider pool sign {path} --key KEY", error=True)


def _index_of(path: Path) -> bytes | None:
    """The bytes of a pool's index; None where there is none that can be read, which the command itself tells."""
    from glider.experts.index import read_pool_file

    try:
        return read_pool_file(path)
    except PoolError:
        return None
