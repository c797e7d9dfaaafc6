"""
The data of every stage from tinyworld, a world of our own: seconds, no network.

$ python data/tinyworld/prepare.py             writes games, pretrain, mid, sft, dpo and problems.jsonl beside this file
$ python data/tinyworld/prepare.py --seed=2    the same world, told and asked about otherwise

The five folders share one tokenizer, trained here. problems.jsonl holds the questions that evaluation asks, none of
which stands anywhere in what is trained on (asserted for every document), and those that reinforcement learning
practises on, of which only the answer is given. It is written last.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import runtime
from batches import Writer
from configurator import configure
from conversation import SPECIAL, Chat
from data.tinyworld import facts, text
from data.tinyworld.chats import CARELESS, SKILLS, STAGES, draw, pair
from data.tinyworld.heldout import HeldOut, canonical, said_by_user
from data.tinyworld.wordings import Example
from tokenizer import PATTERN, train_bpe

FOLDER = Path(__file__).resolve().parent
SPLITS = ('train', 'val')
PRACTICE = ('two_step', 'three_step')  # the skills that reinforcement learning practises

# how much of what. Tokens are reached and passed by less than a document, pairs and problems are exact
seed = 1  # another gives other data, of the same world
vocab_size = 1536  # ids in all, the special tokens counted
tokenizer_bytes = 600_000  # of text that the tokenizer is trained on
games_tokens = 500_000  # games that teach to look back
pretrain_tokens = 700_000  # plain text
mid_tokens = 450_000  # conversations as text
sft_tokens = 2_000_000  # conversations, of which the answers count
dpo_pairs = 800  # a right answer and a worse one to the same question
rl_problems = 1000  # to practise on
val_tokens = 40_000  # of the validation split of mid and sft; pretraining's has half as much again
val_pairs = 200  # of dpo's validation split
val_problems = 500  # held-out problems of each skill


def rng_of(*names: str) -> random.Random:
    """A generator for each part of the data, so that the size of one changes no other."""
    return random.Random('/'.join((str(seed), *names)))


# -----------------------------------------------------------------------------
# problems


def problem_of(example: Example, skill: str, split: str) -> dict:
    """A line of problems.jsonl: the question, and what an answer is graded by."""
    problem = {
        'split': split,
        'skill': skill,
        'messages': example.messages[:-1],
        'grader': example.grader,
    }
    return {**problem, 'answer': example.answer, **(example.more or {})}


def draw_problems(
    skill: str, split: str, number: int, avoid: HeldOut | None = None
) -> dict[str, dict]:
    """So many problems by their canonical texts, all different; fewer where a skill has not so many questions."""
    rng, found = rng_of('problems', skill, split), {}
    for _ in range(6 * number):
        example = draw(
            rng, skill, split == 'val', careless=0.3 * (split == 'val'), mild=True, avoid=avoid
        )
        found.setdefault(example.key, problem_of(example, skill, split))
        if len(found) == number:
            break
    return found


# -----------------------------------------------------------------------------
# documents: a text, or the messages of a conversation


def texts_of(document: str | list[dict]) -> list[str]:
    """What was written or said, in the pieces that are encoded by themselves."""
    if isinstance(document, str):
        return [document]
    contents = [message['content'] for message in document]
    return [
        part
        for content in contents
        for part in ([content] if isinstance(content, str) else map(text_of, content))
    ]


def text_of(part: dict) -> str:
    return part['text']


def count_bytes(document: str | list[dict]) -> int:
    return sum(
        len(piece) if piece.isascii() else len(piece.encode('utf-8'))
        for piece in texts_of(document)
    )


def plain(rng: random.Random, avoid: HeldOut) -> Iterator[str]:
    """Plain text without end, none of the held-out questions in it."""
    return (document for document in text.documents(rng) if not avoid.inside(canonical(document)))


def mixed(stage: str, split: str, avoid: HeldOut) -> Iterator[list[dict]]:
    """Documents of mid or sft without end: next is the skill whose share of the bytes is furthest behind."""
    shares, rng = STAGES[stage], rng_of(stage, split)
    written, held_out = dict.fromkeys(shares, 0), split == 'val'
    while True:
        name = min(shares, key=lambda name: written[name] / shares[name])
        document = draw(
            rng, name, held_out, CARELESS[stage], avoid=None if held_out else avoid
        ).messages
        written[name] += count_bytes(document)
        yield document


def pairs(split: str, avoid: HeldOut) -> Iterator[list[dict]]:
    """Chosen, rejected, chosen, rejected, ... without end, the skills in the shares of the table."""
    shares, rng = STAGES['dpo'], rng_of('dpo', split)
    while True:
        skill = rng.choices(list(shares), list(shares.values()))[0]
        yield from pair(rng, skill, split == 'val', None if split == 'val' else avoid)


def limited(documents: Iterator, size: int) -> Iterator:
    """The first documents, until they have so many bytes."""
    for document in documents:
        yield document
        size -= count_bytes(document)
        if size <= 0:
            return


# -----------------------------------------------------------------------------
# writing


def train_tokenizer(avoid: HeldOut):
    """Merges from plain text and from the conversations of mid and of sft, a third each. A digit is a token."""
    sources = (
        plain(rng_of('tokenizer'), avoid),
        mixed('mid', 'tokenizer', avoid),
        mixed('sft', 'tokenizer', avoid),
    )
    pieces = (
        piece
        for source in sources
        for document in limited(source, tokenizer_bytes // 3)
        for piece in texts_of(document)
    )
    # '=A' may become a token: right behind its choice it is easy to look up
    pattern = PATTERN.replace(r'\p{N}{1,2}', r'\p{N}')
    return train_bpe(pieces, vocab_size, SPECIAL, pattern)


def write(
    name: str, tokenizer, sources: dict, avoid: HeldOut, max_tokens=(0, 0), max_documents=(0, 0)
) -> None:
    """A data folder from the documents of each split, of which it takes so many tokens or documents."""
    chat, totals = Chat(tokenizer), []
    kind = {'games': 'text', 'pretrain': 'text', 'dpo': 'preferences'}.get(name, 'conversations')
    notes = {'about': facts.ABOUT, 'prompts': facts.PROMPTS, 'kind': kind}
    with Writer(FOLDER / name, tokenizer, notes=notes) as out:
        for split, tokens, documents in zip(SPLITS, max_tokens, max_documents):
            ids, num_bytes, number = [], 0, 0
            while len(ids) < tokens or number < documents:
                document = next(sources[split])
                said = canonical(document) if isinstance(document, str) else said_by_user(document)
                assert split == 'val' or not avoid.inside(said), (
                    f'a held-out question in {name}: {document}'
                )
                is_text = isinstance(document, str)
                ids += (
                    [tokenizer.bos, *tokenizer.encode(document)]
                    if is_text
                    else chat.render(document)
                )
                num_bytes, number = num_bytes + count_bytes(document), number + 1
            out.write(split, ids, num_bytes)
            totals.append(f'{split} {len(ids):,} ids in {number:,} documents')
    print(f'{FOLDER / name}: {", ".join(totals)}', flush=True)


def main() -> None:
    (FOLDER / 'problems.jsonl').unlink(missing_ok=True)  # it says that all the rest is there
    held_out = {skill: draw_problems(skill, 'val', val_problems) for skill in SKILLS}
    avoid = HeldOut(key for problems in held_out.values() for key in problems)
    practice = {
        skill: draw_problems(skill, 'train', rl_problems // len(PRACTICE), avoid)
        for skill in PRACTICE
    }
    tokenizer = train_tokenizer(avoid)

    texts = {split: text.games(rng_of('games', split)) for split in SPLITS}
    write('games', tokenizer, texts, avoid, max_tokens=(games_tokens, val_tokens // 2))
    texts = {split: plain(rng_of('pretrain', split), avoid) for split in SPLITS}
    write('pretrain', tokenizer, texts, avoid, max_tokens=(pretrain_tokens, val_tokens * 3 // 2))
    for stage, tokens in (('mid', mid_tokens), ('sft', sft_tokens)):
        sources = {split: mixed(stage, split, avoid) for split in SPLITS}
        write(stage, tokenizer, sources, avoid, max_tokens=(tokens, val_tokens))
    sources = {split: pairs(split, avoid) for split in SPLITS}
    write('dpo', tokenizer, sources, avoid, max_documents=(2 * dpo_pairs, 2 * val_pairs))

    problems = [
        problem for found in (*held_out.values(), *practice.values()) for problem in found.values()
    ]
    with runtime.replacing(FOLDER / 'problems.jsonl') as file:
        file.write(
            ''.join(json.dumps(problem, ensure_ascii=False) + '\n' for problem in problems).encode(
                'utf-8'
            )
        )
    counts = Counter(f'{problem["split"]} {problem["skill"]}' for problem in problems)
    print(
        f'{FOLDER / "problems.jsonl"}: {", ".join(f"{name} {count:,}" for name, count in counts.items())}'
    )


if __name__ == '__main__':
    configure(globals())
    main()
