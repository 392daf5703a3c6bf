"""POST /v1/embeddings, judged by OpenAI's own client against an agent over HTTP."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edge.agent import Agent
from edge.embeddings import MAX_BODY_BYTES, MAX_INPUTS
from edge.manifest import Batching
from edge.places import Places
from edge.text import MAX_CHARACTERS
from tests.agents import make_config, running_agent
from tests.bundles import affine_parts
from tests.encoders import (
    MAX_ROWS,
    MAX_TOKENS,
    OUTPUTS,
    PROFILE,
    TABLE,
    TEXT,
    WIDTH,
    encoder_parts,
    ids_of,
    vector_of,
)
from tests.fakes import DEADLINE_S, Gate, wait_until

openai = pytest.importorskip("openai")

CLOSE = {"rtol": 0, "atol": 1e-6}  # fp32 of unit vectors


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that serves the encoder, and a model that is none."""
    (manifest, files), (other, other_files) = encoder_parts(), affine_parts()
    both = replace(manifest, models=(*manifest.models, *other.models))
    folder = tmp_path_factory.mktemp("encoder")
    with running_agent(make_config(folder, (both, {**files, **other_files}))) as agent:
        yield agent


@pytest.fixture
def client(agent: Agent) -> Iterator[Any]:
    with client_of(agent) as client:
        yield client


def client_of(agent: Agent) -> Any:
    return openai.OpenAI(
        base_url=f"{agent.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S
    )


def post(agent: Agent, **body: Any) -> httpx.Response:
    return httpx.post(f"{agent.url}/v1/embeddings", json={"model": "encoder", **body})


WORDS = [["the", "cat"], ["dog"], ["cat", "sat", "on", "the", "mat"], ["far", "##s"]]
TEXTS = ["the cat", "dog", "cat sat on the mat", "fars"]


def vectors(response: Any) -> np.ndarray:
    assert [item.index for item in response.data] == list(range(len(response.data)))
    return np.array([item.embedding for item in response.data])


def test_the_client_gets_the_vectors_in_either_encoding(client: Any) -> None:
    expected = np.stack([vector_of(ids_of(*words)) for words in WORDS])
    for options in ({}, {"encoding_format": "base64"}, {"encoding_format": "float"}):
        response = client.embeddings.create(model="encoder", input=TEXTS, **options)
        if options.get("encoding_format") == "base64":
            for item in response.data:
                item.embedding = np.frombuffer(base64.b64decode(item.embedding), "<f4").tolist()
        np.testing.assert_allclose(vectors(response), expected, **CLOSE)
        assert (response.object, response.model) == ("list", "encoder")
        assert response.usage.prompt_tokens == sum(len(ids_of(*words)) for words in WORDS)
        assert response.usage.total_tokens == response.usage.prompt_tokens


def test_texts_and_tokens_in_all_four_forms_give_the_same_vector(client: Any) -> None:
    ids = ids_of("cat", "sat")
    for given in ("cat sat", ["cat sat"], ids, [ids]):
        response = client.embeddings.create(model="encoder", input=given, dimensions=WIDTH)
        np.testing.assert_allclose(vectors(response), [vector_of(ids)], **CLOSE)
        assert response.usage.prompt_tokens == len(ids)


def test_more_texts_than_a_batch_come_back_in_their_order(agent: Agent, client: Any) -> None:
    rng = np.random.default_rng(0)
    count = 5 * MAX_ROWS + 3
    rows = [rng.integers(4, len(TABLE), rng.integers(1, MAX_TOKENS + 1)) for _ in range(count)]
    before = agent.serving.served["encoder"].statistics.inference_count
    response = client.embeddings.create(model="encoder", input=[row.tolist() for row in rows])
    np.testing.assert_allclose(vectors(response), [vector_of(row) for row in rows], **CLOSE)
    assert agent.serving.served["encoder"].statistics.inference_count == before + count


def test_a_long_text_is_cut_and_counted_as_what_was_read(client: Any) -> None:
    response = client.embeddings.create(model="encoder", input="cat " * 100)
    kept = ids_of(*["cat"] * (MAX_TOKENS - 2))
    np.testing.assert_allclose(vectors(response), [vector_of(kept)], **CLOSE)
    assert response.usage.prompt_tokens == MAX_TOKENS


def test_the_client_lists_the_encoders_and_no_other_model(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("encoder", "model", "affine-bundle")
    assert model.created == 1767225600  # 2026-01-01T00:00:00Z
    assert client.models.retrieve("encoder") == model
    for name in ("affine", "gpt"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert caught.value.code == "model_not_found"


def test_what_is_wrong_is_told_as_the_client_reads_it(agent: Agent, client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="gpt", input="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "'gpt' is unknown" in str(missing.value)
    with pytest.raises(openai.BadRequestError) as wide:
        client.embeddings.create(model="encoder", input="x", dimensions=3)
    assert (wide.value.param, wide.value.type) == ("dimensions", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as other:
        client.embeddings.create(model="affine", input="x")
    assert (other.value.param, "no encoder" in str(other.value)) == ("model", True)


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"input": []}, "input", "0 texts"),
        ({"input": [[]]}, "input", "empty"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", f"send 1..{MAX_INPUTS}"),
        ({"input": ["a"] * (64 * MAX_ROWS + 1)}, "input", f"64 times {MAX_ROWS}"),
        ({"input": ["a", 5]}, "input", "mixes"),
        ({"input": [5, [5]]}, "input", "mixes"),
        ({"input": [len(TABLE)]}, "input", "does not exist"),
        ({"input": [-1]}, "input", "does not exist"),
        ({"input": [2**70]}, "input", "does not exist"),
        ({"input": "a" * (MAX_CHARACTERS + 1)}, "input", "shorter"),
        ({"input": 5}, "input", "int"),
        ({"input": {"a": 1}}, "input", "object"),
        ({"input": None}, "input", "null"),
        ({}, "input", "missing required field `input`"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"input": "a", "model": 5}, "model", "int"),
    ],
)
def test_bad_requests_are_400_and_name_the_field(
    agent: Agent, given: dict[str, Any], param: str | None, said: str
) -> None:
    answer = post(agent, **given)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert error["param"] == param
    assert said in error["message"]
    assert error["code"] == "input"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"input": "x"}', b"\xff", b"[" * 100_000])
def test_a_body_that_names_no_model_is_400(agent: Agent, body: bytes) -> None:
    answer = httpx.post(f"{agent.url}/v1/embeddings", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "input")


def test_a_body_is_bounded_before_it_is_read_and_may_be_compressed(agent: Agent) -> None:
    url = f"{agent.url}/v1/embeddings"
    large = json.dumps({"model": "encoder", "input": "a", "user": "a" * MAX_BODY_BYTES}).encode()
    packed = {"content": gzip.compress(large), "headers": {"Content-Encoding": "gzip"}}
    for answer in (httpx.post(url, content=large), httpx.post(url, **packed)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body-too-large")
    small = gzip.compress(json.dumps({"model": "encoder", "input": "cat"}).encode())
    answer = httpx.post(url, content=small, headers={"Content-Encoding": "gzip"})
    np.testing.assert_allclose(
        answer.json()["data"][0]["embedding"], vector_of(ids_of("cat")), **CLOSE
    )
    assert httpx.post(url, content=b"x", headers={"Content-Encoding": "br"}).status_code == 415


def test_another_method_is_refused_in_the_same_form(agent: Agent) -> None:
    answer = httpx.get(f"{agent.url}/v1/embeddings")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"


class EncoderSession:
    """Computes as the encoder does, once the gate is open."""

    inputs, outputs = (), OUTPUTS

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.vector: np.ndarray | None = None

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        self.gate()
        rows = [
            vector_of(ids[mask > 0])
            for ids, mask in zip(feeds["input_ids"], feeds["attention_mask"], strict=True)
        ]
        embedding = np.stack(rows).astype(np.float32)
        if self.vector is not None:
            embedding[:] = self.vector
        return {"embedding": embedding, "hidden": TABLE[feeds["input_ids"]]}

    def reset_state(self) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def busy(session: EncoderSession, client: Any, places: Places, *, requests: int) -> Iterator[None]:
    """Hold requests inside the agent: one runs, the others wait."""
    session.gate = Gate()
    ask = {"target": client.embeddings.create, "kwargs": {"model": "encoder", "input": "cat"}}
    threads = [threading.Thread(**ask) for _ in range(requests)]
    threads[0].start()
    session.gate.wait_entered()  # two at once would not both find room in the inbox
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: places.taken == requests)
    yield
    session.gate.open()
    for thread in threads:
        thread.join(DEADLINE_S)


def test_a_full_queue_and_a_passed_time_limit_keep_the_form(tmp_path: Path) -> None:
    session = EncoderSession(Gate(holds=False))
    config = make_config(tmp_path, encoder_parts(), queue_size=1)
    with (
        running_agent(config, open_session=lambda *_: session) as agent,
        client_of(agent) as client,
    ):
        places = agent.serving.served["encoder"].places
        with (
            busy(session, client, places, requests=2),
            pytest.raises(openai.RateLimitError) as refused,
        ):
            client.embeddings.create(model="encoder", input="cat")
        assert refused.value.code == "queue-full"
        assert refused.value.response.headers["Retry-After"]
        hasty = client.with_options(default_headers={"Edge-Timeout-Ms": "20"})
        with (
            busy(session, client, places, requests=1),
            pytest.raises(openai.InternalServerError) as late,
        ):
            hasty.embeddings.create(model="encoder", input="cat")
        assert (late.value.status_code, late.value.code) == (504, "deadline")


def test_a_vector_that_is_no_number_is_a_server_error(tmp_path: Path) -> None:
    session = EncoderSession(Gate(holds=False))
    config = make_config(tmp_path, encoder_parts())
    with (
        running_agent(config, open_session=lambda *_: session) as agent,
        client_of(agent) as client,
    ):
        session.vector = np.array(float("nan"))
        with pytest.raises(openai.InternalServerError) as caught:
            client.embeddings.create(model="encoder", input="cat")
        assert caught.value.type == "server_error"


def test_an_encoder_without_its_tokenizer_serves_tensors_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    manifest, files = encoder_parts()
    files[TEXT.tokenizer] = b'{"version": "2.0"}'
    with running_agent(make_config(tmp_path, (manifest, files))) as agent:
        answer = post(agent, input="cat")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "backend-unavailable")
        assert "edge-kit[text]" in answer.json()["error"]["message"]
        said = httpx.post(f"{agent.url}/predict/encoder", json={"text": "cat"})
        assert (said.status_code, "edge-kit[text]" in said.json()["error"]) == (409, True)
        ids = ids_of("cat")
        tensors = [
            {"name": name, "shape": [1, 3], "datatype": "INT64", "data": data}
            for name, data in (("input_ids", ids), ("attention_mask", [1, 1, 1]))
        ]
        url = f"{agent.url}/v2/models/encoder/infer"
        assert httpx.post(url, json={"inputs": tensors}).status_code == 200


def test_batches_join_with_those_of_others(tmp_path: Path) -> None:
    batching = Batching(ragged="tokens", pads={"input_ids": 0, "attention_mask": 0}, multiple=1)
    parts = encoder_parts(batching=batching, profile=PROFILE)
    config = make_config(tmp_path, parts, max_batch_rows=2)
    with running_agent(config) as agent, client_of(agent) as client:
        response = client.embeddings.create(model="encoder", input=TEXTS)
        expected = np.stack([vector_of(ids_of(*words)) for words in WORDS])
        np.testing.assert_allclose(vectors(response), expected, **CLOSE)
        stats = agent.serving.served["encoder"].statistics
        assert stats.execution_count == 2  # no batch is larger than the agent allows
