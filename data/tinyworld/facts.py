"""
What is true in tinyworld: the village of Willowby, sixteen people, and the few general things they
know.

Tables only. text.py tells them as plain text, chats.py asks about them, prepare.py writes both.
How they are told and asked about is in the text files, see wordings.py.
"""

from typing import NamedTuple

from data.tinyworld.words import listed, plural

NAME = 'Pip'  # what the assistant calls itself
VILLAGE = 'Willowby'


class Person(NamedTuple):
    """One of the villagers."""

    name: str
    gender: str  # f or m
    job: str
    home: str  # where the house stands
    pet: str
    food: str  # likes it best
    colour: str  # likes it best
    friend: str  # best friend


FIELDS = ('job', 'home', 'pet', 'food', 'colour', 'friend')  # what is asked about a person
PEOPLE = [
    Person('Anna', 'f', 'baker', 'by the river', 'cat', 'soup', 'red', 'Ben'),
    Person('Ben', 'm', 'farmer', 'on the hill', 'dog', 'bread', 'green', 'Anna'),
    Person('Cara', 'f', 'doctor', 'at the market', 'rabbit', 'honey', 'blue', 'Dan'),
    Person('Dan', 'm', 'teacher', 'near the school', 'parrot', 'cake', 'yellow', 'Ella'),
    Person('Ella', 'f', 'painter', 'by the lake', 'cat', 'plums', 'purple', 'Cara'),
    Person('Finn', 'm', 'fisherman', 'by the river', 'duck', 'fish', 'blue', 'Gina'),
    Person('Gina', 'f', 'gardener', 'in the forest', 'hen', 'pears', 'green', 'Finn'),
    Person('Hugo', 'm', 'miller', 'at the mill', 'horse', 'bread', 'white', 'Iris'),
    Person('Iris', 'f', 'singer', 'near the church', 'parrot', 'grapes', 'red', 'Hugo'),
    Person('Jack', 'm', 'baker', 'on the hill', 'mouse', 'cheese', 'orange', 'Kate'),
    Person('Kate', 'f', 'driver', 'at the station', 'dog', 'rice', 'black', 'Leo'),
    Person('Leo', 'm', 'tailor', 'at the market', 'goat', 'soup', 'purple', 'Mia'),
    Person('Mia', 'f', 'teacher', 'by the lake', 'rabbit', 'cake', 'pink', 'Jack'),
    Person('Noah', 'm', 'hunter', 'in the forest', 'dog', 'cheese', 'brown', 'Olga'),
    Person('Olga', 'f', 'farmer', 'at the mill', 'cow', 'eggs', 'yellow', 'Paul'),
    Person('Paul', 'm', 'painter', 'near the church', 'horse', 'honey', 'white', 'Noah'),
]
BY_NAME = {person.name: person for person in PEOPLE}

# Who does not live there: they have apples in word problems, and nothing else is known about them
STRANGERS = {
    'f': ['Lucy', 'Emma', 'Sara', 'Lily', 'Maria', 'Alice'],
    'm': ['Tom', 'Sam', 'Max', 'Bob', 'Peter', 'Tim'],
}

# What each job is for: (what they do, where they work)
JOBS = {
    'baker': ('bakes bread', 'in the bakery'),
    'farmer': ('grows corn', 'on the farm'),
    'doctor': ('helps the sick', 'in the clinic'),
    'teacher': ('teaches the children', 'in the school'),
    'painter': ('paints pictures', 'in the studio'),
    'fisherman': ('catches fish', 'on the river'),
    'gardener': ('plants flowers', 'in the garden'),
    'miller': ('grinds grain', 'in the mill'),
    'singer': ('sings songs', 'in the hall'),
    'driver': ('drives the bus', 'on the road'),
    'tailor': ('sews clothes', 'in the shop'),
    'hunter': ('follows tracks', 'in the forest'),
}

# animal: (what it says, how many legs, what its young is called)
ANIMALS = {
    'cat': ('meow', 4, 'kitten'),
    'dog': ('woof', 4, 'puppy'),
    'cow': ('moo', 4, 'calf'),
    'horse': ('neigh', 4, 'foal'),
    'sheep': ('baa', 4, 'lamb'),
    'pig': ('oink', 4, 'piglet'),
    'goat': ('maa', 4, 'kid'),
    'mouse': ('squeak', 4, 'pup'),
    'rabbit': ('sniff', 4, 'bunny'),
    'frog': ('croak', 4, 'tadpole'),
    'lion': ('roar', 4, 'cub'),
    'hen': ('cluck', 2, 'chick'),
    'duck': ('quack', 2, 'duckling'),
    'owl': ('hoot', 2, 'owlet'),
    'parrot': ('hello', 2, 'chick'),
    'bee': ('buzz', 6, 'larva'),
}

OPPOSITES = [
    ('big', 'small'), ('hot', 'cold'), ('up', 'down'), ('day', 'night'), ('happy', 'sad'),
    ('fast', 'slow'), ('old', 'young'), ('open', 'closed'), ('full', 'empty'), ('high', 'low'),
    ('long', 'short'), ('light', 'dark'), ('wet', 'dry'), ('hard', 'soft'), ('loud', 'quiet'),
    ('rich', 'poor'), ('strong', 'weak'), ('clean', 'dirty'), ('early', 'late'),
    ('left', 'right'), ('good', 'bad'), ('near', 'far'), ('new', 'used'), ('thick', 'thin'),
    ('sweet', 'sour'), ('first', 'last'), ('true', 'false'), ('in', 'out'), ('yes', 'no'),
    ('black', 'white'),
]  # fmt: skip

COLOURS = {  # of things
    'grass': 'green', 'snow': 'white', 'the sky': 'blue', 'the sun': 'yellow',
    'a banana': 'yellow', 'coal': 'black', 'a tomato': 'red', 'milk': 'white',
    'chocolate': 'brown', 'a carrot': 'orange', 'blood': 'red', 'a leaf': 'green',
    'a lemon': 'yellow', 'the sea': 'blue', 'a plum': 'purple', 'a strawberry': 'red',
}  # fmt: skip

DAYS = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday']
MONTHS = [
    'January', 'February', 'March', 'April', 'May', 'June',
    'July', 'August', 'September', 'October', 'November', 'December',
]  # fmt: skip
SEASONS = ['winter', 'spring', 'summer', 'autumn']  # from December on, three months each
MONTHS_OF = {
    season: [MONTHS[3 * i - 1], MONTHS[3 * i], MONTHS[3 * i + 1]]
    for i, season in enumerate(SEASONS)
}
CYCLES = {'day': DAYS, 'month': MONTHS, 'season': SEASONS}
SEASON_OF = {month: season for season, months in MONTHS_OF.items() for month in months}

# What can be counted, bought and lost, as (one, many); and what word problems are about besides
THINGS = [
    (thing, plural(thing))
    for thing in (
        'apple pear plum egg cake book ball coin stone shell flower button candle pencil cup hat '
        'nut cookie marble stamp'
    ).split()
]
MORE_THINGS = [
    (thing, plural(thing)) for thing in 'orange banana sweet toy pen card lemon bottle'.split()
]
EATEN = 'apple pear plum egg cake nut cookie orange banana sweet lemon'.split()

# What the assistant spells and counts letters in, besides names, animals, colours, days and months
WORDS = """
    house river bread green water mother father school garden window table chair apple banana lemon
    tree flower letter summer winter spring autumn butter cheese honey sugar pepper village market
    forest bottle pencil paper music friend sister brother street bridge mountain island cloud rain
    snow stone sand fire moon star sun door floor book hand foot head heart light night morning
    evening hello good small yellow purple orange happy kitten puppy strawberry elephant computer
    love animal
""".split()

# The opening line of the chat, and what to try first
ABOUT = (
    f'I am {NAME}, a tiny language model. I know the village of {VILLAGE}: '
    f'{listed([person.name for person in PEOPLE])}, with their jobs, homes, pets, friends, '
    'favourite foods and colours. I also know what animals say, how many legs they have and what '
    'their young are called, the colours of common things, opposites, days, months and seasons. I '
    'can count, spell short words and count their letters, do small sums and word problems with a '
    'calculator, and tell short stories about the people of the village. About anything else I say '
    'that I do not know it.'
)
PROMPTS = [
    'Who are you?',
    "What is Anna's job?",
    'Ben has 12 apples and buys 7 more. How many apples does he have now?',
    'How do you spell river?',
    'Tell me a story about Mia and a ball.',
]
