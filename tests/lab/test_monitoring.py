# SPDX-License-Identifier: GPL-2.0-or-later
"""Prometheus' own tool reads the alerts and the dashboard, and each alert comes when it has to."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.monitoring import PROMETHEUS, RULES, expressions

pytestmark = pytest.mark.lab

TESTS = PROMETHEUS / "qmpfilter.test.yml"


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_alerts_can_be_read() -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_each_alert_comes_when_it_has_to() -> None:
    assert set(re.findall(r"alert: (\w+)", RULES.read_text())) == set(
        re.findall(r"alertname: (\w+)", TESTS.read_text())
    )
    promtool("test", "rules", TESTS)


def test_the_dashboard_can_be_read(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "--lint=none", tmp_path / "rules.yml")
