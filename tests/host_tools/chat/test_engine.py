"""Chat graphs through TensorRT-RTX, which parses and builds for cards that are not here."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnx
import pytest

from edge.chat.spec import cache_inputs, cache_outputs
from edge.engine_builder import EngineRequest
from edge.engine_child import BuildRequest
from edge.engine_process import build
from edge.errors import UsageError
from edge.sealed import memory_file
from host_tools.chat.build_engines import ChatBuildOptions, build_chat_engines, source_sha256
from host_tools.chat.engine import EngineShapes, engine_profiles, forms_for, write_engine_graph
from host_tools.engine_record import read_record
from tests.chat_models import make_folder
from tests.host_tools.chat.decoding import PlainDecoder, torch_logits
from tests.host_tools.chat.test_lora import pairs, save

on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only"
)
SHAPES = EngineShapes(lanes=4, capacity=64, chunk=32)
SMS = ("SM86", "SM89", "SM120")
WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
# Heads as wide as those of real models. Fused attention has no kernel for one that all share.
WIDE = {"hidden_size": 128, "head_dim": 64}
SHARED = {"num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("hf")

    def model(family: str, **changes: object) -> Path:
        folder = root / "-".join([family, *map(str, changes.values())])
        return folder if folder.exists() else make_folder(folder, family, **(WIDE | changes))

    return model


@pytest.mark.parametrize(
    ("backend", "version", "precision", "forms"),
    [
        ("trt", (8, 5), "fp16", ("prefix",)),
        ("trt", (10, 3), "int4", ("prefix",)),
        ("trt", (10, 14), "fp16", ("prefix",)),
        ("trt", (10, 15), "fp16", ("scatter", "scatter-primitive")),
        ("trt", (11, 4), "fp32", ("scatter-primitive",)),
        ("trt-rtx", (1, 7), "int4", ("scatter", "scatter-primitive")),
    ],
)
def test_each_tensorrt_gets_the_forms_that_it_builds(backend, version, precision, forms):
    assert forms_for(backend, version, precision) == forms


def test_int4_is_refused_where_tensorrt_has_none():
    with pytest.raises(UsageError, match=r"TensorRT 8\.5 has no int4 weights"):
        forms_for("trt", (8, 5), "int4")


def shapes_of(values) -> dict[str, tuple]:
    return {
        v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in values
    }


@pytest.mark.parametrize("lanes", [1, 4])
def test_capacity_is_fixed_and_lanes_are_where_there_is_one(models, tmp_path, lanes):
    shapes = EngineShapes(lanes=lanes, capacity=64, chunk=32, wanted=4)
    decoder = write_engine_graph(
        models("llama"), tmp_path / "m.onnx", form="scatter", precision="int4", shapes=shapes
    )
    assert (decoder.context, decoder.cache) == (64, "FP16")
    graph = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False).graph
    b = 1 if lanes == 1 else "lanes"
    inputs, outputs = shapes_of(graph.input), shapes_of(graph.output)
    for cache, updated in zip(cache_inputs(decoder), cache_outputs(decoder), strict=True):
        assert inputs[cache] == outputs[updated] == (b, 2, 64, 64)
    model = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    step, prefill = (profile.ranges for profile in engine_profiles(model, shapes, "int4"))
    assert step["input_ids"].max == (lanes, 1)
    assert (prefill["input_ids"].min, prefill["input_ids"].opt) == ((1, 1), (1, 32))
    assert prefill["input_ids"].max == (lanes, 32)
    assert prefill["rows"].max == (lanes, 4)
    # With one lane nothing about the caches varies.
    assert ("key_0" in step) == (lanes > 1)


def test_a_fixed_graph_still_computes_what_transformers_does(models, tmp_path):
    folder = models("llama")
    write_engine_graph(
        folder, tmp_path / "m.onnx", form="scatter-primitive", precision="fp32", shapes=SHAPES
    )
    text = [list(range(40))]
    found = PlainDecoder(tmp_path / "m.onnx", capacity=64).step(text)
    assert abs(found - torch_logits(folder, text)).max() < 1e-4


def build_for_all(graph: Path, precision: str) -> int:
    """Build one engine for three generations of cards in a child; return its size in bytes."""
    model = onnx.load(str(graph), load_external_data=False)
    engine, timings = memory_file(), memory_file()
    try:
        request = EngineRequest(
            onnx=graph,
            precision="fp16",
            profiles=engine_profiles(model, SHAPES, precision),
            compute_capabilities=SMS,
        )
        build(
            BuildRequest(backend="trt-rtx", request=request, engine=engine, timing_cache=timings),
            timeout_s=300,
            progress=lambda phase, done, total: True,
        )
        return os.fstat(engine).st_size
    finally:
        os.close(engine)
        os.close(timings)


GRAPHS = [
    *((family, "scatter", "fp16", {}) for family in ("llama", "mistral", "qwen2", "qwen3")),
    ("qwen2", "scatter", "int4", WINDOWS),
    ("qwen3", "scatter-primitive", "int4", SHARED),
    ("llama", "scatter-primitive", "fp32", {}),
    ("mistral", "prefix", "fp16", {}),
    ("qwen2", "prefix", "int4", WINDOWS),
    ("llama", "prefix", "int8", {}),
    ("llama", "scatter", "int8", {"num_key_value_heads": 4}),
    ("llama", "concat", "fp16", {}),
    ("mistral", "concat", "fp32", {}),
]


@on_x86
@pytest.mark.slow
@pytest.mark.parametrize(("family", "form", "precision", "changes"), GRAPHS)
def test_tensorrt_builds_the_graph_for_every_generation_of_cards(
    models, tmp_path, family, form, precision, changes
):
    out = tmp_path / "m.onnx"
    write_engine_graph(
        models(family, **changes), out, form=form, precision=precision, shapes=SHAPES
    )
    weights = (tmp_path / "m.onnx.data").stat().st_size
    assert build_for_all(out, precision) > weights // 2


def options(folder: Path, out: Path, **changes: object) -> ChatBuildOptions:
    values: dict[str, object] = {
        "folder": folder,
        "targets": ("rtx-4060",),
        "precisions": ("int4",),
        "out": out / "engines",
        "context": 64,
    }
    return ChatBuildOptions(**{**values, **changes})  # type: ignore[arg-type]


def build_all(given: ChatBuildOptions) -> list:
    return build_chat_engines(given, say=lambda line: None)


@on_x86
def test_engines_for_an_rtx_card_are_recorded_as_built_and_not_run(models, tmp_path):
    folder = models("llama")
    built = build_all(options(folder, tmp_path, precisions=("int4", "fp16")))
    records = [record for record in built if record.engine is not None]
    assert [record.id for record in records] == ["rtx-4060-int4", "rtx-4060-fp16"]
    for record in records:
        assert read_record(tmp_path / "engines" / f"{record.id}.record.json") == record
        assert record.source_sha256 == source_sha256(folder)
        assert (record.engine.sms, record.engine.tried) == (("8.9",), False)
        assert (record.decoder.form, record.decoder.cache) == ("scatter", "FP16")
        assert record.decoder.context == 64
        for file in (record.file, record.graph, record.weights):
            assert (tmp_path / "engines" / file).stat().st_size > 1000


@on_x86
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_an_engine_holds_its_weights_once(tmp_path, precision):
    folder = make_folder(
        tmp_path / "hf", "llama", hidden_size=512, intermediate_size=2048, vocab_size=4096
    )
    record, *_ = build_all(options(folder, tmp_path, precisions=(precision,)))
    weights = (tmp_path / "engines" / record.weights).stat().st_size
    # Kernels take 2 MB a profile; a second copy of the layers is 4 MB of int4, 8 of int8.
    assert (tmp_path / "engines" / record.file).stat().st_size - weights < 6 << 20


@on_x86
def test_heads_without_a_fused_kernel_get_primitive_operators(tmp_path):
    folder = make_folder(tmp_path / "hf", "llama", **WIDE, **SHARED)
    said: list[str] = []
    (record,) = build_chat_engines(options(folder, tmp_path, precisions=("int4",)), say=said.append)
    assert record.decoder.form == "scatter-primitive"
    assert any("scatter does not build, trying scatter-primitive" in line for line in said)


def test_a_jetson_gets_the_graph_and_devices_add_up(models, tmp_path):
    folder = models("llama")
    build_all(options(folder, tmp_path, targets=("agx-orin-64gb",)))
    (record,) = build_all(options(folder, tmp_path, targets=("orin-nano-8gb",)))
    assert (record.id, record.engine, record.decoder.form) == ("trt-int4", None, "prefix")
    assert record.build_for == ("agx-orin-64gb", "orin-nano-8gb")
    assert (tmp_path / "engines" / record.weights).is_file()


def test_adapters_are_merged_and_make_another_source(models, tmp_path):
    import transformers

    folder = models("llama")
    module = "model.layers.0.mlp.down_proj"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    adapter = save(tmp_path / "adapter", pairs(model, (module,)))
    target = ("agx-orin-64gb",)
    (plain,) = build_all(options(folder, tmp_path, targets=target))
    before = (tmp_path / "engines" / plain.weights).read_bytes()
    (record,) = build_all(options(folder, tmp_path, targets=target, adapters=(adapter,)))
    assert record.source_sha256 == source_sha256(folder, (adapter,)) != plain.source_sha256
    assert (tmp_path / "engines" / record.weights).read_bytes() != before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": ()}, "nothing to build for"),
        ({"targets": ("this",)}, "'this' is not known; give one of"),
        ({"targets": ("nano",)}, r"nano: its JetPack has no TensorRT 8\.5"),
        ({"targets": ("agx-xavier",)}, "has no int4 weights"),
        ({"context": 513}, r"513: the model was made for 1\.\.512"),
        ({"lanes": 0}, "both must be at least 1"),
        ({"chunk": 0}, "both must be at least 1"),
    ],
)
def test_what_a_target_cannot_have_is_one_clear_error(models, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        build_all(options(models("llama"), tmp_path, **changes))
    assert not list(tmp_path.glob("engines/*"))
