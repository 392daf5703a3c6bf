"""From tokens to text, piece by piece: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from edge.chat.tokenizer import ChatTokenizer


class Detokenizer:
    """Makes the text of one answer out of its tokens, as they come.

    stop: strings that end the answer and are no part of it. shown: special tokens that are given
    as text, which others are not. continues: the answer goes on a text, so that a space at its
    start belongs to it whatever the tokenizer says of texts.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        stop: Sequence[str] = (),
        shown: Collection[int] = (),
        continues: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopFinder(stop)
        self._strips_space = tokenizer.strips_space and not continues

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has come, if one has: nothing is given after it."""
        return self._stops.found

    def push(self, token: int) -> str:
        """Return what is certain of the text with this token; it may be nothing."""
        if self._tokenizer.is_special(token) and token not in self._shown:
            self._stops.push_whole(self._tokenizer.text_of(token))
            return ""
        return self._given(self._characters.decode(self._tokenizer.bytes_of(token)))

    def finish(self) -> str:
        """Return what was held back; half a character becomes a replacement character."""
        return self._given(self._characters.decode(b"", final=True)) + self._stops.finish()

    def _given(self, text: str) -> str:
        if text and self._strips_space:
            text = text.removeprefix(" ")
            self._strips_space = False
        return self._stops.push(text)


class StopFinder:
    """Lets text pass up to a stop string, and holds back what may become one.

    Of several stop strings the one counts that ends first, of those the longest: as if the text
    came character by character, wherever the borders between its pieces are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found: str | None = None
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""

    def push(self, text: str) -> str:
        """Return the text that can be no part of a stop string; nothing once one was found."""
        if self.found is not None or not text:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            _, at, self.found = min(found)
            self._held = ""
            return text[:at]
        passed = len(text) - max(overlap(text, stop) for stop in self._stops)
        self._held = text[passed:]
        return text[:passed]

    def push_whole(self, sign: str) -> None:
        """Take a sign that is no text, but may be a stop string; it parts the text around it."""
        if self.found is None and sign in self._stops:
            self.found = sign

    def finish(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of text are the start of stop, but not all of it."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
