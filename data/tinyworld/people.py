"""
Questions about the people of Willowby, and the right answers: one field of one person, who
somebody is, everybody of whom something is true, whether it is true, and what their work is.
"""

import random

from data.tinyworld.facts import FIELDS, JOBS, PEOPLE, Person
from data.tinyworld.wordings import Example, answer, ask, one
from data.tinyworld.words import PRONOUNS, listed, mend_plurals, other


def described(person: Person) -> dict:
    """The words about a person that fill the holes of wordings."""
    does, place = JOBS[person.job]
    return {**person._asdict(), **PRONOUNS[person.gender], 'does': does, 'place': place}


def told(person: Person, field: str, value: str = '') -> str:
    """The answer about one field of a person; with a value, as if that were true."""
    person = person._replace(**{field: value}) if value else person
    return answer(field, **described(person))


def another_value(rng: random.Random, person: Person, field: str) -> str:
    """What is true of somebody else; nobody is a friend of himself."""
    values = {getattr(somebody, field) for somebody in PEOPLE}
    return rng.choice(sorted(values - {person.name, getattr(person, field)}))


def person_fact(rng: random.Random) -> Example:
    """One field of one person."""
    person = rng.choice(PEOPLE)
    field = rng.choice(FIELDS)
    wrong = told(person, field, another_value(rng, person, field))
    question = ask(rng, field, **described(person))
    return one(question, told(person, field), 'contains', getattr(person, field), wrong)


def who_is(rng: random.Random) -> Example:
    """Who is Anna? Her job and her home."""
    person = rng.choice(PEOPLE)
    words = described(person)
    question = ask(rng, 'who_is', **words)
    wrong = rng.choice([somebody for somebody in PEOPLE if somebody.job != person.job])
    mistaken = answer('who_is', **words | {'job': wrong.job, 'home': wrong.home})
    return one(question, answer('who_is', **words), 'contains', person.job, mistaken)


def who_has(rng: random.Random) -> Example:
    """The other way round: everybody of whom something is true."""
    field = rng.choice(FIELDS)
    value = getattr(rng.choice(PEOPLE), field)
    names = [person.name for person in PEOPLE if getattr(person, field) == value]
    strangers = [person.name for person in PEOPLE if person.name not in (*names, value)]
    kind = f'who_{field}'
    form = 'several' if len(names) > 1 else ''
    say = lambda names: mend_plurals(answer(kind, form, names=listed(names), value=value))
    question = mend_plurals(ask(rng, kind, value=value))
    wrong = say(rng.sample(strangers, len(names)))
    return one(question, say(names), 'contains', listed(names), wrong)


def yes_no(rng: random.Random) -> Example:
    """
    Is it so? The answer is what is so.

    To recall it and to compare it too is more than a small model can do.
    """
    person = rng.choice(PEOPLE)
    field = rng.choice(FIELDS)
    value = getattr(person, field)
    claimed = value if rng.random() < 0.5 else another_value(rng, person, field)
    question = ask(rng, f'is_{field}', **described(person), value=claimed)
    wrong = another_value(rng, person, field) if claimed == value else claimed
    return this_and_not(question, person, field, wrong)


def either(rng: random.Random) -> Example:
    """Is it this or that?"""
    person = rng.choice(PEOPLE)
    field = rng.choice(FIELDS)
    wrong = another_value(rng, person, field)
    first, second = rng.sample((getattr(person, field), wrong), 2)
    question = ask(rng, f'or_{field}', **described(person), first=first, second=second)
    return this_and_not(question, person, field, wrong)


def this_and_not(question: str, person: Person, field: str, wrong: str) -> Example:
    """The right answer has the right value in it and not the wrong one."""
    right = getattr(person, field)
    mistaken = told(person, field, wrong)
    more = {'absent': [wrong]}
    return one(question, told(person, field), 'contains', right, mistaken, more=more)


def work(rng: random.Random) -> Example:
    """What a job is for, where it is done, or where a person works."""
    person = rng.choice(PEOPLE)
    kind = rng.choice(('job_does', 'job_place', 'works_where'))
    words = described(person)
    question = mend_plurals(ask(rng, kind, **words))
    expected = words['does' if kind == 'job_does' else 'place']
    does, place = JOBS[other(rng, list(JOBS), person.job)]
    wrong = answer(kind, **words | {'does': does, 'place': place})
    return one(question, answer(kind, **words), 'contains', expected, wrong)
