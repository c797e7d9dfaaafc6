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

$ python tokenizer.py --input=FILE.txt --vocab_size=1024 --out=tok.json       trains one

Left out on purpose: vocabularies above 65,536 ids (token files are uint16) and normalisation of the text.
"""

import hashlib
import heapq
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import regex
import tiktoken

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
GPT2_FILES = ('vocab.bpe', 'encoder.json')
GPT2_FOLDER = Path(__file__).resolve().parent / 'data' / 'gpt2'
# sha256 of GPT-2's table in our form: whether a table is GPT-2's can be said without having it
GPT2_DIGEST = '0a8d8fbaf67fbdeb3c02f1eddf704fed5511564a3b677f48844a5cbe8422fdf7'
GPT2_URL = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/'


def valid_text(text: str) -> str:
    """The text as UTF-8 can hold it: surrogate pairs joined, a lone surrogate (JSON can spell one) becomes U+FFFD."""
    try:
        text.encode('utf-8')
        return text
    except UnicodeEncodeError:
        return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


def segments(text: str, size: int = 2**18) -> Iterator[str]:
    """
    Parts of at most size characters, cut before a blank that follows a letter or digit: no chunk of the patterns here
    goes on there, so the parts encode to the same ids as the whole. Without such a place the cut is anywhere. Needed
    because the regex behind tiktoken overflows its stack on a few million blanks in a row.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        places = (i for i in range(end, start, -1) if text[i].isspace() and text[i - 1].isalnum())
        end = next(places, end)
        yield text[start:end]
        start = end
    yield text[start:]


class Tokenizer:
    """
    What both kinds share. pieces: the bytes that each id stands for, in the order of ids, b'' for a special token.

    Attributes: kind; vocab_size, special tokens counted; special {spelling: id}; bos, the id that begins a document, or
    None; bytes_per_id (vocab_size,) int64, 0 for special tokens; hash, the sha256 of the table.
    """

    kind = ''

    def __init__(self, pieces: list[bytes], special: dict[str, int]):
        self.special = dict(special)
        self.vocab_size = len(pieces)
        self.bos = next((self.special[name] for name in BOS if name in self.special), None)
        self.bytes_per_id = np.array([len(piece) for piece in pieces], dtype=np.int64)
        self._pieces = dict(enumerate(pieces))  # a dict, so that id -1 is an error and not the last one

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

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
        path = Path(path)
        partial = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        with open(partial, 'w', encoding='utf-8', newline='\n') as file:
            file.write(json.dumps(self.to_dict()) + '\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


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
        self.pattern, self.byte_ids = pattern, list(byte_ids)
        self.merges = [(int(left), int(right)) for left, right in merges]
        super().__init__(join_pieces(self.merges, self.byte_ids, special), special)

    @cached_property
    def _engine(self) -> tiktoken.Encoding:
        """tiktoken's merge loop over our table. It merges by the rank of the joined bytes, which is the same thing."""
        ranks = {piece: i for i, piece in self._pieces.items() if piece}
        return tiktoken.Encoding('ours', pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        return [i for part in segments(valid_text(text)) for i in self._engine.encode_ordinary(part)]

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


def join_pieces(merges: Sequence[tuple[int, int]], byte_ids: Sequence[int], special: dict[str, int]) -> list[bytes]:
    """The bytes behind every id, b'' for special tokens."""
    pieces = {special_id: b'' for special_id in special.values()}
    known = {byte_id: bytes([byte]) for byte, byte_id in enumerate(byte_ids)}
    for new_id, (left, right) in zip(merge_ids(byte_ids, special, len(merges)), merges):
        if left not in known or right not in known:
            raise ValueError(f'merge {new_id} joins {left} and {right}, which do not both come before it')
        known[new_id] = known[left] + known[right]
    if len(set(known.values())) != len(known):
        raise ValueError('two merges give the same bytes')
    pieces.update(known)
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
    except (KeyError, TypeError, ValueError) as error:
        raise SystemExit(f'{source}: a damaged tokenizer ({error}): prepare it again') from None
    if table.get('hash') != tokenizer.hash:
        raise SystemExit(
            f'{source}: hash {table.get("hash")}, but its content has {tokenizer.hash}: '
            'the file was changed or damaged, prepare it again'
        )
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """Read a tok.json."""
    try:
        with open(path, encoding='utf-8') as file:
            table = json.load(file)
    except OSError as error:
        raise SystemExit(f'{path}: cannot read the tokenizer ({error.strerror})') from None
    except ValueError:  # no JSON, or no UTF-8
        raise SystemExit(f'{path}: not a tok.json: prepare it again') from None
    return from_dict(table, path)


# -----------------------------------------------------------------------------
# Training


def train_bpe(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = (), pattern: str = PATTERN
) -> BPETokenizer:
    """
    Learn merges from the texts until the vocabulary, 256 bytes and special tokens counted, has vocab_size ids.

    The most frequent pair of neighbours is merged first, of equally frequent ones the smallest pair of ids, so that two
    implementations agree byte for byte. With too little text for that many merges it returns a smaller vocabulary.
    """
    num_merges = vocab_size - 256 - len(special)
    if num_merges < 0:
        raise SystemExit(f'vocab_size={vocab_size}: at least {256 + len(special)}, 256 bytes and the special tokens')
    check_size(vocab_size)
    counts = Counter()
    split = regex.compile(pattern)
    for text in texts:
        counts.update(split.findall(valid_text(text)))
    merges = learn_merges(counts, num_merges)
    first = 256 + len(merges)
    return BPETokenizer(pattern, merges, {name: first + i for i, name in enumerate(special)})


def learn_merges(counts: dict[str, int], num_merges: int) -> list[tuple[int, int]]:
    """counts: how often each distinct chunk occurs. A few words make up most of a text: work is per distinct one."""
    words = [list(chunk.encode('utf-8')) for chunk in counts]
    times = list(counts.values())
    pair_counts, where = Counter(), defaultdict(set)  # `where` may name words that lost the pair since: harmless
    for index, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += times[index]
            where[pair].add(index)

    # A count that grows is pushed at once, one that shrinks is put right when it comes up.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < num_merges:
        stale, pair = heapq.heappop(heap)
        count = pair_counts.get(pair, 0)
        if count != -stale:
            if 0 < count < -stale:
                heapq.heappush(heap, (-count, pair))
            continue
        new_id = 256 + len(merges)
        merges.append(pair)
        grown = set()
        for index in where.pop(pair):
            grown |= apply_merge(words, index, pair, new_id, times[index], pair_counts, where)
        for other in grown:
            heapq.heappush(heap, (-pair_counts[other], other))
        pair_counts.pop(pair, None)
    return merges


def apply_merge(words, index, pair, new_id, times, pair_counts, where) -> set[tuple[int, int]]:
    """Merge the pair in one word, bring its pair counts up to date and return the pairs that are new in it."""
    old = words[index]
    new = merge(old, pair, new_id)
    if len(new) == len(old):
        return set()
    words[index] = new
    for gone in zip(old, old[1:]):
        pair_counts[gone] -= times
    grown = set()
    for neighbours in zip(new, new[1:]):
        pair_counts[neighbours] += times
        if new_id in neighbours:
            where[neighbours].add(index)
            grown.add(neighbours)
    return grown


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Replace the pair wherever it stands, from left to right: [1, 1, 1] with (1, 1) is [new, 1]."""
    left, right = pair
    merged, i, last = [], 0, len(ids) - 1
    while i <= last:
        if ids[i] == left and i < last and ids[i + 1] == right:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


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
        ids = json.loads((folder / 'encoder.json').read_text(encoding='utf-8'))
        lines = (folder / 'vocab.bpe').read_text(encoding='utf-8').strip('\n').split('\n')[1:]
        pairs = [(left, right) for left, right in (line.split(' ') for line in lines)]
        special = {name: ids[name] for name in BOS if name in ids}
        merges = [(ids[left], ids[right]) for left, right in pairs]
        table = BPETokenizer(GPT2_PATTERN, merges, special, [ids[character] for character in spelling])
    except (KeyError, ValueError) as error:
        raise SystemExit(f'{folder}: vocab.bpe or encoder.json is damaged ({error}): fetch both again') from None
    new_ids = merge_ids(table.byte_ids, special, len(merges))
    wrong = [i for i, (left, right) in zip(new_ids, pairs) if ids.get(left + right) != i]
    if wrong or len(ids) != table.vocab_size:
        raise SystemExit(f'{folder}: vocab.bpe and encoder.json do not belong together: fetch both again')
    return table


def from_tiktoken(name: str, folder: str | Path | None = None) -> BPETokenizer:
    """The table of one of tiktoken's encodings, which it downloads once. folder: where GPT-2's files could be put."""
    if name not in tiktoken.list_encoding_names():
        raise SystemExit(f'tiktoken has no encoding {name!r}, only {", ".join(tiktoken.list_encoding_names())}')
    too_large = f'{name}: more than {MAX_VOCAB} ids, and token files hold uint16: take gpt2, or train one (bpe)'
    if name.startswith(('cl100k', 'o200k')):  # known before anything is downloaded
        raise SystemExit(too_large)
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; tiktoken's own is about a wrong hash
        where = Path(folder or GPT2_FOLDER)
        mend = f'put {" and ".join(GPT2_FILES)} from {GPT2_URL} into {where}' if name == 'gpt2' else 'try again'
        raise SystemExit(f'{name}: tiktoken could not get it ({type(error).__name__}): {mend}') from None
    if encoding.n_vocab > MAX_VOCAB:
        raise SystemExit(too_large)
    ranks, special = encoding._mergeable_ranks, dict(encoding._special_tokens)
    pattern = GPT2_PATTERN if name in ('gpt2', 'r50k_base') else encoding._pat_str  # spelled differently, the same
    byte_ids = [ranks[bytes([byte])] for byte in range(256)]
    try:
        return BPETokenizer(pattern, list(recover_merges(ranks)), special, byte_ids)
    except ValueError as error:
        raise SystemExit(f'{name}: its table does not fit tok.json ({error})') from None


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


if __name__ == '__main__':
    from configurator import configure

    input = ''  # a UTF-8 text file to learn from
    vocab_size = 1024  # ids in all: 256 bytes, the merges and the special tokens; at most 65,536
    special = '<|bos|>'  # special tokens, separated by commas
    out = 'tok.json'  # where to write the tokenizer
    configure(globals())
    if not Path(input).is_file():
        raise SystemExit(f'--input={input}: no such file, expected a UTF-8 text: python tokenizer.py --input=FILE')
    names = [name for name in special.split(',') if name]
    trained = train_bpe([Path(input).read_text(encoding='utf-8')], vocab_size, names)
    trained.save(out)
    print(f'{out}: {trained.vocab_size} ids, {len(trained.merges)} of them merges')
