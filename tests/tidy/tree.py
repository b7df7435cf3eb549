# SPDX-License-Identifier: Apache-2.0
"""The rules of the source tree, each a function from one file to findings.

A finding is a pair (line number, what is wrong and what to do). tree_test.py applies every rule to
every file, and to small samples that must be found wrong.
"""

import dataclasses
import functools
import pathlib
import re

# The way of a request, lowest stage first; a stage sees itself and what stands before it.
CHAIN = ("ops", "model", "engine", "scheduler", "admission", "transport", "cli")
# Open to every stage of the chain; they see base, and one another only as BESIDE says.
LEAVES = ("checkpoint", "telemetry", "config", "tokenizer", "jinja", "chat", "device")
BESIDE = {"chat": {"jinja"}}
STAGES = ("base", *LEAVES, *CHAIN)

CPP = (".cc", ".h", ".cu", ".cuh")
COMMENT_OR_TEXT = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<mark>[^()\s\\]*)\(.*?\)(?P=mark)"|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-zA-Z])'(?:\\.|[^'\\\n])+'",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One file: its path from the root of the tree, with slashes, and its text."""

    path: str
    text: str

    @property
    def is_cpp(self):
        return self.path.endswith(CPP)

    @property
    def stage(self):
        """The stage of a file below src/ or include/r1d/; None elsewhere."""
        match = re.match(r"(?:src|include/r1d)/([^/]+)/", self.path)
        return match[1] if match else None

    @functools.cached_property
    def code(self):
        """The text with comments and literals blanked, line numbers kept."""
        return COMMENT_OR_TEXT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), self.text)

    def find(self, pattern):
        """(line number, match) of every match of `pattern` in the code."""
        for match in re.finditer(pattern, self.code, re.MULTILINE):
            yield self.code.count("\n", 0, match.start()) + 1, match

    def includes(self):
        """(line number, "path" or <path>) of every include."""
        for number, line in enumerate(self.text.split("\n"), 1):
            if match := re.match(r'\s*#\s*include\s+("[^"]+"|<[^>]+>)', line):
                yield number, match[1]


def visible_from(stage):
    """The stages whose public headers `stage` may include."""
    if stage == "base":
        return {"base"}
    if stage in LEAVES:
        return {"base", stage, *BESIDE.get(stage, ())}
    return {"base", *LEAVES, *CHAIN[: CHAIN.index(stage) + 1]}


def include_direction(source):
    """Nothing reaches back up the chain, and private headers stay in their stage."""
    if source.stage is None:
        return
    if source.stage not in STAGES:
        yield 1, f"'{source.stage}' is no stage; known are {', '.join(STAGES)} (tests/tidy/tree.py)"
        return
    public = source.path.startswith("include/")
    for line, name in source.includes():
        if not name.startswith('"') or name.endswith('.pb.h"'):
            continue
        parts = name.strip('"').split("/")
        if parts[0] == "r1d" and len(parts) > 2:
            if parts[1] not in visible_from(source.stage):
                yield line, f"{source.stage} may not see {parts[1]}: it stands above, or beside"
        elif parts[0] == "kernels" and source.path.startswith("src/ops/cuda/"):
            continue  # launchers are what the CUDA operators stand on
        elif public:
            yield line, f"a public header includes {name}, which is not below include/"
        elif parts[0] != source.stage:
            yield line, f"{name} is private to another stage, or not written from src/ on"


def kernels_know_no_objects(source):
    """Kernels stand below everything: plain pointers and sizes, number formats, CUDA's own headers."""
    if not source.path.startswith("kernels/"):
        return
    plain = ('"r1d/base/dtype.h"', '"r1d/base/random.h"', '"r1d/ops/latent_format.h"', '"r1d/ops/tensor.h"')
    for line, name in source.includes():
        ours = name.startswith('"') and not name.startswith('"kernels/') and name not in plain
        if ours or re.match(r"<(absl|fmt|spdlog|grpc)", name):
            yield line, f"a kernel includes {name}; it takes plain pointers and sizes"


def main_is_short(source):
    """src/main.cc dispatches: it sees the command line and the base alone."""
    if source.path != "src/main.cc":
        return
    for line, name in source.includes():
        if name.startswith('"r1d/') and name.split("/")[1] not in ("cli", "base"):
            yield line, f"main.cc includes {name}; what it needs stands in src/cli"


def wire_types(source):
    """gRPC and protobuf types live in transport, and in the client of the command line."""
    if source.stage is None or source.stage in ("transport", "cli"):
        return
    for line, name in source.includes():
        if re.match(r'["<](grpc|google/protobuf)', name) or name.endswith('.pb.h"'):
            yield line, f"{source.stage} includes {name}; wire types end in transport"


def license_line(source):
    """Every source file says its license first (scripts: right after #!)."""
    lines = source.text.split("\n", 2)
    if lines[0].startswith("#!"):
        lines = lines[1:]
    if not re.fullmatch(r"(//|#) SPDX-License-Identifier: Apache-2\.0", lines[0]):
        yield 1, "the first line is not 'SPDX-License-Identifier: Apache-2.0' in a comment"


def no_sleeping(source):
    """Waiting is done on a condition."""
    if not source.is_cpp:
        return
    for line, match in source.find(r"\b(sleep_for|sleep_until|u?sleep|nanosleep|SleepFor)\s*\("):
        yield line, f"{match[1]}: wait on a condition with a deadline instead"


def one_mutex(source):
    """base::Mutex everywhere: annotated, and seen by ThreadSanitizer (absl::Mutex is not)."""
    if not source.is_cpp or source.path == "include/r1d/base/mutex.h":
        return
    kinds = r"\b(std::(?:recursive_|shared_|timed_)?mutex|std::condition_variable(?:_any)?|absl::Mutex)\b"
    for line, match in source.find(kinds):
        yield line, f"{match[1]}: use r1d/base/mutex.h"


def no_throwing(source):
    """r1d throws nothing; failures are absl::Status. Fault points throw what libraries might."""
    if source.is_cpp and not source.path.startswith("tests/") and source.path != "src/base/fault.cc":
        for line, _ in source.find(r"\bthrow\b"):
            yield line, "throw: return an absl::Status"


def no_printing(source):
    """Stages log; only the command line prints, and a failed check on its way out."""
    if not source.is_cpp or source.stage in (None, "cli"):
        return
    for line, match in source.find(r"\b(std::(?:cout|cerr|clog)|(?:f|v|vf)?printf|puts)\b"):
        if source.path != "src/base/check.cc":
            yield line, f"{match[1]}: use the stage's logger"


# What a launcher may call: none makes, frees or waits for anything.
LAUNCHING = re.compile(
    r"cudaGetLastError|cudaLaunchKernelEx|cudaFuncSetAttribute|cudaFuncGetAttributes"
    r"|cudaGetDriverEntryPoint\w*|cudaOccupancy\w+|cudaGetDevice|cudaDeviceGetAttribute"
)


def device_calls(source):
    """CUDA, NCCL and cuBLAS handles are made and freed in src/device alone, and by what kernel tests share."""
    if not source.is_cpp or source.stage == "device":
        return
    if re.match(r"(tests|bench)/kernels/", source.path):
        return
    for line, match in source.find(r"\b((?:cuda|nccl|cublas(?:Lt)?)[A-Z]\w*)\s*\("):
        launching = source.path.startswith("kernels/") and LAUNCHING.fullmatch(match[1])
        if not launching:
            yield line, f"{match[1]}: raw device calls stand in src/device"


def header_guard(source):
    """Headers are read once."""
    if source.path.endswith((".h", ".cuh")) and not re.search(r"^#pragma once$", source.text, re.M):
        # Highway compiles such a header once per instruction set, under its own toggle.
        if "HWY_TARGET_TOGGLE" not in source.text:
            yield 1, "no #pragma once"


def named_todos(source):
    """Unfinished work has an issue."""
    for number, line in enumerate(source.text.split("\n"), 1):
        if re.search(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))", line):
            yield number, "unfinished work is written TODO(#issue)"


def markdown_links(source, exists):
    """Links between documents lead somewhere. `exists`: whether a path from the root is there."""
    if not source.path.endswith(".md"):
        return
    folder = pathlib.PurePosixPath(source.path).parent
    text = re.sub(r"```.*?```", lambda block: re.sub(r"[^\n]", " ", block[0]), source.text, flags=re.DOTALL)
    for match in re.finditer(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text):
        if not re.match(r"[a-z]+:", match[1]) and not exists(folder / match[1]):
            yield text.count("\n", 0, match.start()) + 1, f"the link to {match[1]} leads nowhere"


RULES = (
    include_direction,
    kernels_know_no_objects,
    main_is_short,
    wire_types,
    license_line,
    no_sleeping,
    one_mutex,
    no_throwing,
    no_printing,
    device_calls,
    header_guard,
)
