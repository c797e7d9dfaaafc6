"""
The data of every stage from tinyworld, a world of our own: seconds, no network.

$ python data/tinyworld/prepare.py             writes pretrain, mid, sft, dpo and rl beside this file
$ python data/tinyworld/prepare.py --seed=2    the same world, told and asked about otherwise

pretrain, mid, sft, dpo and rl become data folders of one tokenizer, trained here. problems.jsonl holds the questions
that evaluation asks, none of which stands in any training file (checked before anything is written), and those that
reinforcement learning practises on, of which only the answer is given. It is written last.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import runtime
from batches import Writer
from configurator import configure
from conversation import SPECIAL, Chat
from data.tinyworld import facts, text
from data.tinyworld.chats import CARELESS, SKILLS, STAGES, draw, pair
from data.tinyworld.questions import Example
from data.tinyworld.wordings import canonical
from tokenizer import PATTERN, train_bpe

FOLDER = Path(__file__).resolve().parent
PRACTICE = ('two_step', 'three_step')  # what reinforcement learning learns

# how much of what; sizes in tokens are about right, those in numbers exact
seed = 1  # another gives other data, of the same world
vocab_size = 1024  # ids in all, the special tokens counted
tokenizer_chars = 1_000_000  # characters of all stages that the tokenizer is trained on
pretrain_tokens = 3_200_000  # plain text
mid_tokens = 800_000  # conversations as text
sft_tokens = 1_200_000  # conversations, of which the answers count
dpo_pairs = 3000  # a right answer and a worse one to the same question
rl_problems = 3000  # to practise on
val_tokens = 40_000  # of the validation split of each stage; pretraining's has half as much again
val_pairs = 300  # of dpo's validation split
val_problems = 500  # held-out problems of each skill


def rng_of(*names) -> random.Random:
    """A generator for each part of the data, so that the size of one changes no other."""
    return random.Random('/'.join(map(str, (seed, *names))))


# -----------------------------------------------------------------------------
# problems


def problem_of(example: Example, skill: str, split: str) -> dict:
    """A line of problems.jsonl: the question, and what an answer is graded by."""
    problem = {'split': split, 'skill': skill, 'messages': example.messages[:-1], 'grader': example.grader}
    return {**problem, 'answer': example.answer, **(example.more or {})}


def draw_problems(skill: str, split: str, number: int) -> list[dict]:
    """So many different problems; fewer where a skill does not have so many different questions."""
    rng, found = rng_of('problems', skill, split), {}
    for _ in range(4 * number):
        example = draw(rng, skill, held_out=split == 'val', careless=0.5, mild=True)
        found.setdefault(example.key, problem_of(example, skill, split))
        if len(found) == number:
            break
    return list(found.values())


# -----------------------------------------------------------------------------
# documents: a list of messages, or a text


def count_bytes(document) -> int:
    """The UTF-8 bytes of what was said or written."""
    if isinstance(document, str):
        return len(document.encode('utf-8'))
    contents = [message['content'] for message in document]
    texts = [part['text'] for content in contents if not isinstance(content, str) for part in content]
    return sum(len(said.encode('utf-8')) for said in texts + [content for content in contents if isinstance(content, str)])


def plain(rng: random.Random, avoid: set[str]) -> Iterator[str]:
    """Plain text of which no line or sentence is a held-out question."""
    for document in text.documents(rng):
        if avoid.isdisjoint(sentences(document)):
            yield document


def sentences(document: str) -> Iterator[str]:
    """Its lines and sentences, as held-out questions are written down."""
    marked = document.replace('?', '?\n').replace('. ', '.\n').replace('! ', '!\n').replace('"', '\n').replace(': ', '\n')
    return (canonical(line) for line in marked.split('\n') if line)


def mixed(stage: str, split: str, avoid: set[str]) -> Iterator:
    """Documents of a stage without end, those next whose share of the bytes is furthest behind."""
    shares, rng = STAGES[stage], rng_of(stage, split)
    texts, written = plain(rng_of(stage, split, 'text'), avoid), dict.fromkeys(shares, 0)
    while True:
        name = min(shares, key=lambda name: written[name] / shares[name])
        held_out = split == 'val'
        document = next(texts) if name == 'text' else draw(rng, name, held_out, CARELESS[stage]).messages
        written[name] += count_bytes(document)
        yield document


def pairs(split: str) -> Iterator[list[dict]]:
    """Chosen, rejected, chosen, rejected, ... without end, skills in the shares of the table."""
    shares, rng = STAGES['dpo'], rng_of('dpo', split)
    while True:
        skill = rng.choices(list(shares), list(shares.values()))[0]
        yield from pair(rng, skill, held_out=split == 'val')


# -----------------------------------------------------------------------------
# writing


def train_tokenizer(avoid: set[str]):
    """Merges from a third of plain text, conversations of mid and of sft each. A digit is a token: sums need no more."""
    def sample():
        for source in (plain(rng_of('tokenizer'), avoid), mixed('mid', 'tokenizer', avoid), mixed('sft', 'tokenizer', avoid)):
            size = 0
            while size < tokenizer_chars // 3:
                document = next(source)
                size += count_bytes(document)
                yield from spoken(document)

    return train_bpe(sample(), vocab_size, SPECIAL, PATTERN.replace(r'\p{N}{1,2}', r'\p{N}'))


def spoken(document) -> list[str]:
    """The texts of a document that are encoded by themselves."""
    if isinstance(document, str):
        return [document]
    contents = [message['content'] for message in document]
    return [part['text'] for content in contents if not isinstance(content, str) for part in content] + [
        content for content in contents if isinstance(content, str)
    ]


def write(name: str, tokenizer, documents, seen: set[str]) -> None:
    """
    A data folder: documents(split) with the size of the split, in tokens or (a list or an islice) as many as there are.

    Notes the canonical text of all that users say in the train split in seen.
    """
    chat, totals = Chat(tokenizer), {}
    with Writer(FOLDER / name, tokenizer, notes={'about': facts.ABOUT, 'prompts': facts.PROMPTS}) as out:
        for split in ('train', 'val'):
            source, size = documents(split)
            ids, num_bytes, number = [], 0, 0
            for document in source:
                if isinstance(document, str):
                    ids += [tokenizer.bos, *tokenizer.encode(document)]
                else:
                    ids += chat.render(document) if document[-1]['role'] == 'assistant' else chat.prompt(document)
                    if split == 'train':
                        turns = [message['content'] for message in document if message['role'] == 'user']
                        seen.update(map(canonical, [*turns, ' '.join(turns)]))
                num_bytes, number = num_bytes + count_bytes(document), number + 1
                if size and len(ids) >= size:
                    break
            out.write(split, ids, num_bytes)
            totals[split] = f'{split} {len(ids):,} tokens in {number:,} documents'
    print(f'{FOLDER / name}: {", ".join(totals.values())}')


def main() -> None:
    held_out = [problem for skill in SKILLS for problem in draw_problems(skill, 'val', val_problems)]
    practice = [problem for skill in PRACTICE for problem in draw_problems(skill, 'train', rl_problems // len(PRACTICE))]
    problems = held_out + practice
    questions = {canonical(' '.join(message['content'] for message in problem['messages'] if message['role'] == 'user')) for problem in held_out}
    (FOLDER / 'problems.jsonl').unlink(missing_ok=True)
    tokenizer, seen = train_tokenizer(questions), set()

    def sized(train, val):
        return lambda split: (train if split == 'train' else val)

    write('pretrain', tokenizer, lambda split: (plain(rng_of('pretrain', split), questions), {'train': pretrain_tokens, 'val': val_tokens * 3 // 2}[split]), seen)
    for stage, size in (('mid', mid_tokens), ('sft', sft_tokens)):
        write(stage, tokenizer, lambda split, stage=stage, size=size: (mixed(stage, split, questions), size if split == 'train' else val_tokens), seen)
    write('dpo', tokenizer, lambda split: (islice(pairs(split), 2 * (dpo_pairs if split == 'train' else val_pairs)), 0), seen)
    of_split = lambda split: [p['messages'] for p in problems if p['split'] == split and p['skill'] in PRACTICE]
    write('rl', tokenizer, lambda split: (of_split(split), 0), seen)
    assert questions.isdisjoint(seen), sorted(questions & seen)[:3]
    with runtime.replacing(FOLDER / 'problems.jsonl') as file:
        file.write(''.join(json.dumps(problem, ensure_ascii=False) + '\n' for problem in problems).encode('utf-8'))
    counts = Counter(f'{problem["split"]} {problem["skill"]}' for problem in problems)
    print(f'{FOLDER / "problems.jsonl"}: {", ".join(f"{name} {count:,}" for name, count in counts.items())}')


if __name__ == '__main__':
    configure(globals())
    main()
