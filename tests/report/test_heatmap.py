"""The heatmap is a picture, the same one for the same trace, whose rows can be told by part and layer."""

from pathlib import Path

import pytest
from matplotlib.image import imread

from glider.errors import ConfigError
from glider.inference.spec import load
from glider.report.heatmap import Block, Panel, draw_heatmap, draw_panels, site_blocks
from glider.report.routing_map import RoutedTask, RoutingMap

SITES = [f"model.layers.{layer}.{part}" for layer in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")]


def test_heatmap_is_written_and_reproducible(make_pool, llama_directory: Path, tmp_path: Path) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path)
    _, trace = model.generate_traced(["one", "a longer prompt", "x"], max_new_tokens=4)
    first = draw_heatmap(trace, tmp_path / "a.png", ["first", "second"], [0, 2], ["e1", None])
    second = draw_heatmap(trace, tmp_path / "b.png", ["first", "second"], [0, 2], ["e1", None])
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a.png", "b.png"]


def test_sites_are_put_together_by_part() -> None:
    assert site_blocks(SITES) == [
        Block("self_attn.q_proj", (0, 2, 4), ("0", "1", "2")),
        Block("mlp.up_proj", (1, 3, 5), ("0", "1", "2")),
    ]
    stacks = [
        f"{stack}.block.{layer}.layer.{place}.{part}"
        for stack in ("encoder", "decoder")
        for layer in (0, 10)
        for place, part in enumerate(("SelfAttention.q", "DenseReluDense.wi_0"))
    ]
    assert site_blocks([*stacks, "lm_head"]) == [
        Block("enc SelfAttention.q", (0, 2), ("0", "10")),
        Block("enc DenseReluDense.wi_0", (1, 3), ("0", "10")),
        Block("dec SelfAttention.q", (4, 6), ("0", "10")),
        Block("dec DenseReluDense.wi_0", (5, 7), ("0", "10")),
        Block("lm_head", (8,), ("",)),
    ]


def test_rows_of_a_part_are_beside_each_other_and_named(tmp_path: Path) -> None:
    weights = [[float("q_proj" in site)] for site in SITES]
    picture = imread(draw_panels([Panel("a task", weights)], ["e0"], SITES, tmp_path / "a.png"))
    yellow = (picture[..., 0] > 0.9) & (picture[..., 1] > 0.8) & (picture[..., 2] < 0.3)
    rows = yellow[:, yellow.sum(axis=0).argmax()].nonzero()[0]
    assert len(rows) > 100 and rows[-1] - rows[0] == len(rows) - 1  # one field, not a stripe for each layer
    drawing = draw_panels([Panel("a task", weights)], ["e0"], SITES, tmp_path / "a.svg").read_text()
    texts = [line.strip()[5:-4] for line in drawing.splitlines() if line.strip().startswith("<!-- ")]
    assert [text for text in texts if text in {"self_attn.q_proj", "mlp.up_proj"}] == [
        "self_attn.q_proj",
        "mlp.up_proj",
    ]
    assert texts.count("layer") == 1 and texts.count("2") == 2  # the last layer in each of the two parts


def test_two_dollars_in_a_title_are_no_formula(tmp_path: Path) -> None:
    """What a prompt or the name of a task says is drawn as it stands; some of it was an error of the formula's."""
    weights = [[1.0] for _ in SITES]
    titles = ["from $5 to $9", "$\\frac{1}$", "a\x1b[31m\u202eb\nc$_$"]
    drawing = draw_panels([Panel(title, weights) for title in titles], ["e0"], SITES, tmp_path / "a.svg").read_text()
    for text in ("from $5 to $9", "$\\frac{1}$", "ab c$_$"):
        assert f"<!-- {text} -->" in drawing


@pytest.mark.parametrize(("experts", "sites"), [(20_000, 1), (400, 1000), (1, 30_000)])
def test_a_picture_that_would_take_gigabytes_is_refused(tmp_path: Path, experts: int, sites: int) -> None:
    """A map of three megabytes took 2.7 GB, and did not end within 25 seconds."""
    routing = RoutingMap(
        router="r",
        experts=tuple(f"e{i}" for i in range(experts)),
        sites=tuple(f"s{i}" for i in range(sites)),
        tasks=(RoutedTask(task="t", group="g", rows=1, own=None, weights=((0.5,) * experts,) * sites),),
    )
    with pytest.raises(ConfigError, match="a picture of at most"):
        routing.draw(tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()
