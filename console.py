r"""
The terminal: what is safe to print, whether colours are wanted, and how a message is read.

    >>> printable('done\x1b[2J\x07')
    'done[2J'
    >>> visible('done\x1b[2J\n')
    'done\\x1b[2J\\n'
"""

import os
import re
import sys
from typing import TextIO

# C0 and C1 control characters except tab and line feed: they move the cursor, ring, or rename the window
CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f]')
# Bracketed paste: a terminal in this mode marks where a pasted text begins and ends
PASTE_ON, PASTE_OFF = '\x1b[?2004h', '\x1b[?2004l'
PASTE_BEGIN, PASTE_END = '\x1b[200~', '\x1b[201~'


def printable(text: str) -> str:
    """The text without the control characters that a model must not send to a terminal."""
    return CONTROL.sub('', text)


def visible(text: str) -> str:
    r"""The text with line breaks as \n and other characters that cannot be printed as \x1b."""
    spelled = lambda c: c if c.isprintable() else c.encode('unicode_escape').decode('ascii')
    return ''.join(map(spelled, text))


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what is written to stream: a terminal, and NO_COLOR (no-color.org) is not set."""
    return stream is not None and stream.isatty() and not os.environ.get('NO_COLOR')


def enable_line_editing() -> None:
    """Arrow keys and a history for input(), where Python has readline. Windows has them anyway."""
    try:
        import readline
    except ImportError:
        return
    # GNU readline inserts a pasted text, line breaks included, without its marks, and returns it
    # as one line. libedit does not know the marks. Quoted by ^V they stay in the line, as they do
    # without readline: see read_message.
    if 'libedit' in (readline.__doc__ or ''):
        for mark in (r'\e[200~', r'\e[201~'):
            readline.parse_and_bind(f"bind -s '{mark}' '^V{mark}'")


def read_message(symbol: str) -> str:
    """
    A line of stdin, without a byte order mark; symbol is the prompt.

    On a terminal a pasted text of several lines is one message. input() returns it whole (GNU
    readline), or line by line with the terminal's marks still in it (libedit, no readline).
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
