"""Names of special tokens that a client wrote: they are marked, so that they stay text.

A special token parts the messages of a conversation, and only the template may write one. All
strings are a client's but the template's own and roles, so a mark, a character that occurs nowhere
else, is put into those that a name could be made of. In the prompt that a template renders of them
only names without a mark are tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

_PRIVATE_USE = range(0xE000, 0xF8FF)  # the last one is for `MarkedEncoder`


class SpecialNames:
    """The names of a tokenizer's special tokens, and where a text could hold one."""

    def __init__(self, names: Collection[str]) -> None:
        ordered = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        firsts = "".join({re.escape(name[0]) for name in ordered})
        lasts = "".join({re.escape(name[-1]) for name in ordered})
        self._cores = frozenset(core for name in ordered for core in _cores(name))
        self._name = _either(ordered)
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")
        self._edge = re.compile(f"[{firsts}{lasts}]" if firsts else r"(?!)")

    def count(self, text: str) -> int:
        """Return how many names a text holds."""
        return sum(1 for _ in self._name.finditer(text))

    def may_come_of(self, value: Any) -> bool:
        """Return whether a name could be made of the strings in a JSON value, or parts of one."""
        if isinstance(value, str):
            return value in self._cores or self._edge.search(value) is not None
        return any(self.may_come_of(held) for held in _held(value))

    def marked(self, value: Any, mark: str, *, only_whole: bool, kept: Collection[str] = ()) -> Any:
        """Return a JSON value with marks in its strings, keys among them.

        only_whole: mark names that one string holds as a whole. Otherwise every string is marked
        that may be a part of one, so that no name comes of joining, cutting and replacing.
        kept: names that are left as they are.
        """
        if isinstance(value, str):
            return self._marked(value, mark, only_whole, kept)
        if isinstance(value, list):
            return [self.marked(held, mark, only_whole=only_whole, kept=kept) for held in value]
        if isinstance(value, dict):
            return {
                self._marked(key, mark, only_whole, kept): self.marked(
                    held, mark, only_whole=only_whole, kept=kept
                )
                for key, held in value.items()
            }
        return value

    def _marked(self, text: str, mark: str, only_whole: bool, kept: Collection[str]) -> str:
        if only_whole:
            return self._name.sub(
                lambda found: found[0] if found[0] in kept else found[0][0] + mark + found[0][1:],
                text,
            )
        if not self.may_come_of(text):
            return text
        # Behind the space that it starts with, which a template may cut off.
        start = len(text) - len(text.lstrip())
        marked = self._first.sub(
            lambda found: (
                found[0] if text.startswith(tuple(kept), found.start()) else found[0] + mark
            ),
            text,
        )
        return marked[:start] + mark + marked[start:]


def unused_mark(text: str) -> str | None:
    """Return a character that a text holds neither as it is nor in JSON's way, None if none."""
    lowered = text.lower()
    for code in _PRIVATE_USE:
        if chr(code) not in lowered and escaped(chr(code)) not in lowered:
            return chr(code)
    return None


def without(text: str, mark: str) -> str:
    """Return a text without its marks, written in JSON's way or not."""
    return text.replace(mark, "").replace(escaped(mark), "")


def escaped(mark: str) -> str:
    """Return a mark as JSON of ASCII writes it."""
    return json.dumps(mark)[1:-1]


def _either(names: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _cores(name: str) -> set[str]:
    """Return the parts of a name that lack only signs: a template may write `<` and `>` itself."""
    letters = [place for place, character in enumerate(name) if character.isalnum()]
    if not letters:
        return set()
    return {
        name[start:end]
        for start in range(letters[0] + 1)
        for end in range(letters[-1] + 1, len(name) + 1)
    }


def _held(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list) else []
