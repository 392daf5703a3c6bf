"""A thousand agents in one process: who is asked at 127.K.x.y behaves as kind K.

One listener on all of 127.0.0.0/8 stands for them, as Linux has every one of these addresses.
`python -m tests.simulated_agents` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
KINDS = (
    "ok", "silent", "lying", "endless-body", "drip", "redirect", "gzip", "html", "huge-number",
    "nan", "bad-utf8", "escape", "endless-head", "no-answer", "cut-off", "not-ready", "alarm",
    "drift", "full", "older", "newer", "banner", "absent", "deep", "other-json", "large-length",
    "tells-by-health", "percent", "worker-down", "flaky", "endless-chunks",
)  # fmt: skip


def address_of(kind: str, number: int = 1) -> str:
    """Return the address of an agent of a kind."""
    return f"127.{KINDS.index(kind) + 10}.{number >> 8}.{number & 255}"


def report(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a report like that of an agent with two models and one GPU."""
    load = 10.0 + number % 50

    def model(name: str) -> dict[str, Any]:
        stage = {"p50_ms": load, "p95_ms": 2 * load, "p99_ms": 3 * load}
        return {
            "name": name, "version": "1", "bundle_version": "1.4.0", "variant": "int8-trt",
            "backend": "trt", "precision": "int8", "means": "engine", "why": "it is the fastest",
            "degradation": None,
            "refused": [{"variant": f"v{i}", "code": "other-module", "reason": "built for another "
                         "module; build it here"} for i in range(6)],
            "self_test": {"cases": 4, "output": "y", "relative_error": 0.01, "tolerance": 0.1},
            "ready": True,
            "latency": {"requests": 2048, "stages": {
                "queue": stage, "compute": stage, "total": stage}},
            "requests": {"ok": 1000 * number, "input": 3, "deadline": 1},
            "queue_depth": 0,
            "workers": [{"ready": True, "consecutive_failures": 0, "load": 0}],
            "memory_bytes": 1 << 28, "chat": None, "takes": "image", "drift": None,
        }  # fmt: skip

    gpu = {
        "name": "Orin", "memory": "unified", "utilization_percent": load,
        "temperature_celsius": 55.0, "power_watts": 12.5, "throttle_reasons": [],
    }  # fmt: skip
    made = {
        "agent_version": "0.9.0", "uptime_s": 3600.0, "phase": "serving", "activity": "serving",
        "ready": True, "condition": None, "allow_unsigned": False,
        "target": {"arch": "aarch64", "sm": "8.7", "name": "Orin"},
        "bundle": {"name": "camera", "version": "1.4.0", "manifest_sha256": "a" * 64,
                   "signed_by": {"keyid": "k" * 64, "name": "release.pub"}},
        "slots": {"slot": "a", "phase": "committed"},
        "models": [model("detector"), model("classifier")],
        "machine": {"rss_bytes": 1 << 28, "cpu_percent": 20.0,
                    "temperatures_celsius": {"cpu": 50.0}, "power_watts": 15.0,
                    "energy_joules": 54000.0, "gpus": [gpu]},
        "alarms": [],
    }  # fmt: skip
    return {**made, **changes}


@contextlib.contextmanager
def simulated_agents() -> Iterator[int]:
    """Yield the port of simulated agents, which run in a process of their own."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.simulated_agents"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def answer(
    body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: str = ""
) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode("latin-1") + body


def told(number: int, **changes: Any) -> bytes:
    return answer(json.dumps(report(number, **changes)).encode())


def changed_text(old: str, new: bytes) -> bytes:
    """Return an answer whose body is not what JSON's writer would write."""
    return answer(json.dumps(report()).encode().replace(old.encode(), new))


def _answers(number: int, kind: str, path: bytes) -> bytes | None:
    """Return all that an agent of a kind says; None for those that take their time."""
    models, machine = report()["models"], report()["machine"]
    if path.startswith(b"/v2/health/ready"):
        return answer(b"{}", status="503 Service Unavailable" if number % 2 else "200 OK")
    match kind:
        case "ok":
            return told(number)
        case "lying":
            return told(number, ready="yes", models=7)
        case "redirect":
            return answer(b"", status="302 Found", more="Location: http://127.0.0.1/\r\n")
        case "gzip":
            bomb = gzip.compress(b" " * (8 << 20))
            return answer(bomb, more="Content-Encoding: gzip\r\n")
        case "html":
            return answer(b"<p>hello</p>", kind="text/html; charset=utf-8")
        case "huge-number":
            return changed_text('"uptime_s": 3600.0', b'"uptime_s": 1e999')
        case "nan":
            return changed_text('"uptime_s": 3600.0', b'"uptime_s": NaN')
        case "bad-utf8":
            return changed_text('"camera"', b'"\xff\xfe"')
        case "escape":
            bundle = {"name": ESCAPE, "version": "1\r\n2"}
            alarm = {"name": ESCAPE, "since_s": 1.0, "model": ESCAPE, "detail": ESCAPE * 900}
            return told(number, bundle=bundle, agent_version=ESCAPE, alarms=[alarm])
        case "no-answer":
            return b""
        case "cut-off":
            return told(number)[:-40]
        case "not-ready":
            return told(number, ready=False, condition="the GPU fell off the bus", phase="failed")
        case "alarm":
            alarm = {"name": "hot", "since_s": 1.7e9, "model": None, "detail": "the GPU has 96 °C"}
            return told(number, alarms=[alarm])
        case "drift":
            drift = {"state": "drifted", "since_s": 1.7e9, "window_rows": 512, "features": []}
            return told(number, models=[{**models[0], "drift": drift}, models[1]])
        case "full":
            return answer(b'{"error": "full"}', status="503 Service Unavailable")
        case "older":
            short = {"name": "detector", "ready": True, "requests": {"ok": 5}}
            few = {"agent_version": "0.1.0", "ready": True, "models": [short]}
            return answer(json.dumps(few).encode())
        case "newer":
            return told(number, moons=[{"a": [1, {"b": None}]}], alarms=[])
        case "banner":
            return b"SSH-2.0-OpenSSH_9.2\r\n"
        case "absent":
            return answer(b"not here", status="404 Not Found")
        case "deep":
            return answer(b'{"ready": true, "x": ' + b"[" * 100_000)
        case "other-json":
            return answer(b'{"name": "a printer"}')
        case "large-length":
            return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + (
                b"Content-Length: 99999999999999999999\r\n\r\n{"
            )
        case "tells-by-health":
            return told(number, ready=None)
        case "percent":
            gpu = {"utilization_percent": 250.0}
            return told(number, machine={**machine, "gpus": [gpu]})
        case "worker-down":
            workers = [{"ready": True}, {"ready": False}]
            return told(number, models=[{**models[0], "workers": workers}])
    return None


async def _endless(write: asyncio.StreamWriter, kind: str) -> None:
    """Say something for as long as anybody listens."""
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    first, piece, pause_s = {
        "silent": (b"", b"", 1.0),
        "endless-body": (plain + b"\r\n", b" " * 65536, 0.0),
        "endless-chunks": (plain + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 999, 0.0),
        "endless-head": (plain, b"X-Word: word\r\n" * 999, 0.0),
        "drip": (plain + b"Content-Length: 100000\r\n\r\n", b" ", 0.05),
    }[kind]
    write.write(first)
    while not write.is_closing():
        write.write(piece)
        await write.drain()
        await asyncio.sleep(pause_s)


async def _serve() -> None:
    flaky: set[str] = set()

    async def one(read: asyncio.StreamReader, write: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            host = write.get_extra_info("sockname")[0]
            _, second, third, fourth = map(int, host.split("."))
            kind = KINDS[second - 10]
            asked = await read.readuntil(b"\r\n\r\n")
            if kind == "flaky":  # loses the first connection
                kind = "ok" if host in flaky else "no-answer"
                flaky.add(host)
            said = _answers(third << 8 | fourth, kind, asked.split(b" ")[1])
            if said is None:
                await _endless(write, kind)
            else:
                write.write(said)
                await write.drain()
        write.close()

    server = await asyncio.start_server(one, "0.0.0.0", 0, family=socket.AF_INET, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
