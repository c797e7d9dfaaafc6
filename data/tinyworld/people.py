"""
Questions about the people of Willowby, and the right answers: one attribute of one person, who somebody is,
everybody of whom something is true, whether it is true, and what their work is.
"""

import random

from data.tinyworld import facts
from data.tinyworld.facts import PEOPLE, Person
from data.tinyworld.wordings import Example, article, ask, listed, one, other

# attribute: (as one asks it, behind 'tell me', the answer)
RELATIONS = {
    'job': (
        "[what is|what's] {name}'s [job|work|profession|occupation]|what does {name} do[| for a living| for work]"
        '|what [job|work] does {name} [have|do]|what kind of [job|work] does {name} [have|do]'
        '|what does {name} work as'
        '|what is the [job|work|profession] of {name}|{name} works as what|what is {name}|what {name} do',
        "what {name}'s [job|work|profession] is|what {name} does[| for a living| for work]"
        '|what [job|work] {name} does'
        "|{name}'s job|the [job|work] of {name}|what {name} works as",
        '{name} is {a_job}.',
    ),
    'home': (
        "where does {name} live|[where is|where's] {name}'s [house|home]|where [can i find|do i find] {name}'s house"
        '|where is the [house|home] of {name}|in what place does {name} live|where is {name} at home'
        '|where do {name} live'
        '|where does {name} have [her|his] [house|home]|what place does {name} live in|where {name} live',
        "where {name} lives|where {name}'s [house|home] is|where to find {name}'s house|where {name} is at home"
        '|where the house of {name} is',
        '{name} lives {home}.',
    ),
    'pet': (
        'what [pet|animal|kind of pet|kind of animal] does {name} [have|own|keep]'
        "|[what is|what's] {name}'s [pet|animal]"
        '|which [pet|animal] does {name} [have|own]|what animal lives with {name}|what is the pet of {name}'
        "|does {name} have [a pet|any pets]|what kind of [animal|pet] is {name}'s pet|what pet has {name} got"
        '|what pets does {name} have',
        "what [pet|animal] {name} has|what {name}'s pet is|which [animal|pet] {name} [has|owns]|{name}'s pet"
        '|what kind of pet {name} has',
        '{name} has {a_pet}.',
    ),
    'food': (
        "[what is|what's] {name}'s [favourite|favorite] [food|thing to eat|meal]"
        '|which food does {name} like [best|most]'
        '|what [food|] does {name} like [best|most]|what does {name} [like|love] to eat'
        '|what food does {name} [like|love]'
        '|what is the [favourite|favorite] food of {name}|what does {name} like eating [best|most]'
        '|what does {name} want to eat|what does {name} prefer to eat',
        "what {name}'s [favourite|favorite] food is|what [food|] {name} likes best"
        '|what {name} likes to eat [best|most|]'
        "|{name}'s [favourite|favorite] food|what {name} loves to eat",
        '{name} likes {food} best.',
    ),
    'colour': (
        "[what is|what's] {name}'s [favourite|favorite] [colour|color]"
        '|which [colour|color] does {name} like [best|most]'
        '|what [colour|color] does {name} [like|love|prefer]|what [colour|color] does {name} like [best|most]'
        '|what is the [favourite|favorite] [colour|color] of {name}',
        "what {name}'s [favourite|favorite] [colour|color] is|[what|which] [colour|color] {name} likes [best|most]"
        "|{name}'s [favourite|favorite] [colour|color]",
        '{name} likes {colour} best.',
    ),
    'friend': (
        "[who is|who's] {name}'s [best|] friend|who is the [best|] friend of {name}"
        '|who is {name} [best|] friends with'
        "|what is the name of {name}'s [best|] friend|who is {name}'s best friend|what is {name}'s best friend called"
        '|does {name} have a [best|] friend',
        "who {name}'s [best|] friend is|who is {name}'s best friend|the name of {name}'s [best|] friend"
        '|who {name} is friends with',
        "{name}'s best friend is {friend}.",
    ),
}
ATTRIBUTES = list(RELATIONS)


def described(person: Person) -> dict:
    """The words that the patterns about a person have holes for."""
    he, his, him = ('she', 'her', 'her') if person.gender == 'f' else ('he', 'his', 'him')
    words = {**person._asdict(), 'he': he, 'his': his, 'him': him}
    return {**words, 'a_job': article(person.job), 'a_pet': article(person.pet)}


def told(person: Person, attribute: str, value: str = '') -> str:
    """The answer about one attribute of a person; with a value, as if that were true."""
    person = person._replace(**{attribute: value}) if value else person
    return RELATIONS[attribute][2].format(**described(person))


def another_value(rng: random.Random, person: Person, attribute: str) -> str:
    """What is true of somebody else; nobody is a friend of himself."""
    values = {getattr(somebody, attribute) for somebody in PEOPLE}
    return rng.choice(sorted(values - {person.name, getattr(person, attribute)}))


def person_fact(rng: random.Random) -> Example:
    """One attribute of one person."""
    person, attribute = rng.choice(PEOPLE), rng.choice(ATTRIBUTES)
    direct, indirect, _ = RELATIONS[attribute]
    wrong = told(person, attribute, another_value(rng, person, attribute))
    question = ask(rng, direct, indirect, voice=attribute, **described(person))
    return one(question, told(person, attribute), 'contains', getattr(person, attribute), wrong)


def who_is(rng: random.Random) -> Example:
    person = rng.choice(PEOPLE)
    question = ask(
        rng,
        'who is {name}|who is this {name}|do you know {name}|have you heard of {name}|who is {name} of Willowby'
        '|who is {name}'
        '|who {name} is|what do you know about {name}|what can you tell me about {name}',
        'who {name} is|about {name}|something about {name}|more about {name}|all about {name}|about {name}',
        'describe {name}|talk about {name}|introduce {name}',
        voice='who_is',
        name=person.name,
    )
    pronoun = 'She' if person.gender == 'f' else 'He'
    say = lambda somebody: f'{person.name} is {article(somebody.job)}. {pronoun} lives {somebody.home}.'
    wrong = rng.choice([somebody for somebody in PEOPLE if somebody.job != person.job])
    return one(question, say(person), 'contains', person.job, say(wrong))


# attribute: (as one asks it, behind 'tell me', the answer for one person, for several)
WHO = {
    'job': (
        'who is the {value}|who works as {a_value}|who is {a_value}|who has the job of {value}|who here is {a_value}'
        '|who are the {value}s|which people are {value}s|which [person|villager] is {a_value}'
        '|who is [the {value}|{a_value}] in [Willowby|the village]',
        'who the {value} is|who works as {a_value}|the name of the {value}',
        '{names} is the {value}.',
        '{names} are {value}s.',
    ),
    'home': (
        'who lives {value}|who has a house {value}|whose [house|home] is {value}|who has [her|his] home {value}'
        '|which people live {value}|who are the people {value}|who is at home {value}',
        'who lives {value}|whose house is {value}|who has a house {value}',
        '{names} lives {value}.',
        '{names} live {value}.',
    ),
    'pet': (
        'who has {a_value}|who owns {a_value}|whose pet is {a_value}|who keeps {a_value}|who has got {a_value}'
        '|who has a pet {value}|which people have {a_value}',
        'who has {a_value}|who owns {a_value}|whose pet is {a_value}',
        '{names} has {a_value}.',
        '{names} have {a_value}.',
    ),
    'food': (
        'who likes {value} [best|most|]|whose [favourite|favorite] food is {value}|who likes to eat {value}'
        '|who loves {value}'
        '|who likes eating {value}',
        'who likes {value} best|whose [favourite|favorite] food is {value}',
        '{names} likes {value} best.',
        '{names} like {value} best.',
    ),
    'colour': (
        'who likes {value} [best|most|]|whose [favourite|favorite] [colour|color] is {value}|who loves {value}'
        '|who likes the [colour|color] {value}',
        'who likes {value} best|whose [favourite|favorite] [colour|color] is {value}',
        '{names} likes {value} best.',
        '{names} like {value} best.',
    ),
    'friend': (
        'who is {value} the best friend of|whose [best|] friend is {value}|who has {value} as a friend',
        'whose [best|] friend is {value}|who has {value} as best friend',
        '{value} is the best friend of {names}.',
        '',
    ),
}


def fishermen(text: str) -> str:
    return text.replace('fishermans', 'fishermen')


def who_has(rng: random.Random) -> Example:
    """The other way round: everybody of whom something is true."""
    attribute = rng.choice(list(WHO))
    direct, indirect, single, several = WHO[attribute]
    value = getattr(rng.choice(PEOPLE), attribute)
    names = [person.name for person in PEOPLE if getattr(person, attribute) == value]
    strangers = [person.name for person in PEOPLE if person.name not in (*names, value)]
    pattern = single if len(names) == 1 else several
    say = lambda names: fishermen(pattern.format(names=listed(names), **words))
    words = {'value': value, 'a_value': article(value)}
    question = fishermen(ask(rng, direct, indirect, voice=f'who_{attribute}', **words))
    return one(question, say(names), 'contains', listed(names), say(rng.sample(strangers, len(names))))


YES_NO = {
    'job': 'is {name} {a_value}|does {name} work as {a_value}|{name} is {a_value}, [right|yes|true]'
    '|is {name} the {value}'
    '|is it true that {name} is {a_value}',
    'home': "does {name} live {value}|is {name}'s [house|home] {value}|{name} lives {value}, [right|yes|true]",
    'pet': "does {name} have {a_value}|is {name}'s pet {a_value}|{name} has {a_value}, [right|yes|true]"
    "|has {name} got {a_value}"
    '|does {name} own {a_value}',
    'food': "does {name} like {value} best|is {value} {name}'s [favourite|favorite] food"
    "|is {name}'s [favourite|favorite] food {value}",
    'colour': "does {name} like {value} best|is {value} {name}'s [favourite|favorite] [colour|color]"
    "|is {name}'s [favourite|favorite] [colour|color] {value}",
    'friend': "is {value} {name}'s [best|] friend|is {name}'s best friend {value}"
    "|is {value} the best friend of {name}"
    '|is {name} friends with {value}|are {name} and {value} [best|] friends',
}  # fmt: skip


def yes_no(rng: random.Random) -> Example:
    """Is it so? The answer is what is so: to recall it and to compare it too is more than a small model can do."""
    person, attribute = rng.choice(PEOPLE), rng.choice(ATTRIBUTES)
    value = getattr(person, attribute)
    claimed = value if rng.random() < 0.5 else another_value(rng, person, attribute)
    words = described(person) | dict(value=claimed, a_value=article(claimed))
    question = ask(rng, YES_NO[attribute], voice=f'is_{attribute}', **words)
    wrong = another_value(rng, person, attribute) if claimed == value else claimed
    mistaken = told(person, attribute, wrong)
    return one(question, told(person, attribute), 'contains', value, mistaken, more={'absent': [wrong]})


EITHER = {
    'job': 'is {name} {a_first} or {a_second}|does {name} work as {a_first} or as {a_second}'
    '|which is {name}, {a_first} or {a_second}',
    'home': "does {name} live {first} or {second}|is {name}'s [house|home] {first} or {second}",
    'pet': "does {name} have {a_first} or {a_second}|is {name}'s pet {a_first} or {a_second}",
    'food': "does {name} [like|prefer] {first} or {second}|is {name}'s [favourite|favorite] food {first} or {second}"
    '|what does {name} like best, {first} or {second}',
    'colour': 'does {name} [like|prefer] {first} or {second}|what does {name} like best, {first} or {second}'
    "|is {name}'s [favourite|favorite] [colour|color] {first} or {second}",
    'friend': "is {name}'s [best|] friend {first} or {second}|is {name} friends with {first} or [with|] {second}"
    "|who is {name}'s [best|] friend, {first} or {second}",
}  # fmt: skip


def either(rng: random.Random) -> Example:
    """Is it this or that?"""
    person, attribute = rng.choice(PEOPLE), rng.choice(ATTRIBUTES)
    right, wrong = getattr(person, attribute), another_value(rng, person, attribute)
    first, second = rng.sample((right, wrong), 2)
    words = dict(first=first, second=second, a_first=article(first), a_second=article(second))
    question = ask(rng, EITHER[attribute], voice=f'or_{attribute}', **described(person), **words)
    mistaken = told(person, attribute, wrong)
    return one(question, told(person, attribute), 'contains', right, mistaken, more={'absent': [wrong]})


WORK = [  # as one asks it, behind 'tell me', as a command, the voice
    (
        'what does {a_job} do|what is the work of {a_job}|what do {job}s do|what is {a_job}',
        'what {a_job} does|what {job}s do',
        '',
        'job_does',
    ),
    (
        'where does {a_job} work|where do {job}s work|what place does {a_job} work in',
        'where {a_job} works|where {job}s work',
        '',
        'job_place',
    ),
    (
        "where does {name} work|where is {name}'s [work|workplace]|where does {name} go to work"
        '|in what place does {name} work',
        'where {name} works|where {name} goes to work',
        '',
        'works_where',
    ),
]


def work(rng: random.Random) -> Example:
    """What a job is for, where it is done, or where a person works."""
    person, kind = rng.choice(PEOPLE), rng.randrange(3)
    question = ask(rng, *WORK[kind], **described(person))
    subject = person.name if kind == 2 else article(person.job).capitalize()
    say = lambda job: f'{subject} {facts.JOBS[job][0]}.' if kind == 0 else f'{subject} works {facts.JOBS[job][1]}.'
    expected = facts.JOBS[person.job][min(kind, 1)]
    return one(
        fishermen(question), say(person.job), 'contains', expected, say(other(rng, list(facts.JOBS), person.job))
    )
