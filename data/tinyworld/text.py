"""
The plain text of tinyworld, made up sentence by sentence: what a model of about a million
parameters is pretrained on.

$ python data/tinyworld/text.py     prints three documents of each kind

documents(rng) never ends and depends on rng alone. The sentences are in told.txt, those of the
stories in stories.txt. A new kind of document is a function and a line in KINDS.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.tinyworld import facts as world
from data.tinyworld.facts import FIELDS, PEOPLE, VILLAGE, Person
from data.tinyworld.stories import story
from data.tinyworld.textfiles import only_line, wordings
from data.tinyworld.words import (
    NUMBERS,
    ORDINALS,
    PRONOUNS,
    article,
    capital,
    counted,
    fill,
    listed,
    plural,
    weighted,
)  # fmt: skip


def templates(heading: str) -> list[str]:
    """The lines below a heading of told.txt."""
    return wordings('told.txt')[heading]


def line_of(rng: random.Random, heading: str, /, **words) -> str:
    """One of the lines below a heading of told.txt, with these words."""
    return fill(rng.choice(templates(heading)), **words)


def tell_story(rng: random.Random) -> str:
    """A story; half have a title that names their hero, and mostly their thing too."""
    told = story(rng)
    about = told.people[0]
    if rng.random() < 0.7:
        about += f' and {article(told.thing)}'
    return f'A story about {about}. {told.text}' if rng.random() < 0.5 else told.text


# ---- facts: every one in many wordings

DESCRIBED = {'job': '{v}', 'home': '{v}', 'pet': 'with the {v}', 'food': 'who loves {v}'}


def tell(rng: random.Random, person: Person, field: str, name: str = '') -> str:
    """One fact about a person; name is what to call the person, a pronoun perhaps."""
    lines = templates(field)
    if name:  # a pronoun fits only where the sentence begins with the person
        lines = [line for line in lines if line.startswith('{p} ')]
    does, place = world.JOBS[person.job]
    words = {
        **PRONOUNS[person.gender], 'p': name or person.name, 'v': getattr(person, field),
        'home': person.home, 'does': does, 'place': place, 'says': world.ANIMALS[person.pet][0],
        'village': VILLAGE, 'his_p': f'the house of {person.name}',
    }  # fmt: skip
    return fill(rng.choice(lines), **words)


def describe(rng: random.Random, person: Person) -> str:
    """Words that fit this person alone: 'the baker by the river', 'the painter with the horse'."""
    choices = [('home',), ('pet',), ('food',), ('home', 'pet'), ('pet', 'food')]
    for fields in rng.sample(choices, 5):
        fields = ('job', *fields)
        values = [getattr(person, field) for field in fields]
        same = [p for p in PEOPLE if [getattr(p, field) for field in fields] == values]
        if len(same) == 1:
            parts = [DESCRIBED[field].format(v=value) for field, value in zip(fields, values)]
            return 'the ' + ' '.join(parts)
    raise ValueError(f'{person.name} is not told apart by any of their facts')


def who_fits(rng: random.Random, person: Person) -> str:
    """The baker by the river is Anna."""
    return f'{capital(describe(rng, person))} is {person.name}.'


def group(rng: random.Random) -> str:
    """All people of whom something is true."""
    field = rng.choice(('job', 'home', 'pet', 'food', 'colour'))
    value = getattr(rng.choice(PEOPLE), field)
    names = [person.name for person in PEOPLE if getattr(person, field) == value]
    of_one, of_several = only_line('told.txt', f'all_{field}').split(' / ')
    says = fill(of_one if len(names) == 1 else of_several, v=value, vs=plural(value))
    rng.shuffle(names)
    heading = 'only_one' if len(names) == 1 else 'several'
    words = {'names': listed(names), 'village': VILLAGE, 'count': NUMBERS[len(names)]}
    return line_of(rng, heading, says=says, **words)


def portrait(rng: random.Random) -> str:
    """Some of the facts about a person, the name first and pronouns where they read well."""
    person = rng.choice(PEOPLE)
    he = capital(PRONOUNS[person.gender]['he'])
    fields = rng.sample(FIELDS, rng.randint(2, 6))
    sentences = []
    for before, field in zip((None, *fields), fields):
        clear = before not in (None, 'friend')  # after the friend's name he could be the friend
        sentences.append(tell(rng, person, field, he if clear and rng.random() < 0.5 else ''))
    if rng.random() < 0.4:
        sentences.append(who_fits(rng, person))
    return ' '.join(sentences)


def single_facts(rng: random.Random) -> str:
    """Facts that have nothing to do with each other, or one field of several people."""
    field = rng.choice(FIELDS)
    people = rng.sample(PEOPLE, rng.randint(2, 5))
    kinds = [
        lambda person: tell(rng, person, rng.choice(FIELDS)),
        lambda person: tell(rng, person, field),
        lambda person: who_fits(rng, person),
        lambda person: f'{person.name} is {describe(rng, person)}.',
        lambda person: group(rng),
    ]
    kind = rng.choice(kinds)
    return rng.choice(' \n').join(dict.fromkeys(kind(person) for person in people))


def general_facts(rng: random.Random) -> str:
    """Facts about animals, colours and jobs."""
    kinds = (animal_fact, animal_fact, colour_fact, job_fact)
    sentences = [rng.choice(kinds)(rng) for _ in range(rng.randint(2, 5))]
    return ' '.join(dict.fromkeys(sentences))


def animal_fact(rng: random.Random) -> str:
    """A cat has 4 legs."""
    x, (says, legs, young) = rng.choice(list(world.ANIMALS.items()))
    words = {'says': says, 'legs': legs, 'legs_word': NUMBERS[legs], 'young': young}
    return line_of(rng, 'animal', x=x, **words)


def colour_fact(rng: random.Random) -> str:
    """Grass is green."""
    x, v = rng.choice(list(world.COLOURS.items()))
    return line_of(rng, 'colour_of_thing', x=x, v=v)


def job_fact(rng: random.Random) -> str:
    """A baker bakes bread."""
    x, (does, place) = rng.choice(list(world.JOBS.items()))
    return line_of(rng, 'work', x=x, does=does, place=place)


def facts(rng: random.Random) -> str:
    """Facts about people and the world."""
    return weighted(rng, {portrait: 45, single_facts: 30, general_facts: 25})(rng)


# ---- dialogues


def dialogue(rng: random.Random) -> str:
    """Two villagers greet each other and talk about others."""
    # 1) What they say in turn. They ask each other, so that it is not asked of the assistant
    one, two, *others = rng.sample(PEOPLE, 5)
    lines = rng.choice(templates('greeting')).split(' / ')
    for about in others[: rng.randint(1, 3)]:
        field = rng.choice(FIELDS)
        if about.name in (one.friend, two.friend) and field == 'friend':
            field = 'job'
        question = only_line('told.txt', f'ask_{field}')
        lines += [fill(question, p=about.name, b=two.name), tell(rng, about, field)]
    lines += rng.choice(templates('farewell')).split(' / ')
    lines = [fill(line, a=one.name, b=two.name) for line in lines]

    # 2) As a play, or as a story
    speakers = [one.name, two.name]
    if rng.random() < 0.6:
        return '\n'.join(f'{speakers[i % 2]}: {line}' for i, line in enumerate(lines))
    told = []
    for i, line in enumerate(lines):
        end = ',' if line[-1] == '.' else line[-1]
        verb = 'asked' if line[-1] == '?' else 'said'
        told.append(f'"{line[:-1]}{end}" {verb} {speakers[i % 2]}.')
    return ' '.join(told)


# ---- counting, spelling, sums


def counting(rng: random.Random) -> str:
    """One to three sentences or rows of numbers."""
    return rng.choice(' \n').join(count(rng) for _ in range(rng.randint(1, 3)))


def count(rng: random.Random) -> str:
    """A row of numbers, or what is next to a number."""
    # 1) A row, up or down
    step = rng.choices([1, 2, 5, 10], [70, 20, 5, 5])[0]
    first = rng.randint(0, 25) if step < 5 else step * rng.randint(0, 3)
    numbers = [first + step * i for i in range(rng.randint(4, 12))]
    if rng.random() < 0.3:
        numbers.reverse()
    down = numbers[0] > numbers[-1]
    by = f' {"down" if down else "up"}' + (f' by {NUMBERS[step]}s' if step > 1 else '')
    row = ', '.join(map(str, numbers))

    # 2) A number of it, and one as a word
    number = numbers[rng.randrange(1, len(numbers) - 1)]
    low, high = sorted((numbers[0], number))
    some = max(number, 1)
    digits = rng.randint(1, 11)
    name = rng.choice(PEOPLE).name

    # 3) One of the ways to tell it
    parity, next_parity = ('odd', 'even') if some % 2 else ('even', 'odd')
    words = {
        'row': row, 'by': by, 'first': numbers[0], 'last': numbers[-1], 'p': name,
        'then': numbers[-1] + numbers[1] - numbers[0], 'low': low, 'high': high,
        'some': some, 'more': some + 1, 'less': some - 1,
        'parity': parity, 'next_parity': next_parity,
        'digits': digits, 'word': NUMBERS[digits],
        'next_digits': digits + 1, 'next_word': NUMBERS[digits + 1],
        'number_words': ', '.join(NUMBERS[1 : digits + 1]) if digits > 3 else row,
    }  # fmt: skip
    return line_of(rng, 'counting', **words)


def spelled_words() -> list[str]:
    """Everything that may be spelled, in lower case."""
    words = [*world.WORDS, *world.ANIMALS, *world.DAYS, *world.MONTHS, *world.SEASONS]
    words += [*world.JOBS, *NUMBERS[:13]]
    words += [word for pair in world.OPPOSITES + world.THINGS for word in pair]
    words += [young for _, _, young in world.ANIMALS.values()]
    words += [value for person in PEOPLE for value in (person.name, person.food, person.colour)]
    return list(dict.fromkeys(word.lower() for word in words))


SPELLED = spelled_words()


def spell(rng: random.Random, word: str) -> str:
    """The letters of a word, and up to three more things about them."""
    letter = rng.choice(word)
    count = word.count(letter)
    words = {
        'word': word, 'letters': '-'.join(word), 'first': word[0], 'last': word[-1],
        'number': len(word), 'length': counted(len(word), 'letter'),
        'letter': letter, 'times': counted(count, 'time'), 'count': counted(count, letter),
        'are': 'is' if count == 1 else 'are',
    }  # fmt: skip
    start = rng.choice(templates('spelling'))
    more = rng.sample(templates('about_letters'), rng.randint(0, 3))
    return ' '.join(fill(line, **words) for line in [start, *more])


def spelling(rng: random.Random) -> str:
    """One to three words spelled."""
    separator = rng.choice(' \n')
    words = rng.sample(SPELLED, rng.randint(1, 3))
    return separator.join(spell(rng, word) for word in words)


def one_sum(rng: random.Random, most: int) -> str:
    """A sum whose largest number is at most this."""
    total = rng.randint(1, most)
    x = rng.randint(0, total)
    return line_of(rng, 'sum', x=x, y=total - x, total=total)


def sums(rng: random.Random) -> str:
    """Two to six sums, as rows or as sentences."""
    most = rng.choices([10, 20, 99], [40, 45, 15])[0]
    rows = [one_sum(rng, most) for _ in range(rng.randint(2, 6))]
    return rng.choice(['\n'.join(rows), '. '.join(rows) + '.'])


# ---- the calendar, opposites, problems, code

WEATHER = {
    'winter': 'cold, and it snows',
    'spring': 'mild, and flowers come out',
    'summer': 'hot',
    'autumn': 'windy, and leaves fall',
}


def calendar(rng: random.Random) -> str:
    """One to four sentences about a day, a month or a season and its neighbours."""
    name = rng.choice(('day', 'month', 'month', 'season'))
    row = world.CYCLES[name]
    i = rng.randrange(len(row))
    before, this, after, later = (row[(i + shift) % len(row)] for shift in (-1, 0, 1, 2))
    words = {
        'name': name, 'before': before, 'this': this, 'after': after, 'later': later,
        'length': len(row), 'all': listed(row), 'number': i + 1, 'ordinal': ORDINALS[i],
    }  # fmt: skip
    if name == 'month':
        season = world.SEASON_OF[this]
        words |= {'season': season, 'months': listed(world.MONTHS_OF[season])}
    elif name == 'season':
        words['weather'] = WEATHER[this]
    lines = templates('calendar') + templates(f'calendar_{name}')
    return ' '.join(fill(line, **words) for line in rng.sample(lines, rng.randint(1, 4)))


def opposites(rng: random.Random) -> str:
    """One to four pairs, told in one way or each in its own."""
    pairs = [rng.sample(pair, 2) for pair in rng.sample(world.OPPOSITES, rng.randint(1, 4))]
    lines = templates('opposites')
    line = rng.choice([*lines, ''])
    return ' '.join(fill(line or rng.choice(lines), x=x, y=y) for x, y in pairs)


def problem(rng: random.Random) -> str:
    """A word problem that tells how it is solved."""
    # 1) What happens: two numbers that suit the sign, two people, a thing
    headings = {'+': 'problem_plus', '-': 'problem_minus', '*': 'problem_times'}
    lines = [(sign, line) for sign, heading in headings.items() for line in templates(heading)]
    sign, line = rng.choice(lines)
    p, q = rng.sample(PEOPLE, 2)
    one, many = rng.choice(world.THINGS)
    n, m = rng.randint(3, 15), rng.randint(2, 9)
    if sign == '-':
        n += m
    elif sign == '*':
        n, m = n % 4 + 2, m % 4 + 2
    total = {'+': n + m, '-': n - m, '*': n * m}[sign]
    day, day2 = rng.sample(world.DAYS, 2)

    # 2) The story, and how it ends
    words = {'p': p.name, 'q': q.name, **PRONOUNS[p.gender], 'day': day, 'day2': day2}
    words |= {'n': n, 'm': m, 't': total, 'ts': many, 'tt': one if total == 1 else many}
    told, solved = fill(line, **words).split(' / ')
    end = line_of(rng, 'solution', solved=solved, rule=f'{n} {sign} {m} = {total}')
    return f'{told} {end}'


CODE = [  # a function of two numbers, and what it does
    ('add', 'a + b', lambda a, b: a + b),
    ('subtract', 'a - b', lambda a, b: a - b),
    ('times', 'a * b', lambda a, b: a * b),
    ('biggest', 'max(a, b)', max),
    ('smallest', 'min(a, b)', min),
    ('same', 'a == b', lambda a, b: a == b),
    ('twice', '2 * (a + b)', lambda a, b: 2 * (a + b)),
    ('is_less', 'a < b', lambda a, b: a < b),
]


def code(rng: random.Random) -> str:
    """A few lines of Python and what they print."""
    name, body, function = rng.choice(CODE)
    x, y, n = rng.randint(1, 20), rng.randint(1, 20), rng.randint(2, 6)
    word = rng.choice(SPELLED)
    result = function(x, y)
    return rng.choice([
        f'def {name}(a, b):\n    return {body}\n\nprint({name}({x}, {y}))  # prints {result}',
        f'a = {x}\nb = {y}\nprint({body})\n# output: {result}',
        f'for i in range({n}):\n    print(i)\n# output: {" ".join(map(str, range(n)))}',
        f"word = '{word}'\nprint(len(word))\n# output: {len(word)}",
        f"word = '{word}'\nprint(word[0], word[-1])\n# output: {word[0]} {word[-1]}",
        f"print('{word} ' * {n})\n# output: {' '.join([word] * n)}",
        f'numbers = [{x}, {y}, {n}]\nprint(sum(numbers))\n# output: {x + y + n}',
    ])  # fmt: skip


# ---- games: every word follows from earlier ones, which teaches to look back


def some_words(rng: random.Random, number: int) -> list[str]:
    """Different words of any kind, and numbers."""
    things = [many for _, many in world.THINGS]
    digits = [str(n) for n in range(100)]
    kinds = (list(world.ANIMALS), things, world.WORDS, list(world.BY_NAME), digits)
    found = {}
    while len(found) < number:
        found[rng.choice(rng.choice(kinds))] = True
    return list(found)


def chain(rng: random.Random) -> str:
    """
    Anna said: owl river 7 cups moon. Ben said: 7 cups. Mia said: river 7 cups moon.

    Parts begin anywhere: a word is known from the one before it, and not from its place.
    """
    words = some_words(rng, rng.randint(3, 9))
    parts = [words]
    for _ in range(rng.randint(2, 5)):
        start = rng.randrange(len(words) - 1)
        parts.append(words[start : start + rng.randint(2, 5)])
    return ' '.join(f'{rng.choice(list(world.BY_NAME))} said: {" ".join(part)}.' for part in parts)


def labels(rng: random.Random) -> str:
    """Words with letters, as a quiz has them, and which is which."""
    words = some_words(rng, rng.randint(2, 6))
    pairs = [f'{word}={letter}' for word, letter in zip(words, 'ABCDEF')]
    table = ''.join(f'- {pair}\n' for pair in pairs)
    return table + 'It is ' + ', '.join(rng.sample(pairs, len(pairs)))


def games(rng: random.Random) -> Iterator[str]:
    """Games without end, and nothing else."""
    while True:
        yield chain(rng) if rng.random() < 0.7 else labels(rng)


# ---- all of it

KINDS = {  # kind of document: (share of the characters, the function that makes one)
    'story': (27, tell_story),
    'facts': (18, facts),
    'dialogue': (6, dialogue),
    'counting': (7, counting),
    'spelling': (10, spelling),
    'sums': (6, sums),
    'calendar': (4, calendar),
    'opposites': (3, opposites),
    'problem': (4, problem),
    'code': (1, code),
    'chain': (8, chain),
    'labels': (6, labels),
}
SLOPPY = 0.06  # share of the documents that are typed without capitals and without a full stop


def documents(rng: random.Random) -> Iterator[str]:
    """Documents without end, mixed so that the kinds have the shares of KINDS in the characters."""
    characters = dict.fromkeys(KINDS, 300)  # written so far; with a first guess of a length
    number = dict.fromkeys(KINDS, 1)
    while True:
        # A kind of long documents is drawn less often
        shares = {
            kind: share * number[kind] / characters[kind] for kind, (share, _) in KINDS.items()
        }
        kind = weighted(rng, shares)
        text = KINDS[kind][1](rng)
        characters[kind] += len(text)
        number[kind] += 1
        sloppy = kind != 'code' and rng.random() < SLOPPY
        yield text.lower().rstrip('.!?') if sloppy else text


if __name__ == '__main__':
    import console

    console.set_up(must_finish=False)
    RNG = random.Random(0)
    for KIND, (_, MAKE) in KINDS.items():
        print(f'---- {KIND}', *(MAKE(RNG) for _ in range(3)), sep='\n\n')
