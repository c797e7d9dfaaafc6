"""
Questions about the world, and the right answers: people (in people.py), animals, opposites,
colours, days and seasons.

A kind of question is a function from a random.Random to an Example, and a line in FACTS. There are
many wordings and one answer: how to say it shall cost a small model nothing.
"""

import random

from data.tinyworld import facts
from data.tinyworld.patterns import sentence
from data.tinyworld.people import either, person_fact, who_has, who_is, work, yes_no
from data.tinyworld.wordings import Example, answer, answered, ask, one
from data.tinyworld.words import ORDINALS, article, capital, listed, other, plural, weighted

# -----------------------------------------------------------------------------
# animals, opposites, colours

ANIMAL = {  # kind of question: how often it is asked
    'animal_sound': 3,
    'animal_legs': 3,
    'animal_young': 3,
    'animal_says': 2,
    'animal_parent': 2,
    'animal_what': 1,
}


def animal(rng: random.Random) -> Example:
    """Its sound, its legs, its young; which animal says so, and what it is."""
    name = rng.choice(list(facts.ANIMALS))
    kind = weighted(rng, ANIMAL)
    sound, legs, young = facts.ANIMALS[name]
    words = {'name': name, 'many': plural(name), 'sound': sound, 'legs': legs, 'young': young}
    voice = '' if kind == 'animal_what' else kind
    question = ask(rng, kind, voice, **words)

    # the answer, and what another animal would make of it
    stranger = other(rng, [key for key, row in facts.ANIMALS.items() if row[2] != young], name)
    its_sound, _, its_young = facts.ANIMALS[stranger]
    parents = [key for key, row in facts.ANIMALS.items() if row[2] == young]
    right, wrong = {
        'animal_sound': (sound, its_sound),
        'animal_legs': (legs, other(rng, (2, 4, 6, 8), legs)),
        'animal_young': (article(young), article(its_young)),
        'animal_says': (capital(article(name)), capital(article(stranger))),
        'animal_parent': (' or a young '.join(parents), stranger),
        'animal_what': (sound, its_sound),
    }[kind]
    grader = 'number' if kind == 'animal_legs' else 'contains'
    return answered(question, kind, words, right, wrong, grader)


def opposite(rng: random.Random) -> Example:
    """The opposite of a word, which may stand in quotes."""
    pair = rng.choice(facts.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    question = ask(rng, 'opposite', word=rng.choice((word, word, word, f'"{word}"')))
    wrong = rng.choice([word for row in facts.OPPOSITES if row != pair for word in row])
    expected = f'is {right}'
    return answered(
        question, 'opposite', {'word': word}, right, wrong, expected=expected, keep=(word,)
    )


def colour(rng: random.Random) -> Example:
    """The colour of a thing; sometimes which of two it has, or a thing of a colour."""
    thing, right = rng.choice(list(facts.COLOURS.items()))
    wrong = other(rng, sorted(set(facts.COLOURS.values())), right)
    kind = rng.random()

    # 1) Which of two?
    if kind < 0.15:
        first, second = rng.sample((right, wrong), 2)
        question = ask(rng, 'which_colour', thing=thing, first=first, second=second)
        more = {'absent': [wrong]}
        return answered(question, 'colour_of', {'thing': thing}, right, wrong, more=more)

    # 2) Something of this colour
    if kind < 0.3:
        question = ask(rng, 'thing_of', colour=right)
        things = [thing for thing, hue in facts.COLOURS.items() if hue == right]
        content = answer('colour_of', thing=things[0], value=right)
        expected = [f'{thing} is {right}' for thing in things]
        return one(question, content, 'contains', expected, answer('no_thing'))

    # 3) Its colour, of one or of many
    many = thing
    if thing.startswith('a ') and rng.random() < 0.4:
        many = plural(thing.removeprefix('a '))
    are, do = ('are', 'do') if many != thing else ('is', 'does')
    question = ask(rng, 'colour_of', thing=thing, many=many, are=are, do=do)
    return answered(question, 'colour_of', {'thing': thing}, right, wrong)


def claim(rng: random.Random) -> Example:
    """Is it so? Of an animal's sound, the colour of a thing, the opposite of a word."""
    sounds = {name: row[0] for name, row in facts.ANIMALS.items()}
    opposites = dict([*facts.OPPOSITES, *(pair[::-1] for pair in facts.OPPOSITES)])
    kind, table = rng.choice((
        ('claim_sound', sounds),
        ('claim_colour', facts.COLOURS),
        ('claim_opposite', opposites),
    ))  # fmt: skip
    thing, right = rng.choice(list(table.items()))
    wrong = other(rng, sorted({*table.values()} - {thing}), right)
    question = ask(rng, kind, thing=thing, value=rng.choice((right, wrong)))
    say = lambda value: sentence(answer(kind, thing=thing, value=value))
    return one(question, say(right), 'contains', right, say(wrong), more={'absent': [wrong]})


# -----------------------------------------------------------------------------
# days, months, seasons, the village


def after_before(rng: random.Random) -> Example:
    """The neighbours in a cycle of days, months or seasons."""
    kind = rng.choice(('day', 'day', 'month', 'season'))
    cycle = facts.CYCLES[kind]
    place = rng.randrange(len(cycle))
    side, step = rng.choice((('after', 1), ('before', -1)))
    word = cycle[place]
    right = cycle[(place + step) % len(cycle)]
    asked = f'day_{side}' if kind == 'day' else side
    question = ask(rng, asked, f'{kind}_{side}', word=word, kind=kind, side=side)
    wrong = rng.choice([candidate for candidate in cycle if candidate not in (word, right)])
    return answered(question, side, {'word': word}, right, wrong, expected=f'comes {right}')


def ordinal(rng: random.Random) -> Example:
    """The third day of the week; the last month of the year."""
    kind, whole, cycle = rng.choice((('day', 'week', facts.DAYS), ('month', 'year', facts.MONTHS)))
    place = rng.choice((0, len(cycle) - 1, rng.randrange(len(cycle))))
    which = ORDINALS[place]
    if place == len(cycle) - 1 and rng.random() < 0.7:
        which = 'last'
    words = {'which': which, 'kind': kind, 'whole': whole}
    question = ask(rng, 'ordinal', **words)
    right = cycle[place]
    return answered(question, 'ordinal', words, right, other(rng, cycle, right))


def season(rng: random.Random) -> Example:
    """The season of a month, or the months of a season."""
    month = rng.choice(facts.MONTHS)
    name = facts.SEASON_OF[month]
    if rng.random() < 0.7:
        question = ask(rng, 'season_of', month=month)
        wrong = other(rng, facts.SEASONS, name)
        words = {'month': month}
        return answered(question, 'season_of', words, name, wrong, expected=f'in {name}')
    question = ask(rng, 'months_of', name=name)
    three_from = lambda first: listed([facts.MONTHS[(first + i) % 12] for i in range(3)])
    first = 3 * facts.SEASONS.index(name) - 1
    wrong = three_from(first + rng.choice((1, 3, 6, 9)))
    return answered(question, 'months_of', {'name': name}, three_from(first), wrong)


GENERAL = {  # kind of question: (what is right, something wrong)
    'days_in_week': ('7', '8'),
    'months_in_year': ('12', '10'),
    'seasons_in_year': ('4', '5'),
    'list_days': (listed(facts.DAYS), 'Monday and Friday'),
    'list_months': (listed(facts.MONTHS), 'May and June'),
    'list_seasons': (listed(facts.SEASONS), 'day and night'),
    'village_name': (facts.VILLAGE, 'London'),
    'villagers': (listed([person.name for person in facts.PEOPLE]), 'Anna and Ben'),
    'how_many_people': (str(len(facts.PEOPLE)), '100'),
    'village': ('village', 'mountain'),
}


def general(rng: random.Random) -> Example:
    """How many days a week has, who lives in the village: one right answer each."""
    kind = rng.choice(list(GENERAL))
    return answered(ask(rng, kind), kind, {}, *GENERAL[kind])


FACTS = {  # how often each kind is asked
    person_fact: 40, who_is: 6, who_has: 12, yes_no: 11, either: 5, work: 6, animal: 12,
    opposite: 7, colour: 5, claim: 5, after_before: 7, ordinal: 2, season: 4, general: 4,
}  # fmt: skip


def fact(rng: random.Random) -> Example:
    """A question about the world."""
    return weighted(rng, FACTS)(rng)
