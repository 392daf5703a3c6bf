"""A decoder that computes what follows from all tokens of a lane, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np

from edge.chat.decoder import FloatArray, IntArray
from edge.chat.spec import DecoderSpec
from edge.errors import InferenceError

VOCABULARY = 29
_GARBAGE = 10**6  # a token that no prompt has


def fake_spec(
    context: int, *, eos: tuple[int, ...] = (), vocabulary: int = VOCABULARY
) -> DecoderSpec:
    return DecoderSpec(
        form="scatter",
        layers=1,
        kv_heads=1,
        head_dim=8,
        vocabulary=vocabulary,
        context=context,
        cache="FP32",
        eos=eos,
    )


def logits_after(tokens: Iterable[int], vocabulary: int = VOCABULARY) -> np.ndarray:
    """Return the logits [vocabulary] after a list of tokens; another list has others."""
    state = 1
    for token in tokens:
        state = (state * 31337 + int(token) + 7) % 1_000_003
    v = np.arange(vocabulary, dtype=np.int64)
    return ((state * (v + 3) + v * v) % 1009).astype(np.float32)


def greedy(
    prompt: Iterable[int],
    count: int,
    *,
    eos: tuple[int, ...] = (),
    vocabulary: int = VOCABULARY,
) -> list[int]:
    """Return the tokens that follow a prompt, up to one of eos."""
    tokens = list(prompt)
    found: list[int] = []
    while len(found) < count and not (found and found[-1] in eos):
        found.append(int(logits_after(tokens + found, vocabulary).argmax()))
    return found


class FakeDecoder:
    """A Decoder whose cache holds the tokens themselves, so that any mistake gives other logits.

    before_step, before_copy: may block, count or raise. run: how many tokens steps had, with those
    of idle lanes. cleared: lanes, in the order in which they were. tops: `top` of every step.
    """

    def __init__(
        self,
        *,
        lanes: int = 4,
        context: int = 64,
        eos: tuple[int, ...] = (),
        vocabulary: int = VOCABULARY,
        grows: bool = True,
        longest_step: int = 512,
        before_step: Callable[[], None] = lambda: None,
        before_copy: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = fake_spec(context, eos=eos, vocabulary=vocabulary)
        self.lanes = lanes
        self.longest_step = longest_step
        self.grows = grows
        self.is_closed = False
        self.run = self.steps = 0
        self.threads: set[int] = set()
        self.tops: list[int | None] = []
        self._cache = np.full((lanes, context), _GARBAGE)
        self._logits = np.empty(0, np.float32)
        self.cleared: list[int] = []
        self._before_step, self._before_copy = before_step, before_copy

    def step(
        self,
        first: int,
        tokens: IntArray,
        start: IntArray,
        rows: IntArray,
        *,
        top: int | None = None,
    ) -> FloatArray:
        self.tops.append(top)
        self.threads.add(threading.get_ident())
        if self.is_closed:
            raise InferenceError("the decoder is closed; open the model again")
        self._before_step()
        lanes, count = tokens.shape
        assert count <= self.longest_step
        assert tokens.dtype == start.dtype == rows.dtype == np.int64
        assert rows.shape[0] == start.shape[0] == lanes <= self.lanes - first
        self.steps += 1
        self.run += tokens.size
        for lane in range(lanes):
            begin = start[lane]
            assert begin + count <= self.spec.context
            self._cache[first + lane, begin : begin + count] = tokens[lane]
        self._logits.fill(np.nan)  # the last logits are not to be read any more
        self._logits = np.array(
            [
                [
                    logits_after(
                        self._cache[first + lane, : start[lane] + row + 1], self.spec.vocabulary
                    )
                    for row in wanted
                ]
                for lane, wanted in enumerate(rows)
            ]
        )
        if top is not None:
            least = np.sort(self._logits, axis=-1)[..., -min(top, VOCABULARY), None]
            self._logits[self._logits < least] = -np.inf
        return self._logits

    def copy_lane(self, source: int, target: int, length: int) -> None:
        assert source != target
        self._before_copy()
        self._cache[target] = _GARBAGE
        self._cache[target, :length] = self._cache[source, :length]

    def swap_lanes(self, one: int, other: int, length: int) -> None:
        kept = self._cache[[other, one], :length]
        self._cache[[one, other]] = _GARBAGE
        self._cache[[one, other], :length] = kept

    def clear_lane(self, lane: int) -> None:
        self.cleared.append(lane)
        self._cache[lane] = _GARBAGE

    def shrink(self, length: int) -> None:
        assert self.grows
        self._cache[:, length:] = _GARBAGE

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True
