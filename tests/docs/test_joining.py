"""The ways by which a change is checked name the same tools, and leave no test out."""

import re
from pathlib import Path

import yaml

from .snippets import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"


def test_hooks_are_tools_of_the_environment_and_actionlint_is_everywhere_the_same() -> None:
    [own, theirs] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf8"))["repos"]
    development = (ROOT / "pyproject.toml").read_text("utf8")
    for hook in own["hooks"]:
        tool = re.match(r"\.venv/bin/([\w-]+)", hook["entry"])
        assert tool and f'"{tool[1]}>=' in development, hook
    steps = yaml.safe_load((WORKFLOWS / "tests.yml").read_text("utf8"))["jobs"]["lint"]["steps"]
    [line] = [step["run"] for step in steps if "actionlint" in step.get("run", "")]
    assert theirs["repo"] == "https://github.com/rhysd/actionlint" and line.endswith(f"@{theirs['rev']}")


def test_tests_on_clusters_lie_where_the_makefile_looks() -> None:
    """Those of docs/cluster.md's commands lay elsewhere, and no target ran them."""
    makefile = (ROOT / "Makefile").read_text("utf8")
    mark = "pytest.mark." + "cluster"
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if mark in file.read_text("utf8")]
    assert len(files) > 2
    for target in ('-m "cluster and short"', "-m cluster"):
        [line] = re.findall(rf"pytest {target} (.*)$", makefile, re.M)
        places = [ROOT / place for place in line.split()]
        assert [file for file in files if not any(place in file.parents for place in places)] == []


def test_every_workflow_is_a_target_of_the_makefile_or_asks_for_what_no_target_has() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf8"), re.M))
    for file in sorted(WORKFLOWS.glob("*.yml")):
        jobs = yaml.safe_load(file.read_text("utf8"))["jobs"].values()
        for line in (step["run"] for job in jobs for step in job["steps"] if "run" in step):
            if line.startswith("make "):
                assert set(line.split("#")[0].split()[1:]) <= targets, line
            elif line.startswith(".ci/"):
                assert Path(ROOT / line.split()[0]).is_file(), line


def test_whoever_reports_is_sent_to_no_address_that_is_not_there() -> None:
    """Two pages named one in the package's metadata, which has none."""
    pages = [(ROOT / name).read_text("utf8") for name in ("SECURITY.md", "CODE_OF_CONDUCT.md")]
    assert "email" in (ROOT / "pyproject.toml").read_text("utf8") or not any("metadata" in text for text in pages)
