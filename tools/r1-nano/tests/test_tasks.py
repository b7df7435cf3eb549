# SPDX-License-Identifier: Apache-2.0
"""python3 -m unittest discover -s tools/r1-nano/tests

Answers are worked out a second time from the question's text alone, by other means than the generator's.
"""
import datetime
import fractions
import math
import os
import random
import re
import statistics
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tasks
import text
from tasks import core
from tasks.core import SPLITS
from tasks.words import NAMES

SEED = 7
SAMPLES = 200
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
FRACTION = re.compile(r"\d+/\d+")


def numbers(question):
    return [fractions.Fraction(n) for n in NUMBER.findall(question)]


def whole(question):
    """Numbers with any minus sign that is an operator dropped."""
    return [int(n) for n in re.findall(r"\d+", question)]


def decimal(value):
    return fractions.Fraction(value.lstrip("$"))


def asks(question, *words):
    return any(word in question.lower() for word in words)


def addition(q, a):
    return sum(whole(q)) == int(a)


def subtraction(q, a):
    x, y = whole(q)
    turned = re.search(r"(subtract|take) \d+ (away )?from", q, re.I)
    return (y - x if turned else x - y) == int(a)


def negative_numbers(q, a):
    x, y = [int(n) for n in re.findall(r"(?<![\d])-?\d+", q)]
    if asks(q, "subtract", "take"):
        return y - x == int(a)
    if asks(q, "minus") or re.search(r"\d - ", q):
        return x - y == int(a)
    return (x * y if asks(q, "multipl", "product", "times", "*") else x + y) == int(a)


def multiplication(q, a):
    return math.prod(whole(q)) == int(a)


def division(q, a):
    x, d = max(whole(q)), min(whole(q))
    got = whole(a)
    return got[0] * d + (got[1] if len(got) > 1 else 0) == x and (len(got) == 1 or 0 < got[1] < d)


def remainder(q, a):
    x, d = whole(q)
    return x % d == int(a)


def decimals(q, a):
    x, y = [fractions.Fraction(n) for n in re.findall(r"\d+(?:\.\d+)?", q)]
    return fractions.Fraction(a) in (x + y, abs(x - y), x * y)


def percentages(q, a):
    p = int(re.search(r"(\d+) ?(%|percent)", q)[1])
    n = next(v for v in whole(re.sub(r"\d+ ?(%|percent)", "", q)))
    part = fractions.Fraction(p * n, 100)
    if asks(q, "increas", "plus", "add", "rais", "up", "grow"):
        return n + part == int(a)
    return (n - part if asks(q, "decreas", "minus", "off", "lower", "down", "fall") else part) == int(a)


def expressions(q, a):
    found = max(re.findall(r"[\d(][\d+\-*/() ]*[\d)]", q), key=len)
    return eval(found.replace("/", "//")) == int(a)  # noqa: S307  (digits and operators only)


def equations(q, a):
    name, value = a.split(" = ")
    equation = re.search(rf"(?<![A-Za-z])(?:\d+ ?(?:\({name}|{name})|{name})[\d{name}()+\-*/ ]*= ?[\d{name}+\- ]+", q)[0]
    equation = re.sub(rf"(\d+)(\(|{name})", r"\1*\2", equation)
    left, right = equation.replace(name, f"({value})").split("=")
    return eval(left) == eval(right)  # noqa: S307


def comparisons(q, a):
    x, y = [fractions.Fraction(n) for n in re.findall(r"-?\d+(?:\.\d+)?", q)]
    less = asks(q, "small", "less", "below", "<")
    if a in ("Yes", "No"):
        return (x < y if less else x > y) == (a == "Yes")
    return x == y if a == "They are equal." else fractions.Fraction(a) == (min(x, y) if less else max(x, y)) and x != y


def primes(q, a):
    n = max(whole(q))
    return a.startswith("Yes") == all(n % d for d in range(2, n))


def factors(q, a):
    parts = whole(a)
    return math.prod(parts) == max(whole(q)) and all(all(p % d for d in range(2, p)) for p in parts) and parts == sorted(parts)


def fraction_tasks(q, a):
    found = [fractions.Fraction(f) for f in FRACTION.findall(q)]
    if len(found) == 1:
        return fractions.Fraction(a) == found[0] and (a == str(found[0]))
    x, y = found
    if a == "They are equal.":
        return x == y
    if asks(q, "larger", "greater", "bigger", "more"):
        return fractions.Fraction(a) == max(x, y)
    return a == str(x * y if asks(q, "*", "times", "multipl", "product") else x + y)


def sequences(q, a):
    s, x = whole(q), int(a)
    return s[-1] - s[-2] == s[1] - s[0] == x - s[-1] or s[1] * s[2] == s[0] * s[3] and x * s[0] == s[-1] * s[1] or x == s[-1] + s[-2]


def bases(q, a):
    values = re.findall(r"\b[0-9A-F]+\b", re.sub(r"base \d+", "", q))
    value = next(v for v in values if any(c.isdigit() for c in v) or len(values) == 1)
    to = re.search(r"(in|to|into) (binary|hex|hexadecimal)\b|base (2|16)|binary of|hex of", q, re.I) and not re.search(r"decimal of|from ", q)
    if to and not re.search(r"(binary|hex) " + value, q, re.I):
        return int(a, 2 if asks(q, "binary", "base 2") else 16) == int(value)
    return int(value, 2 if asks(q, "binary") else 16) == int(a)


def roman(q, a):
    def value(numeral):
        v = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[c] for c in numeral]
        return sum(-x if x < y else x for x, y in zip(v, v[1:] + [0]))

    if a.isdigit():
        return int(a) in [value(m) for m in re.findall(r"\b[IVXLCDM]+\b", q)]
    return value(a) == whole(q)[0]


def sorting(q, a):
    return whole(a) == sorted(whole(q), reverse=asks(q, "descending", "largest first", "from large", "from the large", "decreasing"))


def list_sums(q, a):
    return (statistics.mean(whole(q)) if asks(q, "mean", "average") else sum(whole(q))) == int(a)


def list_counts(q, a):
    values = whole(q)
    if asks(q, "even", "odd"):
        return sum(v % 2 == asks(q, "odd") for v in values) == int(a)
    limit = int(re.search(r"(?:than|above) (\d+)", q)[1])
    values.remove(limit)
    return sum(v > limit for v in values) == int(a)


def weekdays(q, a):
    days = tasks.measures.DAYS
    day, n = next(d for d in days if d in q), whole(q)[0]
    return days[(days.index(day) + (-n if asks(q, "before", "ago") else n)) % 7] == a


def _date(found):
    month, day = (found[0], found[1]) if found[0] else (found[3], found[2])
    return datetime.date(2023, tasks.measures.MONTHS.index(month) + 1, int(day))


def dates(q, a):
    names = "|".join(tasks.measures.MONTHS)
    pattern = rf"({names}) (\d+)|(\d+) ({names})"
    if asks(q, "leap", "366"):
        y = max(n for n in whole(q) if n != 366)
        return (a == "Yes") == ((datetime.date(y, 3, 1) - datetime.date(y, 2, 28)).days == 2)
    found = re.findall(pattern, q)
    found = found or re.findall(pattern, re.sub(r"\b(" + names.lower() + r")\b", lambda m: m[0].capitalize(), q))
    if found and int(found[0][1] or found[0][2]) > 1000:
        m, y = tasks.measures.MONTHS.index(found[0][0]) + 1, int(found[0][1])
        return int(a) == (datetime.date(y + m // 12, m % 12 + 1, 1) - datetime.date(y, m, 1)).days
    if a.isdigit():
        first, second = map(_date, found)
        return (second - first).days % 365 == int(a)
    rest = re.sub(pattern, "", q, flags=re.I)
    return _date(found[0]) + datetime.timedelta(days=whole(rest)[0]) in (_date(re.findall(pattern, a)[0]), _date(re.findall(pattern, a)[0]).replace(year=2024))


def times(q, a):
    clocks = [int(h) * 60 + int(m) for h, m in re.findall(r"(\d\d):(\d\d)", q)]
    span = lambda s: sum(int(n) * (60 if u == "hour" else 1) for n, u in re.findall(r"(\d+) (hour|minute)", s))
    if len(clocks) == 2:
        return clocks[1] - clocks[0] == span(a)
    back = asks(q, "before", "ago", "ends at", "away", "arrives at") or ("did it leave" in q)
    h, m = map(int, a.split(":"))
    return (clocks[0] + (-span(q) if back else span(q))) % 1440 == h * 60 + m


def money(q, a):
    prices = [fractions.Fraction(p) for p in re.findall(r"\$(\d+(?:\.\d\d)?)", q)]
    if len(prices) == 1:
        return decimal(a) == prices[0] * int(re.findall(r"(?<![\d.$])\d+(?![\d.])", q)[0])
    x, y = prices
    return decimal(a) == (abs(x - y) if asks(q, "change", "back") else x + y)


def bare(question):
    """The question without polite words around it, in lower case."""
    wrappers = core.PRELUDES + core.SUFFIXES + core.ASKS + core.TELLS + core.HELD_PRELUDES + core.HELD_SUFFIXES
    small = lambda s: re.sub(r"\bI ", "", s).lower()
    question = small(question) + "."
    for wrapper in sorted(wrappers, key=len, reverse=True):
        question = question.replace(small(wrapper), " ")
    return question


def letter_count(q, a):
    words = re.findall(r"[a-z]+", bare(q))
    if asks(q, "vowel"):
        return int(a) in [sum(c in "aeiou" for c in w) for w in words]
    single = [w for w in words if len(w) == 1 and w not in ("s", "a", "i")] or [w for w in words if w == "i"] or [w for w in words if w in ("s", "a")]
    return int(a) in ([w.count(single[0]) for w in words] if single else [len(w) for w in words])


def spelling(q, a):
    return a.replace("-", "") in q


def reversing(q, a):
    return a[::-1] in q


def alphabetical(q, a):
    words = a.split(", ")
    return words == sorted(words) and all(word in q for word in words)


def caesar(q, a):
    k = whole(q)[0]
    k = -k if asks(q, "back", "decode") else k
    return "".join(chr((ord(c) - 97 - k) % 26 + 97) for c in a) in q


def who_is_taller(q, a):
    above = {}
    worse = "shorter|younger|slower|lighter|poorer"
    for x, word, y in re.findall(r"(\w+) is (\w+) than (\w+)", q):
        above[(y, x) if word in worse else (x, y)] = True
    people = {p for pair in above for p in pair}
    low = asks(q, *[w[:-2] + "est" for w in worse.split("|")])
    return [p for p in people if not any(pair[0 if low else 1] == p for pair in above)] == [a]


def knights_and_knaves(q, a):
    one, two = re.findall(r"(\w+) is a (?:knight|knave)", a)
    claims = {}
    for who in (one, two):
        claims[who] = re.search(rf"{who} says:? \"?(we are [a-z ]+?|\w+ is a \w+)(?=[\".,?]| and|$)", q)[1]
    fits = []
    for first in (True, False):
        for second in (True, False):
            role = {one: first, two: second}

            def true(claim):
                if "both knaves" in claim:
                    return not first and not second
                if "same" in claim or "different" in claim:
                    return (first == second) == ("same" in claim)
                name, kind = re.match(r"(\w+) is a (\w+)", claim).groups()
                return role[name] == (kind == "knight")

            if all(true(claims[who]) == role[who] for who in (one, two)):
                fits.append(role)
    word = {True: "knight", False: "knave"}
    return len(fits) == 1 and a == f"{one} is a {word[fits[0][one]]} and {two} is a {word[fits[0][two]]}."


def tables(q, a):
    lines = [re.split(r" \| |, |; ", line) for line in q.split("\n")]
    head = next(line for line in lines if line[0] == "name")
    rows = {line[0]: list(map(int, line[1:])) for line in lines if len(line) == len(head) and line[-1].isdigit()}
    ask = " ".join(" ".join(line) for line in lines if line != head and line[0] not in rows)
    column = [c for c in head[1:] if c in ask]
    column = head.index(column[0]) - 1
    named = [n for n in rows if re.search(rf"\b{n}\b", ask)]
    values = {n: r[column] for n, r in rows.items()}
    if a in rows:
        return values[a] == max(values.values())
    if len(named) == 2:
        return abs(values[named[0]] - values[named[1]]) == int(a)
    return int(a) == (values[named[0]] if named else sum(values.values()))


def word_problems(q, a):
    value = None
    for sentence in re.split(r"(?<=\.) ", q):
        found = re.findall(r"\d+", sentence)
        if not found:
            continue
        x = int(found[0])
        name = next((n for n in NAMES if sentence.startswith(n)), "")
        if value is None:
            value = x
        elif "times" in sentence:
            value *= x
        elif re.search(r"loses|sells|throws|takes|gives \d+ to|Then \w+ loses", sentence) or (name and name in next(part for part in q.split(".") if whole(part)) and "gives" in sentence):
            value -= x
        else:
            value += x
    return value == int(a)


def rates(q, a):
    values = whole(q)
    if len(values) == 3:
        return int(a) in (values[0] * values[1] + values[2], values[1] * values[2] + values[0])
    x, y = values
    return int(a) in (x * y, max(x, y) / min(x, y))


def comparing_people(q, a):
    if asks(q, "years"):
        return sum(whole(q)) == int(a)
    x, y = whole(q)
    if asks(q, "times"):
        x, y = (y, x) if q.find("times") < q.find(str(y)) and q.find("who has") > 0 else (x, y)
        return int(a) in (x + x * y, y + x * y)
    return int(a) in (2 * x + y, 2 * y + x)


def follow_ups(turns):
    values, last = numbers(re.sub(r" ?- ?(?=\d)", " ", turns[0].question)), int(turns[0].answer)
    for turn in turns[1:]:
        q, k = turn.question, numbers(turn.question.replace("-", " "))
        if asks(q, "first", "second"):
            want = values[0] if asks(q, "first") else values[1]
        elif asks(q, "half", "halve", "by 2", "halved") and not asks(q, "multipl"):
            want = fractions.Fraction(last, 2)
        elif asks(q, "double", "twice", "two times"):
            want = last * 2
        elif not k:
            want = last
        else:
            want = last * k[0] if asks(q, "times", "multipl") else last - k[0] if asks(q, "minus", "subtract", "take", "less") else last + k[0]
        if want != int(turn.answer):
            return False
        last = last if asks(q, "first", "second") else int(turn.answer)
    return True


CHECKS = {name: globals()[name] for name in (
    "addition subtraction negative_numbers multiplication division remainder decimals percentages expressions equations comparisons primes factors sequences bases roman sorting list_sums list_counts"
    " weekdays dates times money letter_count spelling reversing alphabetical caesar who_is_taller knights_and_knaves tables word_problems rates comparing_people").split()}
CHECKS.update(
    fractions=fraction_tasks,
    gcd=lambda q, a: math.gcd(*whole(q)) == int(a),
    lcm=lambda q, a: math.lcm(*whole(q)) == int(a),
    extremes=lambda q, a: (min if asks(q, "small", "minimum", "min of", "least", "lowest") else max)(whole(q)) == int(a),
    medians=lambda q, a: statistics.median(whole(q)) == int(a),
    units=lambda q, a: any(int(a.split()[0]) * n == whole(q)[0] * m for big, small, k in tasks.measures.UNITS for n, m in ((1, k), (k, 1)) if big in q + a and small in q + a and (a.split()[1] == small) == (n == 1)),
    nth_letter=lambda q, a: any(len(w) >= n and w[n - 1] == a for w in re.findall(r"[a-z]+", q) for n in range(1, 13)),
    unknown=lambda q, a: a == "I do not know.",
)
TALK = set(tasks.chat.TALK)


class TaskTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.samples = []
        for name in tasks.KINDS:
            for split in SPLITS:
                rng = random.Random(f"{SEED}/{name}/{split}")
                cls.samples += [(name, split, tasks.sample(rng, split, name)) for _ in range(SAMPLES)]

    def each(self):
        return self.samples

    def test_answers_agree_with_a_second_computation(self):
        for name, _, conversation in self.each():
            last = conversation.turns[-1]
            if name == "follow_ups":
                self.assertTrue(follow_ups(conversation.turns), conversation)
            elif name not in TALK:
                try:
                    right = CHECKS[name](last.question, last.answer)
                except Exception as error:  # a question that the checker cannot read is a failure of the test
                    self.fail(f"{error!r}: {conversation}")
                self.assertTrue(right, conversation)

    def test_every_equation_in_a_thought_holds(self):
        step = re.compile(r"(?<![\w.)(*/+\-=,])[a-z]?(\d+(?:[+\-*]\d+)+)=(-?\d+)(?:\+10=(\d+))?(?![\d*+.])")
        for name, _, conversation in self.each():
            if name in ("caesar", "equations", "expressions"):
                continue
            for left, right, more in step.findall(conversation.turns[-1].thought):
                self.assertEqual(eval(left), int(right), conversation)  # noqa: S307
                if more:
                    self.assertEqual(int(right) + 10, int(more), conversation)

    def test_thoughts_end_with_what_the_answer_says(self):
        for name, _, conversation in self.each():
            last = conversation.turns[-1]
            if name in TALK or name == "unknown":
                continue
            squeeze = lambda s: re.sub(r"[^\w.*/-]|(?<!\d)\.|\.(?!\d)", "", s).lower()
            answer, tail = squeeze(last.answer), squeeze(last.thought[-80:])
            known = answer in tail or name in ("sorting", "alphabetical", "extremes", "spelling", "primes", "dates", "knights_and_knaves") or "equal" in answer
            self.assertTrue(known, conversation)

    def test_no_control_text_and_plain_characters_only(self):
        for _, _, conversation in self.each():
            for turn in conversation.turns:
                whole_text = turn.question + turn.thought + turn.answer
                self.assertFalse(any(token in whole_text for token in text.CONTROL))
                self.assertTrue(whole_text.isascii() and "{" not in whole_text and "None" not in whole_text, whole_text)

    def test_numbers_are_held_out_by_crc(self):
        for name, split, conversation in self.each():
            if not tasks.KINDS[name].closed and split != "unseen_phrasings":
                questions = [turn.question for turn in conversation.turns]
                held = [core.is_held_out("\n".join(questions[first:])) for first in range(len(questions))]
                if split == "unseen_numbers":
                    self.assertTrue(held[0], questions)
                else:  # unrelated turns may stand before the conversation that was drawn
                    self.assertFalse(all(held), questions)

    def test_phrasings_are_many_and_the_two_lists_are_disjoint(self):
        for name, entry in tasks.KINDS.items():
            key = core.plain if name in TALK else core.unwrapped
            for form, (train, held) in entry.forms.items():
                self.assertGreaterEqual(len(set(map(core.plain, train))), 25, (name, form))
                self.assertGreaterEqual(len(set(map(core.plain, held))), 3, (name, form))
                self.assertFalse(set(map(key, train)) & set(map(key, held)), (name, form))

    def test_a_held_out_phrasing_is_found_behind_polite_words(self):
        held = ["How is {w} spelled?"]
        train = ["how is {w} spelled", "Tell me, how is {w} spelled?", "Hello. Please tell me: How is {w} spelled? Thanks!", "How is the word {w} spelled?"]
        self.assertEqual(core.not_held_out(train, held), train[-1:])

    def test_no_training_question_is_a_held_out_one(self):
        asked = {split: {core.unwrapped(c.turns[-1].question) for name, s, c in self.each() if s == split and name not in TALK} for split in SPLITS}
        self.assertFalse((asked["train"] | asked["unseen_numbers"]) & asked["unseen_phrasings"])

    def test_what_is_outside_is_never_asked_like_another_kind(self):
        def shapes(names):  # of three words or more besides the slots: "What is {}?" is decided by what fills it
            texts = [text for name in names for lists in tasks.KINDS[name].forms.values() for texts in lists for text in texts]
            found = {re.sub(r"\{\w+\}", "{}", core.unwrapped(text)) for text in texts}
            return {shape for shape in found if len(shape.replace("{}", "").split()) > 2}

        self.assertFalse(shapes(["unknown"]) & shapes(set(tasks.KINDS) - {"unknown"}))

    def test_check_is_strict_about_the_answer(self):
        conversation = tasks.sample(random.Random(SEED), kind="addition")
        right = conversation.turns[-1].answer
        self.assertTrue(tasks.check(conversation, f"\n\n{right}\n"))
        self.assertFalse(tasks.check(conversation, right + "0"))

    def test_documents_follow_the_chat_template(self):
        turns = [tasks.Turn("a", "", "b"), tasks.Turn("c", "d", "e")]
        parts = text.document(tasks.Conversation("x", turns, "s"))
        past = text.prompt(tasks.Conversation("x", turns, "s")).replace("\n\n", "")
        self.assertEqual(past, f"{text.BOS}s{text.USER}a{text.ASSISTANT}b{text.EOS}{text.USER}c{text.ASSISTANT}<think>\n")
        self.assertEqual(parts[1], (f"d\n</think>\n\ne{text.EOS}", True))
        self.assertFalse(parts[0][1])

    def test_a_seed_gives_the_same_documents(self):
        first, second = ([text.document(tasks.sample(rng)) for _ in range(200)] for rng in (random.Random(SEED), random.Random(SEED)))
        self.assertEqual(first, second)


if __name__ == "__main__":
    print(f"seed {SEED}")
    unittest.main()
