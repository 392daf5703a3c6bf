"""A short training run of a torch module on samples from .npz files, with its accuracy curve.

For making a model smaller (`prune`, `distill`), not for training from nothing: one optimiser, one
schedule, the whole training set in memory.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.samples import open_samples
from edge.errors import UsageError
from edge.files import atomic_write
from host_tools.errors import FOREIGN_ERRORS, TrainingError, root_cause

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from host_tools.sources import TorchSource

Progress = Callable[[str, int, int], None]
_CLASS_RANK = 2  # of an output that gives a row of class scores
# Loss of a batch: (outputs of the model, inputs, labels or None) -> scalar.
Loss = Callable[["tuple[Tensor, ...]", "tuple[Tensor, ...]", "Tensor | None"], "Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Inputs in the order of the model's, rows first, and class numbers where there are any."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.inputs[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast to train.

    rate: highest learning rate of AdamW; it rises over the first tenth and falls to zero.
    """

    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a training reached. metric: "top1" in percent, or "cosine". curve: of it, by epoch."""

    metric: str
    curve: tuple[float, ...]

    @property
    def after(self) -> float:
        """Of the weights that were kept, those of the best epoch."""
        return max(self.curve)


def check_out(path: Path) -> None:
    """Raise UsageError, before minutes of work, for a file that has no folder to go to."""
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")


def read_training_set(path: Path, source: TorchSource, judge: torch.nn.Module) -> TrainingSet:
    """Return the samples at path for a model.

    judge: the module whose classes the labels must be. Raises UsageError if inputs are missing,
    TrainingError for labels that are none of its classes.
    """
    import torch

    samples = open_samples(path)
    batches = list(samples.batches(samples.count, 0, samples.count))
    names = list(source.examples)
    missing = [name for name in names if name not in batches[0]]
    if missing:
        raise UsageError(
            f"{path} has no array {missing[0]!r}; the model takes {', '.join(names)}, save them by "
            "these names"
        )
    labels = samples.labels()
    data = TrainingSet(
        inputs=tuple(
            torch.from_numpy(np.concatenate([b[name] for b in batches])) for name in names
        ),
        labels=None if labels is None else torch.from_numpy(labels),
    )
    _check_labels(data, judge, path)
    return data


def train(
    module: torch.nn.Module,
    data: TrainingSet,
    loss: Loss,
    *,
    schedule: Schedule,
    evaluate: Callable[[], float],
    after_step: Callable[[], None] = lambda: None,
    progress: Progress = lambda *_: None,
) -> tuple[float, ...]:
    """Train in place, and return what evaluate gave before the first and after every epoch.

    The weights of the best epoch are kept. after_step: such as putting pruned weights back to zero.
    Raises TrainingError where the module fails or the loss is not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(schedule.seed)
    torch.manual_seed(schedule.seed)
    steps = schedule.epochs * -(-data.rows // schedule.batch)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.rate, weight_decay=1e-4)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=schedule.rate, total_steps=max(steps, 1), pct_start=0.1
    )
    curve = [evaluate()]
    best, kept = curve[0], copy.deepcopy(module.state_dict())
    for epoch in range(1, schedule.epochs + 1):
        module.train()
        order = torch.randperm(data.rows, generator=generator)
        for rows in torch.split(order, schedule.batch):
            if len(rows) == 1 < data.rows:
                continue  # normalisation over a batch needs two
            inputs = tuple(tensor[rows] for tensor in data.inputs)
            labels = None if data.labels is None else data.labels[rows]
            try:
                value = loss(outputs_of(module, inputs), inputs, labels)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            except FOREIGN_ERRORS as error:
                raise TrainingError(f"a training step fails: {root_cause(error)}") from error
            if not torch.isfinite(value):
                raise TrainingError(
                    f"the loss is not finite in epoch {epoch}; lower --rate, or check the samples"
                )
            optimizer.step()
            rates.step()
            after_step()
        curve.append(evaluate())
        if curve[-1] >= best:
            best, kept = curve[-1], copy.deepcopy(module.state_dict())
        progress("training", epoch, schedule.epochs)
    module.load_state_dict(kept)
    module.eval()
    return tuple(curve)


def outputs_of(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a module that `sources.positional` made."""
    result: tuple[Any, ...] = module(*inputs)
    return result


def evaluator(
    module: torch.nn.Module, data: TrainingSet, original: torch.nn.Module, batch: int
) -> Callable[[], float]:
    """Return a function that gives top-1 accuracy in percent, or without labels the mean cosine.

    Of the first output, on data; the cosine is between module and original.
    """
    import torch

    def evaluate() -> float:
        module.eval()
        total = 0.0
        with torch.no_grad():
            for start in range(0, data.rows, batch):
                inputs = tuple(tensor[start : start + batch] for tensor in data.inputs)
                got = outputs_of(module, inputs)[0]
                if data.labels is not None:
                    truth = data.labels[start : start + batch]
                    total += 100.0 * float((got.argmax(dim=-1) == truth).sum())
                    continue
                wanted = outputs_of(original, inputs)[0]
                pair = got.flatten(1).double(), wanted.flatten(1).double()
                total += float(torch.nn.functional.cosine_similarity(*pair).sum())
        return total / data.rows

    return evaluate


def distillation_loss(original: torch.nn.Module, *, temperature: float, share: float) -> Loss:
    """Return the loss that draws a model to an original, and to the labels where there are any.

    share of it is T^2 KL(softmax(original / T) || softmax(model / T)) of the first output, the
    rest cross-entropy with the labels. Without labels it is all of it, and an output that is no
    row of class scores counts by mean squared error.
    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network",
    arXiv 1503.02531.
    """
    import torch
    from torch.nn import functional

    def loss(
        outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], labels: Tensor | None
    ) -> Tensor:
        got = outputs[0]
        with torch.no_grad():
            wanted = outputs_of(original, inputs)[0]
        if got.shape != wanted.shape:
            raise ValueError(
                f"the outputs differ: {list(got.shape)} and {list(wanted.shape)} of the original"
            )
        if labels is None and got.ndim != _CLASS_RANK:
            return functional.mse_loss(got, wanted)
        soft = functional.kl_div(
            functional.log_softmax(got / temperature, dim=-1),
            functional.log_softmax(wanted / temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        soft = soft * temperature**2
        if labels is None:
            return soft
        return share * soft + (1 - share) * functional.cross_entropy(got, labels)

    return loss


def _check_labels(data: TrainingSet, module: torch.nn.Module, path: Path) -> None:
    """Raise TrainingError unless every label is a class of the module's first output."""
    import torch

    if data.labels is None:
        return
    with torch.no_grad():
        try:
            scores = outputs_of(module, tuple(tensor[:2] for tensor in data.inputs))[0]
        except FOREIGN_ERRORS as error:
            raise TrainingError(f"{path}: the model fails on it: {root_cause(error)}") from error
    low, high = int(data.labels.min()), int(data.labels.max())
    if scores.ndim != _CLASS_RANK or low < 0 or high >= scores.shape[1]:
        raise TrainingError(
            f"{path} has labels {low} to {high}, the model gives outputs of {list(scores.shape)}; "
            "number the classes from 0"
        )


def save_state(module: torch.nn.Module, path: Path) -> None:
    """Write the weights of the user's module, for `export --state`."""
    import torch

    content = io.BytesIO()
    torch.save(user_module(module).state_dict(), content)
    atomic_write(path, content.getvalue())


def load_state(module: torch.nn.Module, path: Path) -> None:
    """Load weights that `save_state`, or torch.save of a state_dict, wrote.

    Raises UsageError if there is no such file, TrainingError if it is not of this module.
    """
    import torch

    if not path.is_file():
        raise UsageError(f"no weights at {path}; `edge-kit prune` and `distill` write them")
    try:
        state: Mapping[str, Tensor] = torch.load(path, weights_only=True)
        user_module(module).load_state_dict(state)
    except (*FOREIGN_ERRORS, EOFError) as error:
        raise TrainingError(
            f"{path} does not hold the weights of this model: {root_cause(error)}"
        ) from error


def user_module(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module that the factory gave."""
    inner: torch.nn.Module = module.inner  # type: ignore[assignment]  # see sources.positional
    return inner
