"""Questions about Python, answered with the first sentences of docstrings and of the reference."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile

from host_tools.chat.demo.documents import topics

# How a conversation may ask for a subject; "Describe {}." is asked for the first time after
# training, to see whether the model heeds the subject or the words around it.
PHRASES = (
    "What does {} do?",
    "What is {}?",
    "Explain {}.",
    "Tell me about {}.",
    "What is {} for?",
    "{}?",
)
UNSEEN_PHRASE = "Please describe {}."
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You answer questions about Python.",
    "Be brief.",
)
SMALL_TALK = {
    "Hello!": "Hello! Ask me about Python, for example: What does str.split do?",
    "Hi": "Hello! Ask me about Python, for example: What does str.split do?",
    "Who are you?": "I am a very small language model, trained on the documentation of Python.",
    "What are you?": "I am a very small language model, trained on the documentation of Python.",
    "What can you do?": "I can tell what the functions, types and statements of Python do.",
    "Thank you!": "You are welcome.",
    "Thanks": "You are welcome.",
    "Goodbye": "Goodbye!",
}
TYPES = (str, list, dict, set)
MODULES = (
    "base64", "bisect", "collections", "copy", "csv", "datetime", "functools", "glob", "hashlib",
    "heapq", "io", "itertools", "json", "math", "os.path", "queue", "random", "re", "secrets",
    "shutil", "statistics", "string", "struct", "subprocess", "tempfile", "textwrap", "threading",
    "time", "zlib",
)  # fmt: skip
STATEMENTS = (
    "assert", "async", "break", "class", "continue", "del", "for", "from", "global", "if",
    "import", "lambda", "nonlocal", "pass", "raise", "return", "try", "while", "with", "yield",
)  # fmt: skip
# Of the module site, for people who sit before the interpreter.
NO_BUILTINS = frozenset({"copyright", "credits", "exit", "license", "quit"})
MIN_CHARACTERS, MAX_CHARACTERS = 20, 200
_SIGNATURE = re.compile(r"^[\w.]+\(.*\)\s*(->.*|-- .*)?$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said about a subject, such as "str.split" or "the with statement"."""

    subject: str
    text: str


def answers() -> tuple[Answer, ...]:
    """Return an answer for each subject, in the order of the subjects."""
    found = {}
    for subject, text in (*_of_builtins(), *_of_modules(), *_of_statements()):
        answer = first_sentences(text)
        if answer is not None:
            found[subject] = Answer(subject=subject, text=answer)
    return tuple(found[subject] for subject in sorted(found))


def first_sentences(text: str) -> str | None:
    """Return the first sentence of prose, or two short ones; None if there is none of good length.

    Signatures at the beginning, headings, lists and indented lines are no prose.
    """
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = list(dropwhile(_is_signature, paragraph.splitlines()))
        if not lines or _is_heading(lines) or any(line.startswith((" ", "-")) for line in lines):
            continue
        sentences = _SENTENCE_END.split(" ".join(" ".join(lines).split()))
        answer = sentences[0]
        if len(sentences) > 1 and len(answer) + len(sentences[1]) < MAX_CHARACTERS / 2:
            answer = f"{answer} {sentences[1]}"
        answer = answer.rstrip(":;, ")
        answer += "" if answer.endswith((".", "!", "?")) else "."
        if MIN_CHARACTERS <= len(answer) <= MAX_CHARACTERS:
            return answer
        return None
    return None


def _is_signature(line: str) -> bool:
    return _SIGNATURE.match(line.strip()) is not None or "->" in line


def _is_heading(lines: list[str]) -> bool:
    return len(lines) > 1 and not lines[1].strip("*=-~^")


def _of_builtins() -> Iterator[tuple[str, str]]:
    for name, value in vars(builtins).items():
        if name.startswith("_") or name in NO_BUILTINS or not callable(value):
            continue
        if not (isinstance(value, type) and issubclass(value, BaseException)):
            yield name, value.__doc__ or ""
    for kind in TYPES:
        for name in vars(kind):
            if not name.startswith("_"):
                yield f"{kind.__name__}.{name}", getattr(kind, name).__doc__ or ""


def _of_modules() -> Iterator[tuple[str, str]]:
    for name in MODULES:
        yield f"the {name} module", importlib.import_module(name).__doc__ or ""


def _of_statements() -> Iterator[tuple[str, str]]:
    reference = topics()
    for name in STATEMENTS:
        if name in reference:
            yield f"the {name} statement", reference[name]
