"""Models of texts, from a folder of Hugging Face to an agent that is asked in another language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from tests.agents import make_config, running_agent
from tests.edge.drift.populations import english
from tests.edge.drift.test_export import export, lines_of
from tests.edge.drift.test_false_alarms import german
from tests.edge.drift.test_served import drift_of
from tests.fakes import wait_until
from tests.host_tools.commands import invoke
from tests.host_tools.text_folders import bert_config, save, save_sentence_encoder

SHAPE = ("--shape", "input_ids=1x4:8x16:16x32")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WINDOW, ROWS = 100, 10


def trained_tokenizer(lines: list[str]) -> str:
    """Return a tokenizer.json as BERT's, of pieces that are frequent in these lines."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1500, special_tokens=SPECIAL, show_progress=False
    )
    library.train_from_iterator(lines, trainer)
    ends = [(token, library.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    library.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return library.to_str()


def ask_encoder(url: str, texts: list[str]) -> list[list[float]]:
    found = httpx.post(f"{url}/v1/embeddings", json={"model": "m", "input": texts})
    return [item["embedding"] for item in found.raise_for_status().json()["data"]]


def ask_classifier(url: str, texts: list[str]) -> list[str]:
    found = httpx.post(f"{url}/predict/m", json={"text": texts}).raise_for_status().json()
    return [guesses[0]["label"] for guesses in found["predictions"]]


def make_encoder(folder: Path) -> None:
    save_sentence_encoder(folder, max_tokens=32, vocab_size=1500, max_position_embeddings=34)


def make_classifier(folder: Path) -> None:
    names = {0: "calm", 1: "angry"}
    config = bert_config(
        vocab_size=1500,
        max_position_embeddings=34,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    save(transformers.BertForSequenceClassification(config), folder)


@pytest.mark.parametrize(
    ("make", "ask"), [(make_encoder, ask_encoder), (make_classifier, ask_classifier)]
)
@pytest.mark.slow
def test_another_language_is_found_and_its_texts_can_be_trained_on(
    tmp_path: Path, make: Any, ask: Any
) -> None:
    torch.manual_seed(0)
    make(tmp_path / "hf")
    order = np.random.default_rng(9).permutation(len(english()))
    lines = [english()[number] for number in order]
    (tmp_path / "hf" / "tokenizer.json").write_text(trained_tokenizer(lines[1000:]))
    (tmp_path / "usual.txt").write_text("\n".join(lines[:500]))
    model = tmp_path / "m.onnx"
    result = invoke("export", tmp_path / "hf", *SHAPE, "--out", model)
    assert result.exit_code == 0, result.output
    words = ["--golden", tmp_path / "usual.txt", "--drift-data", tmp_path / "usual.txt",
             "--tokenizer", tmp_path / "hf", "--name", "m", "--threads", "1"]  # fmt: skip
    result = invoke("pack", model, *words, "--out", tmp_path / "bundle")
    assert "drift reference: 500 samples" in result.output

    folder = tmp_path / "kept"
    (tmp_path / "device").mkdir()
    config = make_config(
        tmp_path / "device", bundle=tmp_path / "bundle", allow_unsigned=True,
        drift_window=WINDOW, drift_keep_inputs=1000, drift_keep_folder=folder,
    )  # fmt: skip
    usual = lines[500:600], lines[600:700]
    windows = (usual[0], "steady"), (german()[:WINDOW], "drifted"), (usual[1], "steady")
    answers: dict[str, Any] = {}
    with running_agent(config) as agent:
        for number, (texts, state) in enumerate(windows, 1):
            for first in range(0, WINDOW, ROWS):
                part = texts[first : first + ROWS]
                answers.update(zip(part, ask(agent.url, part), strict=True))
            wait_until(lambda n=number: drift_of(agent.url)["windows"] == n)  # type: ignore[misc]
            report = drift_of(agent.url)
            assert report["state"] == state, report["detail"]
            if state == "drifted":
                named = {each["name"] for each in report["features"] if each["drifted"]}
                assert {"whole rows", "characters per token"} <= named

    out = tmp_path / "seen"
    export(folder, out, model="m")
    rows = lines_of(out)
    for is_drifted, texts in ((False, lines[500:700]), (True, german()[:WINDOW])):
        found = [row for row in rows if row["drifted"] == is_drifted]
        assert sorted(row["text"] for row in found) == sorted(texts)
        if make is make_classifier:
            assert all(row["label"] == answers[row["text"]] for row in found)
        else:
            (vectors,) = np.load(out / "answers" / "texts.npz").values()
            for row in found:
                np.testing.assert_allclose(vectors[row["row"]], answers[row["text"]], atol=1e-4)
    result = invoke("calibrate", model, "--data", out / "inputs" / "texts.txt",
                    "--tokenizer", tmp_path / "hf", "--method", "minmax", "--json",
                    "--min-cosine", "0", "--min-agreement", "0")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.int8.onnx").is_file()
    assert len(json.loads((out / "export.json").read_bytes())) > 5
