from dataclasses import replace

import pytest

from edge.choice import Choice, Refusal, choice_from, promises_gpu, rank
from edge.errors import BackendUnavailableError, ConfigError, ModelError, SelfTestError
from edge.manifest import Backend, EngineFacts, Model, Precision, Preference, Variant
from edge.matching import Means
from edge.target import Target
from tests.bundles import affine_parts

CPU = Target(kind="cpu", arch="x86_64", name="no GPU", onnxruntime="1.23.2", cuda_problem="no GPU")
CARD = Target(
    kind="desktop", arch="x86_64", name="NVIDIA GeForce RTX 4060", device="rtx-4060", sm="8.9",
    sm_count=24, memory_bytes=8 << 30, cuda="12.4", tensorrt="10.3.0", onnxruntime="1.23.2",
    onnxruntime_cuda=True,
)  # fmt: skip
FACTS = EngineFacts(
    device="rtx-4060", kind="desktop", arch="x86_64", runtime="10.3.0", sms=("8.9",),
    portable=False, sm_count=24,
)  # fmt: skip


def variant(
    id_: str,
    backend: Backend = "ort",
    precision: Precision = "fp32",
    engine: EngineFacts | None = None,
) -> Variant:
    return Variant(id=id_, backend=backend, precision=precision, files=("g",), engine=engine)


INT8, FP32 = variant("int8", precision="int8"), variant("fp32")
ENGINE, RECIPE = variant("engine", "trt", "fp16", FACTS), variant("recipe", "trt", "int8")


def model(*variants: Variant, prefer: dict[Backend, str] | None = None) -> Model:
    preferences = tuple(
        Preference(backend=backend, variant=id_, why=f"{id_} was faster")
        for backend, id_ in (prefer or {}).items()
    )
    base = affine_parts()[0].models[0]
    return replace(base, variants=variants, preferences=preferences)


def choose(
    served: Model,
    target: Target = CPU,
    *,
    failed: tuple[Refusal, ...] = (),
    forced: str | None = None,
    may_build: bool = True,
    trusted: bool = True,
) -> Choice:
    ranking = rank(served, target, trusted=trusted, may_build=may_build, forced=forced)
    return choice_from(served, ranking, failed)


def failure(id_: str, means: Means = "ort-cpu", code: str = "self-test-failed") -> Refusal:
    return Refusal(variant=id_, means=means, code=code, reason="off by 0.5")


def codes(choice: Choice) -> list[tuple[str, str]]:
    return [(refusal.variant, refusal.code) for refusal in choice.refused]


def test_the_manifest_preference_decides_and_its_reason_is_kept() -> None:
    choice = choose(model(INT8, FP32, prefer={"ort": "fp32"}))
    assert choice.variant == FP32
    assert choice.why.endswith("fp32 was faster")
    assert codes(choice) == [("int8", "not-preferred")]
    assert "set `variant` to 'int8'" in choice.refused[0].reason


def test_without_a_preference_the_lowest_precision_is_served() -> None:
    assert choose(model(FP32, INT8)).variant == INT8


def test_the_order_is_engine_then_build_then_onnx_runtime_on_the_gpu_then_on_the_cpu() -> None:
    served = model(FP32, RECIPE, ENGINE)
    ranking = rank(served, CARD, trusted=True)
    assert [(c.variant.id, c.means) for c in ranking.candidates] == [
        ("engine", "engine"), ("recipe", "build"), ("fp32", "ort-cuda"), ("fp32", "ort-cpu"),
    ]  # fmt: skip
    failed: tuple[Refusal, ...] = ()
    for candidate in ranking.candidates:
        choice = choice_from(served, ranking, failed)
        assert (choice.variant, choice.means) == (candidate.variant, candidate.means)
        assert choice.on_gpu == (candidate.means != "ort-cpu")
        failed += (failure(choice.variant.id, choice.means, "open-failed"),)
    with pytest.raises(ModelError, match=r"engine: off by 0\.5.*fp32: off by 0\.5"):
        choice_from(served, ranking, failed)


def test_a_portable_engine_of_the_same_sm_comes_before_a_build() -> None:
    other = variant("other", "trt", "fp16", replace(FACTS, device="rtx-4070", portable=True))
    choice = choose(model(RECIPE, other), CARD)
    assert (choice.variant, choice.means) == (other, "compatible-engine")
    assert "SM of this device" in choice.why


def test_a_device_that_may_not_build_says_so() -> None:
    choice = choose(model(RECIPE, FP32), replace(CARD, onnxruntime_cuda=False), may_build=False)
    assert choice.variant == FP32
    assert codes(choice) == [("recipe", "build-disabled")]


def test_an_engine_of_an_unsigned_bundle_is_never_opened() -> None:
    choice = choose(model(ENGINE, RECIPE), CARD, trusted=False)
    assert choice.variant == RECIPE
    assert codes(choice) == [("engine", "not-trusted")]


def test_without_a_driver_the_driver_is_named_not_the_library() -> None:
    choice = choose(model(ENGINE, RECIPE, FP32))
    assert choice.variant == FP32
    assert [r.code for r in choice.refused] == ["driver-missing", "driver-missing"]
    assert choice.refused[0].reason == "no GPU"


def test_a_missing_library_is_refused_with_the_command_that_installs_it() -> None:
    choice = choose(model(RECIPE, FP32), replace(CARD, tensorrt=None))
    assert codes(choice) == [("recipe", "backend-unavailable")]
    assert "apt install python3-libnvinfer" in choice.refused[0].reason


def test_a_forced_variant_beats_the_preference() -> None:
    choice = choose(model(ENGINE, INT8, FP32, prefer={"ort": "int8"}), CARD, forced="fp32")
    assert choice.variant == FP32
    assert codes(choice) == [("engine", "not-forced"), ("int8", "not-forced")]


def test_forcing_an_unknown_variant_is_a_configuration_error_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="int8, fp32"):
        choose(model(INT8, FP32), forced="int4")


def test_a_variant_that_failed_is_listed_and_the_next_one_chosen() -> None:
    failed = failure("int8")
    choice = choose(model(INT8, FP32, prefer={"ort": "int8"}), failed=(failed,))
    assert choice.variant == FP32
    assert choice.refused == (failed,)


def test_a_forced_variant_that_failed_is_not_replaced() -> None:
    with pytest.raises(SelfTestError, match=r"off by 0\.5"):
        choose(model(INT8, FP32), forced="int8", failed=(failure("int8"),))


def test_no_usable_backend_is_an_environment_error_with_every_reason() -> None:
    with pytest.raises(BackendUnavailableError, match="engine: no GPU"):
        choose(model(ENGINE))


def test_every_other_variant_is_refused_in_manifest_order() -> None:
    choice = choose(model(ENGINE, INT8, FP32, variant("fp16", precision="fp16")))
    assert [refusal.variant for refusal in choice.refused] == ["engine", "fp32", "fp16"]


def test_a_model_with_a_tensorrt_variant_promises_a_gpu() -> None:
    assert promises_gpu(model(FP32, RECIPE))
    assert not promises_gpu(model(FP32, INT8))
