"""The quickstart's CNN on this GPU: the agent builds its engines, then gets the held-out digits.

python -m tests.gpu.digits FOLDER, which holds bundle/, keys/ and heldout.npz
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from edge.agent_process import agent_process
from edge.bundle import open_bundle
from edge.trust import trusted_keys_in

BUILD_TIMEOUT_S = 600.0


def main(where: Path) -> None:
    manifest = open_bundle(where / "bundle", trusted_keys_in(where / "keys")).manifest
    model = manifest.models[0]
    for variant in model.variants:
        if variant.backend != "trt" or variant.typed:
            continue
        flags = ["--bundle", "bundle", "--trusted-keys", "keys", "--cache", "cache"]
        flags += ["--variant", variant.id, "--port", "0"]
        for start in ("built here", "from the cache"):
            begun = time.perf_counter()
            with agent_process(where, flags, timeout_s=BUILD_TIMEOUT_S) as (url, _):
                seconds = time.perf_counter() - begun
                with urllib.request.urlopen(f"{url}/telemetry") as answer:
                    served = json.load(answer)["models"][0]
                command = [sys.executable, "-m", "host_tools.client", url, model.name]
                done = subprocess.run(
                    [*command, "heldout.npz"], cwd=where, stdout=subprocess.PIPE, check=True
                )
                score = json.loads(done.stdout)
            test = served["self_test"]
            print(
                f"digits {served['variant']} ({served['means']}, {start}): ready after "
                f"{seconds:.1f} s, {score['accuracy_percent']:.2f} % of {score['requests']}, "
                f"p50 {score['p50_ms']:.2f} ms, self-test {test['relative_error']:.1e} of "
                f"{test['tolerance']:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
