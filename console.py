"""
What reaches the terminal: text a model or a user wrote, made safe to print, and whether colours are wanted.

    >>> printable('done\x1b[2J\x07')
    'done[2J'
"""

import os
import re
from typing import TextIO

# C0 and C1 control characters except tab and line feed: they move the cursor, ring, or rename the window
CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f]')


def printable(text: str) -> str:
    """The text without the control characters that a model must not send to a terminal."""
    return CONTROL.sub('', text)


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what is written to stream: a terminal, and NO_COLOR (no-color.org) is not set."""
    return stream is not None and stream.isatty() and not os.environ.get('NO_COLOR')
