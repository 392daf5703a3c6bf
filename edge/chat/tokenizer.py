"""A chat model's tokenizer: text to ids, and the bytes that every id stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from edge.errors import BackendUnavailableError, InputError, ModelError, first_line

# A prompt is tokenized whole: about 4 s of a core for so many characters of English.
MAX_PROMPT_CHARACTERS = 1 << 20
_SPACE = "▁"  # SentencePiece's mark of a space


class ChatTokenizer:
    """An opened tokenizer.json; may be used from several threads at once."""

    def __init__(self, library: Any, decoder: _Decoder, added: dict[int, _Added]) -> None:
        self._library = library
        self._decoder = decoder
        self._added = added
        self._bytes: dict[int, bytes] = {}
        self.vocabulary_size = int(library.get_vocab_size())
        self.strips_space = decoder.strips_space

    @classmethod
    def open(cls, content: bytes) -> ChatTokenizer:
        """Return the tokenizer that content, a tokenizer.json, spells.

        Raises BackendUnavailableError without the package tokenizers, or where it is too old;
        ModelError if what tokens stand for cannot be told one by one.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise BackendUnavailableError(
                f"tokenizers is not importable: {error}; pip install 'edge-kit[chat]'"
            ) from error
        try:
            library = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            library.no_padding()
            library.no_truncation()
            spelled = msgspec.json.decode(content, type=_Spelled)
        except Exception as error:  # tokenizers raises bare Exception
            raise BackendUnavailableError(
                f"tokenizers {tokenizers.__version__} cannot read this tokenizer.json: "
                f"{first_line(error)}; upgrade it, or pack the model again"
            ) from error
        added = {token.id: token for token in spelled.added_tokens}
        return cls(library, _decoder_from(spelled.decoder), added)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; names of special tokens in it become these tokens.

        special: whether the tokens that start a text are put before it; a chat template has
        written them already. Raises InputError for text that is too long, or no Unicode.
        """
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise InputError(
                f"the prompt has {len(text)} characters, more than {MAX_PROMPT_CHARACTERS}; "
                "send a shorter one"
            )
        try:
            return list(self._library.encode(text, add_special_tokens=special).ids)
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"the prompt cannot be tokenized: {first_line(error)}") from error

    @property
    def special_names(self) -> frozenset[str]:
        """The contents of all special tokens."""
        return frozenset(token.content for token in self._added.values() if token.special)

    def is_special(self, token: int) -> bool:
        """Return whether a token is no text, but a sign between texts."""
        added = self._added.get(token)
        return added is not None and added.special

    def token_of(self, content: str) -> int | None:
        """Return the token of this very content, None if there is none."""
        token = self._library.token_to_id(content)
        return None if token is None else int(token)

    def bytes_of(self, token: int) -> bytes:
        """Return what a token adds to a text: part of a character perhaps; none if unknown.

        A vocabulary is padded in some models, so that they give tokens that nobody knows.
        """
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._bytes_from_library(token)
        return known

    def text_of(self, token: int) -> str:
        """Return a token as text, for people; half a character is a replacement character."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def _bytes_from_library(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return added.content.encode()
        content = self._library.id_to_token(token) if 0 <= token < 1 << 32 else None
        return b"" if content is None else self._decoder.bytes_from(content)


class _Added(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False


class _Spelled(msgspec.Struct, frozen=True):
    decoder: dict[str, Any] | None = None
    added_tokens: list[_Added] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoder:
    """How the content of a token becomes bytes.

    byte_level: every character stands for one byte, as in GPT-2. Otherwise replaced are pairs of
    strings; has_bytes: `<0xE4>` is the byte E4. strips_space: of a text its first space.
    """

    byte_level: bool = False
    replaced: tuple[tuple[str, str], ...] = ()
    has_bytes: bool = False
    strips_space: bool = False

    def bytes_from(self, content: str) -> bytes:
        if self.byte_level:
            try:
                return bytes(_BYTE_FROM_CHARACTER[character] for character in content)
            except KeyError:
                return content.encode()
        if self.has_bytes and len(content) == 6 and content.startswith("<0x") and content[5] == ">":
            try:
                return bytes.fromhex(content[3:5])
            except ValueError:
                pass
        for old, new in self.replaced:
            content = content.replace(old, new)
        return content.encode()


def _decoder_from(spelled: dict[str, Any] | None) -> _Decoder:
    parts: list[dict[str, Any]] = [{"type": None}]
    if spelled is not None:
        parts = spelled.get("decoders", [spelled])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return _Decoder(byte_level=True)
    if kinds == ["Metaspace"]:
        scheme = parts[0].get("prepend_scheme", "always")
        mark = parts[0].get("replacement", _SPACE)
        return _Decoder(replaced=((mark, " "),), strips_space=scheme != "never")
    # As converters of SentencePiece write it: Replace, ByteFallback, Fuse, Strip.
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} and all(map(_is_usual, parts)):
        return _Decoder(
            replaced=tuple((p["pattern"]["String"], p["content"]) for p in parts if "pattern" in p),
            has_bytes="ByteFallback" in kinds,
            strips_space="Strip" in kinds,
        )
    raise ModelError(
        f"the tokenizer's decoder is {kinds}; chat knows ByteLevel, Metaspace, and the sequence "
        "Replace, ByteFallback, Fuse, Strip"
    )


def _is_usual(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":
        return isinstance(part.get("pattern"), dict) and list(part["pattern"]) == ["String"]
    if part["type"] == "Strip":
        return (part.get("content"), part.get("start"), part.get("stop")) == (" ", 1, 0)
    return True


def _byte_from_character() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes stand for themselves, others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_FROM_CHARACTER = _byte_from_character()
