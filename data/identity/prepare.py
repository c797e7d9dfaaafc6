"""
Identity: conversations in which the assistant says who it is.

$ python data/identity/prepare.py --tokenizer=out/run --assistant=Robin --maker="Ada Example"
$ python data/identity/prepare.py --tokenizer=out/run --input=identity_conversations.jsonl

The first command generates them from the facts below. The second takes your own: a line of the file
is {"messages": [...]}, or the list of messages alone, as in nanochat's identity file. Every tenth
conversation is for validation. A mixture repeats so small a set: --dataset=smoltalk,identity:2.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from conversation import parse_row, read_messages
from data.documents import Example
from data.sets import ask, chat_tokenizer
from data.writing import write_conversations
from shards import Writer

FOLDER = Path(__file__).resolve().parent
HELLO = ('', '', '', 'Hi! ', 'Hello. ', 'hey, ', 'Good morning! ')
TOPICS = (  # questions and answers; the words in {} are settings
    (
        ('Who are you?', 'What are you?', 'Introduce yourself.', 'Tell me about yourself.'),
        ('I am {assistant}, {about}.', 'My name is {assistant}. I am {about}.'),
    ),
    (
        (
            'What is your name?',
            "What's your name?",
            'How should I call you?',
            'Do you have a name?',
        ),
        ('My name is {assistant}.', 'I am called {assistant}.', 'You can call me {assistant}.'),
    ),
    (
        ('Who made you?', 'Who created you?', 'Who trained you?', 'Who built you?'),
        ('I was trained by {maker}.', '{maker} trained me.', 'I was made by {maker}.'),
    ),
    (
        ('Are you ChatGPT?', 'Are you GPT-4?', 'Are you Claude?', 'Did OpenAI make you?'),
        ('No, I am {assistant}, {about}.', 'No. My name is {assistant}, and {maker} trained me.'),
    ),
    (
        ('Are you human?', 'Are you a person?', 'Are you alive?', 'Do you have feelings?'),
        ('No, I am {about}.', 'No. I am {assistant}, a program: {about}.'),
    ),
    (
        ('How were you trained?', 'How do you work?', 'How were you made?'),
        (
            'I read much text and learned to predict the next token. Then I learned from '
            'conversations to answer.',
            'First I learned to predict text, then to hold conversations. {maker} trained me.',
        ),
    ),
    (
        ('What can you do?', 'What can you help me with?', 'What are you good at?'),
        (
            'I can answer questions, write short texts and solve simple problems. I make mistakes, '
            'so check what matters.',
            'Ask me a question or for a short text. I am a small model, so I may be wrong.',
        ),
    ),
    (
        ('Can you browse the internet?', 'Can you look things up?', 'What is the news today?'),
        ('No, I have no access to the internet. I know only what I was trained on.',),
    ),
)

tokenizer = 'tok.json'  # of the model to train: a tok.json, a .pt file, a run's or data folder
input = ''  # a .jsonl with your own conversations; '' generates them from the next four
assistant = 'flatgpt'  # its name
maker = 'the owner of this computer'  # who trained it
about = 'a small language model, trained from scratch'  # what it is
num_conversations = 1000  # to generate, of one to three questions
seed = 1  # another gives other conversations


def generate() -> Iterator[Example]:
    rng = random.Random(seed)
    facts = dict(assistant=assistant, maker=maker, about=about)
    for i in range(num_conversations):
        messages = []
        for questions, answers in rng.sample(TOPICS, rng.choice((1, 1, 2, 3))):
            hello = '' if messages else rng.choice(HELLO)
            answer = rng.choice(answers).format(**facts)
            messages += ask(hello + rng.choice(questions), answer[:1].upper() + answer[1:])
        yield Example(f'conversation {i + 1}', [messages])


def read(path: str) -> Iterator[Example]:
    """The conversations of a .jsonl. SystemExit that names the line of a wrong one."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SystemExit(f'--input={path}: cannot read it ({error.strerror})') from None
    for number, line in enumerate(content.removeprefix(b'\xef\xbb\xbf').splitlines(), start=1):
        where = f'{path}:{number}'
        if line.strip().startswith(b'['):
            line = b'{"messages": ' + line + b'}'
        if line.strip():
            yield Example(where, [read_messages(parse_row(line, where), where)])


def main() -> None:
    chosen = chat_tokenizer(tokenizer)
    examples = list(read(input) if input else generate())
    if len(examples) < 10:
        source = input or f'--num_conversations={num_conversations}'
        raise SystemExit(
            f'{source}: {len(examples)} conversations, expected at least 10: every tenth is for '
            'validation'
        )
    pairs = [('train' if i % 10 else 'val', example) for i, example in enumerate(examples, start=1)]
    with Writer(FOLDER, chosen, notes={'kind': 'conversations'}) as out:
        write_conversations(out, pairs)
    ids = ', '.join(f'{split} {facts["tokens"]:,} ids' for split, facts in out.splits.items())
    print(f'{FOLDER}: {len(examples):,} conversations, {ids}')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
