# SPDX-License-Identifier: Apache-2.0
"""Reads the tree and holds it against the rules in tree.py. Python's standard library only.

R1D_COMPILE_COMMANDS: compile_commands.json of the build that runs this test.
"""

import json
import os
import pathlib
import unittest

import tree

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("src", "include", "kernels", "tests", "proto", "cmake", "scripts", ".ci")
CODE = (".cc", ".h", ".cu", ".cuh", ".py", ".proto", ".cmake")
THIRD_PARTY = ("proto/google/", "proto/grpc/")  # protocol definitions of others, as published


def files_below(folder):
    """Every file below `folder`, caches and hidden folders left out, in a fixed order."""
    for directory, subfolders, names in os.walk(ROOT / folder):
        subfolders[:] = sorted(s for s in subfolders if s != "__pycache__" and not s.startswith("."))
        for name in sorted(names):
            yield pathlib.Path(directory, name)


def read(path):
    return tree.Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


def is_source(path):
    name = path.relative_to(ROOT).as_posix()
    if name.startswith(THIRD_PARTY):
        return False
    return path.suffix in CODE or path.name == "CMakeLists.txt" or name.startswith(("scripts/", ".ci/"))


def sources():
    yield read(ROOT / "CMakeLists.txt")
    for folder in FOLDERS:
        yield from (read(path) for path in files_below(folder) if is_source(path))


def documents():
    yield from (read(path) for path in sorted(ROOT.glob("*.md")))
    for folder in ("docs", "src", "kernels", "configs", "docker", "tests", "proto"):
        yield from (read(path) for path in files_below(folder) if path.suffix == ".md")


class TreeTest(unittest.TestCase):
    maxDiff = None

    def assert_none(self, findings):
        if findings:
            self.fail("\n" + "\n".join(findings))

    def test_every_source_file_keeps_every_rule(self):
        self.assert_none([
            f"{source.path}:{line}: {problem}  [{rule.__name__}]"
            for source in sources()
            for rule in tree.RULES
            for line, problem in rule(source)
        ])

    def test_unfinished_work_has_an_issue(self):
        self.assert_none([
            f"{source.path}:{line}: {problem}"
            for source in [*sources(), *documents()]
            if not source.path.startswith("tests/tidy/")
            for line, problem in tree.named_todos(source)
        ])

    def test_links_between_documents_lead_somewhere(self):
        exists = lambda path: (ROOT / path).exists()
        self.assert_none([
            f"{source.path}:{line}: {problem}"
            for source in documents()
            for line, problem in tree.markdown_links(source, exists)
        ])

    def test_every_stage_says_what_it_does(self):
        self.assert_none([
            f"src/{stage}/README.md is missing: what comes in, what goes out, which thread runs it"
            for stage in tree.STAGES
            if (ROOT / "src" / stage).is_dir() and not (ROOT / "src" / stage / "README.md").is_file()
        ])

    def test_the_architecture_names_every_stage(self):
        text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
        self.assert_none([
            f"ARCHITECTURE.md does not mention src/{stage}"
            for stage in tree.STAGES
            if (ROOT / "src" / stage).is_dir() and f"src/{stage}" not in text
        ])

    def test_nine_host_files_in_ten_stay_under_400_lines(self):
        lengths = {s.path: s.text.count("\n") for s in sources() if s.path.startswith(("src/", "include/"))}
        long_ones = sorted(path for path, length in lengths.items() if length >= 400)
        self.assertLessEqual(len(long_ones), len(lengths) / 10, long_ones)

    def test_every_source_file_is_built_by_some_target(self):
        database = pathlib.Path(os.environ["R1D_COMPILE_COMMANDS"])
        built = {pathlib.Path(entry["file"]).resolve() for entry in json.loads(database.read_text())}
        self.assert_none([
            f"{path.relative_to(ROOT)} is built by no target of {database.parent.name}"
            for path in files_below("src")
            if path.suffix == ".cc" and path not in built and "cuda" not in path.parts
        ])


class RuleTest(unittest.TestCase):
    """Each rule finds what it is there to find, and lets pass what looks like it."""

    def check(self, rule, path, text, lines):
        found = [line for line, _ in rule(tree.Source(path, text))]
        self.assertEqual(found, lines, f"{rule.__name__} on {path}: {text!r}")

    def test_includes_up_the_chain_are_found(self):
        for path, include, found in (
            ("src/model/layer.cc", '"r1d/engine/engine.h"', True),
            ("src/model/layer.cc", '"r1d/ops/ops.h"', False),
            ("src/model/layer.cc", '"r1d/checkpoint/model_config.h"', False),
            ("src/checkpoint/index.cc", '"r1d/telemetry/metrics.h"', True),
            ("src/scheduler/plan.cc", '"engine/rank_group.h"', True),
            ("src/scheduler/plan.cc", '"scheduler/block_allocator.h"', False),
            ("include/r1d/engine/engine.h", '"engine/rank_group.h"', True),
            ("src/extra/thing.cc", "<vector>", True),
            ("src/base/log.cc", '"log_sink.h"', True),
            ("src/ops/cuda/linear.cc", '"kernels/generic/generic.h"', False),
            ("src/engine/engine.cc", '"kernels/generic/generic.h"', True),
        ):
            self.check(tree.include_direction, path, f"\n#include {include}\n",
                       ([1] if "extra" in path else [2]) if found else [])

    def test_kernels_include_plain_headers_alone(self):
        for include, found in (
            ('"kernels/common/launch.h"', False),
            ('"r1d/ops/tensor.h"', False),
            ('"r1d/ops/latent_format.h"', False),
            ("<cuda_bf16.h>", False),
            ('"r1d/ops/ops.h"', True),
            ("<absl/status/status.h>", True),
        ):
            self.check(tree.kernels_know_no_objects, "kernels/norm/norm.cu", f"#include {include}", [1] if found else [])

    def test_main_and_wire_types_are_kept_in_their_place(self):
        self.check(tree.main_is_short, "src/main.cc", '#include "r1d/engine/engine.h"', [1])
        self.check(tree.main_is_short, "src/main.cc", '#include "r1d/cli/cli.h"', [])
        self.check(tree.wire_types, "src/engine/e.cc", "#include <grpcpp/grpcpp.h>", [1])
        self.check(tree.wire_types, "src/transport/grpc/s.cc", "#include <grpcpp/grpcpp.h>", [])

    def test_forbidden_calls_are_found_in_code_and_nowhere_else(self):
        self.check(tree.no_sleeping, "tests/a/a.cc", "\nstd::this_thread::sleep_for(x);", [2])
        self.check(tree.no_sleeping, "src/base/a.cc", '// sleep_for(x)\nf("usleep(1)");', [])
        self.check(tree.one_mutex, "src/base/a.cc", "std::mutex mu;", [1])
        self.check(tree.no_throwing, "src/base/a.cc", "if (x) throw y;\n/* throw\n*/ throw z;", [1, 3])
        self.check(tree.no_throwing, "src/base/a.cc", 'auto s = R"(throw "x")";  // throw', [])
        self.check(tree.no_printing, "src/engine/a.cc", "std::cout << 1; std::printf(x);", [1, 1])
        self.check(tree.no_printing, "src/cli/a.cc", "std::cout << 1;", [])
        self.check(tree.no_printing, "src/engine/a.cc", "snprintf(b, n, x);", [])
        self.check(tree.device_calls, "src/ops/cuda/a.cc", "cudaMalloc(&p, n);", [1])
        self.check(tree.device_calls, "src/device/a.cc", "cudaMalloc(&p, n);", [])
        self.check(tree.device_calls, "kernels/norm/norm.cu", "cudaFuncSetAttribute(k, a, n);", [])
        self.check(tree.device_calls, "kernels/norm/norm.cu", "cudaStreamSynchronize(s);", [1])

    def test_digit_separators_hide_nothing(self):
        self.check(tree.no_throwing, "src/base/a.cc", "x = 1'000; throw y; z = 2'000;", [1])

    def test_files_without_license_or_guard_are_found(self):
        license_line = "// SPDX-License-Identifier: Apache-2.0\n"
        self.check(tree.license_line, "src/base/a.cc", license_line, [])
        self.check(tree.license_line, "scripts/x", "#!/bin/sh\n#" + license_line[2:], [])
        self.check(tree.license_line, "src/base/a.cc", "\n" + license_line, [1])
        self.check(tree.header_guard, "src/base/a.h", license_line, [1])

    def test_dead_links_and_nameless_work_are_found(self):
        text = "[a](b.md) [c](https://x.org) [d](e.md#part)\n```\n[x](no.md)\n```\n"
        found = tree.markdown_links(tree.Source("docs/a.md", text), lambda path: str(path) == "docs/b.md")
        self.assertEqual([line for line, _ in found], [1])
        self.check(tree.named_todos, "src/base/a.cc", "// TODO: later\n// TODO" + "(#12): later", [1])


if __name__ == "__main__":
    unittest.main()
