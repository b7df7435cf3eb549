# SPDX-License-Identifier: Apache-2.0
"""Reads a Dockerfile into stages and steps, so that what is checked is the file itself and no copy of it.

Knows the instructions that ours use, and refuses every other: a step that is not understood must not be skipped.
"""

import dataclasses
import json
import re
import shlex

STEPS = ("RUN", "COPY", "WORKDIR", "ENV", "ARG", "USER")
SETTINGS = ("ENTRYPOINT", "CMD", "HEALTHCHECK", "EXPOSE", "STOPSIGNAL", "LABEL")
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class DockerfileError(ValueError):
    """What is wrong, with the line it stands on."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One instruction that changes a stage: RUN, COPY, WORKDIR, ENV, ARG or USER."""

    line: int
    kind: str
    text: str

    def copy(self):
        """Of COPY: (name of the stage it copies from, or None; sources; destination)."""
        stage, words = None, shlex.split(self.text)
        while words and words[0].startswith("--"):
            flag, _, value = words.pop(0).partition("=")
            if flag != "--from" or not value:
                raise DockerfileError(f"line {self.line}: COPY {flag}: only --from=STAGE is known")
            stage = value
        if len(words) < 2:
            raise DockerfileError(f"line {self.line}: COPY wants sources and a destination")
        return stage, words[:-1], words[-1]

    def pairs(self):
        """Of ENV, ARG, LABEL: {name: value, or None for an ARG without default}."""
        found = {}
        for word in shlex.split(self.text):
            name, equals, value = word.partition("=")
            if not equals and self.kind != "ARG":
                raise DockerfileError(f"line {self.line}: {self.kind} {word}: expected NAME=VALUE")
            found[name] = value if equals else None
        return found


@dataclasses.dataclass
class Stage:
    """FROM `image` AS `name`, the steps in order, and what a container of it gets (the last of each counts)."""

    line: int
    image: str
    name: str
    steps: list = dataclasses.field(default_factory=list)
    settings: dict = dataclasses.field(default_factory=dict)

    def environment(self):
        """All that ENV sets."""
        return {k: v for step in self.steps if step.kind == "ENV" for k, v in step.pairs().items()}

    def user(self):
        """The last USER; root when there is none."""
        return next((step.text for step in reversed(self.steps) if step.kind == "USER"), "0:0")

    def command(self):
        """ENTRYPOINT and CMD as one list of words."""
        return [*self._words("ENTRYPOINT"), *self._words("CMD")]

    def healthcheck(self):
        """The words of HEALTHCHECK's command, without its options."""
        step = self.settings.get("HEALTHCHECK")
        if step is None:
            return []
        _, found, words = step.text.partition("CMD ")
        return _exec_form(step, words) if found else []

    def ports(self):
        """EXPOSE's numbers."""
        step = self.settings.get("EXPOSE")
        return [int(word) for word in step.text.split()] if step else []

    def _words(self, kind):
        step = self.settings.get(kind)
        return _exec_form(step, step.text) if step else []


def _exec_form(step, text):
    try:
        words = json.loads(text)
    except json.JSONDecodeError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DockerfileError(f'line {step.line}: {step.kind}: expected ["WORD", ...], which needs no shell')
    return words


def substitute(text, values, line):
    """`text` with $NAME and ${NAME} replaced; a name without a value is an error."""

    def value(match):
        name = match[1] or match[2]
        if values.get(name) is None:
            raise DockerfileError(f"line {line}: ${name} has no value here")
        return values[name]

    return VARIABLE.sub(value, text)


def _instructions(text):
    """(line number, one whole instruction), continued lines joined, comments left out."""
    begin, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        begin = begin or number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            yield begin, " ".join(parts)
            begin, parts = 0, []
    if parts:
        raise DockerfileError(f"line {begin}: the file ends inside an instruction")


def parse(text):
    """The stages of a Dockerfile, first to last."""
    stages, arguments = [], {}
    for line, instruction in _instructions(text):
        kind, _, rest = instruction.partition(" ")
        step = Step(line, kind, rest.strip())
        if "<<" in rest:
            raise DockerfileError(f"line {line}: here-documents are not known")
        if kind == "FROM":
            match = re.fullmatch(r"(\S+)(?: AS (\w+))?", step.text)
            if not match:
                raise DockerfileError(f"line {line}: expected FROM IMAGE [AS NAME]")
            image = substitute(match[1], arguments, line)
            stages.append(Stage(line, image, match[2] or f"stage{len(stages)}"))
        elif kind == "ARG" and not stages:
            arguments |= step.pairs()
        elif not stages:
            raise DockerfileError(f"line {line}: {kind} before the first FROM")
        elif kind in STEPS:
            if kind in ("RUN", "COPY") and any(before.kind == "USER" for before in stages[-1].steps):
                raise DockerfileError(f"line {line}: {kind} after USER: steps run as root here, so USER comes last")
            stages[-1].steps.append(step)
        elif kind in SETTINGS:
            stages[-1].settings[kind] = step
        else:
            raise DockerfileError(f"line {line}: {kind}: no such instruction is known here")
    if not stages:
        raise DockerfileError("no FROM")
    return stages
