# SPDX-License-Identifier: Apache-2.0
"""Units, dates, weekdays, times of day, money."""
import datetime

from .arithmetic import decimal_text
from .core import kind
from .steps import add, divide, mul, sub, times_digit
from .words import NAMES

UNITS = [("kilometers", "meters", 1000), ("meters", "centimeters", 100), ("centimeters", "millimeters", 10), ("kilograms", "grams", 1000), ("liters", "milliliters", 1000), ("hours", "minutes", 60),
         ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7), ("years", "months", 12), ("feet", "inches", 12), ("dozen", "pieces", 12), ("yards", "feet", 3), ("tons", "kilograms", 1000)]


@kind("units", 2.5, train=[
    "How many {v} are {n} {u}?", "Convert {n} {u} to {v}.", "{n} {u} in {v}", "What is {n} {u} in {v}?", "How many {v} are in {n} {u}?", "{n} {u} is how many {v}?", "Change {n} {u} into {v}.",
    "Write {n} {u} in {v}.", "{n} {u} = ? {v}"],
    held=["How many {v} do {n} {u} make?", "Give me {n} {u} in {v}.", "Express {n} {u} in {v}."])
def units(rng):
    """Everyday units, up to 200 of the larger one, both ways, whole results."""
    big, small, k = rng.choice(UNITS)
    n = rng.randint(1, 200) if rng.random() < 0.7 else rng.randint(1, 20)
    rule = f"1 {big}={k} {small}"
    power = str(k).strip("0") == "1"
    if rng.random() < 0.6:
        steps, result = (f"{n}*{k}={n * k}", str(n * k)) if power else mul(n, k)
        return "", dict(n=n, u=big, v=small), f"{rule}; times {k}\n{steps}\n{result} {small}", f"{result} {small}"
    if power:
        steps, result = f"{n * k}/{k}={n}", n
    else:
        steps, result, _ = divide(n * k, k)
    return "", dict(n=n * k, u=small, v=big), f"{rule}; divide by {k}\n{steps}\n{result} {big}", f"{result} {big}"


DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LENGTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]


@kind("weekdays", 2.0, forms={
    "after": (["What day is {n} days after {d}?", "If today is {d}, what day is it in {n} days?", "Today is {d}. What day is it in {n} days?", "Which day comes {n} days after {d}?", "{n} days after {d}?",
               "What weekday is {n} days after {d}?", "It is {d}. What day will it be in {n} days?", "Which weekday is it {n} days after {d}?"],
              ["If it is {d} now, what day comes in {n} days?", "What day of the week is {n} days after {d}?", "Today is {d}. Which day is {n} days from now?"]),
    "before": (["What day is {n} days before {d}?", "If today is {d}, what day was it {n} days ago?", "Today is {d}. What day was it {n} days ago?", "Which day comes {n} days before {d}?", "{n} days before {d}?",
                "What weekday is {n} days before {d}?", "It is {d}. What day was it {n} days ago?", "Which weekday is it {n} days before {d}?"],
               ["If it is {d} now, what day was {n} days ago?", "What day of the week is {n} days before {d}?", "Today is {d}. Which day came {n} days before?"])})
def weekdays(rng):
    """Up to 100 days on or back."""
    form, n, i = rng.choice(["after", "after", "before"]), rng.randint(1, 100), rng.randrange(7)
    step = 1 if form == "after" else -1
    q, r = divmod(n, 7)
    walk = [DAYS[(i + step * j) % 7] for j in range(r + 1)]
    thought = f"{form}; {n}=7*{q}+{r}; 0 {walk[0]}" + "".join(f" {j} {day}" for j, day in enumerate(walk[1:], 1))
    return form, dict(n=n, d=DAYS[i]), thought, walk[-1]


def is_leap(y):
    return y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)


@kind("dates", 3.0, forms={
    "after": (["What date is {n} days after {d}?", "Which date is {n} days after {d}?", "Today is {d}. What is the date in {n} days?", "{n} days after {d}?", "What is the date {n} days after {d}?", "Add {n} days to {d}.",
               "It is {d}. Which date is it in {n} days?", "If today is {d}, what date is it in {n} days?"], ["Give the date {n} days after {d}.", "Today is {d}. Which date comes in {n} days?", "What date comes {n} days after {d}?"]),
    "between": (["How many days are there from {d} to {e}?", "How many days are between {d} and {e}?", "Days from {d} to {e}?", "How many days is it from {d} to {e}?", "Count the days from {d} to {e}.", "How many days pass from {d} to {e}?",
                 "What is the number of days from {d} to {e}?", "If today is {d}, how many days is it to {e}?"], ["Find the number of days between {d} and {e}.", "Today is {d}. How many days are there to {e}?", "How many days after {d} is {e}?"]),
    "leap": (["Is {y} a leap year?", "Was {y} a leap year?", "Is the year {y} a leap year?", "Is {y} a leap year or not?", "Tell me if {y} is a leap year.", "Check if {y} is a leap year.", "Does the year {y} have 366 days?", "Decide if {y} is a leap year."],
             ["Is it true that {y} is a leap year?", "Find out if {y} is a leap year.", "Does {y} have 366 days?"]),
    "length": (["How many days does {m} {y} have?", "How many days are in {m} {y}?", "How long is {m} {y} in days?", "Number of days in {m} {y}?", "How many days are there in {m} {y}?", "{m} {y} has how many days?",
                "What is the number of days in {m} {y}?", "Tell me how many days {m} {y} has."], ["How many days did {m} {y} have?", "Give me the number of days in {m} {y}.", "What is the length of {m} {y} in days?"])})
def dates(rng):
    """Dates in a common year (February has 28 days there), up to 60 days apart; leap years and lengths of months from 1600 to 2400."""
    form = rng.choice(["after", "after", "between", "between", "leap", "length"])
    y = rng.randint(1600, 2400) if rng.random() < 0.5 else rng.choice([rng.randint(1900, 2100), rng.randint(16, 24) * 100])
    if form == "leap":
        return form, dict(y=y), _leap_steps(y), "Yes" if is_leap(y) else "No"
    if form == "length":
        m = rng.choice([1, rng.randrange(12)])
        days = 29 if m == 1 and is_leap(y) else LENGTHS[m]
        thought = f"February; {_leap_steps(y)}; {days}" if m == 1 else f"{MONTHS[m]}: {days}"
        return form, dict(m=MONTHS[m], y=y), thought, str(days)
    n, m = rng.randint(1, 60), rng.randrange(12)
    day = rng.randint(1, LENGTHS[m])
    style = rng.choice(["{m} {d}", "{d} {m}"])
    write = lambda k, x: style.format(m=MONTHS[k], d=x)
    if form == "after":
        steps, total = add(day, n)
        out, k, left = [steps], m, int(total)
        while left > LENGTHS[k]:
            work, rest = sub(left, LENGTHS[k])
            out.append(f"{MONTHS[k]} {LENGTHS[k]}<{left}: {work}")
            k, left = (k + 1) % 12, int(rest)
        answer = write(k, left)
        return form, dict(n=n, d=write(m, day)), f"{MONTHS[m]} {day} plus {n}; " + "; ".join(out) + f"; {MONTHS[k]} {LENGTHS[k]}; {answer}", answer
    end = datetime.date(2023, m + 1, day) + datetime.timedelta(days=n)
    k = end.month - 1
    thought = f"{MONTHS[m]} {day} to {MONTHS[k]} {end.day}; "
    if k == m:
        steps, answer = sub(end.day, day)
        return form, dict(d=write(m, day), e=write(k, end.day)), thought + steps, answer
    steps, total = sub(LENGTHS[m], day)
    thought += f"{MONTHS[m]} {LENGTHS[m]}: {steps}"
    i = (m + 1) % 12
    while i != k:
        steps, total = add(int(total), LENGTHS[i])
        thought += f"; {MONTHS[i]} {LENGTHS[i]}: {steps}"
        i = (i + 1) % 12
    steps, total = add(int(total), end.day)
    return form, dict(d=write(m, day), e=write(k, end.day)), f"{thought}; {MONTHS[k]}: {steps}", total


def _leap_steps(y):
    last = y % 100
    if last:
        return f"{y}: last two {last:02d}; {last}/4={last // 4} r{last % 4}; {'yes' if last % 4 == 0 else 'no'}"
    return f"{y}: last two 00; {y // 100}/4={y // 400} r{y // 100 % 4}; {'yes' if is_leap(y) else 'no'}"


@kind("times", 3.0, forms={
    "after": (["What time is it {t} after {a}?", "It is {a}. What time is it in {t}?", "What is the time {t} after {a}?", "{t} after {a}?", "A film starts at {a} and takes {t}. When does it end?", "If it is {a} now, what time is it in {t}?",
               "A train leaves at {a} and travels {t}. When does it arrive?", "Add {t} to {a}."], ["A lesson starts at {a} and takes {t}. When does it end?", "It is {a} now. Which time is it {t} later?", "What will the time be {t} after {a}?"]),
    "before": (["What time is it {t} before {a}?", "It is {a}. What time was it {t} ago?", "What is the time {t} before {a}?", "{t} before {a}?", "A film ends at {a} and takes {t}. When does it start?", "If it is {a} now, what time was it {t} ago?",
                "A train arrives at {a} after {t}. When did it leave?", "Take {t} away from {a}."], ["A lesson ends at {a} and takes {t}. When does it start?", "It is {a} now. Which time was it {t} ago?", "What was the time {t} before {a}?"]),
    "between": (["How long is it from {a} to {b}?", "How much time is between {a} and {b}?", "How much time passes from {a} to {b}?", "From {a} to {b}, how long is it?", "A film runs from {a} to {b}. How long is it?", "How long does it take from {a} to {b}?",
                 "A train leaves at {a} and arrives at {b}. How long does it travel?", "How many hours and minutes are between {a} and {b}?"],
                ["A lesson starts at {a} and ends at {b}. How long is it?", "How much time is there from {a} to {b}?", "What is the time between {a} and {b}?"])})
def times(rng):
    """24-hour times; up to 12 hours on or back, around midnight too; between two times of one day."""
    form = rng.choice(["after", "before", "between"])
    h, m = rng.randrange(24), rng.choice([rng.randrange(60), rng.randrange(12) * 5])
    if form == "between":
        g, k = rng.randrange(24), rng.choice([rng.randrange(60), rng.randrange(12) * 5])
        (h, m), (g, k) = sorted([(h, m), (g, k)])
        if (h, m) == (g, k):
            return times(rng)
        head = f"{h:02d}:{m:02d} to {g:02d}:{k:02d}; "
        if k >= m:
            thought = f"{k}>={m}: {sub(k, m)[0]}; hours {sub(g, h)[0]}"
            minutes, hours = k - m, g - h
        else:
            thought = f"{k}<{m}: {add(k, 60)[0]}; {sub(k + 60, m)[0]}; hours {sub(g - 1, h)[0]}"
            thought = thought.replace("; hours", f"; {g}-1={g - 1}; hours")
            minutes, hours = k + 60 - m, g - 1 - h
        answer = lasting(hours, minutes)
        return form, dict(a=f"{h:02d}:{m:02d}", b=f"{g:02d}:{k:02d}"), f"{head}{thought}; {answer}", answer
    dh, dm = rng.choice([0, rng.randint(0, 12)]), rng.choice([0, rng.randint(1, 59), rng.randint(1, 11) * 5])
    if dh + dm == 0:
        return times(rng)
    t = lasting(dh, dm)
    if form == "after":
        steps, minutes = add(m, dm)
        thought, minutes, hours, extra = f"minutes {steps}", int(minutes), h + dh, 0
        if minutes >= 60:
            thought, minutes, extra = f"{thought}; over 60: {sub(minutes, 60)[0]}", minutes - 60, 1
        thought += f"; hours {add(h, dh)[0]}" + (f"; {hours}+1={hours + 1}" if extra else "")
        hours += extra
        if hours >= 24:
            thought, hours = f"{thought}; over 24: {sub(hours, 24)[0]}", hours - 24
    else:
        thought, extra, minutes = "minutes ", 0, m - dm
        if m < dm:
            thought, extra, minutes = f"minutes {m}<{dm}: {add(m, 60)[0]}; ", 1, m + 60 - dm
        else:
            thought += f"{m}>={dm}: "
        need = dh + extra
        thought += sub(minutes + dm, dm)[0] + (f"; {dh}+1={need}" if extra else "") + "; hours "
        hours = h - need
        if hours < 0:
            thought, hours = f"{thought}{h}<{need}: {add(h, 24)[0]}; ", hours + 24
        else:
            thought += f"{h}>={need}: "
        thought += sub(hours + need, need)[0]
    answer = f"{hours:02d}:{minutes:02d}"
    return form, dict(a=f"{h:02d}:{m:02d}", t=t), f"{h:02d}:{m:02d} {form} {t}; {thought}; {answer}", answer


def lasting(hours, minutes):
    parts = [f"{n} {word}{'s' if n != 1 else ''}" for n, word in ((hours, "hour"), (minutes, "minute")) if n]
    return " ".join(parts)


GOODS = "pen,book,cake,ticket,lamp,cup,ball,toy,shirt,hat,box,key".split(",")


@kind("money", 3.0, forms={
    "change": (["A {g} costs ${c}. You pay with ${p}. How much change do you get?", "{n} buys a {g} for ${c} and pays ${p}. What is the change?", "How much change from ${p} if the {g} costs ${c}?", "You pay ${p} for a {g} that costs ${c}. How much change?",
                "What is the change if you pay ${p} for ${c}?", "I buy a {g} for ${c} and give ${p}. How much do I get back?", "The {g} costs ${c}. {n} gives ${p}. How much change does {n} get?", "Change from ${p} for ${c}?"],
               ["{n} pays ${p} for a {g} that costs ${c}. How much does {n} get back?", "A {g} is ${c}. What change do I get from ${p}?", "If I pay ${p} for ${c}, how much is the change?"]),
    "total": (["A {g} costs ${c} and a {h} costs ${d}. How much do both cost?", "What do a {g} for ${c} and a {h} for ${d} cost together?", "{n} buys a {g} for ${c} and a {h} for ${d}. What is the total?", "How much is ${c} plus ${d}?", "What is ${c} + ${d}?",
               "I pay ${c} for a {g} and ${d} for a {h}. How much is that?", "Add ${c} and ${d}.", "The {g} costs ${c}, the {h} ${d}. What is the total price?"],
              ["A {g} is ${c} and a {h} is ${d}. What is the price of both?", "How much does {n} pay for a {g} at ${c} and a {h} at ${d}?", "What is the total of ${c} and ${d}?"]),
    "many": (["A {g} costs ${c}. How much do {k} cost?", "How much are {k} {g}s at ${c} each?", "{n} buys {k} {g}s for ${c} each. What is the total?", "One {g} costs ${c}. What do {k} cost?", "What do {k} {g}s cost at ${c} each?", "What is {k} times ${c}?",
              "I buy {k} {g}s at ${c} each. How much do I pay?", "A {g} costs ${c}. What is the price of {k}?"],
             ["If a {g} costs ${c}, what do {k} {g}s cost?", "How much does {n} pay for {k} {g}s at ${c} each?", "One {g} is ${c}. What is the total for {k}?"])})
def money(rng):
    """Dollars and cents up to 99.99; change from up to $100; up to nine of one thing."""
    form = rng.choice(["change", "total", "many"])
    g, h = rng.sample([x for x in GOODS if x != "box"], 2)
    c, d = (rng.choice([rng.randint(5, 9999), rng.randint(1, 1999), rng.randint(1, 99) * 50]) for _ in "cd")
    slots = dict(g=g, h=h, n=rng.choice(NAMES), c=decimal_text(c, 2), d=decimal_text(d, 2))
    if form == "total":
        steps, result = add(c, d, 2)
        return form, slots, f"{slots['c']} + {slots['d']}; point 2; {steps}", f"${result}"
    if form == "many":
        k = rng.randint(2, 9)
        steps, result = times_digit(c, k, 2)
        return form, dict(slots, k=k), f"{slots['c']} * {k}; point 2; {steps}", f"${result}"
    notes = [n for n in (1, 2, 5, 10, 20, 50, 100) if n * 100 > c]
    p = rng.choice(notes) * 100
    paid = str(p // 100) if rng.random() < 0.7 else decimal_text(p, 2)
    steps, result = sub(p, c, 2)
    return form, dict(slots, p=paid), f"{decimal_text(p, 2)} - {slots['c']}; point 2; {steps}", f"${result}"
