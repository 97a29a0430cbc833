"""An adapter's expressions: what PEFT would answer, in bounded time, or a refusal."""

import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.experts.site_patterns import BadPattern, SitePatterns, endings, named_sites, whole_matches

MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
SITES = [f"model.layers.{i}.{name}" for i in range(80) for name in (*MODULES, "mlp.gate_proj", "mlp.up_proj")]
ATOMS = [*"ab.0_-^$|()*+?", "\\.", "\\-", "\\d", "\\w", "\\b", "[ab]", "[^a.]", "(a)", "(?:a|b)", "{2}", "a*?"]
ATOMS += ["(?i:A)", "[[:alpha:]]", "{,2}", "(?i)", "{01}", "{1,02}", "{1,}"]
PARTS = st.sampled_from(["a", "b", "ab", "A", "0", "a0", "_", "-", "a-b"])
USUAL = ["q_proj", "layers.1.self_attn.q_proj", "^model.layers.3.mlp.up_proj", r"^model\.layers\.7", r".*\.1\..*"]
USUAL += [r"model\.layers\.(1|2|3)\.self_attn\.[qk]_proj", ".*", "mlp.(gate|up)_proj", r"layers\.\d+\.mlp.up_proj"]
REFUSED = ["(" * 20000, "a{99999999999}", "(?i)q", "a)|(b", "[a", "a" * 300, "(?=q)q", r"(a)\1", r"\Z", "*"]
REFUSED += ["(.?){600}", "[[:alpha:]]", "a{,3}", "é.*", "\\", "a{01}", "a{1,02}"]
patterns = st.lists(st.lists(st.sampled_from(ATOMS), min_size=1, max_size=5).map("".join), min_size=1, max_size=4)
names = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


def as_peft(values: dict[str, Any], site: str) -> Any:
    """`peft.utils.get_pattern_key`, word for word."""
    return next((value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", site)), None)


@given(patterns, st.lists(names, min_size=1, max_size=4))
@settings(max_examples=1500, deadline=None)
def test_what_is_not_refused_is_answered_as_peft_answers_it(given_patterns: list[str], sites: list[str]) -> None:
    values = {pattern: i for i, pattern in enumerate(given_patterns)}
    try:
        compiled = SitePatterns(values)
    except BadPattern:
        return
    for site in sites:
        assert compiled.value(site, None) == as_peft(values, site)


@given(patterns, st.lists(names, min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_whole_names_fit_as_python_has_it(given_patterns: list[str], sites: list[str]) -> None:
    for pattern in given_patterns:
        try:
            fitting = whole_matches(pattern, sites)
        except BadPattern:
            continue
        assert fitting == {site for site in sites if re.fullmatch(pattern, site)}


@given(st.lists(names, max_size=4), st.lists(names, max_size=4))
def test_a_list_of_modules_names_what_it_names_to_peft(sites: list[str], listed: list[str]) -> None:
    fitting = {site for site in sites if any(site == name or site.endswith(f".{name}") for name in listed)}
    assert named_sites(sites, listed) == fitting
    assert endings(sites) >= {name for name in listed if named_sites(sites, [name])}


@pytest.mark.parametrize("pattern", [*USUAL, "l.yers.2"])
def test_the_usual_forms_are_understood(pattern: str) -> None:
    compiled = SitePatterns({pattern: 1})
    assert [compiled.value(site, None) for site in SITES] == [as_peft({pattern: 1}, site) for site in SITES]


def test_the_first_of_several_counts_whatever_its_form() -> None:
    values = {"layers.1.mlp.up_proj": 1, r".*\.1\..*": 2, "up_proj": 3, ".*": 4, "q_proj": 5}
    compiled = SitePatterns(values)
    assert {compiled.value(site, None) for site in SITES} == {1, 2, 3, 4}
    assert all(compiled.value(site, None) == as_peft(values, site) for site in SITES)


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda pattern: pattern[:12])
def test_what_no_two_engines_read_alike_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        SitePatterns({pattern: 1})
    with pytest.raises(BadPattern):
        whole_matches(pattern, SITES)


def test_no_number_of_patterns_and_sites_takes_for_ever() -> None:
    """Compiled anew for each site, 560 patterns took eight seconds. What would take long here is refused."""
    code = (
        "import sys\nfrom glider.experts.site_patterns import BadPattern, SitePatterns\n"
        "sites = [f'model.layers.{i}.{j}.' + 'abcdefgh.' * 20 for i in range(100) for j in range(7)]\n"
        "for patterns in (sites, ['a?' * 60 + 'a' * 60], ['(a|aa){38}!'], ['.*.*.*!'],\n"
        "                 ['(a|b)*.*' + str(i) for i in range(900)],\n"
        "                 ['(?:[a-z_.0-9]?){150}' + str(i) for i in range(900)],\n"
        "                 ['a' * (i % 200 + 1) + '.' * (i // 200 % 5) + 'b' * (i // 1000) for i in range(20000)]):\n"
        "    try:\n        compiled = SitePatterns(dict.fromkeys(patterns, 1))\n"
        "        for site in sites: compiled.value(site, 0)\n"
        "    except BadPattern:\n        pass\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_many_names_and_many_sites_are_not_compared_each_with_each() -> None:
    """A list of 140,000 target modules took minutes on a base of 560 linear layers."""
    code = (
        "from pathlib import Path\nfrom types import SimpleNamespace\n"
        "from glider.contribute.adapter_files import _left_out\n"
        "sites = {f'model.layers.{i}.mlp.up_proj': None for i in range(2000)}\n"
        "names = [f'm{i}' for i in range(140_000)]\nconfig = {'target_modules': names, 'exclude_modules': names}\n"
        "assert len(_left_out(config, SimpleNamespace(sites=sites))) == 2000\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(BadPattern, match="20001 patterns"):
        SitePatterns({f"q{i}": 1 for i in range(20_001)})
    with pytest.raises(BadPattern, match="1001 expressions"):
        SitePatterns({f"q{i}.*": 1 for i in range(1001)})
