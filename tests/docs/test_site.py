"""The site builds, strictly and without the network; the workflows are what their platform takes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxy, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text("utf8")
        assert not re.findall(r'(?:src|<link[^>]*rel="stylesheet"[^>]*href)="?https?:', text), page
        assert not re.findall("<!-- (?:fields|file|commands)|--8", text), page
    reference = (tmp_path / "site" / "reference" / "cli" / "index.html").read_text("utf8")
    assert "glider pool calibrate" in reference and "--install-completion" in reference
    settings = (tmp_path / "site" / "reference" / "settings" / "index.html").read_text("utf8")
    assert "learning_rate" in settings and "max_requests" in settings


def test_programs_are_put_into_pages_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page showed the marks of another tool, which a formatter had taken for Python."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import reference_pages

    page = reference_pages.filled((ROOT / "docs" / "extending.md").read_text("utf8"))
    for name in ("router", "signal", "embedder", "describer"):
        program = (ROOT / "examples" / "plugin" / "glider_example" / f"{name}.py").read_text("utf8")
        assert f"```python\n{program}```" in page
    assert "--8" not in page and "<!--" not in page


def test_pages_that_are_not_there_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pages come with parts of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import site_hooks

    nav = [{"Guides": [{"Here": "index.md"}, {"Not": "nowhere.md"}]}, {"Lab": "lab.md"}]
    assert site_hooks._present(nav) == [{"Guides": [{"Here": "index.md"}]}, {"Lab": "lab.md"}]


def test_workflows_are_what_their_platform_takes() -> None:
    files = sorted(map(str, (ROOT / ".github" / "workflows").glob("*.yml")))
    assert len(files) >= 3
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *files]
    assert subprocess.run(schema, capture_output=True).returncode == 0
    audit = ["--offline", "--quiet", "--config", str(ROOT / ".github" / "zizmor.yml"), str(ROOT / ".github")]
    ran = subprocess.run([Path(sys.executable).with_name("zizmor"), *audit], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_a_fault_of_a_workflow_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text("on: push\njobs:\n  one:\n    runs-on: ubuntu-latest\n    step: []\n")
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(broken)]
    assert subprocess.run(schema, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ("place", "link", "turned"),
    [
        ("verdicts.md", "[notes](../LAB.md#a-part)", "[notes](lab.md#a-part)"),
        ("guides/code.md", "[serving](../serving.md)", "[serving](../serving.md)"),
        ("lab.md", "[verdicts](docs/verdicts.md)", "[verdicts](verdicts.md)"),
        ("contributing.md", "[conduct](CODE_OF_CONDUCT.md)", "[conduct](conduct.md)"),
        ("verdicts.md", "[a program](../examples/growing_pool.py)", "a program"),
        ("verdicts.md", "[x](https://example.org) [y](#here) [z](nowhere.md)", None),
    ],
)
def test_links_are_turned(place: str, link: str, turned: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import site_hooks

    page = type("Page", (), {"file": type("File", (), {"src_uri": place})})
    assert site_hooks.on_page_markdown(link, page=page) == (link if turned is None else turned)
