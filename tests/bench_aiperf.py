"""NVIDIA's aiperf against the agent: does it complete, and do its times agree with the agent's own?

    python -m tests.bench_aiperf AIPERF FOLDER

AIPERF: its command. FOLDER is made: a small chat model with random weights, exported and packed as
a user would. Exit status 1 if a request failed. What is compared is the agent's /metrics: from the
arrival of a request to its first token, and between tokens; aiperf counts a client's way as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from edge.agent_process import agent_process, script
from tests.talking import make_talking_folder

NAME = "sea"
REQUESTS, CONCURRENCY, PROMPT_TOKENS, ANSWER_TOKENS = 64, 4, 64, 32
SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4,
         "max_position_embeddings": 1024}  # fmt: skip


def main(aiperf: Path, folder: Path) -> int:
    """Make the model, serve it, let aiperf ask, and print both sides' times."""
    folder.mkdir(parents=True)
    make_talking_folder(folder / "hf", **SIZES)
    kit = script("edge-kit")
    run(kit, "keygen", "k", "--out", str(folder))
    run(kit, "export-chat", str(folder / "hf"), "--precision", "int8", "--no-compare",
        "--force", "--out", str(folder / "chat"))  # fmt: skip
    run(kit, "pack", str(folder / "chat"), "--name", NAME, "--key", str(folder / "k.key"),
        "--out", str(folder / "bundle"))  # fmt: skip
    flags = ["--bundle", str(folder / "bundle"), "--trusted-keys", str(folder), "--port", "0"]
    with agent_process(folder, [*flags, "--chat-lanes", str(CONCURRENCY)]) as (url, _):
        said = asked_by(aiperf, url, folder)
        ours = means(httpx.get(f"{url}/metrics").text)
    count = said["request_count"]["avg"]
    print(f"{count:.0f} of {REQUESTS} requests completed; errors: {said['error_summary']}")
    print(f"{'milliseconds':<24}{'aiperf mean':>12}{'p95':>10}{'agent mean':>12}")
    for name, key in (("time_to_first_token", "first"), ("inter_token_latency", "between")):
        times = said[name]
        print(f"{name:<24}{times['avg']:>12.2f}{times['p95']:>10.2f}{ours[key]:>12.2f}")
    return int(count != REQUESTS or bool(said["error_summary"]))


def run(*words: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(words, check=True)


def asked_by(aiperf: Path, url: str, folder: Path) -> dict[str, Any]:
    """Return what aiperf exports of one run."""
    run(
        str(aiperf), "profile", "--model", NAME, "--url", url, "--endpoint-type", "chat",
        "--streaming", "--concurrency", str(CONCURRENCY), "--request-count", str(REQUESTS),
        "--tokenizer", str(folder / "hf"), "--synthetic-input-tokens-mean", str(PROMPT_TOKENS),
        "--output-tokens-mean", str(ANSWER_TOKENS), "--extra-inputs", "ignore_eos:true",
        "--use-server-token-count", "--ui-type", "none", "--artifact-dir", str(folder / "aiperf"),
    )  # fmt: skip
    exported: dict[str, Any] = json.loads(
        (folder / "aiperf" / "profile_export_aiperf.json").read_text()
    )
    return exported


def means(metrics: str) -> dict[str, float]:
    """Return the agent's mean milliseconds until the first token, and between tokens."""
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name.endswith(("_sum", "_count"))
    }
    names = {
        "first": "vllm:time_to_first_token_seconds",
        "between": "vllm:inter_token_latency_seconds",
    }
    return {key: 1e3 * values[f"{n}_sum"] / values[f"{n}_count"] for key, n in names.items()}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()))
