"""One generation: what is asked for, how its tokens become pieces of text, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.chat.counters import Reason
from edge.chat.decoder import FloatArray, IntArray
from edge.chat.drafting import Drafter
from edge.chat.sampling import Sampled
from edge.chat.sequence import Sequence
from edge.chat.spec import DecoderSpec
from edge.errors import ContextLengthError, EdgeError, InputError


class TokenSampler(Protocol):
    """Chooses the tokens of one sequence, one after the other; see `sampling.Sampler`.

    top: how many of the largest logits of a row decide on its token; None is all.
    """

    @property
    def top(self) -> int | None:
        """So many."""

    def sample(self, row: FloatArray) -> Sampled:
        """Return the next token, from logits [vocabulary]; InferenceError if none may come."""


class TextMaker(Protocol):
    """Makes text of the tokens of one sequence; see `detokenizer.Detokenizer`."""

    @property
    def stopped_by(self) -> str | None:
        """The string that ended the text, None as long as it goes on."""

    def push(self, token: int) -> str:
        """Return what is certain of the text with this token."""

    def finish(self) -> str:
        """Return the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate.

    prompt: tokens [length], at least one. max_tokens: at least 1; None is as many as the context
    holds. text: None gives tokens only. ignores_eos: go on after the tokens that end an answer.
    """

    prompt: IntArray
    sampler: TokenSampler
    max_tokens: int | None = None
    text: TextMaker | None = None
    ignores_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one step has added: text that is certain now, and the tokens that came.

    The two need not belong together: text may be held back. A token that ends the answer is in
    no piece.
    """

    text: str
    tokens: tuple[Sampled, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a generation has ended, and what it took.

    error: only for the reason "error". stopped_by: the stop string, for the reason "stop".
    generated: tokens, with the one that ended the answer. reused: tokens of the prompt that were
    in the cache. queue_s until it had a lane, first_token_s until its first token, both None
    if it did not come to that, and total_s, from when it was submitted.
    """

    reason: Reason
    error: EdgeError | None = None
    stopped_by: str | None = None
    prompt: int
    reused: int
    generated: int
    queue_s: float | None
    first_token_s: float | None
    total_s: float


class Listener(Protocol):
    """Hears of one generation, in the generator's thread: it returns at once and raises nothing."""

    def on_piece(self, piece: Piece) -> None:
        """Take what has come; not called any more once the end is told."""

    def on_end(self, end: End) -> None:
        """Take the end; called once."""


class Generation(Sequence):
    """A sequence with its request, its listener and its times; all but `cancel` is the thread's."""

    def __init__(
        self,
        request: GenerationRequest,
        listener: Listener,
        *,
        context: int,
        eos: frozenset[int],
        drafter: Drafter | None,
        now: float,
    ) -> None:
        most = context - len(request.prompt)
        count = most if request.max_tokens is None else min(request.max_tokens, most)
        super().__init__(request.prompt, limit=len(request.prompt) + count)
        self.listener = listener
        self.drafter = drafter
        self.submitted = now
        self.began: float | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.reason: Reason | None = None
        self._sampler = request.sampler
        self._text = request.text
        self._eos = frozenset[int]() if request.ignores_eos else eos

    @property
    def top(self) -> int | None:
        """How many of the largest logits decide on the next token; None is all."""
        return self._sampler.top

    def take(self, rows: FloatArray, draft: tuple[int, ...]) -> tuple[Piece, int]:
        """Sample as many tokens as the draft allows and return them, and how many were appended.

        rows: logits [>= 1 + len(draft), vocabulary], after the last token and each of the draft.
        Sets the reason if the generation ends.
        """
        text: list[str] = []
        sampled: list[Sampled] = []
        appended = 0
        while self.reason is None:
            one = self._sampler.sample(rows[appended])
            self.append(one.token)
            appended += 1
            self._take_text(one, sampled, text)
            if appended > len(draft) or one.token != draft[appended - 1]:
                break
        if self.reason is not None and self._text is not None and self._text.stopped_by is None:
            text.append(self._text.finish())
        return Piece(text="".join(text), tokens=tuple(sampled)), appended

    def _take_text(self, one: Sampled, sampled: list[Sampled], text: list[str]) -> None:
        if one.token in self._eos:
            self.reason = "stop"
            return
        sampled.append(one)
        if self._text is not None:
            text.append(self._text.push(one.token))
            if self._text.stopped_by is not None:
                self.reason = "stop"
                return
        if self.length == self.limit:
            self.reason = "length"

    def end(self, reason: Reason, now: float, error: EdgeError | None = None) -> End:
        """Return how it has ended."""
        since = self.submitted
        return End(
            reason=reason,
            error=error,
            stopped_by=None if self._text is None else self._text.stopped_by,
            prompt=self.prompt_length,
            reused=self.reused,
            generated=self.generated,
            queue_s=None if self.began is None else self.began - since,
            first_token_s=None if self.first is None else self.first - since,
            total_s=now - since,
        )


def check_request(request: GenerationRequest, spec: DecoderSpec) -> None:
    """Raise InputError unless a model of this spec can take the request."""
    check_prompt(request.prompt, request.max_tokens, spec)


def check_prompt(prompt: IntArray, max_tokens: int | None, spec: DecoderSpec) -> None:
    """Raise InputError unless a model of this spec can go on a prompt [length].

    A prompt and its answer share the context: a prompt must be shorter than it, and the answer
    ends with the reason "length" where the context does.
    """
    length = len(prompt)
    if length == 0:
        raise InputError("the prompt has no tokens; send at least one")
    if length >= spec.context:
        raise ContextLengthError(
            f"the prompt has {length} tokens, and prompt and answer together may have "
            f"{spec.context}; shorten the prompt"
        )
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; ask for 1 or more")
    lowest, highest = int(prompt.min()), int(prompt.max())
    if lowest < 0 or highest >= spec.vocabulary:
        raise InputError(
            f"the prompt has token {lowest if lowest < 0 else highest}, the model has tokens 0.."
            f"{spec.vocabulary - 1}; use the tokenizer of this model"
        )
