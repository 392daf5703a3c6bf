"""Opens a chat model: its decoder in a thread of its own, tried there, and what talks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge.bundle import Bundle
from edge.chat.chat_model import ChatModel
from edge.chat.decoder import Decoder
from edge.chat.generator import Generator, GeneratorOptions
from edge.chat.golden import golden_logits
from edge.chat.room import Room
from edge.chat.scheduler import SchedulerOptions
from edge.chat.spec import DecoderSpec
from edge.chat.template import MAX_TEMPLATE_BYTES
from edge.chat_preparing import decoder_spec
from edge.chat_whole import OpenDecoder
from edge.choice import Choice
from edge.config import AgentConfig
from edge.engine_process import AttemptError
from edge.errors import BundleError, EdgeError, SelfTestError
from edge.files import read_capped
from edge.manifest import LOGITS, TOKENS, Model
from edge.self_test import SelfTest, run_self_test
from edge.spec import AnyArray, Feeds

# Measured with int4 on two cores, see BENCHMARKS.md: a token of a prompt costs a tenth more in
# chunks of 512, and with longer drafts the wrong ones cost more than the right ones bring.
CPU_CHUNK = 256
CPU_DRAFT_TOKENS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedChat:
    """A chat model that passed its self-test."""

    generator: Generator
    talker: ChatModel
    self_test: SelfTest


def open_chat(
    bundle: Bundle,
    model: Model,
    choice: Choice,
    room: Room,
    *,
    config: AgentConfig,
    open_decoder: OpenDecoder,
    clock: Callable[[], float],
) -> OpenedChat:
    """Open a variant of a chat model and try it; raises AttemptError."""
    talker = _talker(bundle, model, replace(decoder_spec(choice.variant), context=room.context))
    tested: list[SelfTest] = []

    def opened() -> Decoder:
        decoder = open_decoder(room)
        try:
            tested.append(_tried(bundle, model, choice, decoder))
        except BaseException:
            decoder.close()
            raise
        return decoder

    generator = Generator(
        model.name,
        opened,
        options=GeneratorOptions(
            scheduler=SchedulerOptions(max_waiting=config.queue_size, chunk=CPU_CHUNK),
            draft_tokens=CPU_DRAFT_TOKENS,
            stall_timeout_s=config.stall_timeout_s,
        ),
        clock=clock,
    )
    try:
        generator.start()
    except SelfTestError as error:
        raise AttemptError("self-test-failed", str(error)) from error
    except EdgeError as error:
        known = error.code == "backend-unavailable"
        raise AttemptError(error.code if known else "open-failed", str(error)) from error
    logger.info(
        "self-test passed model=%s variant=%s lanes=%d context=%d relative_error=%.2e",
        model.name, choice.variant.id, room.lanes, room.context, tested[0].relative_error,
    )  # fmt: skip
    return OpenedChat(generator=generator, talker=talker, self_test=tested[0])


def _tried(bundle: Bundle, model: Model, choice: Choice, decoder: Decoder) -> SelfTest:
    def read(path: str) -> bytes:
        return read_capped(bundle.path(path), max_bytes=bundle.manifest.artifact(path).size)

    def infer(feeds: Feeds) -> dict[str, AnyArray]:
        return {LOGITS: golden_logits(decoder, feeds[TOKENS])}

    tested = run_self_test(model, choice.variant.precision, infer=infer, read=read)
    decoder.clear_lane(0)
    return tested


def _talker(bundle: Bundle, model: Model, spec: DecoderSpec) -> ChatModel:
    """Return what talks for a model; raises AttemptError."""
    facts = model.chat
    assert facts is not None  # noqa: S101 - the caller has asked

    def read(path: str, most: int | None = None) -> bytes:
        size = bundle.manifest.artifact(path).size
        return read_capped(bundle.path(path), max_bytes=size if most is None else min(size, most))

    try:
        template = None
        if facts.template is not None:
            template = _text(facts.template, read(facts.template, MAX_TEMPLATE_BYTES))
        return ChatModel.open(
            name=model.name,
            spec=spec,
            tokenizer=read(facts.tokenizer),
            template=template,
            tokens=facts.tokens,
            defaults=facts.sampling,
        )
    except EdgeError as error:
        known = error.code == "backend-unavailable"
        raise AttemptError(error.code if known else "open-failed", str(error)) from error


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{name} is not UTF-8: {error}; pack the bundle again") from error
