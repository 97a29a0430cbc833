"""The native code under the address and the undefined-behaviour sanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "csrc"


@pytest.mark.slow
def test_the_kernels_touch_only_what_is_theirs(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path / "driver"
    flags = ["-std=gnu++17", "-O1", "-g", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    driver = Path(__file__).parent / "driver.cpp"
    built = subprocess.run(
        [compiler, *flags, f"-I{SOURCES}", str(driver), "-o", str(program), "-ldl", "-pthread"],
        capture_output=True,
        text=True,
    )
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("needs the sanitizers' libraries")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and ran.stdout == "0 bad\n", ran.stdout + ran.stderr
