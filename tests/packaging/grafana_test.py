# SPDX-License-Identifier: Apache-2.0
"""configs/grafana: the dashboard reads series that the daemon has, and compose mounts it where Grafana looks."""

import json
import os
import shutil
import subprocess

import pytest

from deployment import TREE, load_all, promql_series, read

DASHBOARD = json.loads((TREE / "configs/grafana/dashboards/r1d.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# What Prometheus adds to every series, and histograms to their buckets.
SCRAPED_LABELS = {"instance", "job", "le"}
# Installed, or unpacked for the tests.
PROMTOOL = shutil.which("promtool", path=f"{os.environ['PATH']}:{TREE}/build/prometheus/usr/bin")


@pytest.fixture(scope="module")
def scraped(daemon):
    """{name of a sample: {label: set of values}} of one scrape."""
    found = {}
    for name, labels in daemon.metrics().keys():
        values = found.setdefault(name, {})
        for label, value in labels:
            values.setdefault(label, set()).add(value)
    return found


def expressions():
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def complaints(expression, scraped):
    """What an expression names that the daemon does not have."""
    series, grouped = promql_series(expression)
    if not series:
        yield "no series"
    known = set(SCRAPED_LABELS)
    for name, matchers in series:
        if name not in scraped:
            yield f"no series {name}"
            continue
        known |= set(scraped[name])
        for label, (operator, value) in matchers.items():
            if label in SCRAPED_LABELS:
                continue
            if label not in scraped[name]:
                yield f"{name} has no label {label}"
            elif operator == "=" and value not in scraped[name][label]:
                yield f"{name}: {label} is never {value}"
    yield from (f"no label {label}" for label in grouped - known)


def test_every_series_and_label_of_the_dashboard_exists(scraped):
    found = [(title, what) for title, expression in expressions() for what in complaints(expression, scraped)]
    assert not found


@pytest.mark.parametrize("expression, complaint", [
    ("sum(rate(r1d_nothing_total[5m]))", "no series r1d_nothing_total"),
    ('r1d_kv_blocks{stat="used"}', "r1d_kv_blocks has no label stat"),
    ('r1d_kv_blocks{state="lost"}', "r1d_kv_blocks: state is never lost"),
    ("sum by (reasn) (r1d_finished_total)", "no label reasn"),
    ("1 + 2", "no series"),
])
def test_wrong_expressions_are_found(expression, complaint, scraped):
    assert list(complaints(expression, scraped)) == [complaint]


@pytest.mark.skipif(not PROMTOOL, reason="no promtool here (Debian's package prometheus has it)")
def test_prometheus_reads_every_expression(tmp_path):
    filled = [expression.replace("$__rate_interval", "5m").replace("$instance", ".*") for _, expression in expressions()]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(filled)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run([PROMTOOL, "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout + checked.stderr


def test_what_operators_ask_for_is_there():
    named = {name for _, expression in expressions() for name, _ in promql_series(expression)[0]}
    for wanted in (
        "r1d_request_seconds_bucket", "r1d_time_to_first_token_seconds_bucket", "r1d_inter_token_latency_seconds_bucket",
        "r1d_tokens_total", "r1d_requests_running", "r1d_requests_waiting", "r1d_kv_blocks", "r1d_prompt_tokens_bucket",
        "r1d_output_tokens_bucket", "r1d_finished_total", "r1d_queue_wait_seconds_bucket", "r1d_step_seconds_bucket",
        "r1d_load_progress_ratio", "r1d_ready", "r1d_rpc_total", "process_resident_memory_bytes",
        "r1d_engine_recoveries_total", "r1d_stalls_total", "r1d_live", "r1d_requests_refused_total",
        "r1d_connections_refused_total", "r1d_memory_planned_bytes", "r1d_memory_used_bytes", "r1d_memory_measured_bytes",
    ):
        assert wanted in named


def test_panels_are_whole_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"])
                     for y in range(place["y"], place["y"] + place["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"], f"{panel['title']} lies over {taken[cell]}"
    for panel in PANELS:
        assert panel["title"] and panel["description"] and panel["targets"]
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_data_source_is_a_variable():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert all('instance=~"$instance"' in expression for _, expression in expressions())


def test_compose_provisions_it():
    compose = read("docker/compose.yaml")
    mounts = dict(volume.split(":")[:2][::-1] for volume in compose["services"]["grafana"]["volumes"])
    (provider,) = read("configs/grafana/provisioning/dashboards/r1d.yaml")["providers"]
    assert mounts[provider["options"]["path"]] == "../configs/grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "../configs/grafana/provisioning"
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == provider["options"]["path"] + "/r1d.json"
    (source,) = read("configs/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose["services"]
    scrape = read("configs/prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


def test_all_yaml_in_configs_and_docker_is_well_formed():
    files = [path for folder in ("configs", "docker") for end in ("*.yaml", "*.yml")
             for path in (TREE / folder).rglob(end)]
    assert len(files) >= 9
    for path in files:
        assert load_all(path.read_text()), path
