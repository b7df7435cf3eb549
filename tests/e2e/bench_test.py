# SPDX-License-Identifier: Apache-2.0
"""`r1d bench`: what it counts is what the daemon did, whatever becomes of the daemon."""

import json
import pathlib
import signal
import subprocess
import xml.etree.ElementTree

import pytest

import daemon as r1d
from daemon import PATIENCE_S, Daemon, wait_until

NANO = pathlib.Path(__file__).resolve().parents[2] / "models" / "r1-nano"
LATENCIES = ("ttft", "itl", "tpot", "e2e", "queue", "send_lag")


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("nano"), NANO).wait_ready()
    yield daemon
    assert daemon.stop() == 0, daemon.log


def management(daemon):
    return f"127.0.0.1:{daemon.ports['management']}"


def bench(daemon, folder, *flags):
    """The JSON of one run, and what it printed."""
    file = folder / "run.json"
    answer = r1d.run("bench", "serve", "--address", daemon.address, "--json", file, *flags)
    assert answer.returncode == 0, answer.stderr
    return json.loads(file.read_text()), answer.stdout


def output_tokens(daemon):
    return daemon.metrics().value("r1d_tokens_total", kind="output")


def check_latency(name, latency):
    quantiles = latency["quantiles"]
    assert quantiles == sorted(quantiles), name
    assert quantiles[0] >= 0, (name, quantiles[0])
    assert latency["p50"] == quantiles[50] and latency["p99"] == quantiles[99] and latency["max"] == quantiles[100]


def test_a_closed_loop_counts_every_token_that_the_daemon_made(nano, tmp_path):
    before = output_tokens(nano)
    result, table = bench(
        nano, tmp_path, "--concurrency", 4, "--requests", 20, "--warmup", 2, "--input-len", "uniform:4:40",
        "--output-len", 12, "--goodput", "ttft:60s,tpot:60s", "--management", management(nano), "--label", "a<b",
    )
    assert output_tokens(nano) - before == 22 * 12  # the warm-up's are made, and not counted
    assert result["requests"] == {"sent": 20, "ok": 20, "failed": 0, "unfinished": 0}
    assert result["tokens"]["output"] == 20 * 12
    for name in LATENCIES:
        check_latency(name, result["latency_seconds"][name])
    assert result["latency_seconds"]["ttft"]["count"] == 20
    assert result["latency_seconds"]["itl"]["count"] == 20 * 11
    assert result["goodput"]["share"] == 1
    assert result["server_cost"]["cpu_seconds"] > 0
    assert result["server"]["model"] == "r1-nano"
    assert sum(result["series"]["output_tokens_per_second"]) * result["series"]["bin_seconds"] == pytest.approx(240)
    for words in ("20 ok", "ttft", "goodput", "processor time"):
        assert words in table


def test_an_open_loop_sends_at_its_rate_and_times_from_when_requests_were_due(nano, tmp_path):
    flags = ("--rate", 40, "--requests", 60, "--input-len", 8, "--output-len", 2, "--warmup", 0)
    result, _ = bench(nano, tmp_path, *flags)
    assert result["requests"]["sent"] == 60
    assert result["requests"]["ok"] == 60
    latency = result["latency_seconds"]
    assert latency["ttft"]["mean"] >= latency["queue"]["mean"]
    again, _ = bench(nano, tmp_path, *flags)
    assert again["tokens"] == result["tokens"]
    # 60 Poisson arrivals at 40/s take 1.5 s on average; with this seed always the same.
    assert result["seconds"] > 1 and again["seconds"] > 1


def test_whole_answers_have_no_first_token(nano, tmp_path):
    result, table = bench(nano, tmp_path, "--unary", "--requests", 6, "--output-len", 3, "--concurrency", 2)
    assert result["latency_seconds"]["ttft"]["count"] == 0
    assert result["latency_seconds"]["e2e"]["count"] == 6
    assert result["tokens"]["output"] == 18
    assert "ttft" not in table


def test_conversations_come_from_a_file(nano, tmp_path):
    file = tmp_path / "asks.jsonl"
    message = {"role": "user", "content": "What is 12 + 7?"}
    file.write_text(json.dumps({"messages": [message], "max_tokens": 40}) + "\n" + '{"text": "1 + 1", "max_tokens": 3}\n')
    result, _ = bench(nano, tmp_path, "--requests-file", file, "--requests", 4, "--concurrency", 1)
    assert result["requests"]["ok"] == 4
    assert 0 < result["tokens"]["output"] <= 2 * 43


def test_runs_are_compared_at_the_terminal_and_on_a_page_that_needs_nothing_else(nano, tmp_path):
    files = []
    for concurrency in (1, 4):
        (folder := tmp_path / str(concurrency)).mkdir()
        bench(nano, folder, "--concurrency", concurrency, "--requests", 8, "--output-len", 4)
        files.append(folder / "run.json")
    page = tmp_path / "report.html"
    answer = r1d.run("bench", "report", *files, "--html", page)
    assert answer.returncode == 0, answer.stderr
    text = page.read_text()
    html = xml.etree.ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert len(html.findall(".//svg")) >= 8
    assert "1 at a time" in text and "4 at a time" in text
    for reference in ("http:", "https:", "src=", "href=", "<script", "url("):
        assert reference not in text
    answer = r1d.run("bench", "report", *files)
    assert "4 at a time" in answer.stdout and "ttft p99" in answer.stdout
    files[0].write_text("{}")
    answer = r1d.run("bench", "report", *files)
    assert answer.returncode == 1 and str(files[0]) in answer.stderr


def start_bench(daemon, folder, *flags):
    return subprocess.Popen(
        [r1d.BINARY, "bench", "serve", "--address", daemon.address, "--json", folder / "run.json",
         "--concurrency", "4", "--duration", "10m", "--output-len", "16", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def wait_served(daemon, count):
    wait_until(lambda: daemon.metrics().value("r1d_finished_total", reason="length") >= count, "requests are served")


def test_requests_that_a_killed_daemon_did_not_answer_are_errors(start, tmp_path):
    daemon = start(model=NANO).wait_ready()
    process = start_bench(daemon, tmp_path)
    wait_served(daemon, 20)
    daemon.kill()
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["requests"]["ok"] >= 10
    assert set(result["errors"]) == {"UNAVAILABLE"}
    assert result["requests"]["failed"] == result["errors"]["UNAVAILABLE"] >= 4
    assert "in a row" in result["ended_early"] and "UNAVAILABLE" in out


def test_ctrl_c_prints_what_there_is(start, tmp_path):
    daemon = start(model=NANO).wait_ready()
    process = start_bench(daemon, tmp_path)
    wait_served(daemon, 20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["ended_early"] == "interrupted"
    assert result["requests"]["ok"] >= 10 and result["requests"]["failed"] == 0
    assert "interrupted" in out
    assert daemon.stop() == 0, daemon.log


def test_a_daemon_that_is_not_there_is_named():
    answer = r1d.run("bench", "serve", "--address", "127.0.0.1:1")
    assert answer.returncode == 1
    assert "127.0.0.1:1" in answer.stderr


@pytest.mark.parametrize(
    ("flags", "saying"),
    [
        (["--input-len", "normal:5:6"], "uniform:LOW:HIGH"),
        (["--goodput", "speed:5ms"], "speed:5ms"),
        (["--duration", "10"], "duration"),
        (["--rate", "5", "--concurrency", "2"], "--rate"),
        (["--rate", "-1"], "--rate: expected a number above 0, found -1\n"),
        (["--requests", "0"], "--requests: expected a number above 0, found 0\n"),
        (["--address", "localhost"], "--address"),
        (["--requests-file", "/nonexistent"], "/nonexistent"),
    ],
)
def test_a_wrong_flag_is_named(flags, saying):
    answer = r1d.run("bench", "serve", *flags)
    assert answer.returncode == 2, answer
    assert saying in answer.stderr


def test_offline_batches_are_timed_in_order(tmp_path):
    file = tmp_path / "offline.json"
    answer = r1d.run("bench", "offline", "--model", NANO, "--device", "cpu", "--batch", "1,4", "--input-len", 48,
                     "--output-len", 6, "--max-num-batched-tokens", 32, "--repeats", 1, "--json", file)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(file.read_text())
    assert document["schema"] == "r1d.bench.offline/1"
    assert [case["batch"] for case in document["cases"]] == [1, 4]
    one = document["cases"][0]
    assert one["prefill_step_seconds"]["count"] == 2  # 48 tokens in chunks of 32
    assert one["decode_step_seconds"]["count"] == 5  # the first token comes with the prompt's last chunk
    for case in document["cases"]:
        assert case["prefill_tokens_per_second"] > 0 and case["decode_tokens_per_second"] > 0
        assert case["ttft_seconds"]["max"] <= case["seconds"]
    assert "decode tok/s" in answer.stdout


def test_offline_tells_decodes_share_of_the_rate_at_which_memory_is_read(tmp_path):
    file = tmp_path / "offline.json"
    answer = r1d.run("bench", "offline", "--model", NANO, "--device", "cpu", "--batch", "1,2", "--input-len", 8,
                     "--output-len", 4, "--repeats", 1, "--read-bandwidth", "--json", file)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("decode reads") == 1 and answer.stdout.count("GFLOP/s") == 2, answer.stdout
    one, two = json.loads(file.read_text())["cases"]
    read = one["read_bandwidth"]
    assert read["plain_bytes_per_second"] > 0 and read["weight_bytes_per_step"] > 1e6
    step = one["decode_step_seconds"]["p50"]
    assert abs(read["decode_bytes_per_second"] * step / read["weight_bytes_per_step"] - 1) < 1e-6
    assert 0 < read["share"] and one["prefill_flops_per_second"] > 0
    assert two["read_bandwidth"] is None  # which experts two tokens share is not known


def test_offline_wants_one_model():
    answer = r1d.run("bench", "offline")
    assert answer.returncode == 1 and "--model-config" in answer.stderr


def test_sums_over_the_cpus_ranks_are_timed_checked_and_labelled(tmp_path):
    file = tmp_path / "sums.json"
    answer = r1d.run("bench", "collectives", "--device", "cpu", "--world-size", 3, "--shape", "1x7168,64x64",
                     "--repeats", 3, "--json", file)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(file.read_text())
    assert document["schema"] == "r1d.bench.collectives/1"
    assert "CPU" in document["device"] and "CPU" in answer.stdout
    assert [row["bytes"] for row in document["rows"]] == [4 * 7168, 4 * 64 * 64]
    for row in document["rows"]:
        assert row["chosen"] == "local"
        assert row["ways"]["local"]["correct"] and row["ways"]["local"]["single_us"] > 0


def test_a_shape_that_is_none_is_named():
    answer = r1d.run("bench", "collectives", "--shape", "1024")
    assert answer.returncode == 2 and "--shape" in answer.stderr and "1024x1024" in answer.stderr


@pytest.mark.parametrize("mode", ["cached", "direct"])
def test_a_load_stands_beside_a_plain_read_of_the_same_files(tmp_path, mode):
    file = tmp_path / "load.json"
    flags = ("--world-size", 2, "--mode", mode, "--threads", 3, "--repeats", 2, "--json", file)
    answer = r1d.run("bench", "load", NANO, *flags)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(file.read_text())
    size = (NANO / "model.safetensors").stat().st_size
    assert result["schema"] == "r1d.bench.load/1"
    assert (result["world_size"], result["threads"]) == (2, 3)
    assert 0.75 * size < result["bytes"] <= size  # all but the MTP layer
    assert len(result["weights_gigabytes_per_second"]) == len(result["raw_gigabytes_per_second"]) == 2
    assert min(result["weights_gigabytes_per_second"] + result["raw_gigabytes_per_second"]) > 0
    assert "median" in answer.stdout and f"{100 * result['median_share']:.0f} %" in answer.stdout


def test_packed_files_are_loaded_and_read_alike(tmp_path):
    packed, file = tmp_path / "packed", tmp_path / "load.json"
    assert r1d.run("pack", NANO, "--world-size", 2, "--output", packed).returncode == 0
    answer = r1d.run("bench", "load", packed, "--world-size", 2, "--mode", "direct", "--repeats", 1, "--json", file)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(file.read_text())
    size = sum(path.stat().st_size for path in packed.glob("*.r1dpack"))
    assert 0.6 * size < result["bytes"] <= size  # all but the MTP layer, headers and gaps
    assert result["median_share"] > 0
    answer = r1d.run("bench", "load", packed, "--world-size", 4)
    assert answer.returncode == 1 and "world size" in answer.stderr


def test_a_load_of_no_model_names_the_directory(tmp_path):
    answer = r1d.run("bench", "load", tmp_path)
    assert answer.returncode == 1
    assert f"{tmp_path}: has no .safetensors or .r1dpack files" in answer.stderr
