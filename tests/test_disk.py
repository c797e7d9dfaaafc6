"""disk.py: files replaced whole or not at all, and folders held by one process."""

import errno
import json
import os
import platform
import signal
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, one_line

import disk


def test_replacing_writes_the_whole_file_under_the_new_name_last(tmp_path, monkeypatch):
    """fsync comes after the last byte and before the rename: else a power cut leaves an empty
    file of the new name."""
    events, path = [], tmp_path / 'ä b' / 'file'
    path.parent.mkdir()
    path.write_bytes(b'old')
    fsync, replace = os.fsync, Path.replace

    def note_fsync(number):
        events.append(('fsync', os.fstat(number).st_size, path.read_bytes()))
        fsync(number)

    def note_replace(self, target):
        events.append(('replace', self.stat().st_size, path.read_bytes()))
        return replace(self, target)

    monkeypatch.setattr(os, 'fsync', note_fsync)
    monkeypatch.setattr(Path, 'replace', note_replace)
    with disk.replacing(path) as file:
        file.write(b'new ')
        file.write(b'content')
        assert path.read_bytes() == b'old'
    assert events == [('fsync', 11, b'old'), ('replace', 11, b'old')]
    assert path.read_bytes() == b'new content'
    assert [p.name for p in path.parent.iterdir()] == ['file']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize('there', [True, False])
def test_replacing_leaves_what_was_there_if_anything_fails(tmp_path, error, there):
    path = tmp_path / 'file'
    if there:
        path.write_bytes(b'old')
    raised = SystemExit if error is OSError else error  # one line for the user
    with pytest.raises(raised), disk.replacing(path) as file:
        file.write(b'half')
        raise error
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == (
        [('file', b'old')] if there else []
    )


@pytest.mark.parametrize('number, hint', [
    (errno.ENOSPC, 'free some space'),
    (errno.EROFS, 'can be written'),
    (errno.EACCES, 'can be written'),
])  # fmt: skip
def test_a_disk_that_takes_nothing_is_one_line(tmp_path, monkeypatch, number, hint):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / 'file'
    path.write_bytes(b'old')
    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(SystemExit) as stop, disk.replacing(path) as file:
        file.write(b'new')
    one_line(stop, path, os.strerror(number), hint)
    monkeypatch.setattr(Path, 'write_bytes', refuse)
    with pytest.raises(SystemExit) as stop:
        disk.try_writing(path)
    one_line(stop, path, os.strerror(number), hint)
    monkeypatch.undo()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('file', b'old')]


def test_a_path_that_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / 'file').write_bytes(b'content')
    (tmp_path / 'folder').mkdir()
    for name in ('file', 'new', 'folder/new'):
        disk.try_writing(tmp_path / name)
    for name in ('no/folder/x.json', 'file/x.json', 'folder'):
        with pytest.raises(SystemExit) as stop:
            disk.try_writing(tmp_path / name)
        one_line(stop, tmp_path / name)
        with pytest.raises(SystemExit) as stop, disk.replacing(tmp_path / name) as file:
            file.write(b'content')
        one_line(stop, tmp_path / name)
    left = {p.name: p.is_file() and p.read_bytes() for p in tmp_path.rglob('*')}
    assert left == {'file': b'content', 'folder': False}


@pytest.mark.skipif(os.name == 'nt', reason='no FIFO')
def test_a_device_is_never_replaced(tmp_path):
    """Root could replace /dev/null, for which a FIFO stands here."""
    os.mkfifo(tmp_path / 'null')
    for write in (disk.try_writing, lambda path: disk.replacing(path).__enter__()):
        with pytest.raises(SystemExit) as stop:
            write(tmp_path / 'null')
        one_line(stop, tmp_path / 'null', 'not a regular file')
    assert (tmp_path / 'null').is_fifo()


# ---- a lock on a folder


def eventually(condition):
    """Wait for what another thread or process is about to do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def forged(path, **changes):
    """A lock file that some process has left behind."""
    facts = dict(host=platform.node(), process=2**22 + 1, time=time.time()) | changes
    path.write_text(json.dumps(facts), encoding='utf-8')


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_folder_is_locked_until_its_process_is_killed(tmp_path):
    path = tmp_path / 'run.lock'
    child = os.fork()
    if child == 0:
        try:
            disk.Lock(path)
            signal.pause()
        finally:
            os._exit(1)
    try:
        eventually(lambda: path.exists() and path.read_bytes().endswith(b'\n'))
        with pytest.raises(SystemExit) as stop:
            disk.Lock(path)
        one_line(stop, tmp_path, f'process {child} on {platform.node()}', '--out_dir')
        assert json.loads(path.read_bytes())['process'] == child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with disk.Lock(path) as lock:
        assert lock.works and json.loads(path.read_bytes())['process'] == os.getpid()
    assert not path.exists()


def test_another_host_has_five_minutes_to_renew_its_lock(tmp_path, capsys):
    path = tmp_path / 'run.lock'
    for age in (-30, 0, 250):  # clocks differ
        forged(path, host='elsewhere', time=time.time() - age)
        with pytest.raises(SystemExit) as stop:
            disk.Lock(path)
        one_line(stop, tmp_path, f'process {2**22 + 1} on elsewhere', f'remove {path}')
        assert json.loads(path.read_bytes())['host'] == 'elsewhere'
    assert capsys.readouterr().out == ''
    forged(path, host='elsewhere', time=time.time() - 301)
    disk.Lock(path).release()
    assert f'{path} was left behind by process {2**22 + 1} on elsewhere' in capsys.readouterr().out
    for content in (b'', b'{"host"', b'5', b'{"host": 1, "process": null, "time": 2}'):
        path.write_bytes(content)
        disk.Lock(path).release()
    forged(path)  # a process of this host that has no lock is gone
    disk.Lock(path).release()
    assert capsys.readouterr().out == '' and not path.exists()


def test_the_time_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, 'RENEWED', 0.01)
    with disk.Lock(tmp_path / 'run.lock') as lock:
        forged(lock.path, time=0)
        with open(lock.path, 'rb') as file:
            eventually(lambda: disk.read_holder(file).get('time'))
            holder = disk.read_holder(file)
    assert (holder['host'], holder['process']) == (platform.node(), os.getpid())


@pytest.mark.skipif(os.name == 'nt', reason='flock')
def test_a_lock_file_removed_between_open_and_lock_is_not_taken(tmp_path, monkeypatch):
    """Whoever locks a file that its owner has removed has locked nothing."""
    import fcntl

    path, flock, seen = tmp_path / 'run.lock', fcntl.flock, []

    def remove_first(file, how):
        if not seen:
            path.unlink()
        seen.append(os.fstat(file.fileno()).st_ino)
        flock(file, how)

    monkeypatch.setattr(fcntl, 'flock', remove_first)
    with disk.Lock(path):
        assert len(seen) == 2 and path.stat().st_ino == seen[1]
    path.write_bytes(b'')
    lock = disk.Lock(path)
    path.unlink()
    path.write_bytes(b'of another run')
    lock.release()
    assert path.read_bytes() == b'of another run'


@pytest.mark.skipif(os.name == 'nt', reason='flock')
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with disk.Lock(tmp_path / 'run.lock') as lock:
        assert not lock.works
    said = capsys.readouterr().out
    assert said.count('\n') == 1
    assert f'{tmp_path / "run.lock"} cannot be locked on this file system' in said
    forged(tmp_path / 'run.lock', host='elsewhere')
    with pytest.raises(SystemExit, match='elsewhere'):
        disk.Lock(tmp_path / 'run.lock')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_lock_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    import fcntl

    # the device is the whole machine's: another run of this test may hold its lock
    monkeypatch.setattr(fcntl, 'flock', lambda *_: None)
    (tmp_path / 'run.lock').symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left'):
        disk.Lock(tmp_path / 'run.lock')


def test_sync_asks_the_disk_and_changes_nothing(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda number: synced.append(os.fstat(number).st_ino))
    (tmp_path / 'a').write_bytes(b'content')
    disk.sync(tmp_path / 'a')
    assert (
        synced == [(tmp_path / 'a').stat().st_ino] and (tmp_path / 'a').read_bytes() == b'content'
    )


def test_lines_are_appended_after_half_a_line(tmp_path):
    path = tmp_path / 'a.jsonl'
    assert disk.read_lines(path) == []
    disk.append_line(path, {'text': 'Größe\n\u2028'})
    disk.append_line(path, {'b': 2})
    path.write_bytes(path.read_bytes() + b'{"c": ')  # killed here
    disk.append_line(path, {'d': 4})
    assert disk.read_lines(path) == [{'text': 'Größe\n\u2028'}, {'b': 2}, {'d': 4}]
    assert path.read_bytes().count(b'\n') == 4
    path.write_bytes(b'\xff\x00\n[1]\n7\n\n' + b'[' * 10**5 + b'\n{"e": 5}\r\n')
    assert disk.read_lines(path) == [{'e': 5}]
