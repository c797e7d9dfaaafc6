"""
Text to ids and back: a tokenizer of characters and a byte-level BPE behind one small interface, and the BPE's trainer.

    >>> tokenizer = train_bpe(['low lower lowest'], vocab_size=260, special=['<|bos|>'])
    >>> tokenizer.encode('low <|bos|>')  # 256 is 'lo', 257 'low', 258 ' low', and 259 the special token
    [257, 32, 60, 124, 98, 111, 115, 124, 62]
    >>> tokenizer.bos
    259

A tokenizer is its tok.json: kind, pattern, merges (pairs of ids in the order they apply), the id of each byte and of
each special token, and a hash of all that, which data folders and checkpoints carry along. Merges own the ids that
neither a byte nor a special token has, ascending, so our own tables (bytes first, special tokens last), GPT-2's (bytes
permuted) and MiniMind's (special tokens first) are one format. Text never becomes a special token, whatever it spells:
only a program puts `tokenizer.special[...]` into a row.

$ python tokenizer.py --input=FILE.txt --vocab_size=1024 --out=tok.json    trains one
$ python tokenizer.py --show="some text" --merges=True                     prints its tokens, and how they were made
$ python tokenizer.py --evaluate=tok.json,out/run                          bytes per token beside GPT-2's and GPT-4's

Left out on purpose: vocabularies above 65,536 ids (token files are uint16) and normalisation of the text.
"""

import hashlib
import heapq
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import regex
import tiktoken
from tqdm import tqdm

import disk
import segments
from utf8 import valid_text

VERSION = 1  # of tok.json
MAX_VOCAB = 65536  # ids are stored as uint16
BOS = ('<|bos|>', '<|endoftext|>')  # what begins a document: our token, or GPT-2's

# Where a merge may not cross: GPT-4's idea of a chunk, with combining marks as part of words and at most two digits
# together, since a small vocabulary cannot afford a thousand ids for numbers. Possessive `++` keeps it linear.
PATTERN = '|'.join(
    (
        r"'(?:[sStTmMdD]|[lL][lL]|[vV][eE]|[rR][eE])",  # 's, 't, 'll ...
        r'[^\r\n\p{L}\p{M}\p{N}]?+[\p{L}\p{M}]++',  # a word with the space or sign before it
        r'\p{N}{1,2}',
        r' ?[^\s\p{L}\p{M}\p{N}]++[\r\n]*+',  # signs, with the line breaks after them
        r'\s*[\r\n]',  # blank lines
        r'\s+(?!\S)',  # spaces, but the last one belongs to the word after it
        r'\s+',
    )
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|re|ve)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
# Patterns of which no chunk continues at a place where segments.py splits a text. Their classes do
# not overlap either, so a greedy quantifier matches what a possessive one does.
SPLITTABLE = {GPT2_PATTERN, *(PATTERN.replace('{1,2}', digits) for digits in ('', '{1,2}', '{1,3}'))}
GPT2_FILES = ('vocab.bpe', 'encoder.json')
GPT2_FOLDER = Path(__file__).resolve().parent / 'data' / 'gpt2'
# sha256 of GPT-2's table in our form: whether a table is GPT-2's can be said without having it
GPT2_DIGEST = '0a8d8fbaf67fbdeb3c02f1eddf704fed5511564a3b677f48844a5cbe8422fdf7'
GPT2_URL = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/'




class Tokenizer:
    """
    What both kinds share. pieces: the bytes that each id stands for, in the order of ids, b'' for a special token.

    Attributes: kind; vocab_size, special tokens counted; special {spelling: id}; bos, the id that begins a document, or
    None; bytes_per_id (vocab_size,) int64, 0 for special tokens; halves {id: the two that a merge joined to it}; hash,
    the sha256 of the table.
    """

    kind, halves = '', {}

    def __init__(self, pieces: list[bytes], special: dict[str, int]):
        self.special = dict(special)
        self.vocab_size = len(pieces)
        self.bos = next((self.special[name] for name in BOS if name in self.special), None)
        self.bytes_per_id = np.array([len(piece) for piece in pieces], dtype=np.int64)
        self._pieces = dict(enumerate(pieces))  # a dict, so that id -1 is an error and not the last one

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_batch(self, texts: Iterable[str], num_workers: int = 1) -> Iterator[np.ndarray]:
        """(n,) uint16, the ids of each text in order. Made for much text; memory holds a few blocks of it."""
        return (np.array(self.encode(text), dtype=np.uint16) for text in texts)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids, special tokens left out. ValueError on an id beyond the vocabulary."""
        try:
            return b''.join([self._pieces[i] for i in ids])
        except KeyError as error:
            raise ValueError(f'id {error.args[0]} is not among the {self.vocab_size} of this tokenizer') from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode('utf-8', errors='replace')

    def table(self) -> dict:
        raise NotImplementedError

    @cached_property
    def hash(self) -> str:
        canonical = json.dumps(self.table(), sort_keys=True, separators=(',', ':'))
        digest = hashlib.sha256(canonical.encode('ascii')).hexdigest()
        return 'gpt2' if digest == GPT2_DIGEST else digest  # nanoGPT's data folders hold GPT-2's ids and no table

    def to_dict(self) -> dict:
        """What tok.json holds; from_dict() reads it."""
        return {**self.table(), 'hash': self.hash}

    def save(self, path: str | Path) -> None:
        """Write tok.json: whole or not at all."""
        with disk.replacing(path) as file:
            file.write(json.dumps(self.to_dict()).encode('utf-8') + b'\n')


class CharTokenizer(Tokenizer):
    """One id for each character that occurs, in sorted order: nanoGPT's character data. No special tokens."""

    kind = 'char'

    def __init__(self, characters: str):
        self.characters = ''.join(sorted(set(characters)))
        self._ids = {character: i for i, character in enumerate(self.characters)}
        super().__init__([character.encode('utf-8', 'surrogatepass') for character in self.characters], special={})
        check_size(self.vocab_size)

    def encode(self, text: str) -> list[int]:
        """ValueError on a character that the training text did not have."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
        name, position = f'{character!r} (U+{ord(character):04X})', text.index(character)
        raise ValueError(f'unknown character {name} at position {position}: the tokenizer holds {self.vocab_size}')

    def table(self) -> dict:
        return {'version': VERSION, 'kind': self.kind, 'characters': self.characters}


class BPETokenizer(Tokenizer):
    """
    Byte-level BPE: the text is cut into chunks by `pattern`, a chunk's bytes become ids, and the earliest merge that
    applies is applied until none does (Sennrich et al., 2016; over bytes: GPT-2).
    """

    kind = 'bpe'

    def __init__(
        self,
        pattern: str,
        merges: Sequence[tuple[int, int]],
        special: dict[str, int],
        byte_ids: Sequence[int] = range(256),
    ):
        self.pattern = pattern
        self.splittable = pattern in SPLITTABLE
        self.byte_ids = list(byte_ids)
        self.merges = [(int(left), int(right)) for left, right in merges]
        self.halves = dict(zip(merge_ids(self.byte_ids, special, len(self.merges)), self.merges))
        super().__init__(join_pieces(self.halves, self.byte_ids, special), special)

    @cached_property
    def _engine(self) -> tiktoken.Encoding:
        """tiktoken's merge loop over our table. It merges by the rank of the joined bytes, which is the same thing."""
        ranks, pattern = {piece: i for i, piece in self._pieces.items() if piece}, self.pattern
        if self.splittable:  # tiktoken's regex is twice as fast without possessive quantifiers
            pattern = re.sub(r'(?<=[+*?])\+', '', pattern)
        return tiktoken.Encoding('ours', pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        parts = segments.split(valid_text(text))
        return [i for part in parts for i in self._engine.encode_ordinary(part)]

    def encode_batch(self, texts: Iterable[str], num_workers: int = 1) -> Iterator[np.ndarray]:
        blocks = segments.in_blocks(map(valid_text, texts), segments.BLOCK // 2)
        encoded = segments.in_processes(segments.BulkEncoder, self, blocks, num_workers)
        for ids, counts in encoded:
            ids = np.frombuffer(ids, dtype=np.uint16)
            yield from (ids[end - count : end] for count, end in zip(counts, accumulate(counts)))

    def table(self) -> dict:
        merges = [list(pair) for pair in self.merges]
        table = {'version': VERSION, 'kind': self.kind, 'pattern': self.pattern, 'merges': merges}
        return {**table, 'special': self.special, 'bytes': self.byte_ids}


def check_size(vocab_size: int) -> None:
    if vocab_size > MAX_VOCAB:
        raise SystemExit(f'a vocabulary of {vocab_size} ids: at most {MAX_VOCAB}, since token files hold uint16')


def merge_ids(byte_ids: Sequence[int], special: dict[str, int], num_merges: int) -> list[int]:
    """The ids of the merges: those that no byte and no special token has, ascending."""
    taken = [*byte_ids, *special.values()]
    size = len(taken) + num_merges
    if len(byte_ids) != 256 or len(set(taken)) != len(taken) or not all(0 <= i < size for i in taken):
        raise ValueError(f'the ids of 256 bytes and {len(special)} special tokens must differ and lie below {size}')
    check_size(size)
    return sorted(set(range(size)) - set(taken))


def join_pieces(halves: dict[int, tuple[int, int]], byte_ids: Sequence[int], special: dict[str, int]) -> list[bytes]:
    """The bytes behind every id, b'' for special tokens."""
    pieces = {byte_id: bytes([byte]) for byte, byte_id in enumerate(byte_ids)}
    for new_id, (left, right) in halves.items():
        if left not in pieces or right not in pieces:
            raise ValueError(f'merge {new_id} joins {left} and {right}, which do not both come before it')
        pieces[new_id] = pieces[left] + pieces[right]
    if len(set(pieces.values())) != len(pieces):
        raise ValueError('two merges give the same bytes')
    pieces.update({special_id: b'' for special_id in special.values()})
    return [pieces[i] for i in range(len(pieces))]


# -----------------------------------------------------------------------------
# Reading tok.json


def from_dict(table: dict, source: str | Path = 'tokenizer') -> Tokenizer:
    """The tokenizer that to_dict() described, its version and hash checked. source names it in errors."""
    if not isinstance(table, dict):
        raise SystemExit(f'{source}: no tokenizer: expected an object with kind, version and hash')
    kind, version = table.get('kind'), table.get('version')
    if kind == 'gpt2':
        return GPT2Tokenizer()
    if kind not in ('char', 'bpe'):
        raise SystemExit(f'{source}: tokenizer kind {kind!r}, expected char, bpe or gpt2')
    if version != VERSION:
        raise SystemExit(f'{source}: version {version!r} of the format, this program reads {VERSION}: prepare it again')
    try:
        if kind == 'char':
            tokenizer = CharTokenizer(table['characters'])
        else:
            tokenizer = BPETokenizer(table['pattern'], table['merges'], table['special'], table['bytes'])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f'{source}: a damaged tokenizer ({error}): prepare it again') from None
    if table.get('hash') != tokenizer.hash:
        raise SystemExit(f'{source}: its content has not the hash {table.get("hash")!r}: damaged, prepare it again')
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """Read a tok.json."""
    try:
        table = json.loads(Path(path).read_bytes())  # of bytes it leaves out a byte order mark
    except OSError as error:
        programs = [folder / 'prepare.py' for folder in Path(path).parents]
        prepare = next((program for program in programs if program.exists()), None)
        expected = 'expected a tok.json, a .pt file, or a folder that has one'
        hint = f'run: python {prepare}' if prepare else expected
        raise SystemExit(f'{path}: cannot read the tokenizer ({error.strerror}): {hint}') from None
    except ValueError:  # no JSON, or no UTF-8
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
    Learn merges from the texts until the vocabulary, 256 bytes and special tokens counted, has vocab_size ids.

    The most frequent pair of neighbours is merged first, of equally frequent ones the smallest pair of ids, so that two
    implementations agree byte for byte. With too little text for that many merges it returns a smaller vocabulary.
    Memory holds a few blocks of text and the distinct chunks. Special tokens take the last ids, or the first.
    """
    num_merges = vocab_size - 256 - len(special)
    if num_merges < 0:
        raise SystemExit(f'vocab_size={vocab_size}: at least {256 + len(special)}, 256 bytes and the special tokens')
    if len(set(special)) < len(special):
        raise SystemExit(f'special tokens {", ".join(special)}: expected names that differ')
    check_size(vocab_size)
    check_pattern(pattern)
    merges = learn_merges(count_chunks(texts, pattern, num_workers), num_merges, progress)
    first = len(special) if special_first else 0  # of the bytes
    merges = [(first + left, first + right) for left, right in merges]
    first_special = 0 if special_first else 256 + len(merges)
    names = {name: first_special + i for i, name in enumerate(special)}
    return BPETokenizer(pattern, merges, names, range(first, first + 256))


def check_pattern(pattern: str) -> None:
    """In second 1, not after an hour: the pattern has to compile here and in tiktoken, whose regex is another."""
    try:
        compiled = regex.compile(pattern)
        if compiled.groups:
            raise SystemExit(f'pattern {pattern!r} has groups that capture: write (?:...)')
        if compiled.match(''):
            raise SystemExit(f'pattern {pattern!r} matches an empty chunk: write + for *')
        BPETokenizer(pattern, [], {}).encode('text')
    except (regex.error, ValueError) as error:
        raise SystemExit(f'pattern {pattern!r} does not compile: {error}') from None


def count_chunks(texts: Iterable[str], pattern: str, num_workers: int) -> dict[str, int]:
    """How often each distinct chunk occurs: a few words make up most of a text, and all later work is per distinct."""
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
            f'pattern {pattern!r} leaves out {seen - kept:,} of {seen:,} characters: add an alternative |.'
        )
    return counts


def chunk_counter(pattern: str) -> Callable[[list[str]], tuple[dict[str, int], int]]:
    split = regex.compile(pattern).findall

    def count_block(block: list[str]) -> tuple[dict[str, int], int]:
        """(how often each chunk occurs, number of characters). The slow regex runs once for each
        distinct segment."""
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

    All places of a pair arise at one merge, the one that made its newer id; later merges only remove
    places. So the pair's count at that moment is an upper bound forever, and no counts are kept up to
    date: a pair is counted when its turn comes, and goes back into the queue if it has become rarer.

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
    """Places of a pair of equal ids, such as aa in aaaa: every other place of a run, from the left."""
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
# Other people's tables


class GPT2Tokenizer(Tokenizer):
    """
    GPT-2's tokenizer by name. Its facts are known without its table, which is read (or downloaded) only when text is
    encoded or decoded: training on a nanoGPT data folder needs neither.
    """

    kind, vocab_size, bos, hash = 'gpt2', 50257, 50256, 'gpt2'

    def __init__(self):
        self.special = {'<|endoftext|>': 50256}

    @cached_property
    def _loaded(self) -> BPETokenizer:
        loaded = gpt2()
        if loaded.hash != self.hash:
            raise SystemExit(f"{GPT2_FOLDER}: {' and '.join(GPT2_FILES)} are not GPT-2's: replace them by {GPT2_URL}")
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
    """GPT-2's table: from vocab.bpe and encoder.json in folder or in data/gpt2, else downloaded by tiktoken."""
    for place in (Path(folder or GPT2_FOLDER), GPT2_FOLDER):
        if all((place / name).exists() for name in GPT2_FILES):
            return read_gpt2(place)
    return from_tiktoken('gpt2', folder)


def read_gpt2(folder: Path) -> BPETokenizer:
    """
    GPT-2's own two files: vocab.bpe has a comment line and then one merge a line, encoder.json the id of each piece. A
    byte is spelled as a printable character: itself, or the next one from U+0100 on if it is none (space is 'Ġ').
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    spelling = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    try:
        ids = json.loads((folder / 'encoder.json').read_bytes())
        lines = (folder / 'vocab.bpe').read_text(encoding='utf-8').strip('\n').split('\n')[1:]
        pairs = [(left, right) for left, right in (line.split(' ') for line in lines)]
        special = {name: ids[name] for name in BOS if name in ids}
        merges = [(ids[left], ids[right]) for left, right in pairs]
        table = BPETokenizer(GPT2_PATTERN, merges, special, [ids[character] for character in spelling])
    except (KeyError, ValueError) as error:
        raise SystemExit(f'{folder}: vocab.bpe or encoder.json is damaged ({error}): fetch both again') from None
    wrong = [i for i, (left, right) in zip(table.halves, pairs) if ids.get(left + right) != i]
    if wrong or len(ids) != table.vocab_size:
        raise SystemExit(f'{folder}: vocab.bpe and encoder.json do not belong together: fetch both again')
    return table


def from_tiktoken(name: str, folder: str | Path | None = None) -> BPETokenizer:
    """The table of one of tiktoken's encodings, which it downloads once. folder: where GPT-2's files could be put."""
    if name not in tiktoken.list_encoding_names():
        raise SystemExit(f'tiktoken has no encoding {name!r}, only {", ".join(tiktoken.list_encoding_names())}')
    if name.startswith(('cl100k', 'o200k')):  # known before anything is downloaded
        raise SystemExit(
            f'{name}: more than {MAX_VOCAB} ids, and token files hold uint16: take gpt2, or train one (bpe)'
        )
    where = Path(folder or GPT2_FOLDER)
    mend = f'put {" and ".join(GPT2_FILES)} from {GPT2_URL} into {where}' if name == 'gpt2' else 'try again'
    encoding = fetch(name, mend)
    ranks, special = encoding._mergeable_ranks, dict(encoding._special_tokens)
    pattern = GPT2_PATTERN if name in ('gpt2', 'r50k_base') else encoding._pat_str  # spelled differently, the same
    byte_ids = [ranks[bytes([byte])] for byte in range(256)]
    try:
        return BPETokenizer(pattern, list(recover_merges(ranks)), special, byte_ids)
    except ValueError as error:
        raise SystemExit(f'{name}: its table does not fit tok.json ({error})') from None


def fetch(name: str, mend: str = 'try again') -> tiktoken.Encoding:
    """One of tiktoken's encodings, which it downloads once; mend: what else to do about it."""
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; tiktoken's own is about a wrong hash
        raise SystemExit(f'{name}: tiktoken could not get it ({type(error).__name__}): {mend}') from None


def recover_merges(ranks: dict[bytes, int]) -> Iterator[tuple[int, int]]:
    """tiktoken keeps joined bytes only; the two halves of one are what all earlier merges leave of its bytes."""
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 2:
            found = [ranks.get(left + right, rank) for left, right in zip(parts, parts[1:])]
            best = min(found)
            if best >= rank:
                raise ValueError(f'{piece!r} is no merge of two pieces')
            i = found.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield ranks[parts[0]], ranks[parts[1]]


# -----------------------------------------------------------------------------
# Looking at one

# Short texts of several kinds, for --evaluate
SAMPLES = {
    'English': 'The lighthouse keeper climbed the stairs every evening, counted the ships on the horizon, and wrote\n'
    "their names into a book that nobody else would read. It wasn't a lonely life, he said; it was a quiet one.",
    'code': 'def moving_average(values, width=3):\n    total = 0.0\n    for i, value in enumerate(values):\n'
    '        total += value - (values[i - width] if i >= width else 0)\n        yield total / min(i + 1, width)\n',
    'maths': "Let f(x) = 3x^2 - 4x + 12. Then f'(x) = 6x - 4 = 0 gives x = 2/3, where f(2/3) = 32/3 ≈ 10.6667.\n"
    '\\int_0^1 \\frac{dx}{1+x^2} = \\frac{\\pi}{4}, and 1024 * 768 = 786432.',
    'German': 'Am Morgen lag dünner Nebel über den Feldern, und die Straße zum Bahnhof war noch menschenleer.',
    'Russian': 'Утром над полями лежал лёгкий туман, и дорога к вокзалу была ещё совсем пустой.',
    'Chinese': '清晨，田野上笼罩着一层薄雾，通往车站的路上还没有行人。他打开书，读了几页，又合上了。',
    'Japanese': '朝、畑には薄い霧がかかり、駅へ向かう道にはまだ誰もいなかった。',
    'Arabic': 'في الصباح كان ضباب خفيف يغطي الحقول، وكان الطريق إلى المحطة لا يزال خاليا.',
    'Hindi': 'सुबह खेतों पर हल्का कोहरा था और स्टेशन जाने वाली सड़क अभी भी खाली थी।',
}


def show_tokens(
    tokenizer: Tokenizer,
    text: str,
    visible: Callable[[str], str],
    derive: bool = False,
    colour: bool = True,
) -> str:
    """
    The text with its tokens in alternating colours, or between bars, and their ids; derive: how
    merges made them. visible: how the text of a token is spelled, console.visible.
    """
    ids = tokenizer.encode(text)
    spelled = {i: tokenizer.decode_bytes([i]).decode('utf-8', 'backslashreplace') for i in ids}
    painted = []
    for n, i in enumerate(ids):
        token = visible(spelled[i])
        painted.append(f'\x1b[30;{(46, 103)[n % 2]}m{token}\x1b[0m' if colour else f'{token}|')
        if '\n' in spelled[i]:  # where the text has a line break
            painted.append('\n')
    lines = [''.join(painted), ' '.join(map(str, ids))]
    for i in dict.fromkeys(ids) if derive else ():
        lines.append(f'{i:>6} {spelled[i]!r}')
        todo = [(i, 1)]
        while todo:
            i, depth = todo.pop()
            if i in tokenizer.halves:
                halves = [f'{half} {tokenizer.decode_bytes([half])!r}' for half in tokenizer.halves[i]]
                lines.append(f'{"  " * depth}     {i} = {halves[0]} + {halves[1]}')
                todo += [(half, depth + 1) for half in tokenizer.halves[i][::-1]]
    return '\n'.join(lines)


def compare(encoders: dict[str, Callable[[str], list[int]]], texts: dict[str, str]) -> str:
    """A table of bytes per token: more is better, since a model then sees more of a text in as many steps."""
    lines = ['| bytes per token | ' + ' | '.join(encoders) + ' |', '|:--|' + '--:|' * len(encoders)]
    for kind, text in texts.items():
        rates = [f'{len(text.encode("utf-8")) / len(encode(text)):.2f}' for encode in encoders.values()]
        lines.append(f'| {kind} | ' + ' | '.join(rates) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    import sys
    from glob import glob

    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

    import console
    from configurator import configure
    from console import visible, wants_colour
    from data.documents import SUFFIXES, pieces

    # To train one
    input = ''  # files to learn from, with commas, * allowed: .txt, .jsonl and .parquet with "text"
    vocab_size = 1024  # ids in all: 256 bytes, the merges and the special tokens; at most 65,536
    special = '<|bos|>'  # special tokens, separated by commas
    special_first = False  # they take the first ids instead of the last
    pattern = PATTERN  # what may not be merged across: a regular expression that matches each chunk of a text
    max_chars = 0  # learn from so many characters only; 0 is all
    num_workers = 0  # processes that count; 0 is one a core
    out = 'tok.json'  # where to write the tokenizer

    # To look at one
    show = ''  # a text whose tokens to print, by the tokenizer in `out`; --out=out/run takes a run's
    merges = False  # and the merges that made them
    evaluate = ''  # tokenizers (tok.json, out/run), with commas: bytes per token beside GPT-2 and GPT-4
    console.set_up(must_finish=True, missing='backslashreplace')
    configure(globals())
    console.set_up(must_finish=not (show or evaluate))

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(',') if name.strip()]

    def open_tokenizer(path: str) -> Tokenizer:
        if not path.endswith('.pt') and not Path(path).is_dir():
            return load(path)
        from checkpoint import load_tokenizer  # and torch, which takes seconds

        return load_tokenizer(path)

    def read(files: list[str]) -> Iterator[str]:
        """The files' texts, up to max_chars. The bar counts the bytes of the files, or up to max_chars."""
        ends = list(accumulate(Path(file).stat().st_size for file in files))
        left = limit = max_chars or 2**62
        total = min(ends[-1], limit)
        with tqdm(total=total, unit='B', unit_scale=True, desc='counting') as bar:
            for text, end in ((text, end) for file, end in zip(files, ends) for text in pieces(file)):
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
        files = sorted({file for name in names(input) for file in glob(name, recursive=True) or [name]})
        for file in files or [input]:
            if not Path(file).is_file() or Path(file).suffix.lower() not in SUFFIXES:
                raise SystemExit(f'--input={file}: no such file of text, expected one of {", ".join(SUFFIXES)}')
        if max_chars < 0 or num_workers < 0:
            raise SystemExit(f'max_chars={max_chars} and num_workers={num_workers}: at least 0')
        if out.endswith('.pt'):  # a run, whose tokenizer --show reads
            raise SystemExit(f'--out={out}: cannot be written, expected a name that ends in .json')
        disk.try_writing(out)
        workers = num_workers or os.cpu_count()
        trained = train_bpe(read(files), vocab_size, names(special), pattern, special_first, workers, progress=True)
        trained.save(out)
        if trained.vocab_size < vocab_size:
            print(f'no pair of neighbours is left: {trained.vocab_size:,} ids and not {vocab_size:,}')
        print(f'{out}: {trained.vocab_size:,} ids, {len(trained.merges):,} of them merges')

    def table() -> str:
        encoders = {name: open_tokenizer(name).encode for name in names(evaluate)}
        theirs = {'GPT-2': lambda: gpt2().encode, 'GPT-4': lambda: fetch('cl100k_base').encode_ordinary}
        for by, encoder in theirs.items():
            try:
                encoders[by] = encoder()
            except SystemExit as error:
                print(f"{by}'s encoding is left out: {error}")
        return compare(encoders, SAMPLES)

    if show or evaluate:
        try:
            if show:
                colour = wants_colour(sys.stdout)
                text = show_tokens(open_tokenizer(out), show, visible, merges, colour)
            else:
                text = table()
        except ValueError as error:  # a character that a tokenizer of characters does not hold
            raise SystemExit(f'{out if show else evaluate}: {error}') from None
        print(text)
    else:
        train()
