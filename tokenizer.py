"""
Text to ids and back: a tokenizer of characters and a byte-level BPE with the same interface, and
the BPE's trainer.

    >>> tokenizer = train_bpe(['low lower lowest'], vocab_size=260, special=['<|bos|>'])
    >>> tokenizer.encode('low <|bos|>')  # 256 is 'lo', 257 'low', 258 ' low', 259 the special token
    [257, 32, 60, 124, 98, 111, 115, 124, 62]
    >>> tokenizer.bos
    259

A tokenizer is saved as tok.json: kind, pattern, merges (pairs of ids in the order they apply), the
id of each byte and of each special token, and a hash of all that. Data folders and checkpoints
contain it. Merges take the ids that bytes and special tokens leave free, in ascending order. So one
format holds our own tables (bytes first, special tokens last), GPT-2's (bytes permuted) and
MiniMind's (special tokens first). Tables that hf_tokenizer.py reads from other projects have more
keys: see ImportedTokenizer. Text never becomes a special token, even if it spells one: only a
program puts `tokenizer.special[...]` into a row.

$ python tokenizer.py --input=FILE.txt --vocab_size=1024 --out=tok.json    train one
$ python tokenizer.py --show="some text" --merges=True                     print tokens and merges
$ python tokenizer.py --evaluate=tok.json,out/run                          compare with GPT-2, GPT-4

Left out on purpose: training with more than 65,536 ids, and normalisation of the text in our own
tables.
"""

import hashlib
import heapq
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import regex
import tiktoken
from tqdm import tqdm

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import console
import disk
import segments
from utf8 import valid_text

VERSION = 1  # the version of tok.json's format
MAX_VOCAB = 65536  # of a table trained here: a pair of ids is one number in learn_merges
# The token that begins a document: ours, GPT-2's, or Llama 3's
BOS = ('<|bos|>', '<|endoftext|>', '<|begin_of_text|>')

# Matches the chunks of a text; no token spans two of them. GPT-4's pattern with two changes:
# combining marks are part of words, and a chunk has at most two digits, because a small vocabulary
# cannot afford a thousand ids for numbers. Possessive `++` keeps matching linear.
PATTERN = '|'.join(
    (
        r"'(?:[sStTmMdD]|[lL][lL]|[vV][eE]|[rR][eE])",  # 's, 't, 'll ...
        r'[^\r\n\p{L}\p{M}\p{N}]?+[\p{L}\p{M}]++',  # a word with the blank or sign before it
        r'\p{N}{1,2}',
        r' ?[^\s\p{L}\p{M}\p{N}]++[\r\n]*+',  # signs, with the line breaks after them
        r'\s*[\r\n]',  # blank lines
        r'\s+(?!\S)',  # blanks, except the last one, which belongs to the next word
        r'\s+',
    )
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|re|ve)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
# Llama 3's and Qwen's patterns, as their tokenizer.json files have them
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace('{1,3}', '')
# SmolLM2's file cuts out each digit, then uses GPT-2's pattern between. In one pattern: a digit
# ends a run of blanks, as the end of the text does
SMOLLM2_PATTERN = GPT2_PATTERN.replace(r' ?\p{N}++', r'\p{N}').replace(r'\S)', r'[^\s\p{N}])')
# Patterns whose chunks never cross a place where segments.py splits a text, and that leave out no
# character. Their character classes do not overlap, so a greedy quantifier matches what a
# possessive one does.
SPLITTABLE = {
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    *(PATTERN.replace('{1,2}', digits) for digits in ('', '{1,2}', '{1,3}')),
}
GPT2_FILES = ('vocab.bpe', 'encoder.json')
GPT2_FOLDER = Path(__file__).resolve().parent / 'data' / 'gpt2'
# sha256 of GPT-2's table in our format, so that a table can be recognised as GPT-2's
GPT2_DIGEST = '0a8d8fbaf67fbdeb3c02f1eddf704fed5511564a3b677f48844a5cbe8422fdf7'
GPT2_URL = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/'


def spell_bytes() -> list[str]:
    """How the files of other projects spell each byte as one character: itself if it can be
    printed, else the next one from U+0100 on. So a blank is 'Ġ'."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


SPELLING = spell_bytes()
BYTE_OF = {character: byte for byte, character in enumerate(SPELLING)}


def id_dtype(vocab_size: int) -> np.dtype:
    """The type of ids in token files: little-endian uint16 where that suffices, else uint32."""
    return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


class Tokenizer:
    """
    The interface of all tokenizers.

    Attributes:
        kind            'char', 'bpe' or 'gpt2'
        vocab_size      number of ids, special tokens included
        special         {spelling: id} of the special tokens
        bos             id that begins a document, or None
        chat            what hf_tokenizer.py found in a chat template: see conversation.py
        bytes_per_id    (vocab_size,) int64, 0 for special tokens
        halves          {id: (left, right)}, the two ids that a merge joined into it
        hash            sha256 of the table, or 'gpt2'
    """

    kind = ''
    halves = {}
    chat = {}

    def __init__(self, pieces: list[bytes], special: dict[str, int]):
        """pieces: the bytes of each id, b'' for a special token."""
        self.special = dict(special)
        self.vocab_size = len(pieces)
        self.bos = next((self.special[name] for name in BOS if name in self.special), None)
        self.bytes_per_id = np.array([len(piece) for piece in pieces], dtype=np.int64)
        self._pieces = dict(enumerate(pieces))  # a dict: in a list, id -1 would be the last one

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_batch(self, texts: Iterable[str], num_workers: int = 1) -> Iterator[np.ndarray]:
        """(n,) ids of each text, in order, of the type id_dtype(vocab_size). For large data: memory
        holds a few blocks of text."""
        dtype = id_dtype(self.vocab_size)
        return (np.array(self.encode(text), dtype=dtype) for text in texts)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids, without special tokens. ValueError for an unknown id."""
        try:
            return b''.join([self._pieces[i] for i in ids])
        except KeyError as error:
            wrong = error.args[0]
            raise ValueError(f'id {wrong}, expected 0 to {self.vocab_size - 1}') from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Bytes that are not UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode('utf-8', errors='replace')

    def table(self) -> dict:
        """The content that the hash covers."""
        raise NotImplementedError

    @cached_property
    def hash(self) -> str:
        canonical = json.dumps(self.table(), sort_keys=True, separators=(',', ':'))
        digest = hashlib.sha256(canonical.encode('ascii')).hexdigest()
        # GPT-2's table has a name: nanoGPT's data folders hold its ids, but no table to hash
        return 'gpt2' if digest == GPT2_DIGEST else digest

    def to_dict(self) -> dict:
        """The content of tok.json, for from_dict()."""
        return {**self.table(), 'hash': self.hash}

    def save(self, path: str | Path) -> None:
        """Write tok.json. If that fails, an old file is unchanged."""
        with disk.replacing(path) as file:
            file.write(json.dumps(self.to_dict()).encode('utf-8') + b'\n')


class CharTokenizer(Tokenizer):
    """One id for each character, in sorted order, as in nanoGPT. No special tokens."""

    kind = 'char'

    def __init__(self, characters: str):
        self.characters = ''.join(sorted(set(characters)))
        self._ids = {character: i for i, character in enumerate(self.characters)}
        pieces = [character.encode('utf-8', 'surrogatepass') for character in self.characters]
        super().__init__(pieces, special={})
        check_size(self.vocab_size)

    def encode(self, text: str) -> list[int]:
        """ValueError for a character that the tokenizer lacks."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f'unknown character {character!r} (U+{ord(character):04X}) at position '
                f'{text.index(character)}: the tokenizer holds {self.vocab_size}'
            ) from None

    def table(self) -> dict:
        return {'version': VERSION, 'kind': self.kind, 'characters': self.characters}


class BPETokenizer(Tokenizer):
    """
    Byte-level BPE (Sennrich et al., 2016; over bytes: GPT-2). `pattern` cuts a text into chunks.
    The bytes of a chunk become ids. Then, of the merges whose pair occurs, the earliest is applied,
    again and again, until none is left.

    merges: pairs of ids, in order. byte_ids: the id of each of the 256 bytes. For imported tables:
    ids of the merges, if these do not ascend, and words that no merge makes, {spelling: id}.
    ValueError if ids clash, or a merge joins ids that do not exist before it.
    """

    kind = 'bpe'
    # of imported tables
    splits = ()
    normalizer = ''
    prefix_space = False
    ignore_merges = False

    def __init__(
        self,
        pattern: str,
        merges: Sequence[tuple[int, int]],
        special: dict[str, int],
        byte_ids: Sequence[int] = range(256),
        ids: Sequence[int] = (),
        words: dict[str, int] | None = None,
    ):
        self.pattern = pattern
        self.splittable = pattern in SPLITTABLE
        self.byte_ids = list(byte_ids)
        self.merges = [(int(left), int(right)) for left, right in merges]
        self.words = dict(words or {})
        free = merge_ids(self.byte_ids, {**special, **self.words}, len(self.merges))
        if ids and sorted(ids) != free:
            raise ValueError(f'the ids of the {len(free)} merges are not those that are free')
        self.halves = dict(zip(ids or free, self.merges))
        pieces = join_pieces(self.halves, self.byte_ids, special, self.words)
        super().__init__(pieces, special)

    @cached_property
    def _engine(self) -> tiktoken.Encoding:
        """tiktoken's merge loop with our table. It merges the pair whose joined bytes have the
        lowest id, which gives the same ids."""
        ranks = {piece: i for i, piece in self._pieces.items() if piece}
        return tiktoken_engine(self.pattern, ranks)

    def encode_part(self, text: str) -> list[int]:
        """The ids of a part of a prepared text, short enough for tiktoken's regex."""
        return self._engine.encode_ordinary(text)

    def prepare(self, text: str) -> str:
        """The text that is encoded: without lone surrogates."""
        return valid_text(text)

    def encode(self, text: str) -> list[int]:
        parts = segments.split(self.prepare(text))
        return [i for part in parts for i in self.encode_part(part)]

    def encode_batch(self, texts: Iterable[str], num_workers: int = 1) -> Iterator[np.ndarray]:
        blocks = segments.in_blocks(map(self.prepare, texts), segments.BLOCK // 2)
        encoded = segments.in_processes(segments.BulkEncoder, self, blocks, num_workers)
        for ids, counts in encoded:
            ids = np.frombuffer(ids, dtype=id_dtype(self.vocab_size))
            yield from (ids[end - count : end] for count, end in zip(counts, accumulate(counts)))

    def table(self) -> dict:
        return {
            'version': VERSION,
            'kind': self.kind,
            'pattern': self.pattern,
            'merges': [list(pair) for pair in self.merges],
            'special': self.special,
            'bytes': self.byte_ids,
        }


def tiktoken_engine(pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    if pattern in SPLITTABLE:  # tiktoken's regex is twice as fast without possessive quantifiers
        pattern = re.sub(r'(?<=[+*?])\+', '', pattern)
    return tiktoken.Encoding('ours', pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def check_size(vocab_size: int) -> None:
    if vocab_size > MAX_VOCAB:
        raise SystemExit(
            f'a vocabulary of {vocab_size} ids: at most {MAX_VOCAB} can be trained here'
        )


def merge_ids(
    byte_ids: Sequence[int | None], special: dict[str, int], num_merges: int
) -> list[int]:
    """The ids of the merges: those that no byte and no special token has, ascending."""
    taken = [*(i for i in byte_ids if i is not None), *special.values()]
    size = len(taken) + num_merges
    is_valid = len(byte_ids) == 256 and len(set(taken)) == len(taken)
    if not is_valid or not all(0 <= i < size for i in taken):
        raise ValueError(
            f'the ids of 256 bytes and {len(special)} special tokens must differ '
            f'and be below {size}'
        )
    return sorted(set(range(size)) - set(taken))


def join_pieces(
    halves: dict[int, tuple[int, int]],
    byte_ids: Sequence[int | None],
    special: dict[str, int],
    words: dict[str, int],
) -> list[bytes]:
    """The bytes of each id, b'' for special tokens."""
    pieces = {i: bytes([byte]) for byte, i in enumerate(byte_ids) if i is not None}
    pieces.update({i: spelled_bytes(word) for word, i in words.items()})
    for new_id, (left, right) in halves.items():
        if left not in pieces or right not in pieces:
            raise ValueError(f'merge {new_id} joins {left} and {right}, expected two earlier ids')
        pieces[new_id] = pieces[left] + pieces[right]
    if len(set(pieces.values())) != len(pieces):
        raise ValueError('two merges give the same bytes')
    pieces.update({special_id: b'' for special_id in special.values()})
    return [pieces[i] for i in range(len(pieces))]


def spelled_bytes(spelling: str) -> bytes:
    """'Ġthe' -> b' the'. ValueError if a character spells no byte."""
    try:
        return bytes(BYTE_OF[character] for character in spelling)
    except KeyError as error:
        raise ValueError(f'{error} in {spelling!r:.40} spells no byte') from None


# -----------------------------------------------------------------------------
# Tables of other projects

IMPORTED = ('ids', 'words', 'splits', 'normalizer', 'prefix_space', 'ignore_merges', 'chat')


class ImportedTokenizer(BPETokenizer):
    """
    A byte-level BPE that hf_tokenizer.py has read. Keys of its table, each only where it is used:

        ids             of the merges, where they do not ascend
        words           pieces that no merge makes, {spelling: id}
        ignore_merges   a chunk that is a word is that word, as in Llama 3; else words are unused
        splits          patterns that cut the text, one after the other, before `pattern` does
        normalizer      'NFC', or ''
        prefix_space    a text begins with a blank, if it does not
        chat            see conversation.py

    A byte that the table lacks has the id None. It is left out of the text.
    """

    def __init__(
        self,
        pattern: str,
        merges: Sequence[tuple[int, int]],
        special: dict[str, int],
        byte_ids: Sequence[int | None],
        *,
        ids: Sequence[int] = (),
        words: dict[str, int] | None = None,
        splits: Sequence[str] = (),
        normalizer: str = '',
        prefix_space: bool = False,
        ignore_merges: bool = False,
        chat: dict | None = None,
    ):
        super().__init__(pattern, merges, special, byte_ids, ids, words)
        self.ids = list(ids)
        self.splits = list(splits)
        self.normalizer = normalizer
        self.prefix_space = prefix_space
        self.ignore_merges = ignore_merges
        self.chat = dict(chat or {})
        self.missing = bytes(byte for byte in range(256) if self.byte_ids[byte] is None)
        self.splittable = self.splittable and not (self.splits or self.missing)
        if normalizer not in ('', 'NFC'):
            raise ValueError(f'the normalizer is {normalizer!r:.40}, expected NFC')

    def table(self) -> dict:
        more = {name: getattr(self, name) for name in IMPORTED}
        return super().table() | {name: value for name, value in more.items() if value}

    def prepare(self, text: str) -> str:
        text = valid_text(text)
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)
        if self.prefix_space and text and text[0] != ' ':
            text = ' ' + text
        return text

    @cached_property
    def _by_rank(self) -> list[int]:
        """The ids in the order of merging."""
        bytes_and_merges = [*self.byte_ids, *self.halves]
        words = self.words.values() if self.ignore_merges else ()
        return [i for i in (*bytes_and_merges, *words) if i is not None]

    @cached_property
    def _engine(self) -> tiktoken.Encoding:
        """tiktoken with ranks in place of ids: it merges the pair of the lowest."""
        ranks = {self._pieces[i]: rank for rank, i in enumerate(self._by_rank)}
        return tiktoken_engine(self.pattern, ranks)

    def encode_part(self, text: str) -> list[int]:
        # 1) Cut it
        parts = [text]
        for pattern in self.splits:
            parts = [part for whole in parts for part in regex.findall(pattern, whole)]
        # 2) Encode the parts. A chunk with missing bytes is merged without them
        ranks = []
        for part in parts:
            data = part.encode('utf-8')
            if len(data.translate(None, self.missing)) == len(data):
                ranks += self._engine.encode_ordinary(part)
                continue
            for chunk in regex.findall(self.pattern, part):
                kept = chunk.encode('utf-8').translate(None, self.missing)
                ranks += self._engine._encode_single_piece(kept) if kept else ()
        return [self._by_rank[rank] for rank in ranks]


# -----------------------------------------------------------------------------
# Reading tok.json


def from_dict(table: dict, source: str | Path = 'tokenizer') -> Tokenizer:
    """The tokenizer that to_dict() described. SystemExit, which names the source, if its version or
    hash is wrong."""
    # 1) Kind and version
    if not isinstance(table, dict):
        raise SystemExit(f'{source}: not a tokenizer: expected an object with kind, version, hash')
    kind = table.get('kind')
    if kind == 'gpt2':
        return GPT2Tokenizer()
    if kind not in ('char', 'bpe'):
        raise SystemExit(f'{source}: tokenizer kind {kind!r}, expected char, bpe or gpt2')
    if table.get('version') != VERSION:
        raise SystemExit(
            f'{source}: version {table.get("version")!r} of the format, expected {VERSION}: '
            'prepare it again'
        )
    # 2) The table
    try:
        if kind == 'char':
            tokenizer = CharTokenizer(table['characters'])
        else:
            more = {name: table[name] for name in IMPORTED if name in table}
            make = ImportedTokenizer if more or None in table['bytes'] else BPETokenizer
            tokenizer = make(
                table['pattern'], table['merges'], table['special'], table['bytes'], **more
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f'{source}: a damaged tokenizer ({error}): prepare it again') from None
    # 3) Its hash
    if table.get('hash') != tokenizer.hash:
        raise SystemExit(
            f'{source}: hash mismatch: {table.get("hash")!r:.80} in the file, '
            f"'{tokenizer.hash}' of its content: prepare it again"
        )
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """Read a tok.json. SystemExit if it cannot be read or is damaged."""
    path = Path(path)
    try:
        table = json.loads(path.read_bytes())  # bytes, because a byte order mark may come first
    except OSError as error:
        hint = 'expected a tok.json, a .pt file, or a folder that has one'
        for folder in path.parents:
            if (folder / 'prepare.py').exists():
                hint = f'run: python {folder / "prepare.py"}'
                break
        raise SystemExit(f'{path}: cannot read the tokenizer ({error.strerror}): {hint}') from None
    except ValueError:  # not JSON, or not UTF-8
        raise SystemExit(f'{path}: not a tok.json: prepare it again') from None
    return from_dict(table, path)


# -----------------------------------------------------------------------------
# Training


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special: Sequence[str] = (),
    pattern: str = PATTERN,
    special_first: bool = False,
    num_workers: int = 1,
    progress: bool = False,
) -> BPETokenizer:
    """
    Learn merges from the texts, until the vocabulary has vocab_size ids: 256 bytes, the merges and
    the special tokens. If the texts have too few pairs for that, the vocabulary is smaller.

    The most frequent pair of neighbours is merged first; among equally frequent ones the smallest
    pair of ids, so that the result is unique. Special tokens get the last ids, or the first ones
    (special_first). Memory holds a few blocks of text and the distinct chunks.

    SystemExit for a size, special tokens or a pattern that cannot work.
    """
    # 1) Check
    num_merges = vocab_size - 256 - len(special)
    if num_merges < 0:
        raise SystemExit(
            f'vocab_size={vocab_size}: at least {256 + len(special)}, for 256 bytes and the '
            'special tokens'
        )
    if len(set(special)) < len(special):
        raise SystemExit(f'special tokens {", ".join(special)}: expected names that differ')
    check_size(vocab_size)
    check_pattern(pattern)
    # 2) Learn, with bytes as ids 0 to 255
    merges = learn_merges(count_chunks(texts, pattern, num_workers), num_merges, progress)
    # 3) Assign the final ids
    first = len(special) if special_first else 0  # id of byte 0
    merges = [(first + left, first + right) for left, right in merges]
    first_special = 0 if special_first else 256 + len(merges)
    names = {name: first_special + i for i, name in enumerate(special)}
    return BPETokenizer(pattern, merges, names, range(first, first + 256))


def check_pattern(pattern: str) -> None:
    """SystemExit unless the pattern compiles here and in tiktoken, which has another regex
    engine."""
    try:
        compiled = regex.compile(pattern)
        if compiled.groups:
            raise SystemExit(f'pattern {pattern!r} has groups that capture: write (?:...)')
        if compiled.match(''):
            raise SystemExit(f'pattern {pattern!r} matches an empty chunk: write + instead of *')
        BPETokenizer(pattern, [], {}).encode('text')
    except (regex.error, ValueError) as error:
        raise SystemExit(f'pattern {pattern!r} does not compile: {error}') from None


def count_chunks(texts: Iterable[str], pattern: str, num_workers: int) -> dict[str, int]:
    """
    How often each distinct chunk occurs. All later work is done once per distinct chunk, which is
    fast because a few words make up most of a text.
    """
    # 1) Blocks of text, counted by several processes
    parts = map(valid_text, texts)
    if pattern in SPLITTABLE:
        parts = chain.from_iterable(
            segments.split(text, segments.BLOCK, anywhere=False) for text in parts
        )
    blocks = segments.in_blocks(parts, segments.BLOCK)
    counts = {}
    seen = 0
    for found, length in segments.in_processes(chunk_counter, pattern, blocks, num_workers):
        seen += length
        for chunk, times in found.items():
            counts[chunk] = counts.get(chunk, 0) + times
    # 2) A pattern must match every character
    kept = sum(len(chunk) * times for chunk, times in counts.items())
    if kept != seen:
        raise SystemExit(
            f'pattern {pattern!r} leaves out {seen - kept:,} of {seen:,} characters: '
            'add the alternative |(?s:.) at its end'
        )
    return counts


def chunk_counter(pattern: str) -> Callable[[list[str]], tuple[dict[str, int], int]]:
    """The function that counts the chunks of one block."""
    split = regex.compile(pattern).findall

    def count_block(block: list[str]) -> tuple[dict[str, int], int]:
        """(how often each chunk occurs, number of characters). The slow regex runs once for each
        distinct segment, if the pattern is in SPLITTABLE."""
        length = sum(map(len, block))
        times = [1] * len(block)
        if pattern in SPLITTABLE:
            distinct, numbers = segments.split_block(block)
            block = [segment.decode('utf-8', 'ignore') for segment in distinct]  # END becomes ''
            times = np.bincount(numbers).tolist()
        counts = {}
        for segment, n in zip(block, times):
            for chunk in split(segment):
                counts[chunk] = counts.get(chunk, 0) + n
        return counts, length

    return count_block


def learn_merges(
    counts: dict[str, int], num_merges: int, progress: bool = False
) -> list[tuple[int, int]]:
    """
    Merges, from the number of occurrences of each distinct chunk.

    All chunks are in one array, one cell per byte, with -1 between chunks. The id of a token is in
    its first and in its last cell. So the neighbours of the token at `place` are found at place - 1
    and place + length, and a merge writes three cells per place.

    All places of a pair arise at one merge, the one that made its newer id; later merges only
    remove places. So the pair's count at that moment stays an upper bound, and counts need no
    updates: a pair is counted again when it reaches the head of the queue, and goes back into the
    queue if it has become rarer.

    The pairs that arise at one merge are a family, sorted by count; only its first member is in the
    queue.
    """
    # 1) The array, and the pairs of bytes
    symbols, weights = lay_out(counts)
    del counts  # the largest thing in memory
    lengths = np.ones(256 + num_merges, dtype=np.int64)  # bytes of each id
    heap = []
    push_first(heap, family(*all_pairs(symbols), weights))

    # 2) Merge the most frequent pair, until there are enough merges or no pair is left
    merges = []
    with tqdm(total=num_merges, desc='merging', disable=not progress) as bar:
        while heap and len(merges) < num_merges:
            # the heap's smallest entry: highest bound first, then smallest pair
            bound, pair, places, siblings = heapq.heappop(heap)
            push_first(heap, siblings)
            left = pair >> 16
            right = pair & 0xFFFF
            is_left = symbols[places] == left
            places = places[is_left & (symbols[places + lengths[left]] == right)]
            count = int(np.add.reduce(weights[places]))
            if count < -bound:  # rarer than its bound
                if count:
                    heapq.heappush(heap, (-count, pair, places, iter(())))
                continue
            merges.append((left, right))
            if left == right:
                places = without_overlap(places, lengths[left])
            new_pairs = apply_merge(symbols, lengths, places, left, right, 255 + len(merges))
            push_first(heap, family(*new_pairs, weights))
            bar.update()
    return merges


def lay_out(counts: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(symbols, weights): the bytes of all chunks with -1 before, between and after them, and for
    each cell the count of its chunk."""
    joined = b'\0'.join([b'', *(chunk.encode('utf-8') for chunk in counts), b''])
    cells = np.array([len(chunk.encode('utf-8')) + 1 for chunk in counts], dtype=np.int64)
    symbols = np.frombuffer(joined, dtype=np.uint8).astype(np.int64)
    symbols[0] = symbols[np.cumsum(cells)] = -1
    weights = np.repeat(np.array(list(counts.values()), dtype=np.int64), cells)
    return symbols, np.append(0, weights)


def all_pairs(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, places) of the bytes. A pair is left << 16 | right."""
    places = ((symbols[:-1] >= 0) & (symbols[1:] >= 0)).nonzero()[0]
    return symbols[places] << 16 | symbols[places + 1], places


def push_first(heap: list, members: Iterator[tuple]) -> None:
    """Queue the next member of a family, together with the rest of the family."""
    for member in members:
        heapq.heappush(heap, (*member, members))
        return


def family(
    pairs: np.ndarray, places: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(-count, pair, its places ascending) of each distinct pair, in the order of merging."""
    if not len(pairs):
        return
    # group equal pairs
    order = pairs.argsort(kind='stable')
    pairs = pairs[order]
    places = places[order]
    changes = (pairs[1:] != pairs[:-1]).nonzero()[0] + 1
    edges = np.concatenate(([0], changes, [len(pairs)]))
    # most frequent first; the stable sort puts the smallest pair first among equals
    pairs = pairs[edges[:-1]]
    counts = np.add.reduceat(weights[places], edges[:-1])
    for i in (-counts).argsort(kind='stable'):
        yield -int(counts[i]), int(pairs[i]), places[edges[i] : edges[i + 1]]


def without_overlap(places: np.ndarray, length: int) -> np.ndarray:
    """Places of a pair of equal ids, such as aa in aaaa: every other place of a run, from the
    left."""
    index = np.arange(len(places))
    continues = np.diff(places, prepend=-length) == length
    run = np.maximum.accumulate(np.where(continues, 0, index))  # where the run of each place starts
    return places[(index - run) % 2 == 0]


def apply_merge(
    symbols, lengths, places, left: int, right: int, new_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write new_id over the pair at these places. Returns (pairs, places) of the new pairs with the
    neighbours."""
    # 1) Write: first and last cell hold the id, no token begins in the middle
    middle = lengths[left]
    length = lengths[left] + lengths[right]
    lengths[new_id] = length
    symbols[places + middle] = -1
    symbols[places] = symbols[places + (length - 1)] = new_id
    # 2) Pairs with the neighbours; (new, new) counts once, from its left side
    before = symbols[places - 1]
    after = symbols[places + length]
    pairs = np.concatenate((before << 16 | new_id, new_id << 16 | after))
    places = np.concatenate((places - lengths[before], places))
    is_pair = np.concatenate(((before >= 0) & (before != new_id), after >= 0))
    return pairs[is_pair], places[is_pair]


# -----------------------------------------------------------------------------
# GPT-2's table, and tiktoken's


class GPT2Tokenizer(Tokenizer):
    """
    GPT-2's tokenizer by name. The table is read or downloaded when text is first encoded or
    decoded. Training on a nanoGPT data folder does neither, so it needs no table.
    """

    kind = 'gpt2'
    vocab_size = 50257
    bos = 50256
    hash = 'gpt2'

    def __init__(self):
        self.special = {'<|endoftext|>': 50256}

    @cached_property
    def _loaded(self) -> BPETokenizer:
        loaded = gpt2()
        if loaded.hash != self.hash:
            files = ' and '.join(GPT2_FILES)
            raise SystemExit(f"{GPT2_FOLDER}: {files} are not GPT-2's: replace them by {GPT2_URL}")
        return loaded

    @property
    def bytes_per_id(self) -> np.ndarray:
        return self._loaded.bytes_per_id

    def encode(self, text: str) -> list[int]:
        return self._loaded.encode(text)

    def encode_batch(self, texts: Iterable[str], num_workers: int = 1) -> Iterator[np.ndarray]:
        return self._loaded.encode_batch(texts, num_workers)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._loaded.decode_bytes(ids)

    def to_dict(self) -> dict:
        return {'kind': self.kind}


def gpt2(folder: str | Path | None = None) -> BPETokenizer:
    """GPT-2's table, from its files in `folder` or in data/gpt2, else downloaded by tiktoken."""
    for place in (Path(folder or GPT2_FOLDER), GPT2_FOLDER):
        if all((place / name).exists() for name in GPT2_FILES):
            return read_gpt2(place)
    return from_tiktoken('gpt2', folder)


def read_gpt2(folder: Path) -> BPETokenizer:
    """
    Read GPT-2's two files: vocab.bpe has a comment line and then one merge per line, encoder.json
    the id of each piece. SystemExit if they are damaged or do not belong together.
    """
    # 1) Both files
    try:
        ids = json.loads((folder / 'encoder.json').read_bytes())
        text = (folder / 'vocab.bpe').read_text(encoding='utf-8')
        lines = text.strip('\n').split('\n')[1:]
        pairs = [(left, right) for left, right in (line.split(' ') for line in lines)]
        special = {name: ids[name] for name in BOS if name in ids}
        merges = [(ids[left], ids[right]) for left, right in pairs]
        byte_ids = [ids[character] for character in SPELLING]
        table = BPETokenizer(GPT2_PATTERN, merges, special, byte_ids)
    except (KeyError, ValueError) as error:
        raise SystemExit(
            f'{folder}: vocab.bpe or encoder.json is damaged ({error}): fetch both again'
        ) from None
    # 2) Each merge has the id that encoder.json says
    wrong = [i for i, (left, right) in zip(table.halves, pairs) if ids.get(left + right) != i]
    if wrong or len(ids) != table.vocab_size:
        raise SystemExit(
            f'{folder}: vocab.bpe and encoder.json do not belong together: fetch both again'
        )
    return table


def from_tiktoken(name: str, folder: str | Path | None = None) -> BPETokenizer:
    """
    The table of one of tiktoken's encodings, which tiktoken downloads once. folder: where a user
    could put GPT-2's files instead. SystemExit for an encoding that is unknown or too large.
    """
    # 1) Check the name before the download
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise SystemExit(f'tiktoken has no encoding {name!r}, only {", ".join(known)}')
    if name.startswith(('cl100k', 'o200k')):
        raise SystemExit(f'{name}: more than {MAX_VOCAB} ids: take gpt2, or train one (bpe)')
    # 2) Download
    hint = 'try again'
    if name == 'gpt2':
        files = ' and '.join(GPT2_FILES)
        hint = f'put {files} from {GPT2_URL} into {Path(folder or GPT2_FOLDER)}'
    encoding = fetch(name, hint)
    # 3) Convert
    ranks = encoding._mergeable_ranks
    special = dict(encoding._special_tokens)
    pattern = encoding._pat_str
    if name in ('gpt2', 'r50k_base'):
        pattern = GPT2_PATTERN  # tiktoken spells the same pattern differently
    byte_ids = [ranks[bytes([byte])] for byte in range(256)]
    try:
        return BPETokenizer(pattern, list(recover_merges(ranks)), special, byte_ids)
    except ValueError as error:
        raise SystemExit(f'{name}: its table does not fit tok.json ({error})') from None


def fetch(name: str, hint: str = 'try again') -> tiktoken.Encoding:
    """One of tiktoken's encodings, which it downloads once. SystemExit with the hint if it
    cannot."""
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # by requests; by tiktoken for a wrong hash
        reason = type(error).__name__
        raise SystemExit(f'{name}: tiktoken could not get it ({reason}): {hint}') from None


def recover_merges(ranks: dict[bytes, int]) -> Iterator[tuple[int, int]]:
    """
    The merges of a table that holds only the joined bytes, such as tiktoken's. All earlier merges,
    applied to the bytes of a piece, leave its two halves. ValueError if they leave more parts.
    """
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = parts_before(piece, rank, ranks)
        if len(parts) > 2:
            raise ValueError(f'{piece!r} is not a merge of two pieces')
        if len(parts) == 2:
            yield ranks[parts[0]], ranks[parts[1]]


def parts_before(piece: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """What the merges of a lower rank make of a piece: usually its two halves."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        found = [ranks.get(left + right, rank) for left, right in zip(parts, parts[1:])]
        best = min(found)
        if best >= rank:
            break
        i = found.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


# -----------------------------------------------------------------------------
# Looking at a tokenizer

# Short texts of several kinds, for --evaluate
SAMPLES = {
    'English': 'The lighthouse keeper climbed the stairs every evening, counted the ships on the '
    "horizon, and wrote\ntheir names into a book that nobody else would read. It wasn't a lonely "
    'life, he said; it was a quiet one.',
    'code': 'def moving_average(values, width=3):\n    total = 0.0\n'
    '    for i, value in enumerate(values):\n'
    '        total += value - (values[i - width] if i >= width else 0)\n'
    '        yield total / min(i + 1, width)\n',
    'maths': "Let f(x) = 3x^2 - 4x + 12. Then f'(x) = 6x - 4 = 0 gives x = 2/3, where "
    'f(2/3) = 32/3 ≈ 10.6667.\n'
    '\\int_0^1 \\frac{dx}{1+x^2} = \\frac{\\pi}{4}, and 1024 * 768 = 786432.',
    'German': 'Am Morgen lag dünner Nebel über den Feldern, und die Straße zum Bahnhof war noch '
    'menschenleer.',
    'Russian': 'Утром над полями лежал лёгкий туман, и дорога к вокзалу была ещё совсем пустой.',
    'Chinese': '清晨，田野上笼罩着一层薄雾，通往车站的路上还没有行人。'
    '他打开书，读了几页，又合上了。',
    'Japanese': '朝、畑には薄い霧がかかり、駅へ向かう道にはまだ誰もいなかった。',
    'Arabic': 'في الصباح كان ضباب خفيف يغطي الحقول، وكان الطريق إلى المحطة لا يزال خاليا.',
    'Hindi': 'सुबह खेतों पर हल्का कोहरा था और स्टेशन जाने वाली सड़क अभी भी खाली थी।',
}


def show_tokens(tokenizer: Tokenizer, text: str, derive: bool = False, colour: bool = True) -> str:
    """
    The text with its tokens in alternating colours, or between bars, and their ids in the next
    line. derive: below that, the merges that made each token.
    """
    # 1) The tokens. A line break is shown as \n, and also breaks the line
    ids = tokenizer.encode(text)
    spelled = {i: tokenizer.decode_bytes([i]).decode('utf-8', 'backslashreplace') for i in ids}
    painted = ''
    for n, i in enumerate(ids):
        token = console.visible(spelled[i])
        painted += f'\x1b[30;{(46, 103)[n % 2]}m{token}\x1b[0m' if colour else f'{token}|'
        if '\n' in spelled[i]:
            painted += '\n'
    lines = [painted, ' '.join(map(str, ids))]
    # 2) Their merges
    if derive:
        for i in dict.fromkeys(ids):  # each once
            lines.append(f'{i:>6} {spelled[i]!r}')
            lines += derivation(tokenizer, i)
    return '\n'.join(lines)


def derivation(tokenizer: Tokenizer, i: int) -> list[str]:
    """A line for the merge that made id i, then the lines of its halves, indented by two."""
    lines = []
    todo = [(i, '       ')]
    while todo:
        i, indent = todo.pop()
        if i in tokenizer.halves:
            left, right = tokenizer.halves[i]
            pieces = [f'{half} {tokenizer.decode_bytes([half])!r}' for half in (left, right)]
            lines.append(f'{indent}{i} = {pieces[0]} + {pieces[1]}')
            todo += [(right, indent + '  '), (left, indent + '  ')]
    return lines


def compare(encoders: dict[str, Callable[[str], list[int]]], texts: dict[str, str]) -> str:
    """A table of bytes per token. Higher is better: more text fits into a model's context."""
    lines = ['| bytes per token | ' + ' | '.join(encoders) + ' |', '|:--|' + '--:|' * len(encoders)]
    for kind, text in texts.items():
        size = len(text.encode('utf-8'))
        rates = [f'{size / len(encode(text)):.2f}' for encode in encoders.values()]
        lines.append(f'| {kind} | ' + ' | '.join(rates) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    from glob import glob

    from configurator import configure
    from data.documents import SUFFIXES, pieces

    # To train one
    input = ''  # files to learn from, with commas, * allowed: .txt, .jsonl and .parquet with "text"
    vocab_size = 1024  # ids in all: 256 bytes, the merges and the special tokens; at most 65,536
    special = '<|bos|>'  # special tokens, separated by commas
    special_first = False  # give them the first ids instead of the last
    pattern = PATTERN  # a regular expression that matches each chunk; no token spans two chunks
    max_chars = 0  # learn from this many characters only; 0 is all
    num_workers = 0  # processes that count; 0 is one per core
    out = 'tok.json'  # where to write the tokenizer

    # To look at one
    show = ''  # a text whose tokens to print. The tokenizer is `out`, which may be a run: out/run
    merges = False  # print the merges that made each token, too
    evaluate = ''  # tokenizers (tok.json, out/run), with commas, to compare with GPT-2 and GPT-4
    console.set_up(must_finish=True, missing='backslashreplace')
    configure(globals())
    console.set_up(must_finish=not (show or evaluate))

    def split_names(text: str) -> list[str]:
        return [name.strip() for name in text.split(',') if name.strip()]

    def open_tokenizer(path: str) -> Tokenizer:
        if not path.endswith('.pt') and not Path(path).is_dir():
            return load(path)
        from checkpoint import load_tokenizer  # and torch, which takes seconds

        return load_tokenizer(path)

    def input_files() -> list[str]:
        files = set()
        for name in split_names(input):
            files.update(glob(name, recursive=True) or [name])
        for file in sorted(files) or [input]:
            if not Path(file).is_file() or Path(file).suffix.lower() not in SUFFIXES:
                kinds = ', '.join(SUFFIXES)
                raise SystemExit(f'--input={file}: no such file, expected text in one of {kinds}')
        return sorted(files)

    def read(files: list[str]) -> Iterator[str]:
        """The files' texts, up to max_chars. The bar counts bytes of files, or characters."""
        ends = list(accumulate(Path(file).stat().st_size for file in files))
        limit = max_chars or 2**62
        left = limit
        total = min(ends[-1], limit)
        with tqdm(total=total, unit='B', unit_scale=True, desc='counting') as bar:
            for file, end in zip(files, ends):
                for text in pieces(file):
                    if left <= 0:
                        break
                    text = text[:left]
                    left -= len(text)
                    size = len(text) if max_chars else len(text.encode('utf-8'))
                    bar.update(min(size, max(0, min(end, total) - bar.n)))
                    yield text
        if left == limit:
            raise SystemExit(f'--input={input}: no character in it, expected text to learn from')

    def train() -> None:
        # 1) Check
        files = input_files()
        if max_chars < 0 or num_workers < 0:
            raise SystemExit(
                f'max_chars={max_chars} and num_workers={num_workers}, expected at least 0'
            )
        if out.endswith('.pt'):  # a checkpoint, which only --show reads
            raise SystemExit(f'--out={out}: cannot be written, expected a name that ends in .json')
        disk.try_writing(out)
        # 2) Train
        workers = num_workers or os.cpu_count()
        names = split_names(special)
        trained = train_bpe(
            read(files), vocab_size, names, pattern, special_first, workers, progress=True
        )
        trained.save(out)
        # 3) Report
        if trained.vocab_size < vocab_size:
            print(f'no pairs are left to merge: {trained.vocab_size:,} ids, not {vocab_size:,}')
        print(f'{out}: {trained.vocab_size:,} ids, {len(trained.merges):,} of them merges')

    def comparison() -> str:
        encoders = {name: open_tokenizer(name).encode for name in split_names(evaluate)}
        try:
            encoders['GPT-2'] = gpt2().encode
        except SystemExit as error:
            print(f'GPT-2 is left out: {error}')
        try:
            encoders['GPT-4'] = fetch('cl100k_base').encode_ordinary
        except SystemExit as error:
            print(f'GPT-4 is left out: {error}')
        return compare(encoders, SAMPLES)

    if show or evaluate:
        try:
            if show:
                colour = console.wants_colour(sys.stdout)
                text = show_tokens(open_tokenizer(out), show, merges, colour)
            else:
                text = comparison()
        except ValueError as error:  # a character that a tokenizer of characters lacks
            raise SystemExit(f'{out if show else evaluate}: {error}') from None
        print(text)
    else:
        train()
