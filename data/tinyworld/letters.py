"""
Questions about the letters of words, about counting and about lists of words, and the right answers.

Every answer about letters spells the word first and then says what was asked, so that there is something to count.
"""

import random

from data.tinyworld import facts
from data.tinyworld.text import some_words
from data.tinyworld.wordings import Example, ask, one, other

SPELLABLE = sorted(
    {*facts.WORDS, *facts.ANIMALS, *facts.COLOURS.values(), *facts.DAYS, *facts.MONTHS, *facts.SEASONS, facts.VILLAGE}
    | {word for person in facts.PEOPLE for word in (person.name, person.job, person.name)}
)

# -----------------------------------------------------------------------------
# spelling


def misspelled(rng: random.Random, word: str) -> str:
    """The word with a letter dropped, doubled or swapped with the next one."""
    i = rng.randrange(len(word))
    swapped = word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]
    wrong = rng.choice([word[:i] + word[i + 1 :], word[: i + 1] + word[i:], swapped])
    return wrong if wrong != word else word + word[-1]


def spelling(rng: random.Random) -> Example:
    """Spell a word; how many letters it has; how often one occurs; the first and last."""
    word = rng.choice(SPELLABLE)
    shown = rng.choice((word, word, word, f'"{word}"'))
    kind = rng.choices((spell, length, occurrences, end), (40, 25, 17, 18))[0]
    return kind(rng, word, '-'.join(word), shown)._replace(keep=(word,))


def spell(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    question = ask(
        rng,
        'how do [you|i|we] [spell|write] {word}|how is {word} [spelled|spelt|written]'
        '|[what is|what\'s] the spelling of {word}'
        '|what are the letters of {word}|what letters are in {word}|how would you spell {word}|how {word} is spelled',
        'how to [spell|write] {word}|how {word} is [spelled|spelt]|the spelling of {word}|the letters of {word}'
        '|how you spell {word}',
        'spell {word}|spell {word} letter by letter|spell out {word}|write {word} letter by letter|spell {word}',
        voice='spell', word=shown,
    )  # fmt: skip
    return one(question, f'{spelt}.', 'spelled', spelt, f'{"-".join(misspelled(rng, word))}.')


def length(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    question = ask(
        rng,
        'how many letters [has|are in|are there in] {word}|how many letters does {word} have|how long is {word}'
        '|how many letters make up {word}|what is the number of letters in {word}|{word} has how many letters'
        '|how many characters [are in|has] {word}|how many letters does it take to write {word}',
        'how many letters [are in|are there in] {word}|how many letters {word} has|the number of letters in {word}',
        'count the letters [in|of] {word}|count how many letters {word} has',
        voice='length',
        word=shown,
    )
    wrong = len(word) + rng.choice((-1, 1, 2))
    return one(question, f'{spelt}: {len(word)} letters.', 'number', len(word), f'{spelt}: {wrong} letters.')


def occurrences(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    """How often a letter occurs in a word; one time in six it does not."""
    small = word.lower()
    letter = rng.choice(small if rng.random() < 0.83 else [c for c in 'aeiourstlnmpgbd' if c not in small])
    count = small.count(letter)
    question = ask(
        rng,
        'how many times does [the letter|] {c} [occur|appear|come|stand] in {word}'
        '|how often does {c} [occur|appear] in {word}'
        "|how many {c}'s are [there|] in {word}|how many {c}s are [there|] in {word}|how many times is {c} in {word}"
        "|how many {c}s does {word} have|how many {c}'s [has|in] {word}|how many letters {c} has {word}"
        '|how many times do you find {c} in {word}|how often is [the letter|] {c} in {word}',
        "how many times [the letter|] {c} [occurs|appears|is] in {word}|how many {c}'s are in {word}"
        '|how often {c} [is|occurs] in {word}',
        "count the {c}'s in {word}|count the letter {c} in {word}|count how often {c} is in {word}",
        voice='occurrences', word=shown, c=letter,
    )  # fmt: skip
    say = lambda number: f'{spelt}: the letter {letter} occurs {number} time{"" if number == 1 else "s"}.'
    return one(question, say(count), 'number', count, say(count + rng.choice((-1, 1)) if count else 1))


def end(rng: random.Random, word: str, spelt: str, shown: str) -> Example:
    which, letter, begins = rng.choice((('first', word[0], 'start|begin'), ('last', word[-1], 'end')))
    question = ask(
        rng,
        f'[what|which] is the {which} letter [of|in] {{word}}|what letter does {{word}} [{begins}] with'
        f'|what {which} letter has {{word}}'
        f'|[what|which] letter is the {which} [one|] in {{word}}|with [what|which] letter does {{word}} [{begins}]'
        f'|[what|which] letter [{begins}]s {{word}}|[what|which] letter comes {which} in {{word}}',
        f'what the {which} letter of {{word}} is|the {which} letter [of|in] {{word}}'
        f'|[what|which] letter {{word}} [{begins}]s with',
        f'say the {which} letter of {{word}}|name the {which} letter of {{word}}',
        voice=f'{which}_letter',
        word=shown,
    )
    say = lambda letter: f'{spelt}: the {which} letter is {letter}.'
    letter = letter.lower()
    return one(question, say(letter), 'contains', f'letter is {letter}', say(other(rng, 'aeiortsnl', letter)))


# -----------------------------------------------------------------------------
# counting

SPOKEN = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen '
    'seventeen eighteen nineteen twenty'
).split()
BY = {2: 'two', 3: 'three', 5: 'five', 10: 'ten'}
UP = (
    '[count|count up] from {a} to {b}|count up to {b} [from {a}|starting at {a}]|say the numbers from {a} to {b}'
    '|list the numbers from {a} to {b}|name all numbers from {a} to {b}|start at {a} and count to {b}'
    '|give me the numbers {a} to {b}|count {a} to {b}|write the numbers from {a} to {b}'
)
FROM_ONE = '|count to {b}|count up to {b}|count till {b}|count to {b}'
DOWN = (
    'count [backwards|down|back|backward] from {a} to {b}|count from {a} [down|back|backwards] to {b}'
    '|start at {a} and count [down|backwards] to {b}|say the numbers from {a} [down|back] to {b}'
    '|count [down|backwards] {a} to {b}'
)
STEPS = (
    'count [by|in] {by}s from {a} to {b}|count from {a} to {b} [by|in] {by}s|count from {a} to {b} in steps of {step}'
    '|count [by|in] {by}s [up|] to {b} [from {a}|starting at {a}|starting with {a}]'
    '|start at {a} and count to {b} by {by}s'
)
HOW_MANY = 'how many numbers [are there|do you count|are] from {a} to {b}|from {a} to {b}, how many numbers is that'


def numeral(rng: random.Random, number: int) -> str:
    return SPOKEN[number] if number <= 10 and rng.random() < 0.12 else str(number)


def counting(rng: random.Random) -> Example:
    """Upwards, backwards, in steps; what comes next; how many numbers there are."""
    kind = rng.choices(('up', 'down', 'steps', 'next', 'how many'), (42, 20, 13, 22, 3))[0]
    if kind == 'next':
        return next_number(rng)
    numbers = draw_numbers(rng, kind)
    a, b, step = numbers[0], numbers[-1], abs(numbers[1] - numbers[0])
    words = {'a': numeral(rng, a), 'b': numeral(rng, b), 'by': BY.get(step, ''), 'step': step}
    row, missing = ', '.join(map(str, numbers)), rng.randrange(1, len(numbers) - 1)
    broken = ', '.join(str(number) for i, number in enumerate(numbers) if i != missing)
    if kind == 'how many':
        question = ask(rng, HOW_MANY, 'how many numbers there are from {a} to {b}', **words)
        answer, wrong = (f'{row}: {len(numbers) + extra} numbers.' for extra in (0, 2))
        return one(question, answer, 'number', len(numbers), wrong)
    forms = {'up': UP + FROM_ONE * (a == 1), 'down': DOWN, 'steps': STEPS}[kind]
    if kind == 'down' and b == 1:
        forms += '|count [down|backwards|back] from {a}|count [down|backwards] from {a}'
    question = ask(rng, command=forms, voice=f'count_{kind}', **words)
    return one(question, f'{row}.', 'exact', f'{row}.', f'{broken}.')


def draw_numbers(rng: random.Random, kind: str) -> list[int]:
    """At least three numbers of 0 to 30, in steps of five and ten up to 120; up to 20 of them from 1, else up to 10."""
    if kind == 'steps':
        step = rng.choice((2, 2, 5, 10))
        start = rng.choice((0, step)) if step > 3 else rng.choice((0, 1, step))
        most = 120 if step > 3 else 30
        return list(range(start, most + 1, step))[: rng.randrange(3, 11)]
    start = rng.choice((0, 1, 1, 1, 1, 1, rng.randrange(2, 20), rng.randrange(2, 20), rng.randrange(2, 20)))
    last = start + rng.randrange(2, 20 if start == 1 and rng.random() < 0.3 else 10)
    return list(range(start, last + 1)) if kind != 'down' else list(range(last, start - 1, -1))


def next_number(rng: random.Random) -> Example:
    number = rng.choice((rng.randrange(1, 31), rng.randrange(1, 31), rng.randrange(31, 100)))
    side, answer = rng.choice((('after', number + 1), ('before', number - 1)))
    near = 'after|right after|next after' if side == 'after' else 'before|just before|right before'
    question = ask(
        rng,
        f'what [number|] comes [{near}] {{n}}|[what|which] number is [{near}] {{n}}'
        f'|[what|which] is the number {side} {{n}}'
        f'|[what|which] number comes [{near}] {{n}}|what number do you say {side} {{n}}|what is {side} {{n}}',
        f'what [number|] comes {side} {{n}}|which number is {side} {{n}}|the number {side} {{n}}',
        voice=f'number_{side}',
        n=numeral(rng, number),
    )
    say = lambda number_: f'{side.capitalize()} {number} comes {number_}.'
    return one(question, say(answer), 'number', answer, say(answer + rng.choice((2, 3, 10, 11))))


# -----------------------------------------------------------------------------
# lists of words, whatever they are

REPEAT = 'say after me: {words}|repeat after me: {words}|repeat: {words}|say: {words}|repeat these words: {words}'
FOLLOWS = (
    '[which word|what] [comes|stands] after {word} in {words}|in the list {words}, what comes after {word}'
    '|{words}: which word follows {word}|{words}: what comes after {word}'
)


def lists(rng: random.Random) -> Example:
    """Say after me: owl, river, cup; what comes after river in it? Keeps alive what the games have taught."""
    words = some_words(rng, rng.randint(3, 7))
    row = ', '.join(words)
    if rng.random() < 0.3:
        question, answer = ask(rng, command=REPEAT, words=row), f'Gladly: {row}.'
        wrong = f'Gladly: {", ".join(words[::-1])}.'
        return one(question, answer, 'contains', row, wrong, keep=tuple(words))
    place = rng.randrange(len(words) - 1)
    word, follower = words[place : place + 2]
    question = ask(rng, FOLLOWS, words=row, word=word)
    wrong = f'After {word} comes {other(rng, words, follower)}.'
    answer = f'comes {follower}'
    return one(question, f'After {word} {answer}.', 'contains', answer, wrong, keep=tuple(words))
