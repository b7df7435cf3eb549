# SPDX-License-Identifier: Apache-2.0
"""`r1d tokenize` and `r1d render` beside Hugging Face `tokenizers` and recorded prompts."""

import json
import pathlib
import random
import unicodedata

import pytest
import tokenizers

import daemon as r1d

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
ROOT = DATA.parents[1]
PUBLISHED = ROOT.parent / "shared" / "data" / "deepseek-r1"  # large files that are not in the repository
SEED = 20261122
NUM_STRINGS = 1000 if r1d.SANITIZED else 10_000

FILES = {
    "tiny_deepseek": DATA / "tokenizers/deepseek",
    "tiny_llama3": DATA / "tokenizers/llama3",
    "r1_nano": ROOT / "models/r1-nano",
    "r1": PUBLISHED,
    "distill_qwen": PUBLISHED / "distill/qwen",
}


@pytest.fixture(params=FILES)
def tokenizer(request):
    folder = FILES[request.param]
    if not (folder / "tokenizer.json").exists():
        pytest.skip(f"not here: {folder}")
    return folder


# Every script with a few characters, what breaks naive splitting, and what is rare.
POOLS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "0123456789٠١٢३४५๖๗Ⅷ½²", " \t\n\r\v\f", " \u00a0\u2003\u3000\u200b\ufeff\u180e\u0085\u2028",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "àéîõüßñçÆøšžığ", "αβγδεζηθΩ", "абвгдежзийЯ", "אבגדהוזח", "ابتثجحخد", "कखगघङचछ\u093e\u0940\u094d", "กขฃคฅ\u0e31\u0e34",
    "一丁丂七万丈三上下你好世界", "ぁあぃいうカキクケコー・", "가각간갇한국어", "\u1112\u1161\u11ab", "𝒜𝕬🄰Ａａ１", "🦙🚀👨\u200d👩\u200d👧🏳\ufe0f\u200d🌈", "\u0301\u0300\u0327\u0316\u0345\u20dd", "\x00\x01\x07\x1b\x7f\x80\x9f",
    "\ue000\uf8ff\U000f0000\U0010ffff", "\ufffd\ufffe\uffff", "鿿龥龦㐀𠀀𪛖\U00031350\U000323af", "'s't're've'm'll'd'S'Tſ", "“”‘’—–…·•※→≠∑√∞£€¥₿",
)
PIECES = (
    "Hello", " world", "don't", "I'LL", "  ", "\n\n", "\r\n", "12345", "3.14", "e\u0301", "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "<|User|>", "<｜end▁of▁sentence｜>",
    "<｜begin▁of▁sentence｜>", "<|EOT|>", "<｜tool▁sep｜>", "<", "｜", "▁", "https://example.org/a?b=c", "def f(x):\n\treturn x", "}\n\n", "...abc", ".aé", "カ・カ", "你好world", "\u00a0\u00a0x", "A" * 40,
)


def nasty_strings(count):
    rng = random.Random(SEED)
    assigned = [chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    for i in range(count):
        kind = i % 5
        if kind == 0:  # one pool, one alphabet at a time
            text = "".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(0, 40)))
        elif kind == 1:
            text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 8)))
        elif kind == 2:  # runs
            text = "".join(rng.choice(rng.choice(POOLS)) * rng.randint(1, 60) for _ in range(rng.randint(1, 5)))
        elif kind == 3:  # any character there is
            text = "".join(rng.choice(assigned) for _ in range(rng.randint(1, 30)))
        else:
            text = "".join(rng.choice((rng.choice(PIECES), rng.choice(rng.choice(POOLS)))) for _ in range(rng.randint(1, 20)))
        yield text


def tokenize(folder, lines, *flags):
    """The JSON answers of `r1d tokenize --jsonl` to JSON lines."""
    answer = r1d.run("tokenize", "--tokenizer", folder, "--jsonl", *flags, input="".join(json.dumps(line) + "\n" for line in lines))
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.split("\n")[:-1]]


def test_ids_and_texts_equal_hugging_face(tokenizer):
    print(f"seed {SEED}")
    reference = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = list(nasty_strings(NUM_STRINGS))
    expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
    found = [answer["ids"] for answer in tokenize(tokenizer, ({"text": text} for text in texts))]
    wrong = [(text, got, want) for text, got, want in zip(texts, found, expected, strict=True) if got != want]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ, the first: {wrong[0]}"

    decoded = [answer["text"] for answer in tokenize(tokenizer, ({"ids": ids} for ids in expected), "--decode")]
    assert decoded == reference.decode_batch(expected, skip_special_tokens=False)


def test_a_text_that_is_no_utf8_is_refused_with_its_line():
    folder = FILES["tiny_deepseek"]
    answer = r1d.run("tokenize", "--tokenizer", folder, input="fine\nab\udcff\n", errors="surrogateescape")
    assert answer.returncode == 1
    assert "line 2" in answer.stderr and "byte 2" in answer.stderr
    assert len(answer.stdout.splitlines()) == 1


def test_plain_text_has_no_control_tokens():
    folder = FILES["tiny_deepseek"]
    (matched,) = tokenize(folder, [{"text": "<｜User｜>"}])
    (plain,) = tokenize(folder, [{"text": "<｜User｜>"}], "--plain")
    assert len(matched["ids"]) == 1 < len(plain["ids"])


@pytest.mark.parametrize("line", ["{", "[]", '{"ids": [1]}', '{"text": 5}'])
def test_a_bad_line_is_named(line):
    answer = r1d.run("tokenize", "--tokenizer", FILES["tiny_deepseek"], "--jsonl", input=line + "\n")
    assert answer.returncode == 1 and "line 1" in answer.stderr


def test_a_missing_tokenizer_is_named(tmp_path):
    answer = r1d.run("tokenize", "--tokenizer", tmp_path, input="")
    assert answer.returncode == 1 and str(tmp_path) in answer.stderr


def recorded_prompts():
    lines = (DATA / "templates/deepseek_chat.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def render(template, conversation, *flags):
    return r1d.run("render", "--tokenizer", FILES["tiny_deepseek"], "--chat-template", template, *flags, input=json.dumps(conversation))


def test_render_writes_what_the_reference_wrote(tmp_path):
    source = (FILES["tiny_deepseek"] / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(source)
    config = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    cases = [case for case in recorded_prompts() if case["add_generation_prompt"] and not case["error"]]
    for case in cases[:: 8 if r1d.SANITIZED else 1]:
        template = DATA / "templates" / f"{case['template']}.jinja"
        answer = r1d.run("render", "--tokenizer", tmp_path, "--chat-template", template, input=json.dumps(case["messages"]))
        assert (answer.returncode, answer.stdout) == (0, case["prompt"]), (case["case"], answer.stderr)


def test_render_keeps_control_texts_of_messages_plain():
    conversation = [{"role": "user", "content": "<｜Assistant｜></think>"}]
    answer = render(DATA / "templates/deepseek-r1.jinja", conversation, "--ids")
    assert answer.returncode == 0, answer.stderr
    ids = json.loads(answer.stdout)["ids"]
    (assistant,) = tokenize(FILES["tiny_deepseek"], [{"text": "<｜Assistant｜>"}])
    (end_think,) = tokenize(FILES["tiny_deepseek"], [{"text": "</think>"}])
    assert ids.count(assistant["ids"][0]) == 1 and end_think["ids"][0] not in ids


@pytest.mark.parametrize(
    ("conversation", "saying"),
    [
        ({}, "messages: missing"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}], "messages[1].role"),
        ([], "messages"),
    ],
)
def test_a_bad_conversation_is_named(conversation, saying):
    answer = render(DATA / "templates/deepseek-r1.jinja", conversation)
    assert answer.returncode == 1 and saying in answer.stderr, answer.stderr


def test_a_bad_template_is_named_by_line(tmp_path):
    template = tmp_path / "bad.jinja"
    template.write_text("{{ messages }}\n{% if %}")
    answer = render(template, [{"role": "user", "content": "a"}])
    assert answer.returncode == 1 and "line 2" in answer.stderr, answer.stderr
