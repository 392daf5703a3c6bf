"""How long `edge-kit fleet report` takes over a history that is as large as one gets.

    python -m tests.bench_fleet_report

Another checkout is measured with PYTHONPATH set to it: what is timed is the command.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from host_tools.fleet.history import MAX_ROWS, PollHistory
from tests.host_tools.fleet.looks import BEGAN_S, a_week

DEVICES, ROUNDS = 50, 38_000
REPEATS = 3
WEEK_S = 7 * 86400.0
_COMMAND = "import sys; from host_tools.cli import main; main()"


def main() -> None:
    """Print everything."""
    assert DEVICES * ROUNDS <= MAX_ROWS
    names = tuple(f"line-{number}" for number in range(DEVICES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun_s = time.time() - WEEK_S
        with PollHistory.open(folder / "history") as history:
            polls = a_week(names, step_s=WEEK_S / ROUNDS)
            # Piece by piece: what this process holds counts as its children's as well.
            while part := list(itertools.islice(polls, 50_000)):
                history.add(replace(one, time_s=one.time_s + begun_s - BEGAN_S) for one in part)
        size = (folder / "history").stat().st_size / 1e6
        inventory = folder / "inventory.yaml"
        inventory.write_text(json.dumps({"devices": {name: {} for name in names}}))
        command = [sys.executable, "-c", _COMMAND, "fleet", "report", "--inventory", inventory,
                   "--history", folder / "history", "--no-poll", "--since", "8d",
                   "--out", folder / "fleet.html"]  # fmt: skip
        took = []
        for _ in range(REPEATS):
            begun = time.monotonic()
            said = subprocess.run(
                [str(word) for word in command], check=True, capture_output=True, text=True
            )
            took.append(time.monotonic() - begun)
    one, five, _ = os.getloadavg()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{said.stdout.strip()} {size:.0f} MB, {os.cpu_count()} cores, load {one:.1f} {five:.1f}")
    print(f"median {statistics.median(took):.2f} s, most {max(took):.2f} s, n={REPEATS}, "
          f"{peak:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
