from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edge import manifest as m
from edge.errors import BundleError, SelfTestError
from edge.manifest import Precision
from edge.self_test import SelfTest, relative_error, run_self_test
from edge.tensor_bytes import object_array
from tests.bundles import affine_parts, golden_tensors
from tests.models import affine

MANIFEST, FILES = affine_parts()
MODEL = MANIFEST.models[0]


def run(
    compute: Callable[[np.ndarray], dict[str, np.ndarray]] = affine, precision: Precision = "int8"
) -> SelfTest:
    return run_self_test(
        MODEL, precision, infer=lambda feeds: compute(feeds["x"]), read=FILES.__getitem__
    )


def scaled(factor: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda x: {name: array * np.float32(factor) for name, array in affine(x).items()}


def test_a_faithful_model_passes_with_its_measured_error() -> None:
    result = run()
    assert (result.cases, result.relative_error, result.tolerance) == (1, 0.0, 0.1)


def test_the_tolerance_is_that_of_the_precision() -> None:
    # Every value 1 % too large is a relative error of 0.01.
    assert run(scaled(1.01), "int8").relative_error == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(SelfTestError, match=r"'y' is off by 1\.00e-02 .* fp32 allows 1\.00e-05"):
        run(scaled(1.01), "fp32")


def test_nan_never_passes() -> None:
    with pytest.raises(SelfTestError, match="off by nan"):
        run(lambda x: {**affine(x), "s": np.full(len(x), np.nan, np.float32)})


def test_infinity_never_passes() -> None:
    with pytest.raises(SelfTestError, match="off by inf"):
        run(lambda x: {**affine(x), "s": np.full(len(x), np.inf, np.float32)})


def test_strings_instead_of_numbers_never_pass() -> None:
    with pytest.raises(SelfTestError, match="off by inf"):
        run(lambda x: {**affine(x), "s": object_array([b"1.0"] * len(x), (len(x),))})


@pytest.mark.parametrize("outputs", [{}, {"y": np.zeros((1, 4), np.float32)}])
def test_a_missing_or_misshapen_output_fails(outputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(SelfTestError, match="shape"):
        run(lambda x: outputs)


@pytest.mark.parametrize("size", [0, 4, 31, 33])
def test_a_golden_file_of_another_size_names_itself(size: int) -> None:
    files = {**FILES, "affine/golden/0/out/y.bin": bytes(size)}
    with pytest.raises(BundleError, match=rf"golden/0/out/y\.bin holds {size} bytes"):
        run_self_test(MODEL, "int8", infer=lambda feeds: affine(feeds["x"]), read=files.__getitem__)


def run_on_words(words: list[bytes]) -> SelfTest:
    golden = object_array([b"cat", b"dog", "grün".encode()], (3, 1))
    files: dict[str, bytes] = {}
    tensors = golden_tensors("words", {"y": golden}, files)
    case = m.GoldenCase(inputs=(), outputs=tensors)
    model = replace(MODEL, golden=replace(MODEL.golden, cases=(case,)))
    outputs = {"y": object_array(words, (len(words), 1))}
    return run_self_test(model, "int8", infer=lambda feeds: outputs, read=files.__getitem__)


def test_strings_must_be_equal_whatever_the_precision_allows() -> None:
    assert run_on_words([b"cat", b"dog", "grün".encode()]).relative_error == 0.0
    with pytest.raises(SelfTestError, match="'y' differs in 1 of 3 strings"):
        run_on_words([b"cat", b"dog", b"green"])
    with pytest.raises(SelfTestError, match=r"the shape \[2, 1\]"):
        run_on_words([b"cat", b"dog"])


def test_every_case_is_run() -> None:
    twice = replace(MODEL, golden=replace(MODEL.golden, cases=MODEL.golden.cases * 2))
    seen = []
    run_self_test(
        twice,
        "int8",
        infer=lambda feeds: seen.append(1) or affine(feeds["x"]),
        read=FILES.__getitem__,
    )
    assert len(seen) == 2


def test_relative_error_is_in_the_norm_of_the_golden_values() -> None:
    golden = np.array([3.0, 4.0])
    assert relative_error(np.array([3.0, 4.5]), golden) == pytest.approx(0.1)
    assert relative_error(np.array([0.0, 0.5]), np.zeros(2)) == pytest.approx(0.5)
    assert relative_error(np.array([250, 4]), np.array([255, 4])) == pytest.approx(5 / 255.03, 1e-3)
