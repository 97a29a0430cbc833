"""What mkdocs is helped with: pages that lie at the repository's root, and pages made of the code.

Pages link to each other as they lie in the repository, so that they read there too; here the links are turned.
"""

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from reference_pages import filled  # noqa: E402

AT_ROOT = {
    "LAB.md": "lab.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
}
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<to>(?![a-z]+:|#)[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out of the navigation what is not there: some pages come with parts of their own."""
    config.nav = _present(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root."""
    for name, place in AT_ROOT.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text("utf8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn the links of a page into those of the site, and put in what is made of the code."""
    here = PurePosixPath(page.file.src_uri)
    original = next((name for name, place in AT_ROOT.items() if place == str(here)), None)
    folder = PurePosixPath() if original else PurePosixPath("docs") / here.parent
    depth = len(here.parent.parts)

    def turned(match: re.Match[str]) -> str:
        target = _normal(folder / match["to"])
        if target in AT_ROOT or target == "README.md":
            place = AT_ROOT.get(target, "index.md")
        elif target.startswith("docs/"):
            place = target.removeprefix("docs/")
        elif (ROOT / target).exists():  # a program or a configuration, which is no page
            return match["text"]
        else:
            return match[0]
        return f"[{match['text']}]({'../' * depth}{place}{match['anchor'] or ''})"

    return filled(LINK.sub(turned, markdown))


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def _present(entries: list[Any]) -> list[Any]:
    result = []
    for entry in entries:
        ((title, inside),) = entry.items()
        if isinstance(inside, list):
            result.append({title: _present(inside)})
        elif inside in AT_ROOT.values() or (ROOT / "docs" / inside).exists():
            result.append(entry)
    return result
