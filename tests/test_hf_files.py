"""The files of a Hugging Face folder: a damaged one is refused in one line, before it is used."""

import json
import shutil
import struct

import pytest
from conftest import one_line
from random_models import same_model

import checkpoint
import pretrained
from hf_files import WEIGHTS


def with_header(change):
    """A change of the header of model.safetensors, {tensor: {dtype, shape, data_offsets}}."""

    def edit(folder):
        content = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack('<Q', content[:8])
        header = json.loads(content[8 : 8 + length])
        header = change(header) or header
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        new = struct.pack('<Q', len(text)) + text + content[8 + length :]
        (folder / WEIGHTS).write_bytes(new)

    return edit


def with_bytes(change):
    return lambda f: (f / WEIGHTS).write_bytes(change((f / WEIGHTS).read_bytes()))


def entry(name, **more):
    return with_header(lambda header: header[f'model.{name}.weight'].update(more))


def sharded(**files):
    """An index of shards instead of one file; shard.safetensors is the whole one."""

    def edit(folder):
        (folder / WEIGHTS).rename(folder / 'shard.safetensors')
        index = folder / 'model.safetensors.index.json'
        index.write_bytes(json.dumps(dict(weight_map=files)).encode())

    return edit


def pickled(folder):
    (folder / WEIGHTS).rename(folder / 'pytorch_model.bin')


@pytest.mark.parametrize('change, words', [
    (with_bytes(lambda x: x[:5]), ['header', '5']),
    (with_bytes(lambda x: b''), ['header']),
    (with_bytes(lambda x: x[:200]), ['header']),
    (with_bytes(lambda x: struct.pack('<Q', 2**63) + x[8:]), ['header of 9223372036854775808']),
    (with_bytes(lambda x: struct.pack('<Q', 3) + x[8:]), ['no JSON']),
    (with_bytes(lambda x: x[:-1]), ['bytes, expected']),
    (with_bytes(lambda x: x + b'0'), ['bytes, expected']),
    (with_header(lambda header: b'[1]'), ['no JSON object']),
    (with_header(lambda header: b'[' * 10**5), ['no JSON object']),
    (entry('norm', data_offsets=[0, 128]), ['overlap']),
    (entry('norm', data_offsets=[-128, 0]), ['norm', 'size']),
    (entry('norm', data_offsets=[2**70, 2**70 + 128]), ['overlap', 'gap']),
    (entry('norm', shape=[33]), ['norm', 'size']),
    (entry('norm', shape=[-4, -8]), ['norm', 'size']),
    (entry('norm', shape=7), ['norm', 'damaged']),
    (entry('norm', dtype='F8_E4M3'), ['norm', 'F8_E4M3']),
    (entry('norm', dtype='I32'), ['norm', 'I32']),
    (entry('norm', dtype=[]), ['norm']),
    (with_header(lambda header: {'\x1b[2J': 1}), ['damaged']),
    (lambda folder: (folder / WEIGHTS).unlink(), [WEIGHTS, 'download']),
    (pickled, ['pytorch_model.bin', 'pickle', 'save_pretrained']),
    (sharded(a='shard.safetensors', b='two.safetensors'), ['two.safetensors', 'missing']),
    (sharded(a='../model/shard.safetensors'), ['../model/shard.safetensors', 'beside']),
    (sharded(a='/etc/passwd'), ['/etc/passwd']),
    (sharded(a='C:x.safetensors'), ['C:x']),
    (sharded(a=3), ['weight_map']),
    (lambda folder: (folder / 'tokenizer.json').unlink(), ['tokenizer.json']),
    (lambda folder: (folder / 'tokenizer.json').write_bytes(b'{'), ['tokenizer.json']),
    (lambda folder: (folder / 'config.json').write_bytes(b'{'), ['config.json', 'JSON']),
    (lambda folder: (folder / 'config.json').write_bytes(b'[]'), ['config.json', 'JSON']),
    (lambda folder: (folder / 'config.json').unlink(), ['config.json', 'Hugging Face']),
])  # fmt: skip
def test_wrong_files(refused, change, words):
    refused(change, *words)


def test_shards_are_read(good_folder, tmp_path):
    shutil.copytree(good_folder, tmp_path, dirs_exist_ok=True)
    sharded(everything='shard.safetensors')(tmp_path)
    same_model(
        checkpoint.load(good_folder / 'config.json'), checkpoint.load(tmp_path / 'config.json')
    )


def test_without_the_extra_the_command_that_installs_it_is_named(good_folder, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'safetensors.torch', None)
    with pytest.raises(SystemExit) as stop:
        pretrained.read(good_folder)
    one_line(stop, "pip install '.[hf]'")
