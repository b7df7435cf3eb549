# SPDX-License-Identifier: Apache-2.0
"""Whole numbers, signs, decimals, percentages, expressions and equations."""
import ast

from .core import kind
from .steps import add, compare, divide, mul, signed_add, sub, times_digit


def number(rng, most):
    """A number whose count of digits is uniform in 1..most."""
    digits = rng.randint(1, most)
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def fair(rng, most):
    """Two numbers, longer ones more often."""
    top = max(rng.randint(1, most), rng.randint(1, most))
    return (number(rng, top), rng.randrange(10 ** (top - 1), 10**top)) if rng.random() < 0.5 else (rng.randrange(10 ** (top - 1), 10**top), number(rng, top))


@kind("addition", 3.0, train=[
    "What is {a} + {b}?", "{a} + {b} = ?", "{a}+{b}", "{a}+{b}=", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "{a} plus {b}?",
    "Compute {a} + {b}.", "How much is {a} plus {b}?", "What do you get if you add {b} to {a}?", "Calculate {a}+{b}.", "What is {a} plus {b}?",
    "Find the sum of {a} and {b}.", "What does {a} + {b} make?", "Work out {a} + {b}.", "I have {a} and get {b} more. What is the total?"],
    held=["What is the total of {a} and {b}?", "Give me the sum {a} + {b}.", "How much do {a} and {b} make?", "What number is {a} plus {b}?"])
def addition(rng):
    """Two whole numbers of up to 9 digits."""
    a, b = fair(rng, 9)
    steps, result = add(a, b)
    return "", dict(a=a, b=b), steps, result


@kind("subtraction", 3.0, train=[
    "What is {a} - {b}?", "{a} - {b} = ?", "{a}-{b}", "{a}-{b}=", "Subtract {b} from {a}.", "What is {a} minus {b}?", "{a} minus {b}?",
    "Compute {a} - {b}.", "How much is {a} minus {b}?", "What is left if you take {b} from {a}?", "Calculate {a}-{b}.", "Take {b} away from {a}.",
    "What do you get if you subtract {b} from {a}?", "Work out {a} - {b}.", "I have {a} and give away {b}. What is left?"],
    held=["Take {b} from {a}.", "How much is left of {a} if you take away {b}?", "Find {a} minus {b}.", "What number is {a} - {b}?"])
def subtraction(rng):
    """Two whole numbers of up to 9 digits; one in five results is negative."""
    a, b = fair(rng, 9)
    if (a < b) != (rng.random() < 0.2):
        a, b = b, a
    text, sign = compare(a, b)
    if sign == "=":
        return "", dict(a=a, b=b), f"{a}-{b}: {text}; 0", "0"
    steps, result = sub(a, b) if sign == ">" else sub(b, a)
    negative = sign == "<"
    thought = f"{a}-{b}: {text}; {'negative; ' if negative else ''}{steps}{f'; -{result}' if negative else ''}"
    return "", dict(a=a, b=b), thought, f"-{result}" if negative else result


@kind("negative_numbers", 2.0, forms={
    "add": (["What is {a} + {b}?", "{a} + {b} = ?", "Add {a} and {b}.", "Compute {a} + {b}.", "What is {a} plus {b}?", "What is the sum of {a} and {b}?",
             "Calculate {a} + {b}.", "{a} plus {b}?"], ["What is the total of {a} and {b}?", "How much do {a} and {b} make?", "Give me the sum {a} + {b}."]),
    "sub": (["What is {a} - {b}?", "{a} - {b} = ?", "Subtract {b} from {a}.", "Compute {a} - {b}.", "What is {a} minus {b}?", "Calculate {a} - {b}.",
             "{a} minus {b}?", "What do you get if you subtract {b} from {a}?"], ["Take {b} away from {a}.", "Find {a} minus {b}.", "How much is {a} - {b}?"]),
    "mul": (["What is {a} * {b}?", "{a} * {b} = ?", "Multiply {a} by {b}.", "Compute {a} * {b}.", "What is {a} times {b}?", "Calculate {a} * {b}.",
             "{a} times {b}?", "What is the product of {a} and {b}?"], ["How much is {a} times {b}?", "Find the product of {a} and {b}.", "Give me {a} * {b}."])})
def negative_numbers(rng):
    """Sums and differences to 4 digits and products of two by two digits, at least one operand negative."""
    form = rng.choice(["add", "sub", "sub", "add", "mul"])
    most = 2 if form == "mul" else 4
    a, b = (max(1, number(rng, most)) * s for s in rng.choice([(-1, 1), (1, -1), (-1, -1)]))
    if form == "add":
        steps, result = signed_add(a, b)
        thought = f"{a} + {b}; {steps}"
    elif form == "sub":
        steps, result = signed_add(a, -b)
        thought = f"{a} - {b} = {a} + {-b}; {steps}"
    else:
        steps, result = mul(abs(a), abs(b))
        same = (a < 0) == (b < 0)
        result = result if same else f"-{result}"
        thought = f"{a} * {b}: {'same signs, positive' if same else 'signs differ, negative'}; {steps}; {result}"
    return form, dict(a=a, b=b), thought, result


@kind("multiplication", 6.0, train=[
    "What is {a} * {b}?", "{a} * {b} = ?", "{a}*{b}", "{a} x {b}", "Multiply {a} by {b}.", "What is {a} times {b}?", "{a} times {b}?", "Compute {a} * {b}.",
    "What is the product of {a} and {b}?", "How much is {a} times {b}?", "Calculate {a} x {b}.", "Multiply {a} and {b}.", "What is {a} x {b}?",
    "Work out {a} times {b}.", "What do you get if you multiply {a} by {b}?", "{a}*{b}="],
    held=["Find the product of {a} and {b}.", "Give me {a} times {b}.", "How much is {a} * {b}?", "What number is {a} times {b}?"])
def multiplication(rng):
    """Up to four by four digits."""
    sizes = rng.choice([(1, 1), (2, 1), (3, 1), (2, 2), (2, 2), (3, 2), (3, 2), (4, 1), (4, 2), (3, 3), (3, 3), (4, 3), (4, 3), (4, 4), (4, 4), (4, 4)])
    a, b = (rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n) for n in sizes)
    slots = dict(a=a, b=b) if rng.random() < 0.6 else dict(a=b, b=a)
    steps, result = mul(slots["a"], slots["b"])
    thought = f"{slots['a']} times {slots['b']}\n{steps}" + (f"\n{result}" if "\n" in steps else "")
    return "", slots, thought, result


@kind("division", 4.0, train=[
    "Divide {a} by {d}.", "What is {a} divided by {d}?", "{a} / {d} = ?", "{a}/{d}", "{a} divided by {d}?", "What is {a} / {d}?", "Compute {a} / {d}.",
    "What are the quotient and remainder of {a} / {d}?", "How many times does {d} go into {a}?", "Work out {a} / {d} with remainder.", "Calculate {a} divided by {d}.",
    "Divide {a} by {d} and give the remainder.", "How much is {a} divided by {d}?", "{a} / {d} with remainder"],
    held=["Find {a} divided by {d}.", "What do you get if you divide {a} by {d}?", "Give me the quotient of {a} and {d}.", "How often does {d} go into {a}?"])
def division(rng):
    """Dividends of up to 6 digits, divisors of up to 2 digits. The answer names the remainder if there is one."""
    d = rng.randint(2, 12) if rng.random() < 0.5 else rng.randint(2, 99)
    a = max(d, number(rng, 6))
    if rng.random() < 0.35:
        a -= a % d
    steps, q, r = divide(a, d)
    answer = f"{q} remainder {r}" if r else f"{q}"
    return "", dict(a=a, d=d), f"{steps}\n{answer}", answer


@kind("remainder", 1.0, train=[
    "What is the remainder of {a} / {d}?", "What is {a} mod {d}?", "{a} mod {d}", "What remains when {a} is divided by {d}?", "Find the remainder of {a} divided by {d}.",
    "What is the remainder when you divide {a} by {d}?", "Compute {a} mod {d}.", "{a} % {d}", "Give the remainder of {a} / {d}."],
    held=["What is left when {a} is divided by {d}?", "Calculate the remainder of {a} / {d}.", "Which remainder does {a} / {d} have?"])
def remainder(rng):
    """Dividends of up to 5 digits, divisors up to 20."""
    d = rng.randint(2, 20)
    a = max(d, number(rng, 5))
    steps, _, r = divide(a, d)
    return "", dict(a=a, d=d), f"{steps}\nremainder {r}", f"{r}"


def decimal_text(units, places):
    text = str(units).zfill(places + 1)
    return f"{text[:-places]}.{text[-places:]}" if places else text


@kind("decimals", 3.5, forms={
    "add": (["What is {a} + {b}?", "{a} + {b} = ?", "{a}+{b}", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Compute {a} + {b}.", "What is {a} plus {b}?",
             "Calculate {a} + {b}.", "How much is {a} plus {b}?"], ["What is the total of {a} and {b}?", "Find the sum of {a} and {b}.", "Work out {a} + {b}."]),
    "sub": (["What is {a} - {b}?", "{a} - {b} = ?", "{a}-{b}", "Subtract {b} from {a}.", "Compute {a} - {b}.", "What is {a} minus {b}?", "Calculate {a} - {b}.",
             "How much is {a} minus {b}?", "Take {b} away from {a}."], ["Take {b} from {a}.", "Find {a} minus {b}.", "Work out {a} - {b}."]),
    "mul": (["What is {a} * {b}?", "{a} * {b} = ?", "Multiply {a} by {b}.", "What is {a} times {b}?", "Compute {a} * {b}.", "Calculate {a} x {b}.",
             "How much is {a} times {b}?", "{a} times {b}?"], ["Find the product of {a} and {b}.", "Give me {a} times {b}.", "Work out {a} * {b}."])})
def decimals(rng):
    """Up to 4 digits before and 3 after the point; products with one digit only."""
    form = rng.choice(["add", "add", "sub", "sub", "mul"])
    p = rng.randint(1, 3)
    x = number(rng, 4) * 10**p + rng.randrange(10**p)
    if form == "mul":
        d = rng.randint(2, 9)
        steps, result = times_digit(x, d, p)
        return form, dict(a=decimal_text(x, p), b=d), f"{decimal_text(x, p)} has {p} places; {steps}", result
    q = rng.choice([p, p, rng.randint(0, 3)])
    y = number(rng, 4) * 10**q + (rng.randrange(10**q) if q else 0)
    if rng.random() < 0.5:
        x, p, y, q = y, q, x, p
    most = max(p, q)
    if form == "sub" and x * 10 ** (most - p) < y * 10 ** (most - q):
        x, p, y, q = y, q, x, p
    u, v = x * 10 ** (most - p), y * 10 ** (most - q)
    steps, result = (add if form == "add" else sub)(u, v, most)
    a, b = decimal_text(x, p), decimal_text(y, q)
    sign = "+" if form == "add" else "-"
    return form, dict(a=a, b=b), f"places {p} and {q}; {decimal_text(u, most)} {sign} {decimal_text(v, most)}; point {most}; {steps}", result


@kind("percentages", 2.0, forms={
    "of": (["What is {p}% of {n}?", "{p}% of {n}", "What is {p} percent of {n}?", "Compute {p}% of {n}.", "How much is {p}% of {n}?", "Find {p} percent of {n}.",
            "Calculate {p}% of {n}.", "{p} percent of {n}?", "What does {p}% of {n} make?"], ["Work out {p}% of {n}.", "Give me {p} percent of {n}.", "How many is {p}% of {n}?"]),
    "up": (["Increase {n} by {p}%.", "What is {n} increased by {p}%?", "What is {n} plus {p}%?", "Add {p}% to {n}.", "Raise {n} by {p} percent.", "A price of {n} goes up by {p}%. What is it now?",
            "What is {n} raised by {p} percent?", "If {n} grows by {p}%, what is it then?"], ["A price of {n} is raised by {p}%. What is the new price?", "What do you get if you increase {n} by {p} percent?", "{n} grows by {p}%. What is it now?"]),
    "down": (["Decrease {n} by {p}%.", "What is {n} decreased by {p}%?", "What is {n} minus {p}%?", "Take {p}% off {n}.", "Lower {n} by {p} percent.", "A price of {n} goes down by {p}%. What is it now?",
              "What is {n} lowered by {p} percent?", "If {n} falls by {p}%, what is it then?"], ["A price of {n} is lowered by {p}%. What is the new price?", "What do you get if you decrease {n} by {p} percent?", "{n} falls by {p}%. What is it now?"])})
def percentages(rng):
    """Whole results only, of numbers to 4 digits."""
    while True:
        p = rng.choice([1, 2, 3, 4, 5, 8, 10, 12, 15, 20, 25, 30, 35, 40, 50, 60, 70, 75, 80, 90, rng.randint(1, 99)])
        n = rng.randint(1, 99) * rng.choice([1, 4, 5, 10, 20, 50, 100])
        if p * n % 100 == 0:
            break
    form = rng.choice(["of", "of", "of", "up", "down"])
    steps, product = mul(n, p)
    part = int(product) // 100
    thought, answer = f"{p}% of {n}; {n}*{p}\n{steps}\n{product}/100={part}", str(part)
    if form != "of":
        steps, answer = (add if form == "up" else sub)(n, part)
        thought += f"\n{form}; {steps}"
    return form, dict(p=p, n=n), thought, answer


_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


def _tree(rng, depth):
    """A random expression as nested tuples; leaves are numbers."""
    if depth == 0 or rng.random() < 0.2:
        return rng.randint(1, 12 if rng.random() < 0.7 else 30)
    op = rng.choice("++--**/")
    left, right = _tree(rng, depth - 1), _tree(rng, depth - 1)
    return (op, left, right)


def _wraps_left(op, left):
    return isinstance(left, tuple) and _RANK[left[0]] < _RANK[op]


def _wraps_right(op, right):
    return isinstance(right, tuple) and (_RANK[right[0]] < _RANK[op] or (_RANK[right[0]] == _RANK[op] and (op in "-/" or right[0] == "/")))


def _show(tree, s):
    if not isinstance(tree, tuple):
        return str(tree)
    op, left, right = tree
    a, b = _show(left, s), _show(right, s)
    if _wraps_left(op, left):
        a = f"({a})"
    if _wraps_right(op, right):
        b = f"({b})"
    return f"{a}{s}{op}{s}{b}"


def _parsed(text):
    """The tree that the text means: operators of equal rank from the left."""
    names = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

    def build(node):
        return node.value if isinstance(node, ast.Constant) else (names[type(node.op)], build(node.left), build(node.right))

    return build(ast.parse(text, mode="eval").body)


def _next(tree):
    """(what to compute next, tree after it): parentheses first, then * and /, then + and -, from the left."""
    best = None

    def walk(node, path, depth):
        nonlocal best
        if not isinstance(node, tuple):
            return
        op, left, right = node
        walk(left, path + (1,), depth + _wraps_left(op, left))
        if not isinstance(left, tuple) and not isinstance(right, tuple):
            key = (-depth, -_RANK[op])
            if best is None or key < best[0]:
                best = (key, path, node)
        walk(right, path + (2,), depth + _wraps_right(op, right))

    walk(tree, (), 0)
    return best[1], best[2]


def _replace(tree, path, value):
    if not path:
        return value
    parts = list(tree)
    parts[path[0]] = _replace(parts[path[0]], path[1:], value)
    return tuple(parts)


def _apply(op, a, b):
    """(steps, result) or None where the result would leave whole numbers from 0 to 999."""
    if op == "+":
        steps, value = add(a, b)
    elif op == "-":
        if a < b:
            return None
        steps, value = sub(a, b)
    elif op == "*":
        if min(a, b) > 12 or a * b > 999:
            return None
        steps, value = (f"{a}*{b}={a * b}", a * b) if max(a, b) <= 12 else times_digit(max(a, b), min(a, b)) if min(a, b) < 10 else mul(a, b)
    else:
        if b == 0 or b > 12 or a > 144 or a % b or a // b > 12:
            return None
        steps, value = f"{a}/{b}={a // b}", a // b
    return (steps, int(value)) if int(value) <= 999 else None


def _reduce(tree):
    out = [_show(tree, "")]
    while isinstance(tree, tuple):
        path, (op, a, b) = _next(tree)
        done = _apply(op, a, b)
        if done is None:
            return None
        tree = _replace(tree, path, done[1])
        out.append(f"{done[0]}\n{_show(tree, '')}")
    return "\n".join(out), str(tree)


@kind("expressions", 4.0, train=[
    "What is {e}?", "{e} = ?", "{e}", "Compute {e}.", "Evaluate {e}.", "Calculate {e}.", "What is the value of {e}?", "Work out {e}.", "How much is {e}?",
    "Find the value of {e}.", "What does {e} make?", "{e}=", "Solve {e}."],
    held=["What do you get for {e}?", "Give me the value of {e}.", "Determine {e}.", "What number is {e}?"])
def expressions(rng):
    """Two to four operations with precedence and parentheses; all values are whole numbers from 0 to 999."""
    while True:
        tree = _tree(rng, rng.choice([2, 2, 2, 3]))
        text = _show(tree, "")
        if not 2 <= sum(c in "+-*/" for c in text) <= 4:
            continue
        tree = _parsed(text)
        done = _reduce(tree)
        if done:
            return "", dict(e=_show(tree, rng.choice(["", " "]))), done[0], done[1]


_SOLVE = (["Solve {e}.", "Solve {e} for {v}.", "Find {v} if {e}.", "What is {v} if {e}?", "{e}, what is {v}?", "Solve for {v}: {e}", "If {e}, what is {v}?",
           "Find {v}: {e}", "Solve the equation {e}.", "What is {v} in {e}?"],
          ["For which {v} is {e}?", "Find the value of {v} if {e}.", "Solve this equation for {v}: {e}", "What value does {v} have if {e}?"])


@kind("equations", 2.5, forms={"": _SOLVE})
def equations(rng):
    """Linear in one unknown, whole solutions from 0 to 20, coefficients to 12, constants to 50."""
    v = rng.choice("xxxyzna")
    x, a, b = rng.randint(0, 20), rng.randint(2, 12), rng.randint(1, 50)
    s = rng.choice(["", " "])
    shape = rng.randrange(8)
    last = f"{v}={x}"
    if shape == 0:
        c = a * x + b
        e, steps = f"{a}{v}{s}+{s}{b}{s}={s}{c}", f"{a}{v}={c}-{b}; {sub(c, b)[0]}; {a}{v}={a * x}; {a * x}/{a}={x}"
    elif shape == 1:
        c = a * x - b
        if c < 0:
            return equations(rng)
        e, steps = f"{a}{v}{s}-{s}{b}{s}={s}{c}", f"{a}{v}={c}+{b}; {add(c, b)[0]}; {a}{v}={a * x}; {a * x}/{a}={x}"
    elif shape == 2:
        e, steps = f"{a}{v}{s}={s}{a * x}", f"{v}={a * x}/{a}; {a * x}/{a}={x}"
    elif shape == 3:
        x = rng.randint(0, 200)
        last = f"{v}={x}"
        e, steps = f"{v}{s}+{s}{b}{s}={s}{x + b}", f"{v}={x + b}-{b}; {sub(x + b, b)[0]}"
    elif shape == 4:
        x = rng.randint(b, 200)
        last = f"{v}={x}"
        e, steps = f"{v}{s}-{s}{b}{s}={s}{x - b}", f"{v}={x - b}+{b}; {add(x - b, b)[0]}"
    elif shape == 5:
        c = rng.randint(1, 12)
        last = f"{v}={a * c}"
        e, steps = f"{v}{s}/{s}{a}{s}={s}{c}", f"{v}={c}*{a}; {c}*{a}={a * c}"
    elif shape == 6:
        b = rng.randint(1, 12)
        e, steps = f"{a}({v}{s}+{s}{b}){s}={s}{a * (x + b)}", f"{v}+{b}={a * (x + b)}/{a}; {a * (x + b)}/{a}={x + b}; {v}={x + b}-{b}; {sub(x + b, b)[0]}"
    else:
        c = rng.randint(1, a - 1)
        d = b + (a - c) * x
        left = f"{a - c}{v}" if a - c > 1 else v
        right = f"{c}{v}" if c > 1 else v
        e = f"{a}{v}{s}+{s}{b}{s}={s}{right}{s}+{s}{d}"
        steps = f"{a}{v}-{right}={left}; {left}={d}-{b}; {sub(d, b)[0]}; {left}={d - b}" if a - c > 1 else f"{a}{v}-{right}={v}; {v}={d}-{b}; {sub(d, b)[0]}"
        steps += f"; {d - b}/{a - c}={x}" if a - c > 1 else ""
    return "", dict(e=e, v=v), f"{e.replace(' ', '')}; {steps}; {last}", last.replace("=", " = ")


@kind("comparisons", 2.0, forms={
    "large": (["Which is larger, {a} or {b}?", "Which is bigger: {a} or {b}?", "Which number is greater, {a} or {b}?", "What is the larger of {a} and {b}?", "{a} or {b}, which is larger?",
               "Which is more, {a} or {b}?", "Tell me the bigger number: {a} or {b}.", "Find the larger of {a} and {b}.", "Compare {a} and {b}. Which is greater?"],
              ["Which of {a} and {b} is larger?", "Give me the greater of {a} and {b}.", "What is more, {a} or {b}?"]),
    "small": (["Which is smaller, {a} or {b}?", "Which is less: {a} or {b}?", "Which number is smaller, {a} or {b}?", "What is the smaller of {a} and {b}?", "{a} or {b}, which is smaller?",
               "Which is less, {a} or {b}?", "Tell me the smaller number: {a} or {b}.", "Find the smaller of {a} and {b}.", "Compare {a} and {b}. Which is smaller?"],
              ["Which of {a} and {b} is smaller?", "Give me the smaller of {a} and {b}.", "What is less, {a} or {b}?"]),
    "is_large": (["Is {a} larger than {b}?", "Is {a} greater than {b}?", "Is {a} bigger than {b}?", "Is it true that {a} > {b}?", "Is {a} > {b}?", "Is {a} more than {b}?",
                  "True or not: {a} is larger than {b}?", "Check: is {a} greater than {b}?"], ["Is the number {a} larger than {b}?", "Is it true that {a} is bigger than {b}?", "Tell me, is {a} more than {b}?"]),
    "is_small": (["Is {a} smaller than {b}?", "Is {a} less than {b}?", "Is it true that {a} < {b}?", "Is {a} < {b}?", "True or not: {a} is smaller than {b}?", "Check: is {a} less than {b}?",
                  "Is {a} below {b}?", "Is {a} a smaller number than {b}?"], ["Is the number {a} smaller than {b}?", "Is it true that {a} is less than {b}?", "Tell me, is {a} less than {b}?"])})
def comparisons(rng):
    """Whole numbers of up to 9 digits, negative numbers of up to 3, decimals with up to 2 places."""
    form = rng.choice(["large", "small", "is_large", "is_small"])
    style = rng.randrange(5)
    if style < 3:
        a, b = fair(rng, 9)
        if rng.random() < 0.4:
            a = number(rng, 9)
            b = a + rng.choice([-1, 1]) * 10 ** rng.randrange(len(str(a)))
            b = b if b >= 0 else a + 1
        thought, sign = compare(a, b)
    elif style == 3:
        a, b = number(rng, 3), number(rng, 3)
        a, b = rng.choice([(-a - 1, b + 1), (a + 1, -b - 1), (-a - 1, -b - 1)])
        if a < 0 and b < 0:
            text, sign = compare(-a, -b)
            sign = {">": "<", "<": ">", "=": "="}[sign]
            thought = f"both negative: {text}; so {a}{sign}{b}"
        else:
            sign = "<" if a < 0 else ">"
            thought = f"negative is less: {a}{sign}{b}"
    else:
        p, q = rng.randint(1, 2), rng.randint(1, 2)
        top = rng.choice([1, 1, 10, 100])
        x, y = rng.randrange(10**p * top), rng.randrange(10**q * top)
        a, b = decimal_text(x, p), decimal_text(y, q)
        if rng.random() < 0.4:
            b = a.split(".")[0] + "." + b.split(".")[1]
        most = max(p, q)
        u, v = (n + "0" * (most - k) for n, k in ((a, p), (b, q)))
        text, sign = compare(int(u.replace(".", "")), int(v.replace(".", "")))
        thought = f"places {p} and {q}; {u} and {v}; {text}; {a}{sign}{b}"
    if form in ("large", "small"):
        answer = "They are equal." if sign == "=" else str(a if (sign == ">") == (form == "large") else b)
        tail = answer if sign != "=" else "equal"
    else:
        answer = tail = "Yes" if sign == (">" if form == "is_large" else "<") else "No"
    return form, dict(a=a, b=b), f"{thought}\n{form.replace('is_', 'is ')}: {tail}", answer
