r"""
Prepare your own files for any stage of training.

$ python data/custom/prepare.py letters.txt diary.jsonl --name=mine --vocab_size=2048
$ python train.py --dataset=mine

$ python data/custom/prepare.py chats.jsonl --name=mine --tokenizer=assets/tinyworld.pt
$ python train.py config/tinyworld_sft.py --init_from=assets/tinyworld.pt --dataset=mine \
  --out_dir=out/mine --max_iters=30 --learning_rate=5e-4

A .txt is one document, a .parquet has a column "text", a .jsonl has lines of one of these kinds:

    {"text": "..."}                                                     text            pretrain
    {"messages": [{"role": "user", "content": "..."}, ...]}             conversations   mid, sft
    {"chosen": [{"role": ..., "content": ...}, ...], "rejected": ...}   preferences     dpo
    {"prompt": "...", "answer": "..."}                                  problems        rl, sft
    {"prompt": "..."}                                                   prompts         rl

"messages" may be called "conversations", a prompt may be a list of messages, and chosen and
rejected may be texts that answer a prompt. A text "system" in the line is the system message. Keys
that are null are ignored. Keys that change the meaning but cannot be learned, such as tool_calls or
"weight": 0, are refused; --skip_tools=True leaves out conversations with tools. All lines of a data
set are of one kind.

Prompts are for rl with a reward of your own (--reward, see rewards.py). --prompts_only=True reads
them from any lines with a "prompt" or a conversation, and leaves out the answer at the end:

$ python data/custom/prepare.py rlaif.jsonl --name=asked --prompts_only=True \
  --tokenizer=assets/tinyworld.pt

Tokenizer: bpe trains one on these files, char takes each character as an id, gpt2 and other names
of tiktoken's are used as they are. To train a model further, also on a text that has grown, use its
own: --tokenizer=out/run, the run's folder (or a .pt file, a tok.json, a data folder). Conversations
need special tokens, which gpt2 and char lack. A document begins with <|bos|>; with char, which has
no such token, it ends with a line break.

Validation: of text, the last val_fraction of all characters. Of other kinds, that share of the
lines, evenly spread: at least one and never all. Of ten lines it is the last.

An earlier preparation in data/<name> is replaced. A file that no preparation wrote is not: the
program stops at a train.bin that meta.json does not list, or a problems.jsonl that was edited.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
import tokenizer as tokenizers
from configurator import configure
from conversation import SPECIAL, Chat
from data.documents import Example, Source, find_source, read_examples, read_texts
from data.writing import write_conversations, write_problems, write_text
from shards import Writer, refuse_to_replace

DATA = Path(__file__).resolve().parents[1]
STAGES = {
    'text': 'pretrain',
    'conversations': 'mid or sft',
    'preferences': 'dpo',
    'problems': 'rl or sft',
    'prompts': 'rl with --reward',
}
HINT = 'take bpe, or the tokenizer of the model to train further, such as assets/tinyworld.pt'

name = 'custom'  # the data is written to data/<name>: train with --dataset=<name>
tokenizer = 'bpe'  # bpe | char | gpt2 | another of tiktoken's | out/run, hf:FOLDER, .pt, tok.json
vocab_size = 8192  # ids of a new bpe, at most; more ids: fewer tokens per text, a larger model
num_workers = 0  # processes that train a tokenizer and encode text; 0 is one per core
skip_tools = False  # leave out conversations that use tools, and say how many
prompts_only = False  # leave out the answers, for rl with --reward
val_fraction = 0.1  # share kept for validation; 0 trains on all and validates on the same

# -----------------------------------------------------------------------------
# text


def prepare_text(source: Source, folder: Path) -> str:
    """
    Write the documents of all files. Returns a summary.

    The files are read again for each pass, so that memory holds one document at a time.
    """
    # 1) Where validation begins
    total = sum(map(len, documents(source)))
    cut = int(total * (1 - val_fraction))
    if cut == 0 or val_fraction and cut == total:
        raise SystemExit(
            f'{", ".join(source.files)}: {total} characters with --val_fraction={val_fraction} '
            'leave a split empty: give more text, or a fraction between 0 and 1'
        )
    # 2) The tokenizer. Characters come from all text, merges from the training split
    if tokenizer == 'char':
        chosen = char_tokenizer(documents(source))
    else:
        pairs = split_at(cut, documents(source))
        chosen = choose_tokenizer(text for split, text in pairs if split == 'train')
    # 3) The ids
    pairs = split_at(cut, documents(source))
    try:
        with Writer(folder, chosen, notes={'kind': 'text'}) as out:
            write_text(out, with_copies(pairs), num_workers or os.cpu_count())
    except ValueError as error:  # a character that a given tokenizer lacks
        hint = 'remove it, or make another tokenizer (char, bpe) and train a new model'
        raise SystemExit(f'--tokenizer={tokenizer}: {error}; {hint}') from None
    return f'{total:,} characters'


def documents(source: Source) -> Iterator[str]:
    """The documents of all files. With char, a line break ends each: it has no bos."""
    for text in read_texts(source):
        if tokenizer == 'char' and text and not text.endswith('\n'):
            text += '\n'
        yield text


def split_at(cut: int, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(split, text) of each document: the first `cut` characters of all are 'train'."""
    for text in texts:
        head = text[:cut]
        tail = text[cut:]
        cut = max(0, cut - len(text))
        if head:
            yield 'train', head
        if tail:
            yield 'val', tail


# -----------------------------------------------------------------------------
# conversations, preferences, problems and prompts


def prepare_examples(source: Source, folder: Path) -> str:
    """Write the lines of all files, which are read once. Returns a summary."""
    # 1) Read
    if tokenizer != 'bpe' and not is_path(tokenizer):
        raise SystemExit(f'--tokenizer={tokenizer}: it has no tokens for conversations: {HINT}')
    skipped = []
    examples = read_examples(source, skipped if skip_tools else None)
    if skipped:
        print(f'lines that use tools, left out: {len(skipped):,}; the first is {skipped[0]}')
    if len(examples) == 0:
        raise SystemExit(f'{", ".join(source.files)}: every line uses tools, nothing is left')
    if len(examples) == 1 and val_fraction:
        raise SystemExit(
            f'{", ".join(source.files)}: 1 line, and validation needs one of its own: '
            'give more, or --val_fraction=0'
        )
    splits = split_lines(len(examples))
    # 2) The tokenizer
    train = (example for split, example in zip(splits, examples) if split == 'train')
    chosen = choose_tokenizer(texts_of(train))
    try:
        Chat(chosen)
    except SystemExit as error:
        raise SystemExit(f'--tokenizer={tokenizer}: {error}; {HINT}') from None
    # 3) The ids
    pairs = with_copies(zip(splits, examples))
    with Writer(folder, chosen, notes={'kind': source.kind}) as out:
        if source.kind in ('problems', 'prompts'):
            write_problems(out, pairs, skill=name)
        else:
            write_conversations(out, pairs)
    num_train = splits.count('train')
    num_val = splits.count('val') if val_fraction else num_train
    return f'{source.kind}, {num_train:,} to train on and {num_val:,} to validate with'


def split_lines(total: int) -> list[str]:
    """The split of each line. Validation is evenly spread: files are often sorted by topic."""
    kept = 0
    if val_fraction:
        kept = min(max(1, round(val_fraction * total)), total - 1)
    is_val = [(i + 1) * kept // total > i * kept // total for i in range(total)]
    return ['val' if yes else 'train' for yes in is_val]


def texts_of(examples: Iterable[Example]) -> Iterator[str]:
    """The text of every message of the conversations."""
    for example in examples:
        for messages in example.conversations:
            for message in messages:
                if isinstance(message['content'], str):
                    yield message['content']
                else:  # parts, such as a tool call
                    yield from (part['text'] for part in message['content'])


# -----------------------------------------------------------------------------
# what both need


def choose_tokenizer(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """The tokenizer that the setting names. texts: what a bpe learns its merges from."""
    if tokenizer == 'bpe':
        # with all special tokens, so that a model of text can learn to chat later
        workers = num_workers or os.cpu_count()
        return tokenizers.train_bpe(texts, vocab_size, SPECIAL, num_workers=workers)
    if tokenizer == 'gpt2':
        return tokenizers.gpt2(DATA / 'custom')
    if is_path(tokenizer):
        from checkpoint import load_tokenizer  # and torch, which takes seconds

        return load_tokenizer(tokenizer)
    return tokenizers.from_tiktoken(tokenizer)


def char_tokenizer(texts: Iterable[str]) -> tokenizers.CharTokenizer:
    characters = set()
    for text in texts:
        characters.update(text)
    return tokenizers.CharTokenizer(''.join(characters))


def is_path(given: str) -> bool:
    """Whether --tokenizer is a file, a folder or hf:FOLDER: a name has neither a slash nor a
    suffix."""
    return given.startswith('hf:') or given != Path(given).stem or Path(given).is_dir()


def with_copies(pairs: Iterable[tuple]) -> Iterator[tuple]:
    """The pairs (split, item); with --val_fraction=0 each once more, for validation."""
    for split, item in pairs:
        yield split, item
        if not val_fraction:
            yield 'val', item


# -----------------------------------------------------------------------------
# checks before the work


def check_settings() -> None:
    # 1) The name: data/<name> must be usable as --dataset=<name>
    has_folders = Path(name).name != name or name in ('', '..')
    if has_folders or name != name.strip() or ',' in name or ':' in name:
        raise SystemExit(
            f'--name={name}: expected a name that is not a path, without commas, colons and '
            'blanks at its ends'
        )
    folder = DATA / name
    is_file = DATA.joinpath(f'{name}.py').exists() or folder.exists() and not folder.is_dir()
    is_data_set = name != 'custom' and (folder / 'prepare.py').exists()
    if is_file or is_data_set:
        raise SystemExit(f'--name={name}: data/ has a file or data set of that name: take another')
    # 2) The numbers
    if not 0 <= val_fraction < 1:
        raise SystemExit(f'val_fraction={val_fraction}: expected a share from 0 to less than 1')
    if num_workers < 0:
        raise SystemExit(f'--num_workers={num_workers}: expected at least 0, which is one per core')


def check_folder(source: Source, folder: Path) -> None:
    """SystemExit if a file would be replaced that no preparation wrote."""
    problems = folder / 'problems.jsonl'
    inputs = [file for file in source.files if Path(file).exists()]
    if problems.exists() and any(problems.samefile(file) for file in inputs):
        raise SystemExit(
            f'{problems}: an input cannot be where the prepared problems will be written: '
            'rename it, or take another --name'
        )
    names = []
    if tokenizer in ('bpe', 'char'):
        names.append('tok.json')
    if source.kind in ('problems', 'prompts'):
        names.append('problems.jsonl')
    refuse_to_replace(folder, names)


def main(files: list[str]) -> None:
    # 1) Check now what would fail late
    if not files:
        raise SystemExit(
            'no files: python data/custom/prepare.py FILE... with .txt, .jsonl or .parquet files'
        )
    check_settings()
    folder = DATA / name
    source = find_source(files, prompts_only)
    if prompts_only and source.kind != 'prompts':
        raise SystemExit(f'--prompts_only=True: {source.where} is text, expected lines of JSON')
    check_folder(source, folder)
    # 2) Prepare
    if source.kind == 'text':
        summary = prepare_text(source, folder)
    else:
        summary = prepare_examples(source, folder)
    # 3) Report
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    counts = [f'{split} {meta["splits"][split]["tokens"]:,} ids' for split in ('train', 'val')]
    counts.append(f'vocabulary {meta["vocab_size"]:,}')
    print(f'{folder}: {summary}, for --stage={STAGES[source.kind]}; {", ".join(counts)}')
    if not val_fraction:
        print('val is a copy of train: its loss shows what was memorised, not what was understood')
    if source.kind not in ('problems', 'prompts') and (folder / 'problems.jsonl').exists():
        print(f'{folder / "problems.jsonl"} stays: it was edited, or no preparation wrote it')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals(), argv=[argument for argument in sys.argv[1:] if argument.startswith('-')])
    main([argument for argument in sys.argv[1:] if not argument.startswith('-')])
