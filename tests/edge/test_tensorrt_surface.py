"""Every TensorRT name that our code touches exists in every generation of its Python bindings.

The bindings are the real ones; the libraries behind them are stubs, because the bindings import
nine C functions and nothing else: classes, methods and enums can be looked at, nothing can run.
What code asks for with hasattr or getattr may be absent. Run with `make test-surface`.
"""

from __future__ import annotations

import ast
import json
import operator
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.surface

REPOSITORY = Path(__file__).parents[2]
BINDINGS = REPOSITORY / "build" / "tensorrt-bindings"
VERSIONS = ("8.6.1", "10.3.0", "10.13.3.9", "11.4.0.106")
MODULES = (
    "engine_builder", "engine_child", "tensorrt_library",
    "trt_engine", "bench.trt_layers", "trt_outputs", "trt_session", "chat.trt_piece",
    "chat.trt_graph",
)  # fmt: skip
# What our variables hold, by the name that the code gives them; "" is the module itself.
CLASS_FROM_NAME = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile",
    "tensor": "ITensor",
    "layer": "ILayer",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "handle": "IExecutionContext",
    "cache": "ITimingCache",
    "flags": "NetworkDefinitionCreationFlag",
    "flag": "BuilderFlag",
    "severity": "ILogger.Severity",
}
# Names that mean something of ours in a module.
OURS = {
    "trt_session": {"engine", "_engine", "context"},
    "engine_child": {"engine"},
    "bench.trt_layers": {"layer"},
    "chat.trt_graph": {"shapes"},
    "trt_engine": {"context.bank", "context.shapes", "context.handle", "layer", "shapes"},
}
LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin", "libnvparsers")
STUB = """
#define STUB(name) void *name(void) { return 0; }
STUB(createInferBuilder_INTERNAL) STUB(createInferRefitter_INTERNAL)
STUB(createInferRuntime_INTERNAL) STUB(createNvOnnxParser_INTERNAL)
STUB(createNvOnnxParserRefitter_INTERNAL) STUB(getBuilderPluginRegistry)
STUB(getPluginRegistry) STUB(getNvOnnxParserVersion) STUB(initLibNvInferPlugins)
STUB(_ZN11nvuffparser15createUffParserEv) STUB(_ZN14nvcaffeparser117createCaffeParserEv)
STUB(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
STUB(_ZN11nvuffparser23shutdownProtobufLibraryEv)
STUB(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
"""
LOOK = """
import json, operator, sys, warnings
warnings.simplefilter("ignore")
import tensorrt_bindings as trt
found = {}
for name in json.load(sys.stdin):
    try:
        operator.attrgetter(name)(trt)
        found[name] = True
    except AttributeError:
        found[name] = False
print(json.dumps({"version": trt.__version__, "found": found}))
"""


@dataclass(frozen=True)
class Use:
    """A dotted name below the module tensorrt, and where the code touches it."""

    name: str
    where: str


def dotted(node: ast.expr) -> str:
    """Return a.b.c for such an expression, "" for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def resolved(node: ast.Attribute, module: str) -> str | None:
    """Return the name below tensorrt that an attribute means, None if it is none of its."""
    parts = [p for p in dotted(node).split(".") if p not in {"self", "library"}]
    if parts[:1] == ["module"]:
        parts[0] = "trt"
    if parts[:2] == ["plan", "context"] or "cuda" in parts or "_cuda" in parts:
        parts = parts[1:] if parts[:1] == ["plan"] else []
    ours = OURS.get(module, set())
    for start, part in enumerate(parts[:-1]):
        if part in CLASS_FROM_NAME and part not in ours and ".".join(parts[start:]) not in ours:
            if parts[start + 1] == "handle":
                continue
            below = CLASS_FROM_NAME[part]
            return ".".join(filter(None, (below, *parts[start + 1 :])))
    return None


def uses() -> tuple[set[Use], set[str]]:
    """Return what the code touches, and the last parts of names it asks for first."""
    found, optional = set(), set()
    for module in MODULES:
        path = (REPOSITORY / "edge").joinpath(*module.split(".")).with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func) in {"hasattr", "getattr"}:
                if isinstance(node.args[1], ast.Constant):
                    optional.add(str(node.args[1].value))
            elif isinstance(node, ast.Attribute):
                name = resolved(node, module)
                if name is not None:
                    found.add(Use(name, f"{path.name}:{node.lineno}"))
    return found, optional


FOUND, OPTIONAL = uses()
# Used only after another name was asked for: flags on the path of `takes_types`, and what belongs
# to a class or method that is optional itself.
GUARDED = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "BuilderFlag.FP16", "BuilderFlag.INT8",
    "ICudaEngine.create_execution_context_without_device_memory",
    "ICudaEngine.device_memory_size", "IExecutionContext.device_memory",
    "ComputeCapability", "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.int8_calibrator", "IBuilderConfig.set_calibration_profile",
    "IBuilderConfig.set_compute_capability", "ILayer.plugin", "ILayer.plugin.plugin_type",
    "ICudaEngine.create_runtime_config",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}  # fmt: skip


def is_guarded(name: str) -> bool:
    return name in GUARDED or any(part in OPTIONAL for part in name.split("."))


@pytest.fixture(scope="module", params=VERSIONS)
def surface(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bool]:
    """Which of the names one generation of the bindings has."""
    version = request.param
    folder = BINDINGS / version
    if not folder.is_dir() or shutil.which("cc") is None:
        pytest.skip(f"needs {folder} and a C compiler: make test-surface")
    stubs = tmp_path_factory.mktemp("stubs")
    (stubs / "stub.c").write_text(STUB)
    for library in LIBRARIES:
        name = f"{library}.so.{version.split('.')[0]}"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", stubs / name]
        subprocess.run([*command, stubs / "stub.c"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        input=json.dumps(sorted({use.name for use in FOUND})),
        env={**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["version"] == version
    found: dict[str, bool] = answer["found"]
    return found


def test_every_name_that_is_not_asked_for_first_exists(surface: dict[str, bool]) -> None:
    missing = {
        f"{use.name} ({use.where})"
        for use in FOUND
        if not surface[use.name] and not is_guarded(use.name)
    }
    assert missing == set()


def test_tensorrt_rtx_has_every_name_that_a_decoder_of_engines_touches() -> None:
    """Its bindings can be imported where there is no GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    modules = ("trt_graph.py", "trt_piece.py", "trt_engine.py", "tensorrt_library.py")
    names = {use.name for use in FOUND if use.where.startswith(modules)}
    assert {"IExecutionContext.set_input_shape", "IRuntimeConfig", "ICudaEngine"} <= {
        part for name in names for part in (name, name.partition(".")[0])
    }
    missing = set()
    for name in names:
        try:
            operator.attrgetter(name)(trt)
        except AttributeError:
            missing.add(name)
    assert missing <= {
        "ICudaEngine.create_execution_context_without_device_memory",
        "ICudaEngine.device_memory_size",
    }


def test_the_walk_sees_the_calls_that_matter() -> None:
    names = {use.name for use in FOUND}
    assert {
        "Builder", "Runtime", "OnnxParser", "ILogger", "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address", "ICudaEngine.get_tensor_profile_shape",
        "IBuilderConfig.set_memory_pool_limit", "Builder.build_serialized_network",
        "OnnxParser.parse_from_file", "ILogger.Severity.ERROR", "IProfiler.__init__",
        "IExecutionContext.profiler",
    } <= names  # fmt: skip
    assert len(names) > 50


def test_the_look_finds_names_that_are_missing(surface: dict[str, bool]) -> None:
    """The generations differ: a look that finds everything everywhere would be blind."""
    gone = {name for name, there in surface.items() if not there}
    assert gone
    assert all(is_guarded(name) for name in gone)


@pytest.mark.parametrize("name", sorted(GUARDED))
def test_no_guard_is_left_over(name: str) -> None:
    assert name in {use.name for use in FOUND}
