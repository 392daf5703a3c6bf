"""A generator on a fake decoder, and how tests ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from edge.chat.generation import GenerationRequest
from edge.chat.generator import Generator, GeneratorOptions
from edge.chat.sampling import Sampled
from edge.errors import InferenceError
from tests.edge.chat.ears import Ear
from tests.edge.chat.fakes import FakeDecoder
from tests.fakes import DEADLINE_S, FakeClock


class Greedy:
    """Takes the likeliest token; fails where it is told to, or if it sees too little."""

    def __init__(self, *, fails_at: int | None = None, top: int | None = None) -> None:
        self.top = top
        self._left = fails_at

    top = 1

    def sample(self, row: np.ndarray) -> Sampled:
        assert np.isfinite(row).sum() >= (self.top or len(row))
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise InferenceError("no token may follow")
        return Sampled(token=int(row.argmax()))


class Letters:
    """Text of one letter a token, held back by one; a letter may end it."""

    def __init__(self, *, stop: str | None = None) -> None:
        self.stopped_by: str | None = None
        self._stop = stop
        self._held = ""

    def push(self, token: int) -> str:
        letter = letters([token])
        if letter == self._stop:
            self.stopped_by = letter
        given, self._held = self._held, letter
        return given

    def finish(self) -> str:
        return self._held


def letters(tokens: list[int]) -> str:
    return "".join(chr(97 + token) for token in tokens)


def request(prompt: list[int], count: int | None = 5, **options: object) -> GenerationRequest:
    options = {"sampler": Greedy(), **options}
    return GenerationRequest(prompt=np.array(prompt, np.int64), max_tokens=count, **options)


def ask(generator: Generator, prompt: list[int], count: int | None = 5, **options: object) -> Ear:
    ear = Ear()
    generator.submit(request(prompt, count, **options), ear)
    return ear


@contextmanager
def starting() -> Iterator[Callable[..., Generator]]:
    """Give a function that starts a generator; all are stopped in the end."""
    generators: list[Generator] = []

    def start(decoder: FakeDecoder, clock: FakeClock | None = None, **options: object) -> Generator:
        generator = Generator(
            "fake",
            lambda: decoder,
            options=GeneratorOptions(**options),
            **({} if clock is None else {"clock": clock}),
        )
        generators.append(generator)
        generator.start()
        return generator

    yield start
    for generator in generators:
        assert generator.stop(DEADLINE_S)
