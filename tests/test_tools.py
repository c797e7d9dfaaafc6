"""The calculator against exact fractions and Python's own arithmetic, and against what a model
could try (trap 12)."""

import ast
import operator
import random
import sys
import threading
from fractions import Fraction

import pytest

from tools import MAX_LENGTH, MAX_NESTING, calculate

OPERATORS = {
    '+': operator.add,
    '-': operator.sub,
    '*': operator.mul,
    '/': operator.truediv,
    '//': operator.floordiv,
    '%': operator.mod,
}


def expression(rng, depth, operators, number):
    """(text, value) of a random expression, its value computed along with it and None after a
    division by zero."""
    if depth == 0 or rng.random() < 0.2:
        return number(rng)
    left, a = expression(rng, depth - 1, operators, number)
    right, b = expression(rng, depth - 1, operators, number)
    sign = rng.choice(operators)
    space = rng.choice(['', ' '])
    text = f'({left}{space}{sign}{space}{right})'
    try:
        value = None if a is None or b is None else OPERATORS[sign](a, b)
    except ZeroDivisionError:
        value = None
    if rng.random() < 0.2:
        text, value = f'-{text}', value if value is None else -value
    return text, value


def whole(rng):
    number = rng.choice([rng.randrange(10), rng.randrange(1000), rng.randrange(10**6)])
    return f'{number:,}' if rng.random() < 0.5 else str(number), number


def fraction(rng):
    number, point = rng.randrange(1000), rng.choice([0, 1, 2])
    return f'{Fraction(number, 10**point).__float__():.{point}f}', Fraction(number, 10**point)


def test_whole_numbers_are_exact():
    rng, seen = random.Random(0), 0
    for _ in range(500):
        text, value = expression(rng, 3, ['+', '-', '*', '//', '%'], whole)
        if len(text) > MAX_LENGTH or value is not None and abs(value) > 10**15:
            continue
        seen += 1
        if value is None:
            with pytest.raises(ValueError, match='^division by zero$'):
                calculate(text)
        else:
            assert calculate(text) == str(value), text
    assert seen > 300


def test_fractions_come_within_ten_digits():
    rng, seen = random.Random(1), 0
    for _ in range(500):
        text, value = expression(rng, 2, ['+', '*', '/', '-'], fraction)
        if value is None or len(text) > MAX_LENGTH:
            continue
        seen += 1
        result = calculate(text)
        # cancellation may cost a few of a double's sixteen digits, absolutely seen
        assert abs(Fraction(result) - value) <= abs(value) * Fraction(1, 10**9) + Fraction(
            1, 10**9
        ), text
        assert 'e' not in result and not result.endswith('.0')
        assert (
            len(result.replace('-', '').replace('.', '').lstrip('0')) <= 10
            or Fraction(result).denominator == 1
        )
    assert seen > 300


def test_precedence_is_pythons():
    rng = random.Random(2)
    for _ in range(300):
        text = str(rng.randrange(1, 9))
        for _ in range(rng.randrange(1, 6)):
            text += rng.choice(['+', '-', '*', '//', '%', ' - -']) + str(rng.randrange(1, 9))
        assert calculate(text) == str(int(python(text))), text


def python(text):
    """Python's own value of a text that this file has written."""
    return eval(compile(ast.parse(text, mode='eval'), 'test', 'eval'), {})


@pytest.mark.parametrize(
    'text, result',
    [
        ('12*7', '84'),
        ('1,000', '1000'),
        ('1,234,567 + 1', '1234568'),
        ('0.1+0.2', '0.3'),
        ('7/2*2', '7'),
        ('1/3', '0.3333333333'),
        ('-1/3', '-0.3333333333'),
        ('2/3', '0.6666666667'),
        ('100.0', '100'),
        ('.5', '0.5'),
        ('5.', '5'),
        ('-0.0', '0'),
        ('2**10', '1024'),
        ('-2**2', '-4'),
        ('2**-1', '0.5'),
        ('2**3**2', '512'),
        ('2**0.5', '1.414213562'),
        ('1**' + '9' * 29, '1'),
        ('0.5**' + '9' * 29, '0'),
        ('-7//2', '-4'),
        ('-7%3', '2'),
        ('1.5//0.4', '3'),
        ('1e6', '1000000'),
        ('1e20/3', '33333333330000000000'),
        ('1e-9', '0.000000001'),
        ('1/10**29/10**29', '1e-58'),
        ('9007199254740991/1', '9007199254740991'),
        ('  1 + 1\n', '2'),
        ('--5', '5'),
        ('(' * MAX_NESTING + '1' + ')' * MAX_NESTING, '1'),
        ('-' * (MAX_LENGTH - 1) + '1', '-1'),
        ('+'.join('1' * (MAX_LENGTH // 2)), '100'),
    ],
)
def test_a_result(text, result):
    assert calculate(text) == result


ATTACKS = [
    ('', 'no arithmetic'),
    ('   ', 'no arithmetic'),
    ("'a'.ljust(10**9)", 'numbers'),
    ("'a'.ljust(10**9).count(' ')", 'numbers'),
    ("'a'*10**9", 'numbers'),
    ("__import__('os')", 'numbers'),
    ('().__class__', 'numbers'),
    ('1 .real', 'numbers'),
    ('1.e3.real', 'numbers'),
    ('e', 'numbers'),
    ('E.e', 'numbers'),
    ('e(1)', 'numbers'),
    ('print(1)', 'numbers'),
    ('[1]*9', 'numbers'),
    ('[x for x in 1]', 'numbers'),
    ('True', 'numbers'),
    ('1j', 'numbers'),
    ('0xff', 'numbers'),
    ('1_000', 'numbers'),
    ('1 if 1 else 2', 'numbers'),
    ('1if 1else 2', 'numbers'),
    ('1<2', 'numbers'),
    ('1==1', 'numbers'),
    ('1<<99', 'numbers'),
    ('~1', 'numbers'),
    ('5^2', 'numbers'),
    ('lambda:1', 'numbers'),
    ('(x:=1)', 'numbers'),
    ('1;2', 'numbers'),
    ('x=1', 'numbers'),
    ('1#', 'numbers'),
    ('1\\\n+1', 'numbers'),
    ('1\n+1', 'numbers'),
    ('1\x00+1', 'numbers'),
    ('\x00', 'numbers'),
    ('\ud800', 'numbers'),
    ('١٢+1', 'numbers'),
    ('１+１', 'numbers'),
    ('²', 'numbers'),
    ('*1', 'no arithmetic|numbers'),
    ('1(2)', 'numbers'),
    ('1,2', 'numbers'),
    ('1,0000', 'numbers'),
    ('12,34,567', 'numbers'),
    ('0.5,000', 'numbers'),
    ('()', 'numbers'),
    ('1+', 'no arithmetic'),
    ('3 4', 'no arithmetic'),
    ('007', 'no arithmetic'),
    ('1..2', 'no arithmetic'),
    (')(', 'no arithmetic'),
    ('((1)', 'no arithmetic'),
    ('1e', 'no arithmetic'),
    ('9**9**9', 'too large'),
    ('9**9**9**9**9', 'too large'),
    ('(9**9)**(9**9)', 'too large'),
    ('9.9**99999', 'too large'),
    ('0.5**-99999', 'too large'),
    ('10**30', 'too large'),
    ('1e999', 'too large'),
    ('1e999-1e999', 'too large'),
    ('9' * 100, 'too large'),
    ('*'.join(['99999'] * 30), 'too large'),
    ('(-8)**0.5', 'no real'),
    ('(-1)**.5', 'no real'),
    ('1/0', 'division by zero'),
    ('1//0', 'division by zero'),
    ('1%0', 'division by zero'),
    ('1.0/(2-2)', 'division by zero'),
    ('0**-1', 'division by zero'),
    ('0.0%0.0', 'division by zero'),
    ('(' * 21 + '1' + ')' * 21, 'parentheses deep'),
    ('(' * 100, 'parentheses deep'),
    ('(' * 10**6, 'longer than'),
    ('-' * 10**6 + '1', 'longer than'),
    ('1+' * 10**6 + '1', 'longer than'),
    ('9' * 10**6, 'longer than'),
]


@pytest.mark.parametrize('text, reason', ATTACKS, ids=[f'{text!a:.24}' for text, _ in ATTACKS])
# A program under -W error gets no other exception either. The garbage collector may meanwhile find
# a file that an earlier test left open
@pytest.mark.filterwarnings('error', 'ignore::ResourceWarning')
def test_everything_wrong_is_a_value_error_with_a_short_reason(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        calculate(text)
    assert len(str(caught.value)) < 60 and '\n' not in str(caught.value)
    assert (
        type(caught.value) is ValueError
    )  # no UnicodeError, no JSON error: what the engine catches


def test_noise_gives_a_number_or_a_value_error():
    rng, results = random.Random(3), 0
    for _ in range(20_000):
        text = ''.join(
            rng.choice('0123456789999+-*/%().,e **') for _ in range(rng.randrange(1, 14))
        )
        try:
            result = calculate(text)
        except ValueError:
            continue
        assert abs(float(result)) <= 1e30
        results += 1
    assert results > 500


def test_a_deep_stack_is_a_value_error():
    def deeper(levels):
        return calculate('-' * 150 + '1') if levels == 0 else deeper(levels - 1)

    depth = len(list(iter_frames()))
    outcomes = set()
    for levels in range(
        sys.getrecursionlimit() - depth - 200, sys.getrecursionlimit() - depth - 60, 20
    ):
        try:
            outcomes.add(deeper(levels))
        except ValueError as error:
            outcomes.add(str(error))
    assert 'too large' in outcomes and outcomes <= {'1', 'too large'}


def iter_frames():
    frame = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back


def test_it_works_in_worker_threads():
    answers = {}

    def work(number):
        try:
            answers[number] = calculate(
                f'{number}*{number}' if number % 2 else f'{number}**9**9**9'
            )
        except ValueError as error:
            answers[number] = str(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2, 22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: str(n * n) if n % 2 else 'too large' for n in range(2, 22)}
