"""Content-addressed files of a bundle in the making."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from edge.bundle import blob_path
from edge.files import sha256_of
from edge.manifest import Artifact

EXTERNAL_BYTES = 1024
PAGE_BYTES = 4096
# A file of weights that is not changed is not fetched again, and each costs a line of metadata.
PIECE_BYTES = 256 << 10
MAX_PIECES = 256
# Integers stay inside the graph: shape inference reads shapes and axes there and nowhere else.
WEIGHT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8}
)


class BlobStore:
    """Writes blobs below a bundle folder and remembers the Artifact of each."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._artifacts: dict[str, Artifact] = {}
        blob_path(root, "0" * 64).parent.mkdir(parents=True)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Everything added, sorted by path."""
        return tuple(self._artifacts[path] for path in sorted(self._artifacts))

    def artifact(self, path: str) -> Artifact:
        """Return what was added under a path."""
        return self._artifacts[path]

    def add(self, path: str, content: bytes) -> Artifact:
        """Store content under its digest and list it under path."""
        digest = hashlib.sha256(content).hexdigest()
        blob_path(self._root, digest).write_bytes(content)
        artifact = Artifact(path=path, size=len(content), sha256=digest)
        self._artifacts[path] = artifact
        return artifact

    def add_file(self, path: str, file: Path) -> Artifact:
        """Move a file that is on the bundle's file system under its digest, and list it."""
        digest, size = sha256_of(file)
        file.replace(blob_path(self._root, digest))
        artifact = Artifact(path=path, size=size, sha256=digest)
        self._artifacts[path] = artifact
        return artifact

    def add_model(self, path: str, model: onnx.ModelProto) -> tuple[str, ...]:
        """Store a model as a small graph and files of weights; return the paths, graph first.

        The graph names the weights by their digests, in the same folder, so that ONNX Runtime maps
        them into memory instead of copying them, and the graph's digest covers the weights too.
        They lie in several files, so that a model with another head shares those of the backbone.
        """
        lean = onnx.ModelProto()
        lean.CopyFrom(model)
        large = [
            tensor
            for tensor in lean.graph.initializer
            if tensor.data_type in WEIGHT_TYPES and _nbytes(tensor) >= EXTERNAL_BYTES
        ]
        pieces = _pieces(large)
        names = [
            f"{path}.weights" + (f".{n}" if len(pieces) > 1 else "") for n in range(len(pieces))
        ]
        for name, tensors in zip(names, pieces, strict=True):
            self._add_weights(name, tensors)
        self.add(path, lean.SerializeToString())
        return (path, *names)

    def _add_weights(self, name: str, tensors: list[TensorProto]) -> None:
        """Store the values of tensors in one file, and leave its digest in their place."""
        weights = bytearray()
        places = []
        for tensor in tensors:
            weights += b"\0" * (-len(weights) % PAGE_BYTES)
            places.append((len(weights), len(tensor.raw_data)))
            weights += tensor.raw_data
        file = self.add(name, bytes(weights))
        for tensor, (offset, length) in zip(tensors, places, strict=True):
            external_data_helper.set_external_data(
                tensor, location=file.sha256, offset=offset, length=length
            )
            tensor.ClearField("raw_data")


def _pieces(tensors: list[TensorProto]) -> list[list[TensorProto]]:
    """Return tensors in groups, in their order: large ones alone, small ones together.

    Sizes alone decide, so that two models with the same backbone have the same groups.
    """
    limit = max(PIECE_BYTES, sum(len(tensor.raw_data) for tensor in tensors) // MAX_PIECES)
    pieces: list[list[TensorProto]] = []
    size = limit
    for tensor in tensors:
        size += len(tensor.raw_data)
        if size > limit:
            pieces.append([])
            size = len(tensor.raw_data)
        pieces[-1].append(tensor)
    return pieces


def _nbytes(tensor: TensorProto) -> int:
    """Return the size of a tensor's values, first moving them to raw_data where they are not."""
    if not tensor.HasField("raw_data"):
        raw = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
        tensor.CopyFrom(raw)
    return len(tensor.raw_data)
