# SPDX-License-Identifier: Apache-2.0
"""The port for probes and scrapes."""

import contextlib
import http.client
import json
import re

import pytest

import daemon as r1d
import exposition
from client import fields
from daemon import PATIENCE_S

DOCUMENT = r1d.GOLDEN.parents[2] / "docs" / "metrics.md"


def documented():
    """{series: (type, {label: its values, or none where they are open})} of docs/metrics.md."""
    row = re.compile(r"\| `([\w:]+)` \| (counter|gauge|histogram) \| ([^|]*)\|")
    label = re.compile(r"`(\w+)`(?:: ([^;]+))?")
    return {
        name: (kind, {key: set(values.strip().split(", ")) if values else None for key, values in label.findall(labels)})
        for name, kind, labels in row.findall(DOCUMENT.read_text())
    }


def test_a_scrape_has_every_documented_series_and_no_other(served):
    metrics, series = served.metrics(), documented()
    assert metrics.types == {name: kind for name, (kind, _) in series.items()}
    for name, (kind, labels) in series.items():
        samples = metrics.by_labels(name + ("_count" if kind == "histogram" else ""))
        assert samples, name
        for found in map(dict, samples):
            assert found.keys() == labels.keys(), name
            assert all(labels[key] is None or value in labels[key] for key, value in found.items()), (name, found)


def test_a_request_moves_the_series_it_should(served, channel):
    before = served.metrics()
    method = served.method()
    list(method.call(channel, method.request(fields([11, 12, 13], 5))))
    r1d.wait_until(lambda: served.metrics().value("r1d_streams_open") == 0, "the stream is counted as ended")
    after = served.metrics()

    def moved(name, **labels):
        return after.value(name, **labels) - before.value(name, **labels)

    assert moved("r1d_rpc_total", method="Generate", code="OK") == 1
    assert moved("r1d_finished_total", reason="length") == 1
    assert moved("r1d_tokens_total", kind="prompt") == 3
    assert moved("r1d_tokens_total", kind="output") == 5
    assert moved("r1d_time_to_first_token_seconds_count") == 1
    assert moved("r1d_inter_token_latency_seconds_count") == 4
    assert moved("r1d_request_seconds_count") == 1
    blocks = after.by_labels("r1d_kv_blocks")
    assert sum(blocks.values()) > 0 and after.value("r1d_kv_blocks", state="used") == 0


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/healthz"])
def test_probes_of_a_serving_daemon_are_content(served, path):
    assert served.get(path)[::2] == (200, "ok\n")


@pytest.mark.parametrize("name", ["livez", "readyz", "startupz", "healthz"])
def test_probes_list_their_checks_when_asked(served, name):
    status, _, text = served.get(f"/{name}?verbose")
    assert (status, text.splitlines()[0], text.splitlines()[-1]) == (200, "[+]model ok", f"{name} check passed")
    assert "[+]engine ok\n[+]intake ok\n" in text


def test_the_version_is_that_of_the_binary(served):
    status, headers, text = served.get("/version")
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "application/json")
    assert json.loads(text)["version"] == r1d.run("version").stdout.split()[1]


def test_unknown_paths_and_methods_are_refused(served):
    assert served.get("/")[0] == 404
    assert served.get("/metrics/../livez")[0] == 404
    status, headers, _ = served.request("POST", "/metrics")
    assert status == 405
    assert "GET" in headers["Allow"]
    assert served.request("DELETE", "/livez")[0] == 405


def test_bodies_and_long_heads_are_refused_and_the_port_lives_on(served):
    assert served.request("GET", "/livez", body="x" * 100_000)[0] in (400, 413)
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", served.ports["management"], timeout=PATIENCE_S)
    ) as connection:
        connection.request("GET", "/livez", headers={"X-Long": "x" * 20_000})
        assert connection.getresponse().status in (400, 431)
    assert served.get("/livez")[0] == 200


def test_one_connection_serves_many_scrapes(served):
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", served.ports["management"], timeout=PATIENCE_S)
    ) as connection:
        for _ in range(5):
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            assert response.status == 200
            exposition.parse(response.read().decode())


@pytest.mark.parametrize(
    "text",
    [
        "a 1\n",  # no family
        "# HELP a x\n# TYPE a gauge\na 1",  # no end of line
        "# HELP a x\n# TYPE a gauge\na 1\na 2\n",  # twice
        "# HELP a x\n# TYPE a counter\na 1\n",  # a counter without _total
        '# HELP a x\n# TYPE a gauge\na{b="1",b="2"} 1\n',  # a label twice
        '# HELP a x\n# TYPE a gauge\na{b="\\x"} 1\n',  # an escape that does not exist
        '# HELP a x\n# TYPE a histogram\na_bucket{le="+Inf"} 1\na_sum 1\na_count 2\n',  # count is not +Inf's
        '# HELP a x\n# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
    ],
)
def test_the_reader_of_scrapes_is_strict(text):
    with pytest.raises(ValueError):
        exposition.parse(text)
