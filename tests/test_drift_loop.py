"""docs/drift.md, step by step: a model drifts, is trained on what was seen, and is well again."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from calibration.model_file import save_model
from edge.agent_process import script
from edge.http_client import AgentClient
from edge.manifest_reading import manifest_from_bytes
from edge.oip_client import infer
from tests.agents import unused_port
from tests.fakes import wait_until
from tests.models import model_from_nodes

REPOSITORY = Path(__file__).parents[1]
PORT = "8765"  # of the document
WINDOW = 100
ROWS = 10  # of a request
STEP_S = 180.0
MORE_TRIES = 3


def blocks() -> Iterator[list[list[str]]]:
    """Yield the words of the commands of each block of the loop."""
    text = (REPOSITORY / "docs" / "drift.md").read_text(encoding="utf-8")
    for block in re.findall(r"```\n(.*?)```\n", text.partition("## The whole loop")[2], re.DOTALL):
        yield [shlex.split(line) for line in block.splitlines()]


class Place:
    """A folder with everything in it, and an agent that is asked for digits."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, unused_port()

    def words(self, words: list[str]) -> list[str]:
        rest = (str(self.port) if word == PORT else word for word in words[1:])
        return [script(words[0]), *(word.replace("$PWD", str(self.folder)) for word in rest)]

    def ran(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(words), cwd=self.folder, capture_output=True, text=True, timeout=STEP_S
        )

    def run(self, words: list[str], *, code: int = 0) -> str:
        ran = self.ran(words)
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        return ran.stdout

    def update(self, words: list[str]) -> None:
        """Follow the channel; a machine that is busy with something else may need another try."""
        ran = self.ran(words)
        for _ in range(MORE_TRIES):
            if ran.returncode == 0:
                break
            assert "p95 latency" in ran.stdout + ran.stderr, (ran.stdout, ran.stderr)
            ran = self.ran([*words, "--again"])
        assert ran.stdout.startswith("installed: digits"), (ran.stdout, ran.stderr)

    @contextmanager
    def serving(self, words: list[str]) -> Iterator[None]:
        with (self.folder / "agent.log").open("wb") as log:
            agent = subprocess.Popen(self.words(words), cwd=self.folder, stderr=log)
        try:
            yield
        finally:
            agent.terminate()
            agent.wait(STEP_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def telemetry(self) -> Any:
        with closing(AgentClient(self.url)) as client:
            return json.loads(client.send("GET", "/telemetry").body)

    def drift(self) -> Any:
        (model,) = self.telemetry()["models"]
        return model["drift"]

    def ask(self, images: np.ndarray) -> np.ndarray:
        """Return the classes that the model gives; the last window of them is compared."""
        answers = []
        for first in range(0, len(images), WINDOW):
            before = self.drift()["windows"]
            with closing(AgentClient(self.url)) as client:
                for start in range(first, first + WINDOW, ROWS):
                    feeds = {"image": images[start : start + ROWS]}
                    answers.append(infer(client, "digits", feeds)["logits"].argmax(axis=1))
            wait_until(lambda n=before: self.drift()["windows"] > n)  # type: ignore[misc]
        return np.concatenate(answers)

    def alarms(self) -> list[str]:
        return [alarm["name"] for alarm in self.telemetry()["alarms"] if alarm["model"] == "digits"]

    def save(self, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        np.savez(self.folder / name, image=images, labels=labels)


def train(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Fit a small network and write it as ONNX, as any training would."""
    net = MLPClassifier((48,), max_iter=2000, random_state=1)
    net.fit(images.reshape(len(images), -1), labels)
    weights = {
        f"{kind}{layer}": values.astype(np.float32)
        for kind, parts in (("w", net.coefs_), ("b", net.intercepts_))
        for layer, values in enumerate(parts)
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w0", "b0"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w1", "b1"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    model = model_from_nodes(nodes, [image], [logits], weights)
    save_model(model, path)


@pytest.mark.slow
def test_a_drifted_model_is_trained_on_what_was_seen_and_is_well_again(tmp_path: Path) -> None:
    scans = load_digits()
    images = (scans.images / 16).astype(np.float32)[:, None]
    labels = scans.target.astype(np.int64)
    order = np.random.default_rng(4).permutation(len(images))
    training, held_out, usual, shifted = np.split(order[:1700], [700, 900, 1100])
    inverted = 1 - images[shifted]
    first, device, exporting, second = blocks()
    place = Place(tmp_path)

    train(tmp_path / "trained.onnx", images[training], labels[training])
    place.save("train.npz", images[training], labels[training])
    place.save("heldout.npz", images[held_out], labels[held_out])
    for words in first:
        place.run(words)
    (tmp_path / "device").mkdir()
    serve, update = device
    with place.serving(serve):
        place.update(update)
        assert (place.ask(images[usual]) == labels[usual]).mean() > 0.9
        place.run(["edge-agent", "drift", "status", "--url", place.url])
        assert place.drift()["state"] == "steady"

        before = (place.ask(inverted) == labels[shifted]).mean()
        assert before < 0.5
        assert place.drift()["state"] == "drifted"
        wait_until(lambda: place.alarms() == ["drift"])
        told = place.run(["edge-agent", "drift", "status", "--url", place.url], code=1)
        assert "digits: drifted" in told

        for words in exporting:
            place.run(words)
        lines = [json.loads(line) for line in (tmp_path / "seen/rows.jsonl").read_text().split("\n")
                 if line]  # fmt: skip
        seen = np.load(tmp_path / "seen/inputs/0001.npz")["image"]
        drifted = seen[[line["row"] for line in lines if line["drifted"]]]
        assert sorted(map(bytes, drifted)) == sorted(map(bytes, inverted))
        oracle = dict(zip(map(bytes, inverted), labels[shifted], strict=True))
        truth = np.array([oracle[bytes(image)] for image in drifted])

        new, rest = drifted[::2], drifted[1::2]
        old_and_new = np.concatenate([images[training], new])
        old_and_new_labels = np.concatenate([labels[training], truth[::2]])
        train(tmp_path / "trained-2.onnx", old_and_new, old_and_new_labels)
        place.save("train-2.npz", old_and_new, old_and_new_labels)
        place.save("heldout-2.npz", rest, truth[1::2])
        for words in second[:-1]:
            place.run(words)
        (model,) = manifest_from_bytes((tmp_path / "bundle-2/manifest.json").read_bytes()).models
        assert {variant.precision for variant in model.variants} == {"fp32", "int8"}
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as registry:
            found = registry.execute("select name, version from model_versions").fetchall()
        assert found == [("digits", 1)]
        assert place.telemetry()["bundle"]["version"] == "1"
        place.update(second[-1])
        assert place.telemetry()["bundle"]["version"] == "2"

        answers = place.ask(inverted)
        assert (answers == labels[shifted]).mean() > 0.9
        untrained = {bytes(image) for image in rest}
        is_new = np.array([bytes(image) in untrained for image in inverted])
        assert (answers == labels[shifted])[is_new].mean() > max(0.85, before + 0.3)
        place.run(["edge-agent", "drift", "status", "--url", place.url])
        assert place.drift()["state"] == "steady"
        wait_until(lambda: place.alarms() == [])
