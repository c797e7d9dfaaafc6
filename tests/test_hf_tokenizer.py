"""
hf_tokenizer.py against the libraries `tokenizers`, transformers and llama.cpp: the same ids on
mixed text, in and out, and chat templates that render what Chat renders.

No real tokenizer.json is here. The oracles are small ones with the pre-tokenizers, normalizers and
flags of the real ones, trained on mixed text. Sources: transformers' Qwen2Tokenizer, the
tokenizer.json files of Llama 3, SmolLM2 and MiniMind.
"""

import functools
import json
import pickle
import random

import numpy as np
import pytest
from conftest import LINES, one_line, random_text
from test_conversation import random_messages, spell
from test_tokenizer import library

import hf_tokenizer
import tokenizer as tokenizers
from conversation import SPECIAL, Chat, Session
from tokenizer import LLAMA3_PATTERN, PATTERN, QWEN2_PATTERN, SPELLING, BPETokenizer, train_bpe

END = ['<|endoftext|>']
CHATML = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
LLAMA3 = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>']
LLAMA3 = [*LLAMA3, '<|eot_id|>']
THINK = ['<think>', '</think>']


# -----------------------------------------------------------------------------
# texts, and tokenizers of the library


@functools.cache
def code():
    return [line for text in library(200_000) for line in text.splitlines(keepends=True)]


@functools.cache
def mixed_lines(count, seed=0):
    return list(random_lines(count, seed))


def random_lines(count, seed):
    """Code, CJK, emoji, marks, control characters, blanks, numbers and contractions."""
    rng = random.Random(seed)
    ranges = [(0x4E00, 0x9FFF), (0x3041, 0x3096), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F)]
    ranges += [(0, 0x20), (0x7F, 0xA0), (0x300, 0x36F), (0x400, 0x500), (0x900, 0x97F)]
    pieces = [' ', '  ', '\n', '\n\n', '\t', '\r\n', '12345', '7', '1,000', "don't", "'S", "I'LL"]
    pieces += ['é', 'e\u0301', 'A\u030a', 'ﬁ', '½', '\u00a0', '\u3000', '<|im_end|>', '<think>']
    for _ in range(count):
        kind = rng.randrange(5)
        if kind == 0:
            yield rng.choice(code())
        elif kind == 1:
            low, high = rng.choice(ranges)
            yield ''.join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 20)))
        elif kind == 2:
            yield random_text(rng, 60)
        elif kind == 3:
            yield ''.join(rng.choice(pieces) for _ in range(rng.randint(1, 12)))
        else:
            yield ' ' * rng.randint(0, 9) + rng.choice(LINES)


def pre_tokenizers(hf):
    """{name: (pre-tokenizer, special tokens, are they first?, normalizer)}"""
    parts = hf.pre_tokenizers
    byte_level = functools.partial(parts.ByteLevel, add_prefix_space=False)

    def split(pattern):
        cut = parts.Split(hf.Regex(pattern), 'isolated')
        return parts.Sequence([cut, byte_level(use_regex=False)])

    digits = parts.Sequence([parts.Digits(individual_digits=True), byte_level()])
    runs = parts.Sequence([parts.Digits(individual_digits=False), byte_level()])
    return {
        'GPT-2': (byte_level(), END, False, None),
        'MiniMind': (byte_level(), [*CHATML, *THINK], True, None),
        'SmolLM2': (digits, CHATML, True, None),
        'Qwen3': (split(QWEN2_PATTERN), [*CHATML, *THINK], False, hf.normalizers.NFC()),
        'Llama 3': (split(LLAMA3_PATTERN), LLAMA3, False, None),
        'runs of digits': (runs, END, True, None),
        'a blank first': (parts.ByteLevel(add_prefix_space=True), ['<s>'], True, None),
        'no cuts': (byte_level(use_regex=False), ['<s>'], True, None),
    }


NAMES = ['GPT-2', 'MiniMind', 'SmolLM2', 'Qwen3', 'Llama 3', 'runs of digits', 'a blank first']
NAMES += ['no cuts']


@functools.cache
def document(name):
    """The tokenizer.json of a tokenizer that the library has trained. SmolLM2's lacks bytes that
    are not in its texts, as the real one does."""
    import tokenizers as hf

    pre_tokenizer, special, first, normalizer = pre_tokenizers(hf)[name]
    made = hf.Tokenizer(hf.models.BPE())
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer
    made.decoder = hf.decoders.ByteLevel()
    texts = mixed_lines(500, seed=1)
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    if name == 'SmolLM2':
        alphabet = []
        texts = [''.join(c for c in text if c == '\n' or ' ' <= c < '\u2000') for text in texts]
    trainer = hf.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special if first else [],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens([hf.AddedToken(token, normalized=False) for token in special])
    return json.loads(made.to_str())


def save(folder, content, **config):
    (folder / 'tokenizer.json').write_text(json.dumps(content), encoding='utf-8')
    (folder / 'tokenizer_config.json').write_text(json.dumps(config), encoding='utf-8')


def read(folder):
    return tokenizers.from_dict(hf_tokenizer.read(folder))


def library_ids(folder, texts):
    """The library's ids, where text that spells a special token stays text."""
    import tokenizers as hf

    made = hf.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    made.encode_special_tokens = True
    return [encoded.ids for encoded in made.encode_batch(texts, add_special_tokens=False)]


def assert_same_ids(folder, texts):
    """In, in bulk, out, and in again."""
    ours = read(folder)
    expected = library_ids(folder, texts)
    assert [ours.encode(text) for text in texts] == expected
    assert [ids.tolist() for ids in ours.encode_batch(texts)] == expected
    again = pickle.loads(pickle.dumps(ours))  # how it reaches a worker process
    assert [again.encode(text) for text in texts[:5]] == expected[:5]
    assert not set(ours.special.values()) & {i for ids in expected for i in ids}
    hf_tokenizer.write(folder, ours)
    assert library_ids(folder, texts) == expected
    assert read(folder).to_dict() == ours.to_dict()
    return ours


# -----------------------------------------------------------------------------
# ids


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('count', [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_ids_are_the_librarys_in_and_out(name, count, tmp_path, oracle):
    oracle('tokenizers')
    save(tmp_path, document(name))
    ours = assert_same_ids(tmp_path, mixed_lines(count))
    missing = [byte for byte in ours.byte_ids if byte is None]
    assert bool(missing) == (name == 'SmolLM2')


def size_of(content):
    ids = [*content['model']['vocab'].values(), *(t['id'] for t in content['added_tokens'])]
    return max(ids) + 1


def permuted(content):
    """Ids that are not ranks: those of the merges are shuffled."""
    vocab = content['model']['vocab']
    names = [''.join(pair) for pair in content['model']['merges']]
    ids = [vocab[name] for name in names]
    random.Random(0).shuffle(ids)
    vocab.update(zip(names, ids))


def ignores_merges(content):
    """All pairs of each piece, as Llama 3's file lists them, and words that no merge makes."""
    model = content['model']
    words = ['Citizen:', 'qzxj', 'Ġ:Ġq', 'beforeĠwe']
    size = size_of(content)
    ranks = {name: i for i, name in enumerate(''.join(pair) for pair in model['merges'])}
    known = {*ranks, *SPELLING}
    pairs = []
    for name, rank in ranks.items():
        cuts = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        pairs += [(rank, *cut) for cut in cuts if set(cut) <= known]
    model['merges'] = [f'{left} {right}' for _, left, right in sorted(pairs)]
    model['vocab'].update({word: size + i for i, word in enumerate(words)})
    model['ignore_merges'] = True


def words_without_merges(content):
    """Pieces that nothing makes, and ids that nothing has."""
    size = size_of(content)
    content['model']['vocab'].update({'qzxj': size + 3, 'First': size + 4})
    content['model']['merges'] = [
        pair for pair in content['model']['merges'] if 'First' not in ''.join(pair)
    ]


def several_pairs(content):
    """A second pair of a piece, which earlier merges do not leave."""
    merges = content['model']['merges']
    known = {''.join(pair) for pair in merges} | {*SPELLING}
    long = [''.join(pair) for pair in merges if len(''.join(pair)) > 3]
    cuts = [[name[:cut], name[cut:]] for name in long for cut in range(1, len(name))]
    more = [cut for cut in cuts if cut not in merges and set(cut) <= known]
    assert len(more) > 20
    merges += more


@pytest.mark.parametrize(
    'name, change',
    [
        ('SmolLM2', permuted),
        ('Qwen3', permuted),
        ('Llama 3', ignores_merges),
        ('MiniMind', words_without_merges),
        ('GPT-2', several_pairs),
    ],
)
def test_ids_of_unusual_tables_are_the_librarys(name, change, tmp_path, oracle):
    oracle('tokenizers')
    content = json.loads(json.dumps(document(name)))
    change(content)
    save(tmp_path, content)
    words = [text.replace('Ġ', ' ') for text in content['model']['vocab'] if len(text) > 1]
    texts = [*mixed_lines(300), 'Citizen:', 'qzxj xqzxj', ' : q', 'First', *words]
    ours = assert_same_ids(tmp_path, texts)
    assert bool(ours.words) == (change in (ignores_merges, words_without_merges))


@pytest.mark.parametrize('invert', [False, True])
@pytest.mark.parametrize(
    'behaviour',
    ['Isolated', 'Removed', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous'],
)
def test_splits_cut_as_the_librarys(behaviour, invert, tmp_path, oracle):
    oracle('tokenizers')
    split = {'type': 'Split', 'behavior': behaviour, 'invert': invert}
    cuts = [
        [{**split, 'pattern': {'Regex': r'\p{N}{1,3}'}}, {**split, 'pattern': {'String': ' '}}],
        [{**split, 'pattern': {'Regex': r'[^\s\p{L}]?\p{L}+|\s+'}}],
    ]
    for steps in cuts:
        content = dict(document('no cuts'))
        byte_level = content['pre_tokenizer']
        content['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': [*steps, byte_level]}
        save(tmp_path, content)
        assert_same_ids(tmp_path, mixed_lines(300)[:100])


def test_our_own_tables_go_out_and_come_back(tmp_path, oracle):
    oracle('tokenizers')
    texts = mixed_lines(300)[:200]
    first = train_bpe(texts, 600, SPECIAL, special_first=True)
    for ours in (
        train_bpe(texts, 600, SPECIAL),
        BPETokenizer(PATTERN, first.merges, first.special, first.byte_ids),
        train_bpe(texts, 400, SPECIAL, pattern=r'\p{L}+|\d{1,3}|[\s\S]'),
    ):
        hf_tokenizer.write(tmp_path, ours, Chat(ours))
        again = read(tmp_path)
        assert again.to_dict() == ours.to_dict() and type(again) is BPETokenizer
        assert library_ids(tmp_path, texts) == [ours.encode(text) for text in texts]


def test_gpt2s_table_is_recognised(tmp_path, monkeypatch):
    """Its hash is gpt2, as in nanoGPT's data folders."""
    table = BPETokenizer(tokenizers.GPT2_PATTERN, [(0, 1)], {'<|endoftext|>': 257})
    hf_tokenizer.write(tmp_path, table)
    digest = read(tmp_path).hash
    monkeypatch.setattr(tokenizers, 'GPT2_DIGEST', digest)
    assert read(tmp_path).hash == table.hash == 'gpt2'
    monkeypatch.setattr(tokenizers, 'gpt2', lambda: table)
    hf_tokenizer.write(tmp_path, tokenizers.GPT2Tokenizer())
    assert read(tmp_path).hash == 'gpt2'


def test_ids_above_65535_are_uint32(tmp_path):
    """Special tokens have the first 70,000 ids, so all text has larger ones."""
    special = {f'<|{i}|>': i for i in range(70_000)}
    small = train_bpe(LINES * 3, 400)
    merges = [(70_000 + left, 70_000 + right) for left, right in small.merges]
    ours = BPETokenizer(PATTERN, merges, special, range(70_000, 70_256))
    bulk = list(ours.encode_batch(LINES * 50))
    assert {ids.dtype for ids in bulk} == {np.dtype('<u4')}
    assert [ids.tolist() for ids in bulk] == [ours.encode(line) for line in LINES * 50]
    assert [i - 70_000 for i in ours.encode(LINES[1])] == small.encode(LINES[1])


# -----------------------------------------------------------------------------
# refusals


def at(*keys, value):
    """The change that sets a value in a tokenizer.json."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': True, 'use_regex': True}
SPLIT = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}


def cuts(*steps):
    steps = [*steps, {**BYTE_LEVEL, 'add_prefix_space': False}]
    return at('pre_tokenizer', value={'type': 'Sequence', 'pretokenizers': steps})


@pytest.mark.parametrize('change, words', [
    (at('model', 'type', value='Unigram'), ['Unigram', 'byte-level BPE']),
    (at('model', 'type', value='WordPiece'), ['WordPiece', 'byte-level BPE']),
    (at('model', 'byte_fallback', value=True), ['byte_fallback']),
    (at('model', 'end_of_word_suffix', value='</w>'), ['end_of_word_suffix', '</w>']),
    (at('model', 'dropout', value=0.1), ['dropout', '0.1']),
    (at('model', 'merges', value=[['Ġ', 'zz']]), ['merges', 'Ġ + zz']),
    (at('model', 'merges', value=[['Ġ']]), ['damaged|cannot be read']),
    (at('model', 'merges', value=7), ['cannot be read']),
    (at('model', 'vocab', '▁the', value=99_999), ['▁', 'spells no byte']),
    (at('model', 'vocab', 'a', value=5), ['must differ']),
    (at('model', 'vocab', 'zzz', value=2**40), ['ids']),
    (at('model', value=None), ['cannot be read']),
    (at('normalizer', value={'type': 'NFKC'}), ['NFKC', 'NFC']),
    (at('normalizer', value={'type': 'Lowercase'}), ['Lowercase']),
    (at('pre_tokenizer', value=None), ['ByteLevel']),
    (at('pre_tokenizer', value={'type': 'Metaspace'}), ['Metaspace', 'ByteLevel']),
    (cuts({'type': 'Whitespace'}), ['Whitespace']),
    (cuts({**SPLIT, 'pattern': {'Regex': r'\w+'}}), [r'\w', 'another meaning']),
    (cuts({**SPLIT, 'pattern': {'Regex': r'\s+$'}}), ['$', 'another meaning']),
    (cuts({**SPLIT, 'pattern': {'Regex': '('}}), ['(']),
    (cuts({**SPLIT, 'pattern': {'Regex': '(a)'}}), ['groups']),
    (cuts({**SPLIT, 'pattern': {'Regex': 'a'}, 'behavior': 'Odd'}), ['Odd']),
    (cuts(BYTE_LEVEL), ['ByteLevel']),
    (at('added_tokens', value=[{'id': 1, 'content': '  ', 'special': False}]), ["'  '", 'is text']),
    (at('added_tokens', value=[{'id': 'a', 'content': '<a>'}]), ['cannot be read']),
    (at('added_tokens', value=[{'content': '<a>'}]), ['damaged', 'id']),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(change, words, tmp_path, oracle):
    oracle('tokenizers')
    content = json.loads(json.dumps(document('GPT-2')))
    change(content)
    save(tmp_path, content)
    with pytest.raises(SystemExit) as stop:
        hf_tokenizer.read(tmp_path)
    one_line(stop, 'tokenizer.json', *[word for word in words if '|' not in word])


def test_missing_and_damaged_files_are_one_line(tmp_path):
    for content, words in [(None, 'cannot read it'), (b'{', 'not JSON'), (b'[1]', 'a JSON list')]:
        if content:
            (tmp_path / 'tokenizer.json').write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            hf_tokenizer.read(tmp_path)
        one_line(stop, 'tokenizer.json', words)
    (tmp_path / 'tokenizer.json').unlink()
    (tmp_path / 'tokenizer.model').write_bytes(b'')
    with pytest.raises(SystemExit) as stop:
        hf_tokenizer.read(tmp_path)
    one_line(stop, 'SentencePiece')


def test_what_cannot_be_written_is_one_line(tmp_path):
    clash = BPETokenizer(PATTERN, [(97, 98)], {'ab': 257})
    flags = train_bpe(['a'], 257, pattern='(?is:.)')
    for table, words in [
        (tokenizers.CharTokenizer('abc'), 'characters'),
        (clash, "'ab'"),
        (flags, '(?is:.)'),
    ]:
        with pytest.raises(SystemExit) as stop:
            hf_tokenizer.write(tmp_path, table)
        one_line(stop, words)
    with pytest.raises(SystemExit) as stop:
        hf_tokenizer.write(tmp_path / 'missing', train_bpe(['a'], 257))
    one_line(stop, 'missing')


# -----------------------------------------------------------------------------
# chat templates

# What the templates of other projects write, in our own words. Sources: the tokenizer_config.json
# of SmolLM2-Instruct, Qwen3, MiniMind, Llama 3 and 3.2
TURN = "{{ '<|im_start|>' + m.role + '\\n' }}"
CLOSE = "{{ m.content + '<|im_end|>\\n' }}"
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
EMPTY = "{{ '<think>\\n\\n</think>\\n\\n' }}"
LLAMA_TURN = "{{ '<|start_header_id|>' + %s + '<|end_header_id|>\\n\\n' }}"
DATED = LLAMA_TURN % "'system'" + "{{ 'Today Date: 26 Jul 2024\\n\\n' }}"
TEMPLATES = {
    'SmolLM2': (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nI am small.<|im_end|>\\n' }}"
        '{% endif %}{% for m in messages %}' + TURN + CLOSE + '{% endfor %}' + ASKS + '{% endif %}'
    ),
    'Qwen3': (
        '{% for m in messages %}' + TURN + "{% if loop.last and m.role == 'assistant' %}" + EMPTY
        + '{% endif %}' + CLOSE + '{% endfor %}' + ASKS
        + '{% if enable_thinking is false %}' + EMPTY + '{% endif %}{% endif %}'
    ),
    'MiniMind': (
        '{% for m in messages %}' + TURN + "{% if m.role == 'assistant' %}" + EMPTY + '{% endif %}'
        + CLOSE + '{% endfor %}' + ASKS + EMPTY + '{% endif %}'
    ),
    'Llama 3': (
        '{{ bos_token }}{% for m in messages %}' + LLAMA_TURN % 'm.role'
        + "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        + LLAMA_TURN % "'assistant'" + '{% endif %}'
    ),
    'Llama 3.2': (
        '{{ bos_token }}' + DATED + "{% if messages[0].role == 'system' %}"
        + "{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
        + "{{ '<|eot_id|>' }}{% for m in messages %}" + LLAMA_TURN % 'm.role'
        + "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        + LLAMA_TURN % "'assistant'" + '{% endif %}'
    ),
}  # fmt: skip
THOUGHT = '<think>\n\n</think>\n\n'
FOUND = {
    'SmolLM2': {'system': 'I am small.', 'bos': False},
    'Qwen3': {'cue': THOUGHT, 'bos': False},
    'MiniMind': {'cue': THOUGHT, 'cue_always': True, 'bos': False},
    'Llama 3': {},
    'Llama 3.2': {
        'preamble': 'Today Date: 26 Jul 2024\n\n', 'system': '',
    },
}  # fmt: skip


def imported(name, folder, template=None, **config):
    save(
        folder,
        # GPT-2's pattern, which MiniMind has, cuts the line breaks of a cue according to the text
        # after them
        document({'MiniMind': 'Qwen3', 'Llama 3.2': 'Llama 3'}.get(name, name)),
        chat_template=template or TEMPLATES[name],
        bos_token='<|begin_of_text|>' if name.startswith('Llama') else '<|im_start|>',
        **config,
    )
    return read(folder)


def plain_messages(rng, tools):
    """A conversation without control tokens. Texts begin and end with a sign: transformers encodes
    a header's line breaks together with those of the text. No two text parts are neighbours."""
    messages = random_messages(rng, tools)
    for message in messages:
        content = message['content']
        parts = [{'type': 'text', 'text': content}] if isinstance(content, str) else content
        previous = [None, *(part['type'] for part in parts)]
        parts = [
            {'type': part['type'], 'text': f'({plain(part["text"])})'}
            for part, before in zip(parts, previous)
            if (part['type'], before) != ('text', 'text')
        ]
        message['content'] = parts[0]['text'] if isinstance(content, str) else parts
    return messages


def plain(text):
    for name in sorted([*SPECIAL, *CHATML], key=len, reverse=True):
        text = text.replace(name, '')
    return text.replace('\ud800', '?')


def assert_renders_alike(theirs, chat, count=50, exact=True):
    """transformers' apply_chat_template gives chat's ids: of prompts and of whole conversations."""
    rng = random.Random(1)
    prompts = 0
    for _ in range(count):
        messages = plain_messages(rng, chat.has_tools)
        if messages[-1]['role'] == 'user':
            prompts += 1
            ids = theirs.apply_chat_template(
                messages, add_generation_prompt=True, enable_thinking=False, return_dict=False
            )
            assert ids == chat.prompt(messages)
        else:
            ids = theirs.apply_chat_template(messages, return_dict=False)
            assert ids == chat.head + chat.render(messages)[len(chat.begin) :]
    assert prompts > count // 25


@pytest.mark.parametrize('name', TEMPLATES)
def test_a_chat_template_is_recognised_and_written(name, tmp_path, oracle, capsys):
    transformers = oracle('transformers')
    ours = imported(name, tmp_path)
    assert ours.chat == FOUND[name] and capsys.readouterr().err == ''
    chat = Chat(ours)
    assert_renders_alike(transformers.AutoTokenizer.from_pretrained(tmp_path), chat, 20)
    hf_tokenizer.write(tmp_path, ours, chat)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_renders_alike(theirs, chat)
    assert read(tmp_path).to_dict() == ours.to_dict()
    assert theirs.eos_token == ('<|eot_id|>' if 'Llama' in name else '<|im_end|>')


@pytest.mark.parametrize('special', [SPECIAL, CHATML, CHATML[1:]])
def test_our_formats_are_written(special, tmp_path, oracle):
    """With calls of the calculator, and the system's text in the first user turn."""
    transformers = oracle('transformers')
    ours = train_bpe(mixed_lines(300), 500, special)
    chat = Chat(ours)
    hf_tokenizer.write(tmp_path, ours, chat)
    assert_renders_alike(transformers.AutoTokenizer.from_pretrained(tmp_path), chat)
    assert read(tmp_path).to_dict() == ours.to_dict()


def test_contents_may_be_lists_of_texts(tmp_path, oracle):
    transformers = oracle('transformers')
    messages = [
        {'role': role, 'content': [{'type': 'text', 'text': f' ({role}) '}]}
        for role in ('system', 'user', 'assistant')
    ]
    for special in (SPECIAL, CHATML, LLAMA3):
        ours = train_bpe(LINES, 400, special)
        hf_tokenizer.write(tmp_path, ours, Chat(ours))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        text = theirs.apply_chat_template(messages, tokenize=False)
        assert text == spell(ours, Chat(ours).render(messages))
        with pytest.raises(oracle('jinja2').TemplateError, match='role tool'):
            theirs.apply_chat_template([*messages[1:], {'role': 'tool', 'content': '1'}])


@pytest.mark.parametrize('template, words', [
    ('{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}', 'not ChatML'),
    (TEMPLATES['MiniMind'].replace('im_end|>', 'im_end|> '), 'not ChatML'),
    ('{{ raise_exception("no") }}', 'fails (TemplateError: no)'),
    ('{% for %}', 'fails (TemplateSyntaxError'),
    ('{{ messages.pop() }}', 'fails (SecurityError'),
    ("{{ ''.__class__.__mro__ }}", 'fails (SecurityError'),
    ('{{ 1 // 0 }}', 'fails (ZeroDivisionError'),
    ('{{ messages[9].role }}', 'fails (UndefinedError'),
])  # fmt: skip
def test_another_template_is_noted_and_not_used(template, words, tmp_path, oracle, capsys):
    oracle('tokenizers')
    assert imported('MiniMind', tmp_path, template).chat == {}
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1


def test_a_template_without_a_format_is_noted(tmp_path, oracle, capsys):
    oracle('tokenizers')
    save(tmp_path, document('GPT-2'), chat_template='{{ messages }}')
    assert read(tmp_path).chat == {}
    assert 'cannot chat' in capsys.readouterr().err


def test_the_template_may_be_a_file_or_one_of_several(tmp_path, oracle):
    oracle('tokenizers')
    several = [
        {'name': 'tool_use', 'template': '{{ 1 }}'},
        {'name': 'default', 'template': TEMPLATES['SmolLM2']},
    ]
    assert imported('SmolLM2', tmp_path, several).chat == FOUND['SmolLM2']
    (tmp_path / 'chat_template.jinja').write_text(TEMPLATES['MiniMind'], encoding='utf-8')
    assert imported('MiniMind', tmp_path, '{{ 1 }}').chat == FOUND['MiniMind']


# -----------------------------------------------------------------------------
# an imported format in conversation.py


@pytest.mark.parametrize('name', TEMPLATES)
def test_only_the_answers_are_spoken(name, tmp_path, oracle):
    """Not what the format writes before them."""
    oracle('tokenizers')
    ours = imported(name, tmp_path)
    chat = Chat(ours)
    rng = random.Random(2)
    end = chat.closing['assistant'][0]
    for _ in range(50):
        messages = plain_messages(rng, tools=False)
        ids = chat.render(messages)
        spoken = [i for i, speaks in zip(ids[1:], chat.is_spoken(ids)) if speaks]
        answers = [m['content'] for m in messages if m['role'] == 'assistant']
        assert spoken == [i for text in answers for i in [*ours.encode(text), end]]
        for piece in chat.pieces(ids, 40):
            assert set(np.array(piece[1:])[chat.is_spoken(piece)]) <= set(spoken)


@pytest.mark.parametrize('name', TEMPLATES)
def test_a_session_prompts_as_the_chat_does(name, tmp_path, oracle):
    oracle('tokenizers')
    chat = Chat(imported(name, tmp_path))
    rng = random.Random(3)
    for _ in range(20):
        messages = plain_messages(rng, tools=False)
        messages = messages if messages[-1]['role'] == 'user' else messages[:-1]
        if messages[-1]['role'] != 'user':
            continue
        session = Session(chat, messages[:-1])
        session.add(messages[-1])
        prompt, dropped = session.prompt(room=10_000)
        assert prompt == chat.prompt(messages) and not dropped
        assert chat.speakable(prompt) == chat.stop
        short, dropped = session.prompt(room=len(prompt) - 1)
        system = messages[:1] if messages[0]['role'] == 'system' else []
        if dropped:
            assert short == chat.prompt([*system, *messages[-2 * len(session.turns) + 1 :]])


# -----------------------------------------------------------------------------
# GGUF


def test_the_fields_of_a_gguf(tmp_path, oracle):
    oracle('tokenizers')
    ours = imported('Llama 3.2', tmp_path)
    fields = hf_tokenizer.gguf_fields(ours, Chat(ours))
    content = json.loads((tmp_path / 'tokenizer.json').read_text(encoding='utf-8'))
    tokens = fields['tokenizer.ggml.tokens']
    vocab = content['model']['vocab'] | {t['content']: t['id'] for t in content['added_tokens']}
    assert tokens == sorted(vocab, key=vocab.get)
    assert fields['tokenizer.ggml.merges'] == [' '.join(p) for p in content['model']['merges']]
    control = {i for i, kind in enumerate(fields['tokenizer.ggml.token_type']) if kind == 3}
    assert control == set(ours.special.values())
    assert fields['tokenizer.ggml.model'] == 'gpt2'
    assert tokens[fields['tokenizer.ggml.bos_token_id']] == '<|begin_of_text|>'
    assert tokens[fields['tokenizer.ggml.eos_token_id']] == '<|eot_id|>'
    assert tokens[fields['tokenizer.ggml.padding_token_id']] == '<|end_of_text|>'
    assert 'Today Date' in fields['tokenizer.chat_template']
    assert 'tokenizer.chat_template' not in hf_tokenizer.gguf_fields(ours)


@pytest.mark.parametrize(
    'name, expected',
    [
        ('GPT-2', ('gpt-2', '')),
        ('SmolLM2', ('smollm', '')),
        ('Llama 3', ('llama-bpe', '')),
        ('Qwen3', ('qwen2', 'llama.cpp does not normalise the text')),
        ('a blank first', ('gpt-2', 'llama.cpp puts no blank before it')),
    ],
)
def test_llama_cpps_name_of_a_pattern(name, expected, tmp_path, oracle):
    oracle('tokenizers')
    save(tmp_path, document(name))
    assert hf_tokenizer.gguf_name(read(tmp_path)) == expected


def test_our_pattern_has_no_name_in_llama_cpp():
    ours = train_bpe(LINES, 300, SPECIAL)
    name, note = hf_tokenizer.gguf_name(ours)
    assert name == 'llama-bpe' and 'cuts numbers' in note
    digits = train_bpe(LINES, 300, pattern=PATTERN.replace('{1,2}', ''))
    assert hf_tokenizer.gguf_name(digits) == ('qwen35', '')
