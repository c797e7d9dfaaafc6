"""
Tools the assistant may call: a calculator.

    >>> calculate('(1,250 - 50) * 3 / 4')
    '900'

A model wrote the expression, and users can talk a model into writing anything. So it must never be
passed to eval(), which reaches all of Python through attributes, whatever names are removed, and
which `9**9**9` alone keeps busy forever. The text is only parsed, and value() does arithmetic on
the nodes it knows: numbers, + - * / // % **, signs, parentheses. Caps on length, nesting and the
size of every value keep it fast. It uses no signals, so it works in any thread.

Left out on purpose: running whole programs, for which see sandbox.py.
"""

import ast
import math
import operator
import re
from decimal import Decimal

MAX_LENGTH = 200  # characters of an expression
MAX_NESTING = 20  # parentheses within parentheses
MAX_VALUE = 10**30  # every intermediate value stays below; far above what word problems need
SIGNIFICANT = 10  # digits of a result with a fraction: hides 0.1 + 0.2 = 0.30000000000000004
ALLOWED = re.compile(r'[0-9eE.,+\-*/%() \t]*')  # e for 1e6
THOUSANDS = re.compile(r'(?<![0-9.,eE])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])')  # 1,000; 12,345,678

BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def calculate(expression: str) -> str:
    """
    The value of an arithmetic expression: whole numbers without '.0', others with at most 10
    significant digits. ValueError with a short reason for everything else; it raises nothing else,
    whatever the text.
    """
    # 1) Length, characters, nesting
    if len(expression) > MAX_LENGTH:
        raise ValueError(f'longer than {MAX_LENGTH} characters')
    text = expression.strip()
    if not ALLOWED.fullmatch(text):
        raise ValueError('numbers, + - * / // % ** and parentheses only')
    depth = 0
    for character in text:
        depth += {'(': 1, ')': -1}.get(character, 0)
        if depth > MAX_NESTING:
            raise ValueError(f'more than {MAX_NESTING} parentheses deep')

    # 2) Parse and compute
    text = THOUSANDS.sub(lambda number: number.group().replace(',', ''), text)
    try:
        return spell(value(ast.parse(text, mode='eval').body))
    except SyntaxError:
        raise ValueError('no arithmetic expression') from None
    except ZeroDivisionError:
        raise ValueError('division by zero') from None
    except (OverflowError, MemoryError, RecursionError):
        raise ValueError('too large') from None


def value(node: ast.expr) -> int | float:
    """The value of a node. Each value is checked at once, so the next operation is cheap."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return bounded(BINARY[type(node.op)](value(node.left), value(node.right)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return bounded(power(value(node.left), value(node.right)))
    raise ValueError('numbers, + - * / // % ** and parentheses only')


def power(base: int | float, exponent: int | float) -> int | float:
    """base ** exponent. Its size is estimated first: 9 ** 9 ** 9 has 370 million digits."""
    if abs(base) > 1 and exponent * math.log10(abs(base)) > math.log10(MAX_VALUE) + 1:
        raise ValueError('too large')
    return base**exponent


def bounded(number: int | float | complex) -> int | float:
    if isinstance(number, complex):  # (-8) ** 0.5
        raise ValueError('no real number')
    if not abs(number) < MAX_VALUE:  # not >=, so that nan is refused too
        raise ValueError('too large')
    return number


def spell(number: int | float) -> str:
    # a float holds whole numbers exactly up to 2**53
    if isinstance(number, int) or number.is_integer() and abs(number) < 2**53:
        return str(int(number))
    if abs(number) <= 1e-15:  # in scientific notation; larger numbers are written out
        return f'{number:.{SIGNIFICANT}g}'
    rounded = Decimal(f'{number:.{SIGNIFICANT}g}').normalize()
    return f'{rounded:f}'
