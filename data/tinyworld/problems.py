"""
Sums and word problems of one, two and three steps.

A Shape says how a problem is solved, in letters: 'a+b' is one step; 'a*b .-c' are two, of which the
second goes on from the result of the first. The stories are the lines below its heading in
problems.txt. A verb marked ~ is what the first person of a story does, who tells it as "I" one time
in eight ('buys~' is then 'buy'); a verb marked ^ is what others do. One story in seven is told in
the past.
"""

import operator
import random
import re
from functools import cache, partial
from typing import NamedTuple

from data.tinyworld import facts
from data.tinyworld.patterns import sentence, vary
from data.tinyworld.textfiles import one_of, said, voices, with_headings
from data.tinyworld.wordings import Example, answer, ask, one, phrase, voiced
from data.tinyworld.words import NUMBERS, PRONOUNS, fill, plural, weighted
from tools import calculate

# What follows "I" where it is more than the s that goes, and the past
BASE = {'has': 'have', 'does': 'do', 'goes': 'go', 'catches': 'catch', 'is': 'am'}
PAST = {
    'has': 'had', 'buys': 'bought', 'finds': 'found', 'gets': 'got', 'picks': 'picked',
    'wins': 'won', 'makes': 'made', 'loses': 'lost', 'sells': 'sold', 'gives': 'gave',
    'breaks': 'broke', 'throws': 'threw', 'uses': 'used', 'is': 'was', 'puts': 'put',
    'shares': 'shared', 'divides': 'divided', 'costs': 'cost', 'eats': 'ate', 'takes': 'took',
    'holds': 'held',
}  # fmt: skip
PEOPLE = [(person.name, person.gender) for person in facts.PEOPLE]
OTHERS = [(name, gender) for gender, names in facts.STRANGERS.items() for name in names]
BAGS = ('bag', 'box', 'basket', 'jar', 'pack', 'row')


class Shape(NamedTuple):
    """How the stories below a heading of problems.txt are solved."""

    heading: str
    steps: str
    question: str  # a heading of problems.txt
    answer: str  # a heading of answers.txt
    numbers: str = ''  # ranges other than 2-99: 'b:2-9 c:2-9'
    voice: str = ''  # the kind in voices.txt; some have one more, with _me, that "I" tell


ONE_STEP = (
    Shape('add', 'a+b', 'now', 'has_now', '', 'problem_add'),
    Shape('add_together', 'a+b', 'together', 'together'),
    Shape('add_there', 'a+b', 'in_all', 'in_all'),
    Shape('take', 'a-b', 'left', 'has_left', '', 'problem_take'),
    Shape('take_there', 'a-b', 'remain', 'are_left'),
    Shape('more_than', 'a-b', 'how_many_more', 'has_more'),
    Shape('bags', 'a*b', 'in_all', 'in_all', 'a:2-12 b:2-30', 'problem_times'),
    Shape('own_bags', 'a*b', 'now', 'has_now', 'a:2-12 b:2-30'),
    Shape('price', 'a*b', 'coins_paid', 'they_cost', 'a:2-20 b:2-12'),
    Shape('share', 'a/b', 'each', 'each_gets', 'b:2-12', 'problem_share'),
    Shape('fill_bags', 'a/b', 'in_each', 'bag_holds', 'b:2-12'),
    Shape('children_share', 'a/b', 'each', 'each_gets', 'b:2-12', 'problem_share'),
)
TWO_STEP = (
    Shape('gain_give', 'a+b .-c', 'left', 'has_now'),
    Shape('lose_gain', 'a-b .+c', 'now', 'has_now'),
    Shape('gain_get', 'a+b .+c', 'now', 'has_now'),
    Shape('lose_give', 'a-b .-c', 'left', 'has_now'),
    Shape('bags_gain', 'a*b .+c', 'now', 'has_now', 'a:3-12 b:4-25'),
    Shape('bags_lose', 'a*b .-c', 'left', 'has_now', 'a:3-12 b:4-25'),
    Shape('every_day', 'a+b .*c', 'now', 'has_now', 'a:3-30 b:3-30 c:2-9'),
    Shape('times_as_many', 'a*b .+a', 'together', 'together', 'a:6-40 b:2-6'),
    Shape('so_many_more', 'a+b .+a', 'together', 'together', 'a:10-99'),
    Shape('pool_and_share', 'a+b ./c', 'each', 'each_gets', 'c:2-6'),
    Shape('lose_and_share', 'a-b ./c', 'each', 'each_gets', 'a:40-300 c:2-6'),
    Shape('spend', 'a*b d-.', 'coins_left', 'coins_left', 'a:3-12 b:3-20 d:50-400'),
)
THREE_STEP = (
    Shape('bags_gain_give', 'a*b .+c .-d', 'left', 'has_now', 'a:3-12 b:4-25'),
    Shape('gain_lose_give', 'a+b .-c .-d', 'left', 'has_now'),
    Shape('lose_gain_get', 'a-b .+c .+d', 'now', 'has_now'),
    Shape('buy_both', 'a*b c*d 1+2', 'coins_paid', 'pays', 'a:3-12 b:3-20 c:3-12 d:3-20'),
    Shape('every_day_lose', 'a+b .*c .-d', 'left', 'has_now', 'a:3-30 b:3-30 c:2-9'),
    Shape('gain_give_share', 'a+b .-c ./d', 'each', 'each_gets', 'a:40-300 d:2-6'),
    Shape('times_and_more', 'a*b .+a .+c', 'together', 'together', 'a:6-40 b:2-6'),
    Shape('spend_and_get', 'a*b d-. .+c', 'coins_left', 'coins_now', 'a:3-12 b:3-20 d:50-400'),
)


OPERATIONS = {'+': operator.add, '-': operator.sub, '*': operator.mul, '/': operator.floordiv}


def draw_numbers(rng: random.Random, shape: Shape) -> tuple[dict[str, int], list]:
    """Numbers that the steps can be done with, and the steps done, see do_steps."""
    steps = shape.steps.split()
    several = len(steps) > 1

    # 1) Which numbers may be drawn, and how small the result may be
    ranges = {}
    for item in shape.numbers.split():
        letter, span = item.split(':')
        ranges[letter] = tuple(map(int, span.split('-')))
    usual = (2, 99)
    if not several:
        usual = rng.choice(((2, 20), (2, 20), (2, 99), (2, 99), (20, 900)))
    lowest = 20 if several and '/' not in steps[-1] else 1

    # 2) Draw until the steps come out
    letters = sorted(set(re.findall('[a-d]', shape.steps)))
    while True:
        numbers = {letter: rng.randint(*ranges.get(letter, usual)) for letter in letters}
        if steps == ['a/b']:
            numbers['a'] = numbers['b'] * rng.randint(2, 12)
        work = do_steps(steps, numbers)
        if work and lowest <= int(work[-1][1]) <= 999:
            return numbers, work


def do_steps(steps: list[str], numbers: dict[str, int]) -> list[tuple[str, str]] | None:
    """
    The expression and result of each step: [('12+7', '19'), ('19*3', '57')].

    None where one is negative or does not come out even.
    """
    work = []
    known = dict(numbers)  # and '.', the last result, and '1', '2', ..., that of each step
    for place, (left, sign, right) in enumerate(steps, start=1):
        left, right = known[left], known[right]
        if sign == '/' and left % right or sign == '-' and left < right:
            return None
        result = OPERATIONS[sign](left, right)
        known['.'] = known[str(place)] = result
        work.append((f'{left}{sign}{right}', str(result)))
    return work


def conjugate(text: str, first: bool, past: bool) -> str:
    """'Ben buys~' -> 'Ben buys', or 'Ben bought'; 'I buys~' -> 'I buy'; 'Tom gives^' as it is."""

    def bend(match):
        verb, mark = match.groups()
        if past and verb in PAST:
            return PAST[verb]
        if first and mark == '~':
            return BASE.get(verb, verb.removesuffix('s'))
        return verb

    return re.sub(r'(\w+)([~^])', bend, text)


class Problem(NamedTuple):
    """A word problem and how it is solved."""

    question: str
    work: list[tuple[str, str]]  # the steps and their results
    closing: str  # the sentence that says the answer
    wrong: str  # one that says another number
    number: int


def draw_words(rng: random.Random, first: bool) -> dict[str, str]:
    """The words for the holes of a shape's story, question and answer; first: "I" tell it."""
    (name, gender), (friend, _) = rng.sample(PEOPLE if rng.random() < 0.7 else OTHERS, 2)
    known = facts.THINGS + facts.MORE_THINGS * (rng.random() < 0.3)
    (thing, things), (_, others) = rng.sample(known, 2)
    bag = rng.choice(BAGS)
    if first:
        who = {'s': 'I', 's_object': 'me', 'he': 'I', 'him': 'me', 'his': 'my'}
        verbs = {'has': 'have', 'pays': 'pay'}
    else:
        who = {'s': name, 's_object': name, **PRONOUNS[gender]}
        verbs = {'has': 'has', 'pays': 'pays'}
    verbs['eats'] = 'eats' if thing in facts.EATEN else 'loses'
    what = {'thing': thing, 'things': things, 'others': others, 'bag': bag, 'bags': plural(bag)}
    return {**who, **verbs, **what, 't': friend}


@cache
def stories_of(shapes: tuple[Shape, ...]) -> list[tuple[Shape, str]]:
    """Every story of problems.txt that has one of these shapes."""
    return [(shape, story) for shape in shapes for story in said()[shape.heading]]


def word_problem(rng: random.Random, shapes: tuple[Shape, ...]) -> Problem:
    """A problem of one of the shapes, worded by a story of problems.txt or by a voice."""
    # 1) Its shape, its numbers and its words
    shape, story = rng.choice(stories_of(shapes))
    numbers, work = draw_numbers(rng, shape)
    first = rng.random() < 0.12
    words = draw_words(rng, first)

    # 2) The question
    voice = f'{shape.voice}_me' if first and f'{shape.voice}_me' in voices() else shape.voice
    question = voiced(rng, voice, **words, **numbers)
    question = question or worded(rng, shape, story, numbers, words)

    # 3) The sentence that answers
    def closing(number: int) -> str:
        subject = 'You' if first else words['s']
        result = words['thing'] if number == 1 else words['things']
        return answer(shape.answer, **words, S=subject, r=number, result=result)

    number = int(work[-1][1])
    wrong = closing(number + rng.choice((1, 2, 10, numbers['a'])))
    return Problem(question, work, closing(number), wrong, number)


def worded(rng: random.Random, shape: Shape, story: str, numbers: dict, words: dict) -> str:
    """The story and its question in one of many frames."""
    # 1) The frame; a story of one sentence may become a part of the question
    past = rng.random() < 0.15
    story = vary(rng, with_headings(story))
    frame = vary(rng, one_of('problem'))
    if '. ' not in story and rng.random() < 0.3:
        frame = vary(rng, one_of('short_problem'))
        story = re.sub('^(There|Each|One)', lambda match: match[0].lower(), story.rstrip('. '))

    # 2) The words, and the forms of the verbs
    first = words['he'] == 'I'
    question = conjugate(phrase(rng, shape.question, **words), first, past=False)
    story = conjugate(fill(story, **words, **numbers), first, past)
    text = frame.format(story=story, question=question)
    return sentence(re.sub(r'\bhas I\b', 'have I', text))


def parts(work: list[tuple[str, str]], closing: str) -> list[dict]:
    """The calculator called for each step, and the sentence."""
    content = []
    for expression, result in work:
        content.append({'type': 'python', 'text': expression})
        content.append({'type': 'output', 'text': result})
    return [*content, {'type': 'text', 'text': closing}]


def one_step(rng: random.Random) -> Example:
    """One step, always with the calculator; a wrong answer may leave it out."""
    problem = word_problem(rng, ONE_STEP)
    wrong = parts(problem.work, problem.wrong) if rng.random() < 0.5 else problem.wrong
    content = parts(problem.work, problem.closing)
    return one(problem.question, content, 'number', problem.number, wrong)


def in_the_head_or_not(rng: random.Random, shapes: tuple[Shape, ...]) -> Example:
    """Seven people in ten do it in their head, the others take the calculator; both are right."""
    problem = word_problem(rng, shapes)
    content = problem.closing
    wrong = problem.wrong
    if rng.random() >= 0.7:
        content = parts(problem.work, content)
        wrong = parts(problem.work, wrong)
    return one(problem.question, content, 'number', problem.number, wrong)


two_step = partial(in_the_head_or_not, shapes=TWO_STEP)
three_step = partial(in_the_head_or_not, shapes=THREE_STEP)


# -----------------------------------------------------------------------------
# plain sums

SIGNS = {'+': ('plus', 35), '-': ('minus', 30), '*': ('times', 25), '/': ('over', 10)}
NAMED = {  # what a sum is called: its expression, as it is shown
    'half of {a}': ('{a}/2', '{a} / 2'),
    'double {a}': ('{a}*2', '{a} * 2'),
    'twice {a}': ('{a}*2', '{a} * 2'),
    'two times {a}': ('{a}*2', '{a} * 2'),
    '{a} squared': ('{a}*{a}', '{a} * {a}'),
}


def sums(rng: random.Random) -> Example:
    """A sum as people type it, done by the calculator."""
    # 1) Three numbers, or a sum that has a name, now and then
    rare = rng.random()
    if rare < 0.03:
        return long_sum(rng)
    if rare < 0.06:
        return named_sum(rng)

    # 2) The sign and its two numbers, which may be written in words
    sign = weighted(rng, {sign: weight for sign, (_, weight) in SIGNS.items()})
    kind = SIGNS[sign][0]
    a, b = draw_terms(rng, sign)
    words = {'a': str(a), 'b': str(b)}
    if max(a, b) <= 12 and rng.random() < 0.08:
        words = {'a': NUMBERS[a], 'b': NUMBERS[b]}

    # 3) The sum alone, or a question; voices want a whole number that is not negative
    if rng.random() < 0.35:
        frame = vary(rng, one_of('bare_sum'))
        question = sentence(frame.format(sum=phrase(rng, f'{kind}_sum', **words)))
        if rng.random() < 0.5:
            question = re.sub(r' ([-+*/x×÷]) ', r'\1', question)
    else:
        plain = {'-': a >= b, '/': a % (b or 1) == 0}.get(sign, True)
        question = ask(rng, kind, kind if plain else '', **words)
    return calculated(rng, question, f'{a}{sign}{b}', f'{a} {sign} {b}')


def draw_terms(rng: random.Random, sign: str) -> tuple[int, int]:
    """Two numbers, small ones as often as large ones; most divisions come out even."""
    top = rng.choices((12, 20, 99, 999), (20, 20, 45, 15))[0]
    a, b = rng.randint(0, top), rng.randint(0, top)
    if sign == '*':
        a = rng.randint(2, min(top, 99))
        b = rng.randint(2, 12 if rng.random() < 0.6 else 50)
        return (a, b) if rng.random() < 0.5 else (b, a)
    if sign == '/':
        b = rng.randint(2, 12)
        if rng.random() < 0.97:
            return b * rng.randint(1, 30), b
        return rng.randint(1, 30), rng.choice((2, 4, 5, 10))
    if sign == '-' and a < b and rng.random() < 0.85:
        return b, a
    return a, b


def named_sum(rng: random.Random) -> Example:
    """Half of 18; 7 squared."""
    name = rng.choice(list(NAMED))
    expression, shown = NAMED[name]
    a = 2 * rng.randint(1, 50) if name.startswith('half') else rng.randint(2, 30)
    question = ask(rng, 'named_sum', name=name.format(a=a))
    return calculated(rng, question, expression.format(a=a), shown.format(a=a))


def long_sum(rng: random.Random) -> Example:
    """Three numbers, brackets now and then."""
    a, b, c = (rng.randint(1, 20 if rng.random() < 0.6 else 99) for _ in range(3))
    first, second = rng.choice(('++', '+-', '*+', '+*', '--', '*-'))
    shown = f'{a} {first} {b} {second} {c}'
    if first == '+' and rng.random() < 0.25:
        shown = f'({a} {first} {b}) {second} {c}'
    typed = shown.replace(' ', '') if rng.random() < 0.4 else shown
    question = sentence(phrase(rng, 'bare_sum', sum=typed))
    if rng.random() < 0.6:
        question = ask(rng, 'long_sum', sum=typed)
    return calculated(rng, question, shown.replace(' ', ''), shown)


def calculated(rng: random.Random, question: str, expression: str, shown: str) -> Example:
    """The sum with the calculator's result; a wrong answer is near it."""
    result = calculate(expression)
    wrong = f'{shown} = {float(result) + rng.choice((-10, -2, -1, 1, 2, 10)):g}.'
    content = parts([(expression, result)], f'{shown} = {result}.')
    return one(question, content, 'number', result, wrong)
