"""Traced chat models against transformers: architectures that the writer does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.errors import GateError
from edge.config import AgentConfig
from edge.errors import EdgeError, UsageError
from host_tools.chat.chat_export import ChatExportOptions, export_chat
from host_tools.chat.llm_spec import llm_spec_from_folder
from host_tools.chat.traced import write_traced
from host_tools.cli import cli
from host_tools.errors import ExportError
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest, pack
from tests.agents import running_agent
from tests.chat_models import OTHERS, make_folder, make_sparse_folder
from tests.host_tools.chat.decoding import PlainDecoder, torch_greedy, torch_logits
from tests.talking import answer_of_transformers, make_talking_folder

TOLERANCE = 1e-4
# Seconds each: one of them always.
SOON = ("gpt2",)
EACH = [
    name if name in SOON else pytest.param(name, marks=pytest.mark.slow)
    for name in OTHERS
    if name != "mamba"
]
MESSAGES = [{"role": "user", "content": "Who sat on the mat?"}]


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize("architecture", EACH)
def test_64_greedy_tokens_and_logits_in_chunks_are_those_of_transformers(tmp_path, architecture):
    folder = make_folder(tmp_path / "hf", architecture)
    graph = write_traced(folder, tmp_path / "fp32.onnx", context=512).written.path
    text = np.random.default_rng(0).integers(3, 256, (1, 64))
    decoder = PlainDecoder(graph)
    parts = [decoder.step(text[:, a:b]) for a, b in ((0, 20), (20, 33), (33, 34), (34, 64))]
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1), torch_logits(folder, text), rtol=0, atol=TOLERANCE
    )
    prompt = text[0, :33]
    assert PlainDecoder(graph).greedy(prompt, 64) == torch_greedy(folder, prompt, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talking_folder(tmp_path_factory.mktemp("hf"), "gpt2")  # GPT2LMHeadModel


def test_two_conversations_over_http_are_those_of_transformers(folder: Path, tmp_path: Path):
    out, bundle = tmp_path / "export", tmp_path / "bundle"
    words = ["export-chat", str(folder), "--out", str(out), "--json"]
    made = CliRunner().invoke(cli, words)
    assert made.exit_code == 0, made.output
    record = json.loads(made.stdout)
    assert [variant["precision"] for variant in record["variants"]] == ["fp32"]
    assert record["variants"][0]["decoder"]["form"] == "concat"
    assert "within" in made.stderr  # of transformers, as the export has seen
    private, _ = generate_keys("release", tmp_path / "keys")
    pack(
        PackRequest(fp32=out, name="tiny", version="1", key=private, threads=1, out=bundle),
        say=quiet,
    )
    config = AgentConfig(
        bundle=bundle, trusted_keys=tmp_path / "keys", port=0, intra_op_threads=1, chat_lanes=2
    )
    talks = [MESSAGES, [{"role": "user", "content": "And the dog?"}]]
    with running_agent(config) as agent:
        for talk in (*talks, talks[0]):
            body = {"model": "tiny", "messages": talk, "temperature": 0, "max_tokens": 24}
            url = f"{agent.url}/v1/chat/completions"
            answer = httpx.post(url, json=body, timeout=60).json()
            expected, length = answer_of_transformers(folder, talk, 24)
            assert answer["choices"][0]["message"]["content"] == expected
            assert answer["usage"]["prompt_tokens"] == length


@pytest.mark.slow
def test_a_family_with_a_writer_is_traced_if_asked(tmp_path: Path):
    folder = make_talking_folder(tmp_path / "hf")
    options = ChatExportOptions(folder=folder, out=tmp_path / "out", trace=True)
    (variant,) = export_chat(options, say=quiet).variants
    assert variant.decoder.form == "concat"
    spec = llm_spec_from_folder(folder)
    assert (variant.decoder.context, variant.decoder.eos) == (spec.context, spec.eos)


def as_remote_code(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (folder / "mine.py").write_text("raise SystemExit('this code has run')")
    path.write_text(json.dumps(config | {"architectures": ["MineForCausalLM"]}))


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def as_encoder(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertModel"]}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (as_remote_code, "transformers cannot read"),
        (as_pickle, "no model.safetensors"),
        (as_encoder, "architectures"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(
    tmp_path: Path, change: Callable[[Path], None], words: str
):
    folder = make_talking_folder(tmp_path / "hf", "gemma2")
    change(folder)
    with pytest.raises(EdgeError, match=words):
        export_chat(ChatExportOptions(folder=folder, out=tmp_path / "out"), say=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precisions": ("int8",)}, UsageError, "fp32 alone"),
        ({"text": Path(__file__)}, UsageError, "--text has nothing to judge"),
        ({"adapters": (Path("lora"),)}, UsageError, "merge_and_unload"),
        ({"context": 513}, UsageError, "1..512"),
        ({"target": "no-such"}, UsageError, "not known"),
    ],
)
def test_what_a_traced_model_cannot_have_is_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], error: type, words: str
):
    wanted = ChatExportOptions(folder=folder, out=tmp_path / "out")
    with pytest.raises(error, match=words):
        export_chat(replace(wanted, **options), say=quiet)
    assert not any(tmp_path.iterdir())


def test_a_state_space_model_is_refused_with_the_reason(tmp_path: Path):
    folder = make_folder(tmp_path / "hf", "mamba")
    with pytest.raises(ExportError, match="keep no keys and values"):
        write_traced(folder, tmp_path / "fp32.onnx", context=64)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_model_too_large_to_trace_is_refused_before_it_is_read(tmp_path: Path):
    sizes = {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 8}
    make_sparse_folder(tmp_path / "hf", **sizes)
    with pytest.raises(ExportError, match=r"2\.\d billion parameters"):
        write_traced(tmp_path / "hf", tmp_path / "fp32.onnx")


def test_a_model_without_a_longest_context_needs_one(tmp_path: Path):
    folder = make_folder(tmp_path / "hf", "bloom", max_position_embeddings=None)
    with pytest.raises(UsageError, match="give --context"):
        write_traced(folder, tmp_path / "fp32.onnx")


@pytest.mark.slow
def test_a_traced_model_that_its_target_cannot_hold_is_refused(folder: Path, tmp_path, monkeypatch):
    from host_tools.chat import fitting

    monkeypatch.setattr(fitting, "fits", lambda *_, **__: "9.00 GB, and 8.00 are there")
    options = ChatExportOptions(folder=folder, out=tmp_path / "out", target="orin-nano-8gb")
    with pytest.raises(GateError, match="fp32 cannot run on orin-nano-8gb"):
        export_chat(options, say=quiet)
    assert not any(tmp_path.iterdir())
