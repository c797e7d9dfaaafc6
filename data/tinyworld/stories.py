"""
The stories of tinyworld: small plots of templates; the people, things and numbers agree.

    >>> story(random.Random(2), 'Mia', 'ball').text
    'Mia lived by the lake with her rabbit. She had 11 balls. She met Cara at the station. ...'

A plot in PLOTS is a row of steps, a step is a choice of the templates below its heading in
stories.txt. The teller keeps track of whom "she" would mean and of who has how many of what, so
that grade.py can check any story told this way.
"""

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from data.tinyworld import facts
from data.tinyworld.facts import BY_NAME, PEOPLE, THINGS, Person
from data.tinyworld.textfiles import wordings
from data.tinyworld.words import PRONOUNS, Words, article, capital, weighted

# ---- the things and places

LOOKS = {  # how a thing may look, and where one finds it
    'apple': ('red big sweet green', 'under the old tree'),
    'pear': ('green ripe sweet', 'under the pear tree'),
    'plum': ('sweet ripe little', 'under the plum tree'),
    'egg': ('white brown fresh', 'in the hay'),
    'cake': ('little sweet round', 'on the long table'),
    'book': ('thick old blue', 'on a bench'),
    'ball': ('red blue yellow big', 'in the tall grass'),
    'coin': ('shiny old round', 'between the stones'),
    'stone': ('white round smooth', 'by the water'),
    'shell': ('pink white little', 'in the sand'),
    'flower': ('yellow white blue', 'in the meadow'),
    'button': ('round golden green', 'on the path'),
    'candle': ('white long red', 'in a drawer'),
    'pencil': ('yellow short green', 'under a chair'),
    'cup': ('blue white new', 'behind the bench'),
    'hat': ('green warm black', 'next to the gate'),
    'nut': ('brown hard big', 'under the leaves'),
    'cookie': ('sweet warm round', 'on a plate'),
    'marble': ('blue green shiny', 'in the dust'),
    'stamp': ('old red small', 'between two books'),
}
NO_TRADE = 'coin stone shell'.split()  # what nobody buys or sells
NO_REPAIR = 'apple pear plum egg cake nut cookie coin stone shell flower'.split()
PLACES = {
    'market': 'at', 'lake': 'by', 'river': 'by', 'forest': 'in', 'hill': 'on', 'mill': 'at',
    'school': 'near', 'church': 'near', 'station': 'at', 'garden': 'in', 'farm': 'on',
    'bridge': 'on', 'old tree': 'under',
}  # fmt: skip
TIMES = ['morning', 'afternoon', 'evening', 'day']
WALKS = 'walked ran hurried went'.split()

# ---- the plots

# 'x?' is left out half of the time, 'x|y' is one of the two; COUNTS is Teller.counts
PLOTS = {
    'wish': ('who sky? want go no_luck? meet tell|seek give happy thanks|feast? end|keep moral?'),
    'lost': (
        'who sky? have lose sad|cry look meet tell|seek? find happy thanks|feast? end|keep '
        'moral|patience?'
    ),
    'gift': 'who sky? gift get_gift hand_over joy feast? end moral?',
    'broken': 'who sky? have break sad meet tell? mend happy thanks|feast? end|keep',
    'quarrel': 'who have meet quarrel anger sad? peace feast? end moral|sharing?',
    'alone': 'who have lose sad|cry look found_it glad? keep moral?',
    'storm': 'who plan storm sad? meet shelter clear happy? feast? end',
    'counted': 'who sky? COUNTS feast? end moral?',
}
SHARES = {
    'wish': 11, 'lost': 11, 'gift': 9, 'broken': 9, 'quarrel': 7, 'alone': 20, 'storm': 8,
    'counted': 45,
}  # fmt: skip
CHANGES = {  # heading of stories.txt: (who gains, who loses)
    'hero_gains': ('a', ''),
    'hero_loses': ('', 'a'),
    'hero_gives': ('b', 'a'),
    'other_gives': ('a', 'b'),
    'other_gains': ('b', ''),
}


class Story(NamedTuple):
    """A story, and what it is about."""

    text: str
    people: list[str]  # every name in the text, the one that was asked for first
    thing: str  # in the singular
    plot: str


class Who:
    """A person as templates want it: {a} is the name, {a.his} the pronoun, {a.job} a fact."""

    def __init__(self, person: Person):
        self.person = person
        self.he, self.his, self.him = PRONOUNS[person.gender].values()

    def __format__(self, spec):
        return self.person.name

    def __getattr__(self, name):
        return getattr(self.person, name)


class Thing:
    """A thing as templates want it: {t} is its name, {t.look_a} 'a red ball'."""

    def __init__(self, rng: random.Random, one: str):
        self.one = one
        self.many = dict(THINGS)[one]
        looks, self.where = LOOKS[one]
        self.look = rng.choice(looks.split())
        self.one_a = article(one)
        self.look_a = article(f'{self.look} {one}')
        self.many_other = rng.choice([many for other, many in THINGS if other != one])

    def __format__(self, spec):
        return self.one


@cache
def people_in(template: str) -> tuple[list[str], str]:
    """
    Who occurs in a template, 'a' or 'b', in turn; and who it starts with, if it does.

    In a sentence that starts with a name, x and y mean that person.
    """
    keys = re.findall(r'\{([AaBbxy])\}', template)
    people = ['a' if key in 'Aax' else 'b' for key in keys]
    return people, people[0] if re.match(r'\W*\{[AaBb]\}', template) else ''


class Teller:
    """
    Tells one story: draws what stays the same in it, says sentences, knows whom a pronoun means.

    'a' is the hero, 'b' the other person. subject: who was named first in the last sentence;
    ambiguous: whether a pronoun could mean somebody else.
    """

    def __init__(self, rng: random.Random, hero: Person, other: Person, thing: str):
        self.rng = rng
        self.templates = wordings('stories.txt')
        self.sentences = []
        self.subject = ''
        self.ambiguous = False
        self.a, self.b = Who(hero), Who(other)
        self.thing = Thing(rng, thing)
        place, place2 = rng.sample(list(PLACES), 2)
        animal = rng.choice([animal for animal in facts.ANIMALS if animal != hero.pet])
        self.season = rng.choice(facts.SEASONS)
        self.words = {
            # people and the thing
            'a': self.a,
            'b': self.b,
            't': self.thing,
            'look': self.thing.look,
            'others': self.thing.many_other,
            'home': hero.home,
            'home2': other.home,
            'pet': hero.pet,
            'food': hero.food,
            'job': hero.job,
            'bond': 'best friend' if hero.friend == other.name else 'neighbour',
            'animal': animal,
            'says': facts.ANIMALS[animal][0],
            # places
            'village': facts.VILLAGE,
            'where': self.thing.where,
            'to': f'to the {place}',
            'at': f'{PLACES[place]} the {place}',
            'at2': f'{PLACES[place2]} the {place2}',
            # times
            'weekday': rng.choice(facts.DAYS),
            'time': rng.choice(TIMES),
            'month': rng.choice(facts.MONTHS_OF[self.season]),
            'season': self.season,
        }

    def refer(self, key: str, here: str) -> str:
        """
        How to name a subject: a pronoun where it can mean nobody else, else the name.

        Sometimes the name anyway. here: who was named earlier in the same sentence.
        """
        who = self.a if key == 'a' else self.b
        if here == key:
            return who.he
        clear = self.subject == key and not self.ambiguous
        return who.he if clear and self.rng.random() < 0.8 else who.name

    def say(self, templates: list[str], n: int = 0):
        """One of the templates, with its one or two sentences; n is the number in it."""
        for template in self.rng.choice(templates).split(' / '):
            # 1) Its words
            people, here = people_in(template)
            words = Words(self.words, n=n, walk=self.rng.choice(WALKS))
            words['ts'] = self.thing.one if n == 1 else self.thing.many
            words['x'] = self.refer('a', here)
            words['y'] = self.refer('b', here)
            words['A'] = capital(self.refer('a', ''))
            words['B'] = capital(self.refer('b', ''))
            self.sentences.append(capital(template.format_map(words)))

            # 2) Whom a pronoun in the next sentence would mean
            self.subject = people[0] if people else self.subject
            both = len(set(people)) == 2
            self.ambiguous = 'hey ' in template or both and self.a.gender == self.b.gender

    def step(self, step: str):
        """One step of a plot: 'who', 'sky?', 'end|keep', or COUNTS."""
        if step.endswith('?') and self.rng.random() < 0.5:
            return
        if step == 'COUNTS':
            self.counts()
            return
        name = self.rng.choice(step.rstrip('?').split('|'))
        seasonal = self.templates.get(f'{name}_{self.season}', [])
        self.say(self.templates[name] + seasonal)

    def counts(self):
        """Two or three changes of who has how many; a later sentence confirms every number."""
        # 1) How many the hero has, and sometimes the other; 0 is not known
        rng, templates = self.rng, self.templates
        count = {'a': rng.randint(2, 12), 'b': rng.randint(2, 9) if rng.random() < 0.3 else 0}
        self.say(templates['had'], count['a'])
        self.say(templates['meet'])
        if count['b']:
            self.say(templates['other_had'], count['b'])

        # 2) The changes
        confirmed = True
        for gains, loses, template in rng.sample(
            self.changes(count['b'] > 0), rng.choice((2, 2, 3))
        ):
            most = count[loses] - 1 if loses and count[loses] else 6
            if not most:
                continue
            n = rng.randint(1, min(most, 6))
            for who, change in ((gains, n), (loses, -n)):
                if who and count[who]:
                    count[who] += change
            self.say([template], n)
            confirmed = rng.random() < 0.6
            if confirmed:
                self.say(templates['now'], count['a'])

        # 3) How many they have in the end
        if not confirmed:
            self.say(templates['now'], count['a'])
        if count['b']:
            both = count['a'] + count['b']
            ends = [('other_now', count['b']), ('together', both)]
            name, n = rng.choice(ends)
            self.say(templates[name], n)

    def changes(self, other_counts: bool) -> list[tuple[str, str, str]]:
        """
        The changes that fit, each as (who gains, who loses, template).

        Food is eaten, wares are traded, what the other has is known or goes to the hero.
        """
        fit = []
        for heading, (gains, loses) in CHANGES.items():
            for template in self.templates[heading]:
                eaten = ' ate ' in template and self.thing.one not in facts.EATEN
                traded = 'bought' in template or 'sold' in template
                if eaten or traded and self.thing.one in NO_TRADE:
                    continue
                if other_counts or 'a' in (gains, loses):
                    fit.append((gains, loses, template))
        return fit

    def good(self, people: list[str]) -> bool:
        """6 to 10 sentences, none twice, and whoever is in the story is in it more than once."""
        text = ' '.join(self.sentences)
        twice = all(len(re.findall(rf'\b{name}\b', text)) > 1 for name in people)
        different = len(set(self.sentences)) == len(self.sentences)
        return twice and different and 6 <= len(self.sentences) <= 10


def story(
    rng: random.Random,
    person: str | None = None,
    thing: str | None = None,
    plots: Sequence[str] = tuple(PLOTS),
) -> Story:
    """
    A story about a person (a name) and a thing (in the singular), drawn where they are not given.

    Its plot is one of these, where there is one that suits the thing.
    """
    # 1) Whom and what it is about, and which plot
    hero = BY_NAME[person] if person else rng.choice(PEOPLE)
    thing = thing or rng.choice(THINGS)[0]
    unsuited = {'broken'} if thing in NO_REPAIR else set()
    suits = {plot: share for plot, share in SHARES.items() if plot not in unsuited}
    wanted = {plot: share for plot, share in suits.items() if plot in plots} or suits
    plot = weighted(rng, wanted)

    # 2) Tell it until it is good
    others = [other for other in PEOPLE if other != hero]
    while True:
        friend = BY_NAME[hero.friend]
        teller = Teller(rng, hero, friend if rng.random() < 0.3 else rng.choice(others), thing)
        for step in PLOTS[plot].split():
            teller.step(step)
        text = ' '.join(teller.sentences)
        people = [name for name in (hero.name, teller.b.name) if name in text]
        if teller.good(people) and (plot == 'alone') == (len(people) == 1):
            return Story(text, people, thing, plot)
