"""What the benchmark's models take and give, and the profiles their engines are built for."""

from __future__ import annotations

from dataclasses import dataclass

from edge.spec import Profile, ShapeRange, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Specs of one model, and the Profile that requests are checked against."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile


def _same(
    names: tuple[str, ...], low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]
) -> Profile:
    return Profile(ranges=dict.fromkeys(names, ShapeRange(min=low, opt=opt, max=high)))


_IMAGE = ("image",)
_TEXT = ("input_ids", "attention_mask")
MODELS = {
    "resnet50": Interface(
        inputs=(TensorSpec(name="image", datatype="FP32", shape=("batch", 3, 224, 224)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=("batch", 1000)),),
        profile=_same(_IMAGE, (1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224)),
    ),
    "encoder": Interface(
        inputs=tuple(
            TensorSpec(name=name, datatype="INT64", shape=("batch", "sequence")) for name in _TEXT
        ),
        outputs=(TensorSpec(name="hidden", datatype="FP32", shape=("batch", "sequence", 768)),),
        profile=_same(_TEXT, (1, 16), (8, 128), (32, 128)),
    ),
    "embedder": Interface(
        inputs=tuple(
            TensorSpec(name=name, datatype="INT64", shape=("batch", "sequence")) for name in _TEXT
        ),
        outputs=(TensorSpec(name="embedding", datatype="FP32", shape=("batch", 768)),),
        profile=_same(_TEXT, (1, 16), (8, 128), (32, 128)),
    ),
}


def profiles(name: str) -> tuple[Profile, ...]:
    """Return a profile of batch 1 alone, which is faster there, and one up to batch 32.

    The encoder has the second alone: TensorRT 8.6 gets its batch 1 wrong, see BENCHMARKS.md.
    """
    if name == "resnet50":
        shapes = [(rows, 3, 224, 224) for rows in (1, 32)]
        return _same(_IMAGE, *[shapes[0]] * 3), _same(_IMAGE, shapes[0], shapes[1], shapes[1])
    return (_same(_TEXT, (1, 16), (32, 128), (32, 128)),)
