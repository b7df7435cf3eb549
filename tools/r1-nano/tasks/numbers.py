# SPDX-License-Identifier: Apache-2.0
"""Divisors, primes, fractions, sequences, bases and Roman numerals."""
import math

from .core import kind
from .steps import add, euclid, mul, sub


@kind("gcd", 1.5, train=[
    "What is the greatest common divisor of {a} and {b}?", "What is the gcd of {a} and {b}?", "gcd({a}, {b})", "Find the gcd of {a} and {b}.", "Compute gcd({a}, {b}).",
    "What is the largest number that divides both {a} and {b}?", "Find the greatest common divisor of {a} and {b}.", "GCD of {a} and {b}?", "Calculate the gcd of {a} and {b}.",
    "What is the greatest common factor of {a} and {b}?"],
    held=["Give me the greatest common divisor of {a} and {b}.", "Which is the largest number that divides {a} and {b}?", "Work out the gcd of {a} and {b}."])
def gcd(rng):
    """Numbers up to 300, by Euclid."""
    g = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25])
    a, b = rng.randint(1, 300 // g) * g, rng.randint(1, 300 // g) * g
    steps, result = euclid(max(a, b), min(a, b))
    return "", dict(a=a, b=b), f"{max(a, b)} and {min(a, b)}; {steps}", str(result)


@kind("lcm", 1.5, train=[
    "What is the least common multiple of {a} and {b}?", "What is the lcm of {a} and {b}?", "lcm({a}, {b})", "Find the lcm of {a} and {b}.", "Compute lcm({a}, {b}).",
    "What is the smallest number that both {a} and {b} divide?", "Find the least common multiple of {a} and {b}.", "LCM of {a} and {b}?", "Calculate the lcm of {a} and {b}."],
    held=["Give me the least common multiple of {a} and {b}.", "Which is the smallest number that {a} and {b} divide?", "Work out the lcm of {a} and {b}."])
def lcm(rng):
    """Numbers up to 40."""
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    steps, g = euclid(max(a, b), min(a, b))
    product, result = mul(a // g, b)
    tail = f"\n{result}" if "\n" in product else ""
    return "", dict(a=a, b=b), f"{max(a, b)} and {min(a, b)}; {steps}; {a}/{g}={a // g}; {a // g}*{b}\n{product}{tail}", result


SMALL_PRIMES = [2, 3, 5, 7, 11, 13, 17, 19]


@kind("primes", 1.5, train=[
    "Is {n} prime?", "Is {n} a prime number?", "Is {n} prime or not?", "Tell me if {n} is prime.", "Is the number {n} a prime?", "Decide if {n} is a prime number.", "{n}, is it prime?",
    "Check if {n} is prime.", "Is {n} a prime?"], held=["Can you say if {n} is a prime number?", "Is it true that {n} is prime?", "Find out if {n} is prime."])
def primes(rng):
    """Numbers from 2 to 400, by trial division."""
    while True:
        n = rng.randint(2, 400)
        divisor = next((p for p in SMALL_PRIMES if p * p <= n and n % p == 0), 0)
        if divisor == 0 or divisor > 5 or rng.random() < 0.4:
            break
    out = []
    for p in SMALL_PRIMES:
        if p * p > n:
            out.append(f"{p}*{p}={p * p}>{n}")
            break
        out.append(f"{n}/{p}={n // p} r{n % p}")
        if n % p == 0:
            break
    else:
        out.append(f"23*23=529>{n}")
    answer = "No" if divisor else "Yes"
    return "", dict(n=n), f"{'; '.join(out)}; {'not prime' if divisor else 'prime'}", f"{answer}, {n} is {divisor} * {n // divisor}." if divisor else f"Yes, {n} is prime."


@kind("factors", 2.0, train=[
    "Factor {n}.", "What are the prime factors of {n}?", "Write {n} as a product of primes.", "Find the prime factors of {n}.", "Factor {n} into primes.", "Give the prime factors of {n}.",
    "What is the prime factorization of {n}?", "Find the prime factorization of {n}.", "Which primes make up {n}?"],
    held=["Which are the prime factors of {n}?", "Split {n} into prime factors.", "Show {n} as a product of prime numbers."])
def factors(rng):
    """Numbers from 4 to 400, by trial division."""
    n = rest = rng.randint(4, 400) if rng.random() < 0.6 else min(400, math.prod(rng.choice([2, 2, 3, 3, 5, 7]) for _ in range(rng.randint(2, 5))))
    out, found = [], []
    for p in SMALL_PRIMES:
        while rest > 1 and rest % p == 0 and p * p <= rest:
            out.append(f"{rest}/{p}={rest // p}")
            found.append(p)
            rest //= p
        if p * p > rest:
            out.append(f"{p}*{p}>{rest}")
            break
        out.append(f"{rest}/{p} r{rest % p}")
    found.append(rest)
    answer = " * ".join(map(str, found))
    return "", dict(n=n), "; ".join(out) + f"; {rest} prime; {n} = {answer}", answer


@kind("fractions", 3.0, forms={
    "add": (["What is {a} + {b}?", "{a} + {b} = ?", "Add {a} and {b}.", "Compute {a} + {b}.", "What is the sum of {a} and {b}?", "What is {a} plus {b}?", "Calculate {a} + {b}.", "How much is {a} plus {b}?"],
            ["Find the sum of {a} and {b}.", "Work out {a} + {b}.", "What is the total of {a} and {b}?"]),
    "simplify": (["Simplify {a}.", "Reduce {a}.", "Write {a} in lowest terms.", "Simplify the fraction {a}.", "What is {a} in lowest terms?", "Reduce the fraction {a} to lowest terms.",
                  "How do you simplify {a}?", "What is {a} simplified?"], ["Give {a} in lowest terms.", "Can the fraction {a} be reduced?", "Find the simplest form of {a}."]),
    "compare": (["Which is larger, {a} or {b}?", "Which fraction is greater, {a} or {b}?", "Which is bigger: {a} or {b}?", "What is the larger of {a} and {b}?", "{a} or {b}, which is larger?",
                 "Which is more, {a} or {b}?", "Compare {a} and {b}. Which is greater?", "Find the larger of {a} and {b}."],
                ["Which of {a} and {b} is larger?", "Give me the greater of {a} and {b}.", "What is more, {a} or {b}?"]),
    "mul": (["What is {a} * {b}?", "{a} * {b} = ?", "Multiply {a} by {b}.", "Compute {a} * {b}.", "What is {a} times {b}?", "What is the product of {a} and {b}?", "Calculate {a} * {b}.", "How much is {a} times {b}?"],
            ["Find the product of {a} and {b}.", "Work out {a} * {b}.", "Give me {a} times {b}."])})
def fractions(rng):
    """Denominators up to 12; to simplify, up to 144."""
    form = rng.choice(["add", "add", "simplify", "compare", "mul"])
    b, d = rng.randint(2, 12), rng.randint(2, 12)
    a, c = rng.randint(1, b - 1), rng.randint(1, d - 1)
    one, two = f"{a}/{b}", f"{c}/{d}"
    if form == "simplify":
        k = rng.randint(1, 12)
        steps, answer = _simplest(a * k, b * k)
        return form, dict(a=f"{a * k}/{b * k}"), steps, answer
    if form == "compare":
        x, y = a * d, c * b
        sign = ">" if x > y else "<" if x < y else "="
        answer = "They are equal." if x == y else one if x > y else two
        return form, dict(a=one, b=two), f"{one} and {two}; {a}*{d}={x}; {c}*{b}={y}; {x}{sign}{y}; {one}{sign}{two}", answer
    if form == "mul":
        steps, answer = _simplest(a * c, b * d)
        return form, dict(a=one, b=two), f"{one} * {two}; {a}*{c}={a * c}; {b}*{d}={b * d}; {steps}", answer
    if b == d:
        steps, answer = _simplest(a + c, b)
        return form, dict(a=one, b=two), f"{one} + {two}; same {b}; {a}+{c}={a + c}; {steps}", answer
    steps, answer = _simplest(a * d + c * b, b * d)
    total = add(a * d, c * b)[0]
    return form, dict(a=one, b=two), f"{one} + {two}; {a}*{d}={a * d}; {c}*{b}={c * b}; {total}; {b}*{d}={b * d}; {steps}", answer


def _simplest(a, b):
    steps, g = euclid(max(a, b), min(a, b))
    top, bottom = a // g, b // g
    answer = str(top) if bottom == 1 else f"{top}/{bottom}"
    return f"{a}/{b}; {steps}; " + (f"{a}/{g}={top}; {b}/{g}={bottom}; " if g > 1 else "") + answer, answer


@kind("sequences", 2.0, train=[
    "What comes next: {s}?", "What is the next number: {s}?", "{s}, what comes next?", "Continue the sequence {s}.", "Find the next number in {s}.", "Which number comes next? {s}",
    "What number follows {s}?", "{s}, ...", "Next number in the sequence: {s}?", "Continue: {s}"],
    held=["Which number comes after {s}?", "Give me the next number of the sequence {s}.", "How does {s} continue?"])
def sequences(rng):
    """Constant difference, constant factor, or sum of the two before."""
    style = rng.randrange(4)
    if style < 2:
        start, step, count = rng.randint(0, 100), rng.randint(1, 30), rng.randint(4, 5)
        s = [start + step * i for i in range(count)]
        if style == 1:
            s = s[::-1]
            gaps = "; ".join(sub(s[i], s[i + 1])[0] for i in range(2))
            if s[-1] < step:
                return sequences(rng)
            steps, answer = sub(s[-1], step)
            thought = f"falls; {gaps}; minus {step}; {steps}"
        else:
            gaps = "; ".join(sub(s[i + 1], s[i])[0] for i in range(2))
            steps, answer = add(s[-1], step)
            thought = f"{gaps}; plus {step}; {steps}"
    elif style == 2:
        r = rng.choice([2, 2, 3, 3, 4, 5, 10])
        s = [rng.randint(1, 9) * r**0]
        while len(s) < 4:
            s.append(s[-1] * r)
        steps, answer = mul(s[-1], r)
        thought = f"{s[1]}/{s[0]}={r}; times {r}; {steps}"
        if "\n" in steps:
            thought += f"\n{answer}"
    else:
        s = [rng.randint(1, 9), rng.randint(1, 9)]
        while len(s) < 5:
            s.append(s[-1] + s[-2])
        if s[1] - s[0] == s[2] - s[1]:
            return sequences(rng)
        steps, answer = add(s[-2], s[-1])
        thought = f"{s[0]}+{s[1]}={s[2]}; {s[1]}+{s[2]}={s[3]}; sum of two; {steps}"
    return "", dict(s=", ".join(map(str, s))), f"{' '.join(map(str, s))}; {thought}", answer


HEX = "0123456789ABCDEF"


@kind("bases", 3.0, forms={
    "to_bin": (["What is {n} in binary?", "Convert {n} to binary.", "Write {n} in binary.", "{n} in binary", "Binary of {n}?", "Convert decimal {n} to binary.", "What is the binary of {n}?", "Write the number {n} in base 2."],
               ["Give me {n} in binary.", "How do you write {n} in binary?", "Show {n} in base 2."]),
    "from_bin": (["What is binary {n} in decimal?", "Convert binary {n} to decimal.", "Write binary {n} in decimal.", "Binary {n} in decimal", "What number is binary {n}?", "Convert {n} from binary to decimal.",
                  "What is the decimal value of binary {n}?", "Binary {n} is which number?"], ["Give me the decimal of binary {n}.", "Which number is binary {n}?", "What does binary {n} make in decimal?"]),
    "to_hex": (["What is {n} in hex?", "Convert {n} to hex.", "Write {n} in hexadecimal.", "{n} in hex", "Hex of {n}?", "Convert decimal {n} to hexadecimal.", "What is the hex of {n}?", "Write the number {n} in base 16."],
               ["Give me {n} in hex.", "How do you write {n} in hexadecimal?", "Show {n} in base 16."]),
    "from_hex": (["What is hex {n} in decimal?", "Convert hex {n} to decimal.", "Write hex {n} in decimal.", "Hex {n} in decimal", "What number is hex {n}?", "Convert {n} from hex to decimal.",
                  "What is the decimal value of hex {n}?", "Hex {n} is which number?"], ["Give me the decimal of hex {n}.", "Which number is hex {n}?", "What does hex {n} make in decimal?"])})
def bases(rng):
    """Decimal, binary and hexadecimal, 0 to 255."""
    form = rng.choice(["to_bin", "from_bin", "to_hex", "from_hex"])
    n = rng.randint(1, 255) if rng.random() < 0.8 else rng.randint(1, 31)
    if form == "to_bin":
        out, rest, done = [], n, ""
        while rest:
            done = str(rest % 2) + done
            out.append(f"{rest}/2={rest // 2} r{rest % 2} {done}")
            rest //= 2
        return form, dict(n=n), "; ".join(out), done
    if form == "from_bin":
        text, value, out = format(n, "b"), 0, []
        for bit in text:
            out.append(f"{bit}: {value}*2+{bit}={value * 2 + int(bit)}")
            value = value * 2 + int(bit)
        return form, dict(n=text), f"{' '.join(text)}; " + "; ".join(out), str(n)
    high, low = divmod(n, 16)
    text = (HEX[high] if high else "") + HEX[low]
    if form == "to_hex":
        return form, dict(n=n), f"{n}/16={high} r{low}; {high}={HEX[high]}; {low}={HEX[low]}; {text}", text
    if not high:
        return form, dict(n=text), f"{HEX[low]}={low}", str(n)
    return form, dict(n=text), f"{HEX[high]}={high}; {high}*16={high * 16}; {HEX[low]}={low}; {add(high * 16, low)[0]}", str(n)


ROMAN = [("", "M", "MM", "MMM"), ("", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM"), ("", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC"),
         ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")]


@kind("roman", 2.0, forms={
    "to": (["What is {n} in Roman numerals?", "Convert {n} to Roman numerals.", "Write {n} in Roman numerals.", "{n} in Roman numerals", "How do you write {n} in Roman numerals?", "Roman numeral for {n}?",
            "What is the Roman numeral for {n}?", "Write the number {n} as a Roman numeral."], ["Give me {n} in Roman numerals.", "Show {n} as a Roman numeral.", "How would the Romans write {n}?"]),
    "from": (["What number is {n}?", "What is {n} in decimal?", "Convert the Roman numeral {n} to a number.", "What is the Roman numeral {n}?", "Which number is the Roman numeral {n}?", "{n} is which number?",
              "Read the Roman numeral {n}.", "Convert {n} to a number.", "What does the Roman numeral {n} mean?"], ["Give me the value of the Roman numeral {n}.", "Which number does {n} stand for in Roman numerals?", "Write the Roman numeral {n} as a number."])})
def roman(rng):
    """1 to 3999."""
    n = rng.randint(1, 3999) if rng.random() < 0.6 else rng.randint(1, 100)
    parts = [(int(d) * 10 ** (3 - i), ROMAN[i][int(d)]) for i, d in enumerate(str(n).zfill(4)) if d != "0"]
    text = "".join(p for _, p in parts)
    if rng.random() < 0.5:
        return "to", dict(n=n), "; ".join(f"{v} {p}" for v, p in parts) + f"; {text}", text
    done, out = 0, []
    for value, part in parts:
        done += value
        out.append(f"{' '.join(part)}: {value} {done}")
    return "from", dict(n=text), "; ".join(out), str(n)
