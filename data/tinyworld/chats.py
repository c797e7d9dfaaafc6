"""
Conversations with Pip: every skill, and what each stage learns from.

SKILLS names everything that can be asked of the assistant: a skill is a function from a
random.Random to an Example and one line there. STAGES says what each stage's data are made of.

$ python data/tinyworld/chats.py     prints examples of every skill
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.tinyworld import facts
from data.tinyworld.careless import typed
from data.tinyworld.heldout import HeldOut, is_held_out
from data.tinyworld.letters import counting, lists, spelling
from data.tinyworld.patterns import sentence
from data.tinyworld.people import described
from data.tinyworld.problems import one_step, sums, three_step, two_step
from data.tinyworld.questions import fact
from data.tinyworld.stories import story
from data.tinyworld.talk import greeting, identity, refusal
from data.tinyworld.textfiles import wordings
from data.tinyworld.turns import memory
from data.tinyworld.wordings import FORMS, Example, answer, ask, one, phrase, voiced
from data.tinyworld.words import article, other, weighted
from tasks import render_choice

# -----------------------------------------------------------------------------
# stories


def stories(rng: random.Random) -> Example:
    """
    A story about one or two people and a thing; the problem says what it was asked to be about.

    It begins with its title, as many in pretraining do: a model that has just said whom the story
    is about tells of nobody else.
    """
    # 1) The story, and what the user names of it
    told = story(rng, plots=rng.choices((('alone',), ('wish', 'lost', 'gift')), (2, 1))[0])
    names = told.people[: rng.choices((1, 2, 0), (64, 30, 6))[0]]
    with_thing = bool(names) and rng.random() < 0.85
    subjects = names + [article(told.thing)] * with_thing
    if rng.random() < 0.12:
        subjects.reverse()
    plainly = ' and '.join(subjects)

    # 2) The question and the answer
    question = ask_story(rng, subjects, plainly)
    content = f'A story about {plainly or told.people[0]}. {told.text}'
    people = [person.name for person in facts.PEOPLE]
    others = [name for name in people if name not in told.people]

    # 3) A wrong answer is about somebody else; where nobody is named, all are right
    another = story(rng, rng.choice(others), plots=('alone',))
    if not names:
        return one(question, content, 'contains', people, answer('no_story'))
    wrong = f'A story about {another.people[0]} and {article(another.thing)}. {another.text}'
    more = {'people': names, 'names': people, 'thing': told.thing if with_thing else ''}
    return one(question, content, 'story', '', wrong, more=more)


def ask_story(rng: random.Random, subjects: list[str], plainly: str) -> str:
    """Tell me a story about Anna and a ball."""
    about = plainly and rng.choice((' about ', ' about ', ' about ', ' with ')) + plainly
    if message := voiced(rng, 'story_about' if plainly else 'story', subject=plainly):
        return message
    if rng.random() < 0.2:
        return sentence(phrase(rng, 'want_story', '.', about=about))
    forms = FORMS if rng.random() < 0.3 else ('command',)
    kind = 'tell_story_of_two' if len(subjects) > 1 else 'tell_story'
    return ask(rng, kind, '', forms, about=about, plainly=plainly)


# -----------------------------------------------------------------------------
# multiple choice


def choice(rng: random.Random) -> Example:
    """
    Two to four choices. The answer says the thing before its letter.

    A small model can look up what it has just said, while the letter alone would ask it to
    remember and to look up in one step.
    """
    kinds = (person_choice, person_choice, opposite_choice, thing_choice, day_choice)
    question, right, wrong = rng.choice(kinds)(rng)
    wrong = sorted({*wrong} - {right})
    choices = [right, *rng.sample(wrong, min(len(wrong), rng.choice((1, 2, 3))))]
    rng.shuffle(choices)
    asked = render_choice(sentence(question), choices, 'Answer with the choice and its letter.')
    spoken = [f'It is {choice}={letter}' for choice, letter in zip(choices, 'ABCD')]
    content = spoken[choices.index(right)]
    more = {'choices': choices, 'spoken': spoken}
    wrong = other(rng, spoken, content)
    return one(asked, content, 'letter', content[-1], wrong, more=more, typable=False)


def person_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    """A field of a person; the wrong choices are true of others."""
    person = rng.choice(facts.PEOPLE)
    field = rng.choice(facts.FIELDS)
    values = [getattr(somebody, field) for somebody in facts.PEOPLE if somebody is not person]
    values = [value for value in values if value != person.name]
    question = phrase(rng, field, '?', **described(person))
    return question, getattr(person, field), values


def opposite_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    """The opposite of a word."""
    pair = rng.choice(facts.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    question = phrase(rng, 'choose_opposite', '?', word=word)
    return question, right, [w for pair_ in facts.OPPOSITES if pair_ != pair for w in pair_]


def thing_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    """The colour of a thing; the sound, the legs or the young of an animal."""
    if rng.random() < 0.3:
        thing, right = rng.choice(list(facts.COLOURS.items()))
        return phrase(rng, 'choose_colour', '?', name=thing), right, list(facts.COLOURS.values())
    name = rng.choice(list(facts.ANIMALS))
    place = rng.randrange(3)
    kind = ('choose_sound', 'choose_legs', 'choose_young')[place]
    values = [str(row[place]) for row in facts.ANIMALS.values()]
    if kind == 'choose_legs':
        values += ['8', '3']
    return phrase(rng, kind, '?', name=name), str(facts.ANIMALS[name][place]), values


def day_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    """The neighbour of a day, a month or a season."""
    kind = rng.choice(list(facts.CYCLES))
    cycle = facts.CYCLES[kind]
    place = rng.randrange(len(cycle))
    side, step = rng.choice((('after', 1), ('before', -1)))
    question = phrase(rng, f'choose_{side}', '?', kind=kind, word=cycle[place])
    right = cycle[(place + step) % len(cycle)]
    return question, right, [value for value in cycle if value != cycle[place]]


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
        'choice': 33, 'one_step': 15, 'sums': 9, 'facts': 17, 'spelling': 8, 'counting': 7,
        'lists': 7, 'identity': 1, 'greeting': 1, 'refusal': 1, 'stories': 1,
    },
    'sft': {
        'facts': 18, 'one_step': 9, 'two_step': 8, 'three_step': 8, 'sums': 4, 'spelling': 11,
        'counting': 7, 'identity': 6, 'greeting': 6, 'refusal': 4, 'memory': 7, 'stories': 6,
        'choice': 3, 'lists': 3,
    },
    'dpo': {
        'facts': 25, 'one_step': 9, 'two_step': 8, 'three_step': 6, 'sums': 5, 'spelling': 12,
        'counting': 7, 'identity': 4, 'greeting': 4, 'refusal': 7, 'memory': 8, 'choice': 3,
        'lists': 2,
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
    An example of a skill from one side of the split, held out or to train on.

    What the user says decides, as worded and as typed: is_held_out() of it. careless: how often it
    is typed carelessly, mild or not. avoid: the questions that evaluation asks; none of them may
    occur inside of what is trained on.
    """
    while True:
        versions = [SKILLS[skill](rng)]
        if versions[0].typable and rng.random() < careless:
            versions.append(type_carelessly(rng, versions[0], mild))
        keys = [version.key for version in versions]
        on_this_side = all(is_held_out(key) == held_out for key in keys)
        if on_this_side and not (avoid and any(map(avoid.inside, keys))):
            return versions[-1]


def type_carelessly(rng: random.Random, example: Example, mild: bool) -> Example:
    """The example with all that the user says typed carelessly."""
    messages = []
    for message in example.messages:
        if message['role'] == 'user':
            content = typed(rng, message['content'], example.keep, mild)
            message = {**message, 'content': content}
        messages.append(message)
    return example._replace(messages=messages)


# -----------------------------------------------------------------------------
# pairs: a right answer, and one that is wrong, rambling, declining or rude

WORSE = {'wrong': 50, 'rambling': 20, 'declining': 15, 'rude': 15}  # how often


def pair(
    rng: random.Random, skill: str, held_out: bool, avoid: HeldOut | None = None
) -> tuple[list[dict], list[dict]]:
    """(chosen, rejected) with one prompt: a right answer, and a worse one of a kind in WORSE."""
    example = draw(rng, skill, held_out, CARELESS['dpo'], avoid=avoid)
    *prompt, right = example.messages
    kind = weighted(rng, WORSE)
    rambling = ramble(rng, right['content'])
    rude = rng.choice(wordings('answers.txt')['rude_to_questions'])
    outside = answer('outside')
    worse = {
        'wrong': example.wrong,
        'rambling': rambling,
        'declining': example.wrong if right['content'] == outside else outside,
        'rude': rude,
    }
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
