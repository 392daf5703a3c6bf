"""Requests that schemathesis makes from OpenAPI documents, against an agent that serves.

    .peers/schemathesis/bin/python tests/peers/schemathesis_cases.py URL OIP_DOCUMENT [ABSENT ...]

ABSENT: operations that are described and not served, as "get /path". Requests are valid and invalid
by their document; more than half of those that name a model name one that is served, and half of
the inference requests fit it. The seed is fixed. Prints how many cases got which status.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

SEED = 20260101
EXAMPLES, INFER_EXAMPLES = 60, 300
OIP_EXAMPLES, OIP_INFER_EXAMPLES = 200, 1700
MODELS = ["affine", "photo", "words"]
CHANGED = "spare"
VALUES = {"MODEL_VERSION": "1"}
TIMEOUT_S = 20.0
# The protocol's document lists 200 and 400 alone.
OIP_CHECKS = [content_type_conformance, response_schema_conformance]
ALL_CHECKS = [status_code_conformance, *OIP_CHECKS]
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["cat", "dog"])
ROWS = {  # input, datatype, shape of a row, values
    "affine": ("x", "FP32", [4], floats),
    "words": ("text", "BYTES", [1], texts),
    "photo": ("x", "FP32", [3, 4, 4], floats),
}


@st.composite
def fitting_requests(draw: st.DrawFn, model: str) -> dict[str, Any]:
    """Return an inference request that the model takes."""
    name, datatype, row, values = ROWS[model]
    count, size = draw(st.integers(1, 8)), 1
    for dim in row:
        size *= dim
    data = draw(st.lists(values, min_size=size, max_size=size))
    tensor = {"name": name, "datatype": datatype, "shape": [count, *row], "data": data * count}
    request: dict[str, Any] = {"inputs": [tensor]}
    if draw(st.booleans()):
        request["id"] = draw(st.text(max_size=8))
    if draw(st.booleans()):
        request["parameters"] = {"priority": draw(st.integers(0, 9))}
    return request


@st.composite
def cases(draw: st.DrawFn, operation: Any) -> Any:
    """Return a case of an operation, valid or not, often of a model that is served."""
    named = {parameter.name for parameter in operation.path_parameters}
    is_run = operation.path.endswith("/infer") or operation.path.startswith("/predict/")
    if is_run and draw(st.booleans()):
        return draw(fitting_cases(operation, named))
    mode = draw(st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
    case = draw(operation.as_strategy(generation_mode=mode))
    if named and draw(st.integers(0, 9)) < 7:
        model = CHANGED if "/repository/" in operation.path else draw(st.sampled_from(MODELS))
        case.path_parameters = {name: VALUES.get(name, model) for name in named}
    return case


@st.composite
def fitting_cases(draw: st.DrawFn, operation: Any, named: set[str]) -> Any:
    """Return a request to run a model that the model takes."""
    if operation.path.startswith("/predict/"):
        model, body, media = "photo", PNG, "image/png"
    else:
        model, media = draw(st.sampled_from(MODELS)), "application/json"
        body = draw(fitting_requests(model))
    path = {name: VALUES.get(name, model) for name in named}
    case = draw(operation.as_strategy(path_parameters=path, body=body, media_type=media))
    # Headers would say something else of the body, or that there is no time.
    for header in set(case.headers or {}) - {"Accept-Encoding"}:
        del case.headers[header]
    return case


class Run:
    """Cases of one document, and what came of them."""

    def __init__(self, title: str, url: str, schema: Any, checks: list[Any]) -> None:
        self.title = title
        self.url = url
        self.schema = schema
        self.checks = checks
        self.statuses: Counter[int] = Counter()
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self.session = requests.Session()

    def operation(self, operation: Any, examples: int) -> None:
        """Send the cases of one operation; the first that fails ends it."""

        @seed(SEED)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases(operation))
        def test(case: Any) -> None:
            self.send(case)

        try:
            test()
        except (Exception, FailureGroup) as error:  # noqa: BLE001 - every operation has its turn
            self.failures.append(f"{operation.label}: {type(error).__name__}: {error}")

    def send(self, case: Any) -> None:
        """Send one case and check its answer."""
        response = case.call(base_url=self.url, session=self.session, timeout=TIMEOUT_S)
        status = response.status_code
        self.statuses[status] += 1
        self.answered[case.operation.label] += status == 200
        checks = list(self.checks)
        if not asks_for_haste(case, status):
            checks.append(not_a_server_error)
        if case.operation.path.endswith("/infer") and "octet-stream" in content_type(response):
            # The protocol's extension for binary tensors, which its document leaves out.
            checks = [c for c in checks if c in {not_a_server_error, status_code_conformance}]
        case.validate_response(response, checks=checks)


def asks_for_haste(case: Any, status: int) -> bool:
    """Whether a request gave a time limit and got the answer that it ran out."""
    headers = {name.lower() for name in case.headers or {}}
    parameters = case.body.get("parameters") if isinstance(case.body, dict) else None
    in_body = isinstance(parameters, dict) and bool(parameters.get("timeout"))
    return status == 504 and ("edge-timeout-ms" in headers or in_body)


def content_type(response: Any) -> str:
    return ",".join(response.headers.get("content-type", []))


def main(url: str, oip_path: str) -> int:
    """Run both documents and return the exit status."""
    own = requests.get(f"{url}/openapi.json", timeout=TIMEOUT_S).json()
    oip = yaml.safe_load(Path(oip_path).read_text(encoding="utf-8"))
    total, failures = 0, []
    for title, document, checks, examples, infer_examples in (
        ("the agent's document", own, ALL_CHECKS, EXAMPLES, INFER_EXAMPLES),
        ("Open Inference Protocol", oip, OIP_CHECKS, OIP_EXAMPLES, OIP_INFER_EXAMPLES),
    ):
        started = time.monotonic()
        run = Run(title, url, schemathesis.openapi.from_dict(document), checks)
        for result in run.schema.get_all_operations():
            operation = result.ok()
            is_run = operation.path.endswith("/infer") or operation.path.startswith("/predict/")
            run.operation(operation, infer_examples if is_run else examples)
        count = sum(run.statuses.values())
        total += count
        failures += run.failures
        by_status = ", ".join(f"{n} x {status}" for status, n in sorted(run.statuses.items()))
        print(f"{title}: {count} cases in {time.monotonic() - started:.0f} s: {by_status}")
        for label, answered in run.answered.items():
            print(f"  {label}: {answered} x 200")
    for failure in failures:
        print(f"FAILED {failure}\n")
    print(f"{total} cases, {len(failures)} operations with a failure")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
