# SPDX-License-Identifier: Apache-2.0
"""Word problems of one to four steps. A story is a list of events that change a running number."""
from .core import kind
from .steps import add, divide, mul, sub
from .words import NAMES, PLACES, THINGS

# Every event: (sign, wording). {x} is the number, {n} the person, {o} the thing, {p} someone else.
START = ["{n} has {x} {o}.", "{n} starts with {x} {o}.", "There are {x} {o} in {w} of {n}.", "{n} owns {x} {o}."]
GAIN = ["{n} buys {x} more.", "{p} gives {n} {x} {o}.", "{n} finds {x} more {o}.", "{n} gets {x} {o} from {p}.", "Then {n} buys {x} {o}.", "{n} makes {x} more {o}.", "{n} wins {x} {o}."]
LOSE = ["{n} gives {x} to {p}.", "{n} loses {x} {o}.", "{n} sells {x} of them.", "{n} gives {p} {x} {o}.", "Then {n} loses {x}.", "{p} takes {x} {o} from {n}.", "{n} throws away {x} {o}."]
TIMES = ["Then the number of {o} grows {x} times.", "Then {n} gets {x} times as many {o}.", "Now {n} has {x} times as many."]
ASK = ["How many {o} does {n} have now?", "How many {o} are left?", "How many {o} does {n} have?", "How many {o} are there now?", "What is the number of {o} now?", "How many {o} does {n} have in the end?", "So how many {o} has {n}?",
       "How many {o} does that make?", "Count the {o} of {n}."]
HELD_ASK = ["How many {o} remain with {n}?", "What number of {o} does {n} have at the end?", "Tell me how many {o} {n} has after that.", "Now how many {o} are with {n}?"]


def _doer(wording):
    """"Tom gives: " of an event: who does it decides between gain and loss."""
    words = wording.removeprefix("Then ").split()
    return f"{words[0]} {words[1]}: " if words[0] in ("{n}", "{p}") else ""


@kind("word_problems", 4.0, train=["{s} " + a for a in ASK], held=["{s} " + a for a in HELD_ASK])
def word_problems(rng):
    """One to four events, numbers up to 3 digits (2 in half the stories)."""
    n, p = rng.sample(NAMES, 2)
    slots = dict(n=n, p=p, o=rng.choice(THINGS), w=rng.choice(PLACES))
    top = rng.choice([20, 99, 99, 500])
    value = rng.randint(1, top)
    text, steps = [rng.choice(START).format(x=value, **slots)], [f"{n} start {value}"]
    for _ in range(rng.choice([1, 2, 2, 3, 3, 4])):
        event = rng.choice(["gain", "lose", "gain", "lose", "times"])
        if event == "times" and value < 300:
            x, wording = rng.randint(2, 5), rng.choice(TIMES)
            work, result = mul(value, x)
        elif event == "lose" and value > 1:
            x = rng.randint(1, min(value, top))
            work, result = sub(value, x)
            wording = rng.choice(LOSE)
        else:
            event, x, wording = "gain", rng.randint(1, top), rng.choice(GAIN)
            work, result = add(value, x)
        value = int(result)
        text.append(wording.format(x=x, **slots))
        steps.append(f"{_doer(wording).format(**slots)}{event} {x}; {work}")
    return "", dict(slots, s=" ".join(text)), "\n".join(steps), str(value)


@kind("rates", 3.0, forms={
    "each": (["{n} has {a} boxes with {b} {o} in each. How many {o} are there?", "There are {a} bags of {b} {o}. How many {o} is that?", "{a} boxes hold {b} {o} each. How many {o} are there in total?", "{n} buys {a} bags with {b} {o} each. How many {o} does {n} have?",
              "How many {o} are in {a} boxes of {b} {o}?", "Each of {a} children gets {b} {o}. How many {o} do they need?", "A box holds {b} {o}. How many {o} are in {a} boxes?", "{n} makes {b} {o} every day. How many {o} is that in {a} days?"],
             ["In each of {a} bags there are {b} {o}. How many {o} are there in total?", "{n} fills {a} boxes with {b} {o} each. How many {o} does {n} need?", "If {n} finds {b} {o} every day, how many {o} is that after {a} days?"]),
    "share": (["{n} shares {c} {o} among {a} children. How many does each get?", "{c} {o} are shared by {a} people. How many does each get?", "{n} puts {c} {o} into {a} boxes, the same number in each. How many are in each box?",
               "Share {c} {o} among {a} friends. How many for each?", "How many {o} does each of {a} children get of {c}?", "{c} {o} for {a} people: how many each?", "{a} friends share {c} {o}. How many does each friend get?", "{n} has {c} {o} for {a} days. How many is that for each day?"],
              ["{n} gives {c} {o} to {a} children, the same to each. How many does each child get?", "If {a} people share {c} {o}, how many are for each?", "There are {c} {o} in {a} boxes, the same number in each. How many {o} does each box hold?"]),
    "drive": (["A car travels at {b} kilometers an hour for {a} hours. How far does it go?", "{n} drives {a} hours at {b} kilometers an hour. How many kilometers is that?", "A train goes {b} kilometers an hour. How far does it go in {a} hours?",
               "How far does a bus go in {a} hours at {b} kilometers an hour?", "{n} rides {b} kilometers every hour for {a} hours. How many kilometers is that?", "At {b} kilometers an hour, how far is it in {a} hours?",
               "If a ship makes {b} kilometers an hour, how far does it get in {a} hours?", "A plane flies {a} hours at {b} kilometers an hour. How many kilometers?"],
              ["{n} travels {a} hours at {b} kilometers an hour. How far does {n} get?", "A truck goes {b} kilometers every hour. How many kilometers does it make in {a} hours?", "How many kilometers does a car go in {a} hours at {b} kilometers an hour?"]),
    "both": (["{n} has {a} boxes of {b} {o} and {d} more. How many {o} does {n} have?", "{n} buys {a} bags with {b} {o} each and finds {d} more. How many {o} are there?", "There are {a} bags of {b} {o} and {d} single {o}. How many {o} in total?",
              "{a} boxes hold {b} {o} each. {n} adds {d} {o}. How many are there now?", "{n} makes {b} {o} a day for {a} days and then {d} more. How many {o} is that?", "How many {o} are {a} boxes of {b} and {d} more?",
              "{n} packs {a} boxes with {b} {o} each. {d} {o} are left over. How many {o} were there?", "{p} has {d} {o}. {n} brings {a} bags of {b} {o}. How many {o} are there?"],
             ["{n} has {d} {o} and gets {a} boxes with {b} {o} each. How many {o} does {n} have now?", "There are {d} {o} and {a} bags of {b} {o}. How many {o} is that in total?", "If {n} fills {a} bags with {b} {o} each and has {d} more, how many {o} are there?"])})
def rates(rng):
    """Equal groups, sharing, distances, and groups with a rest. Groups to 99, in each to 120."""
    form = rng.choice(["each", "share", "drive", "both"])
    n, p = rng.sample(NAMES, 2)
    slots = dict(n=n, p=p, o=rng.choice(THINGS))
    if form == "share":
        a, each = rng.randint(2, 12), rng.randint(2, 99)
        steps, q, _ = divide(a * each, a)
        return form, dict(slots, a=a, c=a * each), f"share {a * each} by {a}\n{steps}\n{q}", str(q)
    a = rng.randint(2, 12) if rng.random() < 0.7 else rng.randint(13, 99)
    b, d = rng.randint(2, 120), rng.randint(1, 99)
    steps, result = mul(a, b)
    thought = f"{a} groups of {b}\n{steps}\n{result}"
    if form == "both":
        work, result = add(int(result), d)
        thought += f"\nand {d}; {work}"
    return form, dict(slots, a=a, b=b, d=d), thought, result


@kind("comparing_people", 2.0, forms={
    "sum": (["{n} has {a} {o}. {p} has {b} more than {n}. How many do they have together?", "{n} has {a} {o} and {p} has {b} more. How many {o} do both have?", "{p} has {b} {o} more than {n}, who has {a}. How many {o} is that together?",
             "If {n} has {a} {o} and {p} has {b} more than {n}, how many do they have in total?", "{n} owns {a} {o}. {p} owns {b} more than {n}. How many {o} in total?", "{n} found {a} {o}, {p} found {b} more. How many did they find together?",
             "{n} sells {a} {o}. {p} sells {b} more than {n}. How many do both sell?", "{n} made {a} {o}. {p} made {b} more. How many {o} did they make in total?"],
            ["{n} has {a} {o}. {p} has {b} {o} more. What is the total number of {o}?", "{n} buys {a} {o} and {p} buys {b} more than {n}. How many do both buy?", "There are {a} {o} with {n}. {p} has {b} more than {n}. How many are there together?"]),
    "times": (["{n} has {a} {o}. {p} has {k} times as many. How many do they have together?", "{n} has {a} {o} and {p} has {k} times as many. How many {o} do both have?", "{p} has {k} times as many {o} as {n}, who has {a}. How many {o} is that together?",
               "If {n} has {a} {o} and {p} has {k} times as many, how many do they have in total?", "{n} owns {a} {o}. {p} owns {k} times as many. How many {o} in total?", "{n} found {a} {o}, {p} found {k} times as many. How many did they find together?",
               "{n} sells {a} {o}. {p} sells {k} times as many as {n}. How many do both sell?", "{n} made {a} {o}. {p} made {k} times as many. How many {o} did they make in total?"],
              ["{n} has {a} {o}. {p} has {k} times as many {o}. What is the total number of {o}?", "{n} buys {a} {o} and {p} buys {k} times as many. How many do both buy?", "There are {a} {o} with {n}. {p} has {k} times as many. How many are there together?"]),
    "age": (["{n} is {a} years old. {p} is {b} years older. How old is {p} in {k} years?", "{n} is {a}. {p} is {b} years older than {n}. How old will {p} be in {k} years?", "If {n} is {a} and {p} is {b} years older, how old is {p} in {k} years?",
             "{p} is {b} years older than {n}, who is {a}. How old is {p} after {k} years?", "{n} is {a} years old and {p} is {b} years older. In {k} years, how old is {p}?", "In {k} years, how old is {p}, if {n} is {a} now and {p} is {b} years older?",
             "{n} is {a} today. {p} is older by {b} years. What is the age of {p} in {k} years?", "How old is {p} in {k} years? {n} is {a} and {p} is {b} years older."],
            ["{n} is {a} years old. {p} is {b} years older than {n}. What age will {p} have in {k} years?", "{p} is {b} years older than {n}. {n} is {a} now. How old is {p} after {k} years?", "Today {n} is {a}, and {p} is {b} years older. How old will {p} be in {k} years?"])})
def comparing_people(rng):
    """Two people, two steps, numbers up to 2 digits, factors up to 5."""
    form = rng.choice(["sum", "times", "age"])
    n, p = rng.sample(NAMES, 2)
    a, b, k = rng.randint(1, 99), rng.randint(1, 60), rng.randint(2, 5)
    if form == "age":
        b, k = rng.randint(1, 30), rng.randint(2, 30)
    work, other = mul(a, k) if form == "times" else add(a, b)
    more, result = add(int(other), k) if form == "age" else add(a, int(other))
    slots = dict(n=n, p=p, o=rng.choice(THINGS), a=a, b=b, k=k)
    return form, slots, f"{n} {a}; {p}: {work}\n{'in ' + str(k) + ' years' if form == 'age' else 'together'}: {more}", result
