"""From a row of logits to a token: penalties, bias, temperature, truncation, one seeded draw.

The steps are those of transformers, in this order: repetition penalty, presence and frequency
penalty, bias, mask, temperature, top_k, top_p, min_p. Each token of a sequence takes one draw of
the sequence's own generator, so that a seed gives the same tokens whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge.chat.candidates import drawn, keep_nucleus, largest, sums_of
from edge.errors import InferenceError
from edge.spec import AnyArray

LEAST_TEMPERATURE = 1e-5  # below it the likeliest token is taken; so does vLLM
LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON cannot say; as OpenAI does
# Row n: what bits 0..7 of n add to eight logits, 0 where the bit is set.
_BIT_BIAS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf
).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the tokens of one sequence are chosen; the defaults are OpenAI's.

    temperature: 0 takes the likeliest token, of equal ones the lowest. top_k: None is all.
    repetition_penalty: for tokens of the prompt and the answer; presence_penalty and
    frequency_penalty: for those of the answer. bias: added to the logits of tokens. seed: None
    takes entropy from the system. logprobs: how many of the likeliest tokens are reported with
    each token; None reports no probability at all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A chosen token; logprob and the likeliest alternatives only if they were asked for.

    Probabilities are the model's own, before any of the steps.
    """

    token: int
    logprob: float | None = None
    likeliest: tuple[TokenLogprob, ...] = ()


class TokenConstraint(Protocol):
    """What tokens may come in one sequence; see `grammar.Constraint`."""

    def allowed(self) -> AnyArray:
        """Return the bits of those that may come next, the lowest bit first.

        UINT8 of shape (ceil(vocabulary / 8),).
        """

    def accept(self, token: int) -> None:
        """Take the token that came."""


class Workspace:
    """Memory that all samplers of one thread share, so that no step allocates a row."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.row = np.empty(vocabulary, np.float32)
        self.weights = np.empty(vocabulary, np.float32)
        self.bits = np.empty((-(-vocabulary // 8), 8), np.float32)


class Sampler:
    """Chooses the tokens of one sequence, one after the other.

    prompt: its tokens. workspace: of the thread that samples. constraint: None allows all tokens.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Sequence[int],
        workspace: Workspace,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self.options = options
        self._workspace = workspace
        self._constraint = constraint
        seed = None if options.seed is None else options.seed & (1 << 64) - 1
        self._random = np.random.Generator(np.random.PCG64(seed))
        penalized = (options.presence_penalty, options.frequency_penalty) != (0, 0)
        self._history = (
            _History(prompt, workspace.vocabulary)
            if penalized or options.repetition_penalty != 1
            else None
        )
        pairs = [(token, bias) for token, bias in options.bias if token < workspace.vocabulary]
        self._bias_ids = np.array([token for token, _ in pairs], np.int64)
        self._bias = np.array([bias for _, bias in pairs], np.float32)

    @property
    def top(self) -> int | None:
        """How many of the largest logits decide on a token; None is all of them."""
        how = self.options
        if self._constraint is not None or self._history is not None or len(self._bias) > 0:
            return None
        if how.logprobs is not None:
            return None
        return 1 if how.temperature < LEAST_TEMPERATURE else how.top_k

    def sample(self, row: AnyArray) -> Sampled:
        """Return the next token. row: FP32 of shape (vocabulary,), not written to.

        Raises InferenceError for logits that are no numbers, or if no token may come.
        """
        allowed = None if self._constraint is None else self._constraint.allowed()
        token = self._chosen(self._altered(row, allowed))
        if self._history is not None:
            self._history.add(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        if self.options.logprobs is None:
            return Sampled(token=token)
        return self._with_logprobs(token, row, self.options.logprobs)

    def _altered(self, row: AnyArray, allowed: AnyArray | None) -> AnyArray:
        altered = row
        if self._history is not None or len(self._bias) > 0:
            altered = self._workspace.row
            np.copyto(altered, row)
            if self._history is not None:
                self._history.penalize(altered, self.options)
            altered[self._bias_ids] += self._bias
        if allowed is not None:
            bits = self._workspace.bits
            np.take(_BIT_BIAS, allowed, axis=0, out=bits, mode="clip")
            altered = np.add(altered, bits.reshape(-1)[: len(row)], out=self._workspace.row)
        return altered

    def _chosen(self, row: AnyArray) -> int:
        best = int(row.argmax())
        top = row[best]
        if not np.isfinite(top):
            raise InferenceError(
                "no token may follow" if top == -np.inf else f"a row of logits holds {top}"
            )
        if self.options.temperature < LEAST_TEMPERATURE:
            return best
        share = self._random.random()
        weights, ids = weights_of(row, self.options, out=self._workspace.weights)
        place = drawn(weights, share)
        return place if ids is None else int(ids[place])

    def _with_logprobs(self, token: int, row: AnyArray, count: int) -> Sampled:
        top, weights = row.max(), self._workspace.weights
        np.exp(np.subtract(row, top, out=weights), out=weights)
        norm = float(top) + float(np.log(sums_of(weights).sum()))
        ids = largest(row, count) if count else ()
        return Sampled(
            token=token,
            logprob=_logprob(row[token], norm),
            likeliest=tuple(
                TokenLogprob(token=int(n), logprob=_logprob(row[n], norm)) for n in ids
            ),
        )


def weights_of(
    row: AnyArray, how: SamplingOptions, *, out: AnyArray
) -> tuple[AnyArray, AnyArray | None]:
    """Return what tokens are drawn in proportion to, and which tokens these are; None is all.

    row: logits of shape (vocabulary,), penalized and masked. out: of the same shape; the weights
    are in it. Tokens are in ascending order.
    """
    top, ids = row.max(), None
    if how.top_k is not None and how.top_k < len(row):
        ids = np.sort(largest(row, how.top_k))
        row = row[ids]
    weights = np.subtract(row, top, out=out[: len(row)])
    np.divide(weights, np.float32(how.temperature), out=weights)
    np.exp(weights, out=weights)
    if how.top_p < 1:
        keep_nucleus(weights, how.top_p * float(sums_of(weights).sum()))
    if how.min_p > 0:
        np.multiply(weights, weights >= np.float32(how.min_p), out=weights)
    return weights, ids


class _History:
    """The unique tokens of a sequence, and how often each was generated."""

    def __init__(self, prompt: Sequence[int], vocabulary: int) -> None:
        known = np.unique(np.asarray(prompt, np.int64))
        known = known[known < vocabulary]
        self._size = len(known)
        self._ids = np.empty(2 * self._size + 64, np.int64)
        self._ids[: self._size] = known
        self._counts = np.zeros(len(self._ids), np.float32)
        self._places = {int(token): place for place, token in enumerate(known)}

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, self._size)
        if place == self._size:
            if self._size == len(self._ids):
                self._ids = np.concatenate([self._ids, self._ids])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1

    def penalize(self, row: AnyArray, how: SamplingOptions) -> None:
        ids, counts = self._ids[: self._size], self._counts[: self._size]
        values = row[ids]
        if how.repetition_penalty != 1:
            factor = np.float32(how.repetition_penalty)
            values = np.where(values < 0, values * factor, values / factor)
        values -= np.float32(how.frequency_penalty) * counts
        values -= np.float32(how.presence_penalty) * (counts > 0)
        row[ids] = values


def _logprob(logit: np.float32, norm: float) -> float:
    return max(float(logit) - norm, LEAST_LOGPROB)
