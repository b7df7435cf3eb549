# SPDX-License-Identifier: Apache-2.0
"""Letters and words: counting, spelling, reversing, ordering, Caesar shifts. Every thought spells its word first."""
from .core import kind
from .steps import numbered, spelled
from .words import LETTERS, WORDS, any_word


@kind("letter_count", 2.0, forms={
    "one": (["How many letters {c} are in {w}?", "How many {c}'s are in {w}?", "Count the letter {c} in {w}.", "How often does the letter {c} occur in {w}?", "How many times does {c} appear in {w}?", "How many {c} are in the word {w}?",
             "Count how many times {c} appears in {w}.", "In the word {w}, how many letters are {c}?", "How many times is {c} in the word \"{w}\"?", "Number of {c} in {w}?"],
            ["How many times do you see {c} in {w}?", "Tell me how often {c} appears in the word {w}.", "How many of the letters in {w} are {c}?"]),
    "all": (["How many letters are in {w}?", "How many letters does {w} have?", "Count the letters in {w}.", "How long is the word {w}?", "How many letters are in the word {w}?", "What is the length of {w}?", "Number of letters in {w}?",
             "How many letters are there in \"{w}\"?"], ["Tell me how many letters {w} has.", "How many letters do you see in {w}?", "How many letters has the word {w}?"]),
    "vowels": (["How many vowels are in {w}?", "How many vowels does {w} have?", "Count the vowels in {w}.", "How many vowels are in the word {w}?", "Number of vowels in {w}?", "What is the number of vowels in {w}?",
                "In the word {w}, how many letters are vowels?", "How many vowels are there in \"{w}\"?"], ["Tell me how many vowels {w} has.", "How many of the letters in {w} are vowels?", "How many vowels do you see in {w}?"])})
def letter_count(rng):
    """Words and random strings of 3 to 12 letters."""
    form, w = rng.choice(["one", "one", "all", "vowels"]), any_word(rng, 3, 12)
    if form == "all":
        return form, dict(w=w), f"{spelled(w)}; {numbered(w)}; {len(w)}", str(len(w))
    c = rng.choice(w) if rng.random() < 0.85 else rng.choice(LETTERS)
    wanted, count, out = c if form == "one" else "aeiou", 0, []
    for letter in w:
        count += letter in wanted
        out.append(f"{letter}{count}")
    return form, dict(w=w, c=c), f"{'count ' + c if form == 'one' else 'vowels'}; {spelled(w)}; {' '.join(out)}; {count}", str(count)


@kind("spelling", 1.5, train=[
    "Spell {w}.", "How do you spell {w}?", "Spell the word {w}.", "Spell {w} letter by letter.", "What are the letters of {w}?", "Write {w} letter by letter.", "Give me the letters of {w}.", "Spell out {w}.", "Can you spell \"{w}\"?"],
    held=["How is {w} spelled?", "Tell me the letters of the word {w}.", "List the letters of {w}."])
def spelling(rng):
    """Words and random strings of 3 to 12 letters."""
    w = any_word(rng, 3, 12)
    return "", dict(w=w), f"{spelled(w)}", "-".join(w)


@kind("nth_letter", 1.5, train=[
    "What is letter {n} of {w}?", "What is the {o} letter of {w}?", "Which letter is the {o} in {w}?", "Which letter is number {n} in {w}?", "Find the {o} letter of the word {w}.", "Tell me the {o} letter in {w}.", "The {o} letter of {w}?",
    "What letter comes {o} in {w}?", "What is the {o} letter in the word \"{w}\"?"],
    held=["Give me letter {n} of the word {w}.", "In the word {w}, what is the {o} letter?", "Which is the {o} letter of {w}?"])
def nth_letter(rng):
    """Words and random strings of 3 to 12 letters."""
    w = any_word(rng, 3, 12)
    n = rng.randint(1, len(w))
    ordinal = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()[n - 1]
    return "", dict(w=w, n=n, o=ordinal), f"letter {n}; {spelled(w)}; {numbered(w[:n])}; {w[n - 1]}", w[n - 1]


@kind("reversing", 2.0, train=[
    "Reverse {w}.", "Reverse the word {w}.", "What is {w} backwards?", "Write {w} backwards.", "Spell {w} backwards.", "{w} backwards", "Turn the word {w} around.", "What do you get if you reverse {w}?", "Reverse the letters of {w}.",
    "What is \"{w}\" reversed?"],
    held=["Give me {w} backwards.", "How is {w} spelled backwards?", "Write the letters of {w} in reverse."])
def reversing(rng):
    """Words and random strings of 3 to 10 letters."""
    w = any_word(rng, 3, 10)
    back = " ".join(f"{w[i]}{i + 1}" for i in reversed(range(len(w))))
    return "", dict(w=w), f"{spelled(w)}; {numbered(w)}; {back}; {spelled(w[::-1])}", w[::-1]


@kind("alphabetical", 2.5, train=[
    "Sort the words {s} alphabetically.", "Put {s} in alphabetical order.", "Sort {s} by alphabet.", "Order the words {s} alphabetically.", "Alphabetical order: {s}", "Arrange {s} in alphabetical order.", "Put these words in order: {s}",
    "Sort these words: {s}", "Write {s} in alphabetical order."],
    held=["Put the words {s} in order by alphabet.", "Arrange these words alphabetically: {s}", "Give me {s} in alphabetical order."])
def alphabetical(rng):
    """Three to five common words; often two of them share first letters."""
    words = rng.sample(WORDS, rng.randint(3, 5))
    if rng.random() < 0.5:
        twin = [w for w in WORDS if w[:1] == words[0][:1] and w not in words]
        words[1] = rng.choice(twin) if twin else words[1]
    rng.shuffle(words)
    left, out = sorted(words), []
    shown = list(words)
    while len(shown) > 1:
        best = left.pop(0)
        rivals = [w for w in shown if w[0] == best[0] and w != best]
        tie = ""
        for rival in rivals:
            i = next((k for k in range(min(len(best), len(rival))) if best[k] != rival[k]), min(len(best), len(rival)))
            tie += f" ({spelled(best[: i + 1])} before {spelled(rival[: i + 1])})"
        shown.remove(best)
        out.append(f"{best[0]}{tie}: {best}; left {' '.join(shown)}")
    first = " ".join(f"{w[0]} {w}" for w in words)
    return "", dict(s=", ".join(words)), f"{first}\n" + "\n".join(out), ", ".join(sorted(words))


@kind("caesar", 2.5, forms={
    "on": (["Shift {w} by {k}.", "Shift each letter of {w} by {k}.", "Caesar shift {w} by {k}.", "Encode {w} with a Caesar shift of {k}.", "Shift the letters of {w} forward by {k}.", "What is {w} shifted by {k}?", "Move every letter in {w} forward by {k}.",
            "Encode the word {w} with shift {k}."], ["Give me {w} shifted by {k}.", "What do you get if you shift {w} by {k}?", "Write {w} with a Caesar shift of {k}."]),
    "back": (["Shift {w} back by {k}.", "Shift each letter of {w} back by {k}.", "Caesar shift {w} back by {k}.", "Decode {w} with a Caesar shift of {k}.", "Shift the letters of {w} backward by {k}.", "What is {w} shifted back by {k}?", "Move every letter in {w} back by {k}.",
              "Decode the word {w} with shift {k}."], ["Give me {w} shifted back by {k}.", "What do you get if you shift {w} back by {k}?", "Decode {w}, it was shifted by {k}."])})
def caesar(rng):
    """Shifts of 1 to 13 on words and random strings of 3 to 8 letters."""
    form, w, k = rng.choice(["on", "back"]), any_word(rng, 3, 8), rng.choice([1, 2, 3, rng.randint(1, 13)])
    step = k if form == "on" else -k
    moved = "".join(LETTERS[(LETTERS.index(c) + step) % 26] for c in w)
    return form, dict(w=w, k=k), f"{spelled(w)}; " + " ".join(f"{a}{step:+d}={b}" for a, b in zip(w, moved)) + f"; {spelled(moved)}", moved
