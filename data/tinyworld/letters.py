"""
Questions about the letters of words, about counting and about lists of words, and the right
answers.

Every answer about letters spells the word first and then says what was asked, so that there is
something to count.
"""

import random

from data.tinyworld import facts
from data.tinyworld.text import some_words
from data.tinyworld.wordings import Example, answer, answered, ask, one
from data.tinyworld.words import NUMBERS, counted, other, weighted

SPELLABLE = sorted({
    *facts.WORDS, *facts.ANIMALS, *facts.COLOURS.values(), *facts.DAYS, *facts.MONTHS,
    *facts.SEASONS, facts.VILLAGE, *facts.JOBS, *facts.BY_NAME,
})  # fmt: skip

# -----------------------------------------------------------------------------
# spelling


def misspelled(rng: random.Random, word: str) -> str:
    """The word with a letter dropped, doubled or swapped with the next one."""
    i = rng.randrange(len(word))
    dropped = word[:i] + word[i + 1 :]
    doubled = word[: i + 1] + word[i:]
    swapped = word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]
    wrong = rng.choice([dropped, doubled, swapped])
    return wrong if wrong != word else word + word[-1]


def spelling(rng: random.Random) -> Example:
    """Spell a word; how many letters it has; how often one occurs; the first and last."""
    word = rng.choice(SPELLABLE)
    shown = rng.choice((word, word, word, f'"{word}"'))
    kind = weighted(rng, {spell: 40, length: 25, occurrences: 17, end: 18})
    return kind(rng, word, '-'.join(word), shown)._replace(keep=(word,))


def spell(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    """Spell a word."""
    question = ask(rng, 'spell', word=shown)
    wrong = answer('spell', spelt='-'.join(misspelled(rng, word)))
    return one(question, answer('spell', spelt=spelt), 'spelled', spelt, wrong)


def length(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    """How many letters a word has."""
    question = ask(rng, 'length', word=shown)
    right = len(word)
    wrong = right + rng.choice((-1, 1, 2))
    return answered(question, 'length', {'spelt': spelt}, right, wrong, 'number')


def occurrences(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    """How often a letter occurs in a word; one time in six it does not."""
    small = word.lower()
    absent = [letter for letter in 'aeiourstlnmpgbd' if letter not in small]
    letter = rng.choice(small if rng.random() < 0.83 else absent)
    count = small.count(letter)
    question = ask(rng, 'occurrences', word=shown, c=letter)
    wrong = count + rng.choice((-1, 1)) if count else 1
    times = counted(count, 'time'), counted(wrong, 'time')
    words = {'spelt': spelt, 'c': letter}
    return answered(question, 'occurrences', words, *times, 'number', expected=count)


def end(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    """The first or the last letter of a word."""
    kind, letter = rng.choice((('first_letter', word[0]), ('last_letter', word[-1])))
    question = ask(rng, kind, word=shown)
    right = letter.lower()
    wrong = other(rng, 'aeiortsnl', right)
    expected = f'letter is {right}'
    return answered(question, kind, {'spelt': spelt}, right, wrong, expected=expected)


# -----------------------------------------------------------------------------
# counting

COUNTING = {'up': 42, 'down': 20, 'steps': 13, 'next': 22, 'how_many': 3}  # how often


def numeral(rng: random.Random, number: int) -> str:
    """The number as a user writes it: in digits, now and then as a word."""
    return NUMBERS[number] if number <= 10 and rng.random() < 0.12 else str(number)


def counting(rng: random.Random) -> Example:
    """Upwards, backwards, in steps; what comes next; how many numbers there are."""
    kind = weighted(rng, COUNTING)
    if kind == 'next':
        return next_number(rng)

    # 1) The numbers, and the row with one of them missing
    numbers = draw_numbers(rng, kind)
    a, b = numbers[0], numbers[-1]
    step = abs(numbers[1] - a)
    words = {'a': numeral(rng, a), 'b': numeral(rng, b), 'by': NUMBERS[step], 'step': step}
    row = ', '.join(map(str, numbers))
    missing = rng.randrange(1, len(numbers) - 1)
    broken = ', '.join(str(number) for i, number in enumerate(numbers) if i != missing)

    # 2) How many they are
    if kind == 'how_many':
        question = ask(rng, 'how_many_numbers', **words)
        right = len(numbers)
        return answered(question, 'how_many_numbers', {'row': row}, right, right + 2, 'number')

    # 3) Counting them; to count from 1, or down to it, needs no word for the 1
    asked = f'count_{kind}'
    if kind == 'up' and a == 1:
        asked = 'count_up_from_one'
    elif kind == 'down' and b == 1:
        asked = 'count_down_to_one'
    question = ask(rng, asked, f'count_{kind}', **words)
    content = answer('count', row=row)
    return one(question, content, 'exact', content, answer('count', row=broken))


def draw_numbers(rng: random.Random, kind: str) -> list[int]:
    """
    At least three numbers of 0 to 30, in steps of five and ten up to 120.

    From 1 on there may be 20 of them, else up to 10.
    """
    if kind == 'steps':
        step = rng.choice((2, 2, 5, 10))
        start = rng.choice((0, step)) if step > 3 else rng.choice((0, 1, step))
        most = 120 if step > 3 else 30
        return list(range(start, most + 1, step))[: rng.randrange(3, 11)]
    larger = rng.randrange(2, 20), rng.randrange(2, 20), rng.randrange(2, 20)
    start = rng.choice((0, 1, 1, 1, 1, 1, *larger))
    last = start + rng.randrange(2, 20 if start == 1 and rng.random() < 0.3 else 10)
    numbers = list(range(start, last + 1))
    return numbers[::-1] if kind == 'down' else numbers


def next_number(rng: random.Random) -> Example:
    """The number after or before another."""
    number = rng.choice((rng.randrange(1, 31), rng.randrange(1, 31), rng.randrange(31, 100)))
    side, right = rng.choice((('after', number + 1), ('before', number - 1)))
    question = ask(rng, f'number_{side}', n=numeral(rng, number))
    wrong = right + rng.choice((2, 3, 10, 11))
    return answered(question, side, {'word': number}, right, wrong, 'number')


# -----------------------------------------------------------------------------
# lists of words, whatever they are


def lists(rng: random.Random) -> Example:
    """
    Say after me: owl, river, cup; what comes after river in it?

    Keeps alive what the games have taught.
    """
    words = some_words(rng, rng.randint(3, 7))
    keep = tuple(words)
    row = ', '.join(words)
    if rng.random() < 0.3:
        question = ask(rng, 'repeat', words=row)
        wrong = answer('repeat', row=', '.join(words[::-1]))
        return one(question, answer('repeat', row=row), 'contains', row, wrong, keep=keep)
    place = rng.randrange(len(words) - 1)
    word, right = words[place : place + 2]
    question = ask(rng, 'follows', words=row, word=word)
    wrong = other(rng, words, right)
    expected = f'comes {right}'
    return answered(question, 'follows', {'word': word}, right, wrong, expected=expected, keep=keep)
