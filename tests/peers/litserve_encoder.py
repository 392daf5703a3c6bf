"""The sentence encoder with LitServe, which batches: litserve_encoder.py PORT PATH."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np

from tests.peers.encoder import MAX_BATCH, MAX_WAIT_S, embeddings, open_encoder


class Encoder(litserve.LitAPI):
    """Token ids in, an embedding out, in the JSON of the Open Inference Protocol."""

    def setup(self, device: str) -> None:
        """Open the graph."""
        self.session = open_encoder()

    def decode_request(self, request):  # LitServe reads annotations
        """Return the token ids of one sentence."""
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.int64).reshape(tensor["shape"])

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Join sentences of one length."""
        return np.concatenate(inputs)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Return an embedding for each."""
        return embeddings(self.session, ids)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Return one row for each request."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """Return the answer."""
        shape, data = [1, *output.shape], output.ravel().tolist()
        y = {"name": "embedding", "shape": shape, "datatype": "FP32", "data": data}
        return {"model_name": "minilm", "outputs": [y]}


if __name__ == "__main__":
    api = Encoder(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_S, api_path=sys.argv[2])
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error"
    )
