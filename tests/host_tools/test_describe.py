"""What `inspect` shows of a manifest, in a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from edge.manifest import EngineFacts, Manifest, Model, Variant
from host_tools.describe import print_manifest, stored_bytes
from tests.edge.manifests import MANIFEST

ENGINE = EngineFacts(
    device="agx-orin-64gb", kind="jetson", arch="aarch64", runtime="10.3.0.30", sms=("8.7",),
    portable=False, memory_bytes=1_230_000_000, tried=True,
)  # fmt: skip
CPU = "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.60GHz (x86_64)"


def with_variants(*more: Variant, **changes: object) -> Manifest:
    model = MANIFEST.models[0]
    variants = tuple(replace(v, **changes) for v in model.variants)  # type: ignore[arg-type]
    return replace(MANIFEST, models=(replace(model, variants=(*variants, *more)),))


def shown(manifest: Manifest) -> list[str]:
    sink = io.StringIO()
    print_manifest(manifest, "unsigned", Console(file=sink, width=80))
    lines = sink.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    return [" ".join(line.split()) for line in lines]


def test_memory_is_that_of_the_process_or_of_the_engine_or_open() -> None:
    files = MANIFEST.models[0].variants[0].files
    engine = Variant(
        id="trt-int8-agx-orin-64gb", backend="trt", precision="int8", files=files, engine=ENGINE
    )
    graph = Variant(
        id="trt-fp16", backend="trt", precision="fp16", files=files, build_for=("agx-orin-64gb",)
    )
    lines = shown(with_variants(engine, graph, memory_bytes=12_300_000))
    size = f"{sum(a.size for a in MANIFEST.artifacts if a.path in files)} B"
    assert f"int8 {size} 12.3 MB 1 1.500 2.250" in lines
    assert f"trt-int8-agx-orin-64gb {size} 1.23 GB" in lines
    assert f"trt-fp16 {size} ?" in lines
    assert "trt-int8-agx-orin-64gb: engine for agx-orin-64gb, trt 10.3.0.30" in lines
    assert "trt-fp16: built on device: agx-orin-64gb" in lines


def test_an_engine_that_never_ran_is_listed_as_built_only() -> None:
    files = MANIFEST.models[0].variants[0].files
    facts = replace(ENGINE, device="rtx-4060", kind="desktop", runtime="1.7.1.116", tried=False)
    engine = Variant(
        id="rtx-4060-int4", backend="trt-rtx", precision="int8", files=files, engine=facts
    )
    lines = shown(with_variants(engine))
    words = "rtx-4060-int4: engine for rtx-4060, trt-rtx 1.7.1.116, built, not run here"
    assert words in " ".join(lines)


def test_variants_measured_on_one_machine_name_it_once() -> None:
    measured = replace(MANIFEST.models[0].variants[0].measurements[0], device=CPU)
    larger = replace(measured, batch=8, p50_ms=1234.5, p99_ms=2345.75)
    lines = shown(with_variants(measurements=(measured, larger)))
    assert "8 1234.500 2345.750" in lines
    assert " ".join(lines).count(CPU) == 1
    assert any(line.startswith(f"int8, fp32: measured on {CPU}") for line in lines)


def test_several_models_are_listed_first_and_equal_files_count_once() -> None:
    first = MANIFEST.models[0]
    second: Model = replace(first, name="second", version="2.0")
    twins = tuple(
        replace(a, size=700, sha256=f"{n // 2:064x}") for n, a in enumerate(MANIFEST.artifacts)
    )
    manifest = replace(MANIFEST, models=(first, second), artifacts=twins)
    assert stored_bytes(manifest) == 700 * -(-len(twins) // 2)
    lines = shown(manifest)
    assert f"unsigned; {len(twins)} files, {stored_bytes(manifest) / 1e3:.1f} kB" in lines
    assert "2 models: affine 1, second 2.0" in lines
    assert "model second, version 2.0" in lines
