"""transformers with its cache of keys and values: chat_transformers.py FOLDER THREADS."""

from __future__ import annotations

import sys

import torch
import transformers

from tests.peers.chat_rounds import serve


class Transformers:
    """The loop of `generate` without what it does beside the model."""

    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()

    def prefill(self, prompt: list[int]) -> int:
        """Begin anew with a prompt."""
        self._cache = transformers.DynamicCache(config=self._model.config)
        return self._run(prompt)

    def step(self, token: int) -> int:
        """Run one token."""
        return self._run([token])

    def _run(self, tokens: list[int]) -> int:
        with torch.inference_mode():
            found = self._model(
                input_ids=torch.tensor([tokens]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return int(found.logits[0, -1].argmax())


if __name__ == "__main__":
    serve(Transformers(sys.argv[1], int(sys.argv[2])))
