"""The alert rules and the configuration are valid for promtool, and each alert has a unit test."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.observability.prometheus import CONFIG, RULES, needs_promtool, promtool

UNIT_TESTS = Path(__file__).with_name("rules_test.yml")


@needs_promtool
def test_configuration_and_rules_are_valid() -> None:
    promtool("check", "config", str(CONFIG))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(UNIT_TESTS))


def test_every_alert_is_expected_to_fire_once_and_to_be_silent_once() -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    alerts = {rule["alert"] for rule in group["rules"]}
    cases = [case for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_every_alert_says_how_grave_it_is_and_what_to_do() -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
