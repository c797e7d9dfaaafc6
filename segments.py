"""
Encoding much text fast: split it into segments, work on each distinct segment once, use all cores.

A segment is a part of a text whose ends no chunk of the tokenizer's pattern crosses. So the ids of
a text are the concatenated ids of its segments, and a segment has the same ids wherever it occurs.
Natural text repeats its segments often. Base64 does not, and is encoded without looking for them.

    for part in split(text):                                    # at most 2**18 characters each
        ...
    for ids, counts in in_processes(make, argument, in_blocks(texts, BLOCK), num_workers=8):
        ...
"""

import multiprocessing
import os
import signal
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, count, islice
from threading import Thread

import numpy as np
import regex

BLOCK = 2**21  # about this many characters are counted at a time, half as many encoded
CACHE = 2**19  # segments whose ids are kept, about 100 MB

# No chunk of the patterns in tokenizer.SPLITTABLE continues from a letter or digit to a sign or
# blank, nor from a letter to a digit
SPLIT = regex.compile(r'(?<=[\p{L}\p{N}])(?=[^\p{L}\p{M}\p{N}])|(?<=\p{L})(?=\p{N})')

# The rules of split_block, on bytes: a segment ends between an ASCII letter or digit and an ASCII
# sign or blank, and before a blank that a visible character follows. SEEN: bytes that certainly
# begin a visible character (ASCII, and U+00C0 to U+07FF)
WORD = {byte for byte in range(128) if chr(byte).isalnum()}
SIGN = {*range(128)} - WORD
SEEN = {*range(33, 127), *range(0xC3, 0xE0)}
IS_WORD, IS_SIGN, IS_SEEN = (np.isin(np.arange(256), list(kind)) for kind in (WORD, SIGN, SEEN))
FIRST_BYTES = np.array([2 ** (8 * n) - 1 for n in range(9)], dtype=np.uint64)  # [n]: n bytes
END = b'\xff'  # ends each text of a block; no byte of UTF-8


def split(text: str, size: int = 2**18, anywhere: bool = True) -> Iterator[str]:
    """
    Parts of at most `size` characters, because tiktoken's regex overflows its stack on a few
    million blanks in a row.

    A part ends in its second half where SPLIT matches. With a pattern in tokenizer.SPLITTABLE this
    changes no id. Without a match the part ends at `size`, which may change ids, or
    (anywhere=False) grows until there is one.
    """
    start = 0
    while len(text) - start > size:
        limit = start + size
        place = SPLIT.search(text, start + size // 2, limit if anywhere else len(text))
        if place:
            end = place.start()
        else:
            end = limit if anywhere else len(text)
        yield text[start:end]
        start = end
    yield text[start:]


def in_blocks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of texts of about `size` characters in all; a longer text is a block of its own."""
    block = []
    length = 0
    for text in texts:
        block.append(text)
        length += len(text) + 1  # an empty text is work too
        if length >= size:
            yield block
            block = []
            length = 0
    if block:
        yield block


def split_block(texts: list[str]) -> tuple[list[bytes], np.ndarray]:
    """
    (distinct segments of the texts, number of the segment at each place), with END after each text.

    Segments of up to 15 bytes are compared as two machine words whose last byte is the length. A
    longer one counts as distinct.
    """
    # 1) Where segments begin: a sign after a letter or digit, a blank before a visible character
    data = END.join([text.encode('utf-8') for text in texts]) + END
    codes = np.frombuffer(data + bytes(16), dtype=np.uint8)
    begins = np.zeros(len(codes), dtype=bool)
    begins[1:] = IS_WORD[codes[:-1]] & IS_SIGN[codes[1:]]
    begins[:-1] |= (codes[:-1] == 32) & IS_SEEN[codes[1:]]
    ends = (codes == END[0]).nonzero()[0]
    begins[0] = begins[ends] = begins[ends + 1] = True
    edges = begins[: len(data) + 1].nonzero()[0]
    starts = edges[:-1]
    lengths = np.diff(edges)

    # 2) Each segment as two words. words[i]: the 8 bytes from byte i on
    words = np.ndarray(len(codes) - 7, dtype='<u8', buffer=codes, strides=(1,))
    low = words[starts] & FIRST_BYTES[np.minimum(lengths, 8)]
    high = words[starts + 8] & FIRST_BYTES[np.clip(lengths - 8, 0, 8)]
    high |= lengths.astype(np.uint64) << np.uint64(56)
    high = np.where(lengths > 15, starts.astype(np.uint64), high)

    # 3) The distinct ones
    first, numbers = find_equals(low, high)
    starts = starts[first]
    ends = starts + lengths[first]
    distinct = [data[start:end] for start, end in zip(starts.tolist(), ends.tolist())]
    return distinct, numbers


def find_equals(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    (index of the first of each distinct pair (low, high), number of each pair): np.unique, three
    times as fast.

    Hashes of the pairs, with the index in their last bits, are sorted, so that equal pairs become
    neighbours. If two different pairs share a hash, another salt is tried.
    """
    bits = np.uint64(len(low).bit_length())
    for salt in count(0x9E3779B97F4A7C15, 2**33):
        # 1) Hash and sort
        hashes = (low ^ high >> np.uint64(7)) * np.uint64(salt)
        hashes = (hashes ^ hashes >> np.uint64(32) ^ high) * np.uint64(0xD6E8FEB86659FD93)
        packed = np.sort(hashes >> bits << bits | np.arange(len(low), dtype=np.uint64))
        order = (packed & (np.uint64(1) << bits) - np.uint64(1)).astype(np.int64)
        hashes = packed >> bits
        # 2) Number the runs of equal hashes
        is_new = np.append(True, hashes[1:] != hashes[:-1])
        first = order[is_new]
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.cumsum(is_new) - 1
        # 3) Check
        if np.array_equal(low[first][numbers], low) and np.array_equal(high[first][numbers], high):
            return first, numbers


# -----------------------------------------------------------------------------
# several processes

WORK = {}  # in a worker process: the function for an item


def start_worker(make: Callable, argument) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles Ctrl-C
    Thread(target=exit_with_parent, args=[multiprocessing.parent_process()], daemon=True).start()
    WORK['work'] = make(argument)


def exit_with_parent(parent) -> None:
    """Exit when the parent process dies: a killed parent cannot end its workers."""
    parent.join()
    os._exit(1)


def work_on(item):
    return WORK['work'](item)


def in_processes(make: Callable, argument, items: Iterable, num_workers: int = 1) -> Iterator:
    """make(argument)(item) of each item, in order, by num_workers processes. A few items are in
    memory at a time."""
    items = iter(items)
    first = list(islice(items, 2))
    items = chain(first, items)
    if num_workers == 1 or len(first) < 2:  # starting processes would take longer
        yield from map(make(argument), items)
        return
    with ProcessPoolExecutor(
        num_workers, initializer=start_worker, initargs=(make, argument)
    ) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(work_on, item))
            if len(waiting) > num_workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# -----------------------------------------------------------------------------
# encoding


class BulkEncoder:
    """
    Encodes a block of texts: returns the ids of all of them as bytes, and the number of ids of each
    text.

    Each distinct segment is encoded once. If the texts hardly repeat themselves (base64, columns of
    hashes), tiktoken encodes them as they are, and the next few blocks too, so that a vain search
    for repetitions costs little.

    tokenizer: a BPETokenizer. Segments are used only if it is `splittable`.
    """

    def __init__(self, tokenizer):
        self.encode = tokenizer.encode_part
        self.code = 'H' if tokenizer.vocab_size <= 2**16 else 'I'  # uint16 or uint32, for array
        self.dtype = np.dtype(self.code)
        self.bytes_per_id = tokenizer.bytes_per_id
        # blocks to pass through before segments are tried again
        self.patience = 0 if tokenizer.splittable else float('inf')
        self.known = {END: b''}  # segment -> its ids as bytes

    def __call__(self, texts: list[str]) -> tuple[bytes, list[int]]:
        if not self.patience:
            distinct, numbers = split_block(texts)
            new = set(distinct).difference(self.known)
            if 2 * sum(map(len, new)) < sum(map(len, texts)):
                self.learn(new)
                joined = self.join(distinct, numbers)
                if len(self.known) > CACHE:
                    self.known = {END: b''}
                return joined
            self.patience = 4
        self.patience -= 1
        rows = [self.to_bytes(text) for text in texts]
        return b''.join(rows), [len(row) // self.dtype.itemsize for row in rows]

    def to_bytes(self, text: str) -> bytes:
        """The ids of a text as bytes."""
        parts = [array(self.code, self.encode(part)) for part in split(text)]
        return b''.join(part.tobytes() for part in parts)

    def join(self, distinct: list[bytes], numbers: np.ndarray) -> tuple[bytes, list[int]]:
        """Concatenate the ids of the segments at all places, by numpy."""
        # 1) The ids of all distinct segments, concatenated
        pieces = [self.known[segment] for segment in distinct]
        ids = np.frombuffer(b''.join(pieces), dtype=self.dtype)
        sizes = np.array([len(piece) // self.dtype.itemsize for piece in pieces])
        starts = (np.cumsum(sizes) - sizes)[numbers]  # where each place's segment is in ids
        # 2) Gather them place by place
        sizes = sizes[numbers]
        ends = np.cumsum(sizes)
        index = np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1])
        # 3) A text ends at its END
        counts = np.diff(ends[numbers == distinct.index(END)], prepend=0)
        return ids[index].tobytes(), counts.tolist()

    def learn(self, new: set[bytes]) -> None:
        """Encode new segments. Those that may be concatenated, because no token can span the seam,
        are encoded in one call and cut apart at their last bytes."""
        # 1) Sort segments by what they begin and end with
        after_word, after_any, alone = [], [], []
        for segment in new:
            if segment[0] in SIGN and segment[-1] in WORD:
                after_word.append(segment)  # may follow a letter or digit
            elif segment[0] == 32 and len(segment) > 1 and segment[1] in SEEN:
                after_any.append(segment)  # may follow anything
            else:
                alone.append(segment)
        # 2) One call, then cut at the ids that end with a segment's last byte
        joined = after_word + after_any
        ids = self.to_bytes(b''.join(joined).decode('utf-8'))
        ends_of_ids = np.cumsum(self.bytes_per_id[np.frombuffer(ids, dtype=self.dtype)])
        ends = np.cumsum([len(segment) for segment in joined], dtype=np.int64)
        cuts = self.dtype.itemsize * (np.searchsorted(ends_of_ids, ends) + 1)
        start = 0
        for segment, end in zip(joined, cuts.tolist()):
            self.known[segment] = ids[start:end]
            start = end
        # 3) The others one by one
        for segment in alone:
            self.known[segment] = self.to_bytes(segment.decode('utf-8'))
