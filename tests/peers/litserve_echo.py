"""The same with LitServe: python tests/peers/litserve_echo.py PORT [BATCH]."""

from __future__ import annotations

import sys
from typing import Any

import litserve


class Echo(litserve.LitAPI):
    """64 floats there and back, as the list they came in; no session, not even numpy."""

    def setup(self, device: str) -> None:
        """Open nothing."""

    def decode_request(self, request):  # LitServe reads annotations
        """Return the tensor."""
        return request["inputs"][0]["data"]

    def predict(self, x: list[float]) -> list[float]:
        """Return it again."""
        return x

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """Return the answer."""
        y = {"name": "y", "shape": [1, 64], "datatype": "FP32", "data": output}
        return {"model_name": "echo", "outputs": [y]}


if __name__ == "__main__":
    api = Echo(api_path="/v2/models/echo/infer")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error"
    )
