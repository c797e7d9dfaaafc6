"""
Download a file: it is complete, or it is not there.

    path = download('https://.../input.txt', folder / 'input.txt', sha256='86c4...')
"""

import hashlib
import os
import time
from pathlib import Path

import requests
from tqdm import tqdm

TIMEOUT = (10, 60)  # seconds to connect, and to wait for the next bytes
PERMANENT = (400, 401, 403, 404, 410)  # status codes that another try would not change


class Damaged(Exception):
    """The content of a file is not the expected one; the text says how."""


def download(
    url: str,
    path: str | Path,
    size: int | None = None,
    sha256: str | None = None,
    tries: int = 5,
    pause: float = 1.0,
    hint: str = '',
) -> Path:
    """
    Download url to path, unless path exists, and return path. size (bytes) and sha256 are checked
    if given.

    Bytes go to path.part first; a later call resumes there. A failed try is repeated after pause,
    2 * pause, 4 * pause ... seconds. SystemExit after the last one, with the hint: by default to
    put the file at path by hand.
    """
    path = Path(path)
    # 1) The file exists
    if path.exists():
        try:
            check(path, size, sha256)
        except Damaged as error:
            raise SystemExit(
                f'{path}: {error}: delete it and run again (own texts: data/custom/prepare.py)'
            ) from None
        return path
    # 2) Try, and wait longer before each new try
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
            part.unlink(missing_ok=True)  # wrong bytes cannot be resumed
            reason = str(error)
        except requests.HTTPError as error:
            reason = f'HTTP status {error.response.status_code}'
            if error.response.status_code in PERMANENT:
                break
        except requests.RequestException as error:
            reason = type(error).__name__
        except OSError as error:  # after those of requests, which are OSErrors too
            raise SystemExit(
                f'{part} cannot be written ({error.strerror}): free some space and run again'
            ) from None
    # 3) No try succeeded
    by_hand = f'get it by hand and put it at {path}'
    raise SystemExit(f'{url}: download failed ({reason}): {hint or by_hand}')


def check(path: Path, size: int | None, sha256: str | None) -> None:
    """Raise Damaged unless the file has this size and hash, where given."""
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
    """
    One try: append to `part` the bytes of url that it lacks. name: of the progress bar.

    requests.RequestException if the connection fails, Damaged if `part` cannot be resumed.
    """
    # 1) Ask for the bytes after those that exist
    have = part.stat().st_size if part.exists() else 0
    headers = {'Accept-Encoding': 'identity'}  # not compressed: bytes sent are bytes of the file
    if have:
        headers['Range'] = f'bytes={have}-'
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        # 2) Does the answer continue what exists?
        if response.status_code == 416:  # no bytes from here on
            if response.headers.get('Content-Range') == f'bytes */{have}':  # because it is complete
                return
            raise Damaged('the file on the server has changed')
        response.raise_for_status()
        if response.status_code != 206:
            have = 0  # a server that cannot resume sends everything
        elif not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
            raise Damaged('the server resumed at another byte')
        # 3) Append
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
