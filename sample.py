"""
Complete a prompt with a trained model, or chat with it in the terminal.

    $ python sample.py                                         # newest checkpoint, out/ or out-*/
    $ python sample.py --out_dir=out-shakespeare-char --start="To be" --num_samples=5
    $ python sample.py --start=FILE:prompt.txt --temperature=0 # the likeliest continuation
    $ python sample.py --init_from=gpt2-xl --start="Once"      # other weights: docs/weights.md
    $ python sample.py --chat                                  # /help lists the commands
    $ printf 'hi\\nwho are you?\\n' | python sample.py --chat  # one line per message

Texts and answers go to stdout, everything else to stderr. All samples are made in one batch; the
first is printed as it grows. Without any checkpoint it uses the small model that ships with the
repository, assets/tinyworld.pt ("the model in the box").
"""

import codecs
import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves this folder out

import console
from configurator import configure
from dialogue import Dialogue, Opened, open_engine
from engine import Engine
from sampling import Sampling
from tokenizer import Tokenizer

# What to complete, and with which model
init_from = 'resume'  # resume: the one in out_dir; or gpt2 … gpt2-xl, hf:FOLDER, hf:owner/name
out_dir = ''  # folder of best.pt or ckpt.pt, or a .pt file; '' is the newest of out/, out-*/
chat = False  # a conversation in the terminal, not a continuation; --chat alone is enough
system = ''  # with --chat: text that begins the conversation, and is never dropped
start = '\n'  # the prompt, as plain text; FILE:prompt.txt reads it from a file
num_samples = 3  # continuations, each from its own random stream
max_new_tokens = 500  # most tokens of a continuation or answer; may exceed the context

# How the next token is drawn
temperature = 0.8  # lower is safer, higher more varied, 0 the likeliest token; 0.3 with --chat
top_k = 200  # keep the k likeliest tokens; 0 keeps all
top_p = 1.0  # keep the likeliest tokens that reach this probability together; 1 keeps all
seed = 1337  # the same seed gives the same samples

# The machine
device = 'auto'  # auto, cpu, cuda, cuda:1, mps
dtype = 'auto'  # auto, float32, bfloat16, float16, float64
compile = False  # torch.compile the model; pays off for long texts on a GPU only


def derive(settings: dict, explicit: frozenset) -> dict[str, tuple]:
    """--chat lowers the temperature: an answer should be right, a continuation should be new."""
    return {'temperature': (0.3, 'the default of --chat')} if settings['chat'] else {}


console.set_up(must_finish=False)
arguments = ['--chat=True' if given == '--chat' else given for given in sys.argv[1:]]
config = configure(globals(), derive, arguments)


def note(text: str):
    """A line on stderr that is not part of the conversation."""
    print(f'({text})', file=sys.stderr, flush=True)


def open_model() -> Opened:
    """The model that the settings name. With --chat, SystemExit for one that cannot chat."""
    if init_from != 'resume' and out_dir:
        raise SystemExit(f"init_from is '{init_from}' and out_dir is '{out_dir}', expected one")
    name = out_dir if init_from == 'resume' else init_from
    opened = open_engine(name, device, dtype, compile)
    if chat and opened.why_no_chat:
        raise SystemExit(f'{opened.why_no_chat}; or complete a text: leave out --chat')
    if not chat and not opened.why_no_chat:
        note('it has learned to answer: --chat')
    return opened


# -----------------------------------------------------------------------------
# a continuation


def read_prompt(tokenizer: Tokenizer) -> list[int]:
    """The ids of `start`, after <|bos|> if the tokenizer has one. SystemExit if there are none."""
    # 1) The text
    text = start
    if start.startswith('FILE:'):
        try:
            path = os.path.expanduser(start.removeprefix('FILE:'))
            text = Path(path).read_text(encoding='utf-8-sig')  # without a byte order mark
        except (OSError, ValueError) as error:
            raise SystemExit(f'--start={start}: the prompt cannot be read ({error})') from error
    # 2) Its ids
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        raise SystemExit(f'--start={start}: {error}') from error
    if tokenizer.bos is not None:
        return [tokenizer.bos, *ids]
    if not ids:
        raise SystemExit(
            'start is empty, expected at least one character: this tokenizer has no <|bos|> '
            'to begin with'
        )
    return ids


def complete(
    engine: Engine, prompt: list[int], sampling: Sampling
) -> Iterator[tuple[int, str, bool]]:
    """
    Yield (number of a sample, its new text, whether it is complete). All samples grow together.

    When a text fills the model's context, its last half becomes the next prompt. (nanoGPT moves
    its window by one token each time. With a cache each token would then cost a whole context.)
    """
    context = engine.model.config.block_size
    half = max(1, context // 2)
    made = [[] for _ in range(num_samples)]  # ids after the prompt
    # one decoder per sample: a character may span two contexts
    decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in made]
    running = {}  # request: number of its sample

    def submit(sample: int, ids: list[int]):
        done = len(made[sample])
        # another seed for each context: with one seed all would draw the same numbers
        fresh = replace(sampling, seed=(seed, done))
        request = engine.submit(ids, max_new_tokens - done, fresh, number=sample)
        running[request] = sample

    # 1) Start all samples
    if len(prompt) > context:
        print(
            f'the prompt has {len(prompt)} tokens: the model sees the last {half} of them',
            file=sys.stderr,
        )
    for sample in range(num_samples):
        submit(sample, prompt if len(prompt) <= context else prompt[-half:])

    # 2) Step until all are complete
    noted = False
    while running:
        for event in engine.step():
            sample = running[event.request]
            made[sample] += event.ids
            if event.finish_reason:
                del running[event.request]
            if event.finish_reason == 'context':
                submit(sample, (prompt + made[sample])[-half:])
                if not noted:
                    print(
                        f'the context of {context} tokens is full: continuing from the last {half}',
                        file=sys.stderr,
                    )
                noted = True
            is_complete = event.finish_reason in ('stop', 'length')
            new_bytes = engine.tokenizer.decode_bytes(event.ids)
            yield sample, decoders[sample].decode(new_bytes, final=is_complete), is_complete


def print_samples(beginning: str, pieces: Iterator[tuple[int, str, bool]]):
    """Print the samples one after the other, though complete() makes them together: the current one
    as it grows, those after it when their turn comes."""
    unprinted = [beginning] * num_samples
    finished = [False] * num_samples
    current = 0
    for sample, text, is_complete in pieces:
        unprinted[sample] += text
        finished[sample] = is_complete
        while current < num_samples:
            print(console.printable(unprinted[current]), end='', flush=True)
            unprinted[current] = ''
            if not finished[current]:
                break
            print('\n---------------')
            current += 1


# -----------------------------------------------------------------------------
# a chat

COMMANDS = {
    '/reset': 'forget the conversation and begin a new one',
    '/save [FILE]': 'append the conversation to FILE (chats.jsonl) for data/custom/prepare.py',
    '/quit': 'leave, as Ctrl-D does (on Windows Ctrl-Z and Enter); Ctrl-C only ends an answer',
}


@contextmanager
def catch_ctrl_c() -> Iterator[list]:
    """A list that is empty until Ctrl-C is pressed. Ctrl-C raises nothing meanwhile: an exception
    could interrupt a step of the engine and leave a row half updated."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def part_marks(part: str, following: str) -> str:
    """What to print between two parts of an answer: a call is shown as [12*3=36], dimmed."""
    if part == following:
        return ''
    dim = ''
    plain = ''
    if console.wants_colour(sys.stdout) and sys.platform != 'win32':
        dim = '\033[2m'
        plain = '\033[0m'
    closing_mark = ']' + plain if part != 'text' and following != 'output' else ''
    return closing_mark + {'text': '', 'python': dim + '[', 'output': '='}[following]


class Talk(Dialogue):
    """A conversation in the terminal."""

    def print_answer(self, text: str):
        """Print the answer to the user's message, up to its end or Ctrl-C. A message that does not
        fit the context is refused with a note, and the conversation stays as it was."""
        # 1) The prompt
        try:
            stream = self.stream(text)
        except ValueError as error:
            return note(f'your message makes {error}: write a shorter one')
        if self.dropped:
            context = self.engine.context
            note(f'the context of {context} tokens is full; oldest turns dropped: {self.dropped}')

        # 2) The answer
        part = 'text'
        with catch_ctrl_c() as pressed, closing(stream) as events:
            for event in events:
                shown = console.printable(event.text)
                print(part_marks(part, event.part) + shown, end='', flush=True)
                part = event.part
                if pressed:
                    break
        print(part_marks(part, 'text'), flush=True)

        # 3) Why it ended
        if self.finish_reason == 'length':
            note(f'cut at --max_new_tokens={max_new_tokens}')
        elif self.finish_reason == 'context':
            note('cut: the context is full')
        elif self.finish_reason != 'stop':
            note('stopped')

    def save(self, path: Path):
        if path.suffix.lower() != '.jsonl':
            return note(f'{path}: expected a name that ends in .jsonl')
        if not any(message['role'] == 'user' for message in self.messages):
            return note('the conversation is empty, not saved')
        try:
            with open(path, 'a', encoding='utf-8', newline='\n') as file:
                file.write(json.dumps({'messages': self.messages}, ensure_ascii=False) + '\n')
        except OSError as error:
            return note(f'{path} cannot be written ({error.strerror})')
        note(f'appended to {path}')

    def handle_line(self, text: str):
        """Follow a command, or answer a message. A text of several lines is a message."""
        command, _, argument = text.partition(' ')
        if '\n' in text:
            self.print_answer(text)
        elif command == '/reset':
            self.reset()
            note('a new conversation')
        elif command == '/save':
            self.save(Path(os.path.expanduser(argument.strip() or 'chats.jsonl')))
        elif command.startswith('/'):
            if command != '/help':
                print(f'unknown command {command}, expected one of these:', file=sys.stderr)
            for name, meaning in COMMANDS.items():
                print(f'  {name:14}{meaning}', file=sys.stderr)
        elif text:
            self.print_answer(text)

    def run(self):
        """Read lines until /quit or the end of the input. Piped input gets no prompt symbol."""
        sys.stdin.reconfigure(errors='replace')  # bytes that are not UTF-8 could not be saved
        symbol = '> ' if sys.stdin.isatty() else ''
        while True:
            try:
                text = console.read_message(symbol).strip()
                if text == '/quit':
                    return
                self.handle_line(text)
            except KeyboardInterrupt:
                print(file=sys.stderr)
                note('Ctrl-C ends an answer; to leave: /quit or Ctrl-D')
            except EOFError:
                print(end='\n' if symbol else '')
                return


def introduce(about: dict):
    """Print what the model knows and examples to ask, from the `about` of its checkpoint."""
    if 'about' in about:
        print(textwrap.fill(console.printable(about['about']), 100), file=sys.stderr)
    for prompt in about.get('prompts', []):
        print(f'  {console.printable(prompt)}', file=sys.stderr)
    note('/help lists the commands; /quit leaves')


def main():
    # 1) Settings
    if num_samples < 1 or max_new_tokens < 1:
        raise SystemExit(
            f'num_samples is {num_samples}, max_new_tokens is {max_new_tokens}, '
            'expected at least 1 each'
        )
    try:
        sampling = Sampling(temperature, top_k, top_p, seed)
    except ValueError as error:
        raise SystemExit(str(error)) from error

    # 2) Chat, or complete
    opened = open_model()
    if chat:
        introduce(opened.state.get('about') or {})
        console.enable_line_editing()
        with opened.autocast():
            Talk(opened.engine, sampling, max_new_tokens, system).run()
        return
    prompt = read_prompt(opened.engine.tokenizer)
    try:
        with opened.autocast():
            beginning = opened.engine.tokenizer.decode(prompt)
            print_samples(beginning, complete(opened.engine, prompt, sampling))
    except KeyboardInterrupt:
        print()
        raise SystemExit(130) from None


if __name__ == '__main__':
    main()
