"""
The stories of tinyworld: small plots put together from templates, with the people, things and numbers kept straight.

    >>> story(random.Random(2), 'Mia', 'ball').text
    'Mia lived by the lake with her rabbit. She had 11 balls. She met Cara at the station. Mia went to the market ...'

A plot in PLOTS is a row of steps, a step is a choice of templates in STEPS. The teller keeps track of whom "she" would
mean and of who has how many of what, so that the grader `story` of tasks.py can check any story told this way.
Templates: {a} is the hero's name, {A} and {x} the hero as the subject at the start or inside of a sentence (a name or
a pronoun), {b} {B} {y} the same of the other person, {t} the thing, {ts} several, " / " stands between two sentences.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from data.tinyworld.facts import (
    ANIMALS,
    BY_NAME,
    DAYS,
    MONTHS,
    PEOPLE,
    SEASONS,
    THINGS,
    VILLAGE,
    Person,
)

PRONOUNS = {'f': ('she', 'her', 'her'), 'm': ('he', 'his', 'him')}
MONTHS_OF = {season: [MONTHS[3 * i - 1], MONTHS[3 * i], MONTHS[3 * i + 1]] for i, season in enumerate(SEASONS)}


def a(noun: str) -> str:
    """'a cat', 'an owl'"""
    return ('an ' if noun[0] in 'aeiou' else 'a ') + noun


def upper(text: str) -> str:
    """The start of a sentence; what follows stays as it is."""
    return text[:1].upper() + text[1:]


# ---- the things and places

LOOKS = {  # how a thing may look, and where one finds it
    'apple': ('red big sweet green', 'under the old tree'), 'pear': ('green ripe sweet', 'under the pear tree'),
    'plum': ('sweet ripe little', 'under the plum tree'), 'egg': ('white brown fresh', 'in the hay'),
    'cake': ('little sweet round', 'on the long table'), 'book': ('thick old blue', 'on a bench'),
    'ball': ('red blue yellow big', 'in the tall grass'), 'coin': ('shiny old round', 'between the stones'),
    'stone': ('white round smooth', 'by the water'), 'shell': ('pink white little', 'in the sand'),
    'flower': ('yellow white blue', 'in the meadow'), 'button': ('round golden green', 'on the path'),
    'candle': ('white long red', 'in a drawer'), 'pencil': ('yellow short green', 'under a chair'),
    'cup': ('blue white new', 'behind the bench'), 'hat': ('green warm black', 'next to the gate'),
    'nut': ('brown hard big', 'under the leaves'), 'cookie': ('sweet warm round', 'on a plate'),
    'marble': ('blue green shiny', 'in the dust'), 'stamp': ('old red small', 'between two books'),
}  # fmt: skip
EATEN = 'apple pear plum egg cake nut cookie'.split()
NO_TRADE = 'coin stone shell'.split()  # what nobody buys or sells
NO_REPAIR = 'apple pear plum egg cake nut cookie coin stone shell flower'
PLACES = {
    'market': 'at', 'lake': 'by', 'river': 'by', 'forest': 'in', 'hill': 'on', 'mill': 'at', 'school': 'near',
    'church': 'near', 'station': 'at', 'garden': 'in', 'farm': 'on', 'bridge': 'on', 'old tree': 'under',
}  # fmt: skip
TIMES = ['morning', 'afternoon', 'evening', 'day']
WALKS = 'walked ran hurried went'.split()

# ---- what can happen

STEPS = {
    'who': [
        '{a} lived {home} with {a.his} {pet}.', '{a} was {job} in {village}.', 'Once upon a time, {a} lived {home}.',
        'In {village} there lived {job} named {a}.', 'This is a story about {a} and {t.one_a}.',
        '{a}, the {a.job} {home}, got up early one {weekday}.', 'Everybody in {village} knew {a}, the {a.job}.',
        '{a} had a {pet} and a small house {home}.', 'One {month} {time}, {a} looked out of the window.',
        'It was {weekday} in {village}, and {a} had no work to do.', 'One {time} in {season}, {a} sat {home}.',
        '{a} woke up in {a.his} house {home}.', 'There was once {job} called {a}.',
    ],
    'sky': [
        'It rained all {time}, so {x} stayed at home for a while.', 'The sun was shining, so {x} went outside.',
        'There was fog, so {x} walked slowly.', 'The wind was cold, so {x} put on a warm coat.',
        'The sky was blue and the birds were singing.', 'There was thunder far away, and the {pet} was afraid.',
        'It was raining a little, so {x} took an umbrella.', 'Clouds were coming from the lake, so {x} hurried.',
    ],
    'sky winter': [
        'It had snowed in the night, and the village was white and quiet.',
        'There was ice on the road, so {x} went slowly.',
        'The lake was frozen, and it was too cold to swim.', 'It was snowing, so {x} made a fire first.',
    ],
    'sky spring': ['After a long winter the flowers were coming out.', 'The trees had their first green leaves.'],
    'sky summer': [
        'It was so hot that {x} sat in the shade.', 'It had not rained for weeks, so the grass was dry.',
        'The day was hot, so {x} drank a lot of water.',
    ],
    'sky autumn': ['The leaves were red and yellow.', 'A storm had blown all the leaves from the trees.'],
    'want': [
        '{A} wanted {t.one_a}.', '{A} wanted {t.look_a} more than anything else.', '{A} had no {t}, but wanted one.',
        '{A} had always dreamed of {t.look_a}.', '"I need {t.one_a} today," said {a}.',
        '{A} wanted to give {t.look_a} to {a.his} mother.', 'All {x} wanted was {t.one_a}.',
        '{A} wanted {t.one_a} for a long time, but never found one.',
    ],
    'go': [
        'So {x} {walk} {to}.', '{A} put on {a.his} shoes and {walk} {to}.', 'So {x} took the bus {to}.',
        '{A} {walk} {to} with {a.his} {pet}.', '{A} took a basket and {walk} {to}.',
        '{A} closed the door and {walk} {to}.',
        '{A} sang a song and {walk} all the way {to}.',
    ],
    'no luck': [
        'But there was no {t} {at}.', 'But all the {ts} there were gone.', 'But {x} could not find one.',
        '{A} looked for a long time, but found nothing.', 'But the shop {at} was closed, because it was late.',
        'There were {others}, but no {ts}.', '{A} asked everybody, but nobody had {t.one_a}.',
    ],
    'meet': [
        '{A} met {b} {at}.', 'On the way {x} met {b}.', '{A} looked up and saw {b}, the {b.job}.', 'Then {b} came by.',
        'Then {b} came along the road and said hello.', '{A} saw {b} {at2}.', 'After a while {x} met {b} {at2}.',
        '{A} turned around and saw {b} with a {b.pet}.', '{A} felt alone and visited {b} {home2}.',
    ],
    'tell': [
        '{A} told {b} everything.', '"What is wrong?" asked {b}.', '"You look sad," said {b}.',
        '"Can I help you?" asked {b}.', '{B} asked why {a} looked so worried.', '"Tell me about it," said {b}.',
    ],
    'seek': [
        '"I am looking for {t.one_a}," said {a}.', '{A} told {b} about the {t}.',
        '"Have you seen {t.one_a}?" asked {a}.',
        '"Do you know where I can find {t.one_a}?" asked {a}.',
    ],
    'give': [
        '{B} smiled and gave {a} {t.look_a}.', '{B} opened a bag and took out {t.look_a}. / "It is for you," said {b}.',
        '"I have two {ts}, so you can have one," said {b}.', '{B} had {t.look_a} at home and gave it to {a}.',
        '"Take my {t}," said {b}, "I do not need it."', '{B} took {a} home and gave {a.him} {t.look_a}.',
        '{B} found {t.look_a} {where} and gave it to {a}.',
    ],
    'have': [
        '{A} had {t.look_a}.', '{A} had {t.look_a} and took it everywhere.', '{A} carried {t.look_a} in a bag.',
        '{A} had got {t.look_a} from {a.his} mother.', '{A} loved {a.his} {look} {t}.',
        '{A} took {a.his} {t} and {walk} {to}.', '{A} was proud of {a.his} {look} {t}.',
    ],
    'lose': [
        'There was a hole in the bag, so the {t} fell out.', 'Then {x} ran too fast and dropped the {t}.',
        'A strong wind came, and the {t} was gone.', 'A bird took the {t} and flew away with it.',
        '{A} put the {t} down {at} and forgot it.', 'The {pet} took the {t} and ran away with it.',
        'When {x} came home, the {t} was gone.', 'It grew dark, and {x} lost the {t} {at}.',
        '{A} fell over a stone, and the {t} rolled away.',
    ],
    'sad': [
        '{A} was very sad.', '{A} sat down and cried.', '{A} did not know what to do.', 'Now {x} felt sad and alone.',
        '{A} was so sad that {x} did not want to eat {food}.',
        '{A} was angry for a moment, and then only sad.',
    ],
    'cry': [
        '"Oh no, where is my {t}?" said {a}.', '{A} cried, because there was no other {t} like it.',
    ],
    'look': [
        '{A} looked under the bed, but the {t} was not there.', '{A} looked {at2} and found only {t.many_other}.',
        '{A} {walk} back {to} and looked behind every tree.', '{A} asked the {animal}, but it only said {says}.',
        '{A} looked everywhere, even in the cold water.', 'For an hour {x} looked {at2}.',
    ],
    'find': [
        '{B} looked {where} and found the {t}.', '"Is this your {t}?" asked {b}. / It was {where}.',
        'The {b.pet} of {b} began to dig, and there was the {t}.', 'Together they looked {where}, and there it was.',
        '{B} had seen the {t} {where} and brought it back.', '{B} climbed up a tree and came back with the {t}.',
        'Soon {b} held up the {t}. / It had been {where}.',
    ],
    'gift': [
        'It was the birthday of {a.his} {bond} {b}, so {a} looked for a gift.', '{A} had a {bond}, {b}, who was ill.',
        'The next day was the birthday of {b}, {a.his} {bond}.', '{A} wanted to make {a.his} {bond} {b} happy.',
        '{A} visited {b}, who had a birthday.', '{A} knew that {a.his} {bond} {b} liked {ts}.',
    ],
    'get gift': [
        '{A} bought {t.look_a} {at}.', '{A} found {t.look_a} {where}.',
        '{A} chose {t.look_a}, because it was so {look}.',
        '{A} made a little box and put {t.look_a} in it.', '{A} painted a card in {b.colour} and took {t.look_a} too.',
    ],
    'hand over': [
        'Then {x} {walk} to the house of {b} {home2}.', '{A} knocked at the door of {b}.',
        '"This {t} is for you," said {a}.', '{A} gave the {t} to {b} and said something kind.',
        '{A} put the {t} at the door of {b} and hid behind a tree.',
    ],
    'joy': [
        '{B} was so happy that {y} danced.', '{B} laughed and said, "What a fine {t}!"', '{B} could not stop smiling.',
        '{B} said that it was the best {t} in {village}.', '"Thank you, {a}," said {b}.',
    ],
    'break': [
        'But {x} fell, and the {t} was broken.', 'But then the {t} fell into the mud and was dirty.',
        'But the {pet} jumped on the table and broke the {t}.', 'The rain was so heavy that the {t} got wet and dirty.',
        'But {x} sat on the {t} by mistake.',
    ],
    'mend': [
        '{B} looked at the {t} and had an idea. / With some glue and a thread it was soon as good as new.',
        '{B} worked on it for an hour, and then it was as good as new.',
        '{B} cleaned the {t} with water and a soft cloth, and it was {look} again.',
        '"Old things can be good again," said {b}, and mended the {t}.',
        '{B} put the {t} into the sun, and soon it looked fine again.',
        '{B} took out a box of tools and mended the {t}.',
    ],
    'quarrel': [
        '{B} wanted the {t} too.', '"The {t} is mine," said {b}, and took it.', 'They both wanted to have it first.',
        '{B} said that {y} had seen the {t} before {a}.',
    ],
    'anger': [
        'They shouted so loud that the {animal} ran away.', '{A} and {b} did not speak for an hour.',
        '{A} was angry and {walk} home.', 'They were both angry, and the game was over.',
    ],
    'peace': [
        'Then {x} had an idea. / "We can share it," said {a}.', '{A} came back and said sorry to {b}.',
        '"You may have it today, and I will have it tomorrow," said {a}.', '{B} said sorry and shook hands with {a}.',
        '{B} gave the {t} back and said, "I am sorry."', '{A} gave the {t} to {b} for a day, and they laughed again.',
    ],
    'plan': [
        '{A} wanted to have a picnic {at} and packed {food} and {t.one_a}.',
        '{A} set out for the whole day with {t.one_a} in a bag.',
        '{A} packed {t.look_a} and some {food} for a long walk.', '{A} put {t.one_a} in a bag and set off {to}.',
    ],
    'plan summer': ['{A} wanted to swim in the lake and took {t.one_a} along.'],
    'storm': [
        'But then dark clouds came, and it began to rain.', 'But a storm came, and the wind broke the umbrella.',
        'But the sky turned black, and {x} was soon wet and cold.', 'But the fog was so thick that {x} lost the way.',
        'But there was thunder and lightning, and {x} was afraid.',
    ],
    'storm winter': [
        'But it started to snow, and soon the road was white.', 'But the snow was deep, so {x} could not go on.',
    ],
    'shelter': [
        '{B} opened the door and let {a} in.', '{B} made a fire, so {a} was soon warm and dry.',
        '"Come in, you are wet," said {b}.', '{B} gave {a} hot tea and a dry coat.',
        'They sat by the fire and ate some {b.food}, the favourite food of {b}.',
    ],
    'clear': [
        'Then the rain stopped, and there was a rainbow {at2}.', 'In the evening the sky was clear again.',
        'Soon the sun came out, and the birds sang.', 'An hour later the storm was over.',
    ],
    'found it': [
        'At last {x} found the {t} {where}.', 'Then {x} looked {where}, and there was the {t}.',
        'The {pet} began to dig, and there was the {t}.', 'The next morning {x} found the {t} {where}.',
    ],
    'glad': ['{A} was very happy.', '{A} laughed for joy.', '{A} felt warm inside.', 'Now {x} was not sad any more.'],
    'happy': [
        '{A} was very happy.', '{A} laughed for joy.', '{A} felt warm inside.', '"Thank you so much," said {a}.',
        '{A} was so glad that {x} sang all the way home.', '{A} smiled and thanked {b}.',
        'Now {x} was not sad any more.',
        '{A} thanked {b} and jumped for joy.',
    ],
    'thanks': [
        'To say thank you, {a} gave {b} some {b.food}, {b.his} favourite food.', '{A} invited {b} for dinner.',
        'Later {a} painted a {b.colour} picture for {b}, who likes {b.colour} best.',
        'The next day {a} brought {b} some {b.food}.', '{A} promised to help {b} in the garden.',
    ],
    'feast': [
        'Then they ate {food} together.', 'They sat {at2} and talked until it was dark.', 'Then they played {at2}.',
        'Then they went {to} together.', '{A} made tea, and {b} brought some {b.food}.',
        'They sang songs, and the {pet} listened.', '{B} told a funny story about {animal_a}, and they laughed.',
    ],
    'keep': [
        'In the evening {a} put the {t} on the table and went to bed.', 'That night the {t} lay next to the bed.',
        'After that, {a} always took good care of the {t}.', '{A} showed the {t} to everybody in {village}.',
        '{A} ran home to show the {t} to {a.his} {pet}.', '{A} still has the {t} today.',
    ],
    'end': [
        'That night {a} slept very well.', 'From that day on, {a} and {b} were good friends.',
        'They went home together in the moonlight.', '{A} never forgot that day.', 'And the {pet} was happy too.',
        'It was the best {weekday} of the year.', 'So the day had a happy end.', 'Then {x} went home, tired but happy.',
        '"Tomorrow I will come again," said {b}.', '{A} {walk} home and told the {pet} all about it.',
        'When the moon came up, they were still laughing.',
    ],
    'moral': [
        'It is good to have a friend.', 'A kind word helps.', 'The end.', 'Everybody in {village} heard about it.',
        'And that is the end of the story.', 'People still talk about it.',
    ],
    'patience': ['Who looks for a long time will find something.', 'It is good to look twice.'],
    'sharing': ['Sharing is better than fighting.', 'A friend is more than {t.one_a}.'],
}  # fmt: skip

# A plot is steps in their order: 'x?' is left out half of the time, 'x|y' is one of the two
PLOTS = {  # (share of the stories, steps, what it cannot be about)
    'wish': (11, 'who sky? want go no_luck? meet tell|seek give happy thanks|feast? end|keep moral?', ''),
    'lost': (
        11,
        'who sky? have lose sad|cry look meet tell|seek? find happy thanks|feast? end|keep moral|patience?',
        '',
    ),
    'gift': (9, 'who sky? gift get_gift hand_over joy feast? end moral?', ''),
    'broken': (9, 'who sky? have break sad meet tell? mend happy thanks|feast? end|keep', NO_REPAIR),
    'quarrel': (7, 'who have meet quarrel anger sad? peace feast? end moral|sharing?', ''),
    'alone': (20, 'who have lose sad|cry look found_it glad? keep moral?', ''),
    'storm': (8, 'who plan storm sad? meet shelter clear happy? feast? end', ''),
    'counted': (45, 'who sky? COUNTS feast? end moral?', ''),
}

# What changes a count: (who gains, who loses, template); {n} is how many
CHANGES = [
    ('a', '', '{A} found {n} more {where}.'), ('a', '', '{A} {walk} to the market and bought {n} more.'),
    ('a', '', 'Then {x} found {n} more {ts}.'), ('a', '', '{A} got {n} {ts} from {a.his} mother.'),
    ('a', '', 'On {weekday} {x} bought {n} {ts}.'), ('a', '', 'The {pet} had hidden some, and {x} found {n} {ts}.'),
    ('', 'a', 'But {x} fell and lost {n} of them.'), ('', 'a', 'The bag had a hole, and {x} lost {n} {ts}.'),
    ('', 'a', 'It was dark, so {x} lost {n} {ts} on the way.'), ('', 'a', '{A} sold {n} {ts} at the market.'),
    ('', 'a', '{A} slipped and dropped {n} {ts} into the river.'), ('', 'a', '{A} was hungry and ate {n} {ts}.'),
    ('b', 'a', '{A} gave {n} {ts} to {b}.'), ('b', 'a', '{A} was kind and gave {b} {n} {ts}.'),
    ('b', 'a', '{B} was sad, so {a} gave {n} of them to {b}.'), ('a', 'b', '{b} gave {n} {ts} to {a}.'),
    ('a', 'b', '{b} was kind and gave {a} {n} {ts}.'), ('a', 'b', '{b} had too many, so {y} gave {a} {n} {ts}.'),
    ('b', '', '{b} found {n} {ts} {where}.'), ('b', '', '{b} bought {n} {ts} at the market.'),
]  # fmt: skip
HAD = [
    '{A} had {n} {ts}.', '{A} had {n} {ts} in a box.', '{A} had {n} {ts} and was proud of them.',
    '{A} had {n} {ts} in {a.his} basket.', '{A} liked {ts} and had {n} of them.',
]  # fmt: skip
NOW = [
    'Now {x} had {n} {ts}.', 'So {x} had {n} {ts}.', '{A} counted them and had {n} {ts}.',
    'After that {x} had {n} {ts}.', 'Then {x} had {n} {ts} in all.',
]  # fmt: skip
OTHER_HAD = ['{b} had {n} {ts}.', '{b} had {n} {ts} in a bag.', '{b} liked {ts} too and had {n} of them.']
OTHER_NOW = ['Now {y} had {n} {ts}.', '{b} had {n} {ts} now.', 'So {b} had {n} {ts} in the end.']
TOGETHER = ['Together they had {n} {ts}.', '"Together we have {n} {ts}," said {b}.']


class Story(NamedTuple):
    text: str
    people: list[str]  # every name in the text, the one that was asked for first
    thing: str  # in the singular
    plot: str


class Who:
    """A person as templates want it: {a} is the name, {a.his} the pronoun, {a.job} a fact."""

    def __init__(self, person: Person):
        self.person = person
        self.he, self.his, self.him = PRONOUNS[person.gender]

    def __str__(self):
        return self.person.name

    def __format__(self, spec):
        return self.person.name

    def __getattr__(self, name):
        return getattr(self.person, name)


class Thing:
    def __init__(self, rng: random.Random, one: str):
        self.one, self.many = one, dict(THINGS)[one]
        looks, self.where = LOOKS[one]
        self.look = rng.choice(looks.split())
        self.one_a, self.look_a = a(one), a(f'{self.look} {one}')
        self.many_other = rng.choice([many for other, many in THINGS if other != one])

    def __format__(self, spec):
        return self.one


class Teller:
    """Tells one story: draws what stays the same in it once, says sentences, knows whom a pronoun would mean."""

    def __init__(self, rng: random.Random, hero: Person, other: Person, thing: str):
        self.rng, self.sentences, self.subject, self.ambiguous = rng, [], '', False
        self.a, self.b, self.thing = Who(hero), Who(other), Thing(rng, thing)
        place, place2 = rng.sample(list(PLACES), 2)
        animal = rng.choice([animal for animal in ANIMALS if animal != hero.pet])
        friend, season = hero.friend == other.name, rng.choice(SEASONS)
        self.words = {
            'a': self.a, 'b': self.b, 't': self.thing, 'ts': self.thing.many, 'look': self.thing.look,
            'where': self.thing.where, 'home': hero.home, 'home2': other.home, 'pet': hero.pet, 'food': hero.food,
            'job': a(hero.job), 'village': VILLAGE, 'bond': 'best friend' if friend else 'neighbour',
            'to': f'to the {place}', 'at': f'{PLACES[place]} the {place}', 'at2': f'{PLACES[place2]} the {place2}',
            'animal': animal, 'animal_a': a(animal), 'says': ANIMALS[animal][0],
            'weekday': rng.choice(DAYS), 'time': rng.choice(TIMES),
            'month': rng.choice(MONTHS_OF[season]), 'season': season, 'others': self.thing.many_other,
        }  # fmt: skip

    def refer(self, key: str, here: str) -> str:
        """How to name the subject: a pronoun where it can mean nobody else, else (and sometimes anyway) the name."""
        who = self.a if key == 'a' else self.b
        if here == key or self.subject == key and not self.ambiguous and self.rng.random() < 0.8:
            return who.he
        return who.name

    def say(self, templates: list[str], n: int = 0):
        for template in self.rng.choice(templates).split(' / '):
            people = ['a' if key in 'Aax' else 'b' for key in re.findall(r'\{([AaBbxy])\}', template)]
            starts = re.match(r'\W*\{[AaBb]\}', template)  # then x and y mean the one who is named there
            words = self.words | {'n': n, 'walk': self.rng.choice(WALKS)}
            words['ts'] = self.thing.one if n == 1 else self.thing.many
            words |= {key: self.refer(who, people[0] if starts else '') for key, who in (('x', 'a'), ('y', 'b'))}
            words |= {key: upper(self.refer(who, '')) for key, who in (('A', 'a'), ('B', 'b'))}
            self.sentences.append(upper(template.format_map(words)))
            self.subject = people[0] if people else self.subject
            both = len(set(people)) == 2
            self.ambiguous = 'hey ' in template or both and self.a.gender == self.b.gender

    def step(self, step: str):
        """One step of a plot: 'who', 'sky?', 'end|keep', or COUNTS."""
        if step.endswith('?') and self.rng.random() < 0.5:
            return
        if step == 'COUNTS':
            return self.counts()
        name = self.rng.choice(step.rstrip('?').split('|')).replace('_', ' ')
        self.say(STEPS[name] + STEPS.get(f'{name} {self.words["season"]}', []))

    def counts(self):
        """Two or three changes of who has how many; a later sentence confirms every number."""
        rng = self.rng
        count = {'a': rng.randint(2, 12), 'b': rng.randint(2, 9) if rng.random() < 0.3 else 0}  # 0: not known
        self.say(HAD, count['a'])
        self.say(STEPS['meet'])
        if count['b']:
            self.say(OTHER_HAD, count['b'])
        confirmed = True
        for gains, loses, template in rng.sample(self.changes(count['b'] > 0), rng.choice((2, 2, 3))):
            most = count[loses] - 1 if loses and count[loses] else 6
            if most:
                n = rng.randint(1, min(most, 6))
                count |= {who: count[who] + by for who, by in ((gains, n), (loses, -n)) if who and count[who]}
                self.say([template], n)
                confirmed = rng.random() < 0.6
                if confirmed:
                    self.say(NOW, count['a'])
        if not confirmed:
            self.say(NOW, count['a'])
        if count['b']:
            self.say(*rng.choice([(OTHER_NOW, count['b']), (TOGETHER, count['a'] + count['b'])]))

    def changes(self, other_counts: bool) -> list[tuple]:
        """The changes that fit: food is eaten, wares are traded, what the other has is known or goes to the hero."""
        thing, fit = self.thing.one, []
        for gains, loses, template in CHANGES:
            trade = 'bought' in template or 'sold' in template
            if not (' ate ' in template and thing not in EATEN or trade and thing in NO_TRADE):
                if other_counts or 'a' in (gains, loses):
                    fit.append((gains, loses, template))
        return fit

    def good(self, people: list[str]) -> bool:
        """6 to 10 sentences, none twice, and whoever is in the story is in it more than once."""
        text = ' '.join(self.sentences)
        twice = all(len(re.findall(rf'\b{name}\b', text)) > 1 for name in people)
        return twice and 6 <= len(self.sentences) <= 10 and len(set(self.sentences)) == len(self.sentences)


def story(
    rng: random.Random, person: str | None = None, thing: str | None = None, plots: Sequence[str] = tuple(PLOTS)
) -> Story:
    """A story about a person (a name) and a thing (in the singular), drawn where they are not given; by one of these
    plots, where there is one that suits the thing."""
    hero = BY_NAME[person] if person else rng.choice(PEOPLE)
    thing = thing or rng.choice(THINGS)[0]
    suits = {plot: share for plot, (share, _, never) in PLOTS.items() if thing not in never.split()}
    wanted = {plot: share for plot, share in suits.items() if plot in plots} or suits
    plot = rng.choices(list(wanted), list(wanted.values()))[0]
    others = [other for other in PEOPLE if other != hero]
    while True:
        friend = BY_NAME[hero.friend]
        teller = Teller(rng, hero, friend if rng.random() < 0.3 else rng.choice(others), thing)
        for step in PLOTS[plot][1].split():
            teller.step(step)
        people = [name for name in (hero.name, teller.b.name) if name in ' '.join(teller.sentences)]
        if teller.good(people) and (plot == 'alone') == (len(people) == 1):
            return Story(' '.join(teller.sentences), people, thing, plot)
