"""
Tokenizers of other projects: Hugging Face's tokenizer.json, in and out, and the fields of a GGUF.

    table = hf_tokenizer.read('models/SmolLM2-135M-Instruct')     # for tokenizer.from_dict
    hf_tokenizer.write('out/export', tokenizer, Chat(tokenizer))  # for AutoTokenizer
    hf_tokenizer.gguf_fields(tokenizer, chat)                     # for llama.cpp

A tokenizer.json is a pipeline: a normalizer changes the text, pre-tokenizers cut it, and a model
merges each chunk. Byte-level BPE is read, with the same ids: GPT-2's, Llama 3's, Qwen's, SmolLM2's,
MiniMind's, nanochat's. Everything else is refused in one line, so that no text is encoded otherwise
than its model has learned it. Three things differ on purpose:

1) Text that spells an added token stays text.
2) No token is added around a text. sample.py and the data folders write bos themselves.
3) In ChatML, the line break after a role is encoded apart from a content that begins with blanks.

A chat template is a program in Jinja. It is not kept. It renders two short conversations, and
what it wrote around their texts says which of conversation.py's formats it is. write() writes a
template that renders what Chat renders.

Left out on purpose: SentencePiece, unigram and WordPiece models, byte_fallback, normalizers other
than NFC.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import regex

import console
import disk
import tokenizer as tokenizers
from conversation import Chat
from tokenizer import (
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    PATTERN,
    QWEN2_PATTERN,
    SMOLLM2_PATTERN,
    SPELLING,
    SPLITTABLE,
    BPETokenizer,
    ImportedTokenizer,
    Tokenizer,
    parts_before,
    spelled_bytes,
)
from utf8 import valid_text

FILE = 'tokenizer.json'
CONFIG = 'tokenizer_config.json'
DIGITS = {True: r'\p{N}|\P{N}+', False: r'\p{N}+|\P{N}+'}  # individual_digits, or runs
DIGITS_FIRST = [DIGITS[True], GPT2_PATTERN]  # the same as SMOLLM2_PATTERN, but slower
ANYTHING = r'[\s\S]+'
# Each behaviour of a Split by a pattern P, as a pattern whose matches are the parts that it leaves.
# OTHER is a character at which no P begins. Inverted, P and what is between change places
OTHER = r'(?:(?!P)[\s\S])'
BEHAVIOURS = {
    'Isolated': f'P|{OTHER}+',
    'Contiguous': f'(?:P)+|{OTHER}+',
    'MergedWithPrevious': f'{OTHER}*P|{OTHER}+',
    'MergedWithNext': f'P{OTHER}*|{OTHER}+',
    'Removed': f'{OTHER}+',
}
INVERTED = BEHAVIOURS | {
    'MergedWithPrevious': BEHAVIOURS['MergedWithNext'],
    'MergedWithNext': BEHAVIOURS['MergedWithPrevious'],
    'Removed': 'P',
}
# Patterns that llama.cpp knows by name (src/llama-vocab.cpp)
GGUF_NAMES = {
    GPT2_PATTERN: 'gpt-2',
    SMOLLM2_PATTERN: 'smollm',
    LLAMA3_PATTERN: 'llama-bpe',
    QWEN2_PATTERN: 'qwen2',
    PATTERN.replace('{1,2}', ''): 'qwen35',
}
MAX_IDS = 2**20  # the largest vocabularies known have a quarter of that
NORMAL, CONTROL = 1, 3  # kinds of tokens in a GGUF
ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>')  # tokens that end a document
# A chat template, after the lines that set the data of a format
TURNS = """{{- bos -}}
{%- if messages[0].role != 'system' -%}{{- no_system -}}{%- endif -%}
{%- for message in messages -%}
  {%- set content = message.content -%}
  {%- if content is not string and not around -%}
    {%- set content = content | join(attribute='text') -%}
  {%- endif -%}
  {%- if message.role in opening -%}
    {%- if message.role == 'assistant' and loop.last -%}
      {{- cue -}}
    {%- else -%}
      {{- opening[message.role] -}}
    {%- endif -%}
    {%- if message.role == 'system' -%}
      {{- preamble -}}
    {%- elif loop.index0 == 1 and 'system' not in opening and messages[0].role == 'system' -%}
      {%- set system = messages[0].content -%}
      {{- system if system is string else system | join(attribute='text') -}}
      {{- "\n\n" -}}
    {%- endif -%}
    {%- if content is not string -%}
      {%- for part in content -%}
        {{- around[part.type][0] ~ part.text ~ around[part.type][1] -}}
      {%- endfor -%}
    {%- elif strips -%}
      {{- content | trim -}}
    {%- else -%}
      {{- content -}}
    {%- endif -%}
    {{- closing[message.role] -}}
  {%- elif message.role != 'system' -%}
    {{- raise_exception("a message of the role " ~ message.role ~ " cannot be written") -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- cue -}}{%- endif -%}
"""


# -----------------------------------------------------------------------------
# in


def read(folder: str | Path) -> dict:
    """The table of a folder's tokenizer.json, for tokenizer.from_dict(). SystemExit, in one line,
    for a file that is damaged or holds a tokenizer that is not byte-level BPE."""
    path = Path(folder) / FILE
    document = read_json(path)
    try:
        tokenizer = build(document)
        tokenizer.chat = read_chat(tokenizer, path.parent)
    except KeyError as error:
        raise SystemExit(f'{path} is damaged: it lacks {error}') from None
    except (AttributeError, TypeError, ValueError, regex.error) as error:
        raise SystemExit(console.printable(f'{path} cannot be read: {error}')) from None
    return tokenizer.to_dict()


def read_json(path: Path) -> dict:
    try:
        found = valid_text(json.loads(path.read_bytes()))
    except OSError as error:
        hint = 'expected the folder of a Hugging Face model'
        if path.with_name('tokenizer.model').exists():
            hint = 'tokenizer.model is of SentencePiece, which is not read here'
        raise SystemExit(f'{path}: cannot read it ({error.strerror}): {hint}') from None
    except (ValueError, RecursionError) as error:
        raise SystemExit(f'{path}: not JSON ({error}): fetch it again') from None
    if not isinstance(found, dict):
        raise SystemExit(f'{path}: a JSON {type(found).__name__}, expected an object')
    return found


def build(document: dict) -> ImportedTokenizer:
    """The tokenizer of a tokenizer.json. ValueError that names what is not byte-level BPE."""
    # 1) A model that merges bytes
    model = document['model']
    if model.get('type', 'BPE') != 'BPE':
        raise ValueError(f'its model is {model["type"]!r:.40}, expected byte-level BPE')
    for name in ('dropout', 'byte_fallback', 'continuing_subword_prefix', 'end_of_word_suffix'):
        if model.get(name):
            raise ValueError(f'its {name} is {model[name]!r:.40}, expected none')
    patterns, prefix_space = read_patterns(document['pre_tokenizer'])
    normalizer = read_normalizer(document.get('normalizer'))

    # 2) Special tokens, and a name for each id that the file leaves out
    vocab = model['vocab']
    special = {}
    for token in document.get('added_tokens') or ():
        if not token.get('special') and not token['content'].strip():
            raise ValueError(f'its added token {token["content"]!r} is text, expected a name')
        special[token['content']] = token['id']
    known = {*vocab.values(), *special.values()}
    if not 0 <= min(known) <= max(known) < MAX_IDS:
        raise ValueError(f'its ids span {min(known)} to {max(known)}, expected 0 to {MAX_IDS - 1}')
    for i in sorted(set(range(max(known) + 1)) - known):
        special[f'<|unused_{i}|>'] = i

    # 3) Bytes, merges in order, and words that no merge makes
    ignore_merges = bool(model.get('ignore_merges'))
    pairs = [pair.split(' ') if isinstance(pair, str) else pair for pair in model['merges']]
    byte_ids = [None if c in special else vocab.get(c) for c in SPELLING]
    if None in byte_ids and model.get('unk_token'):
        raise ValueError(f'it has no id for some bytes and {model["unk_token"]!r} for unknown text')
    halves = choose_merges(pairs, ignore_merges)
    taken = {*SPELLING, *special, *halves}
    words = {name: i for name, i in vocab.items() if name not in taken}
    check_words(words, halves, ignore_merges)
    ids = [vocab[name] for name in halves]
    return ImportedTokenizer(
        patterns[-1],
        [(vocab[left], vocab[right]) for left, right in halves.values()],
        special,
        byte_ids,
        ids=[] if ids == sorted(ids) else ids,
        words=words,
        splits=patterns[:-1],
        normalizer=normalizer,
        prefix_space=prefix_space,
        ignore_merges=ignore_merges,
    )


def choose_merges(
    pairs: Sequence[tuple[str, str]], ignore_merges: bool
) -> dict[str, tuple[str, str]]:
    """
    {piece: its two halves}, in the order of merging.

    A file may list several pairs for a piece: Llama 3's lists all of them. At most one can occur,
    the one that all earlier merges leave. tokenizer.py needs no more than that one, because it
    merges any two ids whose joined bytes are a piece. ValueError if that would give other ids.
    """
    # 1) The rank of each piece is that of its first pair
    listed = {}
    for left, right in pairs:
        listed.setdefault(left + right, []).append((left, right))
    ranks = {spelled_bytes(piece): rank for rank, piece in enumerate(listed)}

    # 2) The pair that earlier merges leave
    halves = {}
    for rank, (piece, options) in enumerate(listed.items()):
        parts = parts_before(spelled_bytes(piece), rank, ranks)
        spelled = tuple(''.join(SPELLING[byte] for byte in part) for part in parts)
        if spelled in options:
            halves[piece] = spelled
        elif not ignore_merges:
            raise ValueError(f'its merges do not make {piece!r} of {" + ".join(options[0])}')
    return halves


def check_words(words: dict[str, int], halves: dict, ignore_merges: bool) -> None:
    """ValueError for a word that tokenizer.py would make of two pieces, inside a chunk too."""
    ranks = {spelled_bytes(piece): rank for rank, piece in enumerate(halves)}
    for word in words if ignore_merges else ():
        if len(parts_before(spelled_bytes(word), len(ranks), ranks)) == 2:
            raise ValueError(f'{word!r} is a word, but no merge')


def read_normalizer(normalizer: dict | None) -> str:
    """'NFC' or ''. ValueError for any other."""
    if not normalizer:
        return ''
    if normalizer['type'] == 'Sequence':
        names = [read_normalizer(step) for step in normalizer['normalizers']]
        return max(names, default='')
    if normalizer['type'] != 'NFC':
        raise ValueError(f'its normalizer is {normalizer["type"]!r:.40}, expected NFC or none')
    return 'NFC'


def read_patterns(step: dict | None) -> tuple[list[str], bool]:
    """(patterns that cut a text one after the other, whether a blank comes first) of a
    pre-tokenizer. ValueError for one that patterns cannot say."""
    # 1) ByteLevel comes last, because it spells the text in another alphabet
    *cuts, last = flatten(step) or [{'type': None}]
    if last['type'] != 'ByteLevel':
        raise ValueError(f'its pre-tokenizer is {last["type"]!r:.40}, expected ByteLevel')
    prefix_space = last.get('add_prefix_space', True)
    if prefix_space and cuts:
        raise ValueError('its pre-tokenizer puts a blank before each part, expected none')

    # 2) The cuts before it, and its own
    patterns = [cut_pattern(cut) for cut in cuts]
    if last.get('use_regex', True):
        patterns.append(GPT2_PATTERN)
    if patterns == DIGITS_FIRST:
        patterns = [SMOLLM2_PATTERN]
    return patterns or [ANYTHING], prefix_space


def flatten(step: dict | None) -> list[dict]:
    """The pre-tokenizers of a Sequence, also of Sequences in it."""
    if step and step['type'] == 'Sequence':
        return [inner for part in step['pretokenizers'] for inner in flatten(part)]
    return [step] if step else []


def cut_pattern(step: dict) -> str:
    """A Split or Digits as a pattern whose matches are the parts that it leaves."""
    # 1) The pattern P
    if step['type'] == 'Digits':
        return DIGITS[step['individual_digits']]
    if step['type'] != 'Split':
        raise ValueError(f'its pre-tokenizer has {step["type"]!r:.40}, expected Split or Digits')
    ((kind, pattern),) = step['pattern'].items()
    pattern = re.escape(pattern) if kind == 'String' else pattern
    outside = re.sub(r'\\[^wWbB]|\[.*?(?<!\\)\]', '', pattern)
    unlike = re.search(r'\\.|[$^]', outside) or re.search(r'\\[wW]', pattern)
    if unlike:  # each engine has its own ends of lines and letters of words
        raise ValueError(f'its pattern {pattern!r:.80} has {unlike[0]}, with another meaning here')

    # 2) The parts
    behaviour = step['behavior']
    if behaviour == 'Isolated' and pattern in SPLITTABLE:  # it leaves out nothing
        return pattern
    template = (INVERTED if step.get('invert') else BEHAVIOURS)[behaviour]
    if template != 'P':
        pattern = template.replace('P', f'(?:{pattern})')
    try:
        tokenizers.check_pattern(pattern)
    except SystemExit as error:
        raise ValueError(f'its {error}') from None
    return pattern


# -----------------------------------------------------------------------------
# in: the chat template


def read_chat(tokenizer: Tokenizer, folder: Path) -> dict:
    """
    tokenizer.chat of a folder: what its chat template writes besides the format that the special
    tokens name. {}, with a note, if the template is none of our formats.
    """
    # 1) Is there a template, and a format?
    template, names = read_template(folder)
    if template is None:
        return {}
    try:
        chat = Chat(tokenizer)
    except SystemExit:
        return note(folder, 'its chat template is of no format that is known here: it cannot chat')

    # 2) What is around the texts of two conversations?
    asked = [ask('system', 'user'), ask('user', 'assistant', 'user')]
    try:
        render = renderer(template, names)
        rendered = [render(messages) for messages in asked]
    except ValueError as error:
        return note(folder, f'its chat template fails ({error}): {chat.format.name} without it')
    found = find_texts(chat, *rendered)

    # 3) Does Chat write the same with that?
    tokenizer.chat = found
    chat = Chat(tokenizer)
    if [spell(tokenizer, chat.prompt(messages)) for messages in asked] != rendered:
        return note(folder, f'its chat template is not {chat.format.name}, which is used instead')
    return found


def note(folder: Path, text: str) -> dict:
    print(console.printable(f'{folder}: {text}'), file=sys.stderr)
    return {}


def ask(*roles: str) -> list[dict]:
    """A conversation in which each role says its name."""
    return [{'role': role, 'content': f'({role})'} for role in roles]


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids as text, special tokens by name."""
    names = {i: name.encode('utf-8') for name, i in tokenizer.special.items()}
    pieces = [names.get(i) or tokenizer.decode_bytes([i]) for i in ids]
    return b''.join(pieces).decode('utf-8', 'replace')


def find_texts(chat: Chat, with_system: str, without: str) -> dict:
    """
    tokenizer.chat, from two conversations as a template renders them:

        <bos><opening of system><preamble>(system)… <opening of assistant><cue>
        <bos><opening of system><preamble><system>… <opening of user>(user)…
    """
    # 1) After the opening of the answer to come, and of an earlier one
    opening = {role: spell(chat.tokenizer, ids) for role, ids in chat.opening.items()}
    found = {}
    cue = with_system.rpartition(opening['assistant'])[2]
    if cue:
        found['cue'] = cue
        if opening['assistant'] + cue + '(assistant)' in without:
            found['cue_always'] = True

    # 2) Before the first text
    start = without.partition(opening['user'])[0]
    if not chat.merges_system:
        bos, _, rest = with_system.partition(opening['system'])
        preamble = rest.partition('(system)')[0]
        if preamble:
            found['preamble'] = preamble
        if start != bos:
            end = spell(chat.tokenizer, chat.closing['system'])
            turn = start.removeprefix(bos + opening['system']).removesuffix(end)
            found['system'] = turn.removeprefix(preamble)
        start = bos
    if chat.begin and not start:
        found['bos'] = False
    return found


def read_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """(the chat template, {'bos_token': … and the other tokens that it may name})."""
    path = folder / CONFIG
    config = read_json(path) if path.exists() else {}
    names = {}
    for role in ('bos_token', 'eos_token', 'pad_token', 'unk_token'):
        token = config.get(role)
        name = token.get('content') if isinstance(token, dict) else token
        if name:
            names[role] = name
    template = config.get('chat_template')
    if isinstance(template, list):  # several, by name
        template = {item['name']: item['template'] for item in template}.get('default')
    path = folder / 'chat_template.jinja'
    if path.exists():
        template = path.read_text(encoding='utf-8')
    return template, names


def renderer(template: str, names: dict[str, str]) -> Callable[[list[dict]], str]:
    """The function that renders messages and the beginning of the answer, in Jinja's sandbox, as
    transformers does. A model that can think is asked not to. ValueError if the template fails."""
    import jinja2  # torch needs it too
    import jinja2.sandbox

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
    )
    environment.globals['raise_exception'] = refuse
    given = dict(names, add_generation_prompt=True, enable_thinking=False)
    errors = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError)

    def render(messages: list[dict]) -> str:
        try:
            return environment.from_string(template).render(messages=messages, **given)
        except (jinja2.TemplateError, *errors) as error:
            raise ValueError(f'{type(error).__name__}: {error}') from None

    return render


# -----------------------------------------------------------------------------
# out


def write(folder: str | Path, tokenizer: Tokenizer, chat: Chat | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json, with chat's template
    if there is one. SystemExit for a tokenizer of characters."""
    # 1) The pipeline
    tokenizer = as_bpe(tokenizer)
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    added = [dict(id=i, content=name, **flags) for name, i in tokenizer.special.items()]
    spelled = spellings(tokenizer)
    model = {
        **dict.fromkeys(('dropout', 'unk_token', 'continuing_subword_prefix')),
        **dict(type='BPE', end_of_word_suffix=None, fuse_unk=False, byte_fallback=False),
        'ignore_merges': tokenizer.ignore_merges,
        'vocab': {name: i for i, name in enumerate(spelled)},
        'merges': merge_lines(tokenizer),
    }
    document = {
        **dict(version='1.0', truncation=None, padding=None),
        'added_tokens': sorted(added, key=lambda token: token['id']),
        'normalizer': {'type': tokenizer.normalizer} if tokenizer.normalizer else None,
        'pre_tokenizer': pre_tokenizer(tokenizer),
        'post_processor': None,
        'decoder': byte_level(),
        'model': model,
    }

    # 2) What transformers wants to know besides
    roles = special_roles(tokenizer, chat)
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,
        **roles,
        'added_tokens_decoder': {
            str(token['id']): {key: token[key] for key in ('content', *flags)} for token in added
        },
    }
    if chat:
        config['chat_template'] = template_of(chat)

    # 3) Write
    files = {FILE: document, CONFIG: config, 'special_tokens_map.json': roles}
    for name, content in files.items():
        with disk.writing(Path(folder) / name), disk.replacing(Path(folder) / name) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode('utf-8'))


def as_bpe(tokenizer: Tokenizer) -> BPETokenizer:
    if tokenizer.kind == 'gpt2':
        return tokenizers.gpt2()
    if not isinstance(tokenizer, BPETokenizer):
        raise SystemExit(
            'a tokenizer of characters cannot be exported: other programs have no such kind; '
            'train a model with --tokenizer=bpe or gpt2'
        )
    return tokenizer


def spellings(tokenizer: BPETokenizer) -> list[str]:
    """How the files of other projects spell each id. SystemExit if two ids are spelled alike."""
    names = {i: name for name, i in tokenizer.special.items()}
    spelled = []
    for i in range(tokenizer.vocab_size):
        piece = tokenizer.decode_bytes([i])
        spelled.append(names.get(i) or ''.join(SPELLING[byte] for byte in piece))
    twice = [name for name in tokenizer.special if spelled.count(name) > 1]
    if twice:
        raise SystemExit(
            f'{twice[0]!r} is a special token and a piece of text: it cannot be exported'
        )
    return spelled


def merge_lines(tokenizer: BPETokenizer) -> list[str]:
    spelled = spellings(tokenizer)
    return [f'{spelled[left]} {spelled[right]}' for left, right in tokenizer.merges]


def byte_level(use_regex: bool = True, prefix_space: bool = False) -> dict:
    return {
        'type': 'ByteLevel',
        'add_prefix_space': prefix_space,
        'trim_offsets': True,
        'use_regex': use_regex,
    }


def pre_tokenizer(tokenizer: BPETokenizer) -> dict:
    """The patterns as pre-tokenizers: the reverse of read_patterns()."""
    patterns = [*tokenizer.splits, tokenizer.pattern]
    *cuts, last = DIGITS_FIRST if patterns == [SMOLLM2_PATTERN] else patterns
    use_regex = last == GPT2_PATTERN
    if not use_regex and last != ANYTHING:
        cuts.append(last)
    names = {pattern: individual for individual, pattern in DIGITS.items()}
    steps = []
    for pattern in cuts:
        if pattern in names:
            steps.append({'type': 'Digits', 'individual_digits': names[pattern]})
            continue
        pattern = pattern.replace('(?s:.)', r'[\s\S]')  # the same in the library's engine
        if re.search(r'\(\?i?[a-hj-z]', pattern):
            raise SystemExit(f'the pattern {pattern!r:.80} has flags that other programs lack')
        split = {'type': 'Split', 'pattern': {'Regex': pattern}}
        if pattern in SPLITTABLE:
            steps.append({**split, 'behavior': 'Isolated', 'invert': False})
        else:  # keep the matches alone, in case it leaves out something
            steps.append({**split, 'behavior': 'Removed', 'invert': True})
    steps.append(byte_level(use_regex, tokenizer.prefix_space))
    return steps[0] if len(steps) == 1 else {'type': 'Sequence', 'pretokenizers': steps}


def special_roles(tokenizer: BPETokenizer, chat: Chat | None) -> dict[str, str]:
    """The special tokens that begin a document, end an answer or a document, and fill up a row."""
    names = {i: name for name, i in tokenizer.special.items()}
    roles = {}
    if tokenizer.bos is not None:
        roles['bos_token'] = names[tokenizer.bos]
        ends = [name for name in (*ENDS, roles['bos_token']) if name in tokenizer.special]
        roles['eos_token'] = roles['pad_token'] = ends[0]
    if chat:
        roles['eos_token'] = names[min(chat.stop)]
    return roles


def template_of(chat: Chat) -> str:
    """A chat template in Jinja that renders what Chat.render() and Chat.prompt() do: the format as
    data, then TURNS."""
    own = chat.tokenizer.chat
    around = {
        kind: [spell(chat.tokenizer, [i]) for i in ids] for kind, ids in chat.parts_between.items()
    }
    data = dict(
        bos=spell(chat.tokenizer, chat.head),
        opening={role: spell(chat.tokenizer, ids) for role, ids in chat.opening.items()},
        closing={role: spell(chat.tokenizer, ids) for role, ids in chat.closing.items()},
        around=around and {'text': ['', ''], **around},
        strips=chat.format.strips,
        no_system=spell(chat.tokenizer, chat.system_turn(None)),
        preamble=own.get('preamble', ''),
        cue=spell(chat.tokenizer, chat.cue),
    )
    lines = [
        f'{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n'
        for name, value in data.items()
    ]
    return ''.join(lines) + TURNS


# -----------------------------------------------------------------------------
# GGUF


def gguf_fields(tokenizer: Tokenizer, chat: Chat | None = None) -> dict:
    """{key: value} of the metadata from which llama.cpp makes the tokenizer."""
    tokenizer = as_bpe(tokenizer)
    special = set(tokenizer.special.values())
    fields = {
        'model': 'gpt2',
        'pre': gguf_name(tokenizer)[0],
        'tokens': spellings(tokenizer),
        'token_type': [CONTROL if i in special else NORMAL for i in range(tokenizer.vocab_size)],
        'merges': merge_lines(tokenizer),
        'add_bos_token': False,
        'add_eos_token': False,
    }
    fields = {f'tokenizer.ggml.{name}': value for name, value in fields.items()}
    for role, name in special_roles(tokenizer, chat).items():
        role = role.replace('pad_', 'padding_')
        fields[f'tokenizer.ggml.{role}_id'] = tokenizer.special[name]
    if chat:
        fields['tokenizer.chat_template'] = template_of(chat)
    return fields


def gguf_name(tokenizer: Tokenizer) -> tuple[str, str]:
    """(llama.cpp's name for the way in which the tokenizer cuts a text, and what it does otherwise:
    '' if nothing)."""
    tokenizer = as_bpe(tokenizer)
    name = None if tokenizer.splits else GGUF_NAMES.get(tokenizer.pattern)
    others = []
    if name is None:
        name = 'llama-bpe'
        others.append('cuts numbers, and words with combining marks, as Llama 3 does')
    if tokenizer.normalizer:
        others.append('does not normalise the text')
    if tokenizer.prefix_space:
        others.append('puts no blank before it')
    return name, 'llama.cpp ' + ', and '.join(others) if others else ''
