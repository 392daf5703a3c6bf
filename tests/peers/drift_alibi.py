"""What alibi-detect's KSDrift says of ten pairs of samples, as a fixture of ours.

    .peers/alibi-detect/bin/python -m tests.peers.drift_alibi tests/data/drift_alibi.json

With no file to write to, it prints the document.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from alibi_detect import __version__
from alibi_detect.cd import KSDrift

from tests.peers.drift_sets import CORRECTIONS, LEVEL, data_sets


def decisions() -> dict[str, object]:
    found = {}
    for name, (reference, window) in data_sets().items():
        found[name] = {}
        for correction in CORRECTIONS:
            detector = KSDrift(reference, p_val=LEVEL, correction=correction)
            said = detector.predict(window)["data"]
            found[name][correction] = {
                "is_drift": bool(said["is_drift"]),
                "distance": [float(value) for value in said["distance"]],
            }
    return {"alibi_detect": __version__, "level": LEVEL, "sets": found}


if __name__ == "__main__":
    text = json.dumps(decisions(), indent=1, sort_keys=True) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    else:
        print(text, end="")
