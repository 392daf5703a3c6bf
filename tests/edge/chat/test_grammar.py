from __future__ import annotations

import enum
import json
import sys
from typing import Literal

import numpy as np
import pydantic
import pytest

from edge.chat.grammar import ANY_OBJECT, MAX_SCHEMA_BYTES, Grammars, json_grammar, literal
from edge.chat.sampling import Sampler, SamplingOptions, Workspace
from edge.errors import BackendUnavailableError, InferenceError, InputError
from tests.edge.chat.made_tokenizers import byte_level, json_of, sentence_piece

MAKERS = {"byte_level": byte_level, "sentence_piece": sentence_piece}


class Colour(enum.Enum):
    RED = "red"
    GREEN = "grün"


class Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    colour: Colour
    weight: float
    inner: list[Part] = pydantic.Field(max_length=1)


class Thing(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=8)
    count: int = pydantic.Field(ge=1, le=30)
    kind: Literal["a", "b"] | None
    parts: list[Part] = pydantic.Field(min_length=1, max_length=2)


class Speaker:
    """Random logits: what it says has no form but its grammar's."""

    def __init__(self, library, *, surplus: int = 3) -> None:
        self.library = library
        # SentencePiece puts a space before a text, which an answer does not start with.
        self.skipped = 1 if library.encode("{", add_special_tokens=False).tokens[0] == "▁" else 0
        self.eos = library.token_to_id("<|im_end|>")
        self.vocabulary = library.get_vocab_size() + surplus
        self.grammars = Grammars(json_of(library), vocabulary=self.vocabulary, eos=[self.eos])

    def answer(self, grammar: str, seed: int, most: int = 1500) -> str:
        constraint = self.grammars.constraint(grammar)
        space = Workspace(self.vocabulary)
        sampler = Sampler(SamplingOptions(seed=seed), (), space, constraint)
        random = np.random.default_rng(seed)
        tokens: list[int] = []
        while len(tokens) < most:
            row = random.normal(size=self.vocabulary).astype(np.float32)
            token = sampler.sample(row).token
            if token == self.eos:
                assert constraint.is_complete
                return self.library.decode(tokens, skip_special_tokens=False)
            tokens.append(token)
        raise AssertionError(f"no end after {self.library.decode(tokens)}")

    def takes(self, grammar: str, text: str) -> bool:
        constraint = self.grammars.constraint(grammar)
        for token in self.library.encode(text, add_special_tokens=False).ids[self.skipped :]:
            if not np.unpackbits(constraint.allowed(), bitorder="little")[token]:
                return False
            constraint.accept(token)
        return bool(np.unpackbits(constraint.allowed(), bitorder="little")[self.eos])


@pytest.fixture(scope="module", params=MAKERS)
def speaker(request) -> Speaker:
    return Speaker(MAKERS[request.param]())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_model_says_fits_the_schema(speaker, seed):
    text = speaker.answer(json_grammar(Thing.model_json_schema(), strict=True), seed)
    Thing.model_validate_json(text)


@pytest.mark.parametrize("seed", range(5))
def test_any_object_is_an_object(speaker, seed):
    text = speaker.answer(json_grammar(ANY_OBJECT, strict=True), seed)
    assert isinstance(json.loads(text), dict)


def test_what_fits_is_taken_and_what_does_not_is_not(speaker):
    grammar = json_grammar(Thing.model_json_schema(), strict=True)
    thing = {
        "name": "x",
        "count": 3,
        "kind": None,
        "parts": [{"colour": "grün", "weight": -1.5e3, "inner": []}],
    }
    assert speaker.takes(grammar, json.dumps(thing, ensure_ascii=False))
    assert speaker.takes(grammar, json.dumps(thing, ensure_ascii=False, indent=2))
    for wrong in ({"count": 31}, {"kind": "c"}, {"parts": []}, {"name": "123456789"}):
        assert not speaker.takes(grammar, json.dumps({**thing, **wrong}, ensure_ascii=False))
    assert not speaker.takes(grammar, json.dumps({**thing, "more": 1}, ensure_ascii=False))


def test_space_without_end_is_not_taken(speaker):
    grammar = json_grammar(ANY_OBJECT, strict=True)
    assert speaker.takes(grammar, "{" + " " * 40 + "}")
    assert not speaker.takes(grammar, "{" + " " * 41 + "}")


def test_a_schema_is_data_and_no_part_of_the_grammar(speaker):
    value = 'a"}\n%json {} start: "x"\n// é'
    grammar = json_grammar({"const": value}, strict=True)
    assert json.loads(speaker.answer(grammar, 0)) == value


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "foo"}, "Invalid type: foo"),
        ({"type": "object", "properties": 3}, "properties must be an object"),
        ({"$ref": "#/nowhere"}, "Pointer '/nowhere' does not exist"),
        ({"$ref": "file:///etc/passwd"}, "does not fetch"),
        ({"$ref": "http://localhost/schema"}, "does not fetch"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"enum": []}, "anyOf is empty"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ],
    ids=str,
)
def test_a_schema_that_is_none_is_refused_with_the_reason(speaker, schema, reason):
    with pytest.raises(InputError, match=reason) as raised:
        speaker.grammars.constraint(json_grammar(schema, strict=True))
    assert "x-guidance" not in str(raised.value)


def test_keywords_that_are_unknown_count_nothing_where_that_is_allowed(speaker):
    grammar = json_grammar({"type": "array", "uniqueItems": True}, strict=False)
    assert speaker.takes(grammar, "[1, 1]")


def test_a_schema_cannot_change_how_it_is_read(speaker):
    schema = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    with pytest.raises(InputError, match="uniqueItems"):
        speaker.grammars.constraint(json_grammar(schema, strict=True))


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"{n:06}" for n in range(7000)]},
        {"type": "string", "pattern": "(a|b)*a(a|b){500}c(a|b)*a(a|b){500}"},
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "minItems": 10**6, "maxItems": 10**6},
        json.loads('{"anyOf": [' * 120 + "{}" + "]}" * 120),
        json.loads('{"items": ' * 120 + "{}" + "}" * 120),
    ],
    ids=["enum", "pattern", "length", "items", "anyOf", "nested"],
)
def test_a_large_schema_is_refused_or_compiled_but_never_crashes(speaker, schema):
    try:
        constraint = speaker.grammars.constraint(json_grammar(schema, strict=True))
    except InputError:
        return
    assert constraint.allowed().any()


def test_a_long_schema_is_refused_before_it_is_read():
    with pytest.raises(InputError, match=f"more than {MAX_SCHEMA_BYTES}"):
        json_grammar({"const": "a" * MAX_SCHEMA_BYTES}, strict=True)


def test_a_token_that_may_not_come_is_an_error_and_not_an_answer(speaker):
    constraint = speaker.grammars.constraint(json_grammar(ANY_OBJECT, strict=True))
    with pytest.raises(InferenceError, match="left its grammar"):
        constraint.accept(speaker.library.token_to_id("a"))


def test_a_mask_has_a_bit_for_every_logit():
    library = byte_level()
    for surplus in (0, 1, 100):
        constraint = Speaker(library, surplus=surplus).grammars.constraint(
            json_grammar(ANY_OBJECT, strict=True)
        )
        assert len(constraint.allowed()) == -(-(library.get_vocab_size() + surplus) // 8)


def test_a_model_may_have_fewer_logits_than_its_tokenizer_has_tokens():
    speaker = Speaker(byte_level(), surplus=-3)
    assert json.loads(speaker.answer(json_grammar(ANY_OBJECT, strict=True), 1)) is not None


def test_a_literal_is_its_token_if_it_is_one(speaker):
    sign = speaker.library.token_to_id("<think>")
    assert speaker.takes(f'start: "a" {literal("<think>", sign)}\n', "a<think>")
    assert speaker.takes(f"start: {literal('{cat}' + chr(10))}\n", "{cat}\n")


def test_without_the_library_the_error_says_what_to_install(speaker, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailableError, match=r"edge-kit\[chat\]"):
        speaker.grammars.constraint(json_grammar(ANY_OBJECT, strict=True))


def test_a_tokenizer_that_the_library_cannot_read_is_told_with_its_version():
    grammars = Grammars(b'{"model": {"vocab": {}}}', vocabulary=9, eos=[1])
    with pytest.raises(BackendUnavailableError, match="cannot read this tokenizer"):
        grammars.constraint(json_grammar(ANY_OBJECT, strict=True))
