from __future__ import annotations

import numpy as np
import pytest

from calibration.calibrate import ranges_of_all
from calibration.collect import observe
from calibration.errors import CalibrationError
from calibration.graph import prepared
from calibration.parts import reader_for
from calibration.runtime import run_exposing
from calibration.samples import open_samples
from calibration.trt_cache import cache_from_ranges, ranges_from_cache
from tests.calibration.nets import conv_net, write_samples


def test_the_cache_has_the_form_that_tensorrt_writes() -> None:
    # 1.0 is 3f800000, 0.0078125 is 3c000000 (IEEE 754 binary32).
    content = cache_from_ranges({"image": 127.0, "/conv/Conv_output_0": 127 / 128, "dead": 0.0})
    assert content == (
        b"TRT-8600-EntropyCalibration2\nimage: 3f800000\n/conv/Conv_output_0: 3c000000\n"
    )


def test_ranges_survive_the_way_through_a_cache() -> None:
    ranges = {"a": 0.1, "b: c".replace(": ", ":"): 3e5, "d": 1e-20}
    read = ranges_from_cache(cache_from_ranges(ranges, version="10300"))
    assert read == pytest.approx(ranges, rel=1e-6)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"x: 3f800000\n", b"TRT-8600-E\na: 3f80\n", b"TRT-1-E\nword\n"]
)
def test_what_is_no_cache_is_refused(content: bytes) -> None:
    with pytest.raises(CalibrationError, match="no TensorRT calibration cache"):
        ranges_from_cache(content)


def test_a_name_that_would_break_a_line_is_refused() -> None:
    with pytest.raises(CalibrationError, match="cannot hold"):
        cache_from_ranges({"a\nb": 1.0})


def test_every_float_tensor_gets_a_range(tmp_path) -> None:
    samples = open_samples(write_samples(tmp_path / "s.npz", 100))
    model = prepared(conv_net())
    ranges = ranges_of_all(model, samples, method="minmax", progress=lambda *_: None)
    names = [name for node in model.graph.node for name in node.output]
    assert set(ranges) == {"x", *names}
    images = np.load(tmp_path / "s.npz")["x"][:80]
    seen = run_exposing(model, {"x": images}, ["x", *names])
    for name, amax in ranges.items():
        assert amax == pytest.approx(float(np.abs(seen[name]).max()), rel=1e-6)


@pytest.mark.parametrize("pass_bytes", [1, 16 * 3 * 8 * 8 * 4 * 4, 1 << 30])
def test_observing_in_several_passes_gives_what_one_pass_gives(tmp_path, pass_bytes: int) -> None:
    samples = open_samples(write_samples(tmp_path / "s.npz", 64))
    model = prepared(conv_net())
    part = reader_for(model, 16).part(samples, 0, 64)
    tensors, steps = ("x", "r1", "a", "logits"), []
    found = observe(model, tensors, part, lambda *step: steps.append(step), pass_bytes=pass_bytes)
    whole = observe(model, tensors, part, lambda *_: None)
    for name in tensors:
        assert found[name].amax == whole[name].amax
        np.testing.assert_array_equal(found[name].counts, whole[name].counts)
    passes = {1: 4, 1 << 30: 1}.get(pass_bytes)
    assert passes is None or steps[-1][1:] == (passes * 64, passes * 64)
