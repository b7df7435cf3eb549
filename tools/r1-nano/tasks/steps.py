# SPDX-License-Identifier: Apache-2.0
"""Written-out arithmetic, shared by all kinds. Every function returns (steps, result); the steps end with the result.

Rules of the notation: numbers of up to three digits are worked in columns from the right; longer ones are first listed in
reverse with a letter for each place ("1205: a5 b0 c2 d1"), so that each column finds its digits by letter. After each column
stands the result so far, so that no step has to look further back than the one before it.
"""

PLACES = "abcdefghijklmnop"
SHORT = 3


def listed(n):
    return f"{n}:" + "".join(f" {p}{d}" for p, d in zip(PLACES, reversed(str(n))))


def _digit(text, i):
    return int(text[-1 - i]) if i < len(text) else 0


def _pointed(text, i, point):
    return "." + text if point and i + 1 == point else text


def _columns(a, b, point, column):
    """Runs `column(p, q, carry, is_last) -> (text, digits to write, carry)` over all places, least first."""
    x, y = str(a), str(b)
    width = max(len(x), len(y), point + 1)
    labelled = width > SHORT or point > 0
    out, result, carry = [], "", 0
    for i in range(width):
        text, digits, carry = column(_digit(x, i), _digit(y, i), carry, i == width - 1)
        result = _pointed(digits + result, i, point)
        out.append(f"{PLACES[i]}{text}:{result}" if labelled else text)
    if labelled:
        return f"{listed(a)}; {listed(b)}; " + " ".join(out), result, labelled
    return "; ".join(out), result, labelled


def _add_column(p, q, carry, last):
    total = p + q + carry
    text = f"{p}+{q}" + ("+1" if carry else "") + f"={total}"
    return text, str(total if last else total % 10), total // 10


def _sub_column(p, q, borrow, last):
    left = p - q - borrow
    text = f"{p}-{q}" + ("-1" if borrow else "") + f"={left}" + (f"+10={left + 10}" if left < 0 else "")
    return text, str(left % 10), int(left < 0)


def plain(text):
    """Drops leading zeros: 00.50 -> 0.50, 007 -> 7."""
    whole, dot, part = text.partition(".")
    return (whole.lstrip("0") or "0") + dot + part


def add(a, b, point=0):
    """a + b for whole numbers; with `point`, both count units of 10**-point."""
    if a < 10 and b < 10 and not point:
        return f"{a}+{b}={a + b}", str(a + b)
    columns, result, labelled = _columns(a, b, point, _add_column)
    return f"{a}+{b}: {columns}" + ("" if labelled else f" -> {result}"), result


def sub(a, b, point=0):
    """a - b for a >= b >= 0."""
    if a < 10 and not point:
        return f"{a}-{b}={a - b}", str(a - b)
    columns, result, _ = _columns(a, b, point, _sub_column)
    return f"{a}-{b}: {columns} -> {plain(result)}", plain(result)


def times_digit(a, d, point=0, is_listed=False):
    """a times one digit. `is_listed`: the reverse list of a already stands above."""
    if not point and (a < 10 or d < 2):
        return f"{a}*{d}={a * d}", str(a * d)
    out, result, carry = [], "", 0
    digits = str(a).zfill(point + 1)
    for i in range(len(digits)):
        total = _digit(digits, i) * d + carry
        text = f"{PLACES[i]}{_digit(digits, i)}*{d}" + (f"+{carry}" if carry else "") + f"={total}"
        carry = total // 10
        result = _pointed(str(total if i == len(digits) - 1 else total % 10) + result, i, point)
        out.append(f"{text}:{result}")
    return f"{a}*{d}: " + ("" if is_listed else f"{listed(digits)}; ") + " ".join(out), result


def mul(a, b):
    """a * b: one partial product for each digit of the shorter number, summed as they come."""
    if len(str(b)) > len(str(a)):
        a, b = b, a
    if b < 10:
        return times_digit(a, b)
    out, total = [listed(b), listed(a)], 0
    for i, d in enumerate(map(int, reversed(str(b)))):
        part = a * d * 10**i
        out.append(f"{PLACES[i]} {times_digit(a, d, is_listed=True)[0]}" + (f"; {part}" if i and part else ""))
        if i and part:
            out.append(add(total, part)[0] if total else f"0+{part} -> {part}")
        total += part
    return "\n".join(out), str(total)


def compare(a, b):
    """Two whole numbers >= 0: first by length, then by the first digit that differs."""
    x, y = str(a), str(b)
    text = f"{a} has {len(x)}, {b} has {len(y)}; "
    if len(x) != len(y):
        sign = ">" if len(x) > len(y) else "<"
        return text + f"{len(x)}{sign}{len(y)}; {a}{sign}{b}", sign
    out, sign = [], "="
    for p, q in zip(x, y):
        sign = ">" if p > q else "<" if p < q else "="
        out.append(f"{p}{sign}{q}")
        if sign != "=":
            break
    return text + " ".join(out) + f"; {a}{sign}{b}", sign


def divide(a, d):
    """Long division of a by d < 100. Returns (steps, quotient, remainder). Digits of a long dividend are called by letter, down to a."""
    out, rest, quotient = [], 0, ""
    labelled = len(str(a)) > SHORT
    if labelled:
        out.append(listed(a))
    if d > 12:
        out.append(f"{d}: " + " ".join(str(d * k) for k in range(1, 10)))
    for place, digit in zip(reversed(PLACES[: len(str(a))]), str(a)):
        now = rest * 10 + int(digit)
        q, rest = divmod(now, d)
        quotient = str(q) if quotient in ("", "0") else quotient + str(q)
        work = f"{rest}" if q == 0 or d <= 12 else sub(now, q * d)[0]
        out.append(f"{place if labelled else ''}{digit}: {now}/{d}={q}" + (f" r{rest}" if d <= 12 or q == 0 else f" {work}") + f" q{quotient}")
    return f"{a}/{d}\n" + "\n".join(out), int(quotient), rest


def signed_add(a, b):
    """a + b with signs."""
    if a >= 0 and b >= 0:
        return add(a, b)
    if a < 0 and b < 0:
        steps, result = add(-a, -b)
        return f"both negative: {steps}; -{result}", f"-{result}"
    text, sign = compare(abs(a), abs(b))
    if sign == "=":
        return f"opposite: {text}; 0", "0"
    big, small = (a, b) if sign == ">" else (b, a)
    steps, result = sub(abs(big), abs(small))
    answer = f"-{result}" if big < 0 else result
    return f"signs differ: {text}; sign of {big}; {steps}; {answer}", answer


def euclid(a, b):
    """gcd of a >= b > 0 by remainders; a quotient of two digits or more is taken in its tens and its ones."""
    out = []
    while b:
        if a >= 10 * b:
            tens = a // b // 10 * 10
            out.append(f"{tens}*{b}={tens * b}, {a}-{tens * b}={a - tens * b}")
            a -= tens * b
            if a < b:
                a, b = b, a
                continue
        q, r = divmod(a, b)
        out.append(f"{a}={q}*{b}+{r}" if q == 1 or a < 40 else f"{q}*{b}={q * b}, {a}-{q * b}={r}")
        a, b = b, r
    return "; ".join(out) + f"; gcd {a}", a


def spelled(word):
    return " ".join(word)


def numbered(word):
    return " ".join(f"{c}{i + 1}" for i, c in enumerate(word))
