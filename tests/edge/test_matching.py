"""A bundle with five engines on every recorded device: which one opens, and why not the others."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edge.choice import REFUSAL_CODES, choice_from, rank
from edge.manifest import EngineFacts, Variant
from edge.matching import engine_mismatch, same_version, ways_to_run
from edge.target import Target, detect_target
from tests.bundles import affine_parts
from tests.edge.device_trees import DEVICE_TREES

# What runs TensorRT on each recorded device, as its JetPack or its user installed it.
INSTALLED = {
    "agx-orin-jetpack5": {"tensorrt": "8.5.2.2"},
    "agx-orin-jetpack6": {"tensorrt": "10.3.0"},
    "agx-orin-jetpack7": {"tensorrt": "10.16.2"},
    "orin-nx-in-a-container": {"tensorrt": "10.3.0"},
    "orin-nano": {"tensorrt": "10.3.0"},
    "agx-xavier": {"tensorrt": "8.5.2.2"},
    "thor": {"tensorrt": "10.13.3"},
    "rtx-4060": {"tensorrt_rtx": "1.7.1.116"},
    "no-gpu": {},
    "a-jetson-of-the-future": {"tensorrt": "15.1.0"},
}


def jetson(device: str, sm: str, sm_count: int, runtime: str, **more: object) -> EngineFacts:
    return EngineFacts(
        device=device, kind="jetson", arch="aarch64", runtime=runtime, sms=(sm,), portable=False,
        sm_count=sm_count, **more,  # type: ignore[arg-type]
    )  # fmt: skip


ENGINES = {
    "orin-jp6": jetson("agx-orin-64gb", "8.7", 16, "10.3.0.30"),
    "orin-jp5": jetson("agx-orin-64gb", "8.7", 16, "8.5.2.2"),
    "nano-jp6": jetson("orin-nano-8gb", "8.7", 8, "10.3.0.30"),
    "thor-jp7": jetson("agx-thor", "11.0", 20, "10.13.3.9", memory_bytes=16 << 30),
    "rtx": EngineFacts(
        device="rtx-3060", kind="desktop", arch="x86_64", runtime="1.7.1.116",
        sms=("8.6", "8.9", "12.0"), portable=True, cuda="13.0",
    ),
}  # fmt: skip
VARIANTS = (
    *(
        Variant(
            id=name,
            backend="trt-rtx" if name == "rtx" else "trt",
            precision="fp16",
            files=("engine",),
            engine=facts,
        )
        for name, facts in ENGINES.items()
    ),
    Variant(id="recipe", backend="trt", precision="fp16", files=("graph",)),
    Variant(id="graph", backend="ort", precision="fp32", files=("graph",)),
)
MODEL = replace(affine_parts()[0].models[0], variants=VARIANTS, preferences=())
PLATFORM, DEVICE, SM, VERSION = (
    "platform-mismatch", "device-mismatch", "sm-mismatch", "version-mismatch",
)  # fmt: skip


def target_of(name: str, tmp_path: Path) -> Target:
    recorded = DEVICE_TREES[name]
    installed = {"onnxruntime": "1.23.2", **INSTALLED[name]}
    return detect_target(
        recorded.write(tmp_path),
        arch=recorded.arch,
        query=lambda: recorded.gpu,
        problem=lambda: "no CUDA driver here",
        versions=lambda: installed,
    )


@pytest.mark.parametrize(
    ("name", "served", "means", "refusals"),
    [
        ("agx-orin-jetpack5", "orin-jp5", "engine", (VERSION, None, DEVICE, SM, PLATFORM)),
        ("agx-orin-jetpack6", "orin-jp6", "engine", (None, VERSION, DEVICE, SM, PLATFORM)),
        ("agx-orin-jetpack7", "recipe", "build", (VERSION, VERSION, DEVICE, SM, PLATFORM)),
        ("orin-nx-in-a-container", "recipe", "build", (DEVICE, DEVICE, DEVICE, SM, PLATFORM)),
        ("orin-nano", "nano-jp6", "engine", (DEVICE, DEVICE, None, SM, PLATFORM)),
        ("agx-xavier", "recipe", "build", (SM, SM, SM, SM, PLATFORM)),
        ("thor", "thor-jp7", "engine", (SM, SM, SM, None, PLATFORM)),
        ("rtx-4060", "rtx", "compatible-engine", (PLATFORM, PLATFORM, PLATFORM, PLATFORM, None)),
        ("no-gpu", "graph", "ort-cpu", ("driver-missing",) * 5),
        ("a-jetson-of-the-future", "graph", "ort-cpu", (DEVICE, DEVICE, DEVICE, DEVICE, PLATFORM)),
    ],
)
def test_the_engine_for_this_device_is_chosen_and_each_other_refused_with_its_code(
    name: str, served: str, means: str, refusals: tuple[str | None, ...], tmp_path: Path
) -> None:
    target = target_of(name, tmp_path)
    choice = choice_from(MODEL, rank(MODEL, target, trusted=True), ())
    assert (choice.variant.id, choice.means) == (served, means)
    codes = {refusal.variant: refusal.code for refusal in choice.refused}
    assert tuple(codes.get(engine) for engine in ENGINES) == refusals
    for refusal in choice.refused:
        assert refusal.code in REFUSAL_CODES
        # What is wrong; what to do about it.
        assert re.search(r"; |no CUDA driver", refusal.reason), refusal


@pytest.mark.parametrize("name", DEVICE_TREES)
def test_every_engine_is_refused_when_the_bundle_is_not_trusted(name: str, tmp_path: Path) -> None:
    ranking = rank(MODEL, target_of(name, tmp_path), trusted=False)
    refused = {refusal.variant: refusal.code for refusal in ranking.refused}
    assert {refused[engine] for engine in ENGINES} == {"not-trusted"}


HERE = Target(
    kind="jetson", arch="aarch64", name="NVIDIA Jetson Orin NX", device="orin-nx-8gb", sm="8.7",
    sm_count=8, memory_bytes=8 << 30, dla_cores=1, cuda="12.6", tensorrt="10.3.0",
)  # fmt: skip
FITS = jetson("orin-nx-8gb", "8.7", 8, "10.3.0.30")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"memory_bytes": 9 << 30}, "memory", "takes 9216 MiB, this device has 8192 MiB"),
        ({"dla_cores": 2}, "dla-missing", "uses 2 DLA cores, this device has 1"),
        ({"cuda": "13.0"}, "driver-too-old", "runs CUDA 13.0, this one runs 12.6"),
        ({"sm_count": 4}, "device-mismatch", r"\(4 SMs\), this is orin-nx-8gb \(8 SMs\)"),
        ({"runtime": "10.4.0.1"}, "version-mismatch", r"10\.4\.0\.1.*10\.3\.0 is installed"),
        ({"sms": ("7.2", "8.6")}, "sm-mismatch", "SM 7.2, 8.6.*SM 8.7"),
        ({"kind": "desktop"}, "platform-mismatch", "desktop aarch64.*jetson aarch64"),
    ],
)
def test_each_property_is_judged_alone(changes: dict, code: str, words: str) -> None:
    assert engine_mismatch(FITS, "trt", HERE) is None
    mismatch = engine_mismatch(replace(FITS, **changes), "trt", HERE)
    assert mismatch is not None
    assert mismatch.code == code
    assert re.search(words, mismatch.reason)


def test_layers_from_outside_tensorrt_must_be_registered() -> None:
    needs = replace(FITS, plugins=("MyLayer", "EfficientNMS_TRT"))
    here = replace(HERE, plugins=("EfficientNMS_TRT",))
    mismatch = engine_mismatch(needs, "trt", here)
    assert mismatch is not None
    assert mismatch.code == "plugin-missing"
    assert "MyLayer" in mismatch.reason
    assert "EfficientNMS" not in mismatch.reason
    assert engine_mismatch(needs, "trt", HERE) is None, "unknown: opening tells"


@pytest.mark.parametrize("field", ["sm", "sm_count", "memory_bytes", "tensorrt"])
def test_what_the_device_cannot_tell_is_left_to_opening(field: str) -> None:
    assert engine_mismatch(FITS, "trt", replace(HERE, **{field: None})) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.3.0", "10.3.0.30", True),
        ("10.3.0.30", "10.3.0.26", False),
        ("8.6.0", "8.6.1", False),
        ("10.3", "10.3.0", False),
        ("1.7.1.116", "1.7.1.116", True),
        ("", "", False),
    ],
)
def test_two_spellings_of_a_version_agree_as_far_as_both_go(
    one: str, other: str, same: bool
) -> None:
    assert same_version(one, other) is same


@pytest.mark.parametrize(
    ("tensorrt", "typed", "fits"),
    [
        ("8.5.2", False, True), ("8.5.2", True, False), ("10.3.0", False, True),
        ("10.13.3.9", True, True), ("10.13.3.9", False, False), ("11.4.0", None, True),
        ("8.5.2", None, True),
    ],
)  # fmt: skip
def test_a_graph_is_built_by_a_tensorrt_that_reads_precision_its_way(
    tensorrt: str, typed: bool | None, fits: bool
) -> None:
    recipe = Variant(id="r", backend="trt", precision="fp16", files=("g",), typed=typed)
    ways, mismatch = ways_to_run(
        recipe, replace(HERE, tensorrt=tensorrt), trusted=True, may_build=True
    )
    assert ways == (("build",) if fits else ())
    assert (mismatch is None) == fits
    assert mismatch is None or mismatch.code == "version-mismatch"
