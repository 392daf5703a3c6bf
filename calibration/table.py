"""CalibrationTable: the stored result of a calibration, as JSON beside the quantized model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from calibration.cost import Cost
from calibration.errors import CalibrationError, GraphError
from edge.errors import UsageError
from edge.files import atomic_write, read_capped, sha256_of
from edge.manifest import Accuracy

TABLE_SCHEMA = 1
MAX_TABLE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedFile:
    """One quantized model: the digest of its file, and how it compares with fp32."""

    sha256: str
    accuracy: Accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTable:
    """Ranges of every quantized activation, what they were made from, and what they cost.

    amax: clipping range per activation tensor; its int8 scale is amax / 127, uint8 amax / 255.
    sqnr_db: signal to quantization noise of the outputs per method that was tried. gains_db: what
    equalized channels and corrected biases brought, where they were kept. cost: predicted, of one
    run with a batch of the samples.
    kept_float: compute node to the reason why it is not int8. sensitivity_db: SQNR of the outputs
    with a node alone in int8, where a budget asked for it.
    model_sha256: the float model that was calibrated.
    tensorrt, ort: the two quantized models that were written.
    """

    schema: int = TABLE_SCHEMA
    method: str
    samples: int
    data_sha256: str
    model_sha256: str
    amax: dict[str, float]
    sqnr_db: dict[str, float]
    gains_db: dict[str, float]
    cost: Cost
    kept_float: dict[str, str]
    sensitivity_db: dict[str, float]
    tensorrt: QuantizedFile
    ort: QuantizedFile


def ort_path(int8_model: Path) -> Path:
    """Return where the form for ONNX Runtime lies: beside the TensorRT form, in .ort.onnx."""
    return int8_model.with_suffix(".ort.onnx")


def table_path(int8_model: Path) -> Path:
    """Return where the table of a quantized model lies: beside it, ending in .calibration.json."""
    return int8_model.with_suffix(".calibration.json")


def save_table(table: CalibrationTable, path: Path) -> None:
    """Write the table atomically, in a form that diffs well."""
    compact = msgspec.json.encode(table, order="sorted")
    atomic_write(path, msgspec.json.format(compact, indent=1) + b"\n")


def load_table(path: Path) -> CalibrationTable:
    """Return the table at path; raises UsageError if missing, CalibrationError if malformed."""
    if not path.is_file():
        raise UsageError(f"no calibration table at {path}; `edge-kit calibrate` writes it")
    content = read_capped(path, max_bytes=MAX_TABLE_BYTES, follow_links=True)
    try:
        table = msgspec.json.decode(content, type=CalibrationTable)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CalibrationError(f"{path} is malformed: {error}; calibrate again") from error
    if table.schema != TABLE_SCHEMA:
        raise CalibrationError(f"{path} has schema {table.schema}, this kit reads {TABLE_SCHEMA}")
    return table


def check_lineage(fp32: Path, int8: Path, table: CalibrationTable) -> None:
    """Raise GraphError unless the table names exactly these models."""
    for path, digest in (
        (fp32, table.model_sha256),
        (int8, table.tensorrt.sha256),
        (ort_path(int8), table.ort.sha256),
    ):
        if sha256_of(path, follow_links=True)[0] != digest:
            raise GraphError(
                f"{path} is not the file that the calibration table of {int8} names; "
                "run `edge-kit calibrate` again on the float model that you pack"
            )
