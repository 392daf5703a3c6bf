"""Parts of a sample set, read in batches that the model takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from calibration.errors import GraphError
from calibration.model_file import profile_from_model, specs_from_model
from calibration.samples import Samples
from edge.spec import Feeds, Profile, TensorSpec, check_feeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How batches are read for one model: from `smallest` to `batch` rows, each batch checked."""

    batch: int
    smallest: int
    inputs: tuple[TensorSpec, ...]
    profile: Profile

    def part(self, samples: Samples, start: int, stop: int) -> Part:
        """Return rows start..stop of some samples."""
        return Part(reader=self, samples=samples, start=start, stop=stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of rows; iterating reads it again from the start.

    Rows at the end of a file that are fewer than the smallest batch of the model are left out.
    """

    reader: Reader
    samples: Samples
    start: int
    stop: int

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for _, feeds in self.after(0))

    def after(self, rows: int) -> Iterator[tuple[int, Feeds]]:
        """Yield the batches that begin after so many rows, each with the rows read until its end.

        rows: zero, or what an earlier reading gave.
        """
        for feeds in self.samples.batches(self.reader.batch, self.start + rows, self.stop):
            rows += row_count(feeds)
            if row_count(feeds) >= self.reader.smallest:
                check_feeds(feeds, self.reader.inputs, self.reader.profile)
                yield rows, feeds

    def first(self, rows: int) -> Part:
        """Return the first rows, as many as there are and at least one batch."""
        stop = min(self.stop, self.start + max(rows, self.reader.smallest))
        return self.reader.part(self.samples, self.start, stop)

    @property
    def rows(self) -> int:
        """Number of rows, counting those that are left out."""
        return self.stop - self.start


def reader_for(model: onnx.ModelProto, batch: int) -> Reader:
    """Return the reader whose batches come as close to `batch` rows as the model's profile allows.

    Raises GraphError for an input whose first axis is not the batch.
    """
    inputs, profile = specs_from_model(model)[0], profile_from_model(model)
    first = {spec.name: spec.shape[0] if spec.shape else None for spec in inputs}
    for spec in inputs:
        if first[spec.name] is None or first[spec.name] != first[inputs[0].name]:
            raise GraphError(
                f"input {spec.name!r} has the shape {spec.wire_shape}, whose first axis is not the "
                "batch of samples; export the model so that every input starts with it"
            )
    low = max((bounds.min[0] for bounds in profile.ranges.values()), default=1)
    high = min((bounds.max[0] for bounds in profile.ranges.values()), default=batch)
    return Reader(batch=max(low, min(batch, high)), smallest=low, inputs=inputs, profile=profile)


def row_count(feeds: Feeds) -> int:
    """Return the number of samples in one batch."""
    return len(next(iter(feeds.values())))
