"""Engines for RTX cards that need not be here: TensorRT-RTX builds them on any x86 host."""

from __future__ import annotations

import os
from pathlib import Path

from edge.devices import Device
from edge.engine_builder import EngineRequest, Progress
from edge.engine_child import BuildRequest
from edge.engine_process import AttemptError, build
from edge.errors import BackendUnavailableError, BuildError
from edge.files import atomic_file, sha256_of, storage_errors
from edge.installed import installed_backends
from edge.manifest import EngineFacts, Precision
from edge.sealed import memory_file
from edge.spec import Profile
from host_tools.engine_record import EngineFile

BUILD_TIMEOUT_S = 3600.0


def build_rtx_engine(
    out: Path,
    device: Device,
    graph: Path,
    *,
    precision: Precision,
    profiles: tuple[Profile, ...],
    progress: Progress,
    level: int = 3,
) -> EngineFile:
    """Write the engine of a typed graph to out; TensorRT may crash, so a child process builds.

    Raises BackendUnavailableError without TensorRT-RTX, BuildError where it refuses.
    """
    version = installed_backends().get("tensorrt_rtx")
    if version is None:
        raise BackendUnavailableError(
            "TensorRT-RTX is not installed, which builds for RTX cards on any x86 host; "
            "pip install 'edge-kit[rtx-build]'"
        )
    timings = memory_file()
    try:
        # Straight to its place: an engine of gigabytes is not held in memory a second time.
        with storage_errors("write", out), atomic_file(out) as file:
            report = build(
                BuildRequest(
                    backend="trt-rtx",
                    request=EngineRequest(
                        onnx=graph,
                        precision=precision,
                        profiles=profiles,
                        optimization_level=level,
                        compute_capabilities=(f"SM{device.sm.replace('.', '')}",),
                    ),
                    engine=file.fileno(),
                    timing_cache=timings,
                ),
                timeout_s=BUILD_TIMEOUT_S,
                progress=progress,
            )
    except AttemptError as error:
        raise BuildError(f"no {precision} engine for {device.name}: {error}") from error
    finally:
        os.close(timings)
    facts = EngineFacts(
        device=device.name,
        kind="desktop",
        arch=device.arch,
        runtime=version,
        sms=(device.sm,),
        portable=True,
        sm_count=device.sm_count,
        plugins=report.plugins,
        build_seconds=round(report.seconds, 3),
    )
    return EngineFile(file=out.name, sha256=sha256_of(out)[0], facts=facts)
