from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.errors import BackendUnavailableError, UsageError
from host_tools.errors import ExportError
from host_tools.sources import draw_like, kind_of, require, source_from_factory

FACTORIES = "tests.host_tools.factories"


def test_a_source_is_told_apart_by_its_form(tmp_path: Path) -> None:
    assert kind_of(str(tmp_path)) == "folder"
    assert kind_of("model.onnx") == "onnx"
    assert kind_of("package.module:factory") == "factory"


@pytest.mark.parametrize("source", ["", "model", "a.b", "a b:c", "a:b:c", ":c", "a:", "a..b:c"])
def test_any_other_source_is_refused_with_the_three_forms(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"package\.module:factory.*folder.*\.onnx"):
        kind_of(source if source else str(tmp_path / "none"))


def test_inputs_are_named_after_the_parameters_of_forward() -> None:
    source = source_from_factory(f"{FACTORIES}:cnn")
    assert {name: a.shape for name, a in source.examples.items()} == {"pixels": (2, 3, 8, 8)}
    assert source.output_names == ("output",)
    assert not source.module.training


def test_a_dict_example_names_its_inputs_and_a_dict_output_its_outputs() -> None:
    source = source_from_factory(f"{FACTORIES}:two_outputs")
    assert list(source.examples) == ["right", "left"]
    assert source.output_names == ("total", "length")
    right, left = torch.ones(1, 2), torch.tensor([[3.0, 4.0]])
    total, length = source.module(right, left)
    torch.testing.assert_close(total, torch.tensor([[4.0, 5.0]]))
    torch.testing.assert_close(length, torch.tensor([5.0]))


def test_the_factory_may_name_the_outputs() -> None:
    assert source_from_factory(f"{FACTORIES}:named_outputs").output_names == ("sum", "norm")


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("too_many_names", "names 2 outputs, the module gives 1"),
        ("only_a_module", r"returned Residual, not \(module, example inputs\)"),
        ("no_module", r"str is not a torch\.nn\.Module"),
        ("broken", "broken failed: ValueError: weights are$"),
        ("wrong_example", "does not run on its example: RuntimeError"),
        ("nested", "output 'output_1' is a tuple, not a tensor"),
        ("brain_float", r"has dtype torch\.bfloat16, which no engine takes"),
    ],
)
def test_a_factory_that_gives_something_else_is_refused(factory: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        source_from_factory(f"{FACTORIES}:{factory}")
    assert f"{FACTORIES}:{factory}" in str(caught.value)


def test_an_error_that_the_factory_words_itself_is_kept() -> None:
    with pytest.raises(UsageError, match=r"^train it first$"):
        source_from_factory(f"{FACTORIES}:own_error")


@pytest.mark.parametrize("name", ["absent", "not_callable"])
def test_a_missing_factory_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"{FACTORIES} has no callable '{name}'"):
        source_from_factory(f"{FACTORIES}:{name}")


@pytest.mark.parametrize("module", ["no_such_package", "tests.no_such", "no_such_package.inner"])
def test_a_missing_module_is_named_with_where_to_run(module: str) -> None:
    with pytest.raises(UsageError, match="run in the folder that holds it, or install it"):
        source_from_factory(f"{module}:f")


def test_the_current_directory_is_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import torch

        def make():
            return torch.nn.Linear(2, 1), torch.randn(1, 2)
        """
    (tmp_path / "model_in_cwd.py").write_text(textwrap.dedent(code))
    monkeypatch.chdir(tmp_path)
    assert list(source_from_factory("model_in_cwd:make").examples) == ["input"]


def test_a_module_that_fails_to_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imports_absent.py").write_text("import absent_dependency\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="No module named 'absent_dependency'"):
        source_from_factory("imports_absent:make")


def test_test_inputs_are_drawn_from_the_example_s_values() -> None:
    rng = np.random.default_rng(0)
    draw = draw_like({"ids": np.array([[2, 5, 9]]), "flag": np.array([True, False])})
    feeds = draw(rng, {"ids": (4, 50), "flag": (30,)})
    assert feeds["ids"].shape == (4, 50)
    assert set(np.unique(feeds["ids"])) == {2, 5, 9}
    assert feeds["flag"].dtype == np.bool_


def test_constant_floats_become_normal_and_constant_integers_stay() -> None:
    draw = draw_like({"x": np.zeros((1, 4), np.float32), "n": np.array([3])})
    feeds = draw(np.random.default_rng(0), {"x": (100, 100), "n": (5,)})
    assert feeds["x"].dtype == np.float32
    # 10,000 normal values: the standard error of their deviation is 0.007.
    assert abs(float(feeds["x"].std()) - 1.0) < 0.05
    assert (feeds["n"] == 3).all()


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(BackendUnavailableError, match=r"no_such_package.*edge-kit\[host\]"):
        require("torch", "no_such_package")
