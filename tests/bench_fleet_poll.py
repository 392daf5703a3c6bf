"""What it costs to ask a thousand devices how they are, here and on the device.

    python -m tests.bench_fleet_poll

A process of its own simulates the devices: 3 % never answer, 2 % refuse, 1 % lie, the rest send a
report of two models. `edge-kit fleet status` asks them as it is typed, with its history; its memory
and processor time are those that the system counted. Eight real agents are asked beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import AT_ONCE, Poller
from tests.agents import unused_port
from tests.bundles import affine_parts, make_key, write_bundle
from tests.simulated_agents import REPOSITORY, address_of, simulated_agents

DEVICES, SILENT, DEAD, LYING = 1000, 30, 20, 10
ROUNDS, AGENT_ROUNDS = 5, 200
DEADLINE_S = 2.0
AGENTS = 8
EXPECTED = {
    "ok": "ok",
    "silent": "timeout",
    "dead": "unreachable",
    "lying": "malformed",
    "endless": "malformed",
}


def urls(port: int) -> dict[str, str]:
    """Return the address of each simulated device by name."""
    nobody, found = unused_port(), {}
    kinds = ["silent"] * SILENT + ["dead"] * DEAD + ["lying"] * LYING
    kinds += ["ok"] * (DEVICES - len(kinds))
    for number, kind in enumerate(kinds):
        there = f"127.0.0.1:{nobody}" if kind == "dead" else f"{address_of(kind, number)}:{port}"
        found[f"{kind}-{number}"] = f"http://{there}"
    return found


def bench_command(places: dict[str, str], folder: Path) -> None:
    """Print what `edge-kit fleet status` takes."""
    inventory = folder / "fleet.yaml"
    inventory.write_text(json.dumps({"devices": {n: {"url": u} for n, u in places.items()}}))
    command = [
        sys.executable, "-c", "from host_tools.cli import main; main()", "fleet", "status",
        "--inventory", str(inventory), "--history", str(folder / "history.sqlite"), "--json",
        "--deadline-s", str(DEADLINE_S),
    ]  # fmt: skip
    rows, wrong = [], 0
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = json.loads(process.stdout.read())
            _, _, used = os.wait4(process.pid, 0)
            process.returncode = 0
        rows.append(
            (time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
        )
        wrong += sum(EXPECTED[one["device"].split("-")[0]] != one["state"] for one in said)
    states = Counter(one["state"] for one in said)
    walls, cpus, sizes = zip(*rows, strict=True)
    print(f"edge-kit fleet status, {DEVICES} devices, {dict(states)}, n={ROUNDS}")
    print(f"  wall      median {statistics.median(walls):.2f} s, most {max(walls):.2f} s")
    print(f"  CPU       median {statistics.median(cpus):.2f} s, most {max(cpus):.2f} s")
    print(f"  memory    most {max(sizes):.0f} MiB")
    print(f"  classified wrong: {wrong} of {ROUNDS * DEVICES}")


def bench_clients(places: dict[str, str]) -> None:
    """Print what the polls alone take, and what they take with httpx."""
    well = [url for name, url in places.items() if name.startswith("ok")]
    devices = [Device(name=url, host="unused", url=url) for url in well]

    async def ours() -> int:
        found = await Poller(deadline_s=10.0).poll(devices)
        return sum(status.state == "ok" for status in found)

    async def theirs() -> int:
        gate = asyncio.Semaphore(AT_ONCE)
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(timeout=10.0, limits=limits, trust_env=False) as client:

            async def one(url: str) -> bool:
                async with gate:
                    return bool((await client.get(f"{url}/telemetry")).json()["ready"])

            return sum(await asyncio.gather(*map(one, well)))

    for name, run in (("ours", ours), ("httpx", theirs)):
        cpus = []
        for _ in range(ROUNDS):
            begun = time.process_time()
            assert asyncio.run(run()) == len(well)
            cpus.append(time.process_time() - begun)
        per = statistics.median(cpus) / len(well) * 1e3
        print(f"client {name:<6} {per:.2f} ms of CPU a device, n={ROUNDS}x{len(well)}")


@contextlib.contextmanager
def real_agents(folder: Path) -> Iterator[list[tuple[psutil.Process, str]]]:
    """Yield agents that serve a small model, and their addresses."""
    key = make_key()
    manifest, files = affine_parts()
    bundle = write_bundle(folder / "bundle", manifest, files, key)
    (folder / "keys").mkdir()
    (folder / "keys" / "bench.pub").write_bytes(key.public_pem)
    agents: list[tuple[psutil.Process, str]] = []
    with contextlib.ExitStack() as stack:
        for number in range(AGENTS):
            port = unused_port()
            process = stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        "from edge.cli import main; main()",
                        "serve",
                        "--bundle",
                        str(bundle),
                        "--trusted-keys",
                        str(folder / "keys"),
                        "--port",
                        str(port),
                        "--cache",
                        str(folder / f"cache-{number}"),
                    ],
                    cwd=REPOSITORY,
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(process.terminate)
            agents.append((psutil.Process(process.pid), f"http://127.0.0.1:{port}"))
        for _, url in agents:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                        break
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield agents


def bench_agents(agents: list[tuple[psutil.Process, str]], places: dict[str, str]) -> None:
    """Print what a poll costs an agent, over what it does by itself."""
    few = [Device(name=url, host="unused", url=url) for _, url in agents]
    many = [*few, *(Device(name=name, host="unused", url=url) for name, url in places.items())]
    found = asyncio.run(Poller(deadline_s=DEADLINE_S).poll(many))
    print(f"{len(many)} devices, of which {AGENTS} real: "
          f"{Counter(status.state for status in found[:AGENTS])}")  # fmt: skip

    def used() -> list[float]:
        return [sum(process.cpu_times()[:2]) for process, _ in agents]

    async def ask() -> None:
        poller = Poller(deadline_s=DEADLINE_S)
        for _ in range(AGENT_ROUNDS):
            assert all(status.state == "ok" for status in await poller.poll(few))

    before, begun = used(), time.monotonic()
    asyncio.run(ask())
    took_s, after = time.monotonic() - begun, used()
    time.sleep(took_s)
    idle = used()
    costs = [
        ((one - first) - (last - one)) / AGENT_ROUNDS * 1e3
        for first, one, last in zip(before, after, idle, strict=True)
    ]
    print(f"CPU of an agent a poll: median {statistics.median(costs):.2f} ms, "
          f"most {max(costs):.2f} ms, n={AGENTS}x{AGENT_ROUNDS}")  # fmt: skip


def main() -> None:
    """Print everything."""
    one, five, _ = os.getloadavg()
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {one:.1f} {five:.1f}")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    print(f"{files} descriptors, {AT_ONCE} at once, deadline {DEADLINE_S} s")
    with tempfile.TemporaryDirectory() as name, simulated_agents() as port:
        folder, places = Path(name), urls(port)
        bench_command(places, folder)
        kind = "endless-body"
        bench_command(
            {f"{kind}-{n}": f"http://{address_of(kind, n)}:{port}" for n in range(DEVICES)}, folder
        )
        bench_clients(places)
        with real_agents(folder) as agents:
            bench_agents(agents, places)


if __name__ == "__main__":
    main()
