# SPDX-License-Identifier: Apache-2.0
"""docker/: the images, the compose files, and the reader of Dockerfiles that scripts/check-packaging stands on."""

import os
import re
import subprocess

import pytest

import check
import dockerfile
from daemon import run
from deployment import TREE, VERSION, read, seconds
from roots import release_of

IMAGES = ("docker/Dockerfile", "docker/Dockerfile.cuda")


def stages(file):
    return dockerfile.parse((TREE / file).read_text())


def parsed(text):
    (stage,) = dockerfile.parse(text)
    return stage


@pytest.fixture(params=IMAGES)
def image(request):
    """The stage that ships."""
    return stages(request.param)[-1]


def test_the_image_runs_the_daemon_without_rights(image):
    assert image.user() == "10001:10001"
    assert image.command() == ["r1d", "serve", "--model", "/model"]
    assert image.settings["STOPSIGNAL"].text == "SIGTERM"


def test_its_ports_are_the_addresses_it_is_told(image, tmp_path):
    environment = image.environment()
    assert image.ports() == [int(environment[f"R1D_SERVER__{name}_ADDRESS"].rpartition(":")[2])
                             for name in ("GRPC", "MANAGEMENT")]
    ours = {name: value for name, value in environment.items() if name.startswith("R1D_")}
    shown = run(*image.command()[1:], "--print-config", env=os.environ | ours, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for value in ours.values():
        assert f'"{value}"' in shown.stdout


def test_every_step_can_be_run_in_a_plain_root():
    for file in IMAGES:
        names = set()
        for stage in stages(file):
            assert release_of(stage.image)
            for step in stage.steps:
                if step.kind == "COPY":
                    origin, sources, _ = step.copy()
                    assert origin is None or origin in names, f"{file}:{step.line}"
                    missing = [source for source in sources if origin is None and not (TREE / source).exists()]
                    assert not missing, f"{file}:{step.line}"
            names.add(stage.name)


def test_both_images_end_alike():
    """What differs is CUDA: the base, its libraries, what the driver's hook is told."""
    cpu, cuda = ([(step.kind, step.text) for step in stages(file)[-1].steps] for file in IMAGES)
    assert [step for step in cpu if step not in cuda] == [("RUN", "r1d version")]
    assert [step for step in cuda if step not in cpu] == [
        ("COPY", "--from=build /libraries/libcublasLt.so.13 /usr/local/lib/libcublasLt.so.13"),
        ("COPY", "--from=build /libraries/libnccl.so.2 /usr/local/lib/libnccl.so.2"),
        ("RUN", "ldconfig && r1d version"),
        ("ENV", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
    ]
    settings = [{kind: step.text for kind, step in stages(file)[-1].settings.items()} for file in IMAGES]
    assert settings[0] == settings[1]


def test_the_health_check_follows_readiness(image, daemon, tmp_path):
    (name,) = image.healthcheck()
    script = TREE / "docker" / name
    assert os.access(script, os.X_OK)

    def ask(port, *path):
        environment = {"PATH": os.environ["PATH"], "R1D_SERVER__MANAGEMENT_ADDRESS": f"0.0.0.0:{port}"}
        return subprocess.run([script, *path], capture_output=True, text=True, env=environment, timeout=10, check=False)

    assert ask(daemon.ports["management"]).returncode == 0
    assert ask(daemon.ports["management"], "/nothing").stdout == "HTTP/1.1 404 Not Found\n"
    assert ask(daemon.ports["management"], "/nothing").returncode != 0
    assert ask(1).returncode != 0  # nobody listens


def test_compose_serves_what_the_image_exposes_on_loopback_alone():
    compose = read("docker/compose.yaml")
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    r1d = compose["services"]["r1d"]
    assert r1d["read_only"]
    assert [int(port.rpartition(":")[2]) for port in r1d["ports"]] == stages("docker/Dockerfile")[-1].ports()
    drain = re.search(r"drain_timeout: (\w+)", run("serve", "--model", "/model", "--print-config").stdout)[1]
    assert seconds(r1d["stop_grace_period"]) > seconds(drain)


def test_compose_names_versions_and_files_that_exist():
    compose, gpu = read("docker/compose.yaml"), read("docker/compose.gpu.yaml")
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert images.pop("r1d") == f"r1d:{VERSION}"
    assert gpu["services"]["r1d"]["image"] == f"r1d:{VERSION}-cuda"
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images.values()), images
    for service in [*compose["services"].values(), *gpu["services"].values()]:
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).partition(":")[0]
            assert source in compose["volumes"] or (TREE / "docker" / source).exists(), volume
        if "build" in service:
            assert (TREE / service["build"]["dockerfile"]).exists()


def test_compose_scrapes_the_management_port():
    jobs = read("configs/prometheus/prometheus.yml")["scrape_configs"]
    targets = [target for job in jobs for config in job["static_configs"] for target in config["targets"]]
    assert "r1d:8081" in targets


def test_the_reader_joins_lines_and_substitutes_arguments():
    stage = parsed("ARG A=1.2\n# c\nFROM debian:${A} AS x\nRUN one \\\n # between\n  two\nENV B=\"c d\" E=f\n")
    assert (stage.image, stage.name) == ("debian:1.2", "x")
    assert [(step.line, step.kind, step.text) for step in stage.steps][0] == (4, "RUN", "one two")
    assert stage.environment() == {"B": "c d", "E": "f"}


@pytest.mark.parametrize("text, error", [
    ("FROM a\nADD x y\n", "line 2: ADD"),
    ("FROM a\nONBUILD RUN x\n", "line 2: ONBUILD"),
    ("RUN x\n", "line 1: RUN before the first FROM"),
    ("FROM a\nRUN <<EOF\n", "line 2: here-documents"),
    ("FROM a\nRUN x \\\n", "line 2: the file ends inside"),
    ("FROM ${B}\n", r"line 1: \$B has no value"),
    ("FROM a b c\n", "line 1: expected FROM"),
    ("FROM a\nUSER 1:1\nRUN x\n", "line 3: RUN after USER"),
    ("", "no FROM"),
])
def test_the_reader_refuses_what_it_does_not_know(text, error):
    with pytest.raises(dockerfile.DockerfileError, match=error):
        dockerfile.parse(text)


@pytest.mark.parametrize("text, method", [
    ("FROM a\nCOPY --chmod=755 x y\n", lambda stage: stage.steps[0].copy()),
    ("FROM a\nCOPY x\n", lambda stage: stage.steps[0].copy()),
    ("FROM a\nENV A\n", lambda stage: stage.environment()),
    ("FROM a\nCMD r1d serve\n", lambda stage: stage.command()),
])
def test_the_reader_refuses_forms_it_does_not_know(text, method):
    with pytest.raises(dockerfile.DockerfileError, match="line 2"):
        method(parsed(text))


def test_copies_follow_dockers_rules(tmp_path):
    """A folder's contents go into the destination; a file takes its name, or goes below a name that ends in /."""
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "file").write_text("x")
    check.copy_into(tmp_path / "from", tmp_path / "folder", into_folder=False)
    check.copy_into(tmp_path / "from" / "deep" / "file", tmp_path / "name", into_folder=False)
    check.copy_into(tmp_path / "from" / "deep" / "file", tmp_path / "below", into_folder=True)
    assert [(tmp_path / path).read_text() for path in ("folder/deep/file", "name", "below/file")] == ["x"] * 3


def test_unknown_base_images_are_refused():
    with pytest.raises(ValueError, match="alpine"):
        release_of("alpine:3")
