"""The bundle of a chat model whose decoder is a fake: it answers nonsense, always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edge import manifest as m
from edge.chat.decoder import Decoder
from edge.chat.facts import ChatFacts
from edge.chat.room import Room
from edge.chat.spec import GOLDEN_ROWS
from edge.spec import Profile
from tests.bundles import Parts, affine_parts, golden_tensors
from tests.edge.chat.fakes import FakeDecoder, fake_spec, logits_after
from tests.edge.chat.made_tokenizers import byte_level, json_of
from tests.edge.chat.templates import ALL

NAME = "talker"
CONTEXT = 512
TOKENIZER = byte_level()
VOCABULARY = TOKENIZER.get_vocab_size()
END = TOKENIZER.token_to_id("<|im_end|>")
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
TEMPLATE = ALL["qwen2"]


def chat_parts(*, name: str = NAME, **changes: Any) -> Parts:
    """Return the bundle of one chat model; changes: of the Model."""
    manifest, _ = affine_parts()
    files = {
        f"{name}/fp32.onnx": b"no graph: a fake decoder opens it",
        f"{name}/tokenizer.json": json_of(TOKENIZER),
        f"{name}/template.jinja": TEMPLATE.encode(),
    }
    prompt = np.array(TOKENIZER.encode("The cat sat on the mat").ids, np.int64)
    last = len(prompt) - GOLDEN_ROWS + 1
    logits = np.stack([logits_after(prompt[:n], VOCABULARY) for n in range(last, len(prompt) + 1)])
    case = m.GoldenCase(
        inputs=golden_tensors(f"{name}/in", {m.TOKENS: prompt}, files),
        outputs=golden_tensors(f"{name}/out", {m.LOGITS: logits}, files),
    )
    values: dict[str, Any] = {
        "name": name,
        "version": "1",
        "inputs": (),
        "outputs": (),
        "profile": Profile(ranges={}),
        "variants": (
            m.Variant(
                id="ort-fp32",
                backend="ort",
                precision="fp32",
                files=(f"{name}/fp32.onnx",),
                decoder=fake_spec(CONTEXT, eos=(END,), vocabulary=VOCABULARY),
            ),
        ),
        "preferences": (m.Preference(backend="ort", variant="ort-fp32", why="it is alone"),),
        "golden": m.Golden(cases=(case,), tolerance={"fp32": 1e-5}),
        "chat": ChatFacts(
            tokenizer=f"{name}/tokenizer.json", template=f"{name}/template.jinja", tokens=TOKENS
        ),
        "provenance": m.Provenance(source="tests", opset=24, exporter="tests", tools={}),
    }
    return replace(manifest, models=(m.Model(**{**values, **changes}),)), files


def fake_opener(**options: Any) -> Callable[[Room], Decoder]:
    """Return what opens the fake; options are those of FakeDecoder."""

    def opened(room: Room) -> Decoder:
        return FakeDecoder(
            lanes=room.lanes,
            context=room.context,
            eos=(END,),
            vocabulary=VOCABULARY,
            **options,
        )

    return opened
