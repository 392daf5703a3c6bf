"""The expressions of rules and dashboards, and the metrics that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
RULE_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACES_OR_RANGE = re.compile(r"\{[^}]*\}|\[[^\]]*\]")
_LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w.])[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\(|[a-zA-Z0-9_:])")
_OPERATORS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def metrics_of(expr: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression."""
    bare = _STRING.sub('""', expr)
    for pattern in (_BRACES_OR_RANGE, _LABELS):
        bare = pattern.sub(" ", bare)
    return {name for name in _NAME.findall(bare) if name not in _OPERATORS}


def rules(kind: str) -> list[dict[str, Any]]:
    """Return all rules with the key `kind`: record or alert."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def dashboards() -> list[dict[str, Any]]:
    """Return all dashboards."""
    return [json.loads(path.read_text()) for path in DASHBOARDS]


def dashboard_exprs() -> Iterator[str]:
    """Yield every expression of a panel, and every metric that fills a variable."""
    for board in dashboards():
        for panel in board["panels"]:
            yield from (target["expr"] for target in panel["targets"])
        for variable in board["templating"]["list"]:
            found = re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"])
            assert found is not None, variable
            yield found[1]
