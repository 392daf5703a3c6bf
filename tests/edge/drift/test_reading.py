from __future__ import annotations

import numpy as np
import pytest

from edge.drift.reading import Reader
from edge.spec import TensorSpec
from edge.text import TextPreprocessing
from tests.edge.drift.populations import LONGEST, model_of, text_model


@pytest.mark.parametrize("mask", ["mask", None])
def test_padding_is_no_part_of_a_text(mask):
    how = TextPreprocessing(tokenizer="t", ids="ids", mask=mask, max_tokens=LONGEST, pad=7)
    specs = tuple(
        TensorSpec(name=name, datatype="INT64", shape=("batch", "tokens"))
        for name in ("ids", mask)
        if name is not None
    )
    model = model_of(inputs=specs, outputs=text_model().outputs, text=how, embedding="vector")
    ids = np.array([[3, 5, 5]])
    padded = np.array([[3, 5, 5, 7, 7, 7]])
    found = []
    for row in (ids, padded):
        feeds = {"ids": row} if mask is None else {"ids": row, "mask": (row != 7).astype(np.int64)}
        reader = Reader(model)
        taken = reader.take(feeds, {"vector": np.zeros((1, 16), np.float32)})
        found.append(reader.summary_of(taken).features)
    np.testing.assert_array_equal(*found)
    assert found[0][0, 0] == 3
