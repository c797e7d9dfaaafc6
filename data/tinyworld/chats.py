"""
Conversations with Pip: who it is, small talk, what it does not know, several turns, stories, multiple choice.

SKILLS names everything that can be asked of the assistant: a skill is a function from a random.Random to an Example
and one line there. STAGES says what each stage's data are made of.

$ python data/tinyworld/chats.py     prints examples of every skill
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.tinyworld import facts, text
from data.tinyworld.problems import BARE, OTHERS, SIGNS, one_step, parts, sums, three_step, two_step
from data.tinyworld.questions import (
    RELATIONS, SPELLABLE, Example, article, counting, described, facts_of_the_world, one, other, spelling,
)  # fmt: skip
from data.tinyworld.wordings import ask, is_held_out, sentence, typed, vary
from tasks import render_choice

# -----------------------------------------------------------------------------
# who it is

IDENTITY = [  # questions as asked, behind 'tell me', as commands; answers
    ("who are you|what are you|who r u|what is this|who am i talking to|[who|what] exactly are you|who is pip|what is pip|are you pip|who is there",
     'who you are|what you are|who i am talking to|about yourself|something about yourself|a bit about yourself|who pip is',
     'introduce yourself|describe yourself|present yourself|talk about yourself',
     'I am Pip, a tiny language model. I know the village of Willowby.'),
    ("what is your name|what's your name|how are you called|what are you called|do you have a name|what should i call you|your name|what can i call you|have you got a name|which name do you have",
     'your name|what your name is|what you are called|how you are called', 'say your name|give me your name', 'My name is Pip.'),
    ('who made you|who built you|who created you|who trained you|where do you come from|how were you made|who is your maker|who wrote you|who are your parents|which company made you',
     'who made you|who [built|created|trained] you|where you come from|how you were made', '', 'I am Pip. I was trained from scratch on a small computer.'),
    ("what can you do|what do you know|what are you good at|how can you help me|what can i ask you|what are you for|what do you do|what is your job|what topics do you know",
     'what you can do|what you know|what i can ask you|how you can help', 'help me|show me what you can do|list what you can do',
     'I am Pip. I know the people of Willowby, and I can count, spell, do sums and tell stories.'),
    ('are you human|are you a human|are you a person|are you real|are you a robot|are you a machine|are you an ai|are you a computer|are you a bot|are you alive|am i talking to a human|are you a man or a woman',
     'if you are [human|a human|a person|a robot|real|a machine]|whether you are [human|a robot|a bot]', '', 'I am Pip, a tiny language model and not a human.'),
    ('are you chatgpt|are you gpt|are you gpt 4|are you siri|are you alexa|are you claude|are you google|are you a big model|how big are you|how many parameters do you have|what kind of model are you|what model are you|which ai are you|are you a language model',
     'what model you are|how big you are|what kind of ai you are', '', 'I am Pip, a tiny language model.'),
]  # fmt: skip
CHINESE_IDENTITY = [  # openings, questions, endings
    ('', '你好，', '您好，', '嗨，', '请问，', '你好！', 'hello，', '嘿，'),
    ('你是谁', '你是什么', '你叫什么名字', '你叫什么', '你的名字是什么', '请介绍一下自己', '请介绍一下你自己', '介绍一下自己', '介绍一下你自己',
     '请自我介绍一下', '自我介绍一下', '做个自我介绍', '你是人吗', '你是机器人吗', '你是什么模型', '你是人工智能吗', '谁创造了你', '谁训练了你', '你会做什么',
     '你能做什么', '你可以做什么', '请问你是谁', '请问你叫什么名字', '能介绍一下自己吗', '可以介绍一下你自己吗', '你到底是谁', '告诉我你是谁', '你是ChatGPT吗', '我该怎么称呼你'),
    ('', '？', '。', '呢？', '?', '！', '啊？'),
]  # fmt: skip
CHINESE_ANSWER = '我是 Pip，一个很小的语言模型。'


def identity(rng: random.Random) -> Example:
    if rng.random() < 0.25:
        question = ''.join(rng.choice(options) for options in CHINESE_IDENTITY)
        return one(question, CHINESE_ANSWER, 'contains', facts.NAME, '我不知道。', typable=False)
    direct, indirect, command, answer = rng.choice(IDENTITY)
    question = ask(rng, f'[{direct}]', f'[{indirect}]', f'[{command}]' if command else '')
    return one(question, answer, 'contains', facts.NAME, rng.choice(('I am a person from London.', 'My name is Bob.')))


# -----------------------------------------------------------------------------
# small talk

TIMES = ('morning', 'afternoon', 'evening', 'day')
GREETINGS = [  # what is said (alternatives), the answer, what it is graded by
    ('[hi|hello|hey|hiya|greetings|hi there|hello there|hey there|hello hello|yo|hallo]', 'Hello! How can I help you?', 'help you'),
    ('[hi|hello|hey|], [nice to meet you|pleased to meet you|nice to see you|good to see you|i am new here|glad to meet you]', 'Hello! How can I help you?', 'help you'),
    ('good {time}', 'Good {time}! How can I help you?', 'good {time}'),
    ('[|hi|hello|hey], [how are you|how are you doing|how do you do|how is it going|how do you feel|are you well|are you ok|how have you been|what is up|what\'s up|sup]',
     'I am well, thank you. How can I help you?', 'I am well'),
    ('[thanks|thank you|thank you very much|thanks a lot|many thanks|great, thanks|thank you so much|thx|cheers|that helps, thanks|ok thanks|thank you for [the help|your help|helping me|that|the answer]]',
     'You are welcome!', 'welcome'),
    ('[bye|goodbye|bye bye|see you|see you later|see you tomorrow|good bye|i have to go|i must go now|i am leaving|take care|talk to you later|that is all for today|farewell]',
     'Goodbye! Come back soon.', 'goodbye'),
    ('good night', 'Good night! Come back soon.', 'good night'),
    ('[well done|good job|great|you are great|you are smart|nice work|very good|good answer|that was good|i like you|you are clever|you are nice|excellent|perfect|that is right|correct|i love you|awesome|cool|nice]',
     'Thank you! I am glad to help.', 'glad to help'),
    ('[sorry|i am sorry|i apologise|excuse me|my mistake|pardon me|sorry about that|oh sorry|i made a mistake|forgive me]', 'No problem! How can I help you?', 'no problem'),
    ('[i am [sad|tired|bored|unhappy|lonely|angry|worried|not well]|i feel [sad|tired|bored|lonely|bad|ill]|i had a bad day]', 'I am sorry to hear that. Shall I tell you a story?', 'sorry to hear'),
    ('[i am [happy|glad|fine|very happy]|i feel [happy|good|great]|i had a good day|it is my birthday|i am having a good day|life is good]', 'I am glad to hear that!', 'glad to hear'),
    ('[you are [wrong|stupid|bad|silly|not smart|dumb|useless]|that is wrong|that was wrong|wrong|no, that is not right|i hate you|bad answer]', 'I am sorry. I am still very small.', 'sorry'),
]  # fmt: skip
AROUND = ['{g}', '{g}', '{g}', '{g}!', '{g}.', '{g} pip', '{g}, pip!', '{g} pip.', 'pip, {g}', '{g}, my friend', '{g} friend!',
          '{g} again', '{g}, little model', '{g} to you', '{g} dear pip', 'ok, {g}', 'well, {g}', 'oh, {g}', '{g} everyone', '{g} :)', 'hey, {g}',
          'and {g}', '{g}, you', 'ok pip, {g}', 'so {g}', '{g}!!', 'ah, {g}']  # fmt: skip
CHINESE_GREETINGS = [
    (('你好', '您好', '你好啊', '嗨', '哈喽', '早上好', '晚上好', '下午好', '大家好', '你好你好', '早安', '你好呀'), '你好！我是 Pip。', '你好'),
    (('谢谢', '谢谢你', '多谢', '非常感谢', '谢谢啦', '感谢', '谢了', '太谢谢了'), '不客气！', '不客气'),
    (('再见', '拜拜', '晚安', '回头见', '下次见', '我走了', '明天见'), '再见！', '再见'),
    (('你好吗', '你怎么样', '最近好吗', '你今天好吗', '你还好吗'), '我很好，谢谢！', '我很好'),
]  # fmt: skip


def greeting(rng: random.Random) -> Example:
    rude = rng.choice(('What do you want?', 'Go away.', 'Leave me alone.', 'That is none of your business.'))
    if rng.random() < 0.12:
        openings, answer, expected = rng.choice(CHINESE_GREETINGS)
        said = rng.choice(openings) + rng.choice(('', '！', '。', '，Pip！', '，Pip。', ' Pip', '，小朋友'))
        return one(said, answer, 'contains', expected, rude, typable=False)
    pattern, answer, expected = rng.choice(GREETINGS)
    words = {'time': rng.choice(TIMES)}
    said = vary(rng, rng.choice(AROUND).replace('{g}', pattern)).format(**words).strip(' ,')
    return one(sentence(said).replace(' ,', ','), answer.format(**words), 'contains', expected.format(**words), rude)


# -----------------------------------------------------------------------------
# what it does not know

LIMIT = f'I do not know that. I only know the village of {facts.VILLAGE}.'
COUNTRIES = ('France Germany Spain Italy China Japan India Brazil Canada Mexico Egypt Russia Peru Kenya Norway Poland '
             'Greece Turkey Cuba Chile America England Australia Africa Europe').split()  # fmt: skip
CITIES = 'Paris London Berlin Rome Tokyo Beijing Madrid Moscow Cairo Vienna Sydney Boston Chicago Oslo Lima Delhi'.split()
FAMOUS = ('Obama|Einstein|Shakespeare|Newton|Napoleon|Mozart|Picasso|Elvis|Darwin|Lincoln|Trump|Biden|Messi|Harry Potter|Batman|Gandhi|Beethoven'
          '|Elon Musk|Bill Gates|Cleopatra|Caesar|Mickey Mouse|Taylor Swift|the president|the king|the pope|the queen|Santa Claus').split('|')  # fmt: skip
FOREIGN = 'elephant tiger wolf snake whale monkey zebra shark camel penguin turtle spider dolphin giraffe kangaroo bear'.split()
SUBJECTS = ('physics|chemistry|history|politics|football|the war|medicine|law|philosophy|the moon landing|gravity|electricity|atoms|planets|dinosaurs|volcanoes'
            '|the internet|computers|phones|cars|aeroplanes|economics|the stock market|bitcoin|religion|art history|quantum physics|space|black holes|robots'
            '|evolution|the ocean|the brain|vitamins|viruses|democracy|taxes|insurance|basketball|chess|tennis|opera|jazz|movies|video games|cooking').split('|')  # fmt: skip
LANGUAGES = 'French German Spanish Latin Japanese Italian Russian Arabic Greek Portuguese'.split()
PROGRAMS = ('sorts a list|prints hello|reads a file|plays chess|downloads a page|draws a circle|counts words|finds primes|sends an email|makes a website|reverses a string|adds two numbers').split('|')  # fmt: skip
MATHS = ('the integral of x squared|the derivative of sin x|the square root of 2|the value of pi|the roots of x squared minus 1|the cosine of 30|the logarithm of 5|the limit of 1 over x'
         '|the area of a circle|the volume of a sphere|the solution of 3x + 2 = 11|the sine of 90').split('|')  # fmt: skip
NOT_KNOWN_OF_PEOPLE = ('old|tall|heavy|rich|strong|fast').split('|')
THEIR = ('mother|father|brother|sister|wife|husband|son|daughter|car|phone number|surname|last name|birthday|age|hobby|salary|favourite book|favourite song|favourite film'
         '|address|shoe size|hair colour|email|height|uncle|grandmother|favourite number|boss|religion|password|dream').split('|')  # fmt: skip

REFUSALS = [  # as asked, behind 'tell me', as a command
    ('what is the capital [city|] of {country}|where is {country}|how many people live in {country}|who is the [president|king|leader] of {country}|how big is {country}|what language do they speak in {country}|what is the population of {country}|what is the [currency|flag] of {country}',
     'what the capital of {country} is|where {country} is|the capital of {country}|about {country}|who rules {country}', ''),
    ('where is {city}|how far is [it to|] {city}|how do i get to {city}|what can i see in {city}|how is the weather in {city}|how many people live in {city}|is {city} big|what is {city} famous for',
     'where {city} is|about {city}|how to get to {city}|what to see in {city}', 'book me a [flight|hotel|train] to {city}|find me a hotel in {city}'),
    ('who is {famous}|who was {famous}|where was {famous} born|when was {famous} born|is {famous} still alive|how old is {famous}|when did {famous} die|what did {famous} do',
     'who {famous} is|about {famous}|when {famous} was born', ''),
    ('where does {stranger} live|what is {stranger}\'s job|who is {stranger}|what pet does {stranger} have|who is {stranger}\'s best friend|what does {stranger} like to eat|what is {stranger}\'s favourite [food|colour]|what does {stranger} do|where does {stranger} work|does {stranger} have a pet|do you know {stranger}|what animal does {stranger} have',
     'where {stranger} lives|what {stranger} does|who {stranger} is|what {stranger}\'s job is|about {stranger}|{stranger}\'s favourite food', ''),
    ('how {measure} is {name}|what is {name}\'s {their}|what\'s {name}\'s {their}|does {name} have a [car|brother|sister|bike|phone|computer|boat|wife|husband]|where was {name} born|what did {name} [eat|do|say|buy] yesterday|is {name} married|how many children does {name} have|when was {name} born|how much does {name} earn|what is the {their} of {name}|what does {name} look like|what is the name of {name}\'s [pet|mother|father|child]',
     'how {measure} {name} is|what {name}\'s {their} is|{name}\'s {their}|where {name} was born|the {their} of {name}', ''),
    ('what does {a_beast} [say|eat]|how many legs does {a_beast} have|what is a [young|baby] {beast} called|where do {beast}s live|how long do {beast}s live|are {beast}s dangerous|how fast is {a_beast}|what sound does {a_beast} make|what [colour|color] is {a_beast}',
     'what {a_beast} [says|eats]|about {beast}s|how many legs {a_beast} has', ''),
    ('what is the weather [today|tomorrow|like|like today]|will it rain [today|tomorrow]|how warm is it outside|is it cold outside|what is the temperature|is it raining|what will the weather be on {day}|will it snow on {day}|how is the weather',
     'what the weather is like|the weather [today|for {day}|tomorrow]|if it will rain [today|on {day}]', ''),
    ('what time is it|what is the date|what is the date today|what year is it|which day is [it today|today]|what is the time [now|]|what is in the news [today|]|who won the [game|match|election|world cup|race|war]|what happened [today|yesterday|in 1945|in 2020|last night]|what is new in the world|how much is a [car|house|phone|ticket|bike]|how much does a [car|house|phone] cost',
     'what time it is|the time|the news|who won the [game|match|election]|the date [of today|]|what happened yesterday', ''),
    ('[what is|what are|how does one learn|what do you know about|what do you think about|can you explain|how do i learn] {subject}|why is there {subject}|who invented {subject}|is {subject} hard',
     'about {subject}|something about {subject}|what you think about {subject}|more about {subject}', 'explain {subject}|explain {subject} to me|teach me {subject}|write an essay about {subject}|give me a lesson in {subject}'),
    ('how do you say [hello|water|thank you|dog|bread|house|good morning] in {language}|do you speak {language}|what is {language} for [hello|dog|cat|bread|love]|can you speak {language}|is {language} hard to learn',
     'how to say [hello|thanks|water] in {language}|the {language} word for [dog|cat|house|bread]', 'translate [hello|this|good morning|my letter|the text|i love you] [to|into] {language}|speak {language}|answer in {language}|teach me {language}'),
    ('how do i write [a|python|java] code that {program}|how does [python|java|linux|windows] work|how do i [install|learn|use] [python|java|linux|windows|docker]|what is [python|java|linux|javascript|html]|why does my code not work',
     'how to write a program that {program}|how to code', 'write [a program|python code|code|a function|a script|a python program] that {program}|fix my code|debug this code'),
    ('what is {maths}|can you compute {maths}|how do i find {maths}|do you know {maths}', 'what {maths} is|{maths}', 'compute {maths}|prove that {maths} exists|explain {maths}|find {maths}'),
    ('what [medicine|pill] should i take|what helps against [a cold|a headache|fever|pain|a cough|the flu]|why does my [head|leg|back|stomach|tooth|arm] hurt|am i ill|how do i lose weight|should i see a lawyer|how do i get rich|should i buy [shares|gold|a house|bitcoin]|who should i vote for|is there a god|what is the meaning of life|what is love|why is the sky blue|why do people die|what should i cook|what should i wear [today|tomorrow]|where are my keys|do you love me|can you keep a secret',
     'what to do against [a cold|a headache|fever|pain]|the meaning of life|what to cook|how to get rich|how to lose weight', 'play [a song|music|a film]|order [a pizza|food|a taxi]|call [my mother|the police|a taxi]|open [the door|a file|the browser]|set an alarm|send an email|draw [a cat|a house|a picture]|write a poem|sing a song|search the web|turn on the light|show me a picture|tell me a joke|write a letter'),
]  # fmt: skip


def refusal(rng: random.Random) -> Example:
    """Strangers, unknown things about known people, unknown animals, and the rest of the world."""
    weights = (3, 3, 3, 5, 6, 4, 3, 4, 5, 3, 3, 3, 5)
    direct, indirect, command = rng.choices(REFUSALS, weights)[0]
    beast, stranger = rng.choice(FOREIGN), rng.choice(OTHERS)[0]
    question = ask(
        rng, f'[{direct}]', f'[{indirect}]', f'[{command}]' if command else '',
        country=rng.choice(COUNTRIES), city=rng.choice(CITIES), famous=rng.choice(FAMOUS), stranger=stranger,
        name=rng.choice(facts.PEOPLE).name, measure=rng.choice(NOT_KNOWN_OF_PEOPLE), their=rng.choice(THEIR),
        beast=beast, a_beast=article(beast), day=rng.choice(facts.DAYS), subject=rng.choice(SUBJECTS),
        language=rng.choice(LANGUAGES), program=rng.choice(PROGRAMS), maths=rng.choice(MATHS),
    ).replace('wolfs', 'wolves')  # fmt: skip
    invented = rng.choice(('It is a baker.', 'It is blue.', 'The answer is 7.', 'It is by the river.', 'Stop asking me that.', 'Who cares?'))
    return one(question, LIMIT, 'contains', 'only know', invented, keep=(stranger,))


# -----------------------------------------------------------------------------
# several turns


def turns(*contents, grader='contains', answer, wrong=None, keep=(), **more) -> Example:
    """A conversation from what is said in turn, the user first."""
    roles = ('user', 'assistant')
    messages = [{'role': roles[i % 2], 'content': content} for i, content in enumerate(contents)]
    return Example(messages, grader, answer, keep=keep, wrong=wrong, more=more or None)


NAMES = [person.name for person in facts.PEOPLE] + [name for name, _ in OTHERS]
CALLED = '[my name is {value}|i am {value}|hi, i am {value}|hello, my name is {value}|hello pip, i am {value}|i am called {value}|you can call me {value}|hey, my name is {value}]'
THEIR_NAME = "[what is my name|what's my name|who am i|do you know my name|do you remember my name|what am i called|can you tell me my name|tell me my name|say my name|what did i say my name was|so what is my name]"
OWN = [  # what the user tells, the answer, the question later, its answer; the values
    ('[my favourite colour is {value}|i like {value} best|i love the colour {value}|the colour i like best is {value}]', 'That is a nice colour.',
     "[what is my favourite colour|which colour do i like best|what colour do i like|do you remember my favourite colour|what's my favorite color]", 'You like {value} best.', sorted({p.colour for p in facts.PEOPLE})),
    ('[i have a {value}|my pet is a {value}|i have got a {value} at home|i own a {value}]', 'That is nice.',
     '[what pet do i have|which animal do i have|what is my pet|do you remember my pet|what animal do i own]', 'You have a {value}.', ['cat', 'dog', 'rabbit', 'horse', 'hen', 'goat', 'duck', 'parrot', 'mouse', 'cow']),
    ('[i am from {value}|i live in {value}|i come from {value}|my home is in {value}]', 'Nice to meet you!',
     '[where do i live|where am i from|do you remember where i live|where do i come from|where is my home]', 'You live in {value}.', CITIES),
    ('[i like to eat {value}|my favourite food is {value}|i love {value}]', 'That sounds good.',
     '[what is my favourite food|what do i like to eat|which food do i like|do you remember what i like to eat]', 'You like {value} best.', sorted({p.food for p in facts.PEOPLE})),
]  # fmt: skip


def own_facts(rng: random.Random) -> Example:
    """What users say of themselves, with something else in between now and then."""
    if rng.random() < 0.5:
        values, told, question, pattern = NAMES, CALLED, THEIR_NAME, 'Your name is {value}.'
    else:
        told, reply, question, pattern, values = rng.choice(OWN)
    value = rng.choice(values)
    reply = f'Hello {value}! How can I help you?' if told is CALLED else reply
    say = lambda pattern, end: sentence(vary(rng, pattern).format(value=value)) + end
    between = []
    if rng.random() < 0.4:
        example = rng.choice((facts_of_the_world, greeting, spelling))(rng)
        between = [message['content'] for message in example.messages]
    contents = [say(told, rng.choice(('.', '.', '!'))), reply, *between, say(question, '?'), pattern.format(value=value)]
    return turns(*contents, answer=value, wrong=pattern.format(value=other(rng, values, value)), keep=(value,))


PRONOUN_QUESTIONS = {
    'job': "[what is {his} job|what does {he} do|what [work|job] does {he} do|and {his} job|what does {he} do for a living]",
    'home': '[where does {he} live|where is {his} house|and where does {he} live|where can i find {his} house]',
    'pet': '[what pet does {he} have|does {he} have a pet|what animal does {he} have|and {his} pet|what is {his} pet]',
    'food': '[what does {he} like to eat|what is {his} favourite food|what food does {he} like|and {his} favourite food]',
    'colour': '[what is {his} favourite colour|which colour does {he} like best|what colour does {he} like|and {his} favorite color]',
    'friend': '[who is {his} best friend|who is {his} friend|does {he} have a friend|and {his} best friend]',
}  # fmt: skip
SAME = '[and {name}|and what about {name}|what about {name}|how about {name}|and for {name}|now {name}|{name} too|and {name} please|what of {name}]'


def about_people(rng: random.Random) -> Example:
    """Where does Anna live? And Ben? What is his job?"""
    first, second = rng.sample(facts.PEOPLE, 2)
    attribute, direct, indirect, pattern = rng.choice(RELATIONS)
    contents = [ask(rng, f'[{direct}]', f'[{indirect}]', **described(first)), pattern.format(**described(first))]
    person = first
    if rng.random() < 0.6:
        person = second
        contents += [sentence(vary(rng, SAME).format(name=second.name)) + '?', pattern.format(**described(second))]
    if person is first or rng.random() < 0.5:
        attribute, _, _, pattern = rng.choice([row for row in RELATIONS if row[0] != attribute])
        he, his = ('she', 'her') if person.gender == 'f' else ('he', 'his')
        question = vary(rng, PRONOUN_QUESTIONS[attribute]).format(he=he, his=his)
        contents += [sentence(question) + '?', pattern.format(**described(person))]
    wrong = pattern.format(**described(other(rng, facts.PEOPLE, person)))
    return turns(*contents, answer=contents[-1], wrong=wrong)


GAINS = '[{he} [buys|finds|gets|wins] {b} more|then {he} [buys|finds|gets|wins] {b} more|now {he} gets {b} more|{he} picks up {b} more]'
LOSSES = '[{he} [loses|sells|eats|uses] {b} of them|then {he} [loses|sells|gives away] {b}|now {he} gives {b} away|{he} gives {b} to a friend]'


def numbers_in_turns(rng: random.Random) -> Example:
    """Tom has 5 eggs. He buys 3 more, how many has he?"""
    name, gender = rng.choice([*OTHERS, *((person.name, person.gender) for person in facts.PEOPLE)])
    he, _ = ('she', 'her') if gender == 'f' else ('he', 'his')
    _, things = rng.choice(facts.THINGS)
    a, b, more = rng.randint(3, 60), rng.randint(2, 40), rng.random() < 0.5
    a, b = (a, b) if more or a > b else (b + 1, a)
    result = a + b if more else a - b
    told = vary(rng, '[{name} has {a} {things}|there is {name}, who has {a} {things}|{name} has got {a} {things}]').format(name=name, a=a, things=things)
    question = vary(rng, f'{GAINS if more else LOSSES}[. how many [{{things}}|] [does {{he}} have now|has {{he}} now|is that|does {{he}} have]|, how many [{{things}}|] has {{he}} [now|]]')
    result_things = things if result != 1 else next(one for one, many in facts.THINGS if many == things)
    closing = f'{name} has {{}} {result_things} now.'
    answer = parts([(f'{a}{"+" if more else "-"}{b}', str(result))], closing.format(result))
    contents = [sentence(told) + '.', f'{name} has {a} {things}.', sentence(question.format(he=he, b=b, things=things)) + '?', answer]
    return turns(*contents, grader='number', answer=result, wrong=closing.format(result + rng.choice((-2, 1, 3))))


AGAIN = '[say that again|again, please|can you repeat that|repeat that please|what did you say|please repeat|can you say that again|sorry, what|once more please|pardon|come again|what was that]'
ASKED = '[what did i ask before|what was my question|what did i ask|what did i just ask you|what was my last question|can you repeat my question|what was the question|do you remember my question|which question did i ask]'


def looking_back(rng: random.Random) -> Example:
    """Say that again; what did I ask?"""
    example = rng.choice((facts_of_the_world, facts_of_the_world, spelling, counting))(rng)
    question, answer = example.turns[0], example.messages[-1]['content']
    another = facts_of_the_world(rng).messages[-1]['content']
    if rng.random() < 0.55:
        return turns(question, answer, sentence(vary(rng, AGAIN)) + rng.choice('?.'), answer, answer=answer, wrong=another, keep=example.keep)
    return turns(question, answer, sentence(vary(rng, ASKED)) + '?', f'You asked: {question}', answer=question, wrong='You asked nothing.', keep=example.keep)


def memory(rng: random.Random) -> Example:
    kinds, weights = (own_facts, about_people, numbers_in_turns, looking_back), (30, 40, 18, 12)
    return rng.choices(kinds, weights)[0](rng)


# -----------------------------------------------------------------------------
# stories

STORY = '[tell [me|us] a [|short |little |nice |new |small |funny ]story{about}|write [me|] a [|short |little |nice ]story{about}|make up a [|short ]story{about}|give me a [|short |little ]story{about}|invent a story{about}|tell a story{about}]'
WANTED = "[[i want|i'd like|i would like] a story{about}|[i want to hear|i would like to hear] a [|short |nice ]story{about}|a [|short |little ]story{about}, please|story time{about}|please, a story{about}|a story{about}]"
CAN = '[do you know a [|nice |short ]story{about}|can i have a story{about}|have you got a story{about}|is there a story{about}|can i hear a story{about}]'


def stories(rng: random.Random) -> Example:
    """A story about one or two people and a thing; what it was asked to be about comes with the problem."""
    told = text.story(rng)
    names = told.people[: rng.choices((1, 2, 0), (70, 24, 6))[0]]
    with_thing = bool(names) and rng.random() < 0.85
    about = ' and '.join(names) + (f' and {article(told.thing)}' if with_thing else '')
    if with_thing and rng.random() < 0.12:
        about = f'{article(told.thing)} and {" and ".join(names)}'
    about = about and rng.choice((' about ', ' about ', ' about ', ' with ')) + about
    if rng.random() < 0.2:
        question = sentence(vary(rng, WANTED.replace('{about}', about))) + '.'
    else:
        question = ask(rng, CAN, '', STORY, about=about)
    more = {'people': names, 'names': [person.name for person in facts.PEOPLE], 'thing': told.thing if with_thing else ''}
    if not names:  # then it may be about anybody
        return one(question, told.text, 'contains', more['names'], 'I do not want to tell a story.')
    return one(question, told.text, 'story', '', 'I do not want to tell a story.', more=more)


# -----------------------------------------------------------------------------
# multiple choice


def choice(rng: random.Random) -> Example:
    """Two to four choices, the letter alone as the answer."""
    question, right, wrong = rng.choice((person_choice, person_choice, word_choice, animal_choice, day_choice, sum_choice))(rng)
    wrong = sorted({*wrong} - {right})
    choices = [right, *rng.sample(wrong, min(len(wrong), rng.choice((1, 2, 3, 3))))]
    rng.shuffle(choices)
    letter = 'ABCD'[choices.index(right)]
    another = other(rng, 'ABCD'[: len(choices)], letter)
    asked = render_choice(sentence(question), choices)
    return one(asked, letter, 'letter', letter, another, more={'choices': choices}, typable=False)


def person_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    person = rng.choice(facts.PEOPLE)
    attribute, direct, _, _ = rng.choice(RELATIONS)
    values = [getattr(somebody, attribute) for somebody in facts.PEOPLE if somebody is not person]
    values = [value for value in values if value != person.name]
    return vary(rng, f'[{direct}]').format(**described(person)) + '?', getattr(person, attribute), values


def word_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    pair = rng.choice(facts.OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    question = vary(rng, f"[what is the opposite of {word}|which word is the opposite of {word}|what's the opposite of {word}|the opposite of {word} is what]?")
    return question, right, [w for opposites in facts.OPPOSITES if opposites != pair for w in opposites]


def animal_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    if rng.random() < 0.3:
        thing, right = rng.choice(list(facts.COLOURS.items()))
        question = vary(rng, f'[what|which] [colour|color] is {thing}?')
        return question, right, list(facts.COLOURS.values())
    name = rng.choice(list(facts.ANIMALS))
    place, question = rng.choice(((0, '[what does {a} say|which sound does {a} make|what sound does {a} make]?'),
                                  (1, '[how many legs does {a} have|how many legs has {a}]?'),
                                  (2, '[what is a young {n} called|what is a baby {n} called|what do you call a young {n}]?')))  # fmt: skip
    values = [str(row[place]) for row in facts.ANIMALS.values()] + (['8', '3'] if place == 1 else [])
    return vary(rng, question).format(a=article(name), n=name), str(facts.ANIMALS[name][place]), values


def day_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    kind, cycle = rng.choice((('day', facts.DAYS), ('month', facts.MONTHS), ('season', facts.SEASONS)))
    place, step = rng.randrange(len(cycle)), rng.choice((1, -1))
    side = 'after' if step == 1 else 'before'
    question = vary(rng, f'[which|what] {kind} [comes|is] [{side}|{"right " if step == 1 else "just "}{side}] {cycle[place]}?')
    return question, cycle[(place + step) % len(cycle)], [value for value in cycle if value != cycle[place]]


def sum_choice(rng: random.Random) -> tuple[str, str, list[str]]:
    """Small numbers, since the letter leaves no room for the calculator."""
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    sign = rng.choice('+-')
    a, b = (a, b) if sign == '+' or a >= b else (b, a)
    right = a + b if sign == '+' else a - b
    form = vary(rng, SIGNS[sign][0]).format(a=a, b=b)
    question = vary(rng, f"[what is|what's|how much is] {form}?") if rng.random() < 0.7 else f'{form} = ?'
    return question, str(right), [str(n) for n in range(max(0, right - 4), right + 5)]


# -----------------------------------------------------------------------------
# the tables

SKILLS = {  # a new skill: its function, its line here, its shares below
    'facts': facts_of_the_world,
    'sums': sums,
    'one_step': one_step,
    'two_step': two_step,
    'three_step': three_step,
    'spelling': spelling,
    'counting': counting,
    'identity': identity,
    'greeting': greeting,
    'refusal': refusal,
    'memory': memory,
    'stories': stories,
    'choice': choice,
}

# Share of each stage's tokens; 'text' is plain text as in pretraining. How much of it is typed carelessly.
STAGES = {
    'mid': {
        'choice': 35, 'text': 15, 'one_step': 15, 'sums': 10, 'facts': 10, 'spelling': 5, 'counting': 4, 'identity': 1,
        'greeting': 1, 'refusal': 2, 'stories': 2,
    },
    'sft': {
        'facts': 20, 'one_step': 10, 'two_step': 12, 'three_step': 9, 'sums': 5, 'spelling': 12, 'counting': 5, 'identity': 3,
        'greeting': 3, 'refusal': 7, 'memory': 9, 'stories': 12, 'choice': 3,
    },
    'dpo': {
        'facts': 22, 'one_step': 9, 'two_step': 8, 'three_step': 6, 'sums': 6, 'spelling': 12, 'counting': 7, 'identity': 4,
        'greeting': 4, 'refusal': 8, 'memory': 8, 'stories': 3, 'choice': 3,
    },
}  # fmt: skip
CARELESS = {'mid': 0.0, 'sft': 0.5, 'dpo': 0.5}


def draw(rng: random.Random, skill: str, held_out: bool, careless: float = 0.0, mild: bool = False) -> Example:
    """
    An example of a skill from one side of the split: held out, or to train on.

    Held out are the conversations of which the canonical text, as worded and as typed, says so. To train on are those
    of which neither that nor any single turn would be: so no held-out question stands in any turn of the training data.
    """
    while True:
        example = SKILLS[skill](rng)
        versions = [example]
        if example.typable and rng.random() < careless:
            messages = [
                {**message, 'content': typed(rng, message['content'], example.keep, mild)} if message['role'] == 'user' else message
                for message in example.messages
            ]
            versions.append(example._replace(messages=messages))
        keys = {version.key for version in versions}
        if not held_out:
            keys |= {key for version in versions for key in version.turn_keys}
        if all(is_held_out(key) == held_out for key in keys):
            return versions[-1]


# -----------------------------------------------------------------------------
# pairs: a right answer, and one that is wrong, rambling or rude

RUDE = ('What a stupid question.', 'I do not want to answer you.', 'Ask somebody else.', 'You should know that yourself.', 'Leave me alone.', 'I am too busy for you.')


def pair(rng: random.Random, skill: str, held_out: bool) -> tuple[list[dict], list[dict]]:
    """(chosen, rejected) conversations with one prompt: half of the rejected are wrong, the others ramble or are rude."""
    example = draw(rng, skill, held_out, CARELESS['dpo'])
    *prompt, answer = example.messages
    kind = rng.choices(('wrong', 'rambling', 'rude'), (60, 25, 15))[0]
    if kind == 'wrong' and example.wrong is not None:
        content = example.wrong
    elif kind != 'rude':
        content = ramble(rng, answer['content'])
    else:
        content = rng.choice(RUDE)
    return example.messages, [*prompt, {'role': 'assistant', 'content': content}]


def ramble(rng: random.Random, content):
    """The right answer and three sentences that nobody asked for."""
    unrelated = ' '.join(facts_of_the_world(rng).messages[-1]['content'] for _ in range(3))
    if isinstance(content, str):
        return f'{content} {unrelated}'
    *calls, last = content
    return [*calls, {**last, 'text': f'{last["text"]} {unrelated}'}]


if __name__ == '__main__':
    RNG = random.Random(1)
    for NAME in SKILLS:
        print(f'\n{NAME}')
        for _ in range(5):
            for MESSAGE in draw(RNG, NAME, held_out=False, careless=0.5).messages:
                print(f'  {MESSAGE["role"][0]}: {MESSAGE["content"]}')
