"""TensorRT-RTX as an outside judge of the quantized graphs: it parses and builds without a GPU."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.model_file import profile_from_model
from calibration.qdq import with_stored_int8
from tests.calibration.nets import conv_net, quantized, shared_input_net

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only"
)
ARCHITECTURES = ["SM86", "SM89", "SM120"]


@pytest.fixture(scope="module")
def trt() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


@pytest.fixture(scope="module")
def logger(trt: Any) -> Any:
    return trt.Logger(trt.Logger.ERROR)


def problems(trt: Any, logger: Any, model: onnx.ModelProto, architecture: str) -> list[str]:
    """Parse and build the model for one GPU architecture; return what the parser said."""
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, architecture), 0)
    profile = builder.create_optimization_profile()
    for name, bounds in profile_from_model(model).ranges.items():
        profile.set_shape(name, bounds.min, bounds.opt, bounds.max)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return [] if engine is not None and engine.nbytes > 0 else ["no engine was built"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_explicit_qdq_builds(trt: Any, logger: Any, make: Any, architecture: str) -> None:
    assert problems(trt, logger, quantized(make()), architecture) == []


@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_weights_stored_as_int8_build(trt: Any, logger: Any, make: Any) -> None:
    assert problems(trt, logger, with_stored_int8(quantized(make())), "SM89") == []


def test_the_judge_refuses_a_nonzero_zero_point(trt: Any, logger: Any) -> None:
    model = quantized(conv_net())
    zero = next(t for t in model.graph.initializer if t.name == "x/int8_zero_point")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.int8), zero.name))
    assert "zero point" in " ".join(problems(trt, logger, model, "SM89"))
