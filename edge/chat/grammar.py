"""Answers that follow a JSON schema: which tokens may come next, by the library llguidance."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from edge.errors import BackendUnavailableError, InferenceError, InputError, first_line
from edge.spec import AnyArray

MAX_SCHEMA_BYTES = 64 << 10
ANY_OBJECT: dict[str, Any] = {"type": "object"}
# Models that have nothing to say write spaces for ever where they may.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
_MAX_REASON = 300
_PLACE = re.compile(r"^(Parser Error: |at \d+\(\d+\): |failed to compile JSON schema: )+")
_GRAMMAR_LINE = re.compile(r"\s*(\d+ \||<non-verbose/>)")


class Grammars:
    """Makes the constraints of one model; may be used from several threads at once.

    content: its tokenizer.json. vocabulary: logits of the model. eos: tokens that end an answer.
    The library is opened for the first constraint: it takes about a second for a large vocabulary.
    """

    def __init__(self, content: bytes, *, vocabulary: int, eos: Sequence[int]) -> None:
        self._content = content
        self._vocabulary = vocabulary
        self._eos = list(eos)
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def constraint(self, grammar: str) -> Constraint:
        """Return a constraint to a grammar in llguidance's form of Lark, see `json_grammar`.

        Raises InputError with the library's reason if it is none, BackendUnavailableError without
        the library.
        """
        library = _library()
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._opened(library)
        limits = library.LLParserLimits(verbose_errors=False)
        matcher = library.LLMatcher(
            self._tokenizer,
            library.LLMatcher.grammar_from_lark(grammar),
            log_level=0,
            limits=limits,
        )
        if matcher.is_error():
            raise InputError(_reason(matcher))
        return Constraint(matcher, self._vocabulary)

    def _opened(self, library: Any) -> Any:
        try:
            # A model's vocabulary is padded, or lacks tokens that were added later.
            size = max(self._vocabulary, _size_of(self._content))
            return library.LLTokenizer(self._content.decode(), n_vocab=size, eos_token=self._eos)
        except Exception as error:  # whatever its Rust part raises
            raise BackendUnavailableError(
                f"llguidance {library.__version__} cannot read this tokenizer.json: "
                f"{first_line(error)}; upgrade it, or ask for text"
            ) from error


class Constraint:
    """What may come next in one answer. For one thread at a time."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bytes = -(-vocabulary // 8)

    def copy(self) -> Constraint:
        """Return another one of an answer that is as far as this one."""
        return Constraint(self._matcher.deep_copy(), 8 * self._bytes)

    @property
    def is_complete(self) -> bool:
        """Whether the answer can only end now."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> AnyArray:
        """Return the bits of the tokens that may come, as `Sampler.sample` takes them.

        Raises InferenceError if the answer has become too complex to be followed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: self._bytes]
        self._check()
        return bits

    def accept(self, token: int) -> None:
        """Take the token that came; raises InferenceError if it may not."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InferenceError(f"the answer left its grammar: {_reason(self._matcher)}")


def json_grammar(schema: dict[str, Any], *, strict: bool, before: str = "") -> str:
    """Return the grammar of a JSON value of this schema.

    strict: refuse what of JSON Schema the library does not know; else such keywords count
    nothing. before: what may come before it, in Lark. Raises InputError if the schema is too long.
    """
    return f"start: {before} answer\nanswer: {json_rule(schema, strict=strict)}\n"


def json_rule(schema: dict[str, Any], *, strict: bool) -> str:
    """Return what stands for JSON of a schema within a grammar."""
    how = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
    spelled = msgspec.json.encode({**schema, "x-guidance": how})
    if len(spelled) > MAX_SCHEMA_BYTES:
        raise InputError(
            f"the schema has {len(spelled)} bytes, more than {MAX_SCHEMA_BYTES}; send a shorter one"
        )
    return f"%json {spelled.decode()}"


def literal(text: str, token: int | None = None) -> str:
    """Return what stands for a text within a grammar: its token if it is one."""
    return msgspec.json.encode(text).decode() if token is None else f"<[{token}]>"


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise BackendUnavailableError(
            f"llguidance is not importable: {error}; pip install 'edge-kit[chat]', which answers "
            "of a form need; text is served without"
        ) from error
    return llguidance


def _size_of(content: bytes) -> int:
    spelled = msgspec.json.decode(content, type=_Spelled)
    vocabulary = spelled.model.vocab
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return 1 + max(0, *ids, *(token.id for token in spelled.added_tokens))


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[Any]


class _Added(msgspec.Struct):
    id: int


class _Spelled(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []


def _reason(matcher: Any) -> str:
    """Return the library's reason, without where in our grammar it stands."""
    lines = itertools.takewhile(
        lambda line: not _GRAMMAR_LINE.match(line), str(matcher.get_error()).splitlines()
    )
    return _PLACE.sub("", " ".join(" ".join(lines).split()))[:_MAX_REASON]
