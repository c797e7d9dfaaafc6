"""
Several turns: what users say of themselves and ask later, 'and Ben?', 'say that again',
or just one thing after another.
"""

import random

from data.tinyworld import facts
from data.tinyworld.letters import SPELLABLE, counting, spelling
from data.tinyworld.people import ATTRIBUTES, RELATIONS, described
from data.tinyworld.problems import OTHERS, PEOPLE, one_step, parts, sums
from data.tinyworld.questions import fact, opposite
from data.tinyworld.talk import WORLD, greeting, identity, refusal
from data.tinyworld.wordings import Example, ask, other, sentence, vary


def conversation(*contents, answer, grader='contains', **more) -> Example:
    """What is said in turn, the user first, the right answer last."""
    messages = [{'role': ('user', 'assistant')[i % 2], 'content': content} for i, content in enumerate(contents)]
    return Example(messages, grader, answer, **more)


def say(rng: random.Random, pattern: str, end: str, **words) -> str:
    return sentence(vary(rng, f'[{pattern}]').format(**words)) + end


# -----------------------------------------------------------------------------
# what the user said of himself

NAMES = [name for name, _ in PEOPLE + OTHERS]
OWN = [  # what the user tells, the answer; what he asks later, its answer; the values
    (
        'my name is {value}|i am {value}|hi, i am {value}|hello, my name is {value}|hello pip, i am {value}'
        '|i am called {value}'
        "|you can call me {value}|hey, my name is {value}|my name's {value}|call me {value}",
        'Hello {value}! How can I help you?',
        "what is my name|what's my name|who am i|do you know my name|do you remember my name|what am i called"
        '|can you tell me my name|tell me my name|say my name|what did i say my name was|so what is my name',
        'Your name is {value}.',
        NAMES,
    ),
    (
        'my favourite colour is {value}|i like {value} best|i love the colour {value}'
        '|the colour i like best is {value}',
        'That is a nice colour.',
        'what is my favourite colour|which colour do i like best|what colour do i like'
        '|do you remember my favourite colour'
        "|what's my favorite color",
        'You like {value} best.',
        sorted({person.colour for person in facts.PEOPLE}),
    ),
    (
        'i have a {value}|my pet is a {value}|i have got a {value} at home|i own a {value}',
        'That is nice.',
        'what pet do i have|which animal do i have|what is my pet|do you remember my pet|what animal do i own',
        'You have a {value}.',
        [animal for animal in facts.ANIMALS if animal[0] not in 'aeiou'],
    ),
    (
        'i am from {value}|i live in {value}|i come from {value}|my home is in {value}',
        'Nice to meet you!',
        'where do i live|where am i from|do you remember where i live|where do i come from|where is my home',
        'You live in {value}.',
        WORLD['city'],
    ),
    (
        'i like to eat {value}|my favourite food is {value}|i love {value}|i like eating {value}',
        'That sounds good.',
        'what is my favourite food|what do i like to eat|which food do i like|do you remember what i like to eat',
        'You like {value} best.',
        sorted({person.food for person in facts.PEOPLE}),
    ),
]


def own_facts(rng: random.Random) -> Example:
    """Something that the user tells, something else in between now and then, and a question about it."""
    told, reply, question, pattern, values = rng.choice((OWN[0], OWN[0], *OWN))
    value = rng.choice(values)
    between = []
    if rng.random() < 0.4:
        between = [message['content'] for message in rng.choice((fact, greeting, spelling))(rng).messages]
    contents = [say(rng, told, rng.choice(('.', '.', '!')), value=value), reply.format(value=value), *between]
    contents += [say(rng, question, '?'), pattern.format(value=value)]
    wrong = pattern.format(value=other(rng, values, value))
    return conversation(*contents, answer=value, wrong=wrong, keep=(value,))


# -----------------------------------------------------------------------------
# somebody else, something else

SHE = {
    'job': 'what is {his} job|what does {he} do|what [work|job] does {he} do|and {his} job'
    '|what does {he} do for a living',
    'home': 'where does {he} live|where is {his} house|and where does {he} live|where can i find {his} house',
    'pet': 'what pet does {he} have|does {he} have a pet|what animal does {he} have|and {his} pet|what is {his} pet',
    'food': 'what does {he} like to eat|what is {his} favourite food|what food does {he} like|and {his} favourite food',
    'colour': 'what is {his} favourite colour|which colour does {he} like best|what colour does {he} like'
    '|and {his} favorite color',
    'friend': 'who is {his} best friend|who is {his} friend|does {he} have a friend|and {his} best friend',
}
SAME = (
    'and {name}|and what about {name}|what about {name}|how about {name}|and for {name}|now {name}|{name} too'
    '|and {name} please|what of {name}|{name}|and {name}'
)


def about_people(rng: random.Random) -> Example:
    """Where does Anna live? And Ben? What is his job?"""
    first, second = rng.sample(facts.PEOPLE, 2)
    attribute = rng.choice(ATTRIBUTES)
    direct, indirect, pattern = RELATIONS[attribute]
    contents = [ask(rng, direct, indirect, voice=attribute, **described(first)), pattern.format(**described(first))]
    person = first
    if rng.random() < 0.6:
        person = second
        contents += [say(rng, SAME, '?', name=second.name), pattern.format(**described(second))]
    if person is first or rng.random() < 0.5:
        attribute = other(rng, ATTRIBUTES, attribute)
        pattern = RELATIONS[attribute][2]
        contents += [say(rng, SHE[attribute], '?', **described(person)), pattern.format(**described(person))]
    wrong = pattern.format(**described(other(rng, facts.PEOPLE, person)))
    return conversation(*contents, answer=contents[-1], wrong=wrong)


def about_words(rng: random.Random) -> Example:
    """What is the opposite of big? And of old?; and after that?; how do you spell river? How many letters has it?"""
    kind = rng.randrange(3)
    if kind == 0:
        first, second = opposite(rng), opposite(rng)
        follow = say(
            rng, 'and of {word}|and {word}|what about {word}|and the opposite of {word}', '?', word=second.keep[0]
        )
        return conversation(
            *(message['content'] for message in first.messages), follow, second.messages[-1]['content'],
            answer=second.answer, wrong=second.wrong, keep=first.keep + second.keep,
        )  # fmt: skip
    if kind == 1:
        cycle = rng.choice((facts.DAYS, facts.DAYS, facts.MONTHS))
        place = rng.randrange(len(cycle))
        first, second, third = (cycle[(place + i) % len(cycle)] for i in range(3))
        question = ask(rng, 'what comes after {day}|what comes next after {day}', 'what comes after {day}', day=first)
        follow = say(rng, 'and after that|and then|and what comes after that|and next|what comes then', '?')
        answer = f'After {second} comes {third}.'
        return conversation(question, f'After {first} comes {second}.', follow, answer, answer=f'comes {third}',
                            wrong=f'After {second} comes {first}.')  # fmt: skip
    word = rng.choice(SPELLABLE)
    spelt = '-'.join(word)
    question = ask(
        rng, 'how do you spell {word}|how is {word} spelled', 'how to spell {word}', 'spell {word}', word=word
    )
    follow = say(
        rng, 'how many letters has it|how many letters is that|how many letters does it have|and how many letters', '?'
    )
    contents = question, f'{spelt}.', follow, f'{spelt}: {len(word)} letters.'
    return conversation(
        *contents, grader='number', answer=len(word), wrong=f'{spelt}: {len(word) + 2} letters.', keep=(word,)
    )


GAINS = '{he} [buys|finds|gets|wins] {b} more|then {he} [buys|finds|gets] {b} more|now {he} gets {b} more'
'|{he} picks up {b} more'
LOSSES = '{he} [loses|sells|uses] {b} of them|then {he} [loses|sells|gives away] {b}|now {he} gives {b} away'
'|{he} gives {b} to a friend'
TOLD = '{name} has {a} {things}|there is {name}, who has {a} {things}|{name} has got {a} {things}'
'|i know {name}, who has {a} {things}'
HOW_MANY = '. how many [{things}|] [does {he} have now|has {he} now|is that|does {he} have]'
'|, how many [{things}|] has {he} [now|]'


def numbers_in_turns(rng: random.Random) -> Example:
    """Tom has 5 eggs. He buys 3 more, how many has he?"""
    name, gender = rng.choice(PEOPLE + OTHERS)
    thing, things = rng.choice(facts.THINGS + facts.MORE_THINGS)
    a, b, sign = rng.randint(2, 60), rng.randint(2, 40), rng.choice('+-')
    a = a + b if sign == '-' else a
    result = a + b if sign == '+' else a - b
    words = {'name': name, 'he': 'she' if gender == 'f' else 'he', 'a': a, 'b': b, 'things': things}
    question = say(rng, f'[{GAINS if sign == "+" else LOSSES}][{HOW_MANY}]', '?', **words)
    closing = lambda number: f'{name} has {number} {thing if number == 1 else things} now.'
    work = [(f'{a}{sign}{b}', str(result))]
    contents = [say(rng, TOLD, '.', **words), f'{name} has {a} {things}.', question, parts(work, closing(result))]
    wrong = closing(result + rng.choice((1, 3, 10)))
    return conversation(*contents, grader='number', answer=result, wrong=wrong)


# -----------------------------------------------------------------------------
# looking back, and one thing after another

AGAIN = (
    'say that again|again, please|can you repeat that|repeat that please|what did you say|please repeat'
    '|once more please'
    '|can you say that again|sorry, what|pardon|come again|what was that|i did not get that'
)
ASKED = (
    'what did i ask before|what was my question|what did i ask|what did i just ask you|what was my last question'
    '|can you repeat my question|what was the question|do you remember my question|which question did i ask'
)


def looking_back(rng: random.Random) -> Example:
    """Say that again; what did I ask?"""
    example = rng.choice((fact, fact, spelling, counting))(rng)
    question, answer = (message['content'] for message in example.messages)
    if rng.random() < 0.6:
        while (wrong := fact(rng).messages[-1]['content']) == answer:
            pass
        contents = question, answer, say(rng, AGAIN, rng.choice('?.')), answer
        return conversation(*contents, answer=answer, wrong=wrong, keep=example.keep)
    contents = question, answer, say(rng, ASKED, '?'), f'You asked: {question}'
    return conversation(*contents, answer=question, wrong='You asked nothing.', keep=example.keep, typable=False)


def one_after_another(rng: random.Random) -> Example:
    """Two to four questions that have nothing to do with each other: what came before must not confuse."""
    kinds = (fact, fact, fact, greeting, greeting, identity, spelling, counting, sums, one_step, refusal)
    examples = [rng.choice(kinds)(rng) for _ in range(rng.choice((2, 2, 3, 4)))]
    messages = [message for example in examples for message in example.messages]
    last = examples[-1]
    return last._replace(messages=messages, keep=tuple(word for example in examples for word in example.keep))


MEMORY = {own_facts: 22, about_people: 28, about_words: 8, numbers_in_turns: 12, looking_back: 8, one_after_another: 22}


def memory(rng: random.Random) -> Example:
    return rng.choices(list(MEMORY), list(MEMORY.values()))[0](rng)
