"""A chat graph of ours: chat_ours.py GRAPH THREADS LANES CONTEXT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge.chat.ort_decoder import OrtDecoder
from edge.chat_loading import CPU_CHUNK
from edge.onnxruntime_library import load_onnxruntime
from tests.peers.chat_rounds import serve

LAST = np.zeros((1, 1), np.int64)


class Ours:
    """Lane 0, or all lanes with the same tokens."""

    def __init__(self, graph: Path, threads: int, lanes: int, context: int) -> None:
        self._decoder = OrtDecoder.open(
            graph, lanes=lanes, intra_op_threads=threads, context=context
        )
        self._lanes = lanes
        self._filled = 0

    def prefill(self, prompt: list[int]) -> int:
        """Run a prompt in lane 0, and copy what was computed to the others."""
        for first in range(0, len(prompt), CPU_CHUNK):  # as the agent takes it
            tokens = np.array([prompt[first : first + CPU_CHUNK]])
            logits = self._decoder.step(0, tokens, LAST[0] + first, LAST + tokens.shape[1] - 1)
        self._filled = len(prompt)
        found = int(logits[0, 0].argmax())
        for lane in range(1, self._lanes):
            self._decoder.copy_lane(0, lane, self._filled)
        return found

    def step(self, token: int) -> int:
        """Run one token in every lane."""
        tokens = np.full((self._lanes, 1), token)
        start = np.full(self._lanes, self._filled)
        logits = self._decoder.step(0, tokens, start, np.zeros((self._lanes, 1), np.int64))
        self._filled += 1
        found = [int(row.argmax()) for row in logits[:, 0]]  # of every lane, as one would
        return found[0]


if __name__ == "__main__":
    load_onnxruntime()  # memory of libraries is none of the model's
    graph, *numbers = sys.argv[1:]
    serve(lambda: Ours(Path(graph), *map(int, numbers)))
