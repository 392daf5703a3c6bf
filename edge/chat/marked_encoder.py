"""Tokens of a prompt in which some names of special tokens are text.

The library knows special tokens by their names alone. So here it gets a tokenizer that differs in
these names, and a prompt in which the tokens stand under their new ones: everything else about
them, and about the text around them, is as ever.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from edge.chat.marks import without


class MarkedEncoder:
    """Encodes marked prompts; may be used from several threads at once."""

    def __init__(self, library: Any, renamed: dict[str, str], added: list[str]) -> None:
        self._library = library
        self._renamed = renamed
        longest_first = sorted(added, key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @classmethod
    def open(cls, content: bytes) -> MarkedEncoder:
        """Return the encoder of a tokenizer.json that the library has read before."""
        import tokenizers

        spelled = json.loads(content)
        added = spelled.get("added_tokens", [])
        # No client can know such a name, so that none can write it.
        secret = secrets.token_hex(8)
        renamed = {
            token["content"]: f"\uf8ff{secret}x{number}\uf8ff"
            for number, token in enumerate(added)
            if token.get("special")
        }
        names = [token["content"] for token in added if token["content"]]
        _rename(spelled, renamed)
        library = tokenizers.Tokenizer.from_str(json.dumps(spelled))
        library.no_padding()
        library.no_truncation()
        return cls(library, renamed, names)

    def encode(self, text: str, mark: str) -> list[int]:
        """Return the tokens of a text: names of special tokens without a mark are these."""
        tokens = self._name.sub(lambda found: self._renamed.get(found[0], found[0]), text)
        return list(self._library.encode(without(tokens, mark), add_special_tokens=False).ids)


def _rename(spelled: dict[str, Any], renamed: dict[str, str]) -> None:
    """Give tokens of a tokenizer.json other names, wherever they are used as such."""
    for token in spelled.get("added_tokens", []):
        token["content"] = renamed.get(token["content"], token["content"])
    model = spelled["model"]
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(name, name): number for name, number in vocabulary.items()}
    else:
        model["vocab"] = [[renamed.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in renamed]


def _merged(merge: str | list[str]) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)
