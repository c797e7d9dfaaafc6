"""
The plain text of tinyworld, made up sentence by sentence: what a model of about a million parameters is pretrained on.

$ python data/tinyworld/text.py  # prints three documents of each kind, and what a million characters are made of

documents(rng) never ends and depends on rng alone. A new kind of document is a function and a line in KINDS.
"""

import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.tinyworld.facts import (
    ANIMALS,
    BY_NAME,
    COLOURS,
    DAYS,
    JOBS,
    MONTHS,
    OPPOSITES,
    PEOPLE,
    SEASONS,
    THINGS,
    VILLAGE,
    WORDS,
    Person,
)  # fmt: skip
from data.tinyworld.stories import MONTHS_OF, PRONOUNS, Story, a, story, upper

__all__ = ['KINDS', 'Story', 'documents', 'story', 'tell']

NUMBERS = 'zero one two three four five six seven eight nine ten eleven twelve'.split()
ORDINALS = 'first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth'.split()
FIELDS = ('job', 'home', 'pet', 'food', 'colour', 'friend')


def listed(words) -> str:
    """'Anna', 'Anna and Ben', 'Anna, Ben and Cara'"""
    *rest, last = words
    return f'{", ".join(rest)} and {last}' if rest else last


def number_of(count: int, one: str, many: str) -> str:
    return f'{count} {one if count == 1 else many}'


def tell_story(rng: random.Random) -> str:
    """Half of the stories have a title that names their hero, and their thing too most of the time."""
    told = story(rng)
    about = f'{told.people[0]} and {a(told.thing)}' if rng.random() < 0.7 else told.people[0]
    return f'A story about {about}. {told.text}' if rng.random() < 0.5 else told.text


# ---- facts: every one in many wordings

TOLD = {  # {p} is the name, {v} what the table says, {v_a} with a or an
    'job': [
        '{p} is {v_a}.', '{p} works as {v_a}.', 'The job of {p} is {v}.', "{p}'s job: {v}.", '{p} {does} {place}.',
        '{p} is {v_a} and {does}.', '{p} works {place} as {v_a}.', 'If you need {v_a}, go to {p}.',
        'One {v} in {village} is {p}.', 'As {v_a}, {p} {does}.', 'Every morning {p} goes to work: {he} is {v_a}.',
        'The {v} {home} is called {p}.', 'By profession {p} is {v_a}.', '{p} earns {his} money as {v_a}.',
    ],
    'home': [
        '{p} lives {v}.', "{p}'s house is {v}.", 'The house of {p} stands {v}.', '{V} lives {p}.',
        '{p} is at home {v}.',
        'You can find {p} {v}, where {he} lives.', "{p}'s home is {v}.",
        'If you want to visit {p}, go to {his} house {v}.',
        'There is a house {v}. {p} lives in it.', '{p} sleeps in a house {v}.',
        '{V} there is a house, and it is {his_p}.',
    ],
    'pet': [
        '{p} has {v_a}.', "{p}'s pet is {v_a}.", "There is {v_a} in {p}'s house.", '{p} keeps {v_a} at home.',
        'The pet of {p} is {v_a}.', '{V_a} lives with {p}.', '{p} feeds {his} {v} every day.', '{p} loves {his} {v}.',
        '{p} owns {v_a}.', "{p}'s {v} says {says}.", 'When {p} comes home, {his} {v} is happy.',
        'One {v} in {village} belongs to {p}.', '{p} has a pet, and it is {v_a}.',
    ],
    'food': [
        '{p} likes {v} best.', "{p}'s favourite food is {v}.", 'The favourite food of {p} is {v}.',
        'When {p} is hungry, {he} eats {v}.', '{p} loves to eat {v}.', 'Of all food, {p} likes {v} best.',
        'What {p} likes to eat most is {v}.', '{V} is what {p} likes to eat best.',
        'Nothing tastes as good to {p} as {v}.',
        '{p} eats {v} whenever {he} can.', 'Give {p} some {v}, and {he} is happy.',
    ],
    'colour': [
        "{p}'s favourite colour is {v}.", 'The favourite colour of {p} is {v}.', 'Of all colours, {p} likes {v} best.',
        '{p} loves the colour {v}.',
        '{V} is the colour that {p} likes best.', "{p}'s door is {v}, {his} favourite colour.",
        '{p} likes to wear {v}, the colour {he} likes best.', 'The colour that {p} loves is {v}.',
        'No colour is as beautiful to {p} as {v}.',
    ],
    'friend': [
        "{p}'s best friend is {v}.", 'The best friend of {p} is {v}.', "{v} is {p}'s best friend.",
        '{p} likes {v} more than anybody else: they are best friends.', '{v} is the best friend of {p}.',
        'When {p} needs help, {he} asks {his} best friend {v}.', '{p} often visits {his} best friend {v}.',
        '{p} has a best friend called {v}.', 'Nobody is closer to {p} than {his} friend {v}.',
        'If {p} has a secret, {he} tells it to {his} best friend {v}.',
    ],
}  # fmt: skip
GROUPS = {  # the other way round: all those of whom it is true; {one|many}
    'job': ('is {v_a}', 'are {vs}'), 'home': ('lives {v}', 'live {v}'), 'pet': ('has {v_a}', 'have {v_a} each'),
    'food': ('likes {v} best', 'like {v} best'), 'colour': ('loves the colour {v}', 'love the colour {v}'),
}  # fmt: skip
DESCRIBED = {'job': '{v}', 'home': '{v}', 'pet': 'with the {v}', 'food': 'who loves {v}'}
ANIMAL_FACTS = [
    'The {x} says {says}.', '{X_a} says {says}.', 'What the {x} says is {says}.', '{Says} is the sound of the {x}.',
    'If something says {says}, it may be {x_a}.', '{X_a} has {legs} legs.', 'The {x} walks on {legs} legs.',
    'The number of legs of {x_a} is {legs}.', '{X_a} has {legs_word} legs.', 'The young of {x_a} is called {young_a}.',
    '{Young_a} is a young {x}.', 'A young {x} is called {young_a}.', 'Before it was {x_a}, it was {young_a}.',
    'The mother of the {young} is {x_a}.', '{X_a} has {legs} legs, says {says}, and its young is {young_a}.',
]  # fmt: skip
COLOUR_FACTS = [
    '{X} is {v}.', 'The colour of {x} is {v}.', 'As to its colour, {x} is {v}.', '{V} is the colour of {x}.',
    '{V} like {x}: that is what people say.', 'When you paint {x}, you need {v}.',
]  # fmt: skip
JOB_FACTS = [
    '{X_a} {does} {place}.', '{X_a} {does}.', '{X_a} works {place}.', '{V_place} you can find {x_a}.',
    'The work of {x_a}: {x_a} {does}.', 'If somebody {does}, it is {x_a}.',
]  # fmt: skip


def fill(template: str, **words) -> str:
    """format, where {v_a} is v with its article and {V} v with a capital."""
    words |= {f'{key}_a': a(str(word)) for key, word in words.items() if word}
    return template.format_map(words | {upper(key): upper(str(word)) for key, word in words.items()})


def tell(rng: random.Random, person: Person, field: str, name: str = '') -> str:
    """One fact about a person in one of its wordings; name is what to call the person, a pronoun perhaps."""
    he, his, _ = PRONOUNS[person.gender]
    does, place = JOBS[person.job]
    templates = TOLD[field]
    if name:  # only what begins with the person can begin with a pronoun
        templates = [template for template in templates if template.startswith('{p} ')]
    return fill(
        rng.choice(templates), p=name or person.name, v=getattr(person, field), he=he, his=his, does=does, place=place,
        home=person.home, says=ANIMALS[person.pet][0], village=VILLAGE, his_p=f'the house of {person.name}',
    )  # fmt: skip


def describe(rng: random.Random, person: Person) -> str:
    """Words that fit this person alone: 'the baker by the river', 'the painter with the horse who loves honey'"""
    for fields in rng.sample([('home',), ('pet',), ('food',), ('home', 'pet'), ('pet', 'food')], 5):
        fields = ('job', *fields)
        same = [p for p in PEOPLE if all(getattr(p, field) == getattr(person, field) for field in fields)]
        if len(same) == 1:
            return 'the ' + ' '.join(DESCRIBED[field].format(v=getattr(person, field)) for field in fields)
    raise ValueError(f'{person.name} is like somebody else in all respects')


def group(rng: random.Random) -> str:
    field = rng.choice(list(GROUPS))
    value = getattr(rng.choice(PEOPLE), field)
    names = [person.name for person in PEOPLE if getattr(person, field) == value]
    many = value.replace('fisherman', 'fishermen') if value == 'fisherman' else value + 's'
    says = GROUPS[field][len(names) > 1].format(v=value, v_a=a(value), vs=many)
    rng.shuffle(names)
    if len(names) == 1:
        return rng.choice([f'Only {names[0]} {says}.', f'{names[0]} {says}, and nobody else in {VILLAGE}.'])
    count = upper(NUMBERS[len(names)])
    return rng.choice([f'{listed(names)} {says}.', f'{count} people in {VILLAGE} {says}: {listed(names)}.'])


def portrait(rng: random.Random) -> str:
    """Some of the facts about a person, the name first and pronouns where they read well."""
    person = rng.choice(PEOPLE)
    he = upper(PRONOUNS[person.gender][0])
    fields = rng.sample(FIELDS, rng.randint(2, 6))
    sentences = []
    for before, field in zip((None, *fields), fields):
        clear = before not in (None, 'friend')  # behind the friend's name a pronoun could mean the friend
        sentences.append(tell(rng, person, field, he if clear and rng.random() < 0.5 else ''))
    if rng.random() < 0.4:
        sentences.append(f'{upper(describe(rng, person))} is {person.name}.')
    return ' '.join(sentences)


def single_facts(rng: random.Random) -> str:
    """Facts that have nothing to do with each other, or one field of several people."""
    field = rng.choice(FIELDS)
    people = rng.sample(PEOPLE, rng.randint(2, 5))
    kinds = [
        lambda person: tell(rng, person, rng.choice(FIELDS)), lambda person: tell(rng, person, field),
        lambda person: f'{upper(describe(rng, person))} is {person.name}.',
        lambda person: f'{person.name} is {describe(rng, person)}.', lambda person: group(rng),
    ]  # fmt: skip
    kind = rng.choice(kinds)
    return rng.choice(' \n').join(dict.fromkeys(kind(person) for person in people))


def general_facts(rng: random.Random) -> str:
    sentences = []
    for _ in range(rng.randint(2, 5)):
        kind = rng.choice('aacj')
        if kind == 'a':
            x, (says, legs, young) = rng.choice(list(ANIMALS.items()))
            words = {'x': x, 'says': says, 'legs': legs, 'legs_word': NUMBERS[legs], 'young': young}
            sentences.append(fill(rng.choice(ANIMAL_FACTS), **words))
        elif kind == 'c':
            x, v = rng.choice(list(COLOURS.items()))
            sentences.append(fill(rng.choice(COLOUR_FACTS), x=x, v=v))
        else:
            x, (does, place) = rng.choice(list(JOBS.items()))
            sentences.append(fill(rng.choice(JOB_FACTS), x=x, does=does, place=place, v_place=place))
    return ' '.join(dict.fromkeys(sentences))


def facts(rng: random.Random) -> str:
    return rng.choices([portrait, single_facts, general_facts], [45, 30, 25])[0](rng)


# ---- dialogues

GREETINGS = [
    ('Good morning, {b}!', 'Good morning, {a}!'), ('Hello, {b}!', 'Hello, {a}!'), ('Hi {b}!',
    'Hi {a}, nice to see you.'),
    ('Good evening, {b}.', 'Good evening, {a}.'), ('How are you, {b}?', 'I am fine, thank you, {a}.'),
    ('It is a fine day, {b}.', 'Yes, {a}, the sun is warm.'), ('It is raining again, {b}.', 'Take an umbrella, {a}.'),
]  # fmt: skip
ASKED = {  # asked of b about p, so that it is nobody's question to the assistant
    'job': 'Tell me, {b}, what does {p} do all day?', 'home': 'Excuse me, {b}, how do I get to the house of {p}?',
    'pet': 'I hear an animal in the house of {p}, {b}. What is it?', 'friend': 'With whom is {p} walking there, {b}?',
    'food': '{b}, what should I cook for {p} tonight?', 'colour': '{b}, in what colour shall I paint a box for {p}?',
}  # fmt: skip
FAREWELLS = [
    ('Thank you, {b}!', 'You are welcome.'), ('Thanks a lot.', 'No problem, {a}.'), ('Good to know.', 'See you soon!'),
    ('I must go now.', 'Goodbye, {a}!'), ('Goodbye, {b}!', 'Bye, {a}!'), ('Good night, {b}.', 'Sleep well, {a}.'),
]  # fmt: skip


def dialogue(rng: random.Random) -> str:
    """Two villagers greet each other and talk about others."""
    one, two, *others = rng.sample(PEOPLE, 5)
    lines = [*rng.choice(GREETINGS)]
    for about in others[: rng.randint(1, 3)]:
        field = rng.choice(FIELDS)
        if about.name in (one.friend, two.friend) and field == 'friend':
            field = 'job'
        lines += [ASKED[field].replace('{p}', about.name), tell(rng, about, field)]
    lines += rng.choice(FAREWELLS)
    lines = [line.replace('{a}', one.name).replace('{b}', two.name) for line in lines]
    speakers = [one.name, two.name]
    if rng.random() < 0.6:
        return '\n'.join(f'{speakers[i % 2]}: {line}' for i, line in enumerate(lines))
    said = [f'"{line[:-1]}{"," if line[-1] == "." else line[-1]}"' for line in lines]
    verbs = ['asked' if line.endswith('?') else 'said' for line in lines]
    return ' '.join(f'{text} {verb} {speakers[i % 2]}.' for i, (text, verb) in enumerate(zip(said, verbs)))


# ---- counting, spelling, sums


def counting(rng: random.Random) -> str:
    return rng.choice(' \n').join(count(rng) for _ in range(rng.randint(1, 3)))


def count(rng: random.Random) -> str:
    """A row of numbers, or what is next to a number."""
    step = rng.choices([1, 2, 5, 10], [70, 20, 5, 5])[0]
    first = rng.randint(0, 25) if step < 5 else step * rng.randint(0, 3)
    numbers = [first + step * i for i in range(rng.randint(4, 12))]
    numbers = numbers[::-1] if rng.random() < 0.3 else numbers
    down, row = numbers[0] > numbers[-1], ', '.join(map(str, numbers))
    by = f' {"down" if down else "up"}' + (f' by {NUMBERS[step]}s' if step > 1 else '')
    i = rng.randrange(1, len(numbers) - 1)
    low, high = sorted((numbers[0], numbers[i]))
    word, some, odd = rng.randint(1, 11), max(numbers[i], 1), ('even', 'odd')
    return rng.choice([
        f'{row}.', f'Count{by} from {numbers[0]} to {numbers[-1]}: {row}.',
        f'{rng.choice(PEOPLE).name} counts{by}: {row}.', f'{row}. Then comes {numbers[-1] + numbers[1] - numbers[0]}.',
        f'After {some} comes {some + 1}. Before {some} comes {some - 1}.',
        f'{high} is more than {low}. {low} is less than {high}.',
        f'{some} is {odd[some % 2]}. {some + 1} is {odd[1 - some % 2]}.',
        f'{upper(NUMBERS[word])} is {word}. {upper(NUMBERS[word + 1])} is {word + 1}.',
        f'{", ".join(NUMBERS[1 : word + 1])}.' if word > 3 else f'{row}.',
    ])  # fmt: skip


def spelled_words() -> list[str]:
    """Everything that may be spelled, in lower case."""
    words = [*WORDS, *ANIMALS, *DAYS, *MONTHS, *SEASONS, *JOBS, *NUMBERS]
    words += [word for pair in OPPOSITES + THINGS for word in pair] + [young for _, _, young in ANIMALS.values()]
    words += [getattr(person, field) for person in PEOPLE for field in ('name', 'food', 'colour')]
    return list(dict.fromkeys(word.lower() for word in words))


SPELLED = spelled_words()


def spell(rng: random.Random, word: str) -> str:
    letters, letter = '-'.join(word), rng.choice(word)
    count = word.count(letter)
    more = [
        f'It has {number_of(len(word), "letter", "letters")}.', f'It begins with {word[0]} and ends with {word[-1]}.',
        f'The letter {letter} occurs {number_of(count, "time", "times")}.', f'The last letter is {word[-1]}.',
        f'There {"is" if count == 1 else "are"} {number_of(count, letter, letter + "s")} in {word}.',
        f'The first letter of {word} is {word[0]}.', f'The word {word} is {len(word)} letters long.',
    ]  # fmt: skip
    start = rng.choice([
        f'{word} is spelled {letters}.', f'You spell {word} like this: {letters}.', f'{word}: {letters}.',
        f'The letters of {word} are {letters}.', f'{letters} is {word}.',
    ])  # fmt: skip
    return ' '.join([start, *rng.sample(more, rng.randint(0, 3))])


def spelling(rng: random.Random) -> str:
    return rng.choice(' \n').join(spell(rng, word) for word in rng.sample(SPELLED, rng.randint(1, 3)))


def one_sum(rng: random.Random, most: int) -> str:
    total = rng.randint(1, most)
    x = rng.randint(0, total)
    y = total - x
    return rng.choice([
        f'{x} + {y} = {total}', f'{x} + {y} = {total}', f'{x} plus {y} is {total}', f'{total} is {x} + {y}',
        f'If you add {x} and {y}, you get {total}', f'{total} - {x} = {y}', f'{total} - {x} = {y}',
        f'{total} minus {x} is {y}', f'If you take {x} from {total}, {y} is left',
    ])  # fmt: skip


def sums(rng: random.Random) -> str:
    most = rng.choices([10, 20, 99], [40, 45, 15])[0]
    rows = [one_sum(rng, most) for _ in range(rng.randint(2, 6))]
    return rng.choice(['\n'.join(rows), '. '.join(rows) + '.'])


# ---- the calendar, opposites, problems, code


WEATHER = dict(zip(SEASONS, ['cold, and it snows', 'mild, and flowers come out', 'hot', 'windy, and leaves fall']))


def calendar(rng: random.Random) -> str:
    row, name = rng.choice([(DAYS, 'day'), (MONTHS, 'month'), (MONTHS, 'month'), (SEASONS, 'season')])
    i = rng.randrange(len(row))
    before, this, after, later = (row[(i + shift) % len(row)] for shift in (-1, 0, 1, 2))
    kinds = [
        f'After {this} comes {after}.', f'Before {this} comes {before}.', f'{upper(this)} comes after {before}.',
        f'The {name} after {this} is {after}.', f'The {name} before {this} is {before}.',
        f'{upper(this)} is between {before} and {after}.', f'{upper(later)} comes two {name}s after {this}.',
        f'There are {len(row)} {name}s: {listed(row)}.', f'{upper(before)}, {this}, {after}, {later}.',
    ]  # fmt: skip
    if name == 'day':
        kinds += [
            f'If today is {this}, tomorrow is {after} and yesterday was {before}.', 'A week has 7 days.',
            f'Yesterday was {before}, so today is {this}.', f'{this} is day number {i + 1} of the week.',
            'Saturday and Sunday are the weekend.', 'The week begins with Monday and ends with Sunday.',
        ]  # fmt: skip
    elif name == 'month':
        season = next(season for season, months in MONTHS_OF.items() if this in months)
        kinds += [
            f'{this} is in {season}.', f'{this} is the {ORDINALS[i]} month of the year.', 'A year has 12 months.',
            f'{upper(season)} has three months: {listed(MONTHS_OF[season])}.', f'The {ORDINALS[i]} month is {this}.',
        ]  # fmt: skip
    else:
        kinds += [f'{upper(this)} is {WEATHER[this]}.', f'In {this} it is {WEATHER[this]}.', 'A year has 4 seasons.']
    return ' '.join(rng.sample(kinds, rng.randint(1, 4)))


def opposites(rng: random.Random) -> str:
    pairs = [rng.sample(pair, 2) for pair in rng.sample(OPPOSITES, rng.randint(1, 4))]
    kinds = [
        'The opposite of {x} is {y}.', '{X} is the opposite of {y}.', '{X} and {y} are opposites.',
        'Not {x} but {y}: that is the opposite.', 'Say {x}, and then say the opposite: {y}.',
    ]  # fmt: skip
    kind = rng.choice([*kinds, ''])
    return ' '.join(fill(kind or rng.choice(kinds), x=x, y=y) for x, y in pairs)


PROBLEMS = [  # (what is done, the story, how it ends): m and n change from one to the next, t is the result
    ('+', '{p} has {n} {ts}. {He} buys {m} more.', 'now {he} has {t} {tt}'),
    ('+', '{p} has {n} {ts} and finds {m} more.', 'that makes {t} {tt}'),
    ('+', 'There are {n} {ts} in a box. {p} puts in {m} more.', 'there are {t} {tt} in the box'),
    ('+', '{p} has {n} {ts}, and {q} has {m}.', 'together they have {t} {tt}'),
    ('+', '{q} gives {p} {n} {ts} on {day} and {m} on {day2}.', '{p} gets {t} {tt} in all'),
    ('+', '{p} had {n} {ts}. {q} gave {him} {m}.', 'then {he} had {t} {tt}'),
    ('-', '{p} has {n} {ts}. {He} loses {m} of them.', '{he} has {t} {tt} left'),
    ('-', '{p} has {n} {ts} and gives {m} to {q}.', '{p} has {t} {tt} left'),
    ('-', 'On the table are {n} {ts}. {p} takes {m}.', '{t} {tt} stay there'),
    ('-', '{p} wants {n} {ts}, but has only {m}.', '{he} needs {t} more'),
    ('-', '{p} has {n} {ts}. {q} has {m} fewer.', '{q} has {t} {tt}'),
    ('-', '{p} has {n} {ts} in a bag, but there is a hole in it, and {m} fall out.', '{t} {tt} stay in the bag'),
    ('*', '{p} has {n} boxes with {m} {ts} in each.', 'in all {he} has {t} {tt}'),
    ('*', '{n} people bring {m} {ts} each to {p}.', '{p} gets {t} {tt}'),
]


def problem(rng: random.Random) -> str:
    """A word problem that tells how it is solved."""
    sign, told, solved = rng.choice(PROBLEMS)
    p, q = rng.sample(PEOPLE, 2)
    he, _, him = PRONOUNS[p.gender]
    one, many = rng.choice(THINGS)
    n, m = rng.randint(3, 15), rng.randint(2, 9)
    n, m = {'+': (n, m), '-': (n + m, m), '*': (n % 4 + 2, m % 4 + 2)}[sign]
    total = {'+': n + m, '-': n - m, '*': n * m}[sign]
    day, day2 = rng.sample(DAYS, 2)
    words = {'p': p.name, 'q': q.name, 'he': he, 'him': him, 'He': upper(he), 'day': day, 'day2': day2}
    words |= {'n': n, 'm': m, 't': total, 'ts': many, 'tt': one if total == 1 else many}
    told, solved, rule = told.format(**words), solved.format(**words), f'{n} {sign} {m} = {total}'
    ends = [
        f'{upper(solved)}, because {rule}.', f'{rule}. {upper(solved)}.', f'We know that {rule}, so {solved}.',
        f'{upper(solved)}.', f'{rule}, so {solved}.',
    ]  # fmt: skip
    return f'{told} {rng.choice(ends)}'


CODE = [  # a function of two numbers, and what it does
    ('add', 'a + b', lambda a, b: a + b), ('subtract', 'a - b', lambda a, b: a - b), ('times',
    'a * b', lambda a, b: a * b),
    ('biggest', 'max(a, b)', max), ('smallest', 'min(a, b)', min), ('same', 'a == b', lambda a, b: a == b),
    ('twice', '2 * (a + b)', lambda a, b: 2 * (a + b)), ('is_less', 'a < b', lambda a, b: a < b),
]  # fmt: skip


def code(rng: random.Random) -> str:
    """A few lines of Python and what they print."""
    name, body, function = rng.choice(CODE)
    x, y, n, word = rng.randint(1, 20), rng.randint(1, 20), rng.randint(2, 6), rng.choice(SPELLED)
    return rng.choice([
        f'def {name}(a, b):\n    return {body}\n\nprint({name}({x}, {y}))  # prints {function(x, y)}',
        f'a = {x}\nb = {y}\nprint({body})\n# output: {function(x, y)}',
        f'for i in range({n}):\n    print(i)\n# output: {" ".join(map(str, range(n)))}',
        f"word = '{word}'\nprint(len(word))\n# output: {len(word)}",
        f"word = '{word}'\nprint(word[0], word[-1])\n# output: {word[0]} {word[-1]}",
        f"print('{word} ' * {n})\n# output: {' '.join([word] * n)}",
        f'numbers = [{x}, {y}, {n}]\nprint(sum(numbers))\n# output: {x + y + n}',
    ])  # fmt: skip


# ---- games: what is said can only be known from what was said before, which teaches to look back


def some_words(rng: random.Random, number: int) -> list[str]:
    """Different words of any kind, and numbers."""
    kinds = (list(ANIMALS), [many for _, many in THINGS], WORDS, list(BY_NAME), [str(n) for n in range(100)])
    found = {}
    while len(found) < number:
        found[rng.choice(rng.choice(kinds))] = True
    return list(found)


def chain(rng: random.Random) -> str:
    """Anna said: owl river 7 cups moon. Ben said: 7 cups. Mia said: river 7 cups moon.

    Parts begin anywhere: a word is known from the one before it, and not from its place.
    """
    words = some_words(rng, rng.randint(3, 9))
    parts = [words]
    for _ in range(rng.randint(2, 5)):
        start = rng.randrange(len(words) - 1)
        parts.append(words[start : start + rng.randint(2, 5)])
    return ' '.join(f'{rng.choice(list(BY_NAME))} said: {" ".join(part)}.' for part in parts)


def labels(rng: random.Random) -> str:
    """Words with letters, as a quiz has them, and which is which."""
    pairs = [f'{word}={letter}' for word, letter in zip(some_words(rng, rng.randint(2, 6)), 'ABCDEF')]
    return ''.join(f'- {pair}\n' for pair in pairs) + 'It is ' + ', '.join(rng.sample(pairs, len(pairs)))


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
SLOPPY = 0.06  # share of the documents that somebody typed without capitals and without a final full stop


def documents(rng: random.Random) -> Iterator[str]:
    """Documents without end, the kinds mixed so that their characters come in the shares of KINDS."""
    written = dict.fromkeys(KINDS, (300, 1))  # characters, documents: what a first guess of the length is made of
    while True:
        weights = [
            share * number / characters for (share, _), (characters, number) in zip(KINDS.values(), written.values())
        ]
        kind = rng.choices(list(KINDS), weights)[0]
        text = KINDS[kind][1](rng)
        characters, number = written[kind]
        written[kind] = characters + len(text), number + 1
        sloppy = kind != 'code' and rng.random() < SLOPPY
        yield text.lower().rstrip('.!?') if sloppy else text


def squeezed(text: str) -> float:
    data = text.encode('utf-8')
    return len(zlib.compress(data, 9)) / len(data)


def show(seed: int, size: int = 1_000_000):
    """Print three documents of each kind, their length and how far zlib packs them; then a text of this size."""
    rng = random.Random(seed)
    for kind, (_, function) in KINDS.items():
        print(f'---- {kind}', *(function(rng) for _ in range(3)), sep='\n\n')
    print('\nkind         share  characters a document   zlib')
    for kind, (share, function) in KINDS.items():
        made = [function(rng) for _ in range(1000)]
        print(f'{kind:10} {share:5} % {sum(map(len, made)) / 1000:23.0f} {squeezed(chr(10).join(made)):6.3f}')
    text, stream = '', documents(rng)
    while len(text) < size:
        text += next(stream) + '\n'
    words = text.split()
    rows = len(set(zip(words, words[1:], words[2:], words[3:])))
    print(f'{len(text):,} characters, zlib {squeezed(text):.3f}, {len(set(words)):,} different words')
    print(f'{rows / len(words):.2f} of the rows of four words are new')


if __name__ == '__main__':
    import console

    console.set_up(must_finish=False)
    show(seed=0)
