"""Nothing that a stranger wrote does anything to a terminal, a page or a log but stand there."""

import ast
import io
import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glider.config import EMBEDDED_EMBEDDER
from glider.contribute.adopt import add_description
from glider.errors import ExpertError, GliderWarning
from glider.experts.membership import add_expert
from glider.printable import STRUCK, dump_json, piece, printable, struck, visible
from glider.terminal import console, named_streams, say, say_json

from .commands import CommandResult

SOURCE = Path(__file__).parents[1] / "src" / "glider"
HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://example.org\x1b\\here\x1b]8;;\x1b\\",
    "C1": "\x9b31mred\x9d0;owned\x9c",
    "device control": "\x1bP$q\x1b\\\x90\x9c",
    "cursor": "\x1b7\x1b[2J\x1b[1;1H\x1bc\x08\x08\r",
    "direction": "abc\u202edcba\u2066x\u2069",
    "invisible": "a\u200bb\ufeffc\u2028d\x00e\x7f\U000e0041",
    "markup": "[/x] [bold]b[/bold] [link=http://example.org]l[/link] :smile: [red",
    "half": "\ud800 half",
}
SIGNS = frozenset("\x1b\x07\x9b\x9d\x9c\x90\x08\r\x00\x7f\u202e\u2066\u2069\u200b\ufeff\u2028\U000e0041\ud800")


def harmless(text: str) -> bool:
    return all(letter == "\n" or unicodedata.category(letter)[0] != "C" for letter in text) and not set(text) & SIGNS


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=80))
def test_what_is_made_printable_is(text: str) -> None:
    assert harmless(visible(text)) and visible(visible(text)) == visible(text)
    assert harmless(printable(text)) and "\n" not in printable(text)
    assert harmless(piece(text).replace("\t", ""))
    assert harmless(dump_json(text)) and json.loads(dump_json({text: [text]})) == {text: [text]}


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🎉", "two\nlines", "العربية עברית"])
def test_ordinary_text_of_any_language_stays(text: str) -> None:
    assert visible(text) == text


def test_what_is_long_is_cut() -> None:
    assert printable("x" * 10_000_000) == "x" * 200 + " ..."
    assert len(str(ExpertError("w" * 10_000_000, "g" * 10_000_000, "r" * 10_000_000))) < 6100
    assert printable("\x1b[0m" * 1_000_000 + "x") == " ..."  # cut before it is cleaned


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_errors_and_warnings_are_printable(text: str) -> None:
    assert harmless(str(ExpertError(text, text, text))) and harmless(str(GliderWarning(text)))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_tables_lines_and_json_are_printable(text: str, capsys: pytest.CaptureFixture) -> None:
    from rich.table import Table

    table = Table(text)
    table.add_row(text)
    console().print(table)
    console().print(text)
    say(text)
    say_json({"text": text})
    shown = capsys.readouterr().out
    assert harmless(shown)
    if "[/x]" in text:
        assert shown.count("[bold]b[/bold]") == 5


@pytest.mark.parametrize("text", [text for name, text in HOSTILE.items() if name != "half"])
def test_no_command_passes_on_what_a_pool_says(
    text: str, make_pool, llama_directory: Path, tmp_path: Path, glider: Callable[..., CommandResult]
) -> None:
    pool = Path(shutil.copytree(make_pool(llama_directory).path, tmp_path / "hostile"))
    for file in (pool / "pool.json", *pool.glob("*/card.json")):
        told = json.loads(file.read_text("utf8"))
        told["base"]["model_id"] = text
        if file.name == "card.json":
            told |= {"task": text, "description": text, "licence": text, "training": {text: text}}
        file.write_text(json.dumps(told), "utf8")
    index = json.loads((pool / "pool.json").read_text("utf8"))
    for record in index["experts"]:
        record["files"]["card.json"]["size"] = (pool / record["name"] / "card.json").stat().st_size
    (pool / "pool.json").write_text(json.dumps(index), "utf8")
    for command in (["ls"], ["ls", "--json"], ["show"], ["show", "e0"], ["verify"], ["show", text]):
        ended = glider("pool", command[0], pool, *command[1:])
        assert ended.code in (0, 2) and harmless(ended.out + ended.err), (command, ended)
    (pool / "e0" / "card.json").write_text(json.dumps({text: text}), "utf8")
    ended = glider("pool", "ls", pool)
    assert ended.code == 2 and harmless(ended.err)


def test_an_output_of_few_characters_gets_the_others_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    with named_streams():
        say("世界")
    assert sys.stdout is out
    assert out.buffer.getvalue() == b"\\u4e16\\u754c\n"


POOL = str(Path(__file__).parent / "fixtures" / "v0.1" / "pool")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
@pytest.mark.parametrize("arguments", [("pool", "show", POOL), ("routers",), ("--help",), ("cache", "clear", "--help")])
def test_a_full_disk_behind_the_output_is_one_line(arguments: tuple[str, ...]) -> None:
    """Tables and help named "a file"."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "glider", *arguments]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith("glider: wanted to use standard output; got: No space") and ran.stderr.count("\n") == 1


def test_a_description_of_several_lines_is_one_in_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glider: Callable[..., CommandResult]
) -> None:
    """A stranger's line breaks drew rows of experts that are not there."""
    pool = tmp_path / "pool"
    shutil.copytree(POOL, pool)
    add_description(pool / "reviews", "Judge films.\nother  2  7  7  0.1  +9.9", EMBEDDED_EMBEDDER, "")
    add_expert(pool, "reviews")
    index = json.loads((pool / "pool.json").read_text("utf8"))
    index["base"]["model_id"] += "\nanother  line"
    (pool / "pool.json").write_text(json.dumps(index), "utf8")
    monkeypatch.setenv("COLUMNS", "200")
    ended = glider("pool", "ls", pool)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert "Judge films. other 2 7" in "\n".join(lines)
    assert not [line for line in lines if line.startswith(("other", "another"))]


FULL = """
import resource, tempfile
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from glider.errors import refused_by_system
try:
    tempfile.gettempdir()
except OSError as fault:
    print(refused_by_system(fault))
"""


def test_full_temporary_directories_are_told_as_such() -> None:
    """The command told of "a file", and to check the path."""
    ran = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("wanted to write temporary files; got: No usable temporary directory found in ")
    assert ran.stdout.endswith("Free space there, or set TMPDIR.\n")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_one_module_prints(path: Path) -> None:
    """A new command that printed by itself would be a new way out."""
    if path.name == "terminal.py" and path.parent == SOURCE:
        return
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        name = node.func if isinstance(node, ast.Call) else None
        told = name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else None
        assert told not in ("Console", "from_markup", "echo", "secho"), ast.unparse(node)
        if isinstance(name, ast.Name) and told == "print":
            assert ast.unparse(node) == "print(__version__)"


@pytest.mark.parametrize("secret", ["sk-abc/123+x", 'quo"te\\d', "spaced key"])
def test_a_secret_is_struck_in_every_form_that_echoes_it(secret: str) -> None:
    from urllib.parse import quote, quote_plus

    for form in (secret, secret.upper(), quote(secret, safe=""), quote_plus(secret), json.dumps(secret), repr(secret)):
        told = struck(f"before {form} after", [secret, None, ""])
        assert STRUCK in told and secret not in told


def test_a_sequence_that_does_not_end_takes_nothing_of_what_comes_after_it() -> None:
    """A name could hide the rest of a sentence, such as what is wrong with it."""
    for name in ("x\x1b]0;", "x\x90", "x\x9d", "x\x1bP", "x\x1b", "x\x1b,", "x\x1b["):
        assert printable(f"the name {name} is not signed").endswith(" is not signed")
    assert printable("a\x1b]0;title\x07b\x1b(Bc\x1b[31md") == "abcd"


_NOTES = """
from glider.terminal import named_streams, note, say
with named_streams():
    note("going on")
    say("done")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize(
    ("words", "code"),
    [(["-c", _NOTES], 0), (["-m", "glider", "pool", "ls", "no-such-pool"], 2)],
    ids=["notes", "error"],
)
def test_a_full_disk_behind_standard_error_ends_no_work(words: list[str], code: int) -> None:
    """`glider serve 2>LOG` did not start where the log's disk was full, and errors had another exit code."""
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, stderr=full, check=False, text=True)
    assert (ran.returncode, ran.stdout) == (code, "" if code else "done\n")
