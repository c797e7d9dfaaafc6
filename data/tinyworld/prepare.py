"""
The data of every stage from tinyworld, a world of our own: seconds, no network.

$ python data/tinyworld/prepare.py             writes games, pretrain, mid, sft, dpo, problems.jsonl
$ python data/tinyworld/prepare.py --seed=2    the same world, other texts and questions

The five folders share one tokenizer, trained here unless --tokenizer names that of a model.
problems.jsonl holds the questions that evaluation asks, none of which occurs anywhere in what is
trained on (asserted for every document), and those that reinforcement learning practises on, with
their answer alone. It is written last.
"""

import hashlib
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
import disk
from configurator import configure
from conversation import SPECIAL, Chat
from data.tinyworld import facts, text, textfiles
from data.tinyworld.chats import CARELESS, SKILLS, STAGES, draw, pair
from data.tinyworld.heldout import HeldOut, canonical, said_by_user
from data.tinyworld.wordings import Example
from data.tinyworld.words import weighted
from shards import Writer
from tokenizer import PATTERN, train_bpe

FOLDER = Path(__file__).resolve().parent
SPLITS = ('train', 'val')
PRACTICE = ('two_step', 'three_step')  # the skills that reinforcement learning practises

# How much of what: tokens are passed by less than a document, pairs and problems are exact
seed = 1  # another gives other data, of the same world
tokenizer = ''  # '' trains one; to train a model further: its folder, a .pt file, or a tok.json
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
    return {
        'split': split,
        'skill': skill,
        'messages': example.messages[:-1],
        'grader': example.grader,
        'answer': example.answer,
        **(example.more or {}),
    }


def draw_problems(skill: str, split: str, number: int, avoid: HeldOut | None = None) -> dict:
    """
    This many different problems, by their canonical texts.

    Fewer where a skill has fewer questions.
    """
    rng = rng_of('problems', skill, split)
    held_out = split == 'val'
    careless = 0.3 if held_out else 0.0
    found = {}
    for _ in range(6 * number):
        example = draw(rng, skill, held_out, careless, mild=True, avoid=avoid)
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
    pieces = []
    for message in document:
        content = message['content']
        if isinstance(content, str):
            pieces.append(content)
        else:
            pieces += [part['text'] for part in content]
    return pieces


def count_bytes(document: str | list[dict]) -> int:
    """Bytes of the document's texts in UTF-8."""
    return sum(
        len(text) if text.isascii() else len(text.encode('utf-8')) for text in texts_of(document)
    )


def plain(rng: random.Random, avoid: HeldOut) -> Iterator[str]:
    """Plain text without end, none of the held-out questions in it."""
    return (document for document in text.documents(rng) if not avoid.inside(canonical(document)))


def mixed(stage: str, split: str, avoid: HeldOut) -> Iterator[list[dict]]:
    """Documents of mid or sft without end; next is the skill whose share of the bytes is lowest."""
    shares = STAGES[stage]
    rng = rng_of(stage, split)
    written = dict.fromkeys(shares, 0)
    held_out = split == 'val'
    while True:
        name = min(shares, key=lambda name: written[name] / shares[name])
        example = draw(rng, name, held_out, CARELESS[stage], avoid=None if held_out else avoid)
        written[name] += count_bytes(example.messages)
        yield example.messages


def pairs(split: str, avoid: HeldOut) -> Iterator[list[dict]]:
    """Chosen, rejected, chosen, rejected, ... without end, in the shares of the table."""
    rng = rng_of('dpo', split)
    held_out = split == 'val'
    while True:
        skill = weighted(rng, STAGES['dpo'])
        yield from pair(rng, skill, held_out, None if held_out else avoid)


def limited(documents: Iterator, size: int) -> Iterator:
    """The first documents, up to this many bytes."""
    for document in documents:
        yield document
        size -= count_bytes(document)
        if size <= 0:
            return


# -----------------------------------------------------------------------------
# writing


def read_tokenizer():
    """The tokenizer that the setting names; None where one is to be trained."""
    if not tokenizer:
        return None
    from checkpoint import load_tokenizer  # and torch, which takes seconds

    given = load_tokenizer(tokenizer)
    missing = [name for name in SPECIAL if name not in given.special]
    if missing:
        what = f'--tokenizer={tokenizer}: it lacks {" ".join(missing)}'
        raise SystemExit(f'{what}; leave --tokenizer out to train one')
    return given


def train_tokenizer(avoid: HeldOut):
    """Merges from plain text and from the conversations of mid and of sft, a third each."""
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
    # A digit is a token. '=A' may become one: right after its choice it is easy to look up
    pattern = PATTERN.replace(r'\p{N}{1,2}', r'\p{N}')
    return train_bpe(pieces, vocab_size, SPECIAL, pattern)


def keep_edited(path: Path) -> None:
    """Rename a problems.jsonl that is not as the last preparation wrote it: a user edited it."""
    record = FOLDER / 'dpo' / 'meta.json'
    if not path.exists():
        return
    written = json.loads(record.read_bytes()).get('problems_sha256') if record.exists() else None
    if hashlib.sha256(path.read_bytes()).hexdigest() != written:
        endings = itertools.chain(('.old',), (f'.old{n}' for n in itertools.count(2)))
        kept = next(p for p in (path.with_name(path.name + e) for e in endings) if not p.exists())
        path.replace(kept)
        print(f'{path} is not as it was prepared: kept as {kept.name}')


def write(
    name: str, tokenizer, sources: dict, avoid: HeldOut, max_tokens=(0, 0), max_documents=(0, 0),
    more: dict | None = None,
) -> None:  # fmt: skip
    """A data folder from the documents of each split: this many tokens, or this many documents."""
    chat = Chat(tokenizer)
    kinds = {'games': 'text', 'pretrain': 'text', 'dpo': 'preferences'}
    kind = kinds.get(name, 'conversations')
    notes = {'about': facts.ABOUT, 'prompts': facts.PROMPTS, 'kind': kind, **(more or {})}
    totals = []
    with Writer(FOLDER / name, tokenizer, notes=notes) as out:
        for split, tokens, documents in zip(SPLITS, max_tokens, max_documents):
            ids, num_bytes, number = [], 0, 0
            while len(ids) < tokens or number < documents:
                document = next(sources[split])
                if isinstance(document, str):
                    said = canonical(document)
                    ids += [tokenizer.bos, *tokenizer.encode(document)]
                else:
                    said = said_by_user(document)
                    ids += chat.render(document)
                leaked = split == 'train' and avoid.inside(said)
                assert not leaked, f'a held-out question in {name}: {document}'
                num_bytes += count_bytes(document)
                number += 1
            out.write(split, ids, num_bytes)
            totals.append(f'{split} {len(ids):,} ids in {number:,} documents')
    print(f'{FOLDER / name}: {", ".join(totals)}', flush=True)


def main() -> None:
    """Draw the held-out questions first, then write everything that must avoid them."""
    textfiles.read_all()
    given = read_tokenizer()

    # 1) Problems. Their file says that all the rest is there: removed now, written last
    held_out = {skill: draw_problems(skill, 'val', val_problems) for skill in SKILLS}
    avoid = HeldOut(key for problems in held_out.values() for key in problems)
    each = rl_problems // len(PRACTICE)
    practice = {skill: draw_problems(skill, 'train', each, avoid) for skill in PRACTICE}
    groups = (*held_out.values(), *practice.values())
    problems = [problem for found in groups for problem in found.values()]
    lines = [json.dumps(problem, ensure_ascii=False) + '\n' for problem in problems]
    content = ''.join(lines).encode('utf-8')
    path = FOLDER / 'problems.jsonl'
    keep_edited(path)
    path.unlink(missing_ok=True)
    chosen = given or train_tokenizer(avoid)

    # 2) The five folders
    texts = {split: text.games(rng_of('games', split)) for split in SPLITS}
    write('games', chosen, texts, avoid, max_tokens=(games_tokens, val_tokens // 2))
    texts = {split: plain(rng_of('pretrain', split), avoid) for split in SPLITS}
    write('pretrain', chosen, texts, avoid, max_tokens=(pretrain_tokens, val_tokens * 3 // 2))
    for stage, tokens in (('mid', mid_tokens), ('sft', sft_tokens)):
        sources = {split: mixed(stage, split, avoid) for split in SPLITS}
        write(stage, chosen, sources, avoid, max_tokens=(tokens, val_tokens))
    sources = {split: pairs(split, avoid) for split in SPLITS}
    record = {'problems_sha256': hashlib.sha256(content).hexdigest()}  # for keep_edited
    write('dpo', chosen, sources, avoid, max_documents=(2 * dpo_pairs, 2 * val_pairs), more=record)

    # 3) The problems
    with disk.replacing(path) as file:
        file.write(content)
    counts = Counter(f'{problem["split"]} {problem["skill"]}' for problem in problems)
    print(f'{path}: {", ".join(f"{name} {count:,}" for name, count in counts.items())}')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
