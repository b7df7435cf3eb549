# SPDX-License-Identifier: Apache-2.0
"""configs/kubernetes: valid to the API server, and true about the daemon."""

import kubernetes_validate
import pytest

from daemon import run
from deployment import KUBERNETES, KUBERNETES_VERSIONS, VERSION, load_all, objects, of_kind, seconds, selects, workloads

FILES = ("cpu.yaml", "gpu.yaml")
# After the drain, cut streams may still take this long to hear of it (src/cli/serve.cc).
STREAM_GRACE_S = 5


@pytest.fixture(params=FILES)
def named(request):
    return objects(request.param)


def pod(workload):
    return workload["spec"]["template"]["spec"]


def container(workload):
    (only,) = pod(workload)["containers"]
    return only


def settings(named, workload):
    """The daemon's configuration as the pod mounts it, as text."""
    (volume,) = [volume for volume in pod(workload)["volumes"] if volume["name"] == "config"]
    return named["ConfigMap", volume["configMap"]["name"]]["data"]["r1d.yaml"]


def ports(workload):
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_objects_are_what_the_kubernetes_schemas_allow(named, version):
    for item in named.values():
        kubernetes_validate.validate(item, version, strict=True)


def test_a_misspelt_field_is_refused_by_the_schemas():
    deployment = objects("cpu.yaml")["Deployment", "r1d-cpu"]
    pod(deployment)["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodSecond"):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSIONS[-1], strict=True)


def test_every_file_is_covered():
    assert sorted(path.name for path in KUBERNETES.iterdir()) == sorted([*FILES, "servicemonitor.yaml"])


def test_the_configuration_is_valid_and_listens_where_the_ports_are(named, tmp_path):
    for workload in workloads(named):
        file = tmp_path / "r1d.yaml"
        file.write_text(settings(named, workload))
        checked = run("serve", "--config", file, "--check-config")
        assert checked.returncode == 0, checked.stderr
        (config,) = load_all(file.read_text())
        assert config["server"]["grpc_address"] == f"0.0.0.0:{ports(workload)['grpc']}"
        assert config["server"]["management_address"] == f"0.0.0.0:{ports(workload)['management']}"
        assert container(workload)["args"] == ["serve", "--config", "/etc/r1d/r1d.yaml"]


def test_probes_ask_routes_that_the_daemon_has(named, daemon):
    for workload in workloads(named):
        for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
            get = container(workload)[probe]["httpGet"]
            assert (get["path"], get["port"]) == (path, "management"), probe
            assert daemon.get(get["path"])[0] == 200, get["path"]


def test_a_pod_lives_longer_than_its_drain(named):
    for workload in workloads(named):
        (config,) = load_all(settings(named, workload))
        command, delay = container(workload)["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        needed = int(delay) + seconds(config["server"]["drain_timeout"]) + STREAM_GRACE_S
        assert pod(workload)["terminationGracePeriodSeconds"] > needed


def test_pods_have_no_rights(named):
    for workload in workloads(named):
        security = pod(workload)["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod(workload)["automountServiceAccountToken"]
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert not any("hostPath" in volume for volume in pod(workload)["volumes"])


def test_volumes_are_there_and_read_only(named):
    for workload in workloads(named):
        volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
        mounts = {mount["name"]: mount for mount in container(workload)["volumeMounts"]}
        assert set(volumes) == set(mounts)
        assert mounts["model"]["readOnly"] and volumes["model"]["persistentVolumeClaim"]["readOnly"]
        (config,) = load_all(settings(named, workload))
        assert config["model"]["path"] == mounts["model"]["mountPath"]


def test_selectors_find_the_pods(named):
    for workload in workloads(named):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels
        for service in of_kind(named, "Service"):
            assert selects(service["spec"]["selector"], labels)
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports(workload))
        for budget in of_kind(named, "PodDisruptionBudget"):
            assert selects(budget["spec"]["selector"]["matchLabels"], labels)
            assert budget["spec"]["minAvailable"] <= workload["spec"]["replicas"]
        for policy in of_kind(named, "NetworkPolicy"):
            assert selects(policy["spec"]["podSelector"]["matchLabels"], labels)
            assert policy["spec"]["egress"] == []
            opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            assert opened == set(ports(workload))
    kinds = {kind for kind, _ in named}
    assert {"ConfigMap", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= kinds


def test_the_two_files_select_different_pods():
    labels = [workload["spec"]["template"]["metadata"]["labels"] for name in FILES for workload in workloads(objects(name))]
    assert len(labels) == 2 and not selects(labels[0], labels[1])


def test_the_stateful_set_has_eight_gpus_and_its_headless_service():
    named = objects("gpu.yaml")
    stateful = named["StatefulSet", "r1d-gpu"]
    assert container(stateful)["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert named["Service", stateful["spec"]["serviceName"]]["spec"]["clusterIP"] == "None"
    (shm,) = [mount for mount in container(stateful)["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    (volume,) = [volume for volume in pod(stateful)["volumes"] if volume["name"] == shm["name"]]
    assert volume["emptyDir"]["medium"] == "Memory" and volume["emptyDir"]["sizeLimit"]


def test_images_are_those_of_this_version():
    images = {name: container(workloads(objects(name))[0])["image"] for name in FILES}
    assert images == {"cpu.yaml": f"r1d:{VERSION}", "gpu.yaml": f"r1d:{VERSION}-cuda"}


def test_the_service_monitor_finds_the_headless_services(daemon):
    (monitor,) = load_all((KUBERNETES / "servicemonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert daemon.get(endpoint["path"])[0] == 200
    for name in FILES:
        found = [service for service in of_kind(objects(name), "Service")
                 if selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])]
        assert [endpoint["port"] in {port["name"] for port in service["spec"]["ports"]} for service in found] == [True]
