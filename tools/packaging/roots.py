# SPDX-License-Identifier: Apache-2.0
"""Clean root file systems by debootstrap, and commands in them: what a container engine would do to build an image."""

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import urllib.request

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Debian has no package with Ubuntu's keys; this is Ubuntu's own, by its content.
UBUNTU_KEYS = "http://archive.ubuntu.com/ubuntu/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
UBUNTU_KEYS_SHA256 = "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8"

# Mounts what every command needs, then enters; in namespaces of their own, so that nothing is left mounted.
ENTER = """
root=$1 binds=$2; shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for bind in $binds; do mount --bind "${bind%%:*}" "$root${bind#*:}"; done
exec chroot "$root" "$@"
"""


@dataclasses.dataclass(frozen=True)
class Release:
    """A distribution's release: its debootstrap name, its mirrors as apt's lines."""

    suite: str
    mirror: str
    components: str
    sources: tuple


BOOKWORM = Release(
    "bookworm", "http://deb.debian.org/debian", "main",
    ("deb http://deb.debian.org/debian bookworm main",
     "deb http://deb.debian.org/debian bookworm-updates main",
     "deb http://deb.debian.org/debian-security bookworm-security main"),
)
NOBLE = Release(
    "noble", "http://archive.ubuntu.com/ubuntu", "main,universe",
    ("deb http://archive.ubuntu.com/ubuntu noble main universe",
     "deb http://archive.ubuntu.com/ubuntu noble-updates main universe",
     "deb http://security.ubuntu.com/ubuntu noble-security main universe"),
)
IMAGES = (
    (r"debian:12(\.\d+)?(-slim)?", BOOKWORM),
    (r"ubuntu:24\.04", NOBLE),
    (r"nvidia/cuda:\d+\.\d+\.\d+-(base|devel)-ubuntu24\.04", NOBLE),
)


def release_of(image):
    """The release inside an image of this name."""
    for pattern, release in IMAGES:
        if re.fullmatch(pattern, image):
            return release
    raise ValueError(f"FROM {image}: no root is known for this image (tools/packaging/roots.py)")


def say(text):
    print(f"\n== {text}", flush=True)


class Root:
    """A root file system in a folder. Commands run in it as its root, with the host's network."""

    def __init__(self, path, binds=()):
        self.path = pathlib.Path(path)
        self.binds = tuple(binds)  # "OUTSIDE:INSIDE"

    def inside(self, path):
        """A path of the root as seen from outside."""
        return self.path / str(path).lstrip("/")

    def run(self, words, environment, folder="/"):
        """Runs a command to its end; CalledProcessError when it fails."""
        for bind in self.binds:
            self.inside(bind.partition(":")[2]).mkdir(parents=True, exist_ok=True)
        resolver = self.inside("/etc/resolv.conf")
        resolver.unlink(missing_ok=True)
        shutil.copy("/etc/resolv.conf", resolver)
        self.inside("/etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")  # as every machine has
        variables = [f"{name}={value}" for name, value in environment.items()]
        subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", ENTER, "enter", str(self.path),
             " ".join(self.binds), "env", "--ignore-environment", f"--chdir={folder}", *variables, *words],
            check=True, stdin=subprocess.DEVNULL,
        )

    def remove(self):
        shutil.rmtree(self.path)


def network_environment():
    """The proxies and package indexes of this machine, as a container engine would hand them in."""
    names = [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("PIP_")]
    return {name: os.environ[name] for name in names if name not in ("PIP_CERT", "PIP_FIND_LINKS")}


class Workshop:
    """Makes roots below one folder; keeps each release's first state as an archive."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def make(self, name, release, binds=()):
        """A fresh root of the release."""
        archive = self._archive(release)
        path = self.folder / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(mode=0o755)
        subprocess.run(["tar", "--extract", "--file", archive, "--directory", path], check=True)
        return Root(path, binds)

    def _archive(self, release):
        archive = self.folder / f"{release.suite}.tar"
        if archive.exists():
            return archive
        say(f"debootstrap {release.suite}")
        path = self.folder / f"{release.suite}.new"
        if path.exists():
            shutil.rmtree(path)
        command = ["debootstrap", "--variant=minbase", f"--components={release.components}"]
        script = pathlib.Path("/usr/share/debootstrap/scripts") / release.suite
        if release is NOBLE:
            command.append(f"--keyring={self._ubuntu_keys()}")
            # Older debootstraps do not know the name; all Ubuntu releases use this one script.
            script = script if script.exists() else script.with_name("gutsy")
        subprocess.run([*command, release.suite, path, release.mirror, script], check=True, stdout=subprocess.DEVNULL)
        (path / "etc/apt/sources.list").write_text("\n".join(release.sources) + "\n")
        # As in the published images: packages start no services.
        policy = path / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        unfinished = archive.with_suffix(".unfinished")
        subprocess.run(["tar", "--create", "--file", unfinished, "--directory", path, "."], check=True)
        unfinished.rename(archive)
        shutil.rmtree(path)
        return archive

    def _ubuntu_keys(self):
        installed = pathlib.Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
        if installed.exists():
            return installed
        folder = self.folder / "ubuntu-keyring"
        keys = folder / installed.relative_to("/")
        if not keys.exists():
            with urllib.request.urlopen(UBUNTU_KEYS, timeout=60) as reply:
                package = reply.read()
            found = hashlib.sha256(package).hexdigest()
            if found != UBUNTU_KEYS_SHA256:
                raise ValueError(f"{UBUNTU_KEYS}: sha256 is {found}, expected {UBUNTU_KEYS_SHA256}")
            file = self.folder / "ubuntu-keyring.deb"
            file.write_bytes(package)
            subprocess.run(["dpkg-deb", "--extract", file, folder], check=True)
        return keys
