"""Text that every installation of Python has: its language reference, docstrings and licences.

Nothing of the machine is in it: docstrings are read from source files, not from objects that know
where they are, and no file is read that a user may have written.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.files import read_capped
from host_tools.errors import ExportError

MAX_SOURCE_BYTES = 4 << 20
MIN_CHARACTERS = 80  # shorter docstrings say little more than a name
# Of the standard library: tests, and programs that nobody imports.
SKIPPED = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "ensurepip", "turtledemo", "distutils",
     "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
)  # fmt: skip
# Packages that the kit's host tools need anyway, with licences of the usual kinds in plain text.
LICENSED = ("click", "cryptography", "jinja2", "msgspec", "transformers")
LICENCE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.APACHE", "LICENSE.BSD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text; name says where it is from, as a module or package, not as a path."""

    name: str
    text: str


def documents() -> tuple[Document, ...]:
    """Return all documents, in the order of their names; the same for one version of Python."""
    found: dict[str, Document] = {}
    for document in (*_reference(), *_licences(), *_docstrings()):
        found.setdefault(document.text, document)
    if not found:
        raise ExportError("this Python has no text to train on: its sources are missing")
    return tuple(sorted(found.values(), key=lambda document: document.name))


def topics() -> dict[str, str]:
    """Return the language reference by topic, such as "with"; empty where Python lacks it."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:  # some distributions leave it out
        return {}
    return dict(found)


def _reference() -> Iterator[Document]:
    for name, text in topics().items():
        yield Document(name=f"reference {name}", text=text.strip())


def _licences() -> Iterator[Document]:
    own = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if own.is_file():
        yield _licence("python", own)
    for package in LICENSED:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name in LICENCE_NAMES and ".dist-info" in str(file):
                yield _licence(f"{package} {file.name}", Path(str(file.locate())))


def _licence(name: str, path: Path) -> Document:
    content = read_capped(path, max_bytes=MAX_SOURCE_BYTES, follow_links=True)
    return Document(name=f"licence {name}", text=content.decode("utf-8", "replace").strip())


def _docstrings() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(parts) or parts[0].startswith("config-"):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        content = read_capped(path, max_bytes=MAX_SOURCE_BYTES, follow_links=True)
        yield from _docstrings_of(module, content)


def _docstrings_of(module: str, source: bytes) -> Iterator[Document]:
    """Yield a module's docstring and those of its functions and classes, outer ones first."""
    if b'"""' not in source:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in string literals
        try:
            tree = ast.parse(source)
        except SyntaxError:  # templates and samples of wrong code
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
            if len(text) >= MIN_CHARACTERS and not re.search(r"[^\x00-\u2fff]", text):
                name = getattr(node, "name", "")
                yield Document(name=f"module {module} {name}".strip(), text=text)
