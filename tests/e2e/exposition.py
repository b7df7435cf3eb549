# SPDX-License-Identifier: Apache-2.0
"""A strict reader of Prometheus' text format 0.0.4: what it takes, every scraper takes."""

import math
import re

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)?,?\}})? (\S+)")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}


class Metrics:
    """The samples of one scrape. Keys are (name, frozenset of (label, value))."""

    def __init__(self, types, samples):
        self.types = types
        self._samples = samples

    def value(self, name, **labels):
        """The sample with exactly these labels; KeyError says what there is instead."""
        key = (name, frozenset(labels.items()))
        if key not in self._samples:
            raise KeyError(f"no {name} {labels}; there are {sorted(map(str, self.by_labels(name)))}")
        return self._samples[key]

    def by_labels(self, name):
        """{labels as a dictionary's items: value} of every sample called `name`."""
        return {labels: value for (found, labels), value in self._samples.items() if found == name}

    def keys(self):
        """(name, labels as a dictionary's items) of every sample."""
        return self._samples.keys()

    def total(self, name):
        return sum(self.by_labels(name).values())


def parse(text):
    """The metrics in `text`; ValueError names the line that breaks the format."""
    if not text.endswith("\n"):
        raise ValueError("the last line does not end")
    helps, types, samples = set(), {}, {}
    family, closed = None, set()
    for number, line in enumerate(text[:-1].split("\n"), 1):
        try:
            if line.startswith("#"):
                family = _comment(line, family, closed, helps, types)
            else:
                _sample(line, family, types, samples)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}: {line!r}") from None
    metrics = Metrics(types, samples)
    for name, kind in types.items():
        if kind == "histogram":
            _check_histogram(metrics, name)
    return metrics


def _comment(line, family, closed, helps, types):
    match = re.fullmatch(rf"# (HELP|TYPE) ({NAME}) (.+)", line)
    if not match:
        raise ValueError("neither HELP nor TYPE")
    keyword, name, rest = match.groups()
    if name != family:
        if name in closed:
            raise ValueError(f"{name} comes a second time")
        closed.add(name)
    if keyword == "HELP":
        if name in helps:
            raise ValueError("a second HELP")
        helps.add(name)
    else:
        if name in types:
            raise ValueError("a second TYPE")
        if rest not in ("counter", "gauge", "histogram", "summary", "untyped"):
            raise ValueError("unknown type")
        if name not in helps:
            raise ValueError("TYPE without HELP before it")
        types[name] = rest
    return name


def _sample(line, family, types, samples):
    match = SAMPLE.fullmatch(line)
    if not match:
        raise ValueError("not a sample")
    name, labels, value = match.groups()
    kind = types.get(family)
    if kind is None or name not in [family + suffix for suffix in SUFFIXES.get(kind, ("",))]:
        raise ValueError(f"stands below {family}")
    if kind == "counter" and not name.endswith("_total"):
        raise ValueError("a counter that does not end in _total")
    pairs = re.findall(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"', labels or "")
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a label twice")
    key = (name, frozenset(pairs))
    if key in samples:
        raise ValueError("the same sample twice")
    samples[key] = float(value.replace("Inf", "inf"))
    if kind == "counter" and not samples[key] >= 0:
        raise ValueError("a counter below 0")


def _check_histogram(metrics, name):
    """Buckets grow, the last is +Inf and equals the count, for each set of labels."""
    buckets = {}
    for labels, value in metrics.by_labels(name + "_bucket").items():
        bound = float(dict(labels)["le"].replace("Inf", "inf"))
        buckets.setdefault(frozenset(l for l in labels if l[0] != "le"), []).append((bound, value))
    for labels, pairs in buckets.items():
        pairs.sort()
        counts = [count for _, count in pairs]
        if counts != sorted(counts) or not math.isinf(pairs[-1][0]):
            raise ValueError(f"{name} {dict(labels)}: buckets {pairs}")
        if counts[-1] != metrics.value(name + "_count", **dict(labels)):
            raise ValueError(f"{name} {dict(labels)}: the last bucket is not the count")
        metrics.value(name + "_sum", **dict(labels))
