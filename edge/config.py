"""The agent's configuration: every key with its default, help text and bounds.

`config_sources` fills it from a file, the environment and flags.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DEFAULT_URL = "http://127.0.0.1:8000"  # of an agent with the default host and port
DEFAULT_CONFIG_FILE = Path("/etc/edge/agent.json")
CONFIG_KEY = "config"
ENVIRONMENT_PREFIX = "EDGE_"

LogLevel = Literal["debug", "info", "warning", "error"]


def _about(text: str, *, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"help": text, "low": low, "high": high}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What `edge-agent serve` runs with; a field's metadata has its help text and bounds."""

    bundle: Path = field(
        default=Path("/var/lib/edge/bundle"),
        metadata=_about("Directory of the bundle to serve."),
    )
    slots: Path | None = field(
        default=None,
        metadata=_about(
            "Directory with two slots for bundles, which `edge-agent install` fills; serve the one "
            "in service there instead of a bundle directory."
        ),
    )
    trusted_keys: Path = field(
        default=Path("/etc/edge/trusted-keys"),
        metadata=_about("Directory of the .pub keys that may sign bundles."),
    )
    allow_unsigned: bool = field(
        default=False,
        metadata=_about("Accept bundles that are unsigned, or signed by an unknown key."),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_about("Address to listen on."),
    )
    port: int = field(
        default=8000,
        metadata=_about("TCP port to listen on; 0 takes a free one.", low=0, high=65535),
    )
    allowed_hosts: str | None = field(
        default=None,
        metadata=_about(
            "Further names under which clients reach the agent, as a proxy's, separated by commas; "
            "its addresses, localhost, and the name of the machine in its domains always do."
        ),
    )
    intra_op_threads: int | None = field(
        default=None,
        metadata=_about("Threads of one inference; unset: the backend decides.", low=1, high=1024),
    )
    max_body_bytes: int = field(
        default=64 << 20,
        metadata=_about("Largest request body.", low=1024, high=(1 << 31) - 1),
    )
    max_per_client: int | None = field(
        default=None,
        metadata=_about(
            "Requests that one client address may have here at a time, but for GET; more are "
            "refused with status 429. Unset: no limit, as clients behind one proxy share an "
            "address.",
            low=1,
            high=4096,
        ),
    )
    max_connections_per_client: int | None = field(
        default=None,
        metadata=_about(
            "Connections that one client address may have; unset: as many as the agent takes.",
            low=1,
            high=4096,
        ),
    )
    queue_size: int = field(
        default=64,
        metadata=_about(
            "Inference requests that may wait; more are refused at once, with status 429.",
            low=1,
            high=4096,
        ),
    )
    queue_bytes: int = field(
        default=256 << 20,
        metadata=_about("Bytes of tensors that may wait, per model.", low=1024, high=1 << 40),
    )
    batching: bool = field(
        default=True,
        metadata=_about("Run requests that wait as one, where the bundle says that this is safe."),
    )
    max_batch_rows: int | None = field(
        default=None,
        metadata=_about("Rows of such a batch; unset: the profile's maximum.", low=1, high=1 << 20),
    )
    batch_window_ms: float = field(
        default=5.0,
        metadata=_about(
            "Longest wait for requests that are expected; an idle model never waits.",
            low=0,
            high=1000,
        ),
    )
    chat_lanes: int = field(
        default=4,
        metadata=_about(
            "Conversations that a chat model answers at once; fewer where memory is short.",
            low=1,
            high=256,
        ),
    )
    chat_context: int | None = field(
        default=None,
        metadata=_about(
            "Tokens of a conversation, question and answer together; unset: as many as the model "
            "takes and memory holds.",
            low=16,
            high=1 << 24,
        ),
    )
    chat_timeout_s: float = field(
        default=600.0,
        metadata=_about("Seconds until an unfinished chat answer ends.", low=0.01, high=86400),
    )
    request_timeout_s: float = field(
        default=30.0,
        metadata=_about("Seconds until an unanswered request is dropped.", low=0.01, high=3600),
    )
    shutdown_timeout_s: float = field(
        default=20.0,
        metadata=_about("Seconds that a stop waits for accepted requests.", low=0, high=3600),
    )
    stall_timeout_s: float = field(
        default=30.0,
        metadata=_about("Seconds after which one inference counts as hung.", low=1, high=3600),
    )
    cache: Path = field(
        default=Path("/var/lib/edge-agent/engines"),
        metadata=_about("Directory for engines that are built on this device."),
    )
    cache_bytes: int = field(
        default=8 << 30,
        metadata=_about("Largest size of that directory.", low=0, high=1 << 50),
    )
    build_on_device: bool = field(
        default=True,
        metadata=_about("Build an engine when the bundle has none that fits this device."),
    )
    build_timeout_s: float = field(
        default=3600.0,
        metadata=_about("Seconds that a build may take.", low=1, high=86400),
    )
    open_timeout_s: float = field(
        default=120.0,
        metadata=_about("Seconds that the first opening of an engine may take.", low=1, high=3600),
    )
    ready_on_cpu: bool = field(
        default=False,
        metadata=_about("Be ready although a model that was packed for a GPU runs on the CPU."),
    )
    models: str | None = field(
        default=None,
        metadata=_about("Models to open at start, separated by commas; unset: all of the bundle."),
    )
    isolate: bool = field(
        default=False,
        metadata=_about("Give each model a process of its own; with several GPUs it is so anyway."),
    )
    warm_up: bool = field(
        default=True,
        metadata=_about("Run the smallest, usual and largest shapes before a model is served."),
    )
    memory_reserve_bytes: int = field(
        default=256 << 20,
        metadata=_about(
            "Memory that stays free when a model is opened; one that needs more is refused.",
            low=0,
            high=1 << 50,
        ),
    )
    variant: str | None = field(
        default=None,
        metadata=_about("Serve this variant instead of choosing one."),
    )
    allow_capture: bool = field(
        default=False,
        metadata=_about(
            "Let whoever reaches the agent record what is sent to it, with `edge-agent capture`."
        ),
    )
    drift_window: int = field(
        default=200,
        metadata=_about(
            "Rows that are compared with the drift reference of a bundle at a time.",
            low=30,
            high=5000,
        ),
    )
    drift_window_s: float = field(
        default=3600.0,
        metadata=_about(
            "Seconds after which fewer rows are compared, if there are 30.", low=1, high=86400 * 30
        ),
    )
    drift_level: float = field(
        default=0.001,
        metadata=_about(
            "Share of the windows without drift that may be taken for drift.", low=1e-9, high=0.2
        ),
    )
    drift_webhook: str | None = field(
        default=None,
        metadata=_about(
            "Address that is told with a POST when a model begins to drift, or ends; unset: nobody."
        ),
    )
    drift_keep_inputs: int = field(
        default=0,
        metadata=_about(
            "Inputs that are kept of each model that is watched for drift, with their answers: so "
            "many of windows that drifted and as many of others, for `drift export`; 0: none.",
            low=0,
            high=10_000,
        ),
    )
    drift_keep_bytes: int = field(
        default=256 << 20,
        metadata=_about(
            "Largest size of these, per model and reference; those of two references are kept.",
            low=32 << 20,
            high=1 << 40,
        ),
    )
    drift_keep_redact: str | None = field(
        default=None,
        metadata=_about(
            "Inputs whose contents are left out of what is kept, separated by commas, with the "
            "answers that follow from them."
        ),
    )
    drift_keep_folder: Path = field(
        default=Path("/var/lib/edge-agent/drift"),
        metadata=_about("Folder for what is kept; nobody else can read it."),
    )
    history: Path | None = field(
        default=None,
        metadata=_about(
            "File for the history of the last day, about 1 MB, in a folder that is there; unset: "
            "in memory."
        ),
    )
    otlp_endpoint: str | None = field(
        default=None,
        metadata=_about(
            "URL of an OpenTelemetry collector that gets a trace of each request (extra `otel`), "
            "such as http://127.0.0.1:4318; unset: none."
        ),
    )
    jtop: bool = field(
        default=False,
        metadata=_about("Ask the service of jetson-stats too (extra `jetson`, AGPL-3.0)."),
    )
    log_level: LogLevel = field(
        default="info",
        metadata=_about("Least severe level that is logged: debug, info, warning or error."),
    )


def flag_from_key(key: str) -> str:
    """Return the spelling of a key on the command line."""
    return "--" + key.replace("_", "-")
