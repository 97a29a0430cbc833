"""What users name reads as they wrote it, in every form and at every place."""

import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from glider.errors import MissingDependency
from glider.report.by_task import ByTask, Lack, TaskLine
from glider.report.contents import Picture, Report
from glider.report.rendering import FORMS, label, render
from glider.report.report_plan import MethodView
from glider.report.tables import Column, Line, Table, Value

SIGNS = "[a] *b* _c_ `d` <e> &lt; f|g ~~h~~ $i$ #j \\k {l} 50 % m^n"
LATEX = (
    "[a] *b* \\_c\\_ `d` \\textless{}e\\textgreater{} \\&lt; f\\textbar{}g "
    "\\textasciitilde{}\\textasciitilde{}h\\textasciitilde{}\\textasciitilde{} \\$i\\$ \\#j "
    "\\textbackslash{}k \\{l\\} 50 \\% m\\textasciicircum{}n"
)


def report_of(name: str, pictures: tuple[Picture, ...] = ()) -> Report:
    """A report in which everything that users name has the name."""
    place = (name, name)
    method = MethodView(cells=("x",), name=name, note=name, bound=True)
    values = (Value(1, score=0.5, interval=(0.25, 0.75), runs=(0.5, 0.5), best=True), Value(0, missing=(place,)))
    columns = (Column(name, name, (place,)), Column(name, name, (place,), without_chance=True))
    line = TaskLine(place, 4, 0.5, "at chance", (0.5, None))
    return Report(
        title=name,
        intro=name,
        tables=(Table(name, name, name, name, columns, (Line(method, values),)),),
        chance={place: "at chance"},
        tasks=(ByTask(name, (name, name), (line,)),),
        lacks=(Lack(name, place, name),),
        pictures=pictures,
        provenance={name: (name, name)},
    )


class Text(HTMLParser):
    """The texts of a page, and of its titles that show on hovering."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.text += "".join(value or "" for name, value in attrs if name == "title")

    def handle_data(self, data: str) -> None:
        self.text += data


def readings(report: Report) -> dict[str, Text]:
    """The page, and Markdown as its readers see it."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(render(report, "md"))
    return {"md": Text(markdown), "html": Text(render(report, "html"))}


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.text(alphabet=st.sampled_from(SIGNS + "é†")).map(lambda text: " ".join(f"x{text}x".split())))
def test_names_are_read_as_they_are(name: str) -> None:
    plain = readings(report_of("NAME"))
    for form, reading in readings(report_of(name)).items():
        assert reading.text.replace(name, "NAME") == plain[form].text
        assert reading.tags == plain[form].tags  # nothing of it became markup


@pytest.mark.parametrize("form", FORMS)
def test_nothing_unseen_of_a_name_is_written(form: str) -> None:
    """Escape sequences and marks of direction went into the files, and from there to whoever printed them."""
    hostile = "a\x1b[31mb\x9b2Jc\x1b]0;title\x07d\u202ee\u2066f\u200bg\x00\x7f\u2028h"
    text = render(report_of(hostile), form)
    assert not [letter for letter in set(text) if unicodedata.category(letter) in ("Cc", "Cf") and letter != "\n"]
    assert "abcdefg" in text


def test_latex_has_no_command_of_a_name() -> None:
    latex = render(report_of(SIGNS), "tex")
    assert f"\\midrule\n{{}}{LATEX} $^\\dagger$ & " in latex  # the bracket alone would be an argument of the rule
    plain = latex.replace("{}" + LATEX, "NAME").replace(LATEX, "NAME").replace(label(SIGNS), "NAME")
    assert plain == render(report_of("NAME"), "tex")


def test_labels_are_of_plain_signs() -> None:
    assert [label(text) for text in ("table1", "ablation_global", "50 % {x}")] == [
        *("table1", "ablation-global", "50-x-"),
    ]


def test_pictures_are_in_every_form(tmp_path: Path) -> None:
    light, dark = tmp_path / "a_b.png", tmp_path / "a_b-dark.png"
    for path in (light, dark):
        path.write_bytes(path.name.encode())
    texts = {form: render(report_of("x", (Picture("A_B", "c & d", light, dark),)), form) for form in FORMS}
    assert "## Figure 1: A\\_B\n\nc \\& d\n\n![A\\_B](a_b.png)\n\n## Tasks at chance" in texts["md"]
    assert "\\includegraphics[width=\\linewidth]{a_b.png}\n\\caption{\\textbf{A\\_B.} c \\& d}" in texts["tex"]
    assert all(f"data:image/png;base64,{sign}" in texts["html"] for sign in ("YV9iLnBuZw==", "YV9iLWRhcmsucG5n"))


def test_without_jinja2_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependency, match=r"glider-moe\[plot\]"):
        render(report_of("x"), "html")
