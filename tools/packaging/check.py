# SPDX-License-Identifier: Apache-2.0
"""scripts/check-packaging: its header says what this does."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import dockerfile
from roots import BOOKWORM, NOBLE, PATH, Workshop, network_environment, release_of, say

TREE = pathlib.Path(__file__).resolve().parents[2]
MODEL = TREE / "models" / "r1-nano"
CCACHE = "/ccache"  # where the compiler cache of --ccache stands in a root
# Objects of a checkout in another folder serve the one in /src.
CCACHE_SETTINGS = {"CCACHE_DIR": CCACHE, "CCACHE_BASEDIR": "/src", "CCACHE_NOHASHDIR": "true"}


def export_tree(folder):
    """The files a checkout would have, changes included, build folders not: the context of a build."""
    listed = subprocess.run(
        ["git", "-C", TREE, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (TREE / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, target)


def copy_into(source, target, into_folder):
    """One source of COPY: a folder's contents, or a file."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
        return
    if into_folder:
        target = target / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


class Image:
    """Builds a Dockerfile's stages as roots, step by step."""

    def __init__(self, options, workshop, file):
        self.options = options
        self.workshop = workshop
        self.file = file
        self.stages = dockerfile.parse((TREE / file).read_text())
        self.roots = {}

    def build(self):
        """Runs every step; the root of the last stage."""
        context = self.workshop.folder / "context"
        shutil.rmtree(context, ignore_errors=True)
        export_tree(context)
        for stage in self.stages:
            say(f"{self.file}:{stage.line}: FROM {stage.image}")
            self.roots[stage.name] = self._build_stage(stage, context)
        return self.roots[self.stages[-1].name]

    def remove(self):
        for root in self.roots.values():
            root.remove()

    def _build_stage(self, stage, context):
        binds = []
        building = stage is not self.stages[-1]
        if "-devel-" in stage.image:
            binds.append(f"{self.options.toolkit.resolve()}:/usr/local/cuda")
        if building and self.options.ccache:
            binds.append(f"{self.options.ccache}:{CCACHE}")
        root = self.workshop.make(f"{pathlib.Path(self.file).name}.{stage.name}", release_of(stage.image), binds)
        environment = {"PATH": PATH, "HOME": "/root"} | CCACHE_SETTINGS
        if "-devel-" in stage.image:
            environment["PATH"] = f"/usr/local/cuda/bin:{PATH}"
        arguments = network_environment()
        folder = "/"
        for step in stage.steps:
            print(f"-- {self.file}:{step.line}: {step.kind} {step.text}", flush=True)
            begin = time.monotonic()
            if step.kind == "WORKDIR":
                folder = step.text
                root.inside(folder).mkdir(parents=True, exist_ok=True)
            elif step.kind == "ENV":
                environment |= step.pairs()
            elif step.kind == "ARG":
                arguments |= {name: value or "" for name, value in step.pairs().items()}
            elif step.kind == "COPY":
                self._copy(step, root, folder, context)
            elif step.kind == "RUN":
                root.run(["/bin/sh", "-c", step.text], arguments | environment, folder)
                print(f"-- took {time.monotonic() - begin:.0f} s", flush=True)
        return root

    def _copy(self, step, root, folder, context):
        stage, sources, destination = step.copy()
        if stage is not None and stage not in self.roots:
            raise dockerfile.DockerfileError(f"line {step.line}: --from={stage}: no such stage")
        origin = self.roots[stage].path if stage else context
        target = root.inside(pathlib.PurePosixPath(folder) / destination)
        for source in sources:
            found = origin / source.lstrip("/")
            if not found.exists():
                raise dockerfile.DockerfileError(f"line {step.line}: COPY {source}: there is no such file")
            copy_into(found, target, into_folder=destination.endswith("/"))


def check_image(options, workshop, file):
    """Builds the image, then runs its command as a container engine with --read-only would."""
    image = Image(options, workshop, file)
    root = image.build()
    stage = image.stages[-1]
    say(f"{file}: as user {stage.user()}, root file system read-only, no network")
    python = [path for path in root.path.glob("usr/**/bin/python*") if path.exists()]
    if python:
        raise RuntimeError(f"the image holds Python: {python[0]}")
    size = subprocess.run(["du", "-sm", root.path], check=True, capture_output=True, text=True).stdout.split()[0]
    root.inside("/model").mkdir()
    container = {
        "root": str(root.path), "model": str(MODEL), "user": stage.user(), "command": stage.command(),
        "healthcheck": stage.healthcheck(), "ports": stage.ports(),
        "environment": {"PATH": PATH} | stage.environment(),
    }
    subprocess.run(
        ["unshare", "--mount", "--net", "--ipc", "--uts", sys.executable, "-B",
         pathlib.Path(__file__).with_name("container.py"), json.dumps(container)],
        check=True, stdin=subprocess.DEVNULL,
    )
    print(f"{file}: {size} MB unpacked, base included")
    if not options.keep:
        image.remove()


def check_readme(options, workshop, name, release):
    """`scripts/run --once` and `scripts/test` as the README has them, on a fresh system."""
    binds = [f"{options.ccache}:{CCACHE}"] if options.ccache else []
    root = workshop.make(f"readme.{name}", release, binds)
    export_tree(root.inside("/src"))
    environment = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"} | CCACHE_SETTINGS | network_environment()
    authorities = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if authorities:
        shutil.copy(authorities, root.inside("/authorities.pem"))
        environment["PIP_CERT"] = "/authorities.pem"
    for command in (["scripts/run", "--once"], ["scripts/test"]):
        say(f"{name}: {' '.join(command)}")
        begin = time.monotonic()
        root.run(command, environment, "/src")
        print(f"-- took {time.monotonic() - begin:.0f} s", flush=True)
    if not options.keep:
        root.remove()


CHECKS = {
    "image": lambda options, workshop: check_image(options, workshop, "docker/Dockerfile"),
    "image-cuda": lambda options, workshop: check_image(options, workshop, "docker/Dockerfile.cuda"),
    "debian": lambda options, workshop: check_readme(options, workshop, "debian", BOOKWORM),
    "ubuntu": lambda options, workshop: check_readme(options, workshop, "ubuntu", NOBLE),
}


def main():
    parser = argparse.ArgumentParser(prog="scripts/check-packaging")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/var/tmp/r1d-packaging"))
    parser.add_argument("--ccache", type=pathlib.Path)
    parser.add_argument("--toolkit", type=pathlib.Path, default=pathlib.Path("/usr/local/cuda"))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("what", nargs="+", choices=CHECKS)
    options = parser.parse_args()
    if options.ccache:
        options.ccache = options.ccache.resolve()
        options.ccache.mkdir(parents=True, exist_ok=True)
    if "image-cuda" in options.what and not (options.toolkit / "bin/nvcc").exists():
        parser.error(f"--toolkit {options.toolkit}: no bin/nvcc there")
    # Ends as Ctrl-C does: what runs in a root is killed with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/check-packaging: stopped"))
    workshop = Workshop(options.work)
    try:
        for what in options.what:
            CHECKS[what](options, workshop)
            say(f"{what}: passed")
    except subprocess.CalledProcessError as error:
        sys.exit(f"scripts/check-packaging: {what}: a step failed with status {error.returncode} (above)")
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"scripts/check-packaging: {what}: {error}")


if __name__ == "__main__":
    main()
