"""
Conversations with Pip: every skill, and what each stage learns from.

SKILLS names everything that can be asked of the assistant: a skill is a function from a random.Random to an Example and
one line there. STAGES says what each stage's data are made of.

$ python data/tinyworld/chats.py     prints examples of every skill
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.tinyworld import facts, text
from data.tinyworld.letters import counting, lists, spelling
from data.tinyworld.people import ATTRIBUTES, RELATIONS, described
from data.tinyworld.problems import one_step, sums, three_step, two_step
from data.tinyworld.questions import fact
from data.tinyworld.talk import LIMIT, greeting, identity, refusal
from data.tinyworld.turns import memory
from data.tinyworld.wordings import (
    Example,
    HeldOut,
    article,
    ask,
    is_held_out,
    one,
    other,
    sentence,
    typed,
    vary,
    voiced,
)
from tasks import render_choice

# -----------------------------------------------------------------------------
# stories

A_STORY = 'a [|short |little |nice |new |small |funny |long ][story|story|story|tale]'
TELL = f'[tell [me|us]|write [me|]|make up|give me|invent|tell] {A_STORY}{{about}}|tell me {A_STORY}{{about}}'
WITH = '|tell me a story in which there [is|are] {plainly}'  # for two subjects or more
WANT = (
    f"[i want|i'd like|i would like|i want to hear] {A_STORY}{{about}}|{A_STORY}{{about}}, please|story time{{about}}"
    f'|please, {A_STORY}{{about}}|{A_STORY}{{about}}|story{{about}}|[another|one more] story{{about}}'
    f'|i [want|need] to hear {A_STORY}{{about}}|make {A_STORY} for me{{about}}'
)
CAN = (
    f'do you know {A_STORY}{{about}}|can i [have|hear|get] {A_STORY}{{about}}|have you got {A_STORY}{{about}}'
    f'|is there {A_STORY}{{about}}'
)


def stories(rng: random.Random) -> Example:
    """A story about one or two people and a thing; what it was asked to be about comes with the problem.

    It begins with its title, as many in pretraining do: who has just said whom it is about tells of nobody else.
    """
    told = text.story(rng, plots=rng.choices((('alone',), ('wish', 'lost', 'gift')), (2, 1))[0])
    names = told.people[: rng.choices((1, 2, 0), (64, 30, 6))[0]]
    with_thing = bool(names) and rng.random() < 0.85
    subjects = names + [article(told.thing)] * with_thing
    if rng.random() < 0.12:
        subjects.reverse()
    plainly = ' and '.join(subjects)
    about = plainly and rng.choice((' about ', ' about ', ' about ', ' with ')) + plainly
    tell = TELL + WITH if len(subjects) > 1 else TELL
    question = voiced(rng, 'story_about' if plainly else 'story', subject=plainly)
    if not question and rng.random() < 0.2:
        question = sentence(vary(rng, f'[{WANT}].').format(about=about))
    elif not question:
        question = ask(rng, CAN if rng.random() < 0.3 else '', '', tell, about=about, plainly=plainly)
    people = [person.name for person in facts.PEOPLE]
    answer = f'A story about {plainly or told.people[0]}. {told.text}'
    others = [name for name in people if name not in told.people]
    another = text.story(rng, rng.choice(others), plots=('alone',))  # about somebody else
    wrong = f'A story about {another.people[0]} and {article(another.thing)}. {another.text}'
    if not names:  # then it may be about anybody
        return one(question, answer, 'contains', people, 'I do not want to tell a story.')
    more = {'people': names, 'names': people, 'thing': told.thing if with_thing else ''}
    return one(question, answer, 'story', '', wrong, more=more)


# -----------------------------------------------------------------------------
# multiple choice


def choice(rng: random.Random) -> Example:
    """Two to four choices. The answer says the thing before its letter: a small model can look up what it has just
    said, while the letter alone would ask it to remember and to look up in one breath."""
    question, right, wrong = rng.choice(CHOICES)(rng)
    wrong = sorted({*wrong} - {right})
    choices = [right, *rng.sample(wrong, min(len(wrong), rng.choice((1, 2, 3))))]
    rng.shuffle(choices)
    asked = render_choice(sentence(question), choices, 'Answer with the choice and its letter.')
    spoken = [f'It is {choice}={letter}' for choice, letter in zip(choices, 'ABCD')]
    answer = spoken[choices.index(right)]
    more = {'choices': choices, 'spoken': spoken}
    return one(asked, answer, 'letter', answer[-1], other(rng, spoken, answer), more=more, typable=False)


def person_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    person = rng.choice(facts.PEOPLE)
    attribute = rng.choice(ATTRIBUTES)
    values = [getattr(somebody, attribute) for somebody in facts.PEOPLE if somebody is not person]
    values = [value for value in values if value != person.name]
    question = vary(rng, f'[{RELATIONS[attribute][0]}]?').format(**described(person))
    return question, getattr(person, attribute), values


def opposite_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    pair = rng.choice(facts.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    question = vary(rng, f"[what is|what's|which word is] the opposite of {word}?")
    return question, right, [w for opposites in facts.OPPOSITES if opposites != pair for w in opposites]


def thing_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    if rng.random() < 0.3:
        thing, right = rng.choice(list(facts.COLOURS.items()))
        question = vary(rng, f'[what|which] [colour|color] is {thing}?')
        return question, right, list(facts.COLOURS.values())
    name, place = rng.choice(list(facts.ANIMALS)), rng.randrange(3)
    question = (
        '[what does {a} say|which sound does {a} make|what sound does {a} make]?',
        '[how many legs does {a} have|how many legs has {a}]?',
        '[what is a [young|baby] {n} called|what do you call a young {n}]?',
    )[place]
    values = [str(row[place]) for row in facts.ANIMALS.values()] + ['8', '3'] * (place == 1)
    return vary(rng, question).format(a=article(name), n=name), str(facts.ANIMALS[name][place]), values


def day_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    kind, cycle = rng.choice((('day', facts.DAYS), ('month', facts.MONTHS), ('season', facts.SEASONS)))
    place, step = rng.randrange(len(cycle)), rng.choice((1, -1))
    side = '[after|right after]' if step == 1 else '[before|just before]'
    question = vary(rng, f'[which|what] {kind} [comes|is] {side} {cycle[place]}?')
    return question, cycle[(place + step) % len(cycle)], [value for value in cycle if value != cycle[place]]


CHOICES = (person_choice, person_choice, opposite_choice, thing_choice, day_choice)


# -----------------------------------------------------------------------------
# the tables

SKILLS = {  # a new skill: its function, its line here, its shares below
    'facts': fact,
    'sums': sums,
    'one_step': one_step,
    'two_step': two_step,
    'three_step': three_step,
    'spelling': spelling,
    'counting': counting,
    'lists': lists,
    'identity': identity,
    'greeting': greeting,
    'refusal': refusal,
    'memory': memory,
    'stories': stories,
    'choice': choice,
}

# What the stages are made of: shares of the bytes of mid and sft, of the pairs of dpo
STAGES = {
    'mid': {
        'choice': 33, 'one_step': 15, 'sums': 9, 'facts': 17, 'spelling': 8, 'counting': 7, 'lists': 7,
        'identity': 1, 'greeting': 1, 'refusal': 1, 'stories': 1,
    },
    'sft': {
        'facts': 18, 'one_step': 9, 'two_step': 8, 'three_step': 8, 'sums': 4, 'spelling': 11, 'counting': 7,
        'identity': 6, 'greeting': 6, 'refusal': 4, 'memory': 7, 'stories': 6, 'choice': 3, 'lists': 3,
    },
    'dpo': {
        'facts': 25, 'one_step': 9, 'two_step': 8, 'three_step': 6, 'sums': 5, 'spelling': 12, 'counting': 7,
        'identity': 4, 'greeting': 4, 'refusal': 7, 'memory': 8, 'choice': 3, 'lists': 2,
    },
}  # fmt: skip
CARELESS = {'mid': 0.1, 'sft': 0.35, 'dpo': 0.35}


def draw(
    rng: random.Random,
    skill: str,
    held_out: bool,
    careless: float = 0.0,
    mild: bool = False,
    avoid: HeldOut | None = None,
) -> Example:
    """
    An example of a skill from one side of the split, held out or to train on; typed carelessly with this probability.

    What the user says decides, as worded and as typed: is_held_out() of it. avoid: the questions that evaluation asks,
    of which none may stand inside of what is trained on.
    """
    while True:
        versions = [SKILLS[skill](rng)]
        if versions[0].typable and rng.random() < careless:
            versions.append(type_carelessly(rng, versions[0], mild))
        keys = [version.key for version in versions]
        if all(is_held_out(key) == held_out for key in keys) and not (avoid and any(map(avoid.inside, keys))):
            return versions[-1]


def type_carelessly(rng: random.Random, example: Example, mild: bool) -> Example:
    spoil = lambda message: {**message, 'content': typed(rng, message['content'], example.keep, mild)}
    messages = [spoil(message) if message['role'] == 'user' else message for message in example.messages]
    return example._replace(messages=messages)


# -----------------------------------------------------------------------------
# pairs: a right answer, and one that is wrong, rambling, declining or rude

RUDE = (
    'What a stupid question.',
    'I do not want to answer you.',
    'Ask somebody else.',
    'You should know that yourself.',
    'Leave me alone.',
    'I am too busy for you.',
)


def pair(rng: random.Random, skill: str, held_out: bool, avoid: HeldOut | None = None) -> tuple[list[dict], list[dict]]:
    """(chosen, rejected) with one prompt: the rejected is wrong, rambles, declines what it knows, or is rude."""
    example = draw(rng, skill, held_out, CARELESS['dpo'], avoid=avoid)
    *prompt, answer = example.messages
    kind = rng.choices(('wrong', 'rambling', 'declining', 'rude'), (50, 20, 15, 15))[0]
    worse = {'wrong': example.wrong, 'rambling': ramble(rng, answer['content']), 'rude': rng.choice(RUDE)}
    worse['declining'] = example.wrong if answer['content'] == LIMIT else LIMIT
    return example.messages, [*prompt, {'role': 'assistant', 'content': worse[kind]}]


def ramble(rng: random.Random, content):
    """The right answer and three sentences that nobody asked for."""
    unrelated = ' '.join(fact(rng).messages[-1]['content'] for _ in range(3))
    if isinstance(content, str):
        return f'{content} {unrelated}'
    *calls, last = content
    return [*calls, {**last, 'text': f'{last["text"]} {unrelated}'}]


if __name__ == '__main__':
    import console

    console.set_up(must_finish=False)
    RNG = random.Random(1)
    for NAME in SKILLS:
        print(f'\n{NAME}')
        for _ in range(5):
            for MESSAGE in draw(RNG, NAME, held_out=False, careless=0.5).messages:
                print(f'  {MESSAGE["role"][0]}: {MESSAGE["content"]}')
