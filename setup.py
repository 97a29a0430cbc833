"""The native kernel: optional, for the stable ABI of Python 3.10, and against no version of PyTorch."""

from pathlib import Path

from setuptools import Extension, setup

native = Extension(
    "glider.layers.kernels._native",
    ["csrc/module.cpp"],
    depends=[str(path) for path in sorted(Path("csrc").glob("*"))],
    define_macros=[("Py_LIMITED_API", "0x030A0000"), ("NDEBUG", None)],
    extra_compile_args=[
        *("-std=gnu++17", "-O3", "-fvisibility=hidden", "-Wno-psabi", "-Wno-maybe-uninitialized"),
        *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    ],
    libraries=["dl"],
    py_limited_api=True,
    optional=True,  # without a compiler the package installs, and its layers run in plain PyTorch
)

setup(ext_modules=[native], options={"bdist_wheel": {"py_limited_api": "cp310"}})
