"""Damaged engines: none may hurt the process that asks, with the digest check and without it.

python -m tests.gpu.corrupt BUNDLE_FOLDER VARIANT TRUNCATIONS FLIPS [OTHER_ENGINE...]

OTHER_ENGINE: built by another TensorRT, or for another GPU.
"""

from __future__ import annotations

import collections
import os
import random
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.bundle import open_bundle
from edge.engine_child import TryRequest
from edge.engine_process import AttemptError, attempt
from edge.errors import BundleError
from edge.sealed import Sealed
from edge.trust import trusted_keys_in

HEADER_BYTES = 160  # with the version of TensorRT and the compute capability


def main(
    where: Path, variant_id: str, truncations: int, flips: int, others: Sequence[Path]
) -> None:
    bundle = open_bundle(where / "bundle", trusted_keys_in(where / "keys"), defer_engines=True)
    model = bundle.manifest.models[0]
    variant = next(v for v in model.variants if v.id == variant_id)
    artifact = bundle.manifest.artifact(variant.files[0])
    path = bundle.path(artifact.path)
    good = path.read_bytes()
    golden = {
        t.artifact: str(bundle.path(t.artifact))
        for case in model.golden.cases
        for t in (*case.inputs, *case.outputs)
    }

    reasons: collections.Counter[str] = collections.Counter()

    def checked(content: bytes) -> str:
        damaged = where / f"damaged-{os.getpid()}-{id(content)}"
        damaged.write_bytes(content)
        try:
            Sealed.from_file(damaged, size=artifact.size, sha256=artifact.sha256).close()
        except BundleError:
            return "digest-mismatch"
        finally:
            damaged.unlink()
        return "ACCEPTED"

    def unchecked(content: bytes) -> str:
        sealed = Sealed.from_bytes(content)
        try:
            attempt(
                TryRequest(
                    backend="trt", model=model, precision=variant.precision,
                    engine=sealed.fileno(), golden=golden,
                ),
                timeout_s=120,
            )  # fmt: skip
        except AttemptError as error:
            reasons[_reason(str(error))] += 1
            return error.refusal
        finally:
            sealed.close()
        return "answers within tolerance"

    rng = random.Random(0)
    kinds = {
        f"{truncations} truncations": [
            good[: rng.randrange(len(good))] for _ in range(truncations)
        ],
        f"{flips} flipped bytes": [_flipped(good, rng) for _ in range(flips)],
        "random bytes": [rng.randbytes(size) for size in (0, 1, 64, 4096, len(good))],
        f"each of the first {HEADER_BYTES} bytes": [
            _incremented(good, place) for place in range(HEADER_BYTES)
        ],
        **{f"the engine {other.name}": [other.read_bytes()] for other in others},
    }
    assert unchecked(good) == "answers within tolerance"
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for kind, contents in kinds.items():
            with_check = collections.Counter(pool.map(checked, contents))
            reasons.clear()
            without = collections.Counter(pool.map(unchecked, contents))
            print(f"{kind}: with the digest check {dict(with_check)}, without {dict(without)}")
            for reason, count in reasons.most_common():
                print(f"    {count:>4} {reason}")
            sys.stdout.flush()
    print(f"the asking process is alive, pid {os.getpid()}")


def _flipped(good: bytes, rng: random.Random) -> bytes:
    """Flip a byte: half of the time in the first 4 kB, where the structure is."""
    content = bytearray(good)
    limit = min(4096, len(good)) if rng.random() < 0.5 else len(good)
    content[rng.randrange(limit)] ^= rng.randrange(1, 256)
    return bytes(content)


def _incremented(good: bytes, place: int) -> bytes:
    """Change one byte of the header, which holds the versions and the compute capability."""
    content = bytearray(good)
    content[place] = (content[place] + 1) % 256
    return bytes(content)


def _reason(message: str) -> str:
    """Return a refusal without what differs from one damaged byte to the next."""
    return re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?(e[-+]\d+)?", "N", message)[:200]


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]),
        [Path(other) for other in sys.argv[5:]],
    )  # fmt: skip
