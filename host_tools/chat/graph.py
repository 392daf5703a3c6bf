"""One ONNX graph in the making: nodes in memory, weights straight to a file beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, external_data_helper, helper

from host_tools.chat.weights import cast

PAGE_BYTES = 4096  # weights begin at pages, so that they can be mapped into memory
ITEM_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.INT4: 4,
}
_ONNX_FROM_NUMPY = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int64): TensorProto.INT64,
}


class WeightFile:
    """Appends weights to an open file, which a graph then names as `location`."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file = file
        self._location = location
        self._end = 0

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._end

    def add(
        self, name: str, datatype: int, shape: tuple[int, ...], parts: Iterable[npt.NDArray[Any]]
    ) -> TensorProto:
        """Write the values, given as arrays whose bytes follow each other; return the tensor."""
        padding = -self._end % PAGE_BYTES
        self._file.write(b"\0" * padding)
        offset = self._end = self._end + padding
        for part in parts:
            self._file.write(np.ascontiguousarray(part).data)
            self._end += part.nbytes
        length = self._end - offset
        if length * 8 != int(np.prod(shape, dtype=np.int64)) * ITEM_BITS[datatype]:
            raise AssertionError(f"{name}: {length} bytes do not make {shape}")
        tensor = TensorProto(name=name, data_type=datatype, dims=shape, raw_data=b"")
        external_data_helper.set_external_data(
            tensor, location=self._location, offset=offset, length=length
        )
        tensor.ClearField("raw_data")
        return tensor


class Graph:
    """Nodes in the order in which they run; every tensor is known by its name.

    half: whether floats are FP16. weights: where large constants go.
    """

    def __init__(self, *, opset: int, half: bool, weights: WeightFile) -> None:
        self.opset = opset
        self.half = half
        self.weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    @property
    def float_type(self) -> int:
        """The ONNX type of activations."""
        return int(TensorProto.FLOAT16 if self.half else TensorProto.FLOAT)

    @property
    def float_dtype(self) -> np.dtype[Any]:
        """The numpy type of activations."""
        return np.dtype(np.float16 if self.half else np.float32)

    def input(self, name: str, datatype: int, shape: tuple[int | str, ...]) -> str:
        """Declare an input and return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, datatype, shape))
        return name

    def output(self, name: str, datatype: int, shape: tuple[int | str, ...]) -> None:
        """Declare an output, which a node gives."""
        self._outputs.append(helper.make_tensor_value_info(name, datatype, shape))

    def add(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output, which has the node's name; return it."""
        return self.add_many(op, *inputs, name=name, outputs=(name,), **attributes)[0]

    def add_many(
        self, op: str, *inputs: str, name: str, outputs: tuple[str, ...], **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs; return their names."""
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs

    def ints(self, *values: int) -> str:
        """Return a constant INT64 vector; equal ones are one."""
        return self.constant(np.array(values, np.int64))

    def index(self, value: int) -> str:
        """Return a constant INT64 scalar."""
        return self.constant(np.array(value, np.int64))

    def number(self, value: float) -> str:
        """Return a constant scalar of the activations' type."""
        return self.constant(np.array(value, self.float_dtype))

    def constant(self, array: npt.NDArray[Any]) -> str:
        """Return a small constant that stays inside the graph; equal ones are one."""
        content = array.tobytes()  # not ascontiguousarray, which makes vectors of scalars
        key = (array.dtype.str, array.shape, content)
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(
                TensorProto(
                    name=name,
                    data_type=_ONNX_FROM_NUMPY[array.dtype],
                    dims=array.shape,
                    raw_data=content,
                )
            )
        return self._constants[key]

    def weight(
        self, name: str, datatype: int, shape: tuple[int, ...], parts: Iterable[npt.NDArray[Any]]
    ) -> str:
        """Write a constant to the weight file and return its name; see `WeightFile.add`."""
        self._initializers.append(self.weights.add(name, datatype, shape, parts))
        return name

    def floats(self, name: str, array: npt.NDArray[Any]) -> str:
        """Write a constant of the activations' type and return its name."""
        array = cast(array, self.float_dtype, name)
        return self.weight(name, self.float_type, array.shape, [array])

    def model(self, *, producer: str, version: str) -> onnx.ModelProto:
        """Return the model as far as it was described."""
        graph = helper.make_graph(
            self._nodes, "chat", self._inputs, self._outputs, self._initializers
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name=producer,
            producer_version=version,
        )
