from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge.detections import Detection, detections, kept_of_boxes, problem_with
from edge.images import Fit, ImagePreprocessing, Placement, placed_from_image
from edge.spec import TensorSpec

STEPS = ImagePreprocessing(input="x", height=64, width=64)
AS_IT_IS = Placement(width=64, height=64, x_scale=1.0, y_scale=1.0, left=0, top=0)
LABELS = ("cat", "dog", "bird")
DETECTION = Detection(boxes="y", scores="y", labels=LABELS, iou_threshold=None)

Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, from its definition; 0 for what has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def kept_by_definition(boxes: list[Box], classes: list[int], threshold: float) -> list[int]:
    """A box stays unless one that stays, comes before it and is of its class, overlaps it more."""
    kept: list[int] = []
    for number, box in enumerate(boxes):
        rivals = [other for other in kept if classes[other] == classes[number]]
        if all(overlap(boxes[other], box) <= threshold for other in rivals):
            kept.append(number)
    return kept


# Whole numbers: areas and the comparison with these thresholds are then exact on both sides.
sides = st.tuples(*[st.integers(0, 12)] * 4).map(lambda b: tuple(map(float, b)))


@settings(max_examples=300, deadline=None)
@given(
    boxes=st.lists(st.tuples(sides, st.integers(0, 2)), max_size=40),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    most=st.integers(1, 50),
)
def test_suppression_keeps_what_its_definition_keeps(
    boxes: list[tuple[Box, int]], threshold: float, most: int
) -> None:
    corners, classes = [box for box, _ in boxes], [number for _, number in boxes]
    kept = kept_of_boxes(
        np.array(corners, np.float64).reshape(-1, 4),
        np.array(classes, np.intp),
        iou_threshold=threshold,
        most=most,
    )
    assert kept.tolist() == kept_by_definition(corners, classes, threshold)[:most]


def yolo_output(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return a (1, 4 + classes, count) output of boxes as centre and size, in pixels."""
    centre, size = rng.uniform(0, 64, (2, count)), rng.uniform(4, 30, (2, count))
    scores = rng.uniform(0, 1, (len(LABELS), count))
    return np.concatenate([centre, size, scores]).astype(np.float32)[None]


def test_a_detector_answers_as_brute_force_over_all_its_boxes() -> None:
    how = replace(DETECTION, transposed=True, form="cxcywh", iou_threshold=0.3, score_threshold=0.4)
    output = yolo_output(np.random.default_rng(0), 300)
    boxes, scores, classes = [], [], []
    for cx, cy, width, height, *values in output[0].T.tolist():
        if max(values) > 0.4:
            boxes.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
            scores.append(max(values))
            classes.append(values.index(max(values)))
    order = sorted(range(len(boxes)), key=lambda n: -scores[n])
    sorted_boxes, sorted_classes = [boxes[n] for n in order], [classes[n] for n in order]
    expected = [order[n] for n in kept_by_definition(sorted_boxes, sorted_classes, 0.3)]
    (found,) = detections({"y": output}, replace(how, max_detections=1000), STEPS, (AS_IT_IS,))
    assert [f.number for f in found] == [classes[n] for n in expected]
    assert [f.label for f in found] == [LABELS[classes[n]] for n in expected]
    assert [f.score for f in found] == [scores[n] for n in expected]
    for f, n in zip(found, expected, strict=True):
        clipped = [min(64.0, max(0.0, side)) for side in boxes[n]]
        np.testing.assert_allclose(f.box, clipped, atol=1e-4)  # fp32 boxes of at most 100
    assert 10 < len(expected) < len(boxes)


def test_every_layout_of_the_same_boxes_gives_the_same_answer() -> None:
    output = yolo_output(np.random.default_rng(1), 50)
    columns = replace(DETECTION, transposed=True, form="cxcywh", iou_threshold=0.5)
    rows = output.transpose(0, 2, 1)
    expected = detections({"y": output}, columns, STEPS, (AS_IT_IS,))
    assert expected[0]
    assert detections({"y": rows}, replace(columns, transposed=False), STEPS, (AS_IT_IS,)) == (
        expected
    )
    pair = {"b": rows[:, :, :4], "s": rows[:, :, 4:]}
    apart = replace(columns, transposed=False, boxes="b", scores="s")
    assert detections(pair, apart, STEPS, (AS_IT_IS,)) == expected
    fractions = {"b": pair["b"] / np.float32(64), "s": pair["s"]}  # a power of two: exact
    assert detections(fractions, replace(apart, unit="fraction"), STEPS, (AS_IT_IS,)) == expected


def one_box(values: list[float], **changes: object) -> list[tuple[int, float]]:
    row = np.array([[[8, 8, 24, 24, *values]]], np.float32)
    how = replace(DETECTION, score_threshold=0.0, **changes)  # type: ignore[arg-type]
    (found,) = detections({"y": row}, how, STEPS, (AS_IT_IS,))
    assert all(f.box == (8, 8, 24, 24) for f in found)
    return [(f.number, f.score) for f in found]


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_scores_are_made_of_values_as_declared() -> None:
    close = pytest.approx
    assert one_box([0.1, 0.5, 0.25]) == [(1, 0.5)]
    assert one_box([-1, 2, 0], activation="sigmoid") == [(1, close(logistic(2)))]
    total = math.exp(-1) + math.exp(2) + math.exp(0) + math.exp(3)
    last = {"activation": "softmax", "background": "last"}
    assert one_box([-1, 2, 0, 3], **last) == [(1, close(math.exp(2) / total))]
    first = {"activation": "softmax", "background": "first"}
    assert one_box([3, -1, 2, 0], **first) == [(1, close(math.exp(2) / total))]
    assert one_box([0.5, 0.25, 0.5, 0.125], objectness=True) == [(1, 0.25)]
    both = {"objectness": True, "activation": "sigmoid"}
    assert one_box([1, -1, 2, 0], **both) == [(1, close(logistic(1) * logistic(2)))]


def test_a_score_may_come_with_the_number_of_its_class() -> None:
    nan = float("nan")
    rows = [[8, 8, 24, 24, 0.5, 2], [8, 8, 24, 24, 0.75, 0], [8, 8, 24, 24, 0.2, 1]]
    rows += [[8, 8, 24, 24, 0.9, number] for number in (3, -1, nan)]  # there is no such class
    how = replace(DETECTION, numbered=True)
    (found,) = detections({"y": np.array([rows], np.float32)}, how, STEPS, (AS_IT_IS,))
    assert [(f.label, f.score) for f in found] == [("cat", 0.75), ("bird", 0.5)]
    outputs = (TensorSpec(name="y", datatype="FP32", shape=("batch", 300, 6)),)
    assert problem_with(how, STEPS, outputs) is None
    assert "no objectness" in str(problem_with(replace(how, objectness=True), STEPS, outputs))


def marked_photo(width: int, height: int, box: tuple[int, int, int, int]) -> bytes:
    """Return a black image with a white box."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("size", [(300, 200), (120, 500), (50, 40)])
@pytest.mark.parametrize(
    ("fit", "edge"), [("stretch", None), ("stretch", 160), ("crop", 160), ("letterbox", None)]
)
def test_a_box_found_in_what_the_model_sees_lies_where_it_is_in_the_photo(
    size: tuple[int, int], fit: Fit, edge: int | None
) -> None:
    (width, height), how = size, replace(STEPS, height=128, width=128, fit=fit, edge=edge)
    # Near the centre, because crops cut the rest off.
    box = (width * 9 // 20, height * 9 // 20, width * 11 // 20, height * 11 // 20)
    how = replace(how, channels="L", pad=0)
    placed = placed_from_image(marked_photo(width, height, box), how, np.dtype(np.float32))
    ys, xs = np.nonzero(placed.tensor[0, 0] > 0.5)
    seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    output = np.array([[[*seen, 1, 0, 0]]], np.float32)
    (found,) = detections({"y": output}, DETECTION, how, (placed.placement,))
    # The border is found to half a pixel of what the model sees, at each side.
    tolerance = 1 / min(placed.placement.x_scale, placed.placement.y_scale)
    np.testing.assert_allclose(found[0].box, box, atol=max(1.0, tolerance))


def test_boxes_outside_the_photo_broken_numbers_and_low_scores_are_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        [8, 8, 24, 24, 0.5, 0, 0],
        [0, 0, 64, 10, 0.9, 0, 0],  # in the padding above the photo
        [24, 24, 8, 8, 0.9, 0, 0],
        [nan, 8, 24, 24, 0.9, 0, 0],
        [8, 8, inf, 24, 0.9, 0, 0],
        [8, 8, 24, 24, nan, nan, nan],
        [8, 8, 24, 24, 0.25, 0, 0],
        [-3e38, -3e38, 3e38, 3e38, 0.4, 0, 0],
    ]
    below = Placement(width=64, height=44, x_scale=1.0, y_scale=1.0, left=0, top=10)
    for threshold in (None, 0.5):
        how = replace(DETECTION, iou_threshold=threshold)
        (found,) = detections({"y": np.array([rows], np.float32)}, how, STEPS, (below,))
        assert [f.box for f in found] == [(8, 0, 24, 14), (0, 0, 64, 44)]


def test_no_more_than_the_best_are_answered_and_images_are_apart() -> None:
    output = yolo_output(np.random.default_rng(3), 60)
    how = replace(DETECTION, transposed=True, form="cxcywh", max_detections=4)
    empty = np.zeros_like(output)
    found = detections({"y": np.concatenate([output, empty])}, how, STEPS, (AS_IT_IS, AS_IT_IS))
    best = sorted(output[0, 4:].max(axis=0).tolist())[::-1][:4]
    assert [f.score for f in found[0]] == best
    assert found[1] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boxes": "z"}, "not 'z'"),
        ({"labels": ("a", "b")}, "6 values a box"),
        ({"transposed": True}, "7 values a box"),
        ({"objectness": True}, "8 values a box"),
        ({"background": "first"}, "8 values a box"),
        ({"labels": ()}, "0 labels"),
    ],
)
def test_declarations_that_do_not_fit_are_told_apart(
    changes: dict[str, object], words: str
) -> None:
    outputs = (TensorSpec(name="y", datatype="FP32", shape=("batch", "n", 7)),)
    assert problem_with(DETECTION, STEPS, outputs) is None
    changed = replace(DETECTION, **changes)  # type: ignore[arg-type]
    assert words in str(problem_with(changed, STEPS, outputs))
    assert "image steps" in str(problem_with(DETECTION, None, outputs))
    flat = (replace(outputs[0], shape=("batch", 7)),)
    assert "not rows of boxes" in str(problem_with(DETECTION, STEPS, flat))
