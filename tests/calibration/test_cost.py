from __future__ import annotations

import numpy as np

from calibration.cost import predicted_cost
from calibration.graph import macs_by_node, prepared
from tests.calibration.nets import conv_net

# conv_net on one 8x8 image: 64 places x 9 taps x 3 x 8, x 8 x 8, and 8 x 5 for the head.
CONV1, CONV2, HEAD = 64 * 9 * 3 * 8, 64 * 9 * 8 * 8, 8 * 5
WEIGHTS = {"conv1": 9 * 3 * 8, "conv2": 9 * 8 * 8, "head": 8 * 5}


def test_int8_halves_the_time_and_the_bytes_of_its_own_nodes_alone() -> None:
    model = prepared(conv_net())
    macs = macs_by_node(model, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    total = CONV1 + CONV2 + HEAD
    cost = predicted_cost(model, {"conv2"}, macs)
    assert cost.macs == total
    assert cost.compute == round(1 - 0.5 * CONV2 / total, 4)
    assert cost.traffic == round(1 - 0.5 * WEIGHTS["conv2"] / sum(WEIGHTS.values()), 4)
    assert predicted_cost(model, set(), macs).compute == 1.0
    assert predicted_cost(model, set(WEIGHTS), macs).traffic == 0.5
