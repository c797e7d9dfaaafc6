"""
Open a trained model and talk to it.

    from dialogue import Dialogue

    pip = Dialogue.open()                        # the newest checkpoint, else the model in the box
    print(pip.ask('Who are you?'))
    print(pip.ask('How do you spell river?'))    # the conversation goes on

sample.py's chat is a Dialogue in a terminal. serve.py keeps no conversations: each of its requests
brings all messages, and fit() makes a prompt of them as it does here.

Left out on purpose: the terminal, HTTP.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import checkpoint
import console
import packed
import runtime
from conversation import Chat, Session
from engine import Engine, Event
from sampling import Sampling
from tokenizer import Tokenizer
from tools import calculate

IN_THE_BOX = Path(__file__).resolve().parent / 'assets' / 'tinyworld.pt'  # quickstart.sh made it
ANSWERS = Sampling(temperature=0.3, top_k=200)  # an answer should be right, not new

# -----------------------------------------------------------------------------
# a model


class Opened(NamedTuple):
    """A checkpoint's engine, and where it comes from."""

    engine: Engine  # engine.chat is None if the model cannot chat
    path: Path
    state: dict  # the checkpoint without its tensors
    device: str
    dtype: str
    why_no_chat: str  # '' if it can

    def autocast(self) -> AbstractContextManager:
        """Around all calls of the engine."""
        return runtime.autocast(self.dtype, self.device)


def find_checkpoint(out_dir: str = '') -> Path:
    """The checkpoint in out_dir, else the newest, else the model in the box."""
    if not out_dir and checkpoint.newest() is None and IN_THE_BOX.exists():
        print('no checkpoint under out/ or out-*/: taking the model in the box', file=sys.stderr)
        return IN_THE_BOX
    return checkpoint.find(out_dir)


def open_engine(
    out_dir: str = '', device: str = 'auto', dtype: str = 'auto', compile: bool = False, **limits
) -> Opened:
    """
    The model in out_dir (see find_checkpoint), ready to generate. Prints which one it is.

    It can chat if its tokenizer has a format for conversations and its stage is not pretrain.
    limits: further arguments of Engine. SystemExit of one line if there is no such model.
    """
    # 1) The machine
    device = runtime.choose_device(device)
    dtype, _ = runtime.choose_dtype(dtype, device)
    runtime.set_up(device, runtime.Ranks(), deterministic=False)

    # 2) Load and name it
    path = find_checkpoint(out_dir)
    model, tokenizer, state = checkpoint.open_model(path, device, dtype)
    line = f'{path}: stage {state["stage"]}, step {state["step"]}; on {device}, {dtype}'
    print(console.printable(line), file=sys.stderr)

    # 3) Compile it
    compiled, why_not = runtime.choose_compile(compile, device)
    if compiled:
        model.compile(dynamic=True)  # rows and the cache's width change often
    elif compile:
        print(f'not compiled: {why_not}', file=sys.stderr)

    # 4) Can it chat?
    chat, why_no_chat = chat_format(tokenizer, path, state['stage'])
    engine = Engine(model, tokenizer, chat, calculate if chat else None, **limits)
    if engine.packed:
        copies = packed.weight_bytes(model) / 2**20
        line = f'the engine copies the weights into two other orders: {copies:,.0f} MiB of memory'
        print(line, file=sys.stderr)
    return Opened(engine, path, state, device, dtype, why_no_chat)


def chat_format(tokenizer: Tokenizer, path: Path, stage: str) -> tuple[Chat | None, str]:
    """(the model's format of conversations, ''), or (None, why it cannot chat)."""
    try:
        chat = Chat(tokenizer)
    except SystemExit as error:
        return None, f'{path} cannot chat, {error}'
    if stage == 'pretrain':
        return None, (
            f'{path} is of stage pretrain, it has not learned to answer; train it further with '
            f'--stage=sft --init_from={path.parent}, or take the --out_dir of a later stage'
        )
    return chat, ''


# -----------------------------------------------------------------------------
# a conversation


def fit(session: Session, max_tokens: int, context: int) -> tuple[list[int], int]:
    """
    (ids after which the answer begins, number of turns dropped for it). Leaves room for max_tokens,
    or for half the context. ValueError if even the last message alone does not fit.
    """
    prompt, dropped = session.prompt(room=context - min(max_tokens, context // 2))
    if len(prompt) >= context:
        raise ValueError(
            f'a prompt of {len(prompt)} tokens, expected fewer than the context of {context}'
        )
    return prompt, dropped


class Dialogue:
    """
    A conversation with a model. Where it becomes longer than the context, the oldest turns are
    dropped.

        messages        the whole conversation
        session         what the model sees of it, as ids
        dropped         turns that the last question dropped
        finish_reason   of the last answer: stop | length | context, None if it was cut off
    """

    def __init__(
        self, engine: Engine, sampling: Sampling = ANSWERS, max_tokens: int = 500, system: str = ''
    ):
        self.engine = engine
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.system = system
        self.reset()
        shortest = self.session.copy()
        shortest.add({'role': 'user', 'content': ''})
        try:
            fit(shortest, max_tokens, engine.context)
        except ValueError as error:
            raise SystemExit(f'system makes {error}: shorten --system') from None

    @classmethod
    def open(cls, out_dir: str = '', device: str = 'auto', **settings) -> 'Dialogue':
        """With the model in out_dir, the newest, or the one in the box; in float32. settings as in
        Dialogue(). SystemExit if it cannot chat."""
        opened = open_engine(out_dir, device, 'float32')
        if opened.why_no_chat:
            raise SystemExit(opened.why_no_chat)
        return cls(opened.engine, **settings)

    def reset(self):
        self.messages = [{'role': 'system', 'content': self.system}] if self.system else []
        self.session = Session(self.engine.chat, self.messages)
        self.dropped = 0
        self.finish_reason = None

    def ask(self, text: str) -> str:
        """The answer to the user's message, without tool calls."""
        return ''.join(event.text for event in self.stream(text) if event.part == 'text')

    def stream(self, text: str) -> Iterator[Event]:
        """
        The events of the answer as they occur. Closing the generator ends the answer; what was said
        so far stays in the conversation.

        ValueError for a message that does not fit the context. The conversation is then unchanged,
        as it is if the engine fails.
        """
        question = {'role': 'user', 'content': text}
        session = self.session.copy()
        session.add(question)
        prompt, self.dropped = fit(session, self.max_tokens, self.engine.context)
        return self.answer(question, session, prompt)

    def answer(self, question: dict, session: Session, prompt: list[int]) -> Iterator[Event]:
        # 1) Sample. Another seed for each answer: with one all would draw the same numbers
        ids = []
        reason = None
        seed = self.sampling.seed
        seed = (*(seed if isinstance(seed, tuple) else (seed,)), len(self.messages))
        fresh = replace(self.sampling, seed=seed)
        with closing(self.engine.stream(prompt, self.max_tokens, fresh)) as events:
            try:
                for event in events:
                    ids += event.ids
                    reason = event.finish_reason
                    yield event
            except GeneratorExit:
                pass

        # 2) Keep it. The content of an answer without calls is a string
        self.finish_reason = reason
        session.add_answer(ids)
        self.session = session
        content = self.engine.chat.parts(ids)
        if all(part['type'] == 'text' for part in content):
            content = ''.join(part['text'] for part in content)
        self.messages += [question, {'role': 'assistant', 'content': content}]
