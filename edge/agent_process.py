"""An agent as a child process: start it, wait until it is ready, stop it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge.config import ENVIRONMENT_PREFIX
from edge.errors import BackendUnavailableError, EdgeError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05
LOG_NAME = "agent.log"
CONFIG_NAME = "agent.json"
_ERROR = "error: "


class AgentProcessError(EdgeError):
    """A started agent ended, or did not become ready."""

    code = "agent-process"


@contextlib.contextmanager
def agent_process(
    folder: Path, flags: Sequence[str], *, timeout_s: float = START_TIMEOUT_S
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `edge-agent serve FLAGS` in folder and yield (URL, process) once it is ready.

    Only the flags configure it: neither EDGE_* variables nor /etc/edge/agent.json reach it. Its
    log goes to folder/agent.log. Afterwards it is told to stop, and killed if it does not.
    Raises AgentProcessError with its error or its log if it does not become ready in time.
    """
    log, config = folder / LOG_NAME, (folder / CONFIG_NAME).resolve()
    config.write_text("{}\n")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    environ[f"{ENVIRONMENT_PREFIX}CONFIG"] = str(config)
    command = [script("edge-agent"), "serve", *flags]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=folder, env=environ, stderr=sink)
    try:
        yield _wait_until_ready(process, log, timeout_s), process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def script(name: str) -> str:
    """Return the console script of this very installation, whatever PATH says."""
    path = Path(sysconfig.get_path("scripts")) / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        raise BackendUnavailableError(f"the command {name} is not installed; pip install edge-kit")
    return found


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if " ready models=" in line:
                return line.rpartition("url=")[2]
        time.sleep(POLL_S)
    text = log.read_text()
    errors = [line for line in text.splitlines() if line.startswith(_ERROR)]
    if errors:
        raise AgentProcessError(f"the agent did not start: {errors[-1].removeprefix(_ERROR)}")
    raise AgentProcessError(f"the agent did not become ready; {log} says:\n{text}")
