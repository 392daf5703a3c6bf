"""From text to the tensors that an encoder takes: the tokenizer travels in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from edge.errors import BackendUnavailableError, InputError, first_line
from edge.spec import AnyArray, Profile, TensorSpec

MAX_TOKENIZER_BYTES = 64 << 20
# A text is tokenized whole before it is cut: 0.1 to 0.9 s of a core for so many characters.
MAX_CHARACTERS = 250_000
MAX_TOKENS = 1 << 20

Truncation = Literal["end", "start", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPreprocessing:
    """How texts become the inputs of these names, all of shape (texts, tokens).

    tokenizer: the artifact, a tokenizer.json of Hugging Face's tokenizers; what it says about
    cutting and padding does not count, this does. ids: the input that takes token ids. mask: takes
    1 for a token, 0 for padding. types: takes the number of the segment. max_tokens: of a text,
    special tokens included. truncation: which end of a longer text is cut off, if it is not
    refused. pad: the id behind the end of the shorter texts of a batch.
    """

    tokenizer: str
    ids: str
    mask: str | None = None
    types: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
    truncation: Truncation = "end"
    pad: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The token ids of one text, and the segment of each."""

    ids: tuple[int, ...]
    types: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


def problem_with(
    how: TextPreprocessing, inputs: tuple[TensorSpec, ...], profile: Profile
) -> str | None:
    """Return why these steps cannot feed a model with these inputs, in words; None if they can."""
    given = [name for name in (how.ids, how.mask, how.types) if name is not None]
    taken = {spec.name: spec for spec in inputs}
    if sorted(given) != sorted(taken):
        return f"the model takes {sorted(taken)}, text gives {given}"
    for spec in inputs:
        bounds = profile.ranges.get(spec.name)
        if len(spec.shape) != 2 or bounds is None:
            return f"input {spec.name!r} is {spec.wire_shape}, text gives (texts, tokens)"
        if spec.datatype not in {"INT64", "INT32"}:
            return f"input {spec.name!r} is {spec.datatype}; text gives INT64 or INT32"
        if bounds.max[1] < how.max_tokens:
            return f"max_tokens {how.max_tokens} is more than input {spec.name!r} takes"
    shapes = {(profile.ranges[name].min, profile.ranges[name].max) for name in given}
    if len(shapes) > 1:
        return f"the profiles of {given} differ"
    return None


def problem_with_vectors(name: str, outputs: tuple[TensorSpec, ...]) -> str | None:
    """Return why this output holds no vector a text, in words; None if it does."""
    spec = next((spec for spec in outputs if spec.name == name), None)
    if spec is None:
        return f"the model gives {[s.name for s in outputs]}, not {name!r}"
    if len(spec.shape) != 2 or not isinstance(spec.shape[1], int) or spec.datatype != "FP32":
        return f"output {name!r} is {spec.wire_shape} of {spec.datatype}, not a FP32 vector a row"
    return None


class Tokenizer:
    """An opened tokenizer.json; may be used from several threads at once.

    Its library does the work outside Python's lock, so that a long text holds nobody up.
    """

    def __init__(self, library: Any, how: TextPreprocessing) -> None:
        self.how = how
        self._library = library
        self.vocabulary_size = int(library.get_vocab_size())

    @classmethod
    def open(cls, content: bytes, how: TextPreprocessing) -> Tokenizer:
        """Return the tokenizer that content spells.

        Raises BackendUnavailableError without the package tokenizers, or where it is too old.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise BackendUnavailableError(
                f"tokenizers is not importable: {error}; pip install 'edge-kit[text]', which text "
                "needs; tensors are served without"
            ) from error
        try:
            library = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            library.no_padding()
            if how.truncation == "refuse":
                library.no_truncation()
            else:
                direction = "right" if how.truncation == "end" else "left"
                library.enable_truncation(how.max_tokens, direction=direction)
        except Exception as error:  # tokenizers raises bare Exception
            raise BackendUnavailableError(
                f"tokenizers {tokenizers.__version__} cannot read {how.tokenizer}: "
                f"{first_line(error)}; upgrade it, or pack the model again"
            ) from error
        return cls(library, how)

    @property
    def unknown_id(self) -> int | None:
        """The id of what the vocabulary does not have, None where nothing is unknown."""
        token = getattr(self._library.model, "unk_token", None)
        return None if token is None else self._library.token_to_id(token)

    def texts_of_ids(self) -> list[str]:
        """Return the text of every token, in the order of their ids; a special one is empty."""
        rows = [[number] for number in range(self.vocabulary_size)]
        return list(self._library.decode_batch(rows, skip_special_tokens=True))

    def tokens_of_texts(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of every text, special tokens included, cut as declared.

        Raises InputError for texts that are too long to look at, that are not Unicode, or that
        give no token at all.
        """
        characters = sum(map(len, texts))
        if characters > MAX_CHARACTERS:
            raise InputError(
                f"the texts have {characters} characters, more than {MAX_CHARACTERS}; send fewer "
                "or shorter ones at once"
            )
        try:
            encodings = self._library.encode_batch_fast(list(texts))
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"a text cannot be tokenized: {first_line(error)}") from error
        rows = [Tokens(ids=tuple(e.ids), types=tuple(e.type_ids)) for e in encodings]
        self._check(rows)
        return rows

    def tokens_of_ids(self, ids: Sequence[Sequence[int]]) -> list[Tokens]:
        """Return token ids that a client has made, cut as declared; nothing is added to them.

        Raises InputError for ids that the tokenizer does not have, or none.
        """
        for row in ids:
            wrong = next((n for n in row if not 0 <= n < self.vocabulary_size), None)
            if wrong is not None:
                raise InputError(
                    f"token {wrong} does not exist; tokens are 0..{self.vocabulary_size - 1}"
                )
        most, how = self.how.max_tokens, self.how.truncation
        cut = {"end": slice(most), "start": slice(-most, None), "refuse": slice(None)}[how]
        rows = [Tokens(ids=tuple(row[cut]), types=(0,) * len(row[cut])) for row in ids]
        self._check(rows)
        return rows

    def feeds(
        self, rows: Sequence[Tokens], inputs: tuple[TensorSpec, ...], profile: Profile
    ) -> dict[str, AnyArray]:
        """Return the inputs for these texts as one batch, padded at the end to the longest."""
        how, least = self.how, profile.ranges[self.how.ids].min[1]
        shape = len(rows), max(least, *(len(row) for row in rows))
        ids = np.full(shape, how.pad, np.int64)
        mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row.ids
            types[number, : len(row)] = row.types
            mask[number, : len(row)] = 1
        arrays = {how.ids: ids, how.mask: mask, how.types: types}
        return {spec.name: arrays[spec.name].astype(spec.dtype) for spec in inputs}

    def _check(self, rows: Sequence[Tokens]) -> None:
        for row in rows:
            if not row:
                raise InputError("a text is empty: it has no token; leave it out")
            if len(row) > self.how.max_tokens:
                raise InputError(
                    f"a text has {len(row)} tokens, the model takes {self.how.max_tokens}; send a "
                    "shorter one"
                )
