"""
What the prepare scripts share: getting a file from the network whole or not at all, and reading documents from files.

    path = download('https://.../input.txt', folder / 'input.txt', sha256='86c4...')
    for text in documents(folder / 'mine.jsonl'):
        ...
"""

import codecs
import hashlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from tqdm import tqdm

import segments
from conversation import read_rows
from utf8 import valid_text

TIMEOUT = (10, 60)  # seconds to connect, and to wait for the next bytes
HOPELESS = (400, 401, 403, 404, 410)  # answers that asking again will not change
SUFFIXES = ('.txt', '.jsonl', '.parquet')  # what documents() reads; in capitals too


class Damaged(Exception):
    """A file that is not what it should be; the text says what."""


def download(
    url: str,
    path: str | Path,
    size: int | None = None,
    sha256: str | None = None,
    tries: int = 5,
    pause: float = 1.0,
    mend: str = '',
) -> Path:
    """
    Get url into path, unless it lies there already, and return path. size (bytes) and sha256 are checked where given.

    Bytes go to path.part first, and a later call goes on where an interrupted one stopped. A failure is tried again
    after pause, 2 * pause, 4 * pause ... seconds; the last one is a SystemExit with the mend, by default where to put
    the file by hand.
    """
    path = Path(path)
    if path.exists():
        try:
            check(path, size, sha256)
        except Damaged as error:
            raise SystemExit(f'{path}: {error}: delete it and run again (own texts: data/custom/prepare.py)') from None
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + '.part')
    reason = ''
    for attempt in range(tries):
        if attempt:
            print(f'{url}: {reason}, trying again')
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            fetch(url, part, path.name)
            check(part, size, sha256)
            os.replace(part, path)
            return path
        except Damaged as error:
            part.unlink(missing_ok=True)  # what is wrong cannot be resumed
            reason = str(error)
        except requests.HTTPError as error:
            reason = f'HTTP status {error.response.status_code}'
            if error.response.status_code in HOPELESS:
                break
        except requests.RequestException as error:
            reason = type(error).__name__
        except OSError as error:  # requests' errors are OSErrors too, hence the order
            raise SystemExit(f'{part}: cannot write ({error.strerror}): make room and run again') from None
    raise SystemExit(f'{url}: download failed ({reason}): {mend or f"get it by hand and put it at {path}"}')


def check(path: Path, size: int | None, sha256: str | None) -> None:
    """Raise Damaged unless the file has that size and hash, each where it is known."""
    if size and path.stat().st_size != size:
        raise Damaged(f'{path.stat().st_size} bytes, expected {size}')
    if not sha256:
        return
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise Damaged(f'sha256 is {digest.hexdigest()}, expected {sha256}')


def fetch(url: str, part: Path, name: str) -> None:
    """One try: append to part what is still missing of url. requests.RequestException when the connection fails."""
    have = part.stat().st_size if part.exists() else 0
    headers = {'Accept-Encoding': 'identity'}  # so that a byte sent is a byte of the file
    if have:
        headers['Range'] = f'bytes={have}-'
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing from here on: complete, or the file there is another one by now
            if response.headers.get('Content-Range') == f'bytes */{have}':
                return
            raise Damaged('the file on the server has changed')
        response.raise_for_status()
        if response.status_code != 206:
            have = 0  # a server that cannot resume sends everything
        elif not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
            raise Damaged('the server resumed at another place')
        length = response.headers.get('Content-Length')
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, unit='B', unit_scale=True, desc=name)
        with bar, open(part, 'ab' if have else 'wb') as file:
            for block in response.iter_content(2**16):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError('the connection was cut')


# -----------------------------------------------------------------------------
# Documents


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
