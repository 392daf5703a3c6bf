"""One bundle, served on the GPU and on the CPU: the same questions must get the same answers.

python -m tests.gpu.chat_serve BUNDLE KEYS VARIANT [OTHER]

OTHER: a variant, ort-fp32 by default, or a JSON file of answers, which is written if it is not
there: where the GPU is, ONNX Runtime need not be.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from edge.agent_process import agent_process

QUESTIONS = (
    "What does str.split do?",
    "Explain the while statement.",
    "What is len?",
    "What does os.path.join do?",
    "What is a list comprehension?",
    "What does json.loads do?",
    "Explain the with statement.",
    "What does re.match do?",
)
TOKENS = 64


def main(bundle: Path, keys: Path, gpu: str, cpu: str) -> int:
    known, is_file = Path(cpu), cpu.endswith(".json")
    found = {gpu: _answers(bundle, keys, gpu)}
    if is_file and not known.exists():
        known.write_text(json.dumps(found[gpu]))
        return 0
    found[cpu] = json.loads(known.read_text()) if is_file else _answers(bundle, keys, cpu)
    same = sum(a == b for a, b in zip(found[gpu], found[cpu], strict=True))
    for question, ours, theirs in zip(QUESTIONS, found[gpu], found[cpu], strict=True):
        mark = "same" if ours == theirs else f"differs from {theirs!r}"
        print(f"> {question}\n  {ours!r}: {mark}")
    print(f"{gpu} and {cpu}: {same} of {len(QUESTIONS)} answers are the same")
    return int(same < len(QUESTIONS))


def _answers(bundle: Path, keys: Path, variant: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--bundle", str(bundle.resolve()), "--trusted-keys", str(keys.resolve())]
        flags += ["--port", "0", "--variant", variant, "--cache", f"{folder}/engines"]
        flags += ["--ready-on-cpu"]
        began = time.monotonic()
        with agent_process(Path(folder), flags, timeout_s=300) as (url, _):
            print(f"{variant}: ready after {time.monotonic() - began:.1f} s")
            answers = [_ask(url, question) for question in QUESTIONS]
            with urllib.request.urlopen(f"{url}/telemetry") as response:
                (model,) = json.load(response)["models"]
        chat = model["chat"]
        print(
            f"{variant}: {model['means']}, self-test {model['self_test']['relative_error']:.1e}, "
            f"{chat['tokens_per_s']} tokens/s, first token {chat['first_token_ms']} ms"
        )
        return answers


def _ask(url: str, question: str) -> str:
    body = json.dumps({"query": question, "temperature": 0, "max_tokens": TOKENS}).encode()
    with urllib.request.urlopen(f"{url}/chat", body, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return str(answer["answer"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *[*sys.argv[3:], "ort-fp32"][:2]))
