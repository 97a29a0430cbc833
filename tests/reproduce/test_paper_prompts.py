"""Every list of templates is promptsource's, and data sets that P3 lacks are rendered from pages of their own fields.

The pages are written from the data sets' documented fields; none was downloaded.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fullrun import prompts as prompts_module
from fullrun.plan import Lengths, P3Source, PromptedSource, TaskSet, TaskSource, TrecSource, read_plan
from fullrun.prompts import Prompt, parse_prompts, read_prompts
from fullrun.readers import HubRow
from fullrun.sources import task_rows
from glider.errors import DataError, MissingDependency

KNOWN: dict[str, dict[str, list[str]]] = json.loads(
    Path(__file__).with_name("promptsource_templates.json").read_text("utf8")
)
HEADS = {"glue_": "glue/", "super_glue_": "super_glue/", "paws_": "paws/", "wiki_hop_": "wiki_hop/"}
HEADS |= {"cnn_dailymail_": "cnn_dailymail/", "winogrande_": "winogrande/"}
LEFT_OUT = {  # by the published code
    "p3socialiqa": ["Check if a random answer is valid or not"],
    "p3wikiqa": ["Direct Answer to Question"],
    "p3copa": [
        *("…which may be caused by", "…What could happen next, C1 or C2?", "…As a result, C1 or C2?"),
        "…why? C1 or C2",
    ],
}
UNMARKED = {"p3quarel", "p3appreviews"}  # none is marked; the published code names them
TEMPLATED = [
    (name, source)
    for chosen in ("t0-heldin", "t0-heldout")
    for name, source in read_plan(["all"]).sets[chosen].tasks.items()
    if isinstance(source, P3Source | PromptedSource)
]
needs_promptsource = pytest.mark.skipif(find_spec("promptsource") is None, reason="promptsource is not installed")


def directory(source: TaskSource) -> str:
    """Where promptsource has a task's templates."""
    if isinstance(source, PromptedSource):
        return source.prompts
    assert isinstance(source, P3Source)
    part = source.parts[0]
    head = next((head for head in HEADS if part.startswith(head)), None)
    return part if head is None else HEADS[head] + part.removeprefix(head)


def on_the_hub(template: str) -> str:
    """A template's name as P3's configs have it."""
    return re.sub(r"[^\w.]+", "_", template)


@pytest.mark.parametrize(("name", "source"), TEMPLATED, ids=[name for name, _ in TEMPLATED])
def test_templates_are_those_marked_as_the_original_task(name: str, source: P3Source | PromptedSource) -> None:
    """Six that are not had been among them: of cosmos_qa, quail, sciq and qqp."""
    known = KNOWN[directory(source)]
    marked = [template for template in known["original"] if template not in LEFT_OUT.get(name, [])]
    if name in UNMARKED:
        named = {on_the_hub(template) for template in known["other"]}
        assert known["original"] == [] and set(source.templates) <= named
    elif isinstance(source, PromptedSource):
        assert list(source.templates) == marked  # in the order of the names, by which rows take turns
    else:
        assert list(source.templates) == [on_the_hub(template) for template in marked]


@needs_promptsource
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_list_is_promptsources_own(name: str) -> None:
    found = read_prompts(name)
    assert KNOWN[name]["original"] == [prompt.name for prompt in found.values() if prompt.original_task]
    assert KNOWN[name]["other"] == [prompt.name for prompt in found.values() if not prompt.original_task]


STORY = {f"input_sentence_{i}": f"S{i}." for i in range(1, 5)}
STORY |= {"sentence_quiz1": "E1.", "sentence_quiz2": "E2.", "answer_right_ending": 2}


@needs_promptsource
def test_story_cloze_is_worded_as_promptsource_words_it() -> None:
    found = {name: prompt.render(STORY, "") for name, prompt in read_prompts("story_cloze/2016").items()}
    told = [found[name].input for name in KNOWN["story_cloze/2016"]["original"]]  # pyright: ignore
    assert told == [
        "S1. S2. S3. S4. What is a possible continuation for the story given the following options ? - E1.\n- E2.",
        "Read the following story :\n\nS1.\nS2.\nS3.\nS4.\n\nChoose a possible ending for the previous story from the "
        "following options: \n- E1.\n- E2.",
        "Yesterday, I watched a movie. Here's what happened: S1. S2. S3. S4. What happens next? - E1.\n- E2.",
        "I read the following novel: S1. S2. S3. S4. What do you think is the most probable ending? You can choose "
        "from the following options: - E1.\n- E2.",
        "What is a possible continuation for the following story ? \n\nS1.\nS2.\nS3.\nS4.\n\nChoose from the following "
        "options:\n- E1.\n- E2.",
    ]


FILE = r"""
dataset: d
templates:
  1: !Template
    answer_choices: '{{first}} ||| {{second}}'
    id: 1
    jinja: 'Which? {{text}}

      - {{answer_choices | join("\n- ")}} ||| {{answer_choices[label]}}'
    metadata: !TemplateMetadata
      choices_in_prompt: true
      metrics:
      - Accuracy
      original_task: true
    name: which
    reference: ''
  2: !Template
    answer_choices: null
    id: 2
    jinja: '{% if answers %}{{text}} ||| {{answers | choice}}{% endif %}'
    metadata: !TemplateMetadata
      original_task: null
    name: any
    reference: ''
"""


def test_a_file_of_templates_and_what_it_renders() -> None:
    found = parse_prompts(FILE)
    assert list(found) == ["any", "which"]
    assert found["which"].original_task and not found["any"].original_task
    row = {"text": "a|||b", "first": " one", "second": "t|||wo", "label": 1, "answers": ["x", "y"]}
    shown = found["which"].render(row, "0")
    assert shown is not None and shown.choices == ("one", "t|||wo")
    assert (shown.input, shown.output) == ("Which? a|||b\n- one\n- t|||wo", "t|||wo")
    drawn = {found["any"].render(row, str(seed)).output for seed in range(20)}  # pyright: ignore
    assert drawn == {"x", "y"} and found["any"].render(row, "7") == found["any"].render(row, "7")
    assert found["any"].render({**row, "answers": []}, "0") is None
    with pytest.raises(KeyError, match="text"):
        found["any"].render({"answers": ["x"]}, "0")


def test_long_fields_are_cut_as_promptsource_cuts_them() -> None:
    prompt = Prompt("p", "{{text}} ||| {{answer}}")
    shown = prompt.render({"text": "word " * 1000, "answer": "a" * 3000}, "")
    assert shown is not None and shown.input.endswith("word...") and 2000 < len(shown.input) <= 2048
    assert len(shown.output) == 2048


def test_a_template_cannot_reach_out_of_the_sandbox() -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        Prompt("p", "{{ ''.__class__.__mro__ }} ||| x").render({}, "")


def test_without_promptsource_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"--ignore-requires-python promptsource==0\.2\.3"):
        read_prompts("ropes")


def test_another_version_of_promptsource_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "find_spec", lambda name: find_spec("glider"))
    monkeypatch.setattr(prompts_module, "version", lambda name: "0.2.2")
    with pytest.raises(DataError, match=r"wanted promptsource 0\.2\.3; got 0\.2\.2"):
        read_prompts("ropes")


COMMON: dict[str, Any] = {"split": ("validation",), "available": 10, "assumed": Lengths(input=1, target=1)}
CHOICES = Prompt(
    "one",
    "{{question}} ||| {{answer_choices[choices.label.index(answerKey)]}}",
    "{{choices.text | join('|||')}}",
)
LETTERS = Prompt("letters", "{{question}} ||| {{answerKey}}", "A ||| B ||| C ||| D")
SPAN = Prompt("one", "{{context}} {{question}} ||| {{answers.text | choice}}")
PLOT = Prompt("one", "{{question}} {{plot}} ||| {% if no_answer %}No, I can't{% else %}{{answers | choice}}{% endif %}")
HOTPOT = Prompt(
    "one",
    "{{question}}\n{% for some in context.sentences %}\n - {{some | join('')}}{% endfor %} ||| {{answer}} because",
)


def prompted(**changes: Any) -> PromptedSource:
    told = {"source": "prompted", "hub": "d", "prompts": "d", "templates": ("one",), "metrics": ("squad",)}
    return PromptedSource(**{**COMMON, "train": None, **told, **changes})


def read(task: TaskSource, page: Sequence[HubRow], *prompts: Prompt) -> list[dict[str, Any]]:
    """What is evaluated of a page of the hub's rows; a half of it at most is set apart."""
    known: Mapping[str, Prompt] = {prompt.name: prompt for prompt in prompts}
    tasks = TaskSet(queries="q.pt", tasks={"task": task}, templates="round-robin")  # pyright: ignore
    found = task_rows(task, tasks, lambda *place: page, lambda text, most: text, prompts=lambda name: known)
    return sorted(found, key=lambda row: int(re.findall(r"/(\d+)", row["id"])[-1]))


def commonsense(key: str) -> HubRow:
    choices = {"label": ["A", "B", "C", "D", "E"], "text": ["bank", "library", "mall", "new york", "door"]}
    return {
        **{"id": f"q{key}", "question": "A revolving door is at a?", "question_concept": "revolving door"},
        **{"choices": choices, "answerKey": key},
    }


def test_commonsense_qa_has_its_five_options() -> None:
    task = prompted(metrics=("accuracy",))
    first, _ = read(task, [commonsense("A"), commonsense("E")], CHOICES)
    assert first["choices"] == ["bank", "library", "mall", "new york", "door"] and first["output"] == "bank"
    assert read(task, [commonsense("A"), commonsense("E")], CHOICES)[1]["output"] == "door"
    page = [commonsense("ABCDE"[i % 5]) for i in range(40)]
    few = prompted(metrics=("accuracy",), templates=("letters",), left_out=0.3)
    assert all(row["output"] in "ABCD" for row in read(few, page, LETTERS))  # the fifth has no letter: left out
    with pytest.raises(DataError, match="without"):
        read(few.model_copy(update={"left_out": 0.05}), page, LETTERS)
    with pytest.raises(DataError, match=r"documented fields in row . of d.*ValueError"):
        read(task, [commonsense("Z")] * 2, CHOICES)


def span(*answers: str) -> HubRow:
    return {
        **{"id": "1", "title": "t", "context": "It rained in May.", "question": "When?"},
        **{"answers": {"text": list(answers), "answer_start": [11] * len(answers)}},
        **{"metadata": {"split": "validation", "model_in_the_loop": "BiDAF"}},
    }


def test_every_right_answer_of_a_passage_counts() -> None:
    task = prompted(answers=("answers", "text"))
    first, second = read(task, [span("May", "in May", "May"), span("May")], SPAN)
    assert first["references"] == ["May", "in May"] and first["output"] in ("May", "in May")
    assert second["references"] == ["May"] and second["input"] == "It rained in May. When?"
    lost = {name: value for name, value in span("May").items() if name != "context"}
    with pytest.raises(DataError, match=r"documented fields in row 0 of d.*context"):
        read(task, [lost, lost], SPAN)
    changed = {**span("May"), "answers": ["May"]}  # as DuoRC has them, not as SQuAD has
    with pytest.raises(DataError, match="documented fields"):
        read(task, [changed, changed], SPAN)


def plot(*answers: str) -> HubRow:
    return {
        **{"plot_id": "/m/1", "plot": "A man walks.", "title": "Walk", "question_id": "1", "question": "Who?"},
        **{"answers": list(answers), "no_answer": not answers},
    }


def test_a_question_without_an_answer_is_right_with_what_its_template_says() -> None:
    task = prompted(answers=("answers",))
    with_answers, without = read(task, [plot("a man", "the man"), plot()], PLOT)
    assert with_answers["references"] == ["a man", "the man"]
    assert without["output"] == "No, I can't" and "references" not in without


def hotpot(answer: str) -> HubRow:
    return {
        **{"id": "5a", "question": "Which is older?", "answer": answer, "type": "comparison", "level": "medium"},
        "supporting_facts": {"title": ["One", "Two"], "sent_id": [0, 1]},
        "context": {"title": ["One", "Two"], "sentences": [["One is old.", " Very."], ["Two is new.", " Is it?"]]},
    }


def test_hotpot_qa_comes_with_its_paragraphs_and_its_answer_alone_is_right() -> None:
    first, _ = read(prompted(answers=("answer",), metrics=("rouge",)), [hotpot("One")] * 2, HOTPOT)
    assert first["input"].splitlines() == ["Which is older?", "", " - One is old. Very.", " - Two is new. Is it?"]
    assert first["output"] == "One because" and first["references"] == ["One"]  # as the published evaluation has it


def test_trec_asks_for_its_fifty_fine_labels() -> None:
    source = read_plan(["all"]).sets["t0-heldin"].tasks["p3trec"]
    assert isinstance(source, TrecSource) and len(set(source.labels)) == 50
    task = source.model_copy(update={"split": ("validation",), "train": None})
    page = [{"text": "What is a nematode ?", "coarse_label": 2, "fine_label": 24}]
    page += [{"text": "How far is it ?", "label-coarse": 4, "label-fine": 40}]  # the data set's older form
    first, second = read(task, page)
    head, options, tail = first["input"].split("\n")
    assert head == "Question: What is a nematode ?" and tail == "Answer:"
    assert options.startswith("Answer choices: ['Abbreviation.', 'Expression abbreviated.', 'Animal.',")
    assert options.endswith("'Size, area and volume.', 'Weight.']")
    assert first["output"] == "Definition of something." and second["output"] == "Distance, linear measure."
    assert first["choices"] == list(source.labels)
    with pytest.raises(DataError, match="documented fields in row 0"):
        read(task, [{"text": "?", "coarse_label": 0, "fine_label": 50}] * 2)
    with pytest.raises(DataError, match="documented fields in row 0"):
        read(task, [{"text": "?", "coarse_label": 0}] * 2)


def test_a_template_that_promptsource_lacks_is_named() -> None:
    with pytest.raises(DataError, match="none of gone"):
        read(prompted(templates=("one", "gone")), [span("May")] * 2, SPAN)
