"""Build engines of a layered model, each kept beside its graph.

python -m tests.gpu.chat_build FOLDER [PIECE.onnx...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge.chat.layered import layered_model_from_folder
from edge.chat.trt_piece import build_pieces
from edge.tensorrt_library import load_tensorrt


def main(folder: Path, names: list[str]) -> None:
    model, library = layered_model_from_folder(folder), load_tensorrt("trt")
    cache = b""
    for piece in model.pieces:
        if names and piece.file not in names:
            continue
        built = build_pieces(model, folder, library, timing_cache=cache, pieces=(piece,))[piece]
        cache = built.timing_cache
        (folder / piece.file).with_suffix(".engine").write_bytes(built.plan)
        size = len(built.plan) / 1e6
        print(f"built {folder.name}/{piece.file}: {built.seconds:.1f} s, {size:.2f} MB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
