"""onnxruntime-genai on a model that its own builder wrote: chat_genai.py FOLDER THREADS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime_genai as genai

from tests.peers.chat_rounds import serve

LONGEST = 512  # of prompt and answer: its buffers have this length


class Genai:
    """One generator after the other."""

    def __init__(self, folder: Path, threads: int) -> None:
        path = folder / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config))
        self._model = genai.Model(str(folder))

    def prefill(self, prompt: list[int]) -> int:
        """Begin anew with a prompt."""
        params = genai.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=LONGEST, min_length=0)
        self._generator = genai.Generator(self._model, params)
        self._generator.append_tokens(prompt)
        return self._next()

    def step(self, token: int) -> int:
        """Go on with the token that it found last."""
        return self._next()

    def _next(self) -> int:
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])


if __name__ == "__main__":
    serve(Genai(Path(sys.argv[1]), int(sys.argv[2])))
