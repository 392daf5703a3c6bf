"""Distillation: a small model learns what a large one answers, and from the labels beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.errors import UsageError
from host_tools.sources import source_from_factory
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
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRequest:
    """Who learns from whom.

    teacher, student: "package.module:factory", with the same inputs and the same first output.
    temperature: that the class scores are divided by. share: of the teacher in the loss, 0 to 1.
    """

    teacher: str
    student: str
    data: Path
    held_out: Path
    out: Path
    schedule: Schedule
    teacher_state: Path | None = None
    temperature: float = 4.0
    share: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillReport(Learned):
    """What the student reached. curve: before the first and after every epoch."""

    teacher: float
    teacher_parameters: int
    student_parameters: int


def distill(request: DistillRequest, *, progress: Progress = lambda *_: None) -> DistillReport:
    """Write the student's weights; raises UsageError, TrainingError."""
    check_out(request.out)
    teacher, student = (source_from_factory(spec) for spec in (request.teacher, request.student))
    if list(teacher.examples) != list(student.examples):
        raise UsageError(
            f"the teacher takes {', '.join(teacher.examples)}, the student "
            f"{', '.join(student.examples)}; both must take the same inputs"
        )
    if request.teacher_state is not None:
        load_state(teacher.module, request.teacher_state)
    data, held_out = (
        read_training_set(path, student, teacher.module)
        for path in (request.data, request.held_out)
    )
    batch = request.schedule.batch
    curve = train(
        student.module,
        data,
        distillation_loss(teacher.module, temperature=request.temperature, share=request.share),
        schedule=request.schedule,
        evaluate=evaluator(student.module, held_out, teacher.module, batch),
        progress=progress,
    )
    save_state(student.module, request.out)
    return DistillReport(
        metric="cosine" if held_out.labels is None else "top1",
        teacher=evaluator(teacher.module, held_out, teacher.module, batch)(),
        curve=curve,
        teacher_parameters=sum(p.numel() for p in teacher.module.parameters()),
        student_parameters=sum(p.numel() for p in student.module.parameters()),
    )
