"""
Write the ids of text, conversations and problems into a data folder.

    with Writer('data/mine', tokenizer, notes={'kind': 'text'}) as out:
        write_text(out, [('train', 'A document.'), ('val', 'Another one.')])

    with Writer('data/chats', tokenizer, notes={'kind': 'conversations'}) as out:
        messages = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
        write_conversations(out, [('train', Example('row 1', [messages])), ...])

Each function takes pairs (split, item), split being 'train' or 'val'. They may come from a
generator: memory holds a few million ids. data/custom/prepare.py is a program that uses all three.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import tee

import numpy as np

import segments
import tasks
from conversation import Chat
from data.documents import Example
from shards import Writer

WRITTEN = 2**20  # ids of a split that are collected before they are written


class Collector:
    """
    Collects ids and passes them to the Writer in large pieces: opening a file for each document
    takes longer than encoding it.
    """

    def __init__(self, out: Writer):
        self.out = out
        self.parts = {}  # split: arrays of ids
        self.num_ids = {}
        self.num_bytes = {}

    def add(self, split: str, ids: np.ndarray, num_bytes: int) -> None:
        """num_bytes: the UTF-8 bytes of the text that the ids stand for."""
        self.parts.setdefault(split, []).append(ids)
        self.num_ids[split] = self.num_ids.get(split, 0) + len(ids)
        self.num_bytes[split] = self.num_bytes.get(split, 0) + num_bytes
        if self.num_ids[split] >= WRITTEN:
            self.flush()

    def flush(self) -> None:
        for split, parts in self.parts.items():
            self.out.write(split, np.concatenate(parts), self.num_bytes[split])
        self.parts = {}
        self.num_ids = {}
        self.num_bytes = {}


def write_text(
    out: Writer, documents: Iterable[tuple[str, str]], num_workers: int = 1
) -> dict[str, int]:
    """
    Write (split, text) documents, encoded by num_workers processes. Each document begins with the
    tokenizer's bos, if it has one. Returns the number of documents of each split.

    ValueError on a character that a tokenizer of characters lacks.
    """
    tokenizer = out.tokenizer
    # 1) Cut long documents into parts, and encode these
    parts, copies = tee(cut_documents(documents))
    encoded = tokenizer.encode_batch((text for _, _, text in copies), num_workers)
    # 2) Write
    collector = Collector(out)
    counts = {'train': 0, 'val': 0}
    for (split, begins, text), ids in zip(parts, encoded):
        counts[split] = counts.get(split, 0) + begins
        if begins and tokenizer.bos is not None:
            ids = np.append(ids.dtype.type(tokenizer.bos), ids)
        collector.add(split, ids, len(text.encode('utf-8')))
    collector.flush()
    return counts


def cut_documents(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, bool, str]]:
    """(split, whether a document begins here, text) of each part of each document."""
    for split, text in documents:
        for i, part in enumerate(segments.split(text)):
            yield split, i == 0, part


def write_conversations(out: Writer, examples: Iterable[tuple[str, Example]]) -> None:
    """
    Write the conversations of each (split, example): one, or for a preference the chosen and then
    the rejected one. SystemExit if the tokenizer has no special tokens for them.
    """
    chat = Chat(out.tokenizer)
    collector = Collector(out)
    for split, example in examples:
        for messages in example.conversations:
            try:
                ids = np.array(chat.render(messages), dtype=out.dtype)
            except ValueError as error:  # tool calls, for which ChatML has no tokens
                raise SystemExit(f'{example.where}: {error}') from None
            collector.add(split, ids, int(out.tokenizer.bytes_per_id[ids].sum()))
    collector.flush()


def write_problems(out: Writer, examples: Iterable[tuple[str, Example]], skill: str) -> None:
    """
    Write each (split, example) twice: as a conversation with the answer, for sft, and as a line of
    problems.jsonl, for rl and evaluation. A prompt has no answer in either. skill: the name of all
    of them in tables of results.
    """
    lines = []

    def noted() -> Iterator[tuple[str, Example]]:
        """The examples, which may be a generator; a line is kept of each as it passes."""
        for split, example in examples:
            lines.append(json_line(problem_of(example, split, skill)))
            yield split, example

    write_conversations(out, noted())
    out.add('problems.jsonl', b''.join(lines))


def problem_of(example: Example, split: str, skill: str) -> dict:
    """A line of problems.jsonl; tasks.py describes its keys."""
    answer = example.answer
    if not answer:
        return dict(split=split, skill=skill, messages=example.conversations[0])
    grader = 'contains'
    if re.fullmatch(tasks.NUMBER, answer):  # also 1,000 and $5
        answer = format(tasks.find_number(answer), 'f')
        grader = 'number'
    question = example.conversations[0][:-1]
    return dict(split=split, skill=skill, messages=question, grader=grader, answer=answer)


def json_line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode('utf-8') + b'\n'
