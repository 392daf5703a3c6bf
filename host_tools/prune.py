"""Pruning: weights that hardly matter become zero, then a short fine-tune makes up for it.

magnitude   the smallest weights of all layers together; the file shrinks when packed, the kernels
            stay dense
2:4         two of every four along the input channels, which sparse tensor cores skip (from SM 8.0)

Sources: Han et al. 2015, "Learning both Weights and Connections", arXiv 1506.02626 (magnitude,
fine-tune); Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378 (2:4).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.errors import UsageError
from host_tools.sources import TorchSource, source_from_factory
from host_tools.training import (
    Learned,
    Progress,
    Schedule,
    check_out,
    distillation_loss,
    evaluator,
    load_state,
    read_training_set,
    save_state,
    train,
    user_module,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pattern = Literal["magnitude", "2:4"]
TEMPERATURE, SHARE = 2.0, 0.5
_GROUP, _KEPT = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """What to prune and how.

    source: "package.module:factory". state: weights to start from instead of the factory's.
    sparsity: share of the weights that becomes zero, for "magnitude".
    """

    source: str
    data: Path
    held_out: Path
    out: Path
    pattern: Pattern
    sparsity: float
    schedule: Schedule
    state: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport(Learned):
    """What it cost. before: of the original. curve: after pruning, then after every epoch.

    zero_percent: of the weights that may be pruned.
    """

    before: float
    zero_percent: float
    layers: int


def prune(request: PruneRequest, *, progress: Progress = lambda *_: None) -> PruneReport:
    """Write the pruned and fine-tuned weights; raises UsageError, TrainingError."""
    check_out(request.out)
    source = source_from_factory(request.source)
    if request.state is not None:
        load_state(source.module, request.state)
    data, held_out = (
        read_training_set(path, source, source.module) for path in (request.data, request.held_out)
    )
    original = copy.deepcopy(source.module)
    evaluate = evaluator(source.module, held_out, original, request.schedule.batch)
    before = evaluate()
    masks = masks_for(source, request.pattern, request.sparsity)
    apply_masks(masks)
    curve = train(
        source.module,
        data,
        distillation_loss(original, temperature=TEMPERATURE, share=SHARE),
        schedule=request.schedule,
        evaluate=evaluate,
        after_step=lambda: apply_masks(masks),
        progress=progress,
    )
    save_state(source.module, request.out)
    zeros = sum(int((weight == 0).sum()) for weight, _ in masks)
    return PruneReport(
        metric="cosine" if held_out.labels is None else "top1",
        before=before,
        curve=curve,
        zero_percent=100.0 * zeros / sum(weight.numel() for weight, _ in masks),
        layers=len(masks),
    )


Masks = list[tuple["torch.nn.Parameter", "Tensor"]]


def masks_for(source: TorchSource, pattern: Pattern, sparsity: float) -> Masks:
    """Return the weights of convolutions and linear layers, each with ones where it is kept.

    2:4 takes layers whose input channels come in fours. Raises UsageError if there is none.
    """
    weights = _weights(user_module(source.module))
    if pattern == "2:4":
        masks = [(w, two_of_four(w)) for w in weights if w.shape[1] % _GROUP == 0]
    else:
        masks = _smallest(weights, sparsity)
    if not masks:
        raise UsageError(
            f"{source.description} has no layer that can be pruned {pattern}: it takes "
            "convolutions and linear layers" + " with input channels in fours" * (pattern == "2:4")
        )
    return masks


def two_of_four(weight: Tensor) -> Tensor:
    """Return ones at the two largest of every four weights along axis 1, zeros elsewhere.

    weight: (out, in, ...) with `in` a multiple of four.
    """
    import torch

    last = weight.detach().abs().movedim(1, -1)
    groups = last.reshape(*last.shape[:-1], -1, _GROUP)
    kept = groups.topk(_KEPT, dim=-1).indices
    mask = torch.zeros_like(groups).scatter_(-1, kept, 1.0)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


def apply_masks(masks: Masks) -> None:
    """Put every weight that is not kept to zero."""
    import torch

    with torch.no_grad():
        for weight, mask in masks:
            weight.mul_(mask)


def _weights(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    from torch import nn

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    names = [f"{name}.weight" for name, m in module.named_modules() if isinstance(m, kinds)]
    # By name: a weight that two layers share is there once.
    return [weight for name, weight in module.named_parameters() if name in names]


def _smallest(weights: list[torch.nn.Parameter], sparsity: float) -> Masks:
    """Return masks without the smallest weights, each measured against its layer's own spread."""
    import torch

    if not weights:
        return []
    scores = [w.detach().abs() / w.detach().std().clamp_min(1e-12) for w in weights]
    flat = torch.cat([score.flatten() for score in scores])
    dropped = int(sparsity * flat.numel())
    if dropped == 0:
        return [(w, torch.ones_like(w)) for w in weights]
    limit = flat.kthvalue(dropped).values
    return [(w, (score > limit).to(w.dtype)) for w, score in zip(weights, scores, strict=True)]
