"""Generated documents are fresh, and prose names nothing that does not exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from edge import openapi

REPOSITORY = Path(__file__).parents[1]


def generator() -> ModuleType:
    path = REPOSITORY / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says() -> None:
    module = generator()
    fresh = module.render()
    assert module.REFERENCE.read_text(encoding="utf-8") == fresh, "run `make docs`"


def test_the_openapi_document_is_what_the_code_says() -> None:
    module = generator()
    assert module.OPENAPI.read_bytes() == openapi.encoded(), "run `make docs`"


def test_architecture_names_only_modules_that_exist() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:edge|calibration|host_tools)/[\w/]+\.py)`", text))
    assert named
    assert [name for name in sorted(named) if not (REPOSITORY / name).is_file()] == []


def test_the_attacks_of_the_trust_document_are_played_by_tests_that_exist() -> None:
    text = (REPOSITORY / "docs/trust.md").read_text(encoding="utf-8")
    folders = (REPOSITORY / "tests/channel", REPOSITORY / "tests/edge/update")
    there = {
        name
        for folder in folders
        for path in folder.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    named = re.findall(r"`(test_\w+)`", text)
    assert [name for name in named if name not in there] == []
    # TUF specification 1.0.31, "Goals to protect against specific attacks", and one more.
    attacks = (
        "arbitrary installation", "endless data", "extraneous dependencies", "fast-forward",
        "indefinite freeze", "malicious mirror", "mix-and-match", "rollback", "key compromise",
        "wrong software installation", "slow retrieval",
    )  # fmt: skip
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "`test_" in line}
    assert [attack for attack in attacks if attack not in rows] == []


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for document in ("README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "CHANGELOG.md"):
        text = (REPOSITORY / document).read_text(encoding="utf-8")
        named = set(re.findall(r"`make ([a-z0-9-]+)", text))
        assert named <= targets, (document, named - targets)


def test_what_make_test_leaves_out_has_a_target_of_its_own_that_ci_runs() -> None:
    options = re.search(r'^addopts = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert options is not None
    left_out = set(re.findall(r"not (\w+)", options[1]))
    assert "slow" in left_out
    makefile = (REPOSITORY / "Makefile").read_text()
    steps = re.findall(
        r"^(?:\w+='' )?step make (\S+)$", (REPOSITORY / ".ci" / "run").read_text(), re.M
    )
    for marker in left_out:
        recipe = re.search(rf"^test-{marker}:.*\n((?:\t.*\n)+)", makefile, re.M)
        assert recipe is not None, marker
        assert re.search(rf" -m pytest -m '?{marker}\b", recipe[1]), marker
        assert f"test-{marker}" in steps or marker == "gpu", marker  # CI has no GPU
