"""Files of trained routers, which nobody has to trust."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.contribute.train_router import train_router
from glider.errors import GliderError, PoolError, RouterError, TrainingError
from glider.experts.membership import add_expert, remove_expert
from glider.experts.pool import Pool
from glider.experts.router_files import router_path
from glider.files.opening import read_owned, sha256
from glider.files.tensor_file import tensors_in
from glider.inference.base_model import BaseModel
from glider.layers.attach import attach
from glider.routing.methods.joint import Joint
from glider.routing.methods.vq import Vq
from glider.routing.specification import parsed, router_from
from glider.sharing.signature import generate_keys, sign_pool

from .rows import Q, rows_of, settings


def test_a_router_for_other_experts_or_of_a_changed_file_is_refused(
    base: BaseModel, pool: Pool, llama_directory: Path, grow_pool, edit_tensors
) -> None:
    trained = train_router(base, pool, "joint", rows_of(), settings())
    with pytest.raises(RouterError, match="trained for the pool's experts"):
        Joint().prepare(grow_pool(trained, llama_directory, "more", seed=9))
    remove_expert(pool.path, "more")
    with pytest.raises(RouterError, match="train-router"):
        Vq().prepare(Pool.open(pool.path))
    file = router_path(pool.path, "joint")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = Pool.open(pool.path)
    for check in (again.verify, lambda: Joint().prepare(again)):
        with pytest.raises(PoolError, match="unchanged since it was trained"):
            check()
    file.write_bytes(b"0" * (1 << 20))
    with pytest.raises(PoolError):
        again.verify()


def test_a_router_is_not_used_in_another_order_of_its_experts(base: BaseModel, pool: Pool) -> None:
    """An expert that left and came back stands last; its column went to another, without a word."""
    train_router(base, pool, "joint", rows_of(), settings())
    remove_expert(pool.path, "e0")
    add_expert(pool.path, "e0")
    with pytest.raises(RouterError, match="another order"):
        Joint().prepare(Pool.open(pool.path))


def test_a_router_is_held_once(base: BaseModel, pool: Pool) -> None:
    """Its content, a copy, and a copy of each tensor were three times the file."""
    train_router(base, pool, "vq", rows_of(), settings())
    content = read_owned(router_path(pool.path, "vq"), 1 << 20)
    tensors = tensors_in(content)
    begin = torch.frombuffer(content, dtype=torch.uint8).data_ptr()
    assert all(begin <= tensor.data_ptr() < begin + len(content) for tensor in tensors.values())


@pytest.mark.parametrize("change", ["name", "shape", "value", "kind"])
def test_tensors_that_are_no_router_are_refused(base: BaseModel, pool: Pool, edit_tensors, change: str) -> None:
    train_router(base, pool, "joint", rows_of(), settings())
    file = router_path(pool.path, "joint")
    changes: dict[str, Any] = {
        "name": lambda t: t.update({"other": t.pop(Q)}),
        "shape": lambda t: t.update({Q: t[Q][:2].clone()}),
        "value": lambda t: t[Q].fill_(torch.nan),
        "kind": lambda t: t.update({Q: t[Q].long()}),
    }
    edit_tensors(file, changes[change])
    record_anew(pool, "joint")
    with pytest.raises(GliderError, match="joint"):
        Joint().prepare(Pool.open(pool.path))


IMPOSSIBLE: list[tuple[str, str, str, Any]] = [
    ("vq", "vq", f"{Q}.table", lambda table: table + 1),
    ("vq", "vq", f"{Q}.table", lambda table: -table),
    ("seqr", "seqr(norms=calibrated)", f"{Q}.deviation", lambda deviation: -deviation),
    ("lorauter", "glider(global=lorauter)", "best", lambda best: 1 - best),
    ("lorauter", "glider(global=lorauter)", "best", lambda best: best + 0.2),
    ("lorauter", "glider(global=lorauter)", "tasks", lambda tasks: 2 * tasks),
    ("ariadne", "glider(global=ariadne)", "centroids", lambda centroids: centroids / 3),
]


@pytest.mark.parametrize(("kind", "spec", "name", "change"), IMPOSSIBLE)
def test_values_that_no_training_leaves_are_refused(
    base: BaseModel, pool: Pool, edit_tensors, kind: str, spec: str, name: str, change: Any
) -> None:
    """Each gave another router, where whoever changed the file recorded its new digest."""
    train_router(base, pool, kind, rows_of(), settings())
    router_from(*parsed(spec)).prepare(Pool.open(pool.path))
    edit_tensors(router_path(pool.path, kind), lambda tensors: tensors.update({name: change(tensors[name])}))
    record_anew(pool, kind)
    with pytest.raises(PoolError, match=rf"{name}.*no training leaves behind.*Train it"):
        router_from(*parsed(spec)).prepare(Pool.open(pool.path))


def record_anew(pool: Pool, kind: str) -> None:
    """Let an unsigned pool's index have the digest of a router's file as it is now."""
    file, place = router_path(pool.path, kind), pool.path / "pool.json"
    index = json.loads(place.read_text("utf8"))
    index["routers"][kind] |= {"sha256": sha256(file), "size": file.stat().st_size}
    place.write_text(json.dumps(index), "utf8")


def test_a_signature_vouches_for_the_router(base: BaseModel, pool: Pool, tmp_path: Path) -> None:
    train_router(base, pool, "vq", rows_of(), settings())
    generate_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    sign_pool(pool.path, tmp_path / "private.pem")
    signed = Pool.open(pool.path, tmp_path / "public.pem")
    signed.verify()
    attach(base.model, signed, Vq()).detach()
    train_router(base, signed, "joint", rows_of(), settings())
    with pytest.raises(PoolError, match="signed"):
        Pool.open(pool.path, tmp_path / "public.pem")


def test_an_index_without_routers_is_written_as_before(pool: Pool) -> None:
    assert "routers" not in json.loads((pool.path / "pool.json").read_text("utf8"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_router_behind_a_link_is_neither_written_nor_read(
    base: BaseModel, pool: Pool, tmp_path: Path, kind: str
) -> None:
    train_router(base, pool, "joint", rows_of(), settings())
    place = router_path(pool.path, "joint")
    outside = tmp_path / "outside"
    if kind == "folder":
        place.parent.rename(outside)
        place.parent.symlink_to(outside)
        before = sorted(outside.iterdir())
        with pytest.raises(GliderError, match="link"):
            train_router(base, pool.reload(), "vq", rows_of(), settings())
        assert sorted(outside.iterdir()) == before
    else:
        place.rename(outside)
        place.symlink_to(outside)
    with pytest.raises(GliderError, match="link"):
        Pool.open(pool.path).verify()


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0"])
def test_a_router_of_a_dtype_without_a_name_is_refused(base: BaseModel, pool: Pool, dtype: str) -> None:
    train_router(base, pool, "joint", rows_of(), settings())
    file = router_path(pool.path, "joint")
    header = json.dumps({Q: {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    index = json.loads((pool.path / "pool.json").read_text("utf8"))
    index["routers"]["joint"] |= {"sha256": sha256(file), "size": file.stat().st_size}
    (pool.path / "pool.json").write_text(json.dumps(index), "utf8")
    with pytest.raises(GliderError, match="joint"):
        Joint().prepare(Pool.open(pool.path))


@pytest.mark.parametrize("more", [0, 3])
def test_codes_and_their_table_are_of_one_length(base: BaseModel, pool: Pool, edit_tensors, more: int) -> None:
    """Codes without a column in the table were an `IndexError` at the first token of theirs."""
    train_router(base, pool, "vq", rows_of(), settings())
    file = router_path(pool.path, "vq")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        codes = tensors[f"{Q}.codes"]
        tensors[f"{Q}.codes"] = torch.cat([codes, codes[:more]]) if more else codes[:1].clone()

    edit_tensors(file, change)
    index = json.loads((pool.path / "pool.json").read_text("utf8"))
    index["routers"]["vq"] |= {"sha256": sha256(file), "size": file.stat().st_size}
    (pool.path / "pool.json").write_text(json.dumps(index), "utf8")
    with pytest.raises(PoolError, match=rf"{Q}\.table of shape"):
        Vq().prepare(Pool.open(pool.path))


@pytest.mark.parametrize("kind", ["joint", "mindskip"])
def test_a_training_that_ran_away_stores_no_router(base: BaseModel, pool: Pool, kind: str) -> None:
    """What no reader takes was stored in place of the router that was there, and told as done."""
    trained = train_router(base, pool, kind, rows_of(), settings())
    with pytest.raises(TrainingError, match="learning rate"):
        train_router(base, trained, kind, rows_of(), settings(learning_rate=1e15))
    again = Pool.open(pool.path)
    again.verify()
    assert again.index.routers == trained.index.routers
