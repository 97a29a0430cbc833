"""Every page with a command or a program has a test that runs it, or a reason why none does."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from glider.cli.main import build

from .snippets import DOCS, ROOT, blocks, lines, page

PAGES = [*(str(file.relative_to(DOCS)) for file in sorted(DOCS.rglob("*.md"))), "README.md", "CONTRIBUTING.md"]
LANGUAGES = ("sh", "python", "yaml", "json", "toml", "nginx")
RUN_BY = {
    "README.md": ["docs/test_readme.py", "docs/test_pages.py", "demo/test_demo.py"],
    "CONTRIBUTING.md": ["docs/test_every_snippet.py"],
    "adding_a_router.md": ["docs/test_router_pages.py"],
    "cluster.md": ["docs/test_cluster_page.py"],
    "describing.md": ["instructions/test_describing_page.py"],
    "evaluation.md": ["docs/test_pages.py"],
    "experts.md": ["docs/test_experts_page.py"],
    "extending.md": ["examples/test_plugin.py"],
    "global_signals.md": ["docs/test_pages.py"],
    "guides/adapters.md": ["docs/test_pages.py"],
    "guides/code.md": ["docs/test_pages.py"],
    "guides/data.md": ["docs/test_pages.py"],
    "guides/lm_eval.md": ["docs/test_pages.py"],
    "guides/production.md": ["docs/test_pages.py"],
    "guides/ray.md": ["docs/test_cluster_page.py"],
    "guides/transformers.md": ["docs/test_pages.py"],
    "guides/vllm.md": ["docs/test_vllm_page.py"],
    "index.md": ["docs/test_pages.py"],
    "measurements.md": ["docs/test_pages.py"],
    "models.md": ["docs/test_pages.py"],
    "reproducing.md": ["docs/test_reproducing_pages.py"],
    "results.md": ["docs/test_reproducing_pages.py", "reproduce/test_mini.py"],
    "security.md": ["hostile/test_fuzz.py", "hostile/test_kills.py", "hostile/test_bodies.py"],
    "serving.md": ["docs/test_serving_page.py"],
    "sharing.md": ["docs/test_sharing_page.py"],
    "verdicts.md": ["docs/test_pages.py"],
    "vllm.md": ["docs/test_vllm_page.py", "engines/test_page.py"],
}
NOT_RUN = {  # what of those pages is left to be read
    "README.md": "`pip install` asks a registry",
    "cluster.md": "a GPU for each job; Ray Serve's program wants vLLM and a GPU, as the page says",
    "guides/lm_eval.md": "`arc_easy` is fetched from the hub",
    "guides/ray.md": "a GPU for each job; all its commands are cluster.md's",
    "guides/vllm.md": "all its commands are vllm.md's",
    "reproducing.md": "the full run wants a GPU and the hub: its plan is made, and the rehearsal of all of it runs",
    "results.md": "`glider evaluate` of all rows takes hours: one of its cells is evaluated",
    "security.md": "a million cases: the tests run hundreds of the same programs' cases",
    "serving.md": "`--device cuda`, and a proxy's settings: their options are checked",
    "sharing.md": "`hf auth login` asks at the terminal",
    "vllm.md": "`vllm serve BASE` without the embedded base; that of the demo runs in `make vllm-test`",
}


def commands() -> list[tuple[str, str]]:
    """Every line of any page that begins with `glider` in a fence or an indented block, or stands in `$(...)` there.

    And the entry point of the example for Ray on Kubernetes.
    """
    every = []
    for name in PAGES:
        text = page(name)
        code = lines(text) + [line.strip() for line in re.findall(r"^ {4,}(?:glider|vllm) .*$", text, re.M)]
        for line in code:
            inside = re.findall(r"\$\((glider [^)]*)\)", line)
            every += [(name, one) for one in inside or ([line] if line.startswith("glider ") else [])]
    job = yaml.safe_load((ROOT / "examples" / "ray_job.yaml").read_text("utf8"))
    return sorted({*every, ("examples/ray_job.yaml", job["spec"]["entrypoint"])})


def test_every_page_with_a_snippet_is_run_or_says_why_not() -> None:
    with_snippets = {name for name in PAGES if any(blocks(page(name), language) for language in LANGUAGES)}
    assert with_snippets == set(RUN_BY)
    assert set(NOT_RUN) <= set(RUN_BY)
    for tests in RUN_BY.values():
        for test in tests:
            assert (ROOT / "tests" / test).is_file(), test


@pytest.mark.parametrize(("name", "line"), commands())
def test_a_command_has_the_options_that_a_page_names(name: str, line: str) -> None:
    words = shlex.split(line.split("  #")[0])[1:]
    command = typer.main.get_command(build(words[0]))
    context, rest = None, words
    while True:
        context = command.make_context(command.name or "glider", list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            break
        _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])  # pyright: ignore
        assert command is not None, (name, line)


def test_scripts_and_their_options_are_there() -> None:
    shown = [line for name in PAGES for line in re.findall(r"^(?: {4})?(python (?!docs)\S+\.py.*)$", page(name), re.M)]
    assert len(shown) > 15
    for line in shown:
        script = ROOT / line.split()[1]
        source = "".join(file.read_text("utf8") for file in script.parent.glob("*.py"))
        assert script.is_file(), line
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", line.split("  #")[0]):
            assert f'"{option}"' in source, (line, option)


def test_the_targets_of_joining_are_the_makefiles() -> None:
    targets = re.findall(r"^make ([\w-]+)", "\n".join(blocks(page("CONTRIBUTING.md"), "sh")), re.M)
    assert {"install", "test", "slow"} <= set(targets)
    for target in targets:
        ran = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0 and ran.stdout, (target, ran.stderr)


def test_paths_that_pages_name_in_the_repository_are_there() -> None:
    for name in PAGES:
        for path in re.findall(r"`((?:tests|examples|benchmarks|reproduce)/[\w./-]+)`", page(name)):
            assert Path(ROOT / path).exists(), (name, path)
