# SPDX-License-Identifier: Apache-2.0
"""Trains r1-nano's tokenizer on its own documents and writes the four text files of the model folder.

usage: make_tokenizer.py --r1 FOLDER_OF_R1_FILES --out models/r1-nano

The shape is DeepSeek-R1's: the same pre-tokenizer, decoder and control tokens with the same flags. Two differences: every digit
is a token of its own, and there are 2048 ids with R1's control tokens at the end. Needs the package `tokenizers`.
"""
import argparse
import collections
import json
import pathlib
import random
import time

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import tasks
import text

VOCABULARY = 2048
CORPUS_BYTES = 20_000_000
SEED = 20250120
MOST_TOKENS = 900


def corpus(size):
    """Questions, thoughts and answers, without control tokens."""
    rng, done = random.Random(SEED), 0
    while done < size:
        conversation = tasks.sample(rng)
        for turn in conversation.turns:
            for part in (turn.question, f"\n{turn.thought}\n", f"\n\n{turn.answer}"):
                done += len(part)
                yield part
        if conversation.system:
            yield conversation.system


def control_tokens(r1):
    """(those at the front of the ids, those at the end) with R1's flags, without the place holders."""
    tokens = [token for token in r1["added_tokens"] if "place" not in token["content"]]
    return [t for t in tokens if t["id"] < 3], [t for t in tokens if t["id"] >= 3]


def pre_tokenizer_of(r1):
    shape = json.loads(json.dumps(r1["pre_tokenizer"]))
    shape["pretokenizers"][0]["pattern"]["Regex"] = "\\p{N}"
    return shape


def train(r1):
    front, back = control_tokens(r1)
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(tokenizers.Regex(step["pattern"]["Regex"]), "isolated") for step in pre_tokenizer_of(r1)["pretokenizers"][:-1]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(back), special_tokens=[t["content"] for t in front], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(corpus(CORPUS_BYTES), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    made = {key: r1[key] for key in ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")}
    made["added_tokens"] = [dict(t, id=i) for i, t in enumerate(front)] + [dict(t, id=VOCABULARY - len(back) + i) for i, t in enumerate(back)]
    made["pre_tokenizer"] = pre_tokenizer_of(r1)
    made["model"] = {key: value for key, value in r1["model"].items() if key not in ("vocab", "merges")}
    made["model"]["vocab"] = model["vocab"]
    made["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return made


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def config_of(r1_config, template):
    keep = ("add_bos_token", "add_eos_token", "bos_token", "clean_up_tokenization_spaces", "eos_token", "legacy", "model_max_length", "pad_token", "sp_model_kwargs", "unk_token", "tokenizer_class")
    config = {key: r1_config[key] for key in keep if key in r1_config}
    return dict(config, add_bos_token=True, model_max_length=4096, chat_template=template)


def report(tokenizer):
    """Checks ids and round trips, then prints the mean and the largest number of tokens a document has, per kind."""
    assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
    added = tokenizer.get_added_tokens_decoder()
    for i, token in added.items():
        assert tokenizer.encode(token.content, add_special_tokens=False).ids == [i], token
    for letter in "abcdefghijklmnopqrstuvwxyz":
        assert len(tokenizer.encode(f" {letter} {letter}", add_special_tokens=False).ids) == 2, letter
    rng, lengths = random.Random(SEED + 1), collections.defaultdict(list)
    for name in tasks.KINDS:
        for split in ("train", "unseen_phrasings"):
            for _ in range(250):
                whole = "".join(part for part, _ in text.document(tasks.sample(rng, split, name)))
                ids = tokenizer.encode(whole, add_special_tokens=False).ids
                assert tokenizer.decode(ids, skip_special_tokens=False) == whole, whole
                lengths[name].append(len(ids))
    total = sum(kind.weight for kind in tasks.KINDS.values())
    for name, counts in lengths.items():
        print(f"{name:20} mean {sum(counts) / len(counts):6.1f}  most {max(counts):4}  weight {tasks.KINDS[name].weight}")
        assert max(counts) < MOST_TOKENS
    mean = sum(tasks.KINDS[n].weight * sum(c) / len(c) for n, c in lengths.items()) / total
    print(f"{len(lengths)} kinds, weighted mean {mean:.1f} tokens a document")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--r1", type=pathlib.Path, help="folder with R1's tokenizer.json, tokenizer_config.json, templates/deepseek-r1.jinja")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--report", action="store_true", help="only check and measure the tokenizer that is there")
    args = parser.parse_args()
    if not args.report:
        r1 = json.loads((args.r1 / "tokenizer.json").read_text(encoding="utf-8"))
        r1_config = json.loads((args.r1 / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = (args.r1 / "templates" / "deepseek-r1.jinja").read_text(encoding="utf-8")
        args.out.mkdir(parents=True, exist_ok=True)
        write(args.out, "tokenizer.json", train(r1))
        write(args.out, "tokenizer_config.json", config_of(r1_config, template))
        write(args.out, "generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": False})
    report(Tokenizer.from_file(str(args.out / "tokenizer.json")))
    rng, start = random.Random(SEED + 2), time.perf_counter()
    for _ in range(5000):
        text.document(tasks.sample(rng))
    print(f"{(time.perf_counter() - start) / 5:.3f} ms a document and process")


if __name__ == "__main__":
    main()
