from collections.abc import Callable
from pathlib import Path

import pytest

from edge.admission import Admission, available_bytes
from edge.choice import Candidate
from edge.engine_process import AttemptError
from edge.manifest import Artifact, EngineFacts, Manifest, Variant
from edge.target import Target
from tests.bundles import affine_parts

GIB = 1 << 30
ENGINE = EngineFacts(
    device="orin", kind="jetson", arch="aarch64", runtime="10.3", sms=("8.7",), portable=False,
    memory_bytes=GIB,
)  # fmt: skip
VARIANT = Variant(id="e", backend="trt", precision="fp16", files=("e.plan",), engine=ENGINE)
GRAPH = Variant(id="g", backend="ort", precision="fp32", files=("e.plan",))
JETSON = Target(kind="jetson", arch="aarch64", name="Orin")
DESKTOP = Target(kind="desktop", arch="x86_64", name="RTX 4060")


@pytest.fixture
def manifest() -> Manifest:
    base, _ = affine_parts()
    artifact = Artifact(path="e.plan", size=1000, sha256="0" * 64)
    return Manifest(
        schema=base.schema, name=base.name, version=base.version, created=base.created,
        models=base.models, artifacts=(artifact,),
    )  # fmt: skip


def candidate(variant: Variant, means: str = "engine") -> Candidate:
    return Candidate(variant=variant, means=means, why="")  # type: ignore[arg-type]


def none() -> int | None:
    raise AssertionError("the other memory was asked for")


@pytest.mark.parametrize(
    ("target", "memories", "means"),
    [
        (JETSON, {"host": lambda: GIB + 100, "device": none}, "engine"),  # unified
        (DESKTOP, {"host": none, "device": lambda: GIB + 100}, "engine"),
        (DESKTOP, {"host": lambda: GIB + 100, "device": none}, "ort-cpu"),
    ],
)
def test_the_memory_that_the_means_will_use_decides(
    target: Target, memories: dict[str, Callable[[], int | None]], means: str, manifest: Manifest
) -> None:
    fits = Admission(target, reserve_bytes=100, **memories)
    fits.check(manifest, candidate(VARIANT, means))
    tight = Admission(target, reserve_bytes=101, **memories)
    with pytest.raises(AttemptError, match=r"1074 MB \(as measured when it was built\)") as caught:
        tight.check(manifest, candidate(VARIANT, means))
    assert caught.value.refusal == "memory"
    assert "unload another model" in str(caught.value)


def test_the_largest_of_what_was_measured_counts(manifest: Manifest) -> None:
    admission = Admission(DESKTOP, reserve_bytes=0, host=none, device=lambda: GIB + 100)
    assert admission.problem(manifest, candidate(VARIANT)) is None
    admission.note(manifest, VARIANT, GIB + 101)
    admission.note(manifest, VARIANT, 0)  # memory that was freed before was used again
    assert "as it took here" in str(admission.problem(manifest, candidate(VARIANT)))


def test_a_variant_that_nobody_measured_needs_at_least_its_files(manifest: Manifest) -> None:
    admission = Admission(DESKTOP, reserve_bytes=0, host=lambda: 999, device=none)
    problem = admission.problem(manifest, candidate(GRAPH, "ort-cpu"))
    assert "its files alone" in str(problem)


def test_what_packing_measured_counts_for_a_graph(manifest: Manifest) -> None:
    measured = Variant(
        id="g", backend="ort", precision="fp32", files=("e.plan",), memory_bytes=5000
    )
    admission = Admission(DESKTOP, reserve_bytes=0, host=lambda: 4999, device=none)
    problem = admission.problem(manifest, candidate(measured, "ort-cpu"))
    assert "as measured when it was packed" in str(problem)


def test_memory_that_nobody_can_tell_admits_everything(manifest: Manifest) -> None:
    admission = Admission(DESKTOP, reserve_bytes=0, host=lambda: None, device=lambda: None)
    assert admission.problem(manifest, candidate(VARIANT)) is None


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = "MemTotal:       16000 kB\nMemFree:  1 kB\nMemAvailable:    4000 kB\n"


def test_the_machine_and_the_control_group_limit_what_is_available(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/system.slice/edge-agent.service"
    root = write(tmp_path, {"proc/meminfo": MEMINFO})
    assert available_bytes(root) == 4_096_000
    write(root, {"proc/self/cgroup": "0::/system.slice/edge-agent.service\n"})
    assert available_bytes(root) == 4_096_000
    write(root, {f"{group}/memory.max": "max\n", f"{group}/memory.current": "900\n"})
    assert available_bytes(root) == 4_096_000
    write(root, {f"{group}/memory.max": "1000\n", f"{group}/memory.stat": "anon 1\n"})
    assert available_bytes(root) == 100
    write(root, {f"{group}/memory.stat": "anon 1\ninactive_file 300\n"})
    assert available_bytes(root) == 400
    assert available_bytes(tmp_path / "nothing") is None
