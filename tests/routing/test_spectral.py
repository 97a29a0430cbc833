"""Spectra are those of the materialised product, are kept on disk by content, and survive kills and damage."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.errors import ExpertError
from glider.experts.pool import Pool
from glider.files.disk import sha256
from glider.routing import spectra_files, spectral
from glider.routing.spectra_files import clear_spectra, spectra_file, stored_spectra
from glider.routing.spectral import bases, factorise, spectra_of

from ..commands import CommandResult

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("GLIDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spectra"


@pytest.fixture
def mixed(llama_directory: Path, make_pool, grow_pool) -> Pool:
    """Three experts of unlike ranks, scalings and sites; the third is of higher rank than the sites are wide."""
    pool = make_pool(llama_directory, 1, rank=3, alpha=6.0, sites=[Q, DOWN])
    pool = grow_pool(pool, llama_directory, "e1", rank=5, alpha=1.0, seed=1, sites=[DOWN])
    return grow_pool(pool, llama_directory, "e2", rank=40, seed=2, sites=[Q, "model.layers.0.self_attn.k_proj"])


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 999))
def test_the_basis_is_the_svd_of_the_product(experts: int, rank: int, width: int, out: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(experts, *shape, generator=chance) for shape in ((rank, width), (out, rank)))
    coordinates = factorise(a, b)
    basis = coordinates @ a
    depth = min(rank, width, out)
    assert coordinates.shape == (experts, depth, rank)
    _, values, vectors = torch.linalg.svd(b.double() @ a.double(), full_matrices=False)
    values = values[:, :depth].float()
    scale = values[:, :1].max().item()
    torch.testing.assert_close(basis.norm(dim=-1), values, atol=1e-5 * scale, rtol=1e-4)
    # up to sign, and where two values are near each other up to rotation: their outer products, weighted, are the same
    wanted = (b @ a).mT @ (b @ a)
    torch.testing.assert_close(basis.mT @ basis, wanted, atol=1e-5 * scale**2, rtol=1e-4)
    gaps = (values[:, 0] - (values[:, 1] if depth > 1 else 0)) / values[:, 0]
    first = torch.nn.functional.normalize(basis[:, 0], dim=-1)
    aligned = (first * vectors[:, 0].float()).sum(dim=-1).abs()
    torch.testing.assert_close(aligned[gaps > 0.05], torch.ones(int((gaps > 0.05).sum())), atol=1e-5, rtol=0)


def test_a_badly_scaled_pair_keeps_its_small_direction() -> None:
    a, b = torch.zeros(1, 2, 8), torch.zeros(1, 8, 2)
    a[0, 0, 0], a[0, 1, 1], b[0, 0, 0], b[0, 1, 1] = 1e4, 1e-3, 1e-6, 1e3
    torch.testing.assert_close((factorise(a, b) @ a).norm(dim=-1), torch.tensor([[1.0, 0.01]]))


def test_bases_are_scaled_padded_and_zero_where_absent(mixed: Pool) -> None:
    told = {basis.name: basis for basis in bases(mixed)}
    assert list(told) == mixed.sites
    assert told[Q].site.absent.tolist() == [False, True, False]
    assert told[Q].rows.shape == (3, 32, 32)  # no product of width 32 has more directions
    assert told[DOWN].rows.shape == (3, 5, 48)
    for name, basis in told.items():
        for row, expert in zip(basis.rows, mixed, strict=True):
            if name not in expert.sites:
                assert (row == 0).all()
                continue
            a, b = expert.factors(name)
            product = expert.scaling(name) * (b @ a)
            torch.testing.assert_close(row.T @ row, product.T @ product, atol=1e-3, rtol=1e-3)
            wanted = torch.linalg.svdvals(product)[: len(row)]
            padded = torch.cat([wanted, torch.zeros(len(row) - len(wanted))])
            torch.testing.assert_close(row.norm(dim=-1), padded, atol=1e-4, rtol=1e-4)


def test_fewer_directions_are_the_strongest(mixed: Pool) -> None:
    for whole, part in zip(bases(mixed), bases(mixed, directions=2), strict=True):
        torch.testing.assert_close(part.rows, whole.rows[:, :2], **CLOSE)


def test_a_second_time_reads_what_the_first_kept(mixed: Pool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [basis.rows for basis in bases(mixed)]
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(spectral, "factorise", forbidden)
    for rows, basis in zip(first, bases(Pool.open(mixed.path)), strict=True):
        assert torch.equal(rows, basis.rows)


def test_a_renamed_expert_keeps_its_spectra_and_a_new_one_is_all_there_is_to_do(
    llama_directory: Path, grow_pool, mixed: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectra_of(mixed)
    pool = grow_pool(mixed.rename("e0", "other"), llama_directory, "e3", seed=3, sites=[Q])
    monkeypatch.setattr(spectral, "factorise", failing_after(1, factorise))
    assert list(spectra_of(pool)[3]) == [Q]


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_file_in_the_cache_is_made_anew(mixed: Pool, cache: Path, damage: bytes | None) -> None:
    wanted = spectra_of(mixed)
    files = sorted(cache.iterdir())
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(whole[1] if damage is None else damage)  # None: another expert's
    for got, spectrum in zip(spectra_of(mixed), wanted, strict=True):
        assert all(torch.equal(got[name], spectrum[name]) for name in spectrum)
    assert [file.read_bytes() for file in files] == whole


def test_an_interruption_keeps_what_was_done(mixed: Pool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "_TOGETHER", 1)
    with monkeypatch.context() as patch:
        patch.setattr(spectral, "factorise", failing_after(3, factorise))
        with pytest.raises(KeyboardInterrupt):
            spectra_of(mixed)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"] * 2
    again = failing_after(2, factorise)  # the third expert has two sites
    monkeypatch.setattr(spectral, "factorise", again)
    assert [sorted(spectrum) for spectrum in spectra_of(mixed)] == [sorted(expert.sites) for expert in mixed]


def test_a_kill_while_writing_leaves_no_part(mixed: Pool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(spectral, "save_tensors", half)
    with pytest.raises(KeyboardInterrupt):
        spectra_of(mixed)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_told_and_does_not_stop(mixed: Pool, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the directory should be")
    with pytest.warns(UserWarning, match="not kept"):
        assert len(spectra_of(mixed)) == 3


def test_a_changed_adapter_is_refused_and_nothing_kept_under_its_old_name(mixed: Pool) -> None:
    key = mixed.index.experts[1].files["adapter_model.safetensors"].sha256
    file = mixed["e1"].directory / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ExpertError, match="e1 unchanged"):
        spectra_of(mixed)
    assert not spectra_file(key).exists()


def test_an_adapter_with_nan_is_refused_by_name(mixed: Pool, edit_tensors, edit_json) -> None:
    file = mixed["e1"].directory / "adapter_model.safetensors"
    edit_tensors(file, lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    index = json.loads((mixed.path / "pool.json").read_text("utf8"))
    index["experts"][1]["files"][file.name] = {"sha256": sha256(file), "size": file.stat().st_size}
    edit_json(mixed.path / "pool.json", **index)
    with pytest.raises(ExpertError, match=r"e1.*NaN"):
        spectra_of(Pool.open(mixed.path))


def test_equal_adapters_are_factorised_once(llama_directory: Path, make_pool, grow_pool, cache: Path) -> None:
    pool = make_pool(llama_directory, 1, sites=[Q])
    pool = grow_pool(pool, llama_directory, "twin", seed=0, sites=[Q])
    first, second = spectra_of(pool)
    assert torch.equal(first[Q], second[Q])
    assert len(list(cache.iterdir())) == 1


def test_an_adapter_of_zeros_has_a_basis_of_zeros() -> None:
    assert (factorise(torch.randn(1, 2, 8), torch.zeros(1, 8, 2)) == 0).all()


def forbidden(*_: torch.Tensor) -> torch.Tensor:
    raise AssertionError("factorised although it was kept")


def failing_after(calls: int, real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    left = [calls]

    def factorise_until(*pair: torch.Tensor) -> torch.Tensor:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*pair)

    return factorise_until


def test_what_no_pool_asked_for_in_a_month_goes_and_what_is_used_stays(
    llama_directory: Path, grow_pool, mixed: Pool, cache: Path
) -> None:
    """Spectra of experts that had left every pool once stayed for good."""
    spectra_of(mixed)
    long_ago = time.time() - (spectra_files.UNUSED_DAYS + 1) * 24 * 3600
    for file in stored_spectra():
        os.utime(file, (long_ago, long_ago))
    old = stored_spectra()
    pool = mixed.remove("e1")
    kept = [spectra_file(known.files["adapter_model.safetensors"].sha256) for known in pool.index.experts]
    spectra_of(pool)  # reads two, and makes none: nothing goes yet
    assert stored_spectra() == old
    spectra_of(grow_pool(pool, llama_directory, "e3", seed=3, sites=[Q]))
    assert set(kept) < set(stored_spectra()) and len(stored_spectra()) == 3
    assert clear_spectra() == 3 and stored_spectra() == []


def test_the_command_tells_of_spectra_and_clears_them(
    mixed: Pool, cache: Path, glider: Callable[..., CommandResult]
) -> None:
    spectra_of(mixed)
    ended = [glider("cache", *command) for command in (["info"], ["info", "--json"], ["clear", "--json"], ["info"])]
    assert [one.code for one in ended] == [0] * 4
    told = [one.out for one in ended]
    assert f"{cache}: spectra of 3 experts" in told[0]
    assert json.loads(told[1])["spectra"]["experts"] == 3 and json.loads(told[1])["spectra"]["bytes"] > 0
    assert json.loads(told[2])["spectra"] == 3
    assert "spectra of 0 experts; 0.0 MB" in told[3]
