"""The programs that setting up needs: the agent, systemd, Python and pip."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Callable, Iterator, List, Optional

from host_tools.flash.device.facts import CURRENT, SLOTS
from host_tools.flash.device.files import Json, StopError, resolved, text_of

KEYS = "etc/edge/trusted-keys"
CONFIG = "etc/edge/agent.json"
AGENT_UNIT = "edge-agent.service"
# Finishes a trial that a power cut has interrupted.
GATE_UNIT = "edge-gate.service"
GATE_TIMER = "edge-gate.timer"
READY_S = 300.0
POLL_S = 0.5
Say = Callable[[str], None]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Answer:
    """What a program said: its status, standard output, and the last line of the other one."""

    def __init__(self, status: int, text: str, last_line: str) -> None:
        self.status, self.text, self.last_line = status, text, last_line

    def json(self) -> Json:
        """Return the object that was printed, an empty one if it was none."""
        try:
            told = json.loads(self.text)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}


class Machine:
    """One system below a root. Below another root than / nothing of the real one is called."""

    def __init__(self, root: Path, say: Say) -> None:
        self.root, self._say = root, say

    def run(
        self, command: List[str], *, may_fail: bool = False, heard: bool = False, **env: str
    ) -> Answer:
        """Run a program in a clean environment; raises StopError if it fails.

        heard: its talk is told while it runs.
        """
        environ = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/root", **env}
        try:
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if heard else subprocess.STDOUT,
                universal_newlines=True,
            )
        except OSError as error:
            raise StopError("failed", "{}: {}".format(command[0], error.strerror)) from error
        last = ""
        answers: List[str] = []
        with process:
            stdout = process.stdout
            assert stdout is not None  # noqa: S101
            # Beside the talk: who waits for one pipe while the other is full waits for ever.
            reader = threading.Thread(target=lambda: answers.append(stdout.read()))
            reader.start()
            for line in process.stderr or ():
                last = line.strip() or last
                self._say(last)
            reader.join()
        text = "".join(answers)
        if not heard:
            last = (text.strip().splitlines() or [""])[-1]
        if process.returncode and not may_fail:
            name = os.path.basename(command[0])  # noqa: PTH119 - a word, not a place
            raise StopError(
                "failed", "{} {} failed: {}".format(name, " ".join(command[1:3]), last or "no word")
            )
        return Answer(process.returncode, text, last)

    def agent(
        self, program: Path, *words: str, may_fail: bool = False, heard: bool = False
    ) -> Answer:
        """Run a command of an agent, as this system's configuration and keys have it."""
        env = {
            "EDGE_SLOTS": str(self.root / SLOTS),
            "EDGE_TRUSTED_KEYS": str(self.root / KEYS),
        }
        if (self.root / CONFIG).exists():
            env["EDGE_CONFIG"] = str(self.root / CONFIG)
        return self.run([str(program), *words], may_fail=may_fail, heard=heard, **env)

    @property
    def manager(self) -> Optional[str]:
        """Return the systemctl of this system, None if nothing there starts units."""
        if self.root == Path("/"):
            has_systemd = Path("/run/systemd/system").is_dir()
            return shutil.which("systemctl", path=_PATH) if has_systemd else None
        program = self.root / "usr/bin/systemctl"
        return str(program) if program.exists() else None

    def systemctl(self, *words: str, may_fail: bool = False) -> bool:
        """Ask systemd for something; return False where there is none."""
        program = self.manager
        return program is not None and self.run([program, *words], may_fail=may_fail).status == 0

    def is_ready(self) -> bool:
        """Return whether the agent serves."""
        try:
            found = json.loads(text_of(self.root / CONFIG) or "{}")
        except ValueError:
            found = {}
        told: Json = found if isinstance(found, dict) else {}
        host = str(told.get("host", "127.0.0.1"))
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound
        url = "http://{}:{}/v2/health/ready".format(
            "[{}]".format(host) if ":" in host else host, told.get("port", 8000)
        )
        # No proxy of whoever runs this: the agent is on this very device.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, ValueError, http.client.HTTPException):
            return False

    def wait_ready(self, timeout_s: float) -> None:
        """Return when the agent serves; raises StopError if it does not in time."""
        until = time.monotonic() + timeout_s
        while not self.is_ready():
            if time.monotonic() > until:
                raise StopError(
                    "failed", "the agent was not ready after {:.0f} s".format(timeout_s)
                )
            time.sleep(POLL_S)

    def install_units(self) -> None:
        """Write the units for this system's current agent, and enable it."""
        program = self.root / CURRENT / "bin/edge-agent"
        self.agent(
            program, "install-unit", "--yes", "--root", str(self.root), "--executable", str(program)
        )
        self.systemctl("daemon-reload")
        for unit in (AGENT_UNIT, GATE_UNIT, GATE_TIMER):
            self.systemctl("enable", unit, may_fail=unit != AGENT_UNIT)  # an older agent has none
        self.systemctl("start", GATE_TIMER, may_fail=True)

    def start_agent(self, verb: str = "start") -> None:
        """Start or restart the agent; one that had failed too often gets another chance."""
        self.systemctl("reset-failed", AGENT_UNIT, may_fail=True)
        self.systemctl(verb, AGENT_UNIT, may_fail=True)

    @contextlib.contextmanager
    def starting_at_trial(self) -> Iterator[None]:
        """Start the agent as soon as a bundle is on trial: without one it had nothing to serve."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(POLL_S):
                if self.slots().get("candidate", {}).get("phase") == "trial":
                    self.start_agent()
                    return

        thread = threading.Thread(target=watch, name="trial")
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def slots(self) -> Json:
        """Return the state of the slots as it is on disk, without what is None."""
        try:
            place = resolved(self.root, SLOTS + "/state.json")
            state = json.loads(text_of(place) or "{}")
        except ValueError:
            return {}
        items = state.items() if isinstance(state, dict) else ()
        return {key: value for key, value in items if value is not None}
