"""What Python does not offer of the C library; all of it does nothing where there is none."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

# Where fenv_t holds the register (in 32-bit words), and the bits that make results and operands
# of less than 1.2e-38 zero: MXCSR's FTZ and DAZ, FPCR's FZ.
_FLUSH = {"x86_64": (7, 1 << 15 | 1 << 6), "aarch64": (0, 1 << 24)}
_FENV_WORDS = 8


class FlushedDenormals:
    """A context in which the calling thread computes without denormal numbers.

    Each operation on one of them takes x86 a hundred cycles or more, and a softmax makes one of
    every score that is masked. One thread at a time may use an instance.
    """

    def __init__(self) -> None:
        self._library = _library("fegetenv", "fesetenv")
        self._word, self._bits = _FLUSH.get(platform.machine(), (0, 0))
        self._before = (ctypes.c_uint32 * _FENV_WORDS)()
        self._inside = (ctypes.c_uint32 * _FENV_WORDS)()

    def __enter__(self) -> None:
        """Remember how the thread computes, and change it."""
        if self._library is not None and self._bits:
            self._library.fegetenv(self._before)
            self._inside[:] = self._before
            self._inside[self._word] |= self._bits
            self._library.fesetenv(self._inside)

    def __exit__(self, *_: object) -> None:
        """Let the thread compute as before."""
        if self._library is not None and self._bits:
            self._library.fesetenv(self._before)


def return_free_memory() -> None:
    """Give the system back what was freed and is kept between what is in use."""
    library = _library("malloc_trim")
    if library is not None:
        library.malloc_trim(0)


def _library(*functions: str) -> Any:
    """Return what this process has loaded if it has all these functions, else None."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # not a POSIX system
        return None
    return library if all(hasattr(library, name) for name in functions) else None
