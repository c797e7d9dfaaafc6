"""What reaches a terminal, and what is read from one."""

import ctypes.util
import importlib.util
import io
import sys

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


@pytest.mark.parametrize(
    'text, expected',
    [
        ('é 你🌍', 'é 你🌍'),
        ('\x1b[2J\x07\t\n', r'\x1b[2J\x07\t\n'),
        ('\x9b \u202e \ufeff', r'\x9b \u202e \ufeff'),
    ],
)
def test_visible_spells_what_cannot_be_printed(text, expected):
    assert console.visible(text) == expected


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    assert console.wants_colour(Terminal())
    assert not console.wants_colour(io.StringIO())
    assert not console.wants_colour(None)  # what sys.stdout is where it was closed
    monkeypatch.setenv('NO_COLOR', '1')
    assert not console.wants_colour(Terminal())


# -----------------------------------------------------------------------------
# a message, as a program reads it from a real terminal

READER = """
import sys
import console

if sys.argv[1] == 'none':
    sys.modules['readline'] = None  # importing it is an ImportError
if sys.argv[1] == 'libedit':  # stands for a Python that was built with it
    import builtins, ctypes, ctypes.util, types

    libedit = ctypes.CDLL(ctypes.util.find_library('edit'))
    libedit.rl_initialize()
    libedit.readline.restype = ctypes.c_char_p
    bind = lambda line: libedit.rl_parse_and_bind(line.encode())
    readline = types.SimpleNamespace(__doc__='... using libedit readline', parse_and_bind=bind)
    sys.modules['readline'] = readline
    builtins.input = lambda symbol='': libedit.readline(symbol.encode()).decode()
console.enable_line_editing()
while True:
    print(ascii(console.read_message('> ')), flush=True)
"""
PASTED = b'\x1b[200~one\r\rtwo\r  three\x1b[201~'  # as terminals send it, in the mode for it


@pytest.mark.parametrize('editing', ['readline', 'libedit', 'none'])
def test_a_pasted_text_is_one_message(in_terminal, editing):
    if editing == 'readline' and not importlib.util.find_spec('readline'):
        pytest.skip('this Python has no readline')
    if editing == 'libedit' and not ctypes.util.find_library('edit'):
        pytest.skip('no libedit')
    terminal = in_terminal([sys.executable, '-c', READER, editing])
    for typed, expected in [
        (b'hi', 'hi'),
        (PASTED, 'one\n\ntwo\n  three'),
        (b'see ' + PASTED + b' and ' + PASTED, 'see one\n\ntwo\n  three and one\n\ntwo\n  three'),
        (b'bye', 'bye'),
    ]:
        assert terminal.read(b'> ').endswith(console.PASTE_ON.encode())
        terminal.type(typed + b'\r')
        terminal.read(console.PASTE_OFF.encode())  # after each, so also where the program ends
        assert terminal.read(b'\r\n') == ascii(expected).encode()


@pytest.mark.parametrize('stdin', [b'\xef\xbb\xbfone\r\ntwo', b'one\ntwo\n'])
def test_piped_lines_are_messages(monkeypatch, capsys, stdin):
    """And Windows' byte order mark is no part of the first."""
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(stdin), encoding='utf-8'))
    assert [console.read_message(''), console.read_message('')] == ['one', 'two']
    assert capsys.readouterr().out == ''  # a pipe is not told to mark what is pasted


def test_a_terminal_that_knows_no_modes_is_left_alone(monkeypatch, capsys):
    monkeypatch.setenv('TERM', 'dumb')
    monkeypatch.setattr('sys.stdin', Terminal('one\n'))
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    assert console.read_message('> ') == 'one' and capsys.readouterr().out == '> '
