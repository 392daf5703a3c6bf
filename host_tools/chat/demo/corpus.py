"""What the demo model learns from: plain text, and answers to questions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from host_tools.chat.demo.documents import Document, documents
from host_tools.chat.demo.questions import Answer, answers

HELD_OUT_SHARE = 20  # one document in so many is kept for judging


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents to learn from, documents to judge with, and what every question is answered."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]
    answers: tuple[Answer, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over everything: two models with one digest have learnt from the same text."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    @property
    def characters(self) -> int:
        """Size of the documents to learn from."""
        return sum(len(document.text) for document in self.training)


def corpus() -> Corpus:
    """Return what this Python has to say of itself, split the same way everywhere."""
    everything = documents()
    return Corpus(
        training=tuple(document for document in everything if not _is_held_out(document)),
        held_out=tuple(document for document in everything if _is_held_out(document)),
        answers=answers(),
    )


def _is_held_out(document: Document) -> bool:
    """By the text alone, so that other documents change nothing; licences and reference stay."""
    if not document.name.startswith("module "):
        return False
    first = hashlib.sha256(document.text.encode()).digest()[0]
    return first % HELD_OUT_SHARE == 0
