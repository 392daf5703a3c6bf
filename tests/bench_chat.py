"""How fast a chat model decodes on the CPU: ours beside llama.cpp, onnxruntime-genai, transformers.

    python -m tests.bench_chat FOLDER [--rounds N] [--only NAME,...]

Everyone runs the same random weights in the shape of a Llama with 246 million parameters, with two
threads, and takes the likeliest token: a prompt of 128 tokens, then 64 more. Each has a process of
its own, and they take turns, so that what disturbs the machine disturbs all. Peers are those that
`make peers` has put into .peers; who is missing is left out, and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from host_tools.chat.writer import WriteOptions, weights_path, write_decoder

PROMPT, ANSWER, THREADS, CONTEXT, LANES = 128, 64, 2, 1024, 8
ROUNDS = 7
SETTLE_S = 0.2  # until the threads of who ran last have stopped spinning
PEERS = Path(".peers")
SIZES: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
CONFIG: dict[str, Any] = SIZES | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@dataclass(kw_only=True)
class Runner:
    """A process with one model, and what it has measured."""

    name: str
    command: list[str]
    weights: Path
    lanes: int = 1
    prompt: int = PROMPT
    process: subprocess.Popen[str] | None = None
    found: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, prompt: Sequence[int]) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"prompt": list(prompt[: self.prompt]), "tokens": ANSWER}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died: {' '.join(self.command)}")
        return json.loads(line)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stdin.close()  # type: ignore[union-attr]
            self.process.wait(10)

    @property
    def weights_mb(self) -> float:
        files = [self.weights] if self.weights.is_file() else list(self.weights.iterdir())
        return sum(path.stat().st_size for path in files) / 1e6

    @property
    def first_ms(self) -> list[float]:
        return [1e3 * found["first_s"] for found in self.found]

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each round, all lanes together."""
        return [self.lanes * len(found["steps_s"]) / sum(found["steps_s"]) for found in self.found]

    @property
    def step_ms(self) -> list[float]:
        return [1e3 * seconds for found in self.found for seconds in found["steps_s"]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "hf")
    runners = [
        runner
        for runner in (*ours(folder), *peers(folder))
        if not arguments.only or runner.name in arguments.only.split(",")
    ]
    with contextlib.ExitStack() as stack:
        for runner in runners:
            stack.callback(runner.stop)
            runner.start()
        measure(runners, arguments.rounds)
    report(runners)
    (folder / "found.json").write_text(
        json.dumps({runner.name: runner.found for runner in runners})
    )


def measure(runners: Sequence[Runner], rounds: int) -> None:
    """Let all take turns; the first turn of each warms it up and does not count."""
    prompt = np.random.default_rng(1).integers(3, SIZES["vocab_size"], CONTEXT // 2).tolist()
    for turn in range(rounds + 1):
        for runner in runners:
            time.sleep(SETTLE_S)
            found = runner.ask(prompt)
            if turn:
                runner.found.append(found)


def report(runners: Sequence[Runner]) -> None:
    print(f"{platform.machine()}, {THREADS} threads, prompt {PROMPT}, {ANSWER} tokens more")
    by_name = {runner.name: runner for runner in runners}
    for runner in runners:
        rates, steps, first = runner.rates, runner.step_ms, runner.first_ms
        resident = max(found["resident_mb"] for found in runner.found)
        print(
            f"{runner.name:<26} {statistics.median(rates):7.1f} tokens/s "
            f"({min(rates):.1f}..{max(rates):.1f}), step p50 {np.percentile(steps, 50):.2f} p95 "
            f"{np.percentile(steps, 95):.2f} ms, first token {statistics.median(first):.0f} ms "
            f"({min(first):.0f}..{max(first):.0f}), resident {resident:.0f} MB of "
            f"{runner.weights_mb:.0f} in the file ({resident / runner.weights_mb:.2f})"
        )
    for name, other in (
        ("ours fp32", "transformers fp32"),
        ("ours fp32", "llama.cpp F32"),
        ("ours int8", "llama.cpp Q8_0"),
        ("ours int4", "llama.cpp Q4_0"),
        ("ours int4", "genai int4"),
        ("ours int4", "genai int4 block 128"),
        ("ours int4, 8 lanes", "ours int4"),
        ("ours fp32, 512 before", "llama.cpp F32, 512 before"),
        ("ours int4, 512 before", "llama.cpp Q4_0, 512 before"),
    ):
        if name in by_name and other in by_name:
            print_ratios(by_name[name], by_name[other])
    same = {runner.name: runner.found[0]["tokens"] for runner in runners if "32" in runner.name}
    print(f"fp32: {len({tuple(tokens) for tokens in same.values()})} different answers")


def print_ratios(one: Runner, other: Runner) -> None:
    """Print ratios of what was measured in the same round."""
    faster = [a / b for a, b in zip(one.rates, other.rates, strict=True)]
    later = [a / b for a, b in zip(one.first_ms, other.first_ms, strict=True)]
    print(
        f"{one.name} / {other.name}: tokens/s {statistics.median(faster):.2f} "
        f"({min(faster):.2f}..{max(faster):.2f}), first token {statistics.median(later):.2f} "
        f"({min(later):.2f}..{max(later):.2f})"
    )


def ours(folder: Path) -> Iterator[Runner]:
    """Write and return our graphs."""
    for weights in ("fp32", "int8", "int4"):
        graph = folder / f"{weights}.onnx"
        write_decoder(folder / "hf", graph, WriteOptions(weights=weights, context=CONTEXT))
        kinds = [("", 1, PROMPT)]
        if weights == "int4":
            kinds.append((f", {LANES} lanes", LANES, PROMPT))
        if weights != "int8":
            kinds.append((", 512 before", 1, CONTEXT // 2))
        for kind, lanes, prompt in kinds:
            yield Runner(
                name=f"ours {weights}{kind}", weights=weights_path(graph), lanes=lanes,
                command=script(
                    sys.executable, "chat_ours", str(graph), THREADS, lanes, CONTEXT
                ), prompt=prompt,
            )  # fmt: skip


def peers(folder: Path) -> Iterator[Runner]:
    """Write the models of the peers that are installed, and return these."""
    yield Runner(
        name="transformers fp32", weights=folder / "hf/model.safetensors",
        command=script(sys.executable, "chat_transformers", str(folder / "hf"), THREADS),
    )  # fmt: skip
    python = PEERS / "llama-cpp/bin/python"
    if python.exists():
        for kind in ("F32", "Q8_0", "Q4_0"):
            out = folder / f"{kind}.gguf"
            subprocess.run(
                script(python, "chat_gguf", str(folder / "hf"), str(out), kind), check=True
            )
            for more, prompt in (("", PROMPT), (", 512 before", CONTEXT // 2)):
                if more and kind == "Q8_0":
                    continue
                yield Runner(
                    name=f"llama.cpp {kind}{more}", weights=out, prompt=prompt,
                    command=script(python, "chat_llama_cpp", str(out), THREADS, CONTEXT),
                )  # fmt: skip
    else:
        print("llama.cpp is not installed: make peers")
    python = PEERS / "genai/bin/python"
    if python.exists():
        for name, block in (("genai int4", 32), ("genai int4 block 128", 128)):
            out = folder / name.replace(" ", "-")
            build_genai(python, folder / "hf", out, block)
            yield Runner(
                name=name, weights=out, command=script(python, "chat_genai", str(out), THREADS)
            )
    else:
        print("onnxruntime-genai is not installed: make peers")


def script(python: Path | str, module: str, *arguments: object) -> list[str]:
    return [str(python), "-m", f"tests.peers.{module}", *map(str, arguments)]


def build_genai(python: Path, source: Path, out: Path, block: int) -> None:
    """Let the peer's own builder write its graph, with integer products as ours."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out, "-p", "int4",
             "-e", "cpu", "-c", out / "cache", "--extra_options", f"int4_block_size={block}",
             "int4_accuracy_level=4"]  # fmt: skip
    subprocess.run([python, *words], check=True, capture_output=True)
    shutil.rmtree(out / "cache", ignore_errors=True)


def make_model(folder: Path) -> None:
    """Write a Hugging Face folder with random weights, and a tokenizer that genai asks for."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = {f"w{i}": i for i in range(SIZES["vocab_size"])}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"})
    )
    random = np.random.default_rng(0)
    heads, kv_heads = (
        SIZES["head_dim"] * SIZES[key] for key in ("num_attention_heads", "num_key_value_heads")
    )
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        return random.standard_normal((outputs, inputs), np.float32) / np.float32(inputs**0.5)

    ones = np.ones(hidden, np.float32)
    weights = {"model.norm.weight": ones}
    for name in ("model.embed_tokens", "lm_head"):
        weights[f"{name}.weight"] = matrix(SIZES["vocab_size"], hidden)
    for layer in range(SIZES["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for name, shape in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = ones
    save_file(weights, folder / "model.safetensors")


if __name__ == "__main__":
    main()
