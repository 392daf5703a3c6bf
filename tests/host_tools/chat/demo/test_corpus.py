from __future__ import annotations

import builtins
import getpass
import os
import platform
import site
import subprocess
import sys
from pathlib import Path

import pytest

from host_tools.chat.demo.questions import PHRASES, UNSEEN_PHRASE, first_sentences


def test_there_is_enough_to_learn(text):
    assert text.characters > 1_000_000
    assert len(text.answers) > 150
    assert sum(len(document.text) for document in text.held_out) > 20_000


def test_what_is_judged_with_was_not_learnt(text):
    learnt = {document.text for document in text.training}
    assert not learnt & {document.text for document in text.held_out}


@pytest.mark.slow
def test_the_corpus_is_the_same_in_another_process(text, tmp_path):
    code = "from host_tools.chat.demo.corpus import corpus; print(corpus().digest)"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["HOME"] = str(tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.strip() == text.digest


def test_nothing_of_this_machine_is_in_it(text):
    everything = "\n".join(
        part
        for group in (text.training, text.held_out)
        for document in group
        for part in (document.name, document.text)
    )
    everything += "\n".join(answer.text for answer in text.answers)
    secrets = {
        sys.prefix,
        sys.base_prefix,
        str(Path.cwd()),
        str(Path(__file__).parents[4]),
        *site.getsitepackages(),
        f"{Path.home()}/",
        f"/home/{getpass.getuser()}",
        f"@{platform.node()}",
    }
    assert not [secret for secret in secrets if secret in everything]


def test_answers_are_what_the_docstrings_say(text):
    checked = 0
    for answer in text.answers:
        name, _, member = answer.subject.partition(".")
        if answer.subject.startswith("the "):
            continue
        value = getattr(builtins, name)
        docstring = (getattr(value, member) if member else value).__doc__
        assert answer.text.rstrip(".") in " ".join(docstring.split())
        checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("str.split", "list of the substrings"),
        ("len", "number of items"),
        ("the while statement", "repeated execution"),
        ("the json module", "JavaScript Object Notation"),
    ],
)
def test_known_subjects_have_their_answers(text, subject, words):
    (answer,) = (answer.text for answer in text.answers if answer.subject == subject)
    assert words in answer


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("f(x) -> int\n\nReturn what\nis twice x.\n\nMore.", "Return what is twice x."),
        ("Title\n*****\n\nIt is a statement that does much.  See X.",
         "It is a statement that does much. See X."),
        ("Title\n=====\n\n   x ::= y\n\nIt is used as follows:", "It is used as follows."),
        ("Short.", None),
        ("f(x)", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_first_sentences_of_prose_are_taken(docstring, expected):
    assert first_sentences(docstring) == expected


def test_the_phrase_for_judging_is_not_learnt():
    assert UNSEEN_PHRASE not in PHRASES
