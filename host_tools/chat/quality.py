"""The quality of a chat graph against its model in float32, and the gate that it must pass.

Both predict every token of held-out text from those before it, the graph in chunks through the
decoder that serves it. Positions are judged as they come: a few rows of logits are in memory, and
two numbers for each token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.chat.decoder import Decoder
from edge.chat.ort_decoder import OrtDecoder
from edge.chat.quality_facts import ChatQuality
from edge.errors import UsageError
from host_tools.chat.layerwise import IntArray, layerwise_logits
from host_tools.chat.llm_spec import llm_spec_from_folder
from host_tools.chat.weights import Checkpoint, FloatArray, Weights

WINDOW = 512  # tokens that are predicted in one context
CHUNK = 32  # positions whose logits are in memory: 16 MB of a vocabulary of 128,000
MAX_TOKENS = 8192  # of which quality is measured, enough for two digits of the mean divergence
MIN_WINDOW = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLimits:
    """What a graph must keep; see ChatQuality."""

    max_perplexity_rise_percent: float
    max_kl_mean: float
    max_kl_p99: float
    min_top1_agreement_percent: float


# A little beyond what good models of a billion parameters lose in each type; far beyond is a fault.
LIMITS: dict[str, QualityLimits] = {
    kind: QualityLimits(
        max_perplexity_rise_percent=rise,
        max_kl_mean=mean,
        max_kl_p99=p99,
        min_top1_agreement_percent=top1,
    )
    for kind, rise, mean, p99, top1 in (
        ("fp32", 0.1, 1e-4, 1e-3, 99.5),
        ("fp16", 0.5, 2e-3, 0.02, 98.0),
        ("int8", 2.0, 0.01, 0.1, 95.0),
        ("w8a8", 4.0, 0.04, 0.4, 90.0),
        ("int4", 10.0, 0.12, 1.2, 82.0),
    )
}


def token_windows(
    tokens: Sequence[int] | IntArray,
    *,
    length: int = WINDOW,
    most: int = MAX_TOKENS,
    begin: int | None = None,
) -> IntArray:
    """Return a text's tokens cut into windows [N, length], spread over the text if it is long.

    most: tokens in all windows together. begin: token that every window starts with, as the
    texts do that a model was trained on. A text shorter than one window gives one of its length.
    Raises UsageError if there are fewer than MIN_WINDOW tokens.
    """
    text = np.asarray(tokens, np.int64)
    extra = 0 if begin is None else 1
    size = min(length - extra, len(text))
    if size + extra < MIN_WINDOW:
        raise UsageError(
            f"{len(text)} tokens of text are too few, at least {MIN_WINDOW} are needed; "
            "give a longer text"
        )
    count = len(text) // size
    kept = min(count, max(1, most // (size + extra)))
    chosen = np.linspace(0, count - 1, kept).round().astype(np.int64)
    windows: IntArray = text[: count * size].reshape(count, size)[chosen]
    if begin is None:
        return windows
    return np.concatenate([np.full((kept, 1), begin, np.int64), windows], axis=1)


def measure_quality(
    folder: Path,
    graph: Path,
    windows: IntArray,
    *,
    weights: Weights | None = None,
    intra_op_threads: int | None = None,
) -> ChatQuality:
    """Return how close a written graph is to the model in its folder.

    windows: held-out tokens [N, S], see `token_windows`. weights: those the graph was made from, if
    not the folder's own. Needs memory for the opened graph and what `layerwise` says.
    """
    spec = llm_spec_from_folder(folder)
    _check_tokens(windows, spec.vocabulary)
    if weights is None:
        weights = Checkpoint.from_folder(folder)
    reference = layerwise_logits(spec, weights, windows, chunk=CHUNK)
    decoder = OrtDecoder.open(
        graph, lanes=1, intra_op_threads=intra_op_threads, context=windows.shape[1]
    )
    try:
        if windows.shape[1] > decoder.spec.context:
            raise UsageError(
                f"windows of {windows.shape[1]} tokens do not fit {graph}, whose context is "
                f"{decoder.spec.context}; cut the text into shorter ones"
            )
        return quality_from_logits(reference, decoder_logits(decoder, windows), windows)
    finally:
        decoder.close()


def decoder_logits(
    decoder: Decoder, windows: IntArray, *, chunk: int = CHUNK
) -> Iterator[FloatArray]:
    """Yield logits [chunk or fewer, V] of each window in turn, computed in lane 0.

    What is yielded is read before the next.
    """
    for window in windows:
        for begin in range(0, len(window), chunk):
            tokens = window[None, begin : begin + chunk]
            rows = np.arange(tokens.shape[1])[None]
            yield decoder.step(0, tokens, np.array([begin]), rows)[0]


def quality_from_logits(
    reference: Iterable[FloatArray], candidate: Iterable[FloatArray], windows: IntArray
) -> ChatQuality:
    """Return the quality of logits of the windows' positions, in equal chunks, by the reference."""
    sums = _Sums()
    length, position = windows.shape[1], 0
    following = np.concatenate([windows[:, 1:], np.full((len(windows), 1), -1)], axis=1).ravel()
    for expected, found in zip(reference, candidate, strict=True):
        if expected.shape != found.shape:
            raise ValueError(f"chunks of {expected.shape} and {found.shape}")
        tokens = following[position : position + len(expected)]
        position += len(expected)
        # The last position of a window predicts a token that is not there.
        sums.add(expected[tokens >= 0], found[tokens >= 0], tokens[tokens >= 0])
    if position != len(windows) * length:
        raise ValueError(f"logits of {position} positions for windows {windows.shape}")
    return sums.quality()


def quality_problems(quality: ChatQuality, limits: QualityLimits) -> list[str]:
    """Return one sentence per limit that is not kept; an empty list is a pass."""
    problems = []
    rise = quality.perplexity_rise_percent
    if not rise <= limits.max_perplexity_rise_percent:
        problems.append(
            f"perplexity rises by {rise:.2f} %, from {quality.fp32_perplexity:.3f} to "
            f"{quality.perplexity:.3f}; at most {limits.max_perplexity_rise_percent} % is allowed"
        )
    for words, value, limit in (
        ("the mean divergence from fp32", quality.kl_mean, limits.max_kl_mean),
        ("the 99th percentile of the divergence", quality.kl_p99, limits.max_kl_p99),
    ):
        if not value <= limit:
            problems.append(f"{words} is {value:.4f} nats; at most {limit} is allowed")
    agreement = quality.top1_agreement_percent
    if not agreement >= limits.min_top1_agreement_percent:
        problems.append(
            f"the likeliest token agrees with fp32 at {agreement:.2f} % of the positions; at "
            f"least {limits.min_top1_agreement_percent} % is needed"
        )
    return problems


@dataclass(slots=True)
class _Sums:
    """What was found so far."""

    candidate_loss: float = 0.0
    reference_loss: float = 0.0
    same: int = 0
    divergences: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(self, reference: FloatArray, candidate: FloatArray, tokens: IntArray) -> None:
        """Judge predictions [n, V] of tokens [n]."""
        expected, found = _log_softmax(reference), _log_softmax(candidate)
        places = np.arange(len(tokens)), tokens
        self.reference_loss -= float(expected[places].sum())
        self.candidate_loss -= float(found[places].sum())
        self.same += int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
        difference = expected - found
        np.exp(expected, out=expected)
        difference *= expected
        self.divergences.append(difference.sum(axis=1))

    def quality(self) -> ChatQuality:
        divergences = np.concatenate(self.divergences)
        count = len(divergences)
        return ChatQuality(
            tokens=count,
            perplexity=float(np.exp(self.candidate_loss / count)),
            fp32_perplexity=float(np.exp(self.reference_loss / count)),
            kl_mean=float(divergences.mean()),
            kl_p99=float(np.percentile(divergences, 99)),
            top1_agreement_percent=100.0 * self.same / count,
        )


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _check_tokens(windows: IntArray, vocabulary: int) -> None:
    highest = int(windows.max())
    if not 0 <= int(windows.min()) <= highest < vocabulary:
        raise UsageError(
            f"token {highest} is beyond the vocabulary of {vocabulary}; use the model's tokenizer"
        )
