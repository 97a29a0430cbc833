"""A report in each of its forms: a template beside this module, which escapes every text that the report holds."""

import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glider.errors import MissingDependency
from glider.printable import visible
from glider.report.by_task import by_reason
from glider.report.contents import Report
from glider.report.summary import scale
from glider.report.wording import CHANCE, INTRODUCTION, WORDS

FORMS = ("md", "tex", "html")

_MARKDOWN = {sign: f"\\{sign}" for sign in "\\|*_<>`[]&~$#"}
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"$^\dagger$",
    "“": "``",
    "”": "''",
}
_LATEX_SYNTAX: dict[str, Any] = {  # braces are LaTeX's own
    **{"block_start_string": "<%", "block_end_string": "%>"},
    **{"variable_start_string": "<<", "variable_end_string": ">>"},
    **{"comment_start_string": "<#", "comment_end_string": "#>"},
}


def render(report: Report, form: str) -> str:
    """The report in one of `FORMS`; raises `MissingDependency` without jinja2."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError:
        raise MissingDependency("jinja2", "write the report", "pip install 'glider-moe[plot]'") from None
    environment = Environment(
        loader=PackageLoader("glider.report"),
        autoescape=True,
        finalize={"md": _escape(_MARKDOWN), "tex": _escape(_LATEX, guard="{}"), "html": _seen}[form],
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **(_LATEX_SYNTAX if form == "tex" else {}),
    )
    environment.filters.update({one.__name__: one for one in (*WORDS, by_reason, scale, label, embedded, unbroken)})
    template = environment.get_template(f"report.{form}.jinja")
    return template.render(report=report, INTRODUCTION=INTRODUCTION, CHANCE=CHANCE)


def _seen(value: Any) -> Any:
    """A value of a page without what is not to be seen; jinja2 escapes it."""
    return visible(value) if type(value) is str else value


def _escape(signs: dict[str, str], guard: str = "") -> Callable[[Any], Any]:
    """What jinja2 does with a value before its own escape, which is for HTML and passes what is `Markup` already.

    `guard` goes before a text whose first sign a command in front of it would take for an argument.
    """
    from markupsafe import Markup

    def escape(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        text = " ".join(visible(str(value)).split())
        return Markup((guard if text[:1] in ("[", "*") else "") + text.translate(str.maketrans(signs)))

    return escape


def label(text: str) -> str:
    """A name for LaTeX's `label`."""
    return re.sub(r"[\W_]+", "-", text)


def embedded(path: Path) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"


def unbroken(text: str) -> str:
    """`+6.0 [+1.2 to +9.9]` with no place to break a line but before the bracket."""
    return text.replace(" ", "\u00a0").replace("\u00a0[", " [")
