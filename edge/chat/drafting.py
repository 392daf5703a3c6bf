"""What a sequence may go on with, looked up in its own tokens.

Answers repeat their prompts: names, code, quotations. A draft is run along with the last token and
kept as far as sampling comes to the same tokens, so it changes none of them.
Source: Saxena 2023, "Prompt Lookup Decoding".
"""

from __future__ import annotations

import numpy as np

from edge.chat.decoder import IntArray

LONGEST_ENDING, SHORTEST_ENDING = 3, 2
_MOST_MISSES = 5


def draft_from(tokens: IntArray, most: int) -> tuple[int, ...]:
    """Return what followed when the last tokens came before, the last time they did.

    tokens: those of the sequence. most: how many to return; where the text has repeated itself
    since, it is taken to go on so. Empty if the last SHORTEST_ENDING tokens are new.
    """
    for size in range(LONGEST_ENDING, SHORTEST_ENDING - 1, -1):
        ends = len(tokens) - size  # how many places there are where the same ending may end before
        if ends < 1 or most < 1:
            continue
        found = tokens[size - 1 : -1] == tokens[-1]
        for back in range(1, size):
            found &= tokens[size - 1 - back : -1 - back] == tokens[-1 - back]
        at = int(found[::-1].argmax())
        if found[ends - 1 - at]:
            return tuple(np.resize(tokens[-1 - at :], most).tolist())
    return ()


class Drafter:
    """Makes the drafts of one sequence, the fewer the more of them are wrong.

    most: tokens of a draft.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._misses = 0
        self._pause = 0

    def draft(self, tokens: IntArray, room: int) -> tuple[int, ...]:
        """Return a draft of at most room tokens, or none."""
        if self._pause:
            self._pause -= 1
            return ()
        return draft_from(tokens, min(self._most, room))

    def note(self, accepted: int) -> None:
        """Learn how many tokens of a draft came out; after several misses the pauses are long."""
        self._misses = 0 if accepted else min(self._misses + 1, _MOST_MISSES)
        self._pause = (1 << self._misses) - 1
