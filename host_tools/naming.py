"""What a bundle may be called, refused before anything is made for it."""

from __future__ import annotations

from edge.errors import UsageError
from edge.manifest import is_plain_name, problem_with_version


def check_names(name: str, version: str) -> None:
    """Raise UsageError unless devices take a bundle of this name and version."""
    if not is_plain_name(name):
        raise UsageError(
            f"--name {name[:140]!r}: use 1 to 128 letters, digits, '.', '-' and '_' only"
        )
    problem = problem_with_version(version)
    if problem is not None:
        raise UsageError(f"--bundle-version {problem}; give any short text, such as 1 or 2026-11")
