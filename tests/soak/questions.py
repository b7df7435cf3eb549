# SPDX-License-Identifier: Apache-2.0
"""What the soak's clients ask, and the answers that the daemon gave when nobody else asked."""

import dataclasses
import random

SERVICE = "r1d.v1.InferenceService"

TOOLS = [{
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
}]
SENTENCES = (
    "What is 17 * 23?", "Sort 9, 4, 7, 1.", "Which weekday comes 10 days after Monday?", "Spell the word planet.",
    "What is 12 + 7?", "Is 91 a prime number?", "Write 44 as a Roman numeral.", "What is 15 % of 80?",
)


@dataclasses.dataclass
class Question:
    """One generating request. `answer`: a tuple a sequence, of its token ids, once it is known."""

    method: str
    request: dict
    answer: tuple = ()

    @property
    def num_sequences(self):
        return self.request["sampling"].get("n", 1)


def user(text):
    return {"role": "user", "content": text}


def chat(messages, max_tokens, tools=(), **sampling):
    fields = {"messages": messages, "sampling": {"temperature": 0, "max_tokens": max_tokens} | sampling}
    return Question("Chat", fields | ({"tools": list(tools)} if tools else {}))


def generate(ids, max_tokens, **sampling):
    exactly = {"temperature": 0, "ignore_eos": True, "max_tokens": max_tokens}
    return Question("Generate", {"prompt": {"token_ids": {"ids": ids}}, "sampling": exactly | sampling})


def make_questions(seed):
    """kind -> questions. Every one has one right answer: greedy, or drawn with a seed."""
    rng = random.Random(seed)

    def ids(count):
        return [rng.randrange(300, 2000) for _ in range(count)]

    history = [user("What is 12 + 7?"), {"role": "assistant", "content": "19"}, user("And 5 more?")]
    return {
        "greedy": [generate(ids(rng.randint(1, 60)), rng.randint(1, 60)) for _ in range(12)],
        "seeded": [generate(ids(rng.randint(1, 60)), 30, temperature=0.8, top_p=0.95, seed=i) for i in range(8)],
        "several": [generate(ids(20), 20, temperature=1, seed=i, n=4) for i in range(4)],
        "long": [generate(ids(count), 8) for count in (400, 900, 1500)],
        "chat": [chat([user(text)], 60) for text in SENTENCES] + [chat(history, 60)],
        "tools": [chat([user(f"What is the weather in {city}?")], 40, TOOLS) for city in ("Rome", "Oslo")],
    }
