"""
Get a file from the network, whole or not at all.

    path = download('https://.../input.txt', folder / 'input.txt', sha256='86c4...')
"""

import hashlib
import os
import time
from pathlib import Path

import requests
from tqdm import tqdm

TIMEOUT = (10, 60)  # seconds to connect, and to wait for the next bytes
HOPELESS = (400, 401, 403, 404, 410)  # answers that asking again will not change


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
