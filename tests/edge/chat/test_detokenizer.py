from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.chat.detokenizer import Detokenizer, StopFinder
from edge.chat.tokenizer import ChatTokenizer
from tests.edge.chat.made_tokenizers import (
    SPECIAL,
    TEXTS,
    byte_level,
    json_of,
    metaspace,
    sentence_piece,
)

BYTE_LEVEL = ChatTokenizer.open(json_of(byte_level()))
LIBRARY = byte_level()
SENTENCE_PIECE = ChatTokenizer.open(json_of(sentence_piece()))


def pieces_of(detokenizer: Detokenizer, ids) -> list[str]:
    return [*map(detokenizer.push, ids), detokenizer.finish()]


def text_of(tokenizer: ChatTokenizer, ids, **options) -> str:
    return "".join(pieces_of(Detokenizer(tokenizer, **options), ids))


def cut_by_characters(text: str, stops) -> tuple[str, str | None]:
    """Text up to the stop string that is complete first, looked for after every character."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize("make", [byte_level, sentence_piece, metaspace])
@pytest.mark.parametrize("text", [*TEXTS, " led by a space", "  two", "\n\n", "a" * 300])
def test_pieces_joined_are_what_the_library_decodes_at_once(make, text):
    library = make()
    tokenizer = ChatTokenizer.open(json_of(library))
    ids = library.encode(text, add_special_tokens=False).ids
    assert text_of(tokenizer, ids) == library.decode(ids)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCE_PIECE])
def test_no_piece_ends_within_a_character(tokenizer):
    text = "🙂你好 é 👩‍👩‍👧" * 3
    pieces = pieces_of(Detokenizer(tokenizer), tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_piece_comes_with_the_token_that_completes_it():
    ids = BYTE_LEVEL.encode("the mat")
    assert pieces_of(Detokenizer(BYTE_LEVEL), ids)[:-1] == [BYTE_LEVEL.text_of(n) for n in ids]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_become_what_decoding_them_at_once_gives(values):
    ids = [SENTENCE_PIECE.token_of(f"<0x{value:02X}>") for value in values]
    text = text_of(SENTENCE_PIECE, ids, continues=True)
    assert text == bytes(values).decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, LIBRARY.get_vocab_size() + 3), max_size=40))
def test_any_tokens_become_what_the_library_decodes_at_once(ids):
    assert text_of(BYTE_LEVEL, ids) == LIBRARY.decode(ids)


def test_half_a_character_at_the_end_is_given_as_a_replacement():
    first, *_ = BYTE_LEVEL.encode("🫥")
    assert pieces_of(Detokenizer(BYTE_LEVEL), [first]) == ["", "\ufffd"]


def test_bytes_that_are_no_utf8_hold_up_no_later_text():
    broken = [SENTENCE_PIECE.token_of("<0xFF>")] * 5
    pieces = pieces_of(Detokenizer(SENTENCE_PIECE), [*broken, SENTENCE_PIECE.token_of("a")])
    assert pieces == ["\ufffd"] * 5 + ["a", ""]


def test_a_first_space_is_no_part_of_an_answer_but_one_of_a_continuation():
    ids = SENTENCE_PIECE.encode("the cat")
    assert text_of(SENTENCE_PIECE, ids) == "the cat"
    assert text_of(SENTENCE_PIECE, ids, continues=True) == " the cat"


def test_special_tokens_are_no_text_unless_they_are_shown():
    sign = BYTE_LEVEL.token_of(SPECIAL[3])
    ids = [*BYTE_LEVEL.encode("a"), sign, *BYTE_LEVEL.encode("b")]
    assert text_of(BYTE_LEVEL, ids) == "ab"
    assert text_of(BYTE_LEVEL, ids, shown={sign}) == f"a{SPECIAL[3]}b"


def test_a_special_token_may_be_a_stop_string():
    detokenizer = Detokenizer(BYTE_LEVEL, stop=[SPECIAL[2], "ab"])
    end = BYTE_LEVEL.token_of(SPECIAL[2])
    ids = [*BYTE_LEVEL.encode("mat a"), end, *BYTE_LEVEL.encode("b mat")]
    assert "".join(pieces_of(detokenizer, ids)) == "mat a"
    assert detokenizer.stopped_by == SPECIAL[2]


def test_a_stop_string_is_found_across_the_borders_of_tokens():
    for stop in ("dog ran", " ran", "og", "🙂 a", "你"):
        for text in TEXTS:
            detokenizer = Detokenizer(BYTE_LEVEL, stop=[stop])
            pieces = pieces_of(detokenizer, BYTE_LEVEL.encode(text))
            assert "".join(pieces) == text.partition(stop)[0]
            assert detokenizer.stopped_by == (stop if stop in text else None)


TEXT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=5)


@settings(max_examples=1000, deadline=None)
@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_text_is_cut_as_if_it_came_by_characters_wherever_it_is_parted(text, stops, places):
    borders = sorted({0, len(text), *(place for place in places if place < len(text))})
    finder = StopFinder(stops)
    given_text = ""
    for start, end in itertools.pairwise(borders):
        given_text += finder.push(text[start:end])
        seen = text[:end]
        expected, found = cut_by_characters(seen, stops)
        assert finder.found == found
        # All is given but the longest end of it that may become a stop string.
        held = max(
            (n for s in stops for n in range(1, len(s)) if expected.endswith(s[:n])), default=0
        )
        assert given_text == (expected if found else expected[: len(expected) - held])
    assert given_text + finder.finish() == cut_by_characters(text, stops)[0]


def test_nothing_is_given_after_a_stop_string():
    finder = StopFinder(["."])
    assert [finder.push("a.b"), finder.push("c."), finder.finish()] == ["a", "", ""]


def test_less_than_a_stop_string_is_held_back_however_long_the_answer():
    finder = StopFinder(["a" * 255 + "b"])
    for _ in range(20_000):
        finder.push("a")
    assert len(finder.finish()) == 255


def test_random_answers_are_cut_where_brute_force_cuts_them():
    random = np.random.default_rng(5)
    for _ in range(200):
        ids = random.integers(0, BYTE_LEVEL.vocabulary_size, 60).tolist()
        whole = LIBRARY.decode(ids)
        stops = [whole[at : at + 2] for at in random.integers(5, max(6, len(whole)), 3)]
        stops = [stop for stop in stops if stop]
        detokenizer = Detokenizer(BYTE_LEVEL, stop=stops)
        text = "".join(pieces_of(detokenizer, ids))
        assert (text, detokenizer.stopped_by) == cut_by_characters(whole, stops)
