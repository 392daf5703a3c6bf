"""The same with Flask under waitress: EDGE_ECHO=PATH python tests/peers/flask_echo.py PORT."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import onnxruntime
from flask import Flask, request
from waitress import serve

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["EDGE_ECHO"], options)
app = Flask("echo")


@app.post("/v2/models/echo/infer")
def infer() -> dict[str, Any]:
    """Answer in JSON."""
    tensor = request.get_json()["inputs"][0]
    values = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    y = session.run(None, {"x": values})[0]
    output = {"name": "y", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel().tolist()}
    return {"model_name": "echo", "outputs": [output]}


if __name__ == "__main__":
    serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=16)
