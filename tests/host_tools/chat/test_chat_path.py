"""A chat model from its Hugging Face folder to answers over HTTP, against transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from calibration.errors import GateError
from edge.agent import Agent
from edge.bundle import open_bundle
from edge.config import AgentConfig
from edge.errors import UsageError
from edge.manifest import LOGITS, TOKENS
from edge.trust import trusted_keys_in
from host_tools.chat.chat_export import ChatExportOptions, export_chat, read_export
from host_tools.chat.llm_spec import llm_spec_from_folder
from host_tools.cli import cli
from host_tools.errors import ExportError, ParityError
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest, pack
from tests.agents import running_agent
from tests.talking import answer_of_transformers, make_talking_folder

MESSAGES = [{"role": "user", "content": "The cat sat on the mat. What did the dog do?"}]
COUNT = 24


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talking_folder(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "tiny"
    options = ChatExportOptions(folder=folder, out=out, precisions=("fp32", "int8"))
    export_chat(options, say=quiet)
    return out


@pytest.fixture(scope="module")
def bundle(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    private, _ = generate_keys("release", root / "keys")
    request = PackRequest(
        fp32=exported, name="tiny", version="1", key=private, threads=1, out=root / "bundle"
    )
    pack(request, say=quiet)
    return root / "bundle"


@pytest.fixture(scope="module")
def agent(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    config = AgentConfig(
        bundle=bundle,
        trusted_keys=bundle.parent / "keys",
        port=0,
        intra_op_threads=1,
        variant="ort-fp32",
        cache=tmp_path_factory.mktemp("engines"),
    )
    with running_agent(config) as running:
        yield running


def test_greedy_answers_over_http_are_those_of_transformers(agent: Agent, folder: Path) -> None:
    expected, length = answer_of_transformers(folder, MESSAGES, COUNT)
    body = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": COUNT}
    answer = httpx.post(f"{agent.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens"] == length


def test_the_bundle_is_what_a_device_verifies(bundle: Path) -> None:
    opened = open_bundle(bundle, trusted_keys_in(bundle.parent / "keys"))
    (model,) = opened.manifest.models
    assert model.chat is not None
    assert [variant.id for variant in model.variants] == ["ort-fp32", "ort-int8"]
    for case in model.golden.cases:
        assert [tensor.name for tensor in (*case.inputs, *case.outputs)] == [TOKENS, LOGITS]
    graph = onnx.load(str(opened.path("tiny/int8.onnx")), load_external_data=False)
    places = {entry.value for t in graph.graph.initializer for entry in t.external_data
              if entry.key == "location"}  # fmt: skip
    assert places == {opened.manifest.artifact("tiny/int8.onnx.weights").sha256}


def test_the_export_says_where_it_came_from(exported: Path, folder: Path) -> None:
    record = read_export(exported)
    assert record.source == folder.name
    assert record.tokens["eos_token"] == "<|im_end|>"
    assert record.has_template
    assert record.variants[0].decoder.vocabulary == 420


def test_an_export_of_other_weights_than_transformers_reads_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_talking_folder(tmp_path / "other", seed=1)
    from host_tools.chat import compare

    theirs = compare._theirs
    monkeypatch.setattr(compare, "_theirs", lambda _, prompts: theirs(other, prompts))
    options = ChatExportOptions(folder=folder, out=tmp_path / "out")
    with pytest.raises(ParityError, match="from transformers"):
        export_chat(options, say=quiet)
    assert not (tmp_path / "out").exists()


def test_a_precision_that_loses_too_much_on_the_text_is_refused_unless_forced(
    folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat; the dog ran far away. " * 40)
    options = ChatExportOptions(
        folder=folder, out=tmp_path / "out", precisions=("fp32", "int4"), text=text, compare=False
    )
    with pytest.raises(GateError, match=r"int4 loses too much: .*--force"):
        export_chat(options, say=quiet)
    assert not options.out.exists()
    exact, coarse = export_chat(replace(options, force=True), say=quiet).variants
    assert exact.quality is not None
    assert coarse.quality is not None
    assert exact.quality.kl_mean < 1e-6 < coarse.quality.kl_mean
    assert exact.quality.perplexity == pytest.approx(exact.quality.fp32_perplexity, rel=1e-4)


def test_the_head_of_int4_is_int8_unless_it_is_to_be_the_same(folder: Path, tmp_path: Path) -> None:
    sizes = {}
    for head in (None, "int8", "same"):
        out = tmp_path / str(head)
        more = () if head is None else ("--head", head)
        words = ("export-chat", folder, "--precision", "int4", "--no-compare", "--out", out, *more)
        cli.main([str(word) for word in words], standalone_mode=False)
        graph = onnx.load(str(out / "int4.onnx"), load_external_data=False)
        spec = llm_spec_from_folder(folder)
        rows = {t.data_type for t in graph.graph.initializer
                if spec.vocabulary in t.dims and spec.hidden in t.dims}  # fmt: skip
        int8 = onnx.TensorProto.INT8 in rows or onnx.TensorProto.UINT8 in rows
        assert int8 is (head != "same"), rows
        sizes[head] = (out / "int4.onnx.data").stat().st_size
    assert sizes[None] == sizes["int8"] > sizes["same"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), UsageError, "no tokenizer"),
        (lambda f: (f / "config.json").unlink(), (UsageError, ExportError), "config.json"),
        (
            lambda f: (f / "generation_config.json").write_text('{"temperature": -1}'),
            ExportError,
            "generation_config.json",
        ),
        (
            lambda f: (f / "chat_template.jinja").write_text("{% for %}"),
            Exception,
            "template",
        ),
    ],
)
def test_a_folder_that_cannot_talk_is_refused_and_leaves_nothing(
    tmp_path: Path, change: Any, error: Any, words: str
) -> None:
    folder = make_talking_folder(tmp_path / "hf")
    change(folder)
    with pytest.raises(error, match=words):
        export_chat(ChatExportOptions(folder=folder, out=tmp_path / "out"), say=quiet)
    assert not (tmp_path / "out").exists()


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(UsageError, match="export the model again"):
        read_export(tmp_path)
