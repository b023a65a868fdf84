"""The fleet's numbers where Prometheus reads them, beside those of the report and of metrics.jsonl."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmdistill.cluster import ray_cluster
from llmdistill.config.cluster import ClusterConfig
from llmdistill.teacher.metrics import MetricsLines
from tests.teacher.test_fleet import run


def scrape() -> Counter[str]:
    """Sums of our metrics over all nodes, workers and replicas."""
    import ray

    found: Counter[str] = Counter()
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(address, timeout=20).read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_llmdistill_"):
                    found[sample.name.removeprefix("ray_llmdistill_")] += sample.value
    return found


def test_prometheus_and_metrics_lines_tell_what_the_report_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")  # Ray's own is 10 s
    with ray_cluster(ClusterConfig()):
        report = run(tmp_path / "cache", {30: "refuse always", 7: "err"})
        MetricsLines(tmp_path / "metrics.jsonl", "code").write(report, last=True)
        deadline = time.monotonic() + 120
        while (found := scrape())["records_total"] < report.records and time.monotonic() < deadline:
            time.sleep(0.2)
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line.items() >= {"stage": "generate", "teacher": "code", "records": 39, "rejected": 1, "restarts": 1}.items()
    for name in ("records", "tokens", "rows", "bytes", "rejected", "restarts"):
        assert found[f"{name}_total"] == line[name] > 0, name
    assert found["unit_seconds_count"] == 10
    assert "filtered_total" not in found, "what never happened is not there"
