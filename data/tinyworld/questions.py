"""
What can be asked about the world, and the right answers: people (in people.py), animals, opposites, colours, days and
seasons.

Every kind of question is a function from a random.Random to an Example, and a line in FACTS. Wordings are many,
answers few: how to say it is to cost a small model nothing.
"""

import random
from collections.abc import Callable

from data.tinyworld import facts
from data.tinyworld.facts import PEOPLE
from data.tinyworld.people import either, person_fact, who_has, who_is, work, yes_no
from data.tinyworld.wordings import Example, article, ask, listed, one, other, sentence

# -----------------------------------------------------------------------------
# animals, opposites, colours

ANIMAL = {
    'sound': (
        'what does [{a_name}|the {name}] say|[what|which] [sound|noise] does {a_name} make|how does {a_name} sound'
        "|what is the sound of {a_name}|what sound does the {name} make|what's the noise {a_name} makes"
        "|what do {many} say",
        'what {a_name} says|[what|which] [sound|noise] {a_name} makes|the sound of {a_name}',
    ),
    'legs': (
        'how many legs does [{a_name}|the {name}] have|how many legs has {a_name} [got|]'
        '|how many legs are on {a_name}'
        '|what number of legs does {a_name} have|{a_name} has how many legs|how many legs do {many} have',
        'how many legs {a_name} has|the number of legs of {a_name}',
    ),
    'young': (
        'what is a [young|baby|little] {name} called|what do you call a [young|baby|little] {name}'
        '|what is the name for a baby {name}'
        '|what is the [young|baby] of {a_name} called|how do you call a [young|baby] {name}'
        '|what are [young|baby] {many} called|[young|baby] {name}|name of a [young|baby] {name}',
        'what a [young|baby] {name} is called|what you call a [young|baby] {name}|the name [of|for] a baby {name}',
    ),
    'says': (
        '[what|which] animal says {sound}|who says {sound}|what says {sound}|[what|which] animal makes {sound}',
        '[what|which] animal says {sound}|who says {sound}',
    ),
    'parent': (
        'what is {a_young}|what kind of animal is {a_young}|what does {a_young} grow into'
        '|{a_young} is the young of what'
        '|what will {a_young} be when it is big',
        'what {a_young} is|what kind of animal {a_young} is|what {a_young} grows into',
    ),
    'what': ('what is {a_name}|what do you know about {many}|what kind of animal is {a_name}',
    'about {many}|what {a_name} is|about the {name}'),
}  # fmt: skip
MANY = {'mouse': 'mice', 'sheep': 'sheep'}


def animal(rng: random.Random) -> Example:
    """Its sound, its legs, its young; which animal says so, and what it is."""
    name, kind = rng.choice(list(facts.ANIMALS)), rng.choices(list(ANIMAL), (3, 3, 3, 2, 2, 1))[0]
    sound, legs, young = facts.ANIMALS[name]
    many = MANY.get(name, f'{name}s')
    question = ask(
        rng,
        *ANIMAL[kind],
        voice='' if kind == 'what' else f'animal_{kind}',
        name=name,
        a_name=article(name),
        many=many,
        sound=sound,
        young=young,
        a_young=article(young),
    )
    wrong = other(rng, [animal for animal, row in facts.ANIMALS.items() if row[2] != young], name)
    parents = [animal for animal, row in facts.ANIMALS.items() if row[2] == young]
    subject = article(name).capitalize()
    say, expected, instead, grader = {
        'sound': (f'{subject} says {{}}.', sound, facts.ANIMALS[wrong][0], 'contains'),
        'legs': (f'{subject} has {{}} legs.', legs, other(rng, (2, 4, 6, 8), legs), 'number'),
        'young': (f'A young {name} is called {{}}.', article(young), article(facts.ANIMALS[wrong][2]), 'contains'),
        'says': (f'{{}} says {sound}.', subject, article(wrong).capitalize(), 'contains'),
        'parent': (f'{article(young).capitalize()} is a young {{}}.', ' or a young '.join(parents), wrong, 'contains'),
        'what': (
            f'{subject} is an animal. It has {legs} legs and says {{}}.',
            sound,
            facts.ANIMALS[wrong][0],
            'contains',
        ),
    }[kind]
    return one(question, say.format(expected), grader, expected, say.format(instead))


def opposite(rng: random.Random) -> Example:
    pair = rng.choice(facts.OPPOSITES)
    word, answer = pair if rng.random() < 0.5 else pair[::-1]
    question = ask(
        rng,
        "what is the opposite [of|to] {word}|what's the opposite of {word}|the opposite of {word} is what"
        '|[which|what] word is the opposite of {word}|what word means the opposite of {word}'
        '|what is opposite to {word}|what is the [contrary|reverse] of {word}'
        '|not {word} but what|what is something that is not {word}|opposite of {word}|opposite {word}',
        'what the opposite of {word} is|the opposite of {word}|the word that is the opposite of {word}',
        'name the opposite of {word}|give me the opposite of {word}|say the opposite of {word}',
        voice='opposite',
        word=rng.choice((word, word, word, f'"{word}"')),
    )
    say = lambda answer: f'The opposite of {word} is {answer}.'
    wrong = rng.choice([word for row in facts.OPPOSITES if row != pair for word in row])
    return one(question, say(answer), 'contains', f'is {answer}', say(wrong), keep=(word,))


PLURALS = {'a tomato': 'tomatoes', 'a leaf': 'leaves', 'a strawberry': 'strawberries'}


def colour(rng: random.Random) -> Example:
    """The colour of a thing; sometimes which of two it has, or a thing of a colour."""
    thing, answer = rng.choice(list(facts.COLOURS.items()))
    subject = thing[0].upper() + thing[1:]
    wrong = other(rng, sorted(set(facts.COLOURS.values())), answer)
    kind = rng.random()
    if kind < 0.15:
        first, second = rng.sample((answer, wrong), 2)
        question = ask(rng, f'is {thing} {first} or {second}|which [colour|color] has {thing}, {first} or {second}')
        more = {'absent': [wrong]}
        return one(question, f'{subject} is {answer}.', 'contains', answer, f'{subject} is {wrong}.', more=more)
    if kind < 0.3:
        question = ask(rng, '[what|which thing] is {answer}|what has the [colour|color] {answer}',
                       'something {answer}', 'name something {answer}|name a {answer} thing',
                       voice='thing_of', colour=answer, answer=answer)  # fmt: skip
        things = [thing for thing, hue in facts.COLOURS.items() if hue == answer]
        first = things[0][0].upper() + things[0][1:]
        return one(
            question, f'{first} is {answer}.', 'contains', [f'{thing} is {answer}' for thing in things], 'Nothing is.'
        )
    many = thing
    if thing.startswith('a ') and rng.random() < 0.4:
        many = PLURALS.get(thing, f'{thing.removeprefix("a ")}s')
    are, do = ('are', 'do') if many != thing else ('is', 'does')
    question = ask(
        rng,
        f'[what|which] [colour|color] {are} {{many}}|[what|which] [colour|color] {do} {{many}} have'
        f'|{{many}} {are} what [colour|color]'
        "|what is the [colour|color] of {many}|what's the [colour|color] of {many}|[colour|color] of {many}"
        '|{many} [colour|color]',
        f'[what|which] [colour|color] {{many}} {are}|the [colour|color] of {{many}}',
        'name the [colour|color] of {many}',
        voice='colour_of',
        thing=thing,
        many=many,
    )
    return one(question, f'{subject} is {answer}.', 'contains', answer, f'{subject} is {wrong}.')


def claim(rng: random.Random) -> Example:
    """Is it so? Of an animal's sound, the colour of a thing, the opposite of a word."""
    sounds = {name: row[0] for name, row in facts.ANIMALS.items()}
    opposites = dict([*facts.OPPOSITES, *(pair[::-1] for pair in facts.OPPOSITES)])
    table, direct, said = rng.choice((
        (sounds, 'does {a_thing} say {value}|{a_thing} says {value}, [right|yes|true]', '{a_thing} says {value}.'),
        (facts.COLOURS, 'is {thing} {value}|{thing} is {value}, [right|yes|true]', '{thing} is {value}.'),
        (opposites, 'is {value} the opposite of {thing}|is the opposite of {thing} {value}',
         'the opposite of {thing} is {value}.'),
    ))  # fmt: skip
    thing, value = rng.choice(list(table.items()))
    wrong = other(rng, sorted({*table.values()} - {thing}), value)
    words = dict(thing=thing, a_thing=article(thing))
    question = ask(rng, direct, **words, value=rng.choice((value, wrong)))
    say = lambda value: sentence(said.format(**words, value=value))
    return one(question, say(value), 'contains', value, say(wrong), more={'absent': [wrong]})


# -----------------------------------------------------------------------------
# days, months, seasons, the village


def after_before(rng: random.Random) -> Example:
    """The neighbours in a cycle of days, months or seasons."""
    kind, cycle = rng.choice(
        (('day', facts.DAYS), ('day', facts.DAYS), ('month', facts.MONTHS), ('season', facts.SEASONS))
    )
    place, (side, step) = rng.randrange(len(cycle)), rng.choice((('after', 1), ('before', -1)))
    word, answer = cycle[place], cycle[(place + step) % len(cycle)]
    near = 'after|next after|right after' if step == 1 else 'before|just before|right before'
    direct = (
        f'[what|which] {{kind}} [comes|is] [{near}] {{word}}|what comes [{near}] {{word}}'
        f'|[what|which] {{kind}} is it {{side}} {{word}}'
        '|[what|which] is the {kind} {side} {word}|what is {side} {word}'
    )
    if kind == 'day':
        then, given = ('is tomorrow', 'yesterday was') if step == 1 else ('was yesterday', 'tomorrow is')
        direct += f'|if today is {{word}}, what [day|] {then}|today is {{word}}. what [day|] {then}'
        direct += f'|if {given} {{word}}, what [day|] is today|{given} {{word}}. what [day|] is it today'
    question = ask(
        rng,
        direct,
        '[what|which] {kind} [comes|is] {side} {word}|what comes {side} {word}',
        voice=f'{kind}_{side}',
        word=word,
        kind=kind,
        side=side,
    )
    say = lambda answer: f'{side.capitalize()} {word} comes {answer}.'
    wrong = rng.choice([candidate for candidate in cycle if candidate not in (word, answer)])
    return one(question, say(answer), 'contains', f'comes {answer}', say(wrong))


ORDINALS = 'first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth'.split()


def ordinal(rng: random.Random) -> Example:
    """The third day of the week; the last month of the year."""
    kind, whole, cycle = rng.choice((('day', 'week', facts.DAYS), ('month', 'year', facts.MONTHS)))
    place = rng.choice((0, len(cycle) - 1, rng.randrange(len(cycle))))
    which = 'last' if place == len(cycle) - 1 and rng.random() < 0.7 else ORDINALS[place]
    question = ask(
        rng,
        "[what|which] is the {which} {kind} of the {whole}|[what|which] {kind} is the {which} [one|] of the {whole}"
        "|what's the {which} {kind}",
        '[what|which] the {which} {kind} of the {whole} is|the {which} {kind} of the {whole}',
        'name the {which} {kind} of the {whole}',
        voice='ordinal', which=which, kind=kind, whole=whole,
    )  # fmt: skip
    say = lambda answer: f'The {which} {kind} of the {whole} is {answer}.'
    return one(question, say(cycle[place]), 'contains', cycle[place], say(other(rng, cycle, cycle[place])))


def season(rng: random.Random) -> Example:
    """The season of a month, or the months of a season."""
    number = rng.randrange(12)
    month, name = facts.MONTHS[number], facts.SEASONS[(number + 1) % 12 // 3]
    if rng.random() < 0.7:
        question = ask(
            rng,
            '[what|which] season is {month} in|in [what|which] season is {month}|what season is it in {month}'
            '|what season is {month}'
            '|[what|which] season does {month} belong to|is {month} in winter, spring, summer or autumn',
            '[what|which] season {month} is in|the season of {month}|what season it is in {month}',
            voice='season_of',
            month=month,
        )
        wrong = other(rng, facts.SEASONS, name)
        return one(question, f'{month} is in {name}.', 'contains', f'in {name}', f'{month} is in {wrong}.')
    question = ask(
        rng,
        '[what|which] months are in {name}|[what|which] are the months of {name}|when is {name}'
        '|what months belong to {name}'
        '|in what months is {name}|[what|which] months are {name}',
        '[what|which] months are in {name}|when {name} is',
        'name the months of {name}',
        voice='months_of',
        name=name,
    )
    months = lambda first: listed([facts.MONTHS[(first + i) % 12] for i in range(3)])
    first = 3 * facts.SEASONS.index(name) - 1
    wrong = months(first + rng.choice((1, 3, 6, 9)))
    return one(question, f'{months(first)} are in {name}.', 'contains', months(first), f'{wrong} are in {name}.')


NAMES = listed([person.name for person in PEOPLE])
GENERAL = [  # voice; as one asks it, behind 'tell me'; the answer, what it is graded by, something wrong instead
    ('days_in_week',
     'how many days [are in|are there in|has] a week|how many days does a week have', 'how many days a week has',
     'A week has {} days.', '7', '8'),
    ('months_in_year',
     'how many months [are in|are there in|has] a year|how many months does a year have', 'how many months a year has',
     'A year has {} months.', '12', '10'),
    ('seasons_in_year',
     'how many seasons are there [in a year|]|how many seasons does a year have', 'how many seasons there are',
     'There are {} seasons.', '4', '5'),
    ('list_days',
     '[what|which] are the days of the week', '[the names of|all|] the days of the week',
     'The days are {}.', listed(facts.DAYS), 'Monday and Friday'),
    ('list_months',
     '[what|which] are the months of the year', '[the names of|all|] the months of the year',
     'The months are {}.', listed(facts.MONTHS), 'May and June'),
    ('list_seasons',
     '[what|which] are the [four|] seasons', '[the names of|all|] the [four|] seasons',
     'The seasons are {}.', listed(facts.SEASONS), 'day and night'),
    ('village_name',
     'what is the [village|town|place] called|what is the name of the village|[what|which] village do you know',
     'what the village is called|the name of the village',
     'The village is called {}.', facts.VILLAGE, 'London'),
    ('villagers',
     'who lives in [Willowby|the village]|who are the people of [Willowby|the village]|who do you know'
     '|which people do you know', 'who lives in [Willowby|the village]|the names of the people',
     f'{{}} live in {facts.VILLAGE}.', NAMES, 'Anna and Ben'),
    ('how_many_people',
     'how many people live in [Willowby|the village]|how many people do you know',
     'how many people live in [Willowby|the village]',
     f'{{}} people live in {facts.VILLAGE}.', str(len(PEOPLE)), '100'),
    ('village',
     'what is Willowby|where is Willowby|do you know Willowby', 'about Willowby|about the village|what Willowby is',
     f'{facts.VILLAGE} is a {{}} where {len(PEOPLE)} people live.', 'village', 'mountain'),
]  # fmt: skip


def general(rng: random.Random) -> Example:
    voice, direct, indirect, pattern, expected, wrong = rng.choice(GENERAL)
    question = ask(rng, direct, indirect, voice=voice)
    return one(question, pattern.format(expected), 'contains', expected, pattern.format(wrong))


FACTS: dict[Callable, int] = {  # how often each kind is asked
    person_fact: 40, who_is: 6, who_has: 12, yes_no: 11, either: 5, work: 6, animal: 12, opposite: 7, colour: 5,
    claim: 5, after_before: 7, ordinal: 2, season: 4, general: 4,
}  # fmt: skip


def fact(rng: random.Random) -> Example:
    return rng.choices(list(FACTS), list(FACTS.values()))[0](rng)
