# SPDX-License-Identifier: Apache-2.0
"""Runs an image's command as a container engine would, and asks it a question. check.py starts this in mount,
network and IPC namespaces of its own, with a description of the container as JSON."""

import fcntl
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time

PATIENCE_S = 120
QUESTION, ANSWER = "What is 17 * 23?", "391"
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


def expect(condition, what):
    if not condition:
        sys.exit(f"tools/packaging/container.py: {what}")


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # SIOCSIFFLAGS with IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 0x41))


def mount_root(root, model):
    """What an engine mounts: devices, the model, and the root itself read-only."""
    mount("--bind", root, root)
    mount("-t", "tmpfs", "tmpfs", root / "dev")
    for name, minor in DEVICES.items():
        os.mknod(root / "dev" / name, 0o666 | 0o020000, os.makedev(1, minor))
        os.chmod(root / "dev" / name, 0o666)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    (root / "dev/shm").mkdir(mode=0o1777)
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "dev/shm")
    mount("-t", "sysfs", "-o", "ro", "sysfs", root / "sys")
    mount("--bind", model, root / "model")
    mount("-o", "remount,bind,ro", root / "model")
    mount("-o", "remount,bind,ro", root)


class Container:
    """Commands in the root as the image's user: no capabilities, no way to more of them."""

    def __init__(self, image):
        self.root = pathlib.Path(image["root"])
        self.image = image

    def words(self, command):
        user, _, group = self.image["user"].partition(":")
        drop = ["setpriv", "--reuid", user, "--regid", group or user, "--clear-groups", "--bounding-set=-all",
                "--inh-caps=-all", "--no-new-privs"]
        variables = [f"{name}={value}" for name, value in self.image["environment"].items()]
        # The daemon is process 1 of its namespace, as in a container.
        return ["unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={self.root}/proc",
                "chroot", str(self.root), *drop, "env", "--ignore-environment", *variables, *command]

    def run(self, command, **options):
        return subprocess.run(self.words(command), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
                              **options)

    def start(self):
        return subprocess.Popen(self.words(self.image["command"]), stdin=subprocess.DEVNULL)


def child_of(process):
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(children.read_text().split()[0])


def check_process(pid, image):
    status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    expect(status["Uid"].split()[0] == image["user"].partition(":")[0], f"runs as user {status['Uid']}")
    expect(status["NSpid"].split()[-1] == "1", "is not process 1 of its namespace")
    for name in ("CapPrm", "CapEff", "CapBnd"):
        expect(int(status[name], 16) == 0, f"{name} is {status[name]}")
    listening = set()
    for family in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(address, 16) == 0:
                listening.add(int(port, 16))
    expect(set(image["ports"]) <= listening, f"listens on all interfaces at {listening}, EXPOSE has {image['ports']}")


def main():
    image = json.loads(sys.argv[1])
    container = Container(image)
    mount_root(container.root, image["model"])
    loopback_up()
    writing = container.run(["touch", "/new", "/tmp/new"])
    expect(writing.stderr.count("Read-only file system") == 2, f"the root can be written: {writing.stderr}")
    expect(container.run(image["healthcheck"]).returncode != 0, "the health check passes without a daemon")

    daemon = container.start()
    deadline = time.monotonic() + PATIENCE_S
    while container.run(image["healthcheck"]).returncode != 0:
        expect(daemon.poll() is None, f"the daemon ended with status {daemon.returncode}")
        expect(time.monotonic() < deadline, f"the health check has not passed within {PATIENCE_S} s")
    pid = child_of(daemon)
    check_process(pid, image)
    reply = container.run(["r1d", "chat", "--address", f"127.0.0.1:{image['ports'][0]}"], input=QUESTION + "\n")
    print(f"> {QUESTION}\n{reply.stdout}", flush=True)
    expect(reply.returncode == 0 and ANSWER in reply.stdout.split("->")[-1], f"no {ANSWER}: {reply.stderr}")
    os.kill(pid, signal.SIGTERM)
    expect(daemon.wait(timeout=PATIENCE_S) == 0, f"SIGTERM ended it with status {daemon.returncode}")
    print("served, answered and drained on a read-only root without rights", flush=True)


if __name__ == "__main__":
    main()
