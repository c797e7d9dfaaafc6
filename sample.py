"""
Complete a prompt with a trained model, or chat with it in the terminal.

    $ python sample.py                                             # the newest checkpoint under out/ or out-*/
    $ python sample.py --out_dir=out-shakespeare-char --start="To be" --num_samples=5
    $ python sample.py --start=FILE:prompt.txt --temperature=0     # the likeliest continuation, no chance
    $ python sample.py --chat                                      # /help lists what can be done in it
    $ printf 'hi\\nwho are you?\\n' | python sample.py --chat      # each line is a message; the answers on stdout

Texts go to stdout, remarks to stderr. The samples are made in one batch; the first is shown as it comes.
Where there is no checkpoint yet, the small model that ships with the repository is taken.
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

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import checkpoint
import console
import evaluate
import runtime
from configurator import configure
from conversation import Chat
from engine import Engine, Sampling
from tokenizer import Tokenizer
from tools import calculate

# What to complete, and with which model
init_from = 'resume'  # resume: a checkpoint of this project's; the only choice so far
out_dir = ''  # the folder of ckpt.pt, or of best.pt if there is one, or a .pt file; '' is the newest of out/, out-*/
chat = False  # a conversation in the terminal in place of a continuation; plain --chat will do
system = ''  # for the chat: a text that stands before everything said, and is never forgotten
start = '\n'  # the prompt, plain text whatever it spells; FILE:prompt.txt reads it from a file
num_samples = 3  # continuations, each from a random stream of its own
max_new_tokens = 500  # of each, or of an answer, if the model does not end it before; a text may exceed the context

# How a token is drawn
temperature = 0.8  # below 1 bolder, above 1 wilder, 0 always the likeliest token; with --chat it is 0.3 if not given
top_k = 200  # only the k likeliest tokens; 0 is all
top_p = 1.0  # only the likeliest tokens that together reach this probability; 1 is all
seed = 1337  # the same seed gives the same samples

# The machine
device = 'auto'  # auto, cpu, cuda, cuda:1, mps
dtype = 'auto'  # auto, float32, bfloat16, float16, float64
compile = False  # torch.compile the model: pays for long texts on a GPU only


def derive(settings: dict, explicit: frozenset) -> dict[str, tuple]:
    """An answer is to be right, a text is to be new."""
    return {'temperature': (0.3, 'the default of --chat')} if settings['chat'] else {}


console.set_up(must_finish=False)
config = configure(globals(), derive, ['--chat=True' if given == '--chat' else given for given in sys.argv[1:]])

IN_THE_BOX = Path(__file__).resolve().parent / 'assets' / 'tinyworld.pt'  # what quickstart.sh made


def find_checkpoint() -> Path:
    """The one to take: of out_dir, else the newest, else the model in the box."""
    if init_from != 'resume':
        raise SystemExit(f"init_from is '{init_from}', expected 'resume'; a trained model's folder is --out_dir=FOLDER")
    if not out_dir and checkpoint.newest() is None and IN_THE_BOX.exists():
        print('no checkpoint under out/ or out-*/: taking the model in the box', file=sys.stderr)
        return IN_THE_BOX
    return evaluate.find(out_dir)


def load_engine(device: str, dtype: str) -> tuple[Engine, dict]:
    """The engine of a checkpoint, said by name, that can chat if it is to; and the checkpoint."""
    path = find_checkpoint()
    model, tokenizer, state = evaluate.load(path, device, dtype)
    hint = '' if chat or state['stage'] == 'pretrain' else '; it has learned to answer: --chat'
    line = f'{path}: stage {state["stage"]}, step {state["step"]}; on {device}, {dtype}{hint}'
    print(console.printable(line), file=sys.stderr)
    try:
        form = Chat(tokenizer) if chat else None
    except SystemExit as error:
        raise SystemExit(f'{path} cannot chat, {error}; or complete a text: leave out --chat') from None
    if chat and state['stage'] == 'pretrain':
        mend = f'train it on, --stage=sft --init_from={path.parent}, or take the --out_dir of a later stage'
        raise SystemExit(f'{path} is of stage pretrain, it has not learned to answer; {mend}')
    compiled, why = runtime.choose_compile(compile, device)
    if compiled:
        model.compile(dynamic=True)  # the number of rows and the cache's width change all the time
    elif compile:
        print(f'not compiled: {why}', file=sys.stderr)
    return Engine(model, tokenizer, form, calculate if chat else None), state


# -----------------------------------------------------------------------------
# a text


def read_prompt(tokenizer: Tokenizer) -> list[int]:
    """The ids of `start`, which begins a document where the tokenizer has a <|bos|>."""
    text = start
    if start.startswith('FILE:'):
        try:
            path = os.path.expanduser(start.removeprefix('FILE:'))
            text = Path(path).read_text(encoding='utf-8-sig')  # a byte order mark is no text
        except (OSError, ValueError) as error:
            raise SystemExit(f'--start={start}: the prompt cannot be read ({error})') from error
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        raise SystemExit(f'--start={start}: {error}') from error
    if tokenizer.bos is not None:
        return [tokenizer.bos, *ids]
    if not ids:
        raise SystemExit('start is empty, expected at least one character: this tokenizer has no <|bos|> to begin with')
    return ids


def complete(engine: Engine, prompt: list[int], sampling: Sampling) -> Iterator[tuple[int, str, bool]]:
    """Yield (sample, what its text grew by, whether that was all), the samples in turns.

    A text that fills the model's context goes on from the last half of it. (nanoGPT moves its window by one token each
    time; with a cache every token would then cost a whole context.)
    """
    context = engine.model.config.block_size
    half = max(1, context // 2)
    made = [[] for _ in range(num_samples)]  # new ids
    decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in made]  # a character may span two contexts
    running = {}

    def ask(sample: int, ids: list[int]):
        done = len(made[sample])
        fresh = replace(sampling, seed=(seed, done))  # else every context would draw the same numbers again
        running[engine.submit(ids, max_new_tokens - done, fresh, number=sample)] = sample

    if len(prompt) > context:
        print(f'the prompt has {len(prompt)} tokens: the model sees the last {half} of them', file=sys.stderr)
    for sample in range(num_samples):
        ask(sample, prompt if len(prompt) <= context else prompt[-half:])
    said = False
    while running:
        for event in engine.step():
            sample = running[event.request]
            made[sample] += event.ids
            if event.finish_reason:
                del running[event.request]
            if event.finish_reason == 'context':
                ask(sample, (prompt + made[sample])[-half:])
                if not said:
                    print(f'the context of {context} tokens is full: going on from the last {half}', file=sys.stderr)
                said = True
            ended = event.finish_reason in ('stop', 'length')
            yield sample, decoders[sample].decode(engine.tokenizer.decode_bytes(event.ids), final=ended), ended


def show(beginning: str, pieces: Iterator[tuple[int, str, bool]]):
    """Print the samples one after the other, the first that is not complete as it grows."""
    unshown = [beginning] * num_samples
    over = [False] * num_samples
    current = 0
    for sample, text, ended in pieces:
        unshown[sample] += text
        over[sample] = ended
        while current < num_samples:
            print(console.printable(unshown[current]), end='', flush=True)
            unshown[current] = ''
            if not over[current]:
                break
            print('\n---------------')
            current += 1


# -----------------------------------------------------------------------------
# a chat

COMMANDS = {
    '/reset': 'forget what was said and begin anew',
    '/save [FILE]': 'append the conversation to FILE (chats.jsonl): a line that data/custom/prepare.py reads',
    '/quit': 'leave, as Ctrl-D does (on Windows Ctrl-Z and Enter); Ctrl-C ends the answer only',
}


def remark(text: str):
    print(f'({text})', file=sys.stderr, flush=True)


@contextmanager
def ctrl_c() -> Iterator[list]:
    """A list, empty until Ctrl-C is pressed: an exception in the middle of a step would leave half a row behind."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def between(part: str, following: str) -> str:
    """What is printed where an answer goes over to its next part: a call is shown as [12*3=36], dimmed."""
    if part == following:
        return ''
    dim, plain = ('\033[2m', '\033[0m') if console.wants_colour(sys.stdout) and sys.platform != 'win32' else ('', '')
    ending = ']' + plain if part != 'text' and following != 'output' else ''
    return ending + {'text': '', 'python': dim + '[', 'output': '='}[following]


class Talk:
    """A conversation in the terminal. messages: all of it; seen: what of it still fits into the model's context."""

    def __init__(self, engine: Engine, sampling: Sampling):
        self.engine, self.sampling, self.context = engine, sampling, engine.model.config.block_size
        self.reset()
        shortest = len(engine.chat.prompt([*self.messages, {'role': 'user', 'content': ''}]))
        if shortest >= self.context:
            raise SystemExit(f'system takes {shortest} tokens and the model sees {self.context}, say it shorter')

    def reset(self):
        self.messages = [{'role': 'system', 'content': system}] if system else []
        self.seen = list(self.messages)

    def turn(self, text: str):
        """The user's message and the answer to it. A message beyond the context is refused and leaves no trace."""
        asked, form = {'role': 'user', 'content': text}, self.engine.chat
        answer_room = min(max_new_tokens, self.context // 2)  # what is remembered must leave room for an answer
        seen = form.fit([*self.seen, asked], self.context - answer_room)
        prompt = form.prompt(seen)
        if len(prompt) >= self.context:
            remark(f'sorry, that makes {len(prompt)} tokens and the model sees at most {self.context}: say it shorter')
            return
        if forgotten := (len(self.seen) + 1 - len(seen)) // 2:  # a message and its answer each
            remark(f'the model sees {self.context} tokens: forgot our oldest turns, {forgotten} of them')
        parts = form.parts(self.answer(prompt))
        said = parts if any(part['type'] != 'text' for part in parts) else ''.join(part['text'] for part in parts)
        answer = {'role': 'assistant', 'content': said}
        self.seen = [*seen, answer]
        self.messages += [asked, answer]

    def answer(self, prompt: list[int]) -> list[int]:
        """Print the answer as it comes, up to its end or Ctrl-C; its ids."""
        ids, part, reason = [], 'text', None
        fresh = replace(self.sampling, seed=(seed, len(self.messages)))  # else every answer draws the same numbers
        with ctrl_c() as pressed, closing(self.engine.stream(prompt, max_new_tokens, fresh)) as events:
            for event in events:
                ids += event.ids
                print(between(part, event.part) + console.printable(event.text), end='', flush=True)
                part, reason = event.part, event.finish_reason
                if pressed:
                    break
        print(between(part, 'text'), flush=True)
        if reason != 'stop':
            cut = {'length': f'cut at --max_new_tokens={max_new_tokens}', 'context': 'cut: the context is full'}
            remark(cut.get(reason, 'stopped'))
        return ids

    def save(self, path: Path):
        if path.suffix.lower() != '.jsonl':
            return remark(f'{path}: expected a name that ends in .jsonl')
        if not any(message['role'] == 'user' for message in self.messages):
            return remark('nothing was said yet')
        try:
            with open(path, 'a', encoding='utf-8', newline='\n') as file:
                file.write(json.dumps({'messages': self.messages}, ensure_ascii=False) + '\n')
        except OSError as error:
            return remark(f'{path} cannot be written ({error.strerror})')
        remark(f'appended to {path}')

    def hear(self, text: str):
        """A message or a command. A text of several lines is a message."""
        command, _, argument = text.partition(' ')
        if '\n' in text:
            self.turn(text)
        elif command == '/reset':
            self.reset()
            remark('a new conversation')
        elif command == '/save':
            self.save(Path(os.path.expanduser(argument.strip() or 'chats.jsonl')))
        elif command.startswith('/'):
            beginning = [] if command == '/help' else [f'there is no {command}, but']
            print(*beginning, *(f'  {name:14}{what}' for name, what in COMMANDS.items()), sep='\n', file=sys.stderr)
        elif text:
            self.turn(text)

    def hold(self):
        """Until /quit or the end of the input. Piped input has no prompt symbol in its way."""
        sys.stdin.reconfigure(errors='replace')  # what is no UTF-8 could not be saved
        symbol = '> ' if sys.stdin.isatty() else ''
        while True:
            try:
                text = console.read_message(symbol).strip()
                if text == '/quit':
                    return
                self.hear(text)
            except KeyboardInterrupt:
                print(file=sys.stderr)
                remark('Ctrl-C ends an answer; to leave: /quit or Ctrl-D')
            except EOFError:
                print(end='\n' if symbol else '')
                return


def introduce(about: dict):
    """What the model knows and what to ask it, as the data of its stage says."""
    if 'about' in about:
        print(textwrap.fill(console.printable(about['about']), 100), file=sys.stderr)
    for prompt in about.get('prompts', []):
        print(f'  {console.printable(prompt)}', file=sys.stderr)
    remark('/help lists what else can be typed; /quit leaves')


def main():
    if num_samples < 1 or max_new_tokens < 1:
        raise SystemExit(f'num_samples is {num_samples}, max_new_tokens is {max_new_tokens}, expected at least 1 each')
    try:
        sampling = Sampling(temperature, top_k, top_p, seed)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    where = runtime.choose_device(device)
    number_type, _ = runtime.choose_dtype(dtype, where)
    runtime.set_up(where, runtime.Ranks(), deterministic=False)
    engine, state = load_engine(where, number_type)
    if chat:
        introduce(state.get('about') or {})
        console.enable_line_editing()
        with runtime.autocast(number_type, where):
            Talk(engine, sampling).hold()
        return
    prompt = read_prompt(engine.tokenizer)
    try:
        with runtime.autocast(number_type, where):
            show(engine.tokenizer.decode(prompt), complete(engine, prompt, sampling))
    except KeyboardInterrupt:
        print()
        raise SystemExit(130) from None


if __name__ == '__main__':
    main()
