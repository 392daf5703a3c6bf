"""A stand-in for systemctl on a device of the tests, which has a root folder of its own.

It knows what setting up a device asks of systemd: daemon-reload, enable, start, restart, stop,
reset-failed, is-active. A service runs below a supervisor process, which runs ExecStartPre and
ExecStart and starts it again when it fails, five times at most. It stands alone, so that any
Python can run it: ROOT/usr/bin/systemctl is a link to it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(sys.argv[0]).absolute().parents[2]
UNITS = ROOT / "etc/systemd/system"
RUN = ROOT / "run"
BURST = 5
RESTART_S = 0.2
STOP_S = 30.0


def main() -> int:
    verb, *units = [word for word in sys.argv[1:] if not word.startswith("-")]
    for unit in units:
        if not (UNITS / unit).is_file():
            sys.stderr.write(f"Unit {unit} not found.\n")
            return 5
        status = VERBS[verb](unit)
        if status:
            return status
    return 0


def enable(unit: str) -> int:
    link = UNITS / "multi-user.target.wants" / unit
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(f"../{unit}")
    return 0


def start(unit: str) -> int:
    if is_active(unit) == 0 or unit.endswith(".timer"):  # nobody waits for a timer here
        return 0
    service = service_of(unit)
    if service.get("Type") == ["oneshot"]:
        return max(run_once(service["ExecStart"]), 0)
    RUN.mkdir(exist_ok=True)
    with (RUN / f"{unit}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, sys.argv[0], "supervise", unit],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (RUN / f"{unit}.pid").write_text(str(process.pid))
    return 0


def supervise(unit: str) -> int:
    """Keep a service running; the group of processes is this one's."""

    def stop(number: int, _: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    service = service_of(unit)
    for _ in range(BURST):
        if run_once(service.get("ExecStartPre", [])) == 0:
            child = subprocess.Popen(words_of(service["ExecStart"][0]), env=environment())
            try:
                if child.wait() == 0:
                    break
            except SystemExit:
                child.terminate()
                child.wait()
                raise
        time.sleep(RESTART_S)
    return 0


def stop(unit: str) -> int:
    pid = pid_of(unit)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_S
        while is_running(pid) and time.monotonic() < until:
            time.sleep(0.02)
        (RUN / f"{unit}.pid").unlink()
    return 0


def restart(unit: str) -> int:
    return stop(unit) or start(unit)


def is_active(unit: str) -> int:
    pid = pid_of(unit)
    return 0 if pid is not None and is_running(pid) else 3


def run_once(commands: list[str]) -> int:
    for command in commands:
        status = subprocess.run(words_of(command), env=environment(), check=False).returncode
        if status and not command.startswith("-"):
            return status
    return 0


def words_of(command: str) -> list[str]:
    return command.lstrip("+-!@").split()


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "EDGE_CONFIG": str(ROOT / "etc/edge/agent.json")}


def service_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    drop_ins = sorted((UNITS / f"{unit}.d").glob("*.conf"))
    for path in [UNITS / unit, *drop_ins]:
        for line in path.read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals and key.isalpha():
                found.setdefault(key, []).append(value)
    return found


def pid_of(unit: str) -> "int | None":
    try:
        return int((RUN / f"{unit}.pid").read_text())
    except FileNotFoundError:
        return None


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


VERBS = {
    "daemon-reload": lambda _: 0,
    "reset-failed": lambda _: 0,
    "enable": enable,
    "start": start,
    "restart": restart,
    "stop": stop,
    "is-active": is_active,
    "supervise": supervise,
}

if __name__ == "__main__":
    sys.exit(main())
