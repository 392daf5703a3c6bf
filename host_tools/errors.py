"""Errors of the host tools; the tree's root is edge.errors.EdgeError."""

from __future__ import annotations

from edge.errors import EdgeError

# What a library, or a user's model, raises when it cannot do its work. Exceptions that mean
# something else (KeyboardInterrupt, SystemExit, MemoryError, our own errors) pass through.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class ExportError(EdgeError):
    """A model cannot be loaded, traced or written as ONNX."""

    code = "export"


class ParityError(ExportError):
    """The exported model gives other numbers than its source."""

    code = "parity"


class TrainingError(EdgeError):
    """A training run fails, or its data do not fit the model."""

    code = "training"


def root_cause(error: BaseException) -> str:
    """Return the innermost cause of an error in one line: type and first line of its text."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class RegistryError(EdgeError):
    """The model registry cannot be reached, or refuses."""

    code = "registry"
