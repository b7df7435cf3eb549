# SPDX-License-Identifier: Apache-2.0
"""Reads the files that deploy r1d: YAML strictly, Kubernetes objects by kind and name, durations, PromQL."""

import pathlib
import re

import yaml

TREE = pathlib.Path(__file__).resolve().parents[2]
VERSION = (TREE / "VERSION").read_text().strip()
KUBERNETES = TREE / "configs" / "kubernetes"
# The oldest and the newest Kubernetes whose schemas the manifests must pass.
KUBERNETES_VERSIONS = ("1.27", "1.37")


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key may not come twice: the second would silently win."""


def _mapping(loader, node):
    names = [loader.construct_object(key) for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_all(text):
    """The documents of a YAML text, empty ones left out."""
    return [document for document in yaml.load_all(text, Loader=StrictLoader) if document is not None]


def read(path):
    """The one document of a YAML file in the tree."""
    (document,) = load_all((TREE / path).read_text())
    return document


def objects(name):
    """{(kind, name): object} of one file below configs/kubernetes."""
    found = load_all((KUBERNETES / name).read_text())
    named = {(item["kind"], item["metadata"]["name"]): item for item in found}
    assert len(named) == len(found), f"{name}: two objects of one kind and name"
    return named


def workloads(named):
    """The StatefulSets and Deployments among them."""
    return [item for (kind, _), item in named.items() if kind in ("StatefulSet", "Deployment")]


def of_kind(named, kind):
    return [item for (found, _), item in named.items() if found == kind]


def seconds(text):
    """A duration as r1d and compose write it: 500ms, 30s, 10m, 1h."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def selects(selector, labels):
    return bool(selector) and all(labels.get(name) == value for name, value in selector.items())


KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}


def promql_series(expression):
    """[(name, {label: (operator, value)})] of the series that a PromQL expression reads, and the labels that its
    by(), on() and group_left() clauses name, as a set."""
    grouped = set()

    def clause(match):
        grouped.update(re.findall(r"\w+", match[2]))
        return " "

    rest = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", clause, expression)
    series = []
    for match in re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(\s*\()?", re.sub(r"\[[^\]]*\]", "", rest)):
        name, matchers, call = match.groups()
        if call or name in KEYWORDS:
            continue
        found = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers or "")
        series.append((name, {label: (operator, value) for label, operator, value in found}))
    return series, grouped
