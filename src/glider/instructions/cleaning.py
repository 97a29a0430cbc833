"""A describer's reply becomes one plain sentence, or is refused.

The reply is a stranger's text: it may be a web page, a thought, an echo, a refusal, or an attempt to give orders. It is
only ever embedded and printed, so what is left of it must be short, one line, and free of markup and control
characters; what it says is not judged.
"""

import re

from glider.printable import printable, visible

__all__ = ["LONGEST", "Nonsense", "clean", "printable"]

LONGEST = 500  # characters of a description; the longest of 600 that GPT-4 wrote has 502
LONGEST_REPLY = 20_000  # characters that are looked at
_FEWEST_LETTERS = 8

_PAGE = re.compile(r"<(?:!doctype|html|head|body|script|style|\?xml)\b", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
# how models set their thoughts apart: <think> and its kin, bars of either width (Cohere, Solar, Kimi), [THINK],
# triangles, Gemma's channel, Apertus's marks, a front end's <details>
_THOUGHT_WORD = (
    "(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|monologue|rationale|deliberation|cot"
    "|plan(?:ning)?)"
)
_TAGS = rf"[\w:-]{{0,20}}{_THOUGHT_WORD}"
_BARRED = r"<[|\uff5c](?:{})[|\uff5c]>"
_JOIN = r"[_:\u2581]"
_OPENS = "|".join(
    (
        rf"<\s?{_TAGS}(?:\s[^<>]{{0,80}})?>",
        r"<details\b[^<>]{0,200}>|<tool_call>|<!--",
        r"\[(?:think|thinking|thoughts?|reasoning)\]",
        r"\u25c1think\u25b7",
        r"<\|channel>thought",
        _BARRED.format(
            rf"(?:(?:start|begin){_JOIN}(?:of{_JOIN})?)?{_THOUGHT_WORD}(?:{_JOIN}(?:start|begin))?|inner_prefix"
        ),
    )
)
_CLOSES = "|".join(
    (
        rf"</\s?{_TAGS}\s?>",
        "</details>|</tool_call>|-->",
        r"\[/(?:think|thinking|thoughts?|reasoning)\]",
        r"\u25c1/think\u25b7",
        r"<channel\|>",
        _BARRED.format(
            rf"/{_THOUGHT_WORD}|end{_JOIN}(?:of{_JOIN})?{_THOUGHT_WORD}|{_THOUGHT_WORD}{_JOIN}end|inner_suffix"
        ),
    )
)
_OPEN, _CLOSE = re.compile(_OPENS, re.IGNORECASE), re.compile(_CLOSES, re.IGNORECASE)
_FENCE = re.compile(rf"```\s?{_THOUGHT_WORD}\b.*?(?:```|(\Z))", re.DOTALL | re.IGNORECASE)
# Harmony writes channels, of which the last is for the user; some servers strip the marks and leave the names
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+).{0,80}?<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|start|call)\|>")
_SOLAR = re.compile(r"\A(?:.*<\|end\|>)?\s*<\|begin\|>assistant<\|content\|>", re.DOTALL)
_MARK = re.compile(r"<[|\uff5c][\w\u2581]{1,40}[|\uff5c]>|\[\|\w{1,40}\|\]|\[/?INST\]")  # of a turn, left in a reply
# thoughts under a heading, up to that of the answer: Granite's sentences, ReAct's words, Markdown
_ALOUD = re.compile(
    r"\W*(?:here(?: is|'s) my thought process:|(?:my |the )?(?:thinking|thoughts?(?: process)?|reasoning|analysis)"
    r"(?:\*\*)?(?::|[ \t*]*\n)).*?"
    r"(\n[^\w\n]{0,40}(?:here(?: is|'s) my response:|(?:the )?(?:final |task )?"
    r"(?:answer|response|output|instruction|description|sentence)(?:\*\*)?(?::|[ \t*]*\n))"
    r"|here(?: is|'s) my response:|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_BARE_HARMONY = re.compile(r"(?:analysis|commentary)(?=[A-Z\s]).*?assistant\s*final|final(?=[A-Z\n])", re.DOTALL)
_BARE_THOUGHT = re.compile(r"(?:analysis|commentary)(?=[A-Z\n])")
_LINE_MARK = re.compile(r"^(?:[#>*+\-\u2022\s]+|\d{1,2}[.)]\s+)+")
_EMPHASIS = re.compile(r"\*\*|__|`+")
_LABEL = re.compile(
    r"^(?:the\s+)?(?:task\s+|one[- ]sentence\s+)?(?:instruction|description|answer|task|response|sentence)\s*:\s*", re.I
)
_SHOWN = re.compile(r"^(?:input|output|request|example)\s*\d*\s*:", re.IGNORECASE)
_REFUSAL = re.compile(r"^(?:i['\u2019]?m\s+(?:very\s+)?sorry|i\s+can(?:no|['\u2019])t|as\s+an\s+ai\b|sorry,)", re.I)
_END = re.compile(r"""(?<=[.!?])["'\u201d\u2019)\]]*\s+(?=["'\u201c\u2018(\[]?[A-Z0-9])""")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|dr|mr|mrs|ms|st|no|fig)\.$", re.IGNORECASE)
_QUOTES = "\"'\u201c\u201d\u2018\u2019 "


class Nonsense(ValueError):
    """A reply without a usable sentence; the message says what it was instead."""


def clean(reply: str, prompt: str = "", instruction: str = "") -> str:
    """The first sentence of a reply, on one line, at most 500 characters.

    `prompt` is what was asked and `instruction` its fixed part: neither may come back as the answer. Raises `Nonsense`.
    """
    if len(reply) > LONGEST_REPLY:
        raise Nonsense(f"{len(reply)} characters where one sentence was asked for")
    text = _without_thought(_after_echo(reply, prompt))
    if _PAGE.search(text):
        raise Nonsense("a web page")
    if text.lstrip().startswith(("{", "[")):
        raise Nonsense("structured data")
    lines = [plain for line in visible(text).splitlines() if (plain := _plain(line))]
    instructed = _words(instruction)
    fresh = [line for line in lines if _words(line) not in instructed and not _SHOWN.match(line)]
    if lines and not fresh:
        raise Nonsense("an echo of the prompt")
    if len(fresh) > 1 and fresh[0].endswith(":"):  # "Here is the instruction:"
        fresh = fresh[1:]
    sentence = _bounded(_first_sentence(fresh[0]).strip(_QUOTES)) if fresh else ""
    if _REFUSAL.match(sentence):
        raise Nonsense("a refusal")
    if sum(letter.isalpha() for letter in sentence) < _FEWEST_LETTERS:
        raise Nonsense("hardly a word" if sentence else "nothing")
    return sentence


def _after_echo(reply: str, prompt: str) -> str:
    end = prompt[-80:]
    return reply.rpartition(end)[2] if len(end) == 80 else reply


def _without_thought(text: str) -> str:
    text = visible(text).replace("&lt;", "<").replace("&gt;", ">")
    text = _final_channel(text)
    text = _without_spans(text)
    text = _CLOSE.split(text)[-1]  # some templates open the thought within the prompt
    unended = any(fence[1] is not None for fence in _FENCE.finditer(text))
    text = _FENCE.sub("", text)
    aloud = _ALOUD.match(text)
    if unended or _OPEN.search(text) or (aloud is not None and not aloud[1]):
        raise Nonsense("a thought without an end")
    return _MARK.sub("", text if aloud is None else text[aloud.end() :])


def _without_spans(text: str) -> str:
    """The text without what lies between an opening and the next closing, in time that grows with its length alone."""
    parts, position = [], 0
    while (opening := _OPEN.search(text, position)) and (closing := _CLOSE.search(text, opening.end())):
        parts.append(text[position : opening.start()])
        position = closing.end()
    return "".join([*parts, text[position:]])


def _final_channel(text: str) -> str:
    if solar := _SOLAR.match(text):
        return _HARMONY_END.split(text[solar.end() :])[0]
    channels = list(_CHANNEL.finditer(text))
    if not channels:
        bare = _BARE_HARMONY.match(text.lstrip())
        if bare is None and _BARE_THOUGHT.match(text.lstrip()):
            raise Nonsense("a thought without an end")
        return text if bare is None else text.lstrip()[bare.end() :]
    final = next((channel for channel in reversed(channels) if channel[1] == "final"), None)
    if final is None:
        raise Nonsense("a thought without an end")
    return _HARMONY_END.split(text[final.end() :])[0]


def _plain(line: str) -> str:
    line = _EMPHASIS.sub("", _TAG.sub("", line)).strip()
    line = _LINE_MARK.sub("", line)
    return " ".join(_LABEL.sub("", line).split())


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _first_sentence(line: str) -> str:
    for end in _END.finditer(line):
        if not _ABBREVIATION.search(line[: end.start()]):
            return line[: end.end()].strip()
    return line


def _bounded(sentence: str) -> str:
    if len(sentence) <= LONGEST:
        return sentence
    return sentence[:LONGEST].rpartition(" ")[0] or sentence[:LONGEST]
