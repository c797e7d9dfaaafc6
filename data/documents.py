"""
Read documents from files: .txt, .jsonl and .parquet.

    for text in documents(folder / 'mine.jsonl'):
        ...
"""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

import segments
from conversation import read_rows
from utf8 import valid_text

SUFFIXES = ('.txt', '.jsonl', '.parquet')  # what documents() reads; in capitals too


def documents(path: str | Path) -> Iterator[str]:
    """
    The texts of a file, one after the other: a .txt is one document, a .jsonl has one object with "text" a line, a
    .parquet a column "text". What cannot be read is a SystemExit naming the file, and the line.
    """
    path = Path(path)
    whole = path.suffix.lower() == '.txt' and path.is_file()
    yield from [read_text(path)] if whole else pieces(path)


def pieces(path: str | Path, size: int = 2**22) -> Iterator[str]:
    """documents(path), but a long .txt in parts that fit into memory, cut where no word goes on."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SystemExit(f'{path}: expected a file that ends in {", ".join(SUFFIXES)}')
    if not path.is_file():
        raise SystemExit(f'{path}: no such file')
    if suffix != '.txt':
        yield from map(valid_text, (parquet_rows if suffix == '.parquet' else json_lines)(path))
        return
    rest = ''
    for block in read_blocks(path, size):
        *parts, rest = segments.split(rest + block, size, anywhere=False)
        yield from parts
    yield rest


def read_text(path: Path) -> str:
    return ''.join(read_blocks(path, 2**24))


def read_blocks(path: Path, size: int) -> Iterator[str]:
    """The text of a UTF-8 file in blocks, without Windows' line ends and the byte order mark that it puts first."""
    decoder = codecs.getincrementaldecoder('utf-8')()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, block = 0, b' '
    with open(path, 'rb') as file:
        while block:
            block = file.read(size)
            start = offset - len(decoder.getstate()[0])  # of half a character, left from the block before
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise SystemExit(f'{path}: no UTF-8 at byte {start + error.start}: save it as UTF-8') from None
            yield newlines.decode(text if offset else text.removeprefix('\ufeff'), final=not block)
            offset += len(block)


def json_lines(path: Path) -> Iterator[str]:
    for where, row in read_rows(path):
        if 'text' not in row:
            raise SystemExit(f'{where}: missing "text"')
        if not isinstance(row['text'], str):
            raise SystemExit(f'{where}: "text" must be a string, got {row["text"]!r:.60}')
        yield row['text']


def parquet_rows(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SystemExit(f"{path}: pyarrow is needed to read it: pip install '.[data]'") from None
    try:
        for rows in parquet.ParquetFile(path).iter_batches(batch_size=256, columns=['text']):
            for text in rows.column('text').to_pylist():
                if not isinstance(text, str):
                    raise SystemExit(f'{path}: "text" must be a string, got {text!r:.60}')
                yield text
    except (pyarrow.ArrowException, KeyError) as error:
        raise SystemExit(f'{path}: no parquet with a column "text" ({error}): delete it and run again') from None
