#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what Python's jinja2 renders: tests/data/templates/conversations.jsonl and snippets.jsonl.

The environment is the one transformers builds (utils/chat_template_utils.py). Each line holds the
template's name, its variables, and the prompt or the fact that rendering failed. Seeded: the same jinja2
writes the same file.

    pip install jinja2==3.1.6 && python3 tests/tools/make_chat_vectors.py
"""

import json
import pathlib
import random
import string
import warnings

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

import chat_snippets

SEED = 20250120
PER_TEMPLATE = 42
FOLDER = pathlib.Path(__file__).resolve().parents[1] / "data" / "templates"
DATE = "20 Jan 2025"  # of strftime_now, whatever the format

warnings.simplefilter("ignore")


class Generation(jinja2.ext.Extension):
    """transformers' AssistantTracker, which only marks what it encloses."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_support")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda _: DATE
    return env


PIECES = [
    "Hello", "what is 2 + 2?", " leading and trailing ", "\n", "\n\n", "\t", "<think>", "</think>", "<｜User｜>",
    "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|im_end|>", "<|eot_id|>", "{{ bos_token }}", "{% raw %}", "{# no #}",
    "}}", "%}", "{\"a\": [1, 2]}", "'quoted'", "\"double\"", "back\\slash", "日本語のテキスト", "Grüße aus Köln",
    "привет", "🙂👍🏽", "e\u0301", "\u00a0", "\u2028", "\u3000", "مرحبا", "def f(x):\n    return x", "<b>&amp;</b>",
    "<tool_response>", "</tool_response>", "\x01\x1f", "\x7f", "0", "None",
]


def text(rng):
    if rng.random() < 0.08:
        return ""
    glue = rng.choice(["", " ", "\n"])
    pieces = [rng.choice(PIECES) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.2:
        pieces.append("".join(rng.choice(string.printable) for _ in range(rng.randint(1, 20))))
    return glue.join(pieces)


def value(rng, depth=0):
    kinds = ["text", "int", "float", "bool", "null"] + (["list", "dict"] if depth < 2 else [])
    kind = rng.choice(kinds)
    if kind == "text":
        return text(rng)
    if kind == "int":
        return rng.choice([0, -1, 7, 2**31, -2**62, rng.randint(-10**9, 10**9)])
    if kind == "float":
        return rng.choice([0.0, -0.0, 1.5, 1e16, 1e15, 1e-4, 1e-5, 0.1, 3.141592653589793, 1e300, rng.random()])
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "null":
        return None
    if kind == "list":
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(["city", "größe", "n", "x y", "items"]): value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def schema(rng, depth=0):
    result = {"type": rng.choice(["string", "number", "integer"])}
    if rng.random() < 0.6:
        result["description"] = rng.choice(["The city.", "Größe in m", "two\nlines", ""])
    if rng.random() < 0.2:
        result["enum"] = ["a", "b"]
    if depth < 2 and rng.random() < 0.3:
        result = {"type": "object", "properties": {name: schema(rng, depth + 1) for name in ["x", "y"]}}
    if rng.random() < 0.1:
        del result["type"]
    return result


def tool(rng):
    function = {"name": rng.choice(["get_weather", "search", "run"]), "description": rng.choice(["Looks it up.", "天気"])}
    if rng.random() < 0.8:
        names = rng.sample(["city", "unit", "days"], rng.randint(0, 3))
        function["parameters"] = {"type": "object", "properties": {name: schema(rng) for name in names}}
    return {"type": "function", "function": function}


def tool_call(rng, as_object):
    arguments = {"city": rng.choice(["Paris", "北京", "a\"b"]), "n": value(rng, 1)}
    if not as_object:
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": rng.choice(["get_weather", "search"]), "arguments": arguments}
    return {"id": f"call_{rng.randint(0, 99)}", "type": "function", "function": function}


def assistant(rng, name):
    message = {"role": "assistant", "content": text(rng)}
    if rng.random() < 0.3:
        message["content"] = "<think>\n" + text(rng) + "\n</think>\n\n" + message["content"]
    if rng.random() < 0.35:
        count = 1 if name == "llama-3" and rng.random() < 0.9 else rng.randint(1, 3)
        message["tool_calls"] = [tool_call(rng, name == "llama-3" or rng.random() < 0.1) for _ in range(count)]
        if rng.random() < 0.6:
            message["content"] = None if name != "qwen2" or rng.random() < 0.1 else ""
    elif rng.random() < 0.04:
        message["content"] = None
    elif rng.random() < 0.04:
        message["tool_calls"] = rng.choice([None, []])
    if rng.random() < 0.1:
        message["reasoning_content"] = rng.choice([None, text(rng)])
    return message


def conversation(rng, name):
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": text(rng)})
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": text(rng)})
        if rng.random() < 0.6:
            messages.append(assistant(rng, name))
            for _ in range(len(messages[-1].get("tool_calls") or [])):
                messages.append({"role": "tool", "content": text(rng), "tool_call_id": "call_1"})
        if rng.random() < 0.15:
            messages.append({"role": "system", "content": text(rng)})
    if rng.random() < 0.04:
        messages.append({"role": rng.choice(["critic", "user"]), "content": rng.choice([None, "x"])})
    return messages


def variables(rng, name):
    result = {"messages": conversation(rng, name), "bos_token": "<｜begin▁of▁sentence｜>"}
    if rng.random() < 0.9:
        result["add_generation_prompt"] = rng.random() < 0.75
    if name in ("llama-3", "qwen2") and rng.random() < 0.45:
        result["tools"] = [tool(rng) for _ in range(rng.randint(0, 2))]
        if rng.random() < 0.5:
            result["tools_in_user_message"] = False
    if name == "qwen2" and rng.random() < 0.3:
        result["enable_thinking"] = rng.random() < 0.5
    return result


def rendered(env, source, given):
    try:
        return {"prompt": env.from_string(source).render(**given)}
    except Exception as error:  # whatever Python raises is a failed rendering
        return {"error": f"{type(error).__name__}: {error}"[:80]}


def write(name, lines):
    with open(FOLDER / name, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{name}: {len(lines)} renderings, {sum('error' in line for line in lines)} of them refused")


def main():
    env = environment()
    lines = []
    for path in sorted(FOLDER.glob("*.jinja")):
        rng = random.Random(f"{SEED} {path.stem}")
        source = path.read_text(encoding="utf-8")
        for _ in range(PER_TEMPLATE):
            given = variables(rng, path.stem)
            lines.append({"template": path.stem, "variables": given, **rendered(env, source, given)})
    write("conversations.jsonl", lines)
    shared = chat_snippets.VARIABLES
    write("snippets.jsonl", [{"variables": shared}] + [
        {"source": source, **rendered(env, source, shared)} for source in chat_snippets.SNIPPETS])


if __name__ == "__main__":
    main()
