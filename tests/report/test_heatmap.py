"""The heatmap is a picture, the same one for the same trace."""

from pathlib import Path

from glider.inference.spec import load
from glider.report.heatmap import draw_heatmap


def test_heatmap_is_written_and_reproducible(make_pool, llama_directory: Path, tmp_path: Path) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path)
    _, trace = model.generate_traced(["one", "a longer prompt", "x"], max_new_tokens=4)
    first = draw_heatmap(trace, tmp_path / "a.png", ["first", "second"], [0, 2], ["e1", None])
    second = draw_heatmap(trace, tmp_path / "b.png", ["first", "second"], [0, 2], ["e1", None])
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a.png", "b.png"]
