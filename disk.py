"""
Files that survive a crash, and folders that one process uses at a time.

    with replacing('tok.json') as file:      # the old tok.json stays until the new one is complete
        file.write(content)

    append_line('answers.jsonl', row)        # read_lines() gives all rows that are complete

    with Lock(Path('out/run/run.lock')):     # a second process exits with a message
        ...
"""

import atexit
import errno
import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import BinaryIO

RENEWED = 60  # seconds between renewals of a lock's time
LEFT_BEHIND = 300  # seconds without renewal after which another host's process counts as gone
FAR = 2**30  # the byte that is locked on Windows, where a locked byte cannot be read


def sync(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())


def not_written(path: str | Path, error: OSError) -> SystemExit:
    """One line about a path that cannot be written."""
    full = errno.errorcode.get(error.errno) in ('ENOSPC', 'EDQUOT')
    hint = 'free some space' if full else 'expected a place that exists and can be written'
    return SystemExit(f'{path} cannot be written ({error.strerror or error}); {hint}')


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around code that writes `path`: report a full, read-only or missing disk in one line."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error


@contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, for this process only. The file is removed at the end."""
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        with writing(path):
            if path.exists() and not path.is_file():  # a folder, or /dev/null
                raise SystemExit(f'{path} is not a regular file, expected the name of a file')
            yield part
    finally:
        with suppress(OSError):  # renamed, or never created
            part.unlink()


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when complete. If anything fails, `path` is unchanged."""
    path = Path(path)
    with part_of(path) as part:
        with open(part, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def try_writing(path: str | Path) -> None:
    """Fail before the work if its result cannot be written to `path`. Leaves nothing there."""
    with part_of(Path(path)) as part:
        part.write_bytes(b'0')  # a full disk accepts an empty file


def append_line(path: str | Path, row: dict) -> None:
    """Append a row to a file of JSON lines, in one write. A line that a killed process left half
    written is ended first; read_lines() leaves it out."""
    line = json.dumps(row, ensure_ascii=False).encode() + b'\n'
    with open(path, 'ab+', buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b'\n':
                line = b'\n' + line
        file.write(line)


def read_lines(path: str | Path) -> list[dict]:
    """The rows of such a file, without lines that are no JSON objects; [] without a file."""
    rows = []
    for line in Path(path).read_bytes().split(b'\n') if Path(path).is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # half a line, or [[[[…
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


# -----------------------------------------------------------------------------
# one process per folder


class Lock:
    """
    A file that keeps other processes out of its folder until release().

    The lock is the operating system's, so it ends with the process. Not every file system shares
    it between hosts. Therefore the file also holds host, process and a time, renewed every
    minute; another host's lock that was not renewed for five minutes is taken over.

    SystemExit if another process has the lock, OSError if the file cannot be written. hint: what to
    do instead of waiting.
    """

    def __init__(self, path: str | Path, hint: str = ', or take another --out_dir'):
        self.path = Path(path)
        self.hint = hint
        self.works = True  # False: this file system has no locks
        self.mutex = threading.Lock()  # between the thread and release()
        self.released = threading.Event()
        self.file = self.acquire()
        try:
            self.renew()
        except OSError:  # the disk is full
            self.release()
            raise
        atexit.register(self.release)
        threading.Thread(target=self.keep_renewing, daemon=True).start()

    def acquire(self) -> BinaryIO:
        """The file, open and locked. SystemExit if another process has it."""
        while True:
            file = open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), 'rb+', buffering=0)
            locked = self.lock(file)
            holder = read_holder(file)
            # 1) Its owner may have removed the file between our open and our lock
            if locked and not is_file_at(file, self.path):
                file.close()
                continue
            # 2) Free, left by a process of this host (it has ended: the lock is ours), or outdated
            silent = time() - holder.get('time', 0)
            elsewhere = bool(holder) and holder['host'] != platform.node()
            if locked and not (elsewhere and silent < LEFT_BEHIND):
                if elsewhere:
                    print(
                        f'{self.path} was left behind by {describe(holder)}: '
                        f'not renewed for {silent:,.0f} seconds'
                    )
                return file
            # 3) In use
            file.close()
            hint = f'; if that is gone, wait {LEFT_BEHIND // 60} minutes or remove {self.path}'
            raise SystemExit(
                f'{self.path.parent} is in use by {describe(holder)}: wait until it ends'
                f'{self.hint}{hint if elsewhere else ""}'
            )

    def lock(self, file: BinaryIO) -> bool:
        """Try to lock the file. False if another process has locked it."""
        try:
            if os.name == 'nt':
                import msvcrt

                file.seek(FAR)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            self.works = False
            print(
                f'{self.path} cannot be locked on this file system ({error.strerror}): '
                f'a second run in {self.path.parent} would not be noticed; start none'
            )
        return True

    def renew(self) -> None:
        """Write host, process and time, always the same number of bytes: no reader sees half."""
        facts = dict(host=platform.node(), process=os.getpid(), time=round(time()))
        with self.mutex:
            if not self.released.is_set():
                self.file.seek(0)
                self.file.write(json.dumps(facts).encode() + b'\n')
                self.file.truncate()

    def keep_renewing(self) -> None:
        """The thread that renews the time."""
        while not self.released.wait(RENEWED):
            with suppress(OSError):  # the disk is out of reach: try again in a minute
                self.renew()

    def release(self) -> None:
        """Remove the file, then unlock it: in between no other process can have locked it."""
        with self.mutex:
            if self.released.is_set():
                return
            self.released.set()
            if os.name == 'nt':  # an open file cannot be removed there, not even another process's
                self.file.close()
            with suppress(OSError):  # the folder may be gone
                if os.name == 'nt' or is_file_at(self.file, self.path):
                    self.path.unlink()
            self.file.close()
        atexit.unregister(self.release)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()


def read_holder(file: BinaryIO) -> dict:
    """Host, process and time in a lock file; {} for a new or damaged one."""
    file.seek(0)
    try:
        found = json.loads(file.read(1000))
        kinds = dict(host=str, process=int, time=float)
        return {name: kind(found[name]) for name, kind in kinds.items()}
    except (ValueError, TypeError, KeyError):
        return {}


def describe(holder: dict) -> str:
    return f'process {holder["process"]} on {holder["host"]}' if holder else 'another process'


def is_file_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
