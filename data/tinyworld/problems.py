"""
Sums and word problems of one, two and three steps.

A shape is a line: the story, the questions, the sentence that answers, and the steps of the working in letters: 'a+b'
is one step; 'a*b', '.-c' are two, of which the second goes on from the result of the first. In a story, a verb with ~
behind it is what the first person does, who tells it as "I" one time in six ('buys~' is then 'buy'), one with ^ what
others do; one story in four is told in the past.
"""

import random
import re
from typing import NamedTuple

from data.tinyworld import facts
from data.tinyworld.wordings import Example, ask, one, sentence, vary, voiced
from tools import calculate

BASE = {'has': 'have', 'does': 'do', 'goes': 'go', 'catches': 'catch', 'is': 'am'}  # where it is not the s alone
PAST = {
    'has': 'had', 'buys': 'bought', 'finds': 'found', 'gets': 'got', 'picks': 'picked', 'wins': 'won',
    'makes': 'made',
    'loses': 'lost', 'sells': 'sold', 'gives': 'gave', 'breaks': 'broke', 'throws': 'threw', 'uses': 'used',
    'is': 'was',
    'puts': 'put', 'shares': 'shared', 'divides': 'divided', 'costs': 'cost', 'eats': 'ate', 'takes': 'took',
    'holds': 'held',
}  # fmt: skip
EATEN = 'apple pear plum egg cake nut cookie orange banana sweet candy cherry chocolate pizza tomato lemon'.split()
PEOPLE = [(person.name, person.gender) for person in facts.PEOPLE]
OTHERS = [(name, gender) for gender, names in facts.STRANGERS.items() for name in names]
BAGS = {'bag': 'bags', 'box': 'boxes', 'basket': 'baskets', 'jar': 'jars', 'pack': 'packs', 'row': 'rows'}


class Shape(NamedTuple):
    story: str
    question: str
    answer: str
    steps: str
    numbers: str = ''  # ranges other than 2-99: 'b:2-9 c:2-9'
    voice: tuple[str, str] = ('', '')  # the kind in voices.txt, and that in which "I" tell it


VERBS = {
    'BUYS': '[buys~|finds~|gets~|picks~ up|is~ given|wins~|makes~]',
    'LOSES': '[loses~|sells~|gives~ away|breaks~|throws~ away|uses~|{eats}~]',
}
LEFT = 'how many {things} [does~ {he} have left|are left|has {s} left|does~ {s} have now|remain]'
NOW = (
    'how many {things} [does~ {he} have [now|in all|altogether|in total|]|has {he} [now|]|are there now'
    '|does~ {s} have [now|in all|]]'
)
ALL = 'how many {things} [are there [in all|altogether|in total]|is that [in all|altogether|]|are that in all]'
TOGETHER = (
    'how many {things} [have they together|do they have [together|in all|altogether]|are there [in all|together]'
    '|is that together]'
)
COINS = 'how many coins [does~ {he} have [left|now]|has {s} [left|now]|does~ {s} have [left|now]]'
PRICE = 'how many coins [does~ {he} pay|is that|does~ {he} need] [in all|altogether|]'
EACH = 'how many [{things}|] does each [child|one|] get'
HAS, HAS_LEFT = '{S} {has} {r} {result} now.', '{S} {has} {r} {result} left.'
THERE, BOTH = 'There are {r} {result} in all.', 'They have {r} {result} together.'
EACH_GETS = 'Each one gets {r} {result}.'
GAIN, LOSS = ('problem_add', 'problem_add_me'), ('problem_take', 'problem_take_me')
TIMES, SHARE = ('problem_times',) * 2, ('problem_share',) * 2

ONE_STEP = [
    Shape('{S} has~ {a} {things} and BUYS {b} more.', NOW, HAS, 'a+b', voice=GAIN),
    Shape('{S} has~ {a} {things}. {He} BUYS {b} [more|{things}].', NOW, HAS, 'a+b', voice=GAIN),
    Shape('{S} has~ {a} {things}. {T} gives^ {him} {b} [more|{things}|].', NOW, HAS, 'a+b', voice=GAIN),
    Shape('{S} has~ {a} {things} and {t} has^ {b} [{things}|].', TOGETHER, BOTH, 'a+b'),
    Shape('There are {a} {things} [in a box|on the table|in a basket]. {S} puts~ {b} more there.', ALL, THERE, 'a+b'),
    Shape('{S} has~ {a} {things} and LOSES {b} [of them|].', LEFT, HAS_LEFT, 'a-b', voice=LOSS),
    Shape('{S} has~ {a} {things}. {He} LOSES {b} [of them|{things}|].', LEFT, HAS_LEFT, 'a-b', voice=LOSS),
    Shape('{S} has~ {a} {things} and gives~ {b} [{things}|of them|] to {t}.', LEFT, HAS_LEFT, 'a-b', voice=LOSS),
    Shape('{S} has~ {a} {things}. {T} takes^ {b} [of them|].', LEFT, HAS_LEFT, 'a-b', voice=LOSS),
    Shape('There are {a} {things} [in a box|on the table]. {S} takes~ {b} [of them|].',
          'how many {things} [are left|remain]', 'There are {r} {result} left.', 'a-b'),
    Shape('{S} has~ {a} {things} and {t} has^ {b}.', 'how many more {things} [does~ {s} have|has {s}] than {t}',
          '{S} {has} {r} {result} more.', 'a-b'),
    Shape('There are {a} {bags} [with|of] {b} {things} [each|in each].', ALL, THERE, 'a*b', 'a:2-12 b:2-30',
          voice=TIMES),
    Shape('Each of {a} {bags} [holds^|has^] {b} {things}.', ALL, THERE, 'a*b', 'a:2-12 b:2-30', voice=TIMES),
    Shape('{S} has~ {a} {bags}. [Each {bag} holds^ {b} {things}|There are {b} {things} in each {bag}].', NOW, HAS,
          'a*b', 'a:2-12 b:2-30'),
    Shape('{S} [buys~|gets~] {b} {things} [every|each] day for {a} days.', NOW, HAS, 'a*b', 'a:2-12 b:2-30'),
    Shape('One {thing} costs^ {a} coins. {S} buys~ {b} {things}.', PRICE, 'They cost {r} coins.', 'a*b',
          'a:2-20 b:2-12'),
    Shape('{S} [shares~|divides~] {a} {things} [equally|fairly|evenly|] among {b} [children|friends|people].', EACH,
          EACH_GETS, 'a/b', 'b:2-12', voice=SHARE),
    Shape('{S} puts~ {a} {things} into {b} {bags}, the same number in each.',
          'how many {things} [are|go] in each {bag}', 'Each {bag} holds {r} {result}.', 'a/b', 'b:2-12'),
    Shape('{b} children share {a} {things}.', EACH, EACH_GETS, 'a/b', 'b:2-12', voice=SHARE),
]  # fmt: skip

TWO_STEP = [
    Shape('{S} has~ {a} {things}. {He} BUYS {b} more and gives~ {c} to {t}.', LEFT, HAS, 'a+b .-c'),
    Shape('{S} has~ {a} {things}. {He} LOSES {b} and then BUYS {c} more.', NOW, HAS, 'a-b .+c'),
    Shape('{S} has~ {a} {things} and BUYS {b} more. Then {t} gives^ {him} {c}.', NOW, HAS, 'a+b .+c'),
    Shape('{S} has~ {a} {things}. {He} LOSES {b} and gives~ {c} to {t}.', LEFT, HAS, 'a-b .-c'),
    Shape('{S} has~ {a} {bags} with {b} {things} in each. {He} BUYS {c} more {things}.', NOW, HAS, 'a*b .+c',
    'a:3-12 b:4-25'),
    Shape('{S} has~ {a} {bags} with {b} {things} in each. {He} LOSES {c} {things}.', LEFT, HAS, 'a*b .-c',
    'a:3-12 b:4-25'),
    Shape('{S} gets~ {a} {things} in the morning and {b} in the evening, every day for {c} days.', NOW, HAS,
    'a+b .*c',
          'a:3-30 b:3-30 c:2-9'),
    Shape('{S} has~ {a} {things}. {T} has^ {b} times as many.', TOGETHER, BOTH, 'a*b .+a', 'a:6-40 b:2-6'),
    Shape('{S} has~ {a} {things}. {T} has^ {b} more than {s_object}.', TOGETHER, BOTH, 'a+b .+a', 'a:10-99'),
    Shape('{S} has~ {a} {things} and {t} has^ {b}. They share them equally with {c} children, and keep none.', EACH,
          EACH_GETS, 'a+b ./c', 'c:2-6'),
    Shape('{S} has~ {a} {things}. {He} LOSES {b} and shares~ the rest among {c} children.', EACH, EACH_GETS,
    'a-b ./c',
          'a:40-300 c:2-6'),
    Shape('{S} has~ {d} coins. {He} buys~ {a} {things} for {b} coins each.', COINS, '{S} {has} {r} coins left.',
    'a*b d-.',
          'a:3-12 b:3-20 d:50-400'),
]  # fmt: skip

THREE_STEP = [
    Shape('{S} has~ {a} {bags} with {b} {things} in each. {He} BUYS {c} more and gives~ {d} to {t}.', LEFT, HAS,
          'a*b .+c .-d', 'a:3-12 b:4-25'),
    Shape('{S} has~ {a} {things} and BUYS {b} more. Then {he} LOSES {c} and gives~ {d} to {t}.', LEFT, HAS,
    'a+b .-c .-d'),
    Shape('{S} has~ {a} {things}. {He} LOSES {b}, BUYS {c} and gets~ {d} from {t}.', NOW, HAS, 'a-b .+c .+d'),
    Shape('{S} buys~ {a} {things} for {b} coins each and {c} {others} for {d} coins each.', PRICE,
    '{S} {pays} {r} coins in all.',
          'a*b c*d 1+2', 'a:3-12 b:3-20 c:3-12 d:3-20'),
    Shape('{S} gets~ {a} {things} in the morning and {b} in the evening, every day for {c} days. Then {he} LOSES {d}.',
          LEFT, HAS, 'a+b .*c .-d', 'a:3-30 b:3-30 c:2-9'),
    Shape('{S} has~ {a} {things}. {He} BUYS {b} more, gives~ {c} to {t} and shares~ the rest among {d} children.',
    EACH,
          EACH_GETS, 'a+b .-c ./d', 'a:40-300 d:2-6'),
    Shape('{S} has~ {a} {things}. {T} has^ {b} times as many. Together they [find|buy|get] {c} more.', TOGETHER, BOTH,
          'a*b .+a .+c', 'a:6-40 b:2-6'),
    Shape('{S} has~ {d} coins. {He} buys~ {a} {things} for {b} coins each. Then {t} gives^ {him} {c} coins.', COINS,
          '{S} {has} {r} coins now.', 'a*b d-. .+c', 'a:3-12 b:3-20 d:50-400'),
]  # fmt: skip


def draw_numbers(rng: random.Random, shape: Shape) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Numbers that the steps can be done with, and the steps done: [('12+7', '19'), ('19*3', '57')]."""
    steps = shape.steps.split()
    spans = (item.split(':') for item in shape.numbers.split())
    ranges = {name: tuple(map(int, span.split('-'))) for name, span in spans}
    usual = (2, 99) if len(steps) > 1 else rng.choice(((2, 20), (2, 20), (2, 99), (2, 99), (20, 900)))
    lowest = 20 if len(steps) > 1 and '/' not in steps[-1] else 1
    while True:
        letters = sorted(set(re.findall('[a-d]', shape.steps)))
        numbers = {letter: rng.randint(*ranges.get(letter, usual)) for letter in letters}
        if steps == ['a/b']:
            numbers['a'] = numbers['b'] * rng.randint(2, 12)
        work = do_steps(steps, numbers)
        if work and lowest <= int(work[-1][1]) <= 999:
            return numbers, work


def do_steps(steps: list[str], numbers: dict[str, int]) -> list[tuple[str, str]] | None:
    """The expression and result of each step; None where one is negative or does not come out even."""
    work, results = [], []
    for step in steps:
        known = {**numbers, '.': results[-1] if results else 0, **{str(i): r for i, r in enumerate(results, start=1)}}
        left, sign, right = known[step[0]], step[1], known[step[2]]
        if sign == '/' and left % right or sign == '-' and left < right:
            return None
        results.append({'+': left + right, '-': left - right, '*': left * right, '/': left // right}[sign])
        work.append((f'{left}{sign}{right}', str(results[-1])))
    return work


def conjugate(text: str, first: bool, past: bool) -> str:
    """'Ben buys~' is 'Ben buys', or 'bought' in the past; 'I buys~' is 'I buy'. 'Tom gives^' is never 'give'."""

    def bend(match):
        verb, mark = match[1], match[2]
        if past and verb in PAST:
            return PAST[verb]
        return BASE.get(verb, verb.removesuffix('s')) if first and mark == '~' else verb

    return re.sub(r'(\w+)([~^])', bend, text)


ASKED = [  # the story and its question
    '{story} {question}?', '{story} {question}?', '{story} {question}?', '{story} {question}?', '{story} {question}?',
    '{story} so {question}?', '{story} [tell me|now] {question}?',
    '{story} [can you tell me|do you know] {question}?',
    '[help me|a problem|please help]: {story} {question}?', '{story} {question}, please?',
    '[hi|hey|pip], {story} {question}?',
]  # fmt: skip
SHORT = [
    'if {story}, {question}?',
    '{story}, {question}?',
    'if {story} then {question}?',
]  # for a story of one sentence


class Problem(NamedTuple):
    question: str
    work: list[tuple[str, str]]  # the steps and their results
    closing: str  # the sentence that says the answer
    wrong: str  # one that says another number
    number: int


def draw_words(rng: random.Random, first: bool) -> dict[str, str]:
    """What stands in the holes of a shape's story, question and answer; first: "I" tell it."""
    (name, gender), (friend, _) = rng.sample(PEOPLE if rng.random() < 0.7 else OTHERS, 2)
    (thing, things), (_, others) = rng.sample(facts.THINGS + facts.MORE_THINGS * (rng.random() < 0.3), 2)
    bag = rng.choice(list(BAGS))
    he, him, his = ('I', 'me', 'my') if first else ('she', 'her', 'her') if gender == 'f' else ('he', 'him', 'his')
    subject, has, pays = ('I', 'have', 'pay') if first else (name, 'has', 'pays')
    return {
        'S': subject, 's': subject, 's_object': him if first else name,
        'he': he, 'He': he.capitalize(), 'him': him, 'his': his, 'T': friend, 't': friend,
        'thing': thing, 'things': things, 'others': others, 'bag': bag, 'bags': BAGS[bag],
        'eats': 'eats' if thing in EATEN else 'loses', 'has': has, 'pays': pays,
    }  # fmt: skip


def word_problem(rng: random.Random, shapes: list[Shape]) -> Problem:
    shape = rng.choice(shapes)
    numbers, work = draw_numbers(rng, shape)
    first = rng.random() < 0.12
    words = draw_words(rng, first)
    question = voiced(rng, shape.voice[first], **words, **numbers) or worded(rng, shape, numbers, words)

    def closing(number):
        result = words['thing'] if number == 1 else words['things']
        return shape.answer.format(**words | {'S': 'You' if first else words['S']}, r=number, result=result)

    number = int(work[-1][1])
    wrong = closing(number + rng.choice((1, 2, 10, numbers['a'])))
    return Problem(question, work, closing(number), wrong, number)


def worded(rng: random.Random, shape: Shape, numbers: dict[str, int], words: dict[str, str]) -> str:
    """The shape's story and its question in one of many frames."""
    first, past = words['he'] == 'I', rng.random() < 0.15
    story = vary(rng, re.sub('BUYS|LOSES', lambda match: VERBS[match[0]], shape.story))
    frame = vary(rng, rng.choice(ASKED))
    if '. ' not in story and rng.random() < 0.3:
        frame = vary(rng, rng.choice(SHORT))
        story = re.sub('^(There|Each|One)', lambda match: match[0].lower(), story.rstrip('. '))
    asked = vary(rng, f'[{shape.question}]')
    story = conjugate(story.format(**words, **numbers), first, past)
    asked = conjugate(asked.format(**words), first, past=False)
    return sentence(re.sub(r'\bhas I\b', 'have I', frame.format(story=story, question=asked)))


def parts(work: list[tuple[str, str]], closing: str) -> list[dict]:
    """The calculator called for each step, and the sentence."""
    calls = [{'type': kind, 'text': text} for step in work for kind, text in zip(('python', 'output'), step)]
    return [*calls, {'type': 'text', 'text': closing}]


def one_step(rng: random.Random) -> Example:
    problem = word_problem(rng, ONE_STEP)
    wrong = parts(problem.work, problem.wrong) if rng.random() < 0.5 else problem.wrong
    return one(problem.question, parts(problem.work, problem.closing), 'number', problem.number, wrong)


def in_the_head_or_not(rng: random.Random, shapes: list[Shape]) -> Example:
    """Seven people in ten do it in their head, and the others take the calculator; both are right here."""
    problem = word_problem(rng, shapes)
    say = (lambda closing: closing) if rng.random() < 0.7 else (lambda closing: parts(problem.work, closing))
    return one(problem.question, say(problem.closing), 'number', problem.number, say(problem.wrong))


def two_step(rng: random.Random) -> Example:
    return in_the_head_or_not(rng, TWO_STEP)


def three_step(rng: random.Random) -> Example:
    return in_the_head_or_not(rng, THREE_STEP)


# -----------------------------------------------------------------------------
# plain sums

SIGNS = {  # between the numbers; as a noun; as a command
    '+': ('{a} [+|+|+|plus|plus|and|added to] {b}', 'the sum of {a} and {b}|the total of {a} and {b}',
          'add {a} and {b}|add {b} to {a}|add up {a} and {b}'),
    '-': ('{a} [-|-|-|minus|minus|take away|less] {b}', 'the difference of {a} and {b}',
          'subtract {b} from {a}|take {b} [away|] from {a}'),
    '*': ('{a} [*|*|x|×|times|times|multiplied by] {b}', 'the product of {a} and {b}',
    'multiply {a} [by|and|with] {b}'),
    '/': ('{a} [/|/|÷|divided by|divided by|over] {b}', '{a} divided by {b}', 'divide {a} by {b}'),
}  # fmt: skip
BARE = [
    '{sum}', '{sum}', '{sum}?', '{sum} =', '{sum}=?', '{sum} = ?', '{sum}=', '{sum} is', '{sum} equals?',
    '{sum} makes?',
    'pip, {sum}?', '{sum} please', 'hey, {sum}?', '{sum} is how much?',
]  # fmt: skip
SPOKEN = 'zero one two three four five six seven eight nine ten eleven twelve'.split()
BY_NAME = {'half of {a}': ('{a}/2', '{a} / 2'), 'double {a}': ('{a}*2', '{a} * 2'), 'twice {a}': ('{a}*2', '{a} * 2'),
           'two times {a}': ('{a}*2', '{a} * 2'), '{a} squared': ('{a}*{a}', '{a} * {a}')}  # fmt: skip


def sums(rng: random.Random) -> Example:
    """A sum as people type it, done by the calculator."""
    kind = rng.random()
    if kind < 0.03:
        return long_sum(rng)
    if kind < 0.06:
        name, (expression, shown) = rng.choice(list(BY_NAME.items()))
        a = 2 * rng.randint(1, 50) if name.startswith('half') else rng.randint(2, 30)
        question = ask(rng, "what is {name}|what's {name}|how much is {name}", 'what {name} is', name=name.format(a=a))
        return calculated(rng, question, expression.format(a=a), shown.format(a=a))
    sign = rng.choices('+-*/', (35, 30, 25, 10))[0]
    a, b = draw_terms(rng, sign)
    direct, noun, command = SIGNS[sign]
    voice = {'+': 'plus', '-': 'minus' * (a >= b), '*': 'times', '/': 'over' * (a % (b or 1) == 0)}[sign]
    said = [str(number) for number in (a, b)]
    if max(a, b) <= 12 and rng.random() < 0.08:
        said = [SPOKEN[number] for number in (a, b)]
    if rng.random() < 0.35:
        question = sentence(vary(rng, rng.choice(BARE).replace('{sum}', direct)).format(a=said[0], b=said[1]))
        question = re.sub(r' ([-+*/x×÷]) ', r'\1', question) if rng.random() < 0.5 else question
    else:
        question = ask(
            rng,
            f"[what is|what's|how much is] {direct}|what does {direct} [make|equal]"
            f"|[what is|what's|how much is] [{noun}]",
            f'what {direct} is|how much {direct} is|the result of {direct}|what [{noun}] is',
            f'{command}|[calculate|work out|compute] {direct}|{command}',
            voice=voice,
            a=said[0],
            b=said[1],
        )
    return calculated(rng, question, f'{a}{sign}{b}', f'{a} {sign} {b}')


def draw_terms(rng: random.Random, sign: str) -> tuple[int, int]:
    """Two numbers, small ones as often as large ones; divisions come out even but one time in eight."""
    top = rng.choices((12, 20, 99, 999), (20, 20, 45, 15))[0]
    a, b = rng.randint(0, top), rng.randint(0, top)
    if sign == '*':
        a, b = rng.randint(2, min(top, 99)), rng.randint(2, 12 if rng.random() < 0.6 else 50)
        return (a, b) if rng.random() < 0.5 else (b, a)
    if sign == '/':
        b = rng.randint(2, 12)
        return (b * rng.randint(1, 30), b) if rng.random() < 0.97 else (rng.randint(1, 30), rng.choice((2, 4, 5, 10)))
    return (b, a) if sign == '-' and a < b and rng.random() < 0.85 else (a, b)


def long_sum(rng: random.Random) -> Example:
    """Three numbers, brackets now and then."""
    a, b, c = (rng.randint(1, 20 if rng.random() < 0.6 else 99) for _ in range(3))
    first, second = rng.choice(('++', '+-', '*+', '+*', '--', '*-'))
    pattern = '({a} {x} {b}) {y} {c}' if first == '+' and rng.random() < 0.25 else '{a} {x} {b} {y} {c}'
    shown = pattern.format(a=a, b=b, c=c, x=first, y=second)
    typed = shown.replace(' ', '') if rng.random() < 0.4 else shown
    question = sentence(rng.choice(BARE).replace('{sum}', typed))
    if rng.random() < 0.6:
        question = ask(
            rng, "[what is|what's|how much is] {sum}", 'what {sum} is', 'calculate {sum}|compute {sum}', sum=typed
        )
    return calculated(rng, question, shown.replace(' ', ''), shown)


def calculated(rng: random.Random, question: str, expression: str, shown: str) -> Example:
    result = calculate(expression)
    wrong = f'{shown} = {float(result) + rng.choice((-10, -2, -1, 1, 2, 10)):g}.'
    return one(question, parts([(expression, result)], f'{shown} = {result}.'), 'number', result, wrong)
