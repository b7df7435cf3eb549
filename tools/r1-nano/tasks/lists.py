# SPDX-License-Identifier: Apache-2.0
"""Lists of numbers: sorting, extremes, sums, means, medians, counts."""
from .core import kind
from .steps import add, divide
from .arithmetic import number


def items(rng, low=3, high=6, most=3):
    return [number(rng, most) for _ in range(rng.randint(low, high))]


def joined(rng, values):
    text = [str(v) for v in values]
    style = rng.random()
    if style < 0.6:
        return ", ".join(text)
    if style < 0.8:
        return " ".join(text)
    return ", ".join(text[:-1]) + " and " + text[-1]


def selection(values, sign=1):
    """Selection sort with what is left after every step."""
    left, out = list(values), []
    while len(left) > 1:
        best = min(left, key=lambda v: v * sign)
        left.remove(best)
        out.append(f"{best}; left {' '.join(map(str, left))}")
    return "\n".join([" ".join(map(str, values))] + out), sorted(values, key=lambda v: v * sign)


@kind("sorting", 2.0, forms={
    "up": (["Sort {s}.", "Sort the numbers {s}.", "Sort these numbers: {s}", "Put {s} in order.", "Order the numbers {s} from small to large.", "Arrange {s} in increasing order.", "Sort {s} from smallest to largest.",
            "Put these numbers in ascending order: {s}", "Write {s} in order, smallest first.", "Sort the list {s}."],
           ["Arrange the numbers {s} from smallest to largest.", "Put the list {s} in order.", "Order these from small to large: {s}"]),
    "down": (["Sort {s} in descending order.", "Sort {s} from largest to smallest.", "Put {s} in order from large to small.", "Order the numbers {s} from largest to smallest.", "Arrange {s} in decreasing order.",
              "Sort these numbers, largest first: {s}", "Write {s} in order, largest first.", "Put these numbers in descending order: {s}"],
             ["Arrange the numbers {s} from largest to smallest.", "Order these from large to small: {s}", "Sort the list {s}, largest first."])})
def sorting(rng):
    """Three to six numbers of up to 3 digits."""
    form = rng.choice(["up", "up", "down"])
    values = items(rng)
    steps, order = selection(values, 1 if form == "up" else -1)
    return form, dict(s=joined(rng, values)), f"{form}: {steps}", ", ".join(map(str, order))


def _running(values, keep, word):
    best, out = values[0], [str(values[0])]
    for v in values[1:]:
        sign = ">" if v > best else "<" if v < best else "="
        best = keep(best, v)
        out.append(f"{v}{sign}{out[-1].split(' ')[-1]} {best}")
    return f"{word}: " + "; ".join(out), str(best)


@kind("extremes", 2.0, forms={
    "max": (["What is the largest of {s}?", "What is the maximum of {s}?", "Find the largest number in {s}.", "Which number is the largest: {s}?", "What is the biggest of these numbers: {s}?", "Find the maximum of {s}.",
             "max of {s}", "Which of {s} is the largest?"], ["Give me the largest number of {s}.", "Which of these is the biggest: {s}?", "What is the largest number in the list {s}?"]),
    "min": (["What is the smallest of {s}?", "What is the minimum of {s}?", "Find the smallest number in {s}.", "Which number is the smallest: {s}?", "What is the least of these numbers: {s}?", "Find the minimum of {s}.",
             "min of {s}", "Which of {s} is the smallest?"], ["Give me the smallest number of {s}.", "Which of these is the least: {s}?", "What is the smallest number in the list {s}?"])})
def extremes(rng):
    """Largest or smallest of three to seven numbers of up to 3 digits."""
    form = rng.choice(["max", "min"])
    values = items(rng, 3, 7)
    steps, best = _running(values, max if form == "max" else min, form)
    return form, dict(s=joined(rng, values)), steps, best


def running_sum(values):
    out, total = [], values[0]
    for v in values[1:]:
        steps, result = add(total, v)
        out.append(steps)
        total = int(result)
    return "\n".join(out), total


@kind("list_sums", 2.5, forms={
    "sum": (["What is the sum of {s}?", "Add {s}.", "Add the numbers {s}.", "Find the sum of {s}.", "Sum up {s}.", "What do {s} add up to?", "Compute the sum of {s}.", "What is the total of {s}?", "Add up {s}."],
            ["Give me the sum of the numbers {s}.", "How much do {s} make?", "Find the total of the list {s}."]),
    "mean": (["What is the mean of {s}?", "What is the average of {s}?", "Find the mean of {s}.", "Find the average of {s}.", "Compute the average of {s}.", "Calculate the mean of {s}.", "Average of {s}?", "What is the average of the numbers {s}?"],
             ["Give me the average of {s}.", "Work out the mean of the numbers {s}.", "Which number is the average of {s}?"])})
def list_sums(rng):
    """Sum of three to six numbers of up to 3 digits; mean of three to five numbers of up to 2 digits, where whole."""
    form = rng.choice(["sum", "sum", "mean"])
    if form == "sum":
        values = items(rng)
        steps, total = running_sum(values)
        return form, dict(s=joined(rng, values)), f"{' '.join(map(str, values))}\n{steps}", str(total)
    values = items(rng, 3, 5, 2)
    values[-1] += -sum(values) % len(values)
    steps, total = running_sum(values)
    work, q, _ = divide(total, len(values))
    count = " ".join(f"{i + 1}:{v}" for i, v in enumerate(values))
    return form, dict(s=joined(rng, values)), f"{count}\n{steps}\n{work}\n{q}", str(q)


@kind("medians", 1.5, train=[
    "What is the median of {s}?", "Find the median of {s}.", "Median of {s}?", "Compute the median of {s}.", "Calculate the median of {s}.", "What is the median of the numbers {s}?",
    "Find the median: {s}", "Which number is the median of {s}?"],
    held=["Give me the median of {s}.", "Work out the median of the list {s}.", "What is the middle number of {s} in order?"])
def medians(rng):
    """Three, five or seven numbers of up to 2 digits."""
    values = [number(rng, 2) for _ in range(rng.choice([3, 5, 5, 7]))]
    steps, order = selection(values)
    middle = order[len(order) // 2]
    return "", dict(s=joined(rng, values)), f"{steps}\n" + " ".join(f"{i + 1}:{v}" for i, v in enumerate(order)) + f"; middle of {len(order)} is {len(order) // 2 + 1}: {middle}", str(middle)


@kind("list_counts", 1.5, forms={
    "above": (["How many of {s} are larger than {t}?", "How many numbers in {s} are greater than {t}?", "Count the numbers in {s} that are larger than {t}.", "How many of the numbers {s} are more than {t}?",
               "In {s}, how many are larger than {t}?", "How many of {s} are above {t}?", "Count how many of {s} are greater than {t}.", "How many numbers are larger than {t}: {s}?"],
              ["In the list {s}, how many numbers are greater than {t}?", "Tell me how many of {s} are larger than {t}.", "How many are above {t} in {s}?"]),
    "even": (["How many of {s} are even?", "How many even numbers are in {s}?", "Count the even numbers in {s}.", "How many of the numbers {s} are even?", "In {s}, how many are even?", "How many even numbers: {s}?",
              "Count how many of {s} are even.", "What is the number of even numbers in {s}?"], ["In the list {s}, how many numbers are even?", "Tell me how many of {s} are even.", "How many even numbers do you see in {s}?"]),
    "odd": (["How many of {s} are odd?", "How many odd numbers are in {s}?", "Count the odd numbers in {s}.", "How many of the numbers {s} are odd?", "In {s}, how many are odd?", "How many odd numbers: {s}?",
             "Count how many of {s} are odd.", "What is the number of odd numbers in {s}?"], ["In the list {s}, how many numbers are odd?", "Tell me how many of {s} are odd.", "How many odd numbers do you see in {s}?"])})
def list_counts(rng):
    """Three to seven numbers of up to 2 digits."""
    form = rng.choice(["above", "even", "odd"])
    values, limit = items(rng, 3, 7, 2), rng.randint(5, 80)
    count, out = 0, []
    for v in values:
        if form == "above":
            hit, sign = v > limit, ">" if v > limit else "<" if v < limit else "="
            word = f"{sign}{limit}"
        else:
            hit, word = (v % 2 == 0) == (form == "even"), " even" if v % 2 == 0 else " odd"
        count += hit
        out.append(f"{v}{word} {count}")
    return form, dict(s=joined(rng, values), t=limit), f"{form}: " + "; ".join(out), str(count)
