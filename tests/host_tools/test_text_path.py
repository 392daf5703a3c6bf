"""A folder with a tokenizer, from export to an agent that is sent texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers

from calibration.errors import GraphError
from calibration.model_file import load_model, save_model, set_metadata
from calibration.processing import (
    CLASSES_KEY,
    EMBEDDING_KEY,
    TEXT_KEY,
    TOKENIZER_KEY,
    processing_from_model,
)
from edge.errors import UsageError
from tests.agents import make_config, running_agent
from tests.host_tools.commands import invoke
from tests.host_tools.text_folders import bert_config, save, save_sentence_encoder

TEXTS = ["the cat sat on the mat", "dog", "cats running far " * 10]
SHAPE = ("--shape", "input_ids=1x4:2x8:4x16")


def refused(*words: str | Path) -> str:
    with pytest.raises((UsageError, GraphError)) as caught:
        invoke(*words)
    return str(caught.value)


def encoded(folder: Path, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer(texts, padding=True, truncation=True, return_tensors="pt", **options)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A packed classifier of texts, and its torch module."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    names = {0: "sports", 1: "weather", 2: "cats & dogs"}
    config = bert_config(id2label=names, label2id={name: n for n, name in names.items()})
    module = save(transformers.BertForSequenceClassification(config), folder / "hf")
    (folder / "golden.txt").write_text("the cat sat\nthe dog ran\n")
    result = invoke("export", folder / "hf", *SHAPE, "--out", folder / "m.onnx")
    assert result.exit_code == 0, result.output
    assert "texts: at most 16 tokens" in result.output
    assert "3 classes with names, from logits" in result.output
    words = ["pack", folder / "m.onnx", "--golden", folder / "golden.txt"]
    words += ["--tokenizer", folder / "hf", "--name", "topics", "--out", folder / "bundle"]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return folder, module


def test_a_text_classifier_answers_as_torch_with_the_names_of_its_config(
    classifier: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, module = classifier
    feeds = encoded(folder / "hf", TEXTS, max_length=16, return_token_type_ids=True)
    with torch.no_grad():
        expected = module(**feeds).logits.softmax(dim=1).numpy()
    config = make_config(tmp_path, bundle=folder / "bundle", allow_unsigned=True)
    with running_agent(config) as agent:
        answer = httpx.post(f"{agent.url}/predict/topics", json={"text": TEXTS}).json()
    names = ["sports", "weather", "cats & dogs"]
    for found, row in zip(answer["predictions"], expected, strict=True):
        assert [guess["label"] for guess in found] == [names[n] for n in np.argsort(-row)]
        scores = [guess["score"] for guess in found]
        np.testing.assert_allclose(scores, np.sort(row)[::-1], atol=1e-5)


def test_inspect_says_what_may_be_sent_and_what_comes_back(classifier: tuple[Path, Any]) -> None:
    output = " ".join(invoke("inspect", classifier[0] / "bundle").output.split())
    assert "texts: at most 16 tokens, longer ones cut at the end, padded with 0" in output
    assert "POST /predict/topics takes texts, answers with the best 3 classes" in output
    model = json.loads(invoke("inspect", classifier[0] / "bundle", "--json").output)["models"][0]
    assert model["text"]["types"] == "token_type_ids"
    assert model["text"]["tokenizer"] == "topics/tokenizer.json"


def test_the_tokenizer_is_in_the_bundle_once_and_no_longer_in_the_graph(
    classifier: tuple[Path, Any],
) -> None:
    folder, _ = classifier
    known = processing_from_model(load_model(folder / "m.onnx"))
    assert known.tokenizer is not None
    blobs = list((folder / "bundle" / "blobs" / "sha256").iterdir())
    assert [blob.read_bytes() for blob in blobs].count(known.tokenizer) == 1
    assert not any(TOKENIZER_KEY.encode() in blob.read_bytes() for blob in blobs)


def test_a_model_that_is_exported_again_keeps_its_tokenizer_at_its_new_size(
    classifier: tuple[Path, Any], tmp_path: Path
) -> None:
    words = ["export", classifier[0] / "m.onnx", "--out", tmp_path / "again.onnx"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    for name in names:
        words += ["--shape", f"{name}=1x4:2x8:2x12"]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert "texts: at most 12 tokens" in result.output
    before, after = (
        processing_from_model(load_model(path))
        for path in (classifier[0] / "m.onnx", tmp_path / "again.onnx")
    )
    assert (after.tokenizer, after.classes) == (before.tokenizer, before.classes)


def test_a_sentence_encoder_embeds_as_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = save_sentence_encoder(tmp_path / "hf", max_tokens=10)
    (tmp_path / "golden.txt").write_text("the cat sat\nthe dog ran\n")
    shape = ("--shape", "input_ids=1x4:2x8:4x10")
    result = invoke("export", tmp_path / "hf", *shape, "--out", tmp_path / "m.onnx")
    assert "texts: at most 10 tokens" in result.output
    assert "vectors of texts: embedding" in result.output
    words = ["pack", tmp_path / "m.onnx", "--golden", tmp_path / "golden.txt"]
    words += ["--tokenizer", tmp_path / "hf", "--name", "minds", "--out", tmp_path / "packed"]
    assert invoke(*words).exit_code == 0
    output = " ".join(invoke("inspect", tmp_path / "packed").output.split())
    assert "POST /v1/embeddings takes texts, answers with embedding" in output
    feeds = encoded(tmp_path / "hf", TEXTS * 3, max_length=10, return_token_type_ids=False)
    with torch.no_grad():
        hidden = module(**feeds).last_hidden_state
    mask = feeds["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    expected = torch.nn.functional.normalize(mean).numpy()
    config = make_config(tmp_path, bundle=tmp_path / "packed", allow_unsigned=True)
    with running_agent(config) as agent:
        body = {"model": "minds", "input": TEXTS * 3, "encoding_format": "float"}
        answer = httpx.post(f"{agent.url}/v1/embeddings", json=body).json()
    got = [item["embedding"] for item in answer["data"]]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == int(feeds["attention_mask"].sum())


def test_a_model_without_a_tokenizer_gets_one_when_it_is_packed(
    classifier: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, _ = classifier
    bare = load_model(folder / "m.onnx")
    kept = [p for p in bare.metadata_props if p.key not in {TEXT_KEY, TOKENIZER_KEY, CLASSES_KEY}]
    del bare.metadata_props[:]
    bare.metadata_props.extend(kept)
    save_model(bare, tmp_path / "bare.onnx")
    words = ["pack", tmp_path / "bare.onnx", "--golden", folder / "golden.txt", "--name", "m"]
    result = invoke(
        *words, "--tokenizer", folder / "hf", "--embedding", "logits", "--out", tmp_path / "b"
    )
    assert result.exit_code == 0, result.output
    model = json.loads(invoke("inspect", tmp_path / "b", "--json").output)["models"][0]
    assert (model["text"]["max_tokens"], model["embedding"]) == (16, "logits")
    said = refused(
        *words, "--tokenizer", folder / "hf", "--embedding", "y", "--out", tmp_path / "c"
    )
    assert "not 'y'" in said


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({EMBEDDING_KEY: "nothing"}, "not 'nothing'"),
        ({TOKENIZER_KEY: "!"}, "malformed"),
        ({TOKENIZER_KEY: "eJw="}, "ends early"),
        ({CLASSES_KEY: {"output": "logits", "labels": ["a"], "softmax": True}}, "1 labels"),
        ({TEXT_KEY: {"tokenizer": "t", "ids": "x", "max_tokens": 9}}, "the model takes"),
        ({TEXT_KEY: 5}, "malformed"),
    ],
)
def test_facts_that_do_not_fit_the_graph_are_refused(
    classifier: tuple[Path, Any], facts: dict[str, object], said: str
) -> None:
    model = load_model(classifier[0] / "m.onnx")
    set_metadata(model, facts)
    with pytest.raises(GraphError, match=said):
        processing_from_model(model)


def test_regression_and_several_labels_a_row_get_no_names(tmp_path: Path) -> None:
    for kind in ("regression", "multi_label_classification"):
        config = bert_config(num_labels=2, problem_type=kind)
        save(transformers.BertForSequenceClassification(config), tmp_path / kind)
        result = invoke("export", tmp_path / kind, *SHAPE, "--out", tmp_path / "m.onnx")
        assert result.exit_code == 0, result.output
        assert "classes with names" not in result.output


def test_a_folder_that_pads_at_the_start_or_has_no_tokenizer_takes_tensors_only(
    tmp_path: Path,
) -> None:
    config = bert_config(num_labels=3)
    folder = tmp_path / "hf"
    save(transformers.BertForSequenceClassification(config), folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "padding_side": "left"}))
    assert "texts:" not in invoke("export", folder, *SHAPE, "--out", tmp_path / "m.onnx").output
    (folder / "tokenizer.json").unlink()
    assert "texts:" not in invoke("export", folder, *SHAPE, "--out", tmp_path / "m.onnx").output
