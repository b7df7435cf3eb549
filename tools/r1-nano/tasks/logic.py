# SPDX-License-Identifier: Apache-2.0
"""Ordering people, knights and knaves, and small tables."""
from .core import kind
from .steps import add, sub
from .words import NAMES, THINGS, name_pair

WORSE = {"taller": "shorter", "older": "younger", "faster": "slower", "heavier": "lighter", "richer": "poorer"}
MOST = {"taller": ("tallest", "shortest"), "older": ("oldest", "youngest"), "faster": ("fastest", "slowest"), "heavier": ("heaviest", "lightest"), "richer": ("richest", "poorest")}


@kind("who_is_taller", 1.5, train=[
    "{s} Who is the {q}?", "{s} Which of them is the {q}?", "{s} Who is {q}?", "If {t}, who is the {q}?", "{s} Tell me who is the {q}.", "Who is the {q} if {t}?", "{s} So who is the {q}?", "{s} Name the {q}.",
    "{s} The {q} is who?"],
    held=["{s} Find the {q} person.", "{s} Which person is the {q}?", "Given that {t}, who is the {q}?"])
def who_is_taller(rng):
    """Chains of two to four people, said in either direction and order."""
    more = rng.choice(list(WORSE))
    order = name_pair(rng, rng.randint(2, 4))
    claims = [(f"{a} is {more} than {b}" if rng.random() < 0.6 else f"{b} is {WORSE[more]} than {a}", a, b) for a, b in zip(order, order[1:])]
    rng.shuffle(claims)
    top = rng.random() < 0.5
    texts = [c[0] for c in claims]
    slots = dict(s=". ".join(texts) + ".", t=" and ".join(texts), q=MOST[more][0 if top else 1])
    facts = "; ".join(f"{a} > {b}" for _, a, b in claims)
    answer = order[0] if top else order[-1]
    return "", slots, f"{facts}; {' > '.join(order)}; {slots['q']}: {answer}", answer


SAYS = {"knave": "{b} is a knave", "knight": "{b} is a knight", "same": "we are of the same kind", "differ": "we are of different kinds", "both": "we are both knaves"}
_ROLE = {True: "knight", False: "knave"}


def _holds(claim, me, other):
    return {"knave": not other, "knight": other, "same": me == other, "differ": me != other, "both": not me and not other}[claim]


@kind("knights_and_knaves", 1.5, train=[
    "Knights tell the truth and knaves lie. {a} says: {x}. {b} says: {y}. Who is what?", "On an island knights always tell the truth and knaves always lie. {a} says \"{x}\". {b} says \"{y}\". What are {a} and {b}?",
    "A knight tells the truth, a knave lies. {a} says {x}. {b} says {y}. What are they?", "Knights and knaves: {a} says {x}, {b} says {y}. Who is a knight?", "{a} says {x}. {b} says {y}. Each is a knight or a knave. Which?",
    "Each of {a} and {b} is a knight or a knave. {a} says: {x}. {b} says: {y}. Find out what they are.", "Knights tell the truth, knaves lie. If {a} says {x} and {b} says {y}, what are {a} and {b}?",
    "{a} says \"{x}\" and {b} says \"{y}\". Who is a knight and who is a knave?"],
    held=["Knights always tell the truth, knaves always lie. {a} says {x} and {b} says {y}. Tell me what {a} and {b} are.", "{a} and {b} are knights or knaves. {a} says: {x}. {b} says: {y}. What is each of them?",
          "Two people are each a knight or a knave. {a} says \"{x}\". {b} says \"{y}\". Who is who?"])
def knights_and_knaves(rng):
    """Two people, one claim each, exactly one solution."""
    a, b = name_pair(rng)
    while True:
        x, y = rng.choice(list(SAYS)), rng.choice(list(SAYS))
        fits = [(p, q) for p in (True, False) for q in (True, False) if _holds(x, p, q) == p and _holds(y, q, p) == q]
        if len(fits) == 1:
            break
    out = []
    for p in (True, False):
        for q in (True, False):
            first, second = _holds(x, p, q), _holds(y, q, p)
            text = f"{a} {_ROLE[p]}, {b} {_ROLE[q]}: {a} says {'true' if first else 'false'}"
            if first != p:
                text += ", no"
            else:
                text += f", ok; {b} says {'true' if second else 'false'}, {'ok' if second == q else 'no'}"
            out.append(text)
    p, q = fits[0]
    answer = f"{a} is a {_ROLE[p]} and {b} is a {_ROLE[q]}."
    return "", dict(a=a, b=b, x=SAYS[x].format(b=b), y=SAYS[y].format(b=a)), f"{a}: {x}; {b}: {y}\n" + "\n".join(out) + f"\n{a} {_ROLE[p]}, {b} {_ROLE[q]}", answer


@kind("tables", 2.5, forms={
    "look": (["{t}\nHow many {c} does {n} have?", "{t}\nWhat is the number of {c} of {n}?", "Read the table.\n{t}\nHow many {c} has {n}?", "Here is a table:\n{t}\nHow many {c} does {n} have?", "{t}\n{n}: how many {c}?", "{t}\nTell me how many {c} {n} has.",
              "{t}\nFind the {c} of {n}.", "Table:\n{t}\nHow many {c} are there for {n}?"], ["{t}\nHow many {c} are in the line of {n}?", "This is a table:\n{t}\nTell me the {c} of {n}.", "Look at the table.\n{t}\nWhat is the number of {c} for {n}?"]),
    "total": (["{t}\nHow many {c} are there in total?", "{t}\nWhat is the sum of the {c}?", "Read the table.\n{t}\nWhat is the total of {c}?", "Here is a table:\n{t}\nHow many {c} do they have in total?", "{t}\nAdd up the {c}.", "{t}\nHow many {c} do all have together?",
               "{t}\nFind the total number of {c}.", "Table:\n{t}\nSum of {c}?"], ["{t}\nGive me the total of the column {c}.", "This is a table:\n{t}\nHow many {c} are there together?", "Look at the table.\n{t}\nWhat do the {c} add up to?"]),
    "most": (["{t}\nWho has the most {c}?", "{t}\nWhich name has the most {c}?", "Read the table.\n{t}\nWho has the most {c}?", "Here is a table:\n{t}\nWho has the largest number of {c}?", "{t}\nTell me who has the most {c}.", "{t}\nThe most {c}: who?",
              "{t}\nFind the name with the most {c}.", "Table:\n{t}\nWho has more {c} than all others?"], ["{t}\nWhich person has the most {c}?", "This is a table:\n{t}\nName the one with the most {c}.", "Look at the table.\n{t}\nWho has the greatest number of {c}?"]),
    "differ": (["{t}\nHow many more {c} does {n} have than {m}?", "{t}\nHow many {c} does {n} have more than {m}?", "Read the table.\n{t}\nHow many more {c} has {n} than {m}?", "Here is a table:\n{t}\nHow many more {c} than {m} does {n} have?",
                "{t}\nThe difference in {c} between {n} and {m}?", "{t}\nTell me how many more {c} {n} has than {m}.", "{t}\nFind how many more {c} {n} has than {m}.", "Table:\n{t}\nBy how many {c} is {n} ahead of {m}?"],
               ["{t}\nWhat is the difference in {c} of {n} and {m}?", "This is a table:\n{t}\nHow many more {c} are there for {n} than for {m}?", "Look at the table.\n{t}\nHow many {c} more than {m} does {n} have?"])}, wrap=False)
def tables(rng):
    """Three to five rows, two or three columns of numbers up to 99, with bars or commas."""
    form = rng.choice(["look", "total", "most", "differ"])
    names, columns = rng.sample(NAMES, rng.randint(3, 5)), rng.sample(THINGS, rng.randint(1, 3))
    k = rng.randrange(len(columns))
    column = columns[k]
    while True:
        rows = [[rng.randint(0, 99) for _ in columns] for _ in names]
        values = [row[k] for row in rows]
        if values.count(max(values)) == 1:
            break
    mark = rng.choice([" | ", ", ", "; "])
    table = "\n".join([mark.join(["name"] + columns)] + [mark.join([n] + list(map(str, r))) for n, r in zip(names, rows)])
    slots = dict(t=table, c=column)
    place = " ".join(f"{i + 1}:{c}" for i, c in enumerate(columns)) + f"; {column} is column {k + 1} of {len(columns)}; "

    def read(i):
        return f"{names[i]} " + " ".join(f"{j + 1}:{v}" for j, v in enumerate(rows[i][: k + 1])) + f"; {rows[i][k]}"

    if form == "look":
        i = rng.randrange(len(names))
        return form, dict(slots, n=names[i]), place + read(i), str(values[i])
    if form == "differ":
        i, j = rng.sample(range(len(names)), 2)
        if values[i] < values[j]:
            i, j = j, i
        steps, result = sub(values[i], values[j])
        return form, dict(slots, n=names[i], m=names[j]), f"{place}{read(i)}; {read(j)}; {steps}", result
    lines = "\n".join(read(i) for i in range(len(names)))
    if form == "total":
        total, work = values[0], []
        for v in values[1:]:
            steps, result = add(total, v)
            work.append(steps)
            total = int(result)
        return form, slots, f"{place}\n{lines}\n" + "\n".join(work), str(total)
    best, out = 0, [f"{names[0]} {values[0]}"]
    for i in range(1, len(names)):
        sign = ">" if values[i] > values[best] else "<" if values[i] < values[best] else "="
        text = f"{values[i]}{sign}{values[best]}"
        best = i if sign == ">" else best
        out.append(f"{text} {names[best]} {values[best]}")
    return form, slots, f"{place}\n{lines}\n" + "; ".join(out) + f"; {names[best]}", names[best]
