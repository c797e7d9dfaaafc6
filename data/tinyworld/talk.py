"""
What is said to an assistant besides questions about its world: who it is, small talk, and what it
does not know.
"""

import random

from data.tinyworld import facts
from data.tinyworld.patterns import invented, sentence, vary
from data.tinyworld.people import described
from data.tinyworld.textfiles import one_of, only_line, with_headings, wordings
from data.tinyworld.wordings import Example, answer, ask, one, phrase, voiced
from data.tinyworld.words import capital, fill, mend_plurals, weighted

# -----------------------------------------------------------------------------
# who it is

IDENTITY = (
    'who_are_you', 'your_name', 'your_maker', 'your_skills', 'human', 'which_model', 'personal',
    'languages',
)  # fmt: skip


def identity(rng: random.Random) -> Example:
    """Who are you? What can you do? One time in five in Chinese."""
    if rng.random() < 0.2:
        question = vary(rng, with_headings(only_line('talk.txt', 'chinese_identity')))
        content = answer('chinese_identity')
        wrong = answer('chinese_unknown')
        return one(question, content, 'contains', facts.NAME, wrong, typable=False)
    kind = rng.choice(IDENTITY)
    question = ask(rng, kind)
    wrong = rng.choice(wordings('answers.txt')['not_pip'])
    return one(question, answer(kind), 'contains', facts.NAME, wrong)


# -----------------------------------------------------------------------------
# small talk

GREETINGS = (  # headings of talk.txt; each begins with its kind in voices.txt and answers.txt
    'hello', 'hello_nice_to_meet', 'hello_and_more', 'good_time', 'good_time_and_more',
    'how_are_you', 'how_are_you_today', 'thanks_and_more', 'bye_and_more', 'bye_at_last',
    'praise_and_more', 'thanks', 'bye', 'good_night', 'praise', 'sorry', 'sad', 'happy',
    'criticism', 'lets_talk',
)  # fmt: skip
EXPECTED = {  # kind: what the answer is graded by
    'hello': 'help you',
    'good_time': 'good {time}',
    'how_are_you': 'I am well',
    'thanks': 'welcome',
    'bye': 'goodbye',
    'praise': 'glad to help',
    'good_night': 'good night',
    'sorry': 'no problem',
    'sad': 'sorry to hear',
    'happy': 'glad to hear',
    'criticism': 'sorry',
    'lets_talk': 'help you',
}
CHINESE = {
    'chinese_hello': '你好',
    'chinese_thanks': '不客气',
    'chinese_bye': '再见',
    'chinese_how_are_you': '我很好',
}
TIMES = ('morning', 'afternoon', 'evening', 'day')


def greeting(rng: random.Random) -> Example:
    """Small talk; one time in eight in Chinese."""
    rude = rng.choice(wordings('answers.txt')['rude'])
    if rng.random() < 0.12:
        kind = rng.choice(list(CHINESE))
        message = vary(rng, one_of(kind) + only_line('talk.txt', 'chinese_ending'))
        return one(message, answer(kind), 'contains', CHINESE[kind], rude, typable=False)
    heading = rng.choice(GREETINGS)
    kind = next(kind for kind in EXPECTED if heading.startswith(kind))
    time = rng.choice(TIMES)
    frame = vary(rng, one_of('around'))
    message = frame.format(talk=phrase(rng, heading, time=time)).strip(' ,')
    message = voiced(rng, kind, time=time) or sentence(message)
    expected = fill(EXPECTED[kind], time=time)
    return one(message, answer(kind, time=time), 'contains', expected, rude)


# -----------------------------------------------------------------------------
# what it does not know

OUTSIDE = {  # what it is about: how often
    'country': 3, 'city': 2, 'famous': 3, 'stranger': 6, 'nonsense': 6, 'private': 6, 'animal': 4,
    'weather': 4, 'now': 4, 'subject': 5, 'language': 3, 'program': 3, 'maths': 3, 'advice': 6,
}  # fmt: skip


def refusal(rng: random.Random) -> Example:
    """Strangers, unknown things about known people and animals, and the rest of the world."""
    kind = weighted(rng, OUTSIDE)

    # the words for all holes: of the rest of the world, of a villager, and invented ones
    strangers = [name for names in facts.STRANGERS.values() for name in names]
    inside = {'animal': list(facts.ANIMALS), 'day': facts.DAYS, 'stranger': strangers}
    holes = wordings('elsewhere.txt') | inside
    words = {hole: rng.choice(values) for hole, values in holes.items()}
    words |= described(rng.choice(facts.PEOPLE))
    words |= {'word': invented(rng), 'another': invented(rng), 'unknown': capital(invented(rng))}

    voice = rng.choice(('outside', 'outside', 'outside', 'outside_villager'))
    question = mend_plurals(ask(rng, f'outside_{kind}', voice, **words))
    wrong = rng.choice(wordings('answers.txt')['made_up'])
    return one(question, answer('outside'), 'contains', 'only know', wrong)
