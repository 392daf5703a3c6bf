"""Who may import whom, what may load when, how long a module may be, and what is shipped."""

import ast
import configparser
import importlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.bench.framework import GROUP
from tests.edge_layers import EDGE_LAYERS

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("edge", "calibration", "host_tools")
MAX_LINES = 400

# Rooms and libraries that a room never imports, not even inside a function.
FORBIDDEN = {
    "edge": {"calibration", "host_tools", "tests", "onnx", "torch", "transformers"},
    "calibration": {"host_tools", "tests", "torch", "tensorrt", "tensorrt_rtx", "pycuda"},
    "host_tools": {"tests"},
}
# Heavy or optional: imported inside the function that opens them.
LAZY = {
    "PIL",
    "jtop",
    "llguidance",
    "onnxruntime",
    "opentelemetry",
    "pycuda",
    "pynvml",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
    "torch",
    "transformers",
}
LAYER_OF = {module: depth for depth, layer in enumerate(EDGE_LAYERS) for module in layer}
# Who may enter a package of edge: all other modules do without it.
ENTERED_BY = {
    "bench": {"cli"},
    "capture": {
        "agent",
        "cli",
        "drift.kept",
        "gate.checks",
        "gate.closeness",
        "gate.replaying",
        "openapi",
        "openapi_operations",
    },
    # What is said of the last pass is read by all who tell of the agent.
    "update": {"agent", "cli", "metrics", "serving", "telemetry"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module, and whether it loads as soon as the importing module does."""

    module: str
    line: int
    at_load: bool


def sources(room):
    return sorted((REPOSITORY / room).rglob("*.py"))


def edge_module(path):
    """The name of a module behind "edge.", or "edge" itself."""
    name = ".".join(path.relative_to(REPOSITORY / "edge").with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".") or "edge"


ALL_SOURCES = [path for room in ROOMS for path in sources(room)]
each_source = pytest.mark.parametrize(
    "path", ALL_SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY))
)
each_edge_source = pytest.mark.parametrize("path", sources("edge"), ids=edge_module)


def imports_of(tree: ast.AST, *, at_load: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(module=name.name, line=node.lineno, at_load=at_load)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            # "from edge import oip" may name a module: both spellings count.
            for module in {node.module, *(f"{node.module}.{name.name}" for name in node.names)}:
                yield Import(module=module, line=node.lineno, at_load=at_load)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports_of(node, at_load=False)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(node, at_load=at_load and not later)


def imports_in(path):
    return list(imports_of(ast.parse(path.read_text(encoding="utf-8"), str(path))))


@each_source
def test_no_room_imports_what_it_must_not(path):
    room = path.relative_to(REPOSITORY).parts[0]
    found = [i for i in imports_in(path) if i.module.partition(".")[0] in FORBIDDEN[room]]
    assert found == []


@each_source
def test_heavy_packages_load_inside_functions_only(path):
    found = [i for i in imports_in(path) if i.at_load and i.module.partition(".")[0] in LAZY]
    assert found == []


def test_every_module_of_edge_has_its_layer():
    assert {edge_module(path) for path in sources("edge")} == set(LAYER_OF)


@each_edge_source
def test_imports_inside_edge_go_downwards(path):
    own = LAYER_OF[edge_module(path)]
    for found in imports_in(path):
        target = found.module.removeprefix("edge.")
        if found.module.partition(".")[0] == "edge" and target in LAYER_OF:
            assert LAYER_OF[target] < own, f"line {found.line}: {found.module} is not below"


@each_edge_source
def test_a_package_of_edge_is_entered_by_few(path):
    own = edge_module(path)
    found = {i.module.split(".")[1] for i in imports_in(path) if i.module.startswith("edge.")}
    entered = found & (set(ENTERED_BY) - {own.partition(".")[0]})
    assert all(own in ENTERED_BY[package] for package in entered), entered


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", [("a.b", True)]),
        ("from a import b", [("a", True), ("a.b", True)]),
        ("class C:\n import a", [("a", True)]),
        ("try:\n import a\nexcept ImportError:\n a = None", [("a", True)]),
        ("def f():\n import a", [("a", False)]),
        ("if TYPE_CHECKING:\n import a", [("a", False)]),
    ],
)
def test_the_walk_finds_imports_wherever_they_stand(source, expected):
    found = {(i.module, i.at_load) for i in imports_of(ast.parse(source))}
    assert found == set(expected)


IMPORT_ALL_BUT = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked here", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Absent())
for module in sys.argv[2].split(","):
    importlib.import_module(module)
"""


def test_all_of_edge_imports_without_any_backend_or_workstation_library():
    blocked = LAZY | {"calibration", "host_tools", "onnx", "scipy", "sklearn", "rich"}
    names = {edge_module(path) for path in sources("edge")} - {"edge"}
    modules = ["edge", *(f"edge.{name}" for name in sorted(names))]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL_BUT, ",".join(blocked), ",".join(modules)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
    )
    assert (done.returncode, done.stderr) == (0, "")


@each_source
def test_no_module_is_longer_than_the_cap(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from a copy of the tree, so that no earlier build leaks into it."""
    pytest.importorskip("setuptools")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in (*ROOMS, "systemd", "tests"):
        shutil.copytree(REPOSITORY / folder, tree / folder, symlinks=True, ignore=ignore)
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / file, tree)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=tree,
        check=True,
        capture_output=True,
        timeout=120,
    )
    with zipfile.ZipFile(next(out.glob("edge_kit-*.whl"))) as file:
        yield file


def test_the_wheel_holds_every_module_and_no_test(wheel):
    modules = {name for name in wheel.namelist() if name.endswith(".py")}
    assert modules == {str(path.relative_to(REPOSITORY)) for path in ALL_SOURCES}


def test_the_wheel_holds_the_units_and_the_type_markers(wheel):
    for unit in (REPOSITORY / "systemd").iterdir():
        assert wheel.read(f"edge/{unit.name}") == unit.read_bytes()
    assert {f"{room}/py.typed" for room in ROOMS} <= set(wheel.namelist())


@pytest.mark.parametrize("page", ["edge/chat/page.html", "edge/dashboard.html"])
def test_the_wheel_holds_the_pages(wheel, page):
    assert wheel.read(page) == (REPOSITORY / page).read_bytes()


def test_the_wheel_offers_torch_to_the_device_package_as_a_framework(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    declared = configparser.ConfigParser()
    declared.read_string(wheel.read(name).decode())
    module, _, attribute = declared[GROUP]["torch"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
