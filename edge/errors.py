"""The error tree: every failure a user can meet, each with a stable code.

A message says what happened, to which object, and what to do next.
`api` maps codes to HTTP status, `cli` uses `exit_code`; nothing else interprets an error.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def os_reason(error: OSError) -> str:
    """Return why the system refused, in lower case."""
    return (error.strerror or str(error)).lower()


class EdgeError(Exception):
    """Base of all errors that are reported to a user in one line."""

    code = "error"
    exit_code = 1


class ConfigError(EdgeError):
    """A flag, environment variable or configuration key is unknown or has a bad value."""

    code = "config"
    exit_code = 2


class UsageError(EdgeError):
    """A command was called with arguments that cannot work together, or with a missing file."""

    code = "usage"
    exit_code = 2


class BackendUnavailableError(EdgeError):
    """A library or device that the operation needs is not there."""

    code = "backend-unavailable"
    exit_code = 3


class NoAgentError(EdgeError):
    """Nobody answers HTTP at an address."""

    code = "no-agent"
    exit_code = 3


class StorageError(EdgeError):
    """Reading or writing a file failed: full disk, permission, missing directory."""

    code = "storage"


class SpaceError(StorageError):
    """There is not enough free disk space for a bundle."""

    code = "space"


class SlotsError(EdgeError):
    """The slots are not in a state in which this can be done."""

    code = "slots"


class SlotsBusyError(SlotsError):
    """Another process is changing the slots; the message names it."""

    code = "slots-busy"


class RefusedBundleError(SlotsError):
    """A bundle was rolled back on this device before, and nobody asked for it again."""

    code = "refused-bundle"


class InstallCancelledError(SlotsError):
    """A rollback came while the bundle was being installed."""

    code = "cancelled"


class CaptureError(EdgeError):
    """Requests could not be recorded or sent again, or a file of them cannot be read."""

    code = "capture"


class BundleError(EdgeError):
    """A bundle is incomplete, altered or malformed; the message names the file."""

    code = "bundle"


class TrustError(BundleError):
    """A bundle is unsigned, signed by an unknown key, or its signature does not match."""

    code = "trust"


class UnknownKeyError(TrustError):
    """A bundle is signed, but by a key that is not trusted here."""

    code = "unknown-key"


class ChannelError(EdgeError):
    """A channel's metadata, or what it offers, was refused; what is served stays."""

    code = "channel"


class FreshnessError(ChannelError):
    """A channel cannot prove that it is current: it expired, or does not answer in time."""

    code = "freshness"
    exit_code = 3


class ModelError(EdgeError):
    """A model file cannot be opened or used by this backend."""

    code = "model"


class BuildError(ModelError):
    """TensorRT cannot read or build a model, or the build was cancelled."""

    code = "build"


class SelfTestError(EdgeError):
    """An opened model does not reproduce the golden outputs of its bundle."""

    code = "self-test"


class InputError(EdgeError):
    """A request or feed does not match what the model accepts."""

    code = "input"


class UnknownModelError(EdgeError):
    """A request names a model or version that is not served here."""

    code = "unknown-model"


class ContextLengthError(InputError):
    """A prompt leaves no room for an answer in the model's context."""

    code = "context-length"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field  # of the request that the prompt came from


class BodyTooLargeError(InputError):
    """A request body exceeds the configured cap."""

    code = "body-too-large"


class UnsupportedEncodingError(InputError):
    """A request body is compressed in a way this server does not read."""

    code = "unsupported-encoding"


class QueueFullError(EdgeError):
    """The inbox of a model is full; the client should retry later."""

    code = "queue-full"


class DeadlineError(EdgeError):
    """A request was not answered within its time limit."""

    code = "deadline"


class NotReadyError(EdgeError):
    """The agent is starting or stopping and takes no requests."""

    code = "not-ready"


class InferenceError(EdgeError):
    """The backend failed while running an accepted request."""

    code = "inference"
