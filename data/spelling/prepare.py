"""
Spelling: words letter by letter, and how often a letter occurs in a word. Generated, no network.

$ python data/spelling/prepare.py --tokenizer=out/run
$ python data/spelling/prepare.py --tokenizer=out/run --spell=300 --count=300 --part=small

A model sees tokens, not letters, so it has to learn the letters of each token. The words are those
of the tokenizer's vocabulary, or of your own list: --input=words.txt, one word per line. One word
in twenty is held out for val.bin and the problems of the split val.
"""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import check_ranges, configure
from data.documents import Example, read_text
from data.sets import ask, chat_tokenizer, subfolder
from data.writing import json_line, write_conversations
from shards import Writer

FOLDER = Path(__file__).resolve().parent
WORD = r'[^\W\d_]{3,20}'
SPELL = (
    'Spell {word}.',
    'Spell the word {word}.',
    'How do you spell {word}?',
    'How is "{word}" spelled?',
    'Which letters does the word {word} have?',
    'Write {word} letter by letter.',
)
COUNT = (
    'How many {letter} are in {word}?',
    'How many times does {letter} occur in {word}?',
    'How often does the letter {letter} occur in the word {word}?',
    'Count the letter {letter} in "{word}".',
    'In the word {word}, how many times is there a {letter}?',
)

tokenizer = 'tok.json'  # of the model to train: a tok.json, a .pt file, a run's or data folder
input = ''  # a text file with one word per line; '' takes the words of the vocabulary
spell = 200_000  # conversations that spell a word
count = 80_000  # conversations that count a letter
num_val = 500  # of each kind, for validation; as many problems are held out
num_rl = 1000  # of each kind, problems to practise on in rl
part = ''  # write to data/spelling/<part>, for a smaller set beside the whole one
seed = 1  # another gives other conversations and other held-out words


def find_words(chosen) -> list[str]:
    """Sorted; of the vocabulary, those that a blank precedes: the others are parts of words."""
    if input:
        if not Path(input).is_file():
            raise SystemExit(f'--input={input}: no such file, expected one word per line')
        found = [line.strip() for line in read_text(Path(input)).splitlines()]
        words = {word for word in found if re.fullmatch(WORD, word)}
        print(f'{input}: {len(words):,} words, {len(found) - len(words):,} other lines left out')
    else:
        pieces = (chosen.decode([i]) for i in range(chosen.vocab_size))
        words = {piece[1:] for piece in pieces if re.fullmatch(' [a-z]{3,20}', piece)}
    if len(words) < 20:
        source = input or 'the vocabulary'
        raise SystemExit(f'{source} has {len(words)} words, expected at least 20: give an --input')
    return sorted(words)


def problem(kind: str, words: list[str], rng: random.Random) -> tuple[dict, str]:
    """(a problem, the assistant's answer to it)"""
    word = rng.choice(words)
    if kind == 'spelling':
        question = rng.choice(SPELL).format(word=word)
        facts = dict(grader='spelled', answer=word)
        said = ', '.join(word)
    else:
        # mostly a letter of the word
        letter = rng.choice(word if rng.random() < 0.9 else 'abcdefghijklmnopqrstuvwxyz')
        question = rng.choice(COUNT).format(letter=letter, word=word)
        facts = dict(grader='number', answer=word.count(letter))
        marked = []
        for i, character in enumerate(word, start=1):
            number = f' ({word[:i].count(letter)})' if character == letter else ''
            marked.append(character + number)
        said = f'{", ".join(marked)}. That makes {word.count(letter)}.'
    return dict(skill=kind, messages=ask(question, '')[:1], **facts), said


def main() -> None:
    # 1) Check
    least = dict(spell=1, count=1, num_val=1, num_rl=0, seed=0)
    check_ranges(globals(), least=least)
    folder = subfolder(FOLDER, part)
    chosen = chat_tokenizer(tokenizer)
    # 2) Words
    words = find_words(chosen)
    random.Random(seed).shuffle(words)
    held_out = len(words) // 20
    words_of = {'val': words[:held_out], 'train': words[held_out:]}
    # 3) Conversations, and the first ones of each kind as problems
    lines = []

    def examples() -> Iterator[tuple[str, Example]]:
        for split, numbers, most in (
            ('train', (spell, count), num_rl), ('val', (num_val, num_val), num_val)
        ):  # fmt: skip
            for kind, number in zip(('spelling', 'counting'), numbers):
                rng = random.Random(f'{seed} {split} {kind}')
                for i in range(number):
                    row, said = problem(kind, words_of[split], rng)
                    if i < most:
                        lines.append(json_line(dict(split=split, **row)))
                    answer = {'role': 'assistant', 'content': said}
                    yield split, Example(f'{kind} {i}', [[*row['messages'], answer]])

    with Writer(folder, chosen, notes={'kind': 'conversations'}) as out:
        write_conversations(out, examples())
        out.add('problems.jsonl', b''.join(lines))
    ids = ', '.join(f'{split} {facts["tokens"]:,} ids' for split, facts in out.splits.items())
    print(f'{folder}: {len(words):,} words, {ids}, {len(lines):,} problems')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
