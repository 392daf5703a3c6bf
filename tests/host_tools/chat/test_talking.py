"""Requests on a real graph against what transformers itself answers to the same conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from edge.chat.chat_model import ChatModel
from edge.chat.generator import Generator, GeneratorOptions
from edge.chat.openai_request import chat_request, completion_request
from edge.chat.ort_decoder import OrtDecoder
from edge.chat.sampling_defaults import SamplingDefaults
from tests.chat_models import make_model, write_onnx
from tests.edge.chat.made_tokenizers import byte_level, json_of
from tests.edge.chat.talking import Client
from tests.edge.chat.templates import QWEN2, TOOLS
from tests.fakes import DEADLINE_S

LIBRARY = byte_level()
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
EOS = LIBRARY.token_to_id("<|im_end|>")
REFERENCE = PreTrainedTokenizerFast(tokenizer_object=LIBRARY, **TOKENS)
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is <the> weather?"},
    {"role": "assistant", "content": "Fine, 你好."},
    {"role": "user", "content": "And in Paris?"},
]


@pytest.fixture(scope="module")
def torch_model() -> Any:
    return make_model("llama", vocab_size=LIBRARY.get_vocab_size(), eos_token_id=EOS)


@pytest.fixture(scope="module")
def started(
    torch_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ChatModel, Generator]]:
    folder = tmp_path_factory.mktemp("hf")
    torch_model.save_pretrained(folder, safe_serialization=True)
    graph = write_onnx(folder, tmp_path_factory.mktemp("onnx") / "model.onnx", form="scatter")
    generator = Generator(
        "tiny",
        lambda: OrtDecoder.open(graph, lanes=4, intra_op_threads=1),
        options=GeneratorOptions(),
    )
    generator.start()
    model = ChatModel.open(
        name="tiny",
        spec=generator.spec,
        tokenizer=json_of(LIBRARY),
        template=QWEN2,
        tokens=TOKENS,
        defaults=SamplingDefaults(),
    )
    yield model, generator
    assert generator.stop(DEADLINE_S)


def asked(started: tuple[ChatModel, Generator], **fields: Any) -> dict[str, Any]:
    model, generator = started
    body = json.dumps({"model": "tiny", "temperature": 0, **fields}).encode()
    if "messages" in fields:
        prepared = model.chat(chat_request(body))
    else:
        prepared = model.complete(completion_request(body))
    client = Client(prepared)
    for index, generation in enumerate(prepared.generations):
        generator.submit(generation, client.listener(index))
    assert client.ended.wait(DEADLINE_S)
    return json.loads(client.bytes)


def greedy(torch_model: Any, prompt: list[int], count: int, **options: Any) -> list[int]:
    with torch.no_grad():
        tokens = torch_model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=EOS,
            **options,
        )
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_a_conversation_is_answered_as_transformers_answers_it(
    torch_model: Any, started: tuple[ChatModel, Generator], tools: list[dict[str, Any]] | None
) -> None:
    prompt = REFERENCE.apply_chat_template(
        MESSAGES, tools=tools, chat_template=QWEN2, add_generation_prompt=True, return_dict=False
    )
    expected = greedy(torch_model, prompt, 40)
    answer = asked(started, messages=MESSAGES, tools=tools, max_tokens=40)
    assert answer["choices"][0]["message"]["content"] == LIBRARY.decode(expected)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] == len(expected)


def test_penalties_are_those_of_transformers(
    torch_model: Any, started: tuple[ChatModel, Generator]
) -> None:
    prompt = LIBRARY.encode("The cat sat on").ids
    expected = greedy(torch_model, prompt, 40, repetition_penalty=1.3)
    answer = asked(started, prompt="The cat sat on", max_tokens=40, repetition_penalty=1.3)
    assert answer["choices"][0]["text"] == LIBRARY.decode(expected)
    assert expected != greedy(torch_model, prompt, 40)


def test_logprobs_are_those_of_transformers(
    torch_model: Any, started: tuple[ChatModel, Generator]
) -> None:
    answer = asked(started, messages=MESSAGES, max_tokens=20, logprobs=True, top_logprobs=3)
    prompt = REFERENCE.apply_chat_template(
        MESSAGES, chat_template=QWEN2, add_generation_prompt=True, return_dict=False
    )
    tokens = greedy(torch_model, prompt, 20)
    with torch.no_grad():
        logits = torch_model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits.double(), dim=-1)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == len([token for token in tokens if token != EOS])
    for row, one in zip(expected, content, strict=False):
        top = torch.topk(row, 3)
        found = [other["logprob"] for other in one["top_logprobs"]]
        # Two ways to compute a float32 logit, see test_ort_decoder.
        assert found == pytest.approx(top.values.tolist(), abs=2e-4)
        assert one["logprob"] == found[0]
