"""Does a chat graph compute what transformers computes?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.chat.golden import golden_logits
from edge.chat.ort_decoder import OrtDecoder
from edge.chat.spec import GOLDEN_ROWS
from edge.self_test import relative_error
from host_tools.chat.torch_model import torch_model
from host_tools.chat.weights import Checkpoint
from host_tools.errors import ParityError

# Of logits in fp32, ||ours - theirs|| / ||theirs||: sums in another order give about 1e-6.
TOLERANCE = 1e-3
REDUCED_TOLERANCE = 0.5  # of a graph that is not fp32; a wrong one is beyond it
MAX_PARAMETERS = 1_500_000_000  # in fp32 as many times 4 bytes, twice while they are read


def compare_with_transformers(
    folder: Path, graph: Path, prompts: tuple[tuple[int, ...], ...]
) -> str:
    """Return how close a graph comes to the model of a folder on some prompts, in words.

    Raises ParityError if it is not the same function, ExportError if theirs cannot be had.
    """
    parameters = Checkpoint.from_folder(folder).parameters
    if parameters > MAX_PARAMETERS:
        return (
            f"not compared with transformers: {parameters / 1e9:.1f} billion parameters in fp32 "
            "would need more memory than most hosts have"
        )
    worst = 0.0
    decoder = OrtDecoder.open(graph, lanes=1, intra_op_threads=None)
    try:
        ours = [golden_logits(decoder, np.array(prompt)) for prompt in prompts]
    finally:
        decoder.close()
    for prompt, logits, theirs in zip(prompts, ours, _theirs(folder, prompts), strict=True):
        error = relative_error(logits, theirs)
        limit = TOLERANCE if graph.stem == "fp32" else REDUCED_TOLERANCE
        if not error <= limit:
            raise ParityError(
                f"{graph.name} is off by {error:.1e} from transformers on a prompt of "
                f"{len(prompt)} tokens, {limit:.0e} is allowed; report the model's config.json"
            )
        worst = max(worst, error)
    return f"{graph.stem} is within {worst:.1e} of transformers on {len(prompts)} prompts"


def _theirs(folder: Path, prompts: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    import torch

    model = torch_model(folder)
    with torch.no_grad():
        return [
            model(torch.tensor([prompt])).logits[0, -GOLDEN_ROWS:].numpy() for prompt in prompts
        ]
