r"""
The terminal: streams that never fail a program, text that is safe to print, colours, and reading a
message.

    >>> printable('done\x1b[2J\x07')
    'done[2J'
    >>> visible('done\x1b[2J\n')
    'done\\x1b[2J\\n'
"""

import errno
import io
import os
import re
import sys
from typing import TextIO

# C0 and C1 control characters except tab and line feed: they move the cursor, ring, rename windows
CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f]')
# Bracketed paste: a terminal in this mode marks where a pasted text begins and ends
PASTE_ON, PASTE_OFF = '\x1b[?2004h', '\x1b[?2004l'
PASTE_BEGIN, PASTE_END = '\x1b[200~', '\x1b[201~'
NOBODY_READS = (errno.EPIPE, errno.EIO)  # the reader of a pipe has exited; a terminal has hung up
READER_LEFT = 141  # the exit status of a Unix tool that SIGPIPE ended: 128 + 13


def set_up(must_finish: bool, missing: str = 'replace') -> None:
    """
    Call first in a program: from then on a broken stdout or stderr does not fail it.

    must_finish: True for a program that writes files. When the reader of its stdout exits
    (`| head`, a closed terminal), the program continues and its output is dropped. A program that
    only prints exits quietly, with the status of a Unix tool. A second call changes only
    must_finish, for programs whose settings decide it.

    missing: the error handler of codecs for a character that the encoding of stdout lacks.

    A stream that is closed or None, as after `>&-`, is replaced by os.devnull, also stdin. A stream
    without an encoding (a notebook's, a StringIO) stays as it is.
    """
    # 1) A stdin that is closed reads as empty
    if sys.stdin is None or getattr(sys.stdin, 'closed', False):
        sys.stdin = open(os.devnull, encoding='utf-8')

    # 2) Replace a closed stdout or stderr, and wrap an open one
    for name, errors in (('stdout', missing), ('stderr', 'backslashreplace')):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, 'closed', False):
            stream = open(os.devnull, 'w', encoding='utf-8')
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
            stream = Console(stream)
            setattr(sys, name, stream)
        if isinstance(stream, Console):
            stream.must_finish = must_finish or name == 'stderr'  # results go to stdout


class Console:
    """A text stream whose reader may exit. What is written after that goes to os.devnull."""

    def __init__(self, stream: io.TextIOWrapper):
        self.stream = stream
        self.must_finish = True
        self.reader_left = False

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        # Here, not in attempt(): the interpreter's last flush comes too late for an exit
        if self.reader_left and not self.must_finish:
            raise SystemExit(READER_LEFT)
        self.attempt(self.stream.write, text)
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, action, *arguments) -> None:
        try:
            action(*arguments)
        except OSError as error:
            if error.errno in NOBODY_READS:
                self.reader_left = True
                self.drop_output()
            elif not self.must_finish:  # such as a full disk: here the output is the result
                self.drop_output()  # what is buffered would fail again when the interpreter ends
                raise SystemExit(f'{self.stream.name}: {error.strerror}') from None

    def drop_output(self) -> None:
        """Point the file descriptor at os.devnull, so that child processes and C++ code do not fail
        either."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


def printable(text: str) -> str:
    """The text without control characters, which a model must not send to a terminal."""
    return CONTROL.sub('', text)


def visible(text: str) -> str:
    r"""The text with line breaks spelled \n, an escape \x1b, and so on."""
    return ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text
    )


def wants_colour(stream: TextIO) -> bool:
    """True for a terminal, unless NO_COLOR (no-color.org) is set."""
    return stream is not None and stream.isatty() and not os.environ.get('NO_COLOR')


def enable_line_editing() -> None:
    """Arrow keys and a history for input(), where Python has readline. Windows has them anyway."""
    try:
        import readline
    except ImportError:
        return
    # GNU readline returns a pasted text as one message, line breaks included and marks removed.
    # libedit does not know the marks. Quoted by ^V they stay in the line, as they do without
    # readline; read_message removes them
    if 'libedit' in (readline.__doc__ or ''):
        for mark in (r'\e[200~', r'\e[201~'):
            readline.parse_and_bind(f"bind -s '{mark}' '^V{mark}'")


def read_message(symbol: str) -> str:
    """
    A line of stdin without a byte order mark. symbol: the prompt. EOFError at the end of input.

    On a terminal, a pasted text of several lines is one message. input() returns it whole (GNU
    readline) or line by line, with the terminal's marks still in it (libedit, no readline).
    """
    has_modes = os.environ.get('TERM', 'dumb') != 'dumb'  # not Windows' console, nor Emacs' shell
    if not (has_modes and sys.stdin.isatty() and sys.stdout.isatty()):
        return input(symbol).removeprefix('\ufeff')
    print(PASTE_ON, end='', flush=True)
    try:
        text = input(symbol)
        while text.rfind(PASTE_BEGIN) > text.rfind(PASTE_END):
            text += '\n' + input()
    finally:
        print(PASTE_OFF, end='', flush=True)
    return text.replace(PASTE_BEGIN, '').replace(PASTE_END, '').removeprefix('\ufeff')
