"""
Download files: each is complete, or it is not there.

    path = download('https://.../input.txt', folder / 'input.txt', sha256='86c4...')
    paths = parquet_files('openai/gsm8k', 'main', 'train', folder / 'raw')  # of Hugging Face's hub

HF_ENDPOINT names a mirror of the hub, HF_TOKEN a token for data sets and models that need one. It
is sent to the hub's or the mirror's own host only: not to the hosts that it redirects to.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm

import disk

HUB = 'https://huggingface.co'
TIMEOUT = (10, 60)  # seconds to connect, and to wait for the next bytes
PERMANENT = (400, 401, 403, 404, 410)  # status codes that another try would not change
NO_HEAD = (405, 501)  # status codes of a server that does not know the method HEAD
REDIRECTS = 10  # at most
LONGEST_PAUSE = 3600  # seconds; a longer Retry-After is cut to this
PROGRESS = 2**20  # new bytes after which failed tries are counted from 0 again
FILES_AT_ONCE = 8


class Damaged(Exception):
    """The content of a file is not the expected one; the text says how."""


class Unexpected(Exception):
    """The server answered with something else than what was asked for; the text says what."""


class Stopped(Exception):
    """Another file could not be downloaded, or the user pressed Ctrl-C."""


class Remote(NamedTuple):
    """A file to download. size (bytes) and sha256 are None where unknown."""

    url: str
    size: int | None = None
    sha256: str | None = None


# -----------------------------------------------------------------------------
# one file


def download(
    url: str,
    path: str | Path,
    size: int | None = None,
    sha256: str | None = None,
    tries: int = 5,
    pause: float = 1.0,
    hint: str = '',
    bar: tqdm | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """
    Download url to path, unless path exists, and return path. size (bytes) and sha256 are checked
    if given; a .parquet must begin and end as one.

    Bytes go to path.part first; a later call resumes there. A failed try is repeated after pause,
    2 * pause, 4 * pause ... seconds, or when the server asks for it. SystemExit after `tries`
    without progress, with the hint: by default to put the file at path by hand.

    bar: counts the bytes, also those that exist; by default a bar for this file. stop: ends the
    download early.
    """
    path = Path(path)
    # 1) The file exists
    if path.exists():
        try:
            check(path, size, sha256, path.suffix)
        except Damaged as error:
            raise SystemExit(
                f'{path}: {error}: delete it and run again (own texts: data/custom/prepare.py)'
            ) from None
        if bar is not None:
            bar.update(path.stat().st_size)
        return path
    # 2) Try until it is complete
    part = path.with_name(path.name + '.part')
    stop = stop or threading.Event()

    def attempt() -> Path:
        fetch(url, part, counter, stop)
        try:
            check(part, size, sha256, path.suffix)
        except Damaged:
            part.unlink()  # wrong bytes cannot be resumed
            raise
        os.replace(part, path)
        return path

    hint = hint or f'get it by hand and put it at {path}'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Counter(path.name, bar) as counter:
            return persist(attempt, url, tries, pause, hint, stop, lambda: size_of(part))
    except OSError as error:
        raise disk.not_written(part, error) from None


class Counter:
    """The bytes of one file in a bar: in the given one, which other files share, or in its own."""

    def __init__(self, name: str, bar: tqdm | None):
        self.name = name
        self.shared = bar is not None
        self.bar = bar
        self.counted = 0

    def show(self, have: int, total: int | None = None) -> None:
        """have: bytes of the file that exist. total: its size, if the server names it."""
        if self.bar is None:
            self.bar = tqdm(total=total, initial=have, unit='B', unit_scale=True, desc=self.name)
        else:
            self.bar.update(have - self.counted)
        self.counted = have

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if not self.shared and self.bar is not None:
            self.bar.close()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check(path: Path, size: int | None, sha256: str | None, suffix: str = '') -> None:
    """Raise Damaged unless the file has this size and hash, where given, and the first and last
    bytes of its kind."""
    if size and path.stat().st_size != size:
        raise Damaged(f'{path.stat().st_size} bytes, expected {size}')
    with open(path, 'rb') as file:
        if suffix == '.parquet':
            first = file.read(4)
            file.seek(max(0, path.stat().st_size - 4))
            if (first, file.read(4)) != (b'PAR1', b'PAR1'):
                raise Damaged('not a whole parquet file')
        if sha256:
            file.seek(0)
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            if digest.hexdigest() != sha256:
                raise Damaged(f'sha256 is {digest.hexdigest()}, expected {sha256}')


def fetch(url: str, part: Path, counter: Counter, stop: threading.Event) -> None:
    """
    One try: append to `part` the bytes of url that it lacks.

    requests.RequestException if the connection fails, Damaged if `part` cannot be resumed,
    Unexpected for a web page instead of a file.
    """
    # 1) Ask for the bytes after those that exist
    have = size_of(part)
    headers = {'Accept-Encoding': 'identity'}  # not compressed: bytes sent are bytes of the file
    if have:
        headers['Range'] = f'bytes={have}-'
    with request('GET', url, headers) as response:
        # 2) Does the answer continue what exists?
        if response.status_code == 416:  # no bytes from here on
            if response.headers.get('Content-Range') == f'bytes */{have}':  # because it is complete
                return
            part.unlink()
            raise Damaged('the file on the server has changed')
        response.raise_for_status()
        refuse_pages(response)
        if response.status_code != 206:
            have = 0  # a server that cannot resume sends everything
        elif not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
            part.unlink()
            raise Damaged('the server resumed at another byte')
        # 3) Append
        length = response.headers.get('Content-Length', '')
        total = have + int(length) if length.isdecimal() else None
        counter.show(have, total)
        with open(part, 'ab' if have else 'wb') as file:
            for block in response.iter_content(2**16):
                if stop.is_set():
                    raise Stopped
                file.write(block)
                have += len(block)
                counter.show(have)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise requests.ConnectionError('the connection was cut')


def refuse_pages(response: requests.Response) -> None:
    """Raise Unexpected for a web page with status 200: a proxy's or a login's."""
    if 'text/html' in response.headers.get('Content-Type', ''):
        raise Unexpected('the server sent an HTML page instead of the file')


# -----------------------------------------------------------------------------
# requests and retries


def request(method: str, url: str, headers: dict | None = None) -> requests.Response:
    """
    The response after all redirects; its `linked` holds what the hub says of a file on the way.

    HEAD ends where the hub names size and hash: storage behind it may refuse HEAD.
    """
    linked = {}
    for _ in range(REDIRECTS):
        response = requests.request(
            method,
            url,
            headers=headers,
            auth=authorization(url),
            stream=True,
            timeout=TIMEOUT,
            allow_redirects=False,
        )
        for name in ('X-Linked-Size', 'X-Linked-Etag'):
            if name in response.headers:
                linked[name] = response.headers[name]
        if not response.is_redirect or method == 'HEAD' and 'X-Linked-Size' in linked:
            response.linked = linked
            return response
        response.close()
        url = urljoin(url, response.headers['Location'])
    raise requests.TooManyRedirects('too many redirects')


def endpoint() -> str:
    """The hub's address, or that of the mirror which HF_ENDPOINT names."""
    address = os.environ.get('HF_ENDPOINT', '').strip().rstrip('/') or HUB
    if not re.match(r'https?://[^/]', address):
        raise SystemExit(f'HF_ENDPOINT={address}: expected an address such as {HUB}')
    return address


def authorization(url: str) -> Callable | None:
    """What adds HF_TOKEN to a request to the hub. None without a token, and for other hosts."""
    token = os.environ.get('HF_TOKEN', '').strip()
    if not token or urlsplit(url)[:2] != urlsplit(endpoint())[:2]:
        return None
    if not re.fullmatch(r'[!-~]+', token):
        raise SystemExit('HF_TOKEN: expected ASCII letters and digits, such as hf_abc')

    def add(prepared):
        prepared.headers['Authorization'] = f'Bearer {token}'
        return prepared

    return add


def persist(
    action: Callable,
    url: str,
    tries: int,
    pause: float,
    hint: str,
    stop: threading.Event | None = None,
    measure: Callable[[], int] = int,
):
    """
    action(), repeated while it fails. SystemExit with the hint after `tries` failures, or one that
    another try would not change.

    measure: the bytes that exist. A megabyte of new ones shows that the connection works, so that
    the failures before it do not count.
    """
    stop = stop or threading.Event()
    most = measure()
    failures = 0
    while True:
        # 1) Try
        wait = 0
        final = False
        try:
            return action()
        except (Damaged, Unexpected) as error:
            reason = str(error)
        except requests.HTTPError as error:
            status = error.response.status_code
            reason = f'HTTP status {status}'
            final = status in PERMANENT
            wait = retry_after(error.response)
            if status in (401, 403):
                reason += ', no access: HF_TOKEN may be missing or may lack it'
        except requests.RequestException as error:
            reason = reason_of(error, url)
        # 2) Count, and wait longer before each new try
        have = measure()
        if have >= most + PROGRESS:
            most = have
            failures = 0
        failures += 1
        if final or failures >= tries:
            raise SystemExit(f'{url}: download failed ({reason}): {hint}')
        wait = max(wait, pause * 2 ** (failures - 1))
        tqdm.write(f'{url}: {reason}, trying again in {wait:.0f} s')
        sleep(wait, stop)


def sleep(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise Stopped


def retry_after(response: requests.Response) -> float:
    """Seconds until the server wants the next try: its Retry-After is a number or a date."""
    value = response.headers.get('Retry-After', '').strip()
    if value.isdecimal():
        return min(int(value), LONGEST_PAUSE)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:  # missing, or neither
        return 0
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    seconds = (date - datetime.now(timezone.utc)).total_seconds()
    return min(max(0, seconds), LONGEST_PAUSE)


def reason_of(error: requests.RequestException, url: str) -> str:
    """A few words on a failed connection."""
    cause = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f'no address is known for the host {urlsplit(url).hostname}'
        cause = cause.__context__
    return type(error).__name__


# -----------------------------------------------------------------------------
# many files


def download_all(
    files: Sequence[tuple[Remote, Path]],
    name: str,
    tries: int = 5,
    at_once: int = FILES_AT_ONCE,
) -> list[Path]:
    """Download (remote, path) pairs into one folder, several at once, with one bar. Nothing is
    asked of the network if all exist."""
    if all(path.exists() for _, path in files):
        return list(in_order(files, tries, tqdm(disable=True), at_once))  # which checks them
    folder = files[0][1].parent
    check_space(folder, bytes_left(files), name)
    total = sum(remote.size or 0 for remote, _ in files)
    with locked(folder), tqdm(total=total or None, desc=name, unit='B', unit_scale=True) as bar:
        return list(in_order(files, tries, bar, at_once))


def locked(folder: Path) -> disk.Lock:
    """Keeps a second process from downloading into the folder at the same time."""
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return disk.Lock(folder / 'download.lock', hint='')


def bytes_left(files: Sequence[tuple[Remote, Path]]) -> int:
    """The bytes that are still to be downloaded, as far as sizes are known."""
    left = 0
    for remote, path in files:
        if not path.exists():
            left += max(0, (remote.size or 0) - size_of(path.with_name(path.name + '.part')))
    return left


def check_space(folder: Path, needed: int, what: str) -> None:
    """Print what the work takes. SystemExit if the disk has less, before the first byte."""
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    space = f'{gigabytes(needed)} are needed in {folder}, {gigabytes(free)} are free'
    print(f'{what}: {space}', flush=True)
    if needed > free:
        raise SystemExit(f'{what}: {space}: free some space, or take fewer files')


def gigabytes(size: int) -> str:
    return f'{size / 1e9:,.1f} GB' if size >= 1e8 else f'{size / 1e6:,.1f} MB'


def get(
    remote: Remote,
    path: Path,
    tries: int,
    bar: tqdm | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Download one of a set's files."""
    hint = f'get it by hand and put it at {path}, or move {path.parent} away to list the set anew'
    url = at_endpoint(remote.url)
    return download(url, path, remote.size, remote.sha256, tries, hint=hint, bar=bar, stop=stop)


def in_order(
    files: Sequence[tuple[Remote, Path]],
    tries: int = 5,
    bar: tqdm | None = None,
    at_once: int = FILES_AT_ONCE,
    ahead: int | None = None,
) -> Iterator[Path]:
    """
    The paths of downloaded files, in order. Threads download `at_once` of them, and at most `ahead`
    more than were taken from here.

    If one fails, or the caller ends, the others stop too; their next download resumes.
    """
    stop = threading.Event()
    failures = []

    # 1) What a thread does, and how its result is taken
    def work(remote: Remote, path: Path) -> Path:
        try:
            return get(remote, path, tries, bar, stop)
        except SystemExit as error:
            failures.append(error)
            stop.set()
            raise

    def take(waiting: deque) -> Path:
        try:
            return waiting.popleft().result()
        except Stopped:  # because of a later file
            raise failures[0] from None

    # 2) Start the downloads, in order, and take them in order
    with ThreadPoolExecutor(at_once) as pool:
        waiting = deque()
        try:
            for file in files:
                waiting.append(pool.submit(work, *file))
                if ahead is not None and len(waiting) > ahead:
                    yield take(waiting)
            while waiting:
                yield take(waiting)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


# -----------------------------------------------------------------------------
# the hub


def parquet_files(
    repo: str, subset: str, split: str, folder: Path, most: int | None = None, tries: int = 5
) -> list[Path]:
    """
    The parquet files of a split of a data set on the hub, in order, downloaded into folder where
    missing. most: only the first ones.

    Files in folder that were put there by hand are used if no list was downloaded. SystemExit says
    how to do that if the hub cannot be reached.
    """
    own = own_files(folder)
    if own:
        return own[:most]
    hint = by_hand(repo, folder)
    of = f'{repo}/{subset}/{split}'
    remotes = listing(of, folder, lambda: list_split(repo, subset, split, tries, hint))
    paths = [folder / f'{i:05d}.parquet' for i in range(len(remotes))]
    return download_all(list(zip(remotes, paths))[:most], of, tries)


def own_files(folder: Path, suffixes: Sequence[str] = ('.parquet',)) -> list[Path]:
    """The files that the user put into folder. None if a download began there, with its list."""
    if is_listed(folder):
        return []
    return sorted(path for path in folder.glob('*') if path.suffix.lower() in suffixes)


def is_listed(folder: Path) -> bool:
    """Whether a download into folder began, so that its files are not the user's."""
    return (folder / 'files.json').exists()


def by_hand(repo: str, folder: Path) -> str:
    return f'see {HUB}/datasets/{repo}, or put its .parquet files into {folder}'


def listing(of: str, folder: Path, ask: Callable[[], list[Remote]]) -> list[Remote]:
    """The files of a data set, from folder/files.json, else by ask(), which is then saved there."""
    path = folder / 'files.json'
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
            if found['of'] == of:
                return [Remote(*row) for row in found['files']]
            reason = f'lists {found["of"]}, expected {of}'
        except (ValueError, KeyError, TypeError) as error:
            reason = f'cannot be read ({error!r})'
        raise SystemExit(f'{path} {reason}: move {folder} away and run again')
    files = ask()
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with disk.replacing(path) as file:
        file.write(json.dumps(dict(of=of, files=files), indent=1).encode())
    return files


def list_split(repo: str, subset: str, split: str, tries: int, hint: str) -> list[Remote]:
    """The files of a split in the hub's own conversion to parquet, with size and hash."""
    url = f'{endpoint()}/api/datasets/{repo}/parquet/{subset}/{split}'
    found, _ = persist(lambda: get_list(url), url, tries, 1.0, hint)
    urls = [of_the_hub(file) for file in found if isinstance(file, str)]
    if not urls or len(urls) < len(found):
        raise SystemExit(f'{url}: lists no files: {hint}')
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return list(pool.map(lambda file: describe(file, tries, hint), urls))


def list_repo(
    repo: str, pattern: str, tries: int, hint: str, kind: str = 'datasets'
) -> list[Remote]:
    """The files of a data set or a model (kind: 'datasets' | 'models') whose path matches the
    pattern, by path, with size and hash."""
    start = page = f'{endpoint()}/api/{kind}/{repo}/tree/main'
    place = f'{HUB}/{repo}' if kind == 'models' else f'{HUB}/{kind}/{repo}'
    found = {}
    while page:
        here = at_endpoint(page)
        rows, page = persist(lambda here=here: get_list(here), here, tries, 1.0, hint)
        for row in rows:
            path = row.get('path', '') if isinstance(row, dict) else ''
            if re.fullmatch(pattern, path) and isinstance(row.get('size'), int):
                sha256 = (row.get('lfs') or {}).get('oid')
                url = f'{place}/resolve/main/{path}'
                found[path] = Remote(url, row['size'], sha256)
    if not found:
        raise SystemExit(f'{start}: lists no files of this kind: {hint}')
    return [found[path] for path in sorted(found)]


def get_list(url: str) -> tuple[list, str | None]:
    """(the JSON list at url, address of its next page). Unexpected if it is something else."""
    with request('GET', url) as response:
        response.raise_for_status()
        try:
            found = json.loads(response.content)
        except ValueError:
            raise Unexpected('the server sent no JSON') from None
        if not isinstance(found, list):
            raise Unexpected(f'the server sent {found!r:.60}, expected a list')
        return found, response.links.get('next', {}).get('url')


def describe(url: str, tries: int, hint: str) -> Remote:
    """A file of the hub with its size and hash, as far as the server names them."""
    here = at_endpoint(url)

    def ask() -> Remote:
        with request('HEAD', here, {'Accept-Encoding': 'identity'}) as response:
            if response.status_code in NO_HEAD:
                return Remote(url)
            response.raise_for_status()
            named = response.headers.get('Content-Length', '')
            named = response.linked.get('X-Linked-Size', named)
            size = int(named) if named.isdecimal() else None
            tag = response.linked.get('X-Linked-Etag', '').strip('"')
            sha256 = tag if re.fullmatch('[0-9a-f]{64}', tag) else None
            return Remote(url, size, sha256)

    return persist(ask, here, tries, 1.0, hint)


def at_endpoint(url: str) -> str:
    """An address of the hub, at its mirror."""
    return endpoint() + url.removeprefix(HUB) if url.startswith(HUB + '/') else url


def of_the_hub(url: str) -> str:
    """The reverse: what files.json holds, so that another mirror can be taken later."""
    return HUB + url.removeprefix(endpoint()) if url.startswith(endpoint() + '/') else url
