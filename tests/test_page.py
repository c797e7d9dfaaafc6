"""
chat.html in Debian's Chromium, over serve.py. The model in the box answers; where the text matters
to the byte, a model whose weights spell it does.
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import PATIENCE, ROOT, environment_of

import checkpoint
from conversation import SPECIAL
from model import GPT, GPTConfig
from tokenizer import train_bpe

PAGE = ROOT / 'chat.html'
STORY = 'Tell me a story about Mia and a ball.'
SUM = 'Ben has 12 apples and buys 7 more. How many apples does he have now?'
MARKUP = '<img src=x onerror=alert(9)></script>'
KEY = 'secret'
slow = pytest.mark.slow


def test_the_policy_allows_the_script_of_the_page():
    page = PAGE.read_text(encoding='utf-8')
    (script,) = re.findall('<script>(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall("script-src '(.*?)'", page)
    assert policy == f'sha256-{digest}', f"chat.html has changed: write 'sha256-{digest}' there"


def test_the_page_is_one_file_that_makes_no_html():
    page = PAGE.read_text(encoding='utf-8')
    assert not re.findall('https?:|@import|<(?:img|iframe|link(?! rel="icon" href="data:,"))', page)
    sinks = 'innerHTML|outerHTML|insertAdjacentHTML|document.write|DOMParser|eval|srcdoc|Function'
    assert not re.findall(rf'\b(?:{sinks})\b', page)


# -----------------------------------------------------------------------------
# servers and pages


# serve.py, whose engine stands still after as many tokens as a file says, until the file is gone
HELD = """
import pathlib, runpy, sys, time, engine
file = pathlib.Path(sys.argv.pop(1))
step = engine.Engine.step
done = 0

def allowed():
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None

def held_step(self):
    global done
    while allowed() is not None and done >= allowed():
        time.sleep(0.01)
    events = step(self)
    done = 0 if allowed() is None else done + bool(events)
    return events

engine.Engine.step = held_step
runpy.run_path('serve.py', run_name='__main__')
"""


class Site:
    """serve.py in a process of its own. held(3): its engine writes three tokens, then stands
    still until the end of the block."""

    def __init__(self, folder, *args):
        self.file = folder / 'held'
        self.args = [str(self.file), '--temperature=0', *args]
        self.port = 0

    def start(self):
        command = [sys.executable, '-c', HELD, *self.args, f'--port={self.port}']
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, env=environment_of({}), text=True
        )
        return self

    @contextmanager
    def held(self, tokens):
        self.file.write_text(str(tokens))
        yield
        self.file.unlink()

    @property
    def url(self):
        if not self.port:  # the first line on stdout names it
            self.port = int(self.process.stdout.readline().rpartition(':')[2])
        return f'http://127.0.0.1:{self.port}/'

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def write_parrot(folder):
    """
    A model that says 你好🌍, calls 12*3, and says the markup. The next token depends on the last
    one alone: each has a dimension of its own in the embedding and in the head. An answer may also
    begin with '?', half as likely, and is then complete.
    """
    # 1) The chain of tokens. With 30 merges none occurs twice, and 你 and 好 are two odd halves
    text = '你好🌍', MARKUP
    tokenizer = train_bpe(text * 3, vocab_size=256 + 30 + len(SPECIAL), special=SPECIAL)
    special = {name.strip('<|>'): i for name, i in tokenizer.special.items()}
    call = [special['python_start'], *tokenizer.encode('12*3'), special['python_end']]
    first = [special['assistant_start'], *tokenizer.encode(text[0]), *call]
    then = [special['output_end'], *tokenizer.encode(text[1]), special['assistant_end']]
    (other,) = tokenizer.encode('?')
    links = [*zip(first, first[1:]), *zip(then, then[1:]), (other, special['assistant_end'])]
    assert len(dict(links)) == len(links)

    # 2) Its weights
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=128, n_layer=1, n_head=1, n_embd=64
    )
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for dimension, (token, following) in enumerate(links):
            model.transformer.wte.weight[token, dimension] = 1.0
            model.lm_head.weight[following, dimension] = 1.0
        model.lm_head.weight[other, 0] = 0.5
    state = dict(model=model.state_dict(), model_config=vars(config), stage='sft', step=1)
    checkpoint.save(folder / 'ckpt.pt', dict(state, tokenizer=tokenizer.to_dict(), config={}))


@pytest.fixture(scope='module')
def sites(oracle, tmp_path_factory):
    """(the model in the box, the parrot with an API key)"""
    oracle('fastapi')
    oracle('uvicorn')
    folders = tmp_path_factory.mktemp('box'), tmp_path_factory.mktemp('parrot')
    box = Site(folders[0], f'--out_dir={ROOT / "assets" / "tinyworld.pt"}').start()
    write_parrot(folders[1])
    parrot = Site(folders[1], f'--out_dir={folders[1]}', f'--api_key={KEY}').start()
    yield box, parrot
    box.kill()
    parrot.kill()


@pytest.fixture(scope='module')
def browser(oracle):
    playwright = oracle('playwright.sync_api')
    path = shutil.which('chromium')
    if path is None:
        message = 'the page was not tested: chromium is missing (apt-get install chromium)'
        pytest.fail(message) if os.environ.get('CI') == 'true' else pytest.skip(message)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@contextmanager
def tabs(browser, url, count=1, **settings):
    """Tabs of one browser profile at this address. No script may fail, and none may be injected:
    that of the markup would open a dialog."""
    context = browser.new_context(**settings)
    context.set_default_timeout(1000 * PATIENCE)
    pages = [context.new_page() for _ in range(count)]
    faults = []
    for page in pages:
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.on('dialog', lambda dialog: faults.append(dialog.message))
        page.goto(url)
    yield pages
    context.close()
    assert faults == []


@pytest.fixture
def page(browser, sites):
    with tabs(browser, sites[0].url) as (page,):
        yield page


def send(page, text):
    page.get_by_label('Message', exact=True).fill(text)
    page.keyboard.press('Enter')


def ask(page, text, number=0):
    """Send a message and wait for the end of its answer. number: that of the turn."""
    send(page, text)
    finished(page, number)
    return answer(page, number)


def finished(page, number=0):
    page.locator('.turn').nth(number).get_by_role('button', name='Regenerate').wait_for()


def answer(page, number=0):
    return page.locator(f'#answer-{number}').inner_text()


def see(page, text, selector='body'):
    page.locator(selector, has_text=text).first.wait_for()


def chips(page):
    return page.locator('#inside .chips > .chip').all_inner_texts()


# -----------------------------------------------------------------------------
# what users do


@slow
def test_an_answer_streams_with_its_tool_call(browser, sites):
    """The page asks for the key. Half a character is never shown, and markup is text."""
    with tabs(browser, sites[1].url) as (page,):
        page.get_by_label('--api_key').fill(KEY)
        page.get_by_role('button', name='Use it').click()
        see(page, 'stage sft', '#model')
        with sites[1].held(1):
            send(page, MARKUP)
            see(page, '你', '#answer-0')
            assert answer(page) == '你'  # its first token has a byte of the next character too
        finished(page)
        assert re.sub(r'\s+', ' ', answer(page)) == f'你好🌍12*3 = 36{MARKUP}'
        assert page.locator('.call').inner_text() == '12*3 = 36'
        assert page.locator('.question').inner_text().endswith(MARKUP)

        # in the token view and in the list of chats too
        page.locator('#look').click()
        assert ''.join(chips(page)).replace('·', ' ').count(MARKUP) == 1
        page.get_by_role('button', name='Chats').click()
        assert page.locator('#list .title').inner_text() == MARKUP
        assert page.locator('img').count() == 0 and page.locator('script').count() == 1

        # another beginning, which the parrot ends at once
        page.keyboard.press('Escape')
        page.locator('#inside .chip').first.click()
        page.locator('#choice button', has_text='?').click()
        see(page, '2 of 2')
        assert answer(page) == '?' and chips(page) == ['?', '<|assistant_end|>']


@slow
def test_stop_ends_the_answer_and_go_on_continues_it(page, sites):
    with sites[0].held(6):
        send(page, STORY)
        see(page, 'A story', '#answer-0')
        page.get_by_role('button', name='Stop').click()
        see(page, 'Stopped.', '.notice')
        cut = answer(page)
        page.reload()
        assert answer(page) == cut
    page.get_by_role('button', name='Go on').click()
    page.locator('.notice').wait_for(state='detached')
    finished(page)
    assert answer(page).startswith(cut) and len(answer(page)) > 2 * len(cut)


@slow
def test_regenerate_and_edit_lose_nothing(page):
    first = ask(page, 'Who are you?')
    assert 'Pip' in first
    page.get_by_role('button', name='Regenerate').click()
    see(page, '2 of 2')
    finished(page)
    page.get_by_role('button', name='Version 2 of 2').click()
    see(page, '1 of 2')
    assert answer(page) == first
    assert '19' in ask(page, SUM, 1) and page.locator('.call').inner_text() == '12+7 = 19'

    page.get_by_role('button', name='Edit').first.click()
    page.get_by_label('Edit the message').fill('How do you spell river?')
    page.keyboard.press('Enter')
    see(page, 'r-i-v-e-r', '#answer-0')
    finished(page)
    assert page.locator('.turn').count() == 1

    page.get_by_role('button', name='Chats').click()
    page.get_by_role('button', name='Who are you?', exact=True).click()
    assert page.locator('.turn').count() == 2 and answer(page) == first


@slow
def test_tokens_have_alternatives_and_one_can_be_picked(page):
    ask(page, STORY)
    page.get_by_role('button', name='Tokens').last.click()
    before = chips(page)
    assert ''.join(before).replace('·', ' ') == answer(page) + '<|assistant_end|>'

    # the arrow keys lead to the third token, Enter shows what else could have stood there
    page.locator('#inside .chip').first.focus()
    for key in ('ArrowRight', 'ArrowRight', 'Enter'):
        page.keyboard.press(key)
    rows = page.locator('#choice li button')
    assert rows.count() == 5
    labels = [row.get_attribute('aria-label') for row in rows.all()]
    assert all(re.search(r' \d+(\.\d)? %| < 0.1 %', label) for label in labels)
    assert ', taken' in labels[0]
    picked = rows.nth(1).locator('.chip').inner_text()
    rows.nth(1).click()
    see(page, '2 of 2')
    finished(page)
    after = chips(page)
    assert after[:3] == [*before[:2], picked] and after != before
    assert page.locator('#inside .picked').inner_text() == picked

    # the loss mask: what the assistant says is underlined, the rest is not
    page.get_by_role('button', name='Who says what').click()
    page.locator('.speech').last.wait_for()
    assert page.locator('#inside .said').all_inner_texts() == after
    everything = chips(page)
    assert everything[:2] == ['<|bos|>', '<|user_start|>'] and everything[-len(after) :] == after

    shown = answer(page)
    page.reload()
    assert answer(page) == shown


@slow
def test_marks_become_nodes_and_the_rest_stays_text(page):
    shown = """text => formatted(text).map(
        node => node.tagName ? `[${node.tagName}]${node.textContent}` : node).filter(Boolean)"""
    for text, expected in (
        ('3*4*5 = 60, a * b * c', ['3*4*5 = 60, a * b * c']),
        ('*so* and **so**!', ['[EM]so', ' and ', '[STRONG]so', '!']),
        ('`**x**`', ['[CODE]**x**']),
        ('see:\n```py\nx = `1`\n```\nend', ['see:\n', '[PRE]x = `1`', 'end']),
        ('```\nunfinished\n\n y', ['[PRE]unfinished\n\n y']),
        ('<b>no</b> &amp;', ['<b>no</b> &amp;']),
    ):
        assert page.evaluate(shown, text) == expected


@slow
def test_two_tabs_do_not_mix_their_chats(browser, sites):
    with tabs(browser, sites[0].url, count=2) as (one, two):
        # 1) A chat each, at the same time
        for tab, question in ((one, 'Who are you?'), (two, SUM)):
            send(tab, question)
        for tab in (one, two):
            finished(tab)
        texts = answer(one), answer(two)
        for tab in (one, two):
            tab.reload()
        assert (answer(one), answer(two)) == texts and 'Pip' in texts[0] and '19' in texts[1]

        # 2) The same chat in both: what one of them adds, the other shows
        two.get_by_role('button', name='Chats').click()
        two.get_by_role('button', name='Who are you?', exact=True).click()
        assert answer(two) == texts[0]
        ask(two, 'How do you spell river?', 1)
        see(one, 'r-i-v-e-r', '#answer-1')

        # 3) Both add to it at once: one of them goes on with a copy
        with sites[0].held(6):
            send(one, STORY)
            see(one, 'A story', '#answer-2')
            see(two, 'Another tab is writing', '.notice')
            send(two, SUM)
            see(two, SUM, '.turn >> nth=3')
        finished(one, 2)
        finished(two, 3)
        assert answer(one, 2).startswith('A story') and '19' in answer(two, 3)
        one.get_by_role('button', name='Chats').click()
        assert one.locator('#list .title').all_inner_texts().count('Who are you?') == 2


@slow
def test_a_long_chat_says_what_the_model_no_longer_sees(page):
    for number in range(6):
        ask(page, SUM, number)
    see(page, 'the model no longer sees what is above', '.line')
    assert page.locator('.turn.unseen').count() > 0


@slow
def test_a_dead_server_is_reported_until_it_is_back(page, sites):
    ask(page, 'Who are you?')
    sites[0].kill()
    send(page, SUM)
    see(page, 'python serve.py', '#banner')
    sites[0].start()
    page.locator('#banner').wait_for(state='hidden')
    page.get_by_role('button', name='Try again').click()
    see(page, '12+7 = 19', '.call')


@slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_fits_a_phone_and_every_control_has_a_name(browser, sites, scheme):
    size = dict(width=390, height=844)
    with tabs(browser, sites[0].url, viewport=size, color_scheme=scheme) as (page,):
        ask(page, SUM)
        page.get_by_role('button', name='Tokens').last.click()
        for name in ('Who says what', 'Probabilities'):
            page.get_by_role('button', name=name).click()
            assert page.evaluate('document.documentElement.scrollWidth') <= 390
        nameless = """() => [...document.querySelectorAll('button, input, textarea')].filter(
            e => !(e.textContent || e.getAttribute('aria-label') || e.labels?.length)).length"""
        assert page.evaluate(nameless) == 0
        shades = """() => ['color', 'backgroundColor'].map(
            name => +getComputedStyle(document.body)[name].match(/\\d+/)[0])"""
        ink, paper = page.evaluate(shades)
        assert (ink < paper) == (scheme == 'light')
        page.get_by_label('Theme').select_option('light' if scheme == 'dark' else 'dark')
        assert page.evaluate(shades) != [ink, paper]
