"""What a user writes in a quarter of an hour with FastAPI: the same protocol, no batching.

EDGE_ECHO=PATH of the ONNX graph; python -m uvicorn tests.peers.fastapi_echo:app
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["EDGE_ECHO"], options)
app = FastAPI()


class Tensor(BaseModel):
    """One input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Infer(BaseModel):
    """One request."""

    id: str | None = None
    inputs: list[Tensor]


@app.post("/v2/models/echo/infer")
async def infer(request: Infer) -> dict[str, Any]:
    """Answer in JSON."""
    tensor = request.inputs[0]
    values = np.array(tensor.data, np.float32).reshape(tensor.shape)
    y = session.run(None, {"x": values})[0]
    output = {"name": "y", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel().tolist()}
    return {"model_name": "echo", "outputs": [output]}


@app.post("/raw")
async def raw(request: Request) -> Response:
    """Answer bytes with bytes."""
    values = np.frombuffer(await request.body(), np.float32).reshape(1, 64)
    y = session.run(None, {"x": values})[0]
    return Response(y.tobytes(), media_type="application/octet-stream")
