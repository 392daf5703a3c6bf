"""What every Decoder promises; a subclass opens one.

All is compared with what another decoder of the same kind gives for a whole text in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from edge.chat.decoder import Decoder
from edge.errors import InferenceError

LANES, CONTEXT = 3, 300
Open = Callable[[], Decoder]


def text(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 29, count)


def run(
    decoder: Decoder, lane: int, tokens: np.ndarray, start: int = 0, rows: list[int] | None = None
) -> np.ndarray:
    """Return a copy of the logits [wanted, vocabulary] of one lane; by default of all tokens."""
    wanted = np.arange(len(tokens)) if rows is None else np.array(rows)
    return decoder.step(lane, tokens[None], np.array([start]), wanted[None])[0].copy()


class DecoderContract:
    """A subclass has a fixture `open_decoder` that gives Open, for LANES and CONTEXT."""

    tolerance: float

    def assert_same(self, found: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=self.tolerance)

    def test_a_decoder_says_what_it_holds(self, open_decoder: Open) -> None:
        decoder = open_decoder()
        assert (decoder.lanes, decoder.spec.context) == (LANES, CONTEXT)
        assert decoder.longest_step >= 64

    def test_chunks_give_what_the_whole_gives(self, open_decoder: Open) -> None:
        """Across every length at which a cache may grow."""
        tokens, decoder = text(CONTEXT), open_decoder()
        borders = [0, 20, 63, 64, 65, 100, 128, 129, 192, 250, 256, 257, CONTEXT]
        for begin, end in pairwise(borders):
            found = run(decoder, 1, tokens[begin:end], begin, rows=[end - begin - 1])
            self.assert_same(found, run(open_decoder(), 0, tokens[:end], rows=[end - 1]))

    def test_logits_are_given_for_the_wanted_rows_in_their_order(self, open_decoder: Open) -> None:
        tokens = text(20)
        whole = run(open_decoder(), 0, tokens)
        assert whole.shape[0] == 20
        self.assert_same(run(open_decoder(), 0, tokens, rows=[19, 3, 3]), whole[[19, 3, 3]])

    def test_lanes_of_different_lengths_run_together_as_alone(self, open_decoder: Open) -> None:
        texts = [text(length + 5, seed=length) for length in (70, 9, 30)]
        starts = np.array([len(tokens) - 5 for tokens in texts])
        decoder = open_decoder()
        for lane, tokens in enumerate(texts):
            run(decoder, lane, tokens[:-5])
        new = np.stack([tokens[-5:] for tokens in texts])
        for first, last in ((0, 3), (1, 3), (0, 2), (2, 3)):
            wanted = np.tile(np.arange(5), (last - first, 1))
            together = decoder.step(first, new[first:last], starts[first:last], wanted).copy()
            for lane in range(first, last):
                alone = run(open_decoder(), 0, texts[lane])[-5:]
                self.assert_same(together[lane - first], alone)

    def test_what_was_run_beyond_the_start_is_not_seen(self, open_decoder: Open) -> None:
        tokens, other = text(40), text(40, seed=1)
        decoder = open_decoder()
        run(decoder, 0, np.append(tokens[:30], other))
        self.assert_same(run(decoder, 0, tokens[30:], 30), run(open_decoder(), 0, tokens)[30:])

    def test_a_copied_lane_goes_on_like_its_source_and_leaves_it_alone(
        self, open_decoder: Open
    ) -> None:
        tokens, other = text(90), text(90, seed=1)
        decoder = open_decoder()
        run(decoder, 2, tokens)
        run(decoder, 0, other)
        decoder.copy_lane(2, 0, 70)
        expected = run(open_decoder(), 0, tokens)[70:]
        self.assert_same(run(decoder, 0, tokens[70:], 70), expected)
        self.assert_same(run(decoder, 2, tokens[70:], 70), expected)

    def test_a_step_may_begin_behind_what_was_run(self, open_decoder: Open) -> None:
        """As when its speed with a full cache is measured."""
        decoder = open_decoder()
        run(decoder, 0, text(10))
        assert np.isfinite(run(decoder, 0, text(3), 40)).all()
        assert np.isfinite(run(decoder, 1, text(3), 40)).all()

    def test_swapped_lanes_go_on_like_each_other(self, open_decoder: Open) -> None:
        tokens, other = text(90), text(50, seed=1)
        decoder = open_decoder()
        run(decoder, 0, tokens[:-5])
        run(decoder, 2, other[:-5])
        decoder.swap_lanes(2, 0, 85)
        self.assert_same(run(decoder, 2, tokens[-5:], 85), run(open_decoder(), 0, tokens)[-5:])
        self.assert_same(run(decoder, 0, other[-5:], 45), run(open_decoder(), 0, other)[-5:])

    def test_a_cleared_lane_is_as_new_and_the_others_are_left_alone(
        self, open_decoder: Open
    ) -> None:
        tokens, decoder = text(30), open_decoder()
        for lane in range(LANES):
            run(decoder, lane, tokens[:20])
        decoder.clear_lane(1)
        for lane in (0, 2):
            self.assert_same(
                run(decoder, lane, tokens[20:], 20), run(open_decoder(), 0, tokens)[20:]
            )
        self.assert_same(run(decoder, 1, tokens), run(open_decoder(), 0, tokens))

    def test_shrinking_keeps_what_it_is_told_to(self, open_decoder: Open) -> None:
        tokens, decoder = text(CONTEXT), open_decoder()
        for lane in range(LANES):
            run(decoder, lane, tokens[:200])
        decoder.shrink(100)
        expected = run(open_decoder(), 0, tokens)
        for lane in range(LANES):
            self.assert_same(run(decoder, lane, tokens[100:120], 100), expected[100:120])
        self.assert_same(run(decoder, 1, tokens[120:], 120), expected[120:])

    def test_a_closed_decoder_refuses_and_may_be_closed_again(self, open_decoder: Open) -> None:
        decoder = open_decoder()
        decoder.close()
        decoder.close()
        with pytest.raises(InferenceError, match="closed; open the model again"):
            run(decoder, 0, text(3))
