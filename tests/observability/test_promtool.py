"""Prometheus' own tool judges configuration, rules and expressions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.observability.promql import DEPLOY, RULE_TESTS, RULES, dashboard_exprs

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool of prometheus"
)
pytestmark = [pytest.mark.observability, needs_promtool]


def promtool(*arguments: object) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_configuration_is_valid() -> None:
    promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_the_rules_are_valid_and_do_what_their_unit_tests_say() -> None:
    promtool("check", "rules", *RULES)
    for path in RULE_TESTS:
        promtool("test", "rules", path)


def test_every_expression_of_a_dashboard_parses(tmp_path: Path) -> None:
    exprs = sorted(set(dashboard_exprs()))
    assert len(exprs) > 40
    listed = [{"record": f"check:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    path = tmp_path / "exprs.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": listed}]}))
    assert f"SUCCESS: {len(exprs)} rules found" in promtool("check", "rules", path)
