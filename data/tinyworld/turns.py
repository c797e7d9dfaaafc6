"""
Conversations of several turns: what users say of themselves and ask later, 'and Ben?',
'say that again', or just one thing after another.
"""

import random

from data.tinyworld import facts
from data.tinyworld.letters import SPELLABLE, counting, spelling
from data.tinyworld.patterns import sentence
from data.tinyworld.people import described
from data.tinyworld.problems import OTHERS, PEOPLE, one_step, parts, sums
from data.tinyworld.questions import fact, opposite
from data.tinyworld.talk import greeting, identity, refusal
from data.tinyworld.textfiles import wordings
from data.tinyworld.wordings import Example, answer, ask, phrase
from data.tinyworld.words import PRONOUNS, other, weighted


def conversation(contents: list, expected, grader='contains', **more) -> Example:
    """What is said in turn, the user first, the right answer last."""
    roles = ('user', 'assistant')
    messages = [{'role': roles[i % 2], 'content': said} for i, said in enumerate(contents)]
    return Example(messages, grader, expected, **more)


def say(rng: random.Random, kind: str, end: str, /, **words) -> str:
    """What a user says in the course of a conversation, without a frame around it."""
    return sentence(phrase(rng, kind, **words)) + end


# -----------------------------------------------------------------------------
# what the user said of himself

OWN = ('my_name', 'my_colour', 'my_pet', 'my_city', 'my_food')


def own_values(kind: str) -> list[str]:
    """What a user may say of himself."""
    return {
        'my_name': [name for name, _ in PEOPLE + OTHERS],
        'my_colour': sorted({person.colour for person in facts.PEOPLE}),
        'my_pet': [animal for animal in facts.ANIMALS if animal[0] not in 'aeiou'],
        'my_city': wordings('elsewhere.txt')['city'],
        'my_food': sorted({person.food for person in facts.PEOPLE}),
    }[kind]


def own_facts(rng: random.Random) -> Example:
    """Something that the user tells, perhaps something else, and a question about it."""
    kind = rng.choice((OWN[0], OWN[0], *OWN))
    values = own_values(kind)
    value = rng.choice(values)
    between = []
    if rng.random() < 0.4:
        example = rng.choice((fact, greeting, spelling))(rng)
        between = [message['content'] for message in example.messages]
    told = say(rng, kind, rng.choice(('.', '.', '!')), value=value)
    question = say(rng, f'ask_{kind}', '?')
    right = answer(f'ask_{kind}', value=value)
    wrong = answer(f'ask_{kind}', value=other(rng, values, value))
    contents = [told, answer(kind, value=value), *between, question, right]
    return conversation(contents, value, wrong=wrong, keep=(value,))


# -----------------------------------------------------------------------------
# another person, another question


def about_people(rng: random.Random) -> Example:
    """Where does Anna live? And Ben? What is his job?"""
    first, second = rng.sample(facts.PEOPLE, 2)
    field = rng.choice(facts.FIELDS)
    words = described(first)
    contents = [ask(rng, field, **words), answer(field, **words)]

    # Another person, another field, or both
    person = first
    if rng.random() < 0.6:
        person = second
        words = described(second)
        contents += [say(rng, 'and_name', '?', **words), answer(field, **words)]
    if person is first or rng.random() < 0.5:
        field = other(rng, facts.FIELDS, field)
        contents += [say(rng, f'and_{field}', '?', **words), answer(field, **words)]
    wrong = answer(field, **described(other(rng, facts.PEOPLE, person)))
    return conversation(contents, contents[-1], wrong=wrong)


def about_words(rng: random.Random) -> Example:
    """An opposite and another; what comes after Monday, and after that; a word and its length."""
    return rng.choice((two_opposites, two_days, spell_and_count))(rng)


def two_opposites(rng: random.Random) -> Example:
    """What is the opposite of big? And of old?"""
    first, second = opposite(rng), opposite(rng)
    follow = say(rng, 'and_word', '?', word=second.keep[0])
    contents = [message['content'] for message in first.messages]
    contents += [follow, second.messages[-1]['content']]
    keep = first.keep + second.keep
    return conversation(contents, second.answer, wrong=second.wrong, keep=keep)


def two_days(rng: random.Random) -> Example:
    """What comes after Monday? And after that?"""
    cycle = rng.choice((facts.DAYS, facts.DAYS, facts.MONTHS))
    place = rng.randrange(len(cycle))
    first, second, third = (cycle[(place + i) % len(cycle)] for i in range(3))
    question = ask(rng, 'next_day', day=first)
    follow = say(rng, 'and_then', '?')
    right = answer('after', word=second, value=third)
    wrong = answer('after', word=second, value=first)
    contents = [question, answer('after', word=first, value=second), follow, right]
    return conversation(contents, f'comes {third}', wrong=wrong)


def spell_and_count(rng: random.Random) -> Example:
    """How do you spell river? How many letters has it?"""
    word = rng.choice(SPELLABLE)
    spelt = '-'.join(word)
    question = ask(rng, 'spell_first', word=word)
    follow = say(rng, 'and_length', '?')
    right = answer('length', spelt=spelt, value=len(word))
    wrong = answer('length', spelt=spelt, value=len(word) + 2)
    contents = [question, answer('spell', spelt=spelt), follow, right]
    return conversation(contents, len(word), 'number', wrong=wrong, keep=(word,))


def numbers_in_turns(rng: random.Random) -> Example:
    """Tom has 5 eggs. He buys 3 more, how many has he?"""
    # 1) Who has what, and what happens to it
    name, gender = rng.choice(PEOPLE + OTHERS)
    thing, things = rng.choice(facts.THINGS + facts.MORE_THINGS)
    a, b = rng.randint(2, 60), rng.randint(2, 40)
    sign = rng.choice('+-')
    if sign == '-':
        a += b
    result = a + b if sign == '+' else a - b
    words = {'name': name, **PRONOUNS[gender], 'a': a, 'b': b, 'things': things}

    # 2) What is said in turn
    question = say(rng, 'gains_some' if sign == '+' else 'loses_some', '?', **words)
    told = say(rng, 'has_things', '.', **words)

    def closing(number: int) -> str:
        return answer('has_some', name=name, r=number, result=thing if number == 1 else things)

    work = [(f'{a}{sign}{b}', str(result))]
    right = parts(work, closing(result))
    wrong = closing(result + rng.choice((1, 3, 10)))
    return conversation(
        [told, answer('has_things', **words), question, right], result, 'number', wrong=wrong
    )


# -----------------------------------------------------------------------------
# looking back, and one thing after another


def looking_back(rng: random.Random) -> Example:
    """Say that again; what did I ask?"""
    example = rng.choice((fact, fact, spelling, counting))(rng)
    question, right = (message['content'] for message in example.messages)
    if rng.random() < 0.6:
        wrong = right
        while wrong == right:
            wrong = fact(rng).messages[-1]['content']
        contents = [question, right, say(rng, 'say_again', rng.choice('?.')), right]
        return conversation(contents, right, wrong=wrong, keep=example.keep)
    asked = answer('what_did_i_ask', question=question)
    contents = [question, right, say(rng, 'what_did_i_ask', '?'), asked]
    wrong = answer('asked_nothing')
    return conversation(contents, question, wrong=wrong, keep=example.keep, typable=False)


def one_after_another(rng: random.Random) -> Example:
    """Two to four questions that have nothing to do with each other."""
    kinds = (
        fact, fact, fact, greeting, greeting, identity, spelling, counting, sums, one_step, refusal
    )  # fmt: skip
    examples = [rng.choice(kinds)(rng) for _ in range(rng.choice((2, 2, 3, 4)))]
    messages = [message for example in examples for message in example.messages]
    keep = tuple(word for example in examples for word in example.keep)
    return examples[-1]._replace(messages=messages, keep=keep)


MEMORY = {  # how often
    own_facts: 22, about_people: 28, about_words: 8, numbers_in_turns: 12, looking_back: 8,
    one_after_another: 22,
}  # fmt: skip


def memory(rng: random.Random) -> Example:
    """A conversation whose last question refers to what was said before, or could seem to."""
    return weighted(rng, MEMORY)(rng)
