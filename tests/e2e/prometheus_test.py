# SPDX-License-Identifier: Apache-2.0
"""The packaged Prometheus and its promtool take what r1d serves, with the configuration that ships.

scripts/prometheus (called by scripts/test) provides both programs; without them the tests skip.
"""

import asyncio
import contextlib
import json
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import time
import urllib.parse
import urllib.request

import grpc
import grpc.aio
import pytest

import exposition
from client import fields
from daemon import PATIENCE_S, SANITIZED, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "prometheus"
UNPACKED = ROOT / "build" / "prometheus" / "usr" / "bin"

# What promtool says about names that other tools dictate. r1d's own have no excuse.
COLON = "metric names should not contain ':'"
DICTATED = {
    ("vllm:iteration_tokens_total", 'non-counter metrics should not have "_total" suffix'),
}


def program(name):
    unpacked = UNPACKED / name
    path = str(unpacked) if unpacked.exists() else shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}; scripts/prometheus provides it")
    return path


def promtool(*arguments, **options):
    return subprocess.run(
        [program("promtool"), *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options,
    )


def test_promtool_complains_about_no_name_of_ours(served):
    status, _, text = served.get("/metrics")
    assert status == 200
    checked = promtool("check", "metrics", input=text)
    complaints = {tuple(line.split(" ", 1)) for line in checked.stderr.splitlines()}
    vllm = {name for name in exposition.parse(text).types if name.startswith("vllm:")}
    assert vllm, "the dialect is there"
    assert complaints == DICTATED | {(name, COLON) for name in vllm}, checked.stderr


def test_promtool_takes_the_configuration_that_ships():
    checked = promtool("check", "config", CONFIG / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = promtool("check", "rules", CONFIG / "alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_on_its_fault_and_not_without(tmp_path):
    tests = (pathlib.Path(__file__).parent / "prometheus_rules.yml").read_text()
    names = re.findall(r"- alert: (\w+)", (CONFIG / "alerts.yml").read_text())
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:", tests))
    assert set(names) == fired, "an alert without a test that it fires"
    shutil.copy(CONFIG / "alerts.yml", tmp_path)
    (tmp_path / "tests.yml").write_text(tests)
    checked = promtool("test", "rules", tmp_path / "tests.yml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_name_series_that_exist(served):
    rules = (CONFIG / "alerts.yml").read_text()
    expressions = " ".join(re.findall(r"expr: (?:>-\n)?((?:.*\n)+?)\s+(?:for|labels):", rules))
    named = {re.sub(r"_(bucket|count)$", "", name) for name in re.findall(r"\b(?:r1d|process)_\w+", expressions)}
    assert len(named) >= 10, named
    assert named <= served.metrics().types.keys()


class Prometheus:
    """The packaged server with the configuration that ships, on free ports, scraping one daemon."""

    def __init__(self, folder, target):
        config = (CONFIG / "prometheus.yml").read_text()
        assert "[r1d:8081]" in config
        config = config.replace("[r1d:8081]", f"['{target}']")
        config = re.sub(r"scrape_interval: \w+", "scrape_interval: 1s", config)
        config = re.sub(r"scrape_timeout: \w+", "scrape_timeout: 1s", config)
        config = re.sub(r"evaluation_interval: \w+", "evaluation_interval: 1s", config)
        folder.mkdir()
        (folder / "prometheus.yml").write_text(config)
        shutil.copy(CONFIG / "alerts.yml", folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

    def api(self, path, **parameters):
        """The data of an answer, or None while nobody answers."""
        assert self.process.poll() is None, self._log.read_text(errors="replace")
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
                return json.load(response)["data"]
        except OSError:
            return None

    def query(self, expression):
        """{labels as frozenset: value} of an instant query."""
        answer = self.api("query", query=expression) or {"result": []}
        return {frozenset(row["metric"].items()): float(row["value"][1]) for row in answer["result"]}

    def value(self, expression):
        """The value of the one series that `expression` gives; None when there is none."""
        rows = self.query(expression)
        assert len(rows) <= 1, (expression, rows)
        return next(iter(rows.values()), None)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def scraped(start, tmp_path):
    """(daemon, Prometheus that scrapes it)"""
    program("prometheus")  # or skip, before a daemon starts
    daemon = start("--max-model-len", 1024).wait_ready()
    prometheus = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{daemon.ports['management']}")
    yield daemon, prometheus
    prometheus.stop()


def test_prometheus_scrapes_r1d_with_the_configuration_that_ships(scraped):
    daemon, prometheus = scraped
    wait_until(lambda: prometheus.value('up{job="r1d"}') == 1, "the target is up")
    (target,) = prometheus.api("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")

    method = daemon.method()
    with daemon.channel() as channel:
        for _ in range(3):
            list(method.call(channel, method.request(fields([11, 12, 13], 5))))
    wait_until(lambda: prometheus.value('r1d_rpc_total{method="Generate", code="OK"}') == 3, "the calls are stored")
    model = daemon.process.args[3].rstrip("/").split("/")[-1]
    assert prometheus.value(f'vllm:generation_tokens_total{{model_name="{model}", engine="0"}}') == 15
    assert prometheus.value('vllm:request_success_total{finished_reason="length"}') == 3
    assert prometheus.value("vllm:num_requests_waiting") == 0
    assert prometheus.value("vllm:kv_cache_usage_perc") == 0
    assert prometheus.value("vllm:cache_config_info") == 1
    assert prometheus.value("r1d_output_mean_logprob_count") == 3
    assert prometheus.value("r1d_output_mean_logprob_sum") < 0
    assert prometheus.value("queue_wait_time_count") == 3
    assert 0 < prometheus.value('deepseek_gpu_utilization{device="cpu"}') <= 1
    assert prometheus.value('deepseek_inference_latency_seconds_count{quantization="bf16"}') == 3
    assert prometheus.value('deepseek_request_rate{service="Generate"}') > 0
    quantile = "histogram_quantile(0.9, sum by (le) (vllm:e2e_request_latency_seconds_bucket))"
    assert 0 < prometheus.value(quantile) <= 7680

    def healthy_rules():
        groups = (prometheus.api("rules") or {"groups": []})["groups"]
        return {rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "ok"}

    names = set(re.findall(r"- alert: (\w+)", (CONFIG / "alerts.yml").read_text()))
    wait_until(lambda: healthy_rules() == names, "every rule was evaluated")
    assert prometheus.query("ALERTS") == {}

    daemon.kill()
    wait_until(
        lambda: any(("alertname", "R1dDown") in labels for labels in prometheus.query("ALERTS")),
        "the daemon's end is pending as an alert",
    )


NUM_STREAMS = 256
NUM_SCRAPES = 200
# The goal is 5 ms on a machine that is not shared; docs/performance.md has what was measured. What the daemon's own
# thread computes for a scrape does not depend on the neighbours.
MEDIAN_LIMIT_S = 1.0 if SANITIZED else 0.1
CPU_LIMIT_S = 0.1 if SANITIZED else 0.005


def management_thread(daemon):
    """() -> (seconds it ran, seconds it was ready to and had to wait) of the thread that answers scrapes."""
    for task in pathlib.Path(f"/proc/{daemon.process.pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "r1d-management":
            break
    else:
        raise AssertionError("no thread is called r1d-management")

    def now():
        ran, waited, _ = (task / "schedstat").read_text().split()
        return int(ran) * 1e-9, int(waited) * 1e-9

    return now


async def scrape_under_load(daemon, method):
    """Of each scrape while NUM_STREAMS sequences run: (seconds, seconds in which the daemon computed for it, seconds
    that it waited for a core); and the last text."""
    host, port = "127.0.0.1", daemon.ports["management"]
    request = fields([11, 12, 13], 2000)
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(daemon.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(8)
        ]
        calls = [
            method.on(channels[i % len(channels)])(method.request(request)) for i in range(NUM_STREAMS)
        ]
        for call in calls:
            await call.read()
        running = int(daemon.metrics().value("r1d_requests_running"))
        assert running == NUM_STREAMS, running
        # Nobody reads the streams from here on: their messages wait in the daemon and in sockets, so the
        # client takes no processor time from what is measured.
        scrapes = []
        server = management_thread(daemon)
        with socket.create_connection((host, port)) as connection:
            for _ in range(NUM_SCRAPES):
                ran, waited = server()
                begin = time.perf_counter()
                connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                text = read_reply(connection)
                seconds = time.perf_counter() - begin
                ran_after, waited_after = server()
                scrapes.append((seconds, ran_after - ran, waited_after - waited))
        still = exposition.parse(text).value("r1d_requests_running")
        assert still == NUM_STREAMS, "the load ended before the scrapes did"
        for call in calls:
            call.cancel()
    return scrapes, text


def read_reply(connection):
    """The body of a reply with a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 20)
    head, body = received.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])
    parts = [body]
    missing = length - len(body)
    while missing > 0:
        parts.append(connection.recv(1 << 20))
        assert parts[-1], "the reply ended early"
        missing -= len(parts[-1])
    return b"".join(parts).decode()


def test_a_scrape_under_full_load_is_quick(start):
    daemon = start(
        "--max-model-len", 2048, "--max-batch-size", NUM_STREAMS, "--kv-cache-memory", "1Gi",
        "--stream-buffer-tokens", 4096,
    ).wait_ready()
    method = daemon.method()
    idle = []
    for _ in range(20):
        begin = time.perf_counter()
        daemon.get("/metrics")
        idle.append(time.perf_counter() - begin)
    scrapes, text = asyncio.run(scrape_under_load(daemon, method))
    print(
        f"a scrape of {len(text)} bytes, {len(text.splitlines())} lines; idle: median "
        f"{statistics.median(idle) * 1e3:.2f} ms; {NUM_STREAMS} streams, ms:"
    )
    medians = []
    for name, values in zip(("at the socket", "daemon computes", "daemon waits"), map(sorted, zip(*scrapes))):
        medians.append(statistics.median(values))
        parts = [f"{share} {values[int(share * NUM_SCRAPES)] * 1e3:.2f}" for share in (0, 0.5, 0.9, 0.99)]
        print(f"  {name}: {', '.join(parts)}, worst {values[-1] * 1e3:.2f}")
    assert medians[0] < MEDIAN_LIMIT_S
    assert medians[1] < CPU_LIMIT_S
