from dataclasses import replace

import pytest

from edge.choice import Choice, Refusal, choose
from edge.errors import BackendUnavailableError, ConfigError, SelfTestError
from edge.manifest import Backend, Model, Preference, Variant
from tests.bundles import affine_parts


def variant(id_: str, backend: Backend = "ort") -> Variant:
    return Variant(id=id_, backend=backend, precision="fp32", files=("g",))


def model(*variants: Variant, prefer: dict[Backend, str] | None = None) -> Model:
    preferences = tuple(
        Preference(backend=backend, variant=id_, why=f"{id_} was faster")
        for backend, id_ in (prefer or {}).items()
    )
    base = affine_parts()[0].models[0]
    return replace(base, variants=variants, preferences=preferences)


def everything(_: Backend) -> str | None:
    return None


def only_ort(backend: Backend) -> str | None:
    return None if backend == "ort" else f"{backend} is not here; install it"


def codes(choice: Choice) -> dict[str, str]:
    return {refusal.variant: refusal.code for refusal in choice.refused}


INT8, FP32 = variant("int8"), variant("fp32")
TRT = variant("engine", "trt")


def test_the_manifest_preference_decides_and_its_reason_is_kept() -> None:
    choice = choose(model(INT8, FP32, prefer={"ort": "fp32"}), available=everything, forced=None)
    assert choice.variant == FP32
    assert choice.why == "fp32 was faster"
    assert codes(choice) == {"int8": "not-preferred"}
    assert "set `variant` to 'int8'" in choice.refused[0].reason


def test_without_a_preference_the_first_variant_is_served_and_the_reason_says_so() -> None:
    choice = choose(model(INT8, FP32), available=everything, forced=None)
    assert choice.variant == INT8
    assert "first ort variant" in choice.why


def test_a_gpu_backend_wins_where_it_is_available() -> None:
    served = model(INT8, FP32, TRT, prefer={"ort": "int8"})
    assert choose(served, available=everything, forced=None).variant == TRT


def test_an_unavailable_backend_is_refused_with_its_reason() -> None:
    choice = choose(
        model(TRT, INT8, FP32, prefer={"trt": "engine", "ort": "int8"}),
        available=only_ort,
        forced=None,
    )
    assert choice.variant == INT8
    assert codes(choice) == {"engine": "backend-unavailable", "fp32": "not-preferred"}
    assert choice.refused[0].reason == "trt is not here; install it"


def test_a_forced_variant_beats_the_preference() -> None:
    served = model(TRT, INT8, FP32, prefer={"ort": "int8"})
    choice = choose(served, available=everything, forced="fp32")
    assert choice.variant == FP32
    assert codes(choice) == {"engine": "not-forced", "int8": "not-forced"}


def test_forcing_an_unknown_variant_is_a_configuration_error_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="int8, fp32"):
        choose(model(INT8, FP32), available=everything, forced="int4")


def test_a_variant_that_failed_is_listed_and_the_next_one_chosen() -> None:
    failed = Refusal(variant="int8", code="self-test-failed", reason="off by 0.5")
    choice = choose(
        model(INT8, FP32, prefer={"ort": "int8"}),
        available=everything,
        forced=None,
        failed=(failed,),
    )
    assert choice.variant == FP32
    assert choice.refused == (failed,)
    assert "'int8' was refused" in choice.why


def test_a_forced_variant_that_failed_is_not_replaced() -> None:
    failed = Refusal(variant="int8", code="self-test-failed", reason="off by 0.5")
    with pytest.raises(SelfTestError, match=r"off by 0\.5"):
        choose(model(INT8, FP32), available=everything, forced="int8", failed=(failed,))


def test_no_usable_backend_is_an_environment_error_with_every_reason() -> None:
    with pytest.raises(BackendUnavailableError, match="trt is not here; install it"):
        choose(model(TRT), available=only_ort, forced=None)


def test_every_other_variant_is_refused_once_in_manifest_order() -> None:
    served = model(TRT, INT8, FP32, variant("fp16"), prefer={"ort": "fp32"})
    choice = choose(served, available=only_ort, forced=None)
    assert [refusal.variant for refusal in choice.refused] == ["engine", "int8", "fp16"]
