from __future__ import annotations

import json
import sys

import pytest

from edge.chat.tokenizer import MAX_PROMPT_CHARACTERS, ChatTokenizer
from edge.errors import BackendUnavailableError, InputError, ModelError
from tests.edge.chat.made_tokenizers import (
    SPECIAL,
    TEXTS,
    TEXTUAL,
    byte_level,
    json_of,
    metaspace,
    sentence_piece,
)

MAKERS = (byte_level, sentence_piece, metaspace)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def pair(request):
    library = request.param()
    return library, ChatTokenizer.open(json_of(library))


def test_the_bytes_of_tokens_are_the_text_that_the_library_decodes(pair):
    library, tokenizer = pair
    for text in (*TEXTS, " led by a space", "  two", "the cat", "x"):
        ids = tokenizer.encode(text)
        found = b"".join(map(tokenizer.bytes_of, ids)).decode()
        if tokenizer.strips_space:
            found = found.removeprefix(" ")
        assert found == library.decode(ids)


def test_every_single_token_of_byte_level_is_what_the_library_decodes():
    library = byte_level()
    tokenizer = ChatTokenizer.open(json_of(library))
    for token in range(tokenizer.vocabulary_size):
        expected = library.decode([token], skip_special_tokens=False)
        assert tokenizer.text_of(token) == expected


def test_a_text_is_encoded_with_its_special_tokens_and_with_no_others(pair):
    library, tokenizer = pair
    text = f"{SPECIAL[1]}the cat{SPECIAL[2]}"
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert (ids[0], ids[-1]) == (tokenizer.token_of(SPECIAL[1]), tokenizer.token_of(SPECIAL[2]))


def test_tokens_that_start_a_text_come_where_they_are_asked_for():
    tokenizer = ChatTokenizer.open(json_of(byte_level()))
    assert tokenizer.encode("cat", special=True) == [
        tokenizer.token_of(SPECIAL[0]),
        *tokenizer.encode("cat"),
    ]


def test_special_tokens_are_told_from_added_ones_that_are_text(pair):
    _, tokenizer = pair
    assert all(tokenizer.is_special(tokenizer.token_of(name)) for name in SPECIAL)
    assert not any(tokenizer.is_special(tokenizer.token_of(name)) for name in TEXTUAL)


def test_tokens_beyond_the_vocabulary_are_no_text(pair):
    _, tokenizer = pair
    for token in (tokenizer.vocabulary_size, 1 << 31, 1 << 40, -1):
        assert tokenizer.bytes_of(token) == b""
        assert not tokenizer.is_special(token)
    assert tokenizer.token_of("no such token") is None


def test_a_padded_or_cut_tokenizer_does_neither():
    library = byte_level()
    library.enable_padding(length=50)
    library.enable_truncation(max_length=2)
    tokenizer = ChatTokenizer.open(json_of(library))
    assert 2 < len(tokenizer.encode(TEXTS[0])) < 50


def test_a_text_that_would_take_long_is_refused_before(pair):
    _, tokenizer = pair
    with pytest.raises(InputError, match=f"more than {MAX_PROMPT_CHARACTERS}"):
        tokenizer.encode("a" * (MAX_PROMPT_CHARACTERS + 1))


def test_half_of_a_surrogate_pair_is_an_input_error(pair):
    _, tokenizer = pair
    with pytest.raises(InputError, match="cannot be tokenized"):
        tokenizer.encode("\ud83d")


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {
            "type": "Sequence",
            "decoders": [{"type": "Strip", "content": "_", "start": 2, "stop": 1}],
        },
    ],
)
def test_a_decoder_that_joins_tokens_in_another_way_is_refused(decoder):
    content = json.loads(json_of(byte_level()))
    content["decoder"] = decoder
    with pytest.raises(ModelError, match="the tokenizer's decoder is"):
        ChatTokenizer.open(json.dumps(content).encode())


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 1}'])
def test_what_the_library_cannot_read_is_told_with_its_version(content):
    with pytest.raises(BackendUnavailableError, match="cannot read this tokenizer"):
        ChatTokenizer.open(content)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendUnavailableError, match=r"edge-kit\[chat\]"):
        ChatTokenizer.open(json_of(byte_level()))
