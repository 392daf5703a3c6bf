"""The sentence encoder of a bundle, as the peers open it: EDGE_GRAPH=PATH of its ONNX graph."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

THREADS = 2
# What both peers may put into a run, and how long a request may wait for company.
MAX_BATCH, MAX_WAIT_S = 32, 0.005


def open_encoder() -> onnxruntime.InferenceSession:
    """Open the graph with the threads that the agent has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(os.environ["EDGE_GRAPH"], options)


def embeddings(session: onnxruntime.InferenceSession, ids: np.ndarray) -> np.ndarray:
    """Return one row for each sentence; ids: [sentences, tokens], none of them padding."""
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    rows: np.ndarray = session.run(None, feeds)[0]
    return rows
