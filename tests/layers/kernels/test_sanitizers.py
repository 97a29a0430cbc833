"""The native code under the sanitizers of addresses, of undefined behaviour and of threads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "csrc"


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_kernels_touch_only_what_is_theirs(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path / "driver"
    flags = ["-std=gnu++17", "-O1", "-g", "-w", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    driver = Path(__file__).parent / "driver.cpp"
    built = subprocess.run(
        [compiler, *flags, f"-I{SOURCES}", str(driver), "-o", str(program), "-ldl", "-pthread"],
        capture_output=True,
        text=True,
    )
    if any(f"cannot find -l{name}" in built.stderr for name in ("asan", "ubsan", "tsan")):
        pytest.skip("needs the sanitizers' libraries")
    assert built.returncode == 0, built.stderr
    teams = ["in teams"] if sanitizer == "thread" else []
    ran = subprocess.run([str(program), *teams], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and ran.stdout == "0 bad\n", ran.stdout + ran.stderr
