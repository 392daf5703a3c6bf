"""Conversations on real graphs against transformers: together, in turns, with drafts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.chat.decoder import FloatArray, IntArray
from edge.chat.generation import GenerationRequest
from edge.chat.generator import Generator, GeneratorOptions
from edge.chat.ort_decoder import OrtDecoder
from edge.chat.sampling import Sampler, SamplingOptions, Workspace
from edge.chat.scheduler import SchedulerOptions
from tests.chat_models import make_folder, write_onnx
from tests.edge.chat.ears import Ear
from tests.fakes import DEADLINE_S
from tests.host_tools.chat.decoding import torch_logits

GREEDY = SamplingOptions(temperature=0)
# What two ways to compute one float32 logit may differ by; see test_ort_decoder.
TOLERANCE = 1e-4
CHUNKS = SchedulerOptions(chunk=40, shared_chunk=16)


class CountingDecoder(OrtDecoder):
    """Counts the tokens that reach it."""

    tokens = 0

    def step(
        self,
        first: int,
        tokens: IntArray,
        start: IntArray,
        rows: IntArray,
        *,
        top: int | None = None,
    ) -> FloatArray:
        self.tokens += tokens.size
        return super().step(first, tokens, start, rows, top=top)


Start = Callable[..., tuple[Generator, CountingDecoder]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hf"), "llama")


@pytest.fixture(scope="module")
def graph(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(folder, tmp_path_factory.mktemp("onnx") / "model.onnx", form="scatter")


@pytest.fixture
def start(graph: Path) -> Iterator[Start]:
    generators: list[Generator] = []

    def start(lanes: int = 4, **options: object) -> tuple[Generator, CountingDecoder]:
        decoder = CountingDecoder.open(graph, lanes=lanes, intra_op_threads=1)
        options = {"scheduler": CHUNKS, **options}
        generator = Generator("tiny", lambda: decoder, options=GeneratorOptions(**options))
        generators.append(generator)
        generator.start()
        return generator, decoder

    yield start
    for generator in generators:
        assert generator.stop(DEADLINE_S)


def prompt_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 256, length).tolist()


def ask(generator: Generator, prompt: list[int], count: int, how: SamplingOptions = GREEDY) -> Ear:
    ear = Ear()
    sampler = Sampler(how, prompt, Workspace(generator.spec.vocabulary))
    generator.submit(
        GenerationRequest(
            prompt=np.array(prompt), sampler=sampler, max_tokens=count, ignores_eos=True
        ),
        ear,
    )
    return ear


def assert_greedy(folder: Path, prompt: list[int], answer: list[int]) -> None:
    """Every token is the one that transformers finds likeliest after all before it."""
    logits = torch_logits(folder, [[*prompt, *answer]])[0, len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(answer)), answer]
    assert (chosen >= logits.max(axis=1) - TOLERANCE).all()


PROMPTS = [prompt_of(length, seed) for seed, length in enumerate((5, 90, 17, 150, 64, 1, 33, 70))]


def test_8_conversations_at_once_are_8_separate_ones_token_by_token(
    folder: Path, start: Start
) -> None:
    together, _ = start(lanes=8)
    ears = [ask(together, prompt, 48) for prompt in PROMPTS]
    alone, _ = start(lanes=1)
    for prompt, ear in zip(PROMPTS, ears, strict=True):
        assert ear.end.reason == "length"
        assert len(set(ear.tokens)) > 8  # and not one token for ever
        assert_greedy(folder, prompt, ear.tokens)
        separate = ask(alone, prompt, 48)
        assert separate.end.reason == "length"
        assert ear.tokens == separate.tokens


def test_conversations_take_turns_on_fewer_lanes_than_there_are(folder: Path, start: Start) -> None:
    """Lanes are taken, continued, copied and swapped; three turns of each conversation."""
    generator, _ = start(lanes=3)
    texts = [list(prompt) for prompt in PROMPTS]
    for turn in range(3):
        ears = [ask(generator, text, 10 + 3 * number) for number, text in enumerate(texts)]
        for number, (text, ear) in enumerate(zip(texts, ears, strict=True)):
            assert ear.end.reason == "length"
            assert_greedy(folder, text, ear.tokens)
            text += [*ear.tokens, *prompt_of(7, 100 * turn + number)]
    assert generator.counters.moves > 0


def test_the_second_turn_runs_only_what_is_new(folder: Path, start: Start) -> None:
    generator, decoder = start(lanes=2)
    first = ask(generator, PROMPTS[3], 20)
    assert first.end.reused == 0
    assert decoder.tokens == 150 + 19
    again = PROMPTS[3] + first.tokens + prompt_of(12, 50)
    second = ask(generator, again, 20)
    # Of the first answer the last token has not been run.
    assert second.end.reused == 169
    assert decoder.tokens == 169 + (1 + 12) + 19
    assert_greedy(folder, again, second.tokens)


def test_any_chunks_give_the_same_tokens(start: Start) -> None:
    answers = []
    for chunk in (512, 64, 7):
        generator, _ = start(scheduler=SchedulerOptions(chunk=chunk, shared_chunk=chunk))
        ears = [ask(generator, prompt, 20) for prompt in PROMPTS[:4]]
        assert [ear.end.reason for ear in ears] == ["length"] * 4
        answers.append([ear.tokens for ear in ears])
    assert answers[0] == answers[1] == answers[2]


def test_a_cache_that_grows_and_shrinks_changes_nothing(folder: Path, start: Start) -> None:
    options = SchedulerOptions(chunk=64, shared_chunk=16, roomy_steps=10)
    generator, _ = start(lanes=2, scheduler=options)
    asked = [(PROMPTS[0], 110), (prompt_of(400, 60), 5), (PROMPTS[2], 60)]
    # The first goes beyond 64 positions while the second makes room for 512; then it shrinks.
    both = [ask(generator, *asked[0]), ask(generator, *asked[1])]
    assert [one.end.reason for one in both] == ["length", "length"]
    ears = [*both, ask(generator, *asked[2])]
    assert ears[2].end.reason == "length"
    for (prompt, _), ear in zip(asked, ears, strict=True):
        assert_greedy(folder, prompt, ear.tokens)
    assert generator.counters.shrinks > 0


# Random, but of few tokens, so that a draft is right now and then.
OF_FOUR = SamplingOptions(temperature=0.8, seed=5, bias=tuple((token, 8.0) for token in range(4)))


@pytest.mark.parametrize("how", [GREEDY, OF_FOUR], ids=["greedy", "seeded"])
def test_drafts_change_no_token(start: Start, how: SamplingOptions) -> None:
    """Prompts that repeat themselves, so that drafts are made; some of them come out."""
    plain, _ = start()
    drafting, _ = start(draft_tokens=4, draft_lanes=2)
    for prompt in (PROMPTS[0] * 3, PROMPTS[2] * 3, PROMPTS[6] * 3):
        ears = [ask(generator, prompt, 60, how) for generator in (plain, drafting, drafting)]
        assert [ear.end.reason for ear in ears] == ["length"] * 3
        assert ears[0].tokens == ears[1].tokens == ears[2].tokens
    counters = drafting.counters
    assert 0 < counters.accepted < counters.drafted
