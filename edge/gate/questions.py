"""The golden questions of a bundle, asked over HTTP: are the answers right, and how fast."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.bundle import blob_path
from edge.errors import BundleError, EdgeError, InferenceError
from edge.files import read_capped
from edge.gate.limits import Limits
from edge.http_client import AgentClient
from edge.manifest import GoldenCase, Manifest, Model, Variant
from edge.oip_client import infer
from edge.self_test import relative_error, tensor_from_golden

# What a chat model is asked: its golden logits were compared when the agent opened it, and are not
# to be had over HTTP.
_CHAT_TOKENS = 8
_CHAT_PROMPT = "Hello"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came of asking one model. problem: of the first answer that was none, in words.

    error, tolerance: the worst relative error, None for a chat model. p95_ms: over all answers.
    """

    model: str
    asked: int
    p95_ms: float
    error: float | None = None
    tolerance: float | None = None
    problem: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether all answers came and are within the tolerance."""
        if self.problem is not None:
            return False
        return self.error is None or (self.tolerance is not None and self.error <= self.tolerance)


def ask_bundle(
    client: AgentClient,
    folder: Path,
    manifest: Manifest,
    variants: dict[str, str],
    limits: Limits,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Answers]:
    """Yield what the models of a bundle answer to its own golden questions.

    variants: by model, which one answers; models that are not served are left out.
    """
    for model in manifest.models:
        if model.name not in variants:
            continue
        variant = next((v for v in model.variants if v.id == variants[model.name]), None)
        if variant is None:
            problem = f"it serves {variants[model.name]!r}, which the bundle does not have"
            yield Answers(model=model.name, asked=0, p95_ms=math.inf, problem=problem)
        elif model.chat is not None:
            yield _talk(client, model, limits, clock)
        else:
            yield _ask(client, folder, manifest, model, variant, limits, clock)


def golden_reader(folder: Path, manifest: Manifest) -> Callable[[str], bytes]:
    """Return what reads a file of a bundle by its path, verified; it raises EdgeError."""

    def read(path: str) -> bytes:
        artifact = manifest.artifact(path)
        content = read_capped(blob_path(folder, artifact.sha256), max_bytes=artifact.size)
        if hashlib.sha256(content).hexdigest() != artifact.sha256:
            raise BundleError(f"{path} does not match its digest; install the bundle again")
        return content

    return read


def _ask(
    client: AgentClient,
    folder: Path,
    manifest: Manifest,
    model: Model,
    variant: Variant,
    limits: Limits,
    clock: Callable[[], float],
) -> Answers:
    read = golden_reader(folder, manifest)
    seconds: list[float] = []
    worst = 0.0
    for round_ in range(limits.rounds):
        for case in model.golden.cases:
            feeds = {tensor.name: tensor_from_golden(tensor, read) for tensor in case.inputs}
            began = clock()
            try:
                outputs = infer(client, model.name, feeds, is_test=True)
            except EdgeError as error:
                return _failed(model, seconds, str(error))
            seconds.append(clock() - began)
            if round_ == 0:
                missing = _missing(case, outputs)
                if missing is not None:
                    return _failed(model, seconds, missing)
                errors = [
                    relative_error(outputs[tensor.name], tensor_from_golden(tensor, read))
                    for tensor in case.outputs
                ]
                # NaN is larger than any tolerance.
                worst = max(worst, *(math.inf if math.isnan(error) else error for error in errors))
    tolerance = model.golden.tolerance[variant.precision]
    return Answers(
        model=model.name,
        asked=len(seconds),
        p95_ms=_p95_ms(seconds),
        error=worst,
        tolerance=tolerance,
    )


def _missing(case: GoldenCase, outputs: dict[str, np.ndarray]) -> str | None:
    for tensor in case.outputs:
        got = outputs.get(tensor.name)
        if got is None or got.shape != tensor.shape:
            shape = None if got is None else list(got.shape)
            return f"output {tensor.name!r} has the shape {shape}, not {list(tensor.shape)}"
    return None


def _talk(client: AgentClient, model: Model, limits: Limits, clock: Callable[[], float]) -> Answers:
    body = {
        "model": model.name,
        "prompt": _CHAT_PROMPT,
        "max_tokens": _CHAT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    seconds: list[float] = []
    for _ in range(limits.rounds):
        began = clock()
        try:
            text = _completion(client, body)
        except EdgeError as error:
            return _failed(model, seconds, str(error))
        seconds.append(clock() - began)
        if not text:
            return _failed(model, seconds, "a completion is empty")
    return Answers(model=model.name, asked=len(seconds), p95_ms=_p95_ms(seconds))


def _completion(client: AgentClient, body: dict[str, object]) -> str:
    received = client.send(
        "POST",
        "/v1/completions",
        headers={"Content-Type": "application/json"},
        body=json.dumps(body).encode(),
    )
    try:
        answer = json.loads(received.body)
        if received.status == 200:
            return str(answer["choices"][0]["text"])
        told = answer["error"]["message"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InferenceError(f"/v1/completions answers what cannot be read: {error!r}") from error
    raise InferenceError(f"/v1/completions answers {received.status}: {told}")


def _failed(model: Model, seconds: list[float], problem: str) -> Answers:
    return Answers(model=model.name, asked=len(seconds), p95_ms=_p95_ms(seconds), problem=problem)


def _p95_ms(seconds: list[float]) -> float:
    if not seconds:
        return math.inf
    return float(np.quantile(seconds, 0.95, method="inverted_cdf")) * 1e3
