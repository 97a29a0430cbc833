"""Each promise of the page names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf8")


def test_every_promise_names_tests_that_are_there() -> None:
    promises = PAGE.split("## What is promised")[1].split("## What is not")[0].strip().split("\n\n")
    assert len(promises) > 8
    for promise in promises:
        assert promise.startswith("**") and "*Held by*" in promise, promise
        tests = re.findall(r"`(tests/[\w/.]+)`", promise)
        assert tests, promise
        for test in tests:
            place = ROOT / test
            assert "def test_" in "".join(
                file.read_text("utf8") for file in [place, *place.glob("*.py")] if file.is_file()
            )


def test_the_commands_and_links_are_there() -> None:
    for script in re.findall(r"python (tests/\S+)", PAGE):
        assert (ROOT / script).is_file()
    for page in (PAGE, (ROOT / "SECURITY.md").read_text("utf8")):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page):
            assert (ROOT / "docs" / link).exists() or (ROOT / link).exists(), link
