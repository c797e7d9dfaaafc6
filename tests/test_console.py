"""What reaches a terminal."""

import io

import pytest

import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    'text, expected',
    [
        ('plain, tab\tand\nline', 'plain, tab\tand\nline'),
        ('\x1b[2Jgone\x07', '[2Jgone'),
        ('\x9b2J and \x7f', '2J and '),
        ('你好🌍 e\u0301', '你好🌍 e\u0301'),
    ],
)
def test_printable_drops_control_characters_alone(text, expected):
    assert console.printable(text) == expected


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    assert console.wants_colour(Terminal())
    assert not console.wants_colour(io.StringIO())
    assert not console.wants_colour(None)  # what sys.stdout is where it was closed
    monkeypatch.setenv('NO_COLOR', '1')
    assert not console.wants_colour(Terminal())
