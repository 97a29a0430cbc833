"""The README's ten lines print what the README says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text("utf8")


@pytest.mark.slow
def test_the_example_prints_its_output() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.S)
    wanted = re.search(r"```text\n(.*?)```", README, re.S)
    assert code and wanted
    ran = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert words(ran.stdout) == words(wanted[1])
    assert numbers(ran.stdout) == pytest.approx(numbers(wanted[1]), abs=0.03)


def words(text: str) -> list[str]:
    """Everything that is no decimal number."""
    return re.sub(r"\d+\.\d+", "", text).split()


def numbers(text: str) -> list[float]:
    """Decimal numbers, which may differ in the last place from machine to machine."""
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_every_file_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target
