"""The PrometheusRule, which has to be that of deploy/monitoring/rules.yaml."""

import unittest

import yaml

import manifests
import prometheus_rule


class Monitoring(unittest.TestCase):
    def test_the_prometheus_rule_is_up_to_date(self):
        current = prometheus_rule.TARGET.read_text()
        self.assertEqual(current, prometheus_rule.generate(), "run: python3 tests/deploy.d/prometheus_rule.py")

    def test_the_prometheus_rule_has_the_groups(self):
        rules = yaml.safe_load(prometheus_rule.RULES.read_text())
        [rendered] = manifests.objects(manifests.everything(), "PrometheusRule")
        self.assertEqual(rendered["spec"], rules)
        self.assertTrue(rules["groups"])
