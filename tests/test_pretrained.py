"""
Weights of other projects: against transformers' own classes, the gguf package and llama.cpp.

Models are tiny and random. The oracles' tests are slow ones: importing transformers takes seconds.
"""

import dataclasses
import functools
import http.server
import io
import json
import re
import runpy
import shutil
import struct
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line

import checkpoint
import pretrained
import runtime
from conversation import CHATML, Chat
from data import download
from engine import Engine
from model import GPT, PRESETS, GPTConfig
from pretrained import WEIGHTS
from sampling import Sampling
from tokenizer import train_bpe

BOX = ROOT / 'assets' / 'tinyworld.pt'
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')[:3000]
TINY = dict(block_size=32, n_layer=2, n_head=4, n_embd=32)


@functools.cache
def tokenizer(names=('<|endoftext|>',)):
    return train_bpe([TEXT], 300, names)


def config_of(preset, **more):
    sizes = {**TINY, 'vocab_size': tokenizer().vocab_size}
    return GPTConfig(**{**sizes, **PRESETS[preset], **more})


def random_model(config, seed=0):
    """A model in which every weight matters: gains and biases are random too."""
    torch.manual_seed(seed)
    model = GPT(config)
    for p in model.parameters():
        mean, std = (0.5, 0.2) if p.ndim == 1 else (0.0, p.shape[-1] ** -0.5)
        torch.nn.init.normal_(p, mean, std)
    return model.eval()


def state_of(model, names=('<|endoftext|>',), stage='pretrain'):
    return dict(
        model=model.state_dict(), model_config=dataclasses.asdict(model.config), stage=stage,
        tokenizer=tokenizer(names).to_dict(), step=0, config={},
    )  # fmt: skip


@functools.cache
def inputs():
    return torch.randint(0, tokenizer().vocab_size, (2, 20), generator=torch.manual_seed(1))


@torch.no_grad()
def logits_of(model):
    found = model(inputs())
    return getattr(found, 'logits', found)[..., : tokenizer().vocab_size]


def close(found, expected, atol):
    """As torch.testing.assert_close, whose import takes seconds."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= atol


def same_model(state, other):
    assert state['model_config'] == other['model_config']
    assert state['model'].keys() == other['model'].keys()
    assert all(torch.equal(x, other['model'][name]) for name, x in state['model'].items())


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """program('sample.py', '--a=b') runs it in this process, in tmp_path. An error is its last line
    of stderr."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    monkeypatch.setattr(runtime, 'machine_facts', lambda device: {})  # takes half a second
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    monkeypatch.chdir(tmp_path)

    def run(name, *args):
        monkeypatch.setattr('sys.argv', [name, *map(str, args)])
        capsys.readouterr()
        status = ''
        try:
            runpy.run_path(str(ROOT / name), run_name='__main__')
        except SystemExit as stop:
            status = stop.code or ''
        finally:
            runtime.undo_changes()
        out, err = capsys.readouterr()
        return SimpleNamespace(stdout=out, stderr=err, error=status)

    yield run
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])
    if torch.are_deterministic_algorithms_enabled():  # asking costs less than setting
        torch.use_deterministic_algorithms(False)


# ---- every model of ours, out and in again

# (switches, the class that an export has, or '' for its own code)
MODELS = {
    'nano': (dict(preset='nano'), 'NanoChatForCausalLM'),
    'nano, GQA, no softcap': (dict(preset='nano', n_kv_head=2, softcap=0.0), 'NanoChatForCausalLM'),
    'nano, tied': (dict(preset='nano', tied_head=True, head_dim=16), 'NanoChatForCausalLM'),
    'gpt2': (dict(preset='gpt2', bias=True), 'GPT2LMHeadModel'),
    'gpt2, untied, no biases': (dict(preset='gpt2', tied_head=False), 'GPT2LMHeadModel'),
    'llama': (dict(preset='llama'), 'LlamaForCausalLM'),
    'llama, GQA, tied, biases': (
        dict(preset='llama', n_kv_head=2, tied_head=True, bias=True), 'LlamaForCausalLM',
    ),
    'llama, no gains, tied, a norm after the embedding': (
        dict(preset='llama', norm='rms', embed_norm=True, tied_head=True), 'LlamaForCausalLM',
    ),
    'qwen3': (dict(preset='qwen3'), 'Qwen3ForCausalLM'),
    'qwen3, GQA, untied': (
        dict(preset='qwen3', n_kv_head=2, tied_head=False, head_dim=16), 'Qwen3ForCausalLM',
    ),
    'qwen3, QK-norm without gains': (dict(preset='qwen3', qk_norm='rms'), 'Qwen3ForCausalLM'),
    'qwen3, experts': (dict(preset='qwen3', n_expert=5), 'Qwen3MoeForCausalLM'),
    'llama, experts, a shared one': (dict(preset='llama', n_expert=4, n_expert_shared=1), ''),
    'nano with biases': (dict(preset='nano', bias=True, norm='layer'), ''),
    'llama, softcap, tied': (dict(preset='llama', softcap=9.0, tied_head=True), ''),
    'gpt2, GQA': (dict(preset='gpt2', n_kv_head=2, bias=True), ''),
    'plus': (dict(preset='plus'), ''),
    'plus, learned positions': (dict(preset='plus', positions='learned', n_kv_head=2), ''),
}  # fmt: skip
FEW = ('nano', 'gpt2', 'llama, GQA, tied, biases', 'qwen3', 'qwen3, experts', 'gpt2, GQA', 'plus')


def out_and_in_again(tmp_path, model):
    pretrained.export_folder(state_of(model), tmp_path / 'a')
    found, _, state = checkpoint.open_model(tmp_path / 'a' / 'config.json', 'cpu')
    assert (state['stage'], state['step']) == ('pretrain', 0)
    close(logits_of(found), logits_of(model), 1e-5)
    # bit-stable: import, export, import
    first = checkpoint.load(tmp_path / 'a' / 'config.json')
    pretrained.export_folder(first, tmp_path / 'b')
    same_model(first, checkpoint.load(tmp_path / 'b' / 'config.json'))


@pytest.mark.parametrize('name', FEW)  # all of them below, with transformers
def test_out_and_in_again_is_the_same_model(tmp_path, name):
    out_and_in_again(tmp_path, random_model(config_of(**MODELS[name][0])))


def test_an_export_says_which_class_and_why():
    def why(**more):
        return pretrained.choose(config_of(**more))[2]

    assert why(preset='llama') == 'LlamaForCausalLM, a class of transformers'
    assert 'norms have gains of 1' in why(preset='llama', norm='rms')
    own = why(preset='nano', bias=True)
    assert 'trust_remote_code' in own and 'NanoChatForCausalLM, lacks bias=True' in own
    # with learned positions, a norm after the embedding is not part of the table
    assert 'embed_norm=True' in why(preset='gpt2', bias=True, embed_norm=True)


def test_tables_are_cut_to_the_tokenizer_and_weights_keep_their_type(tmp_path):
    """As in Qwen3, whose table has 267 rows more than its tokenizer has ids."""
    model = random_model(config_of('qwen3', vocab_size=tokenizer().vocab_size + 70))
    state = state_of(model)
    pretrained.export_folder(state, tmp_path, 'bfloat16')
    read = checkpoint.load(tmp_path / 'config.json')
    table = read['model']['transformer.wte.weight']
    assert table.dtype == torch.bfloat16 and len(table) == 320  # 300 ids, a multiple of 64
    assert read['model_config']['vocab_size'] == 300
    expected = state['model']['transformer.wte.weight'][:300].bfloat16()
    assert torch.equal(table[:300], expected) and not table[300:].any()
    found, _, _ = checkpoint.open_model(tmp_path / 'config.json', 'cpu')
    assert logits_of(found).dtype == torch.float32


def test_openai_s_names_have_no_prefix(tmp_path):
    """And their files hold the causal masks."""
    from safetensors.torch import load_file, save_file

    model = random_model(config_of('gpt2', bias=True))
    pretrained.export_folder(state_of(model), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors = {name.removeprefix('transformer.'): x for name, x in tensors.items()}
    save_file({**tensors, 'h.0.attn.bias': torch.ones(1, 1, 32, 32)}, tmp_path / WEIGHTS)
    found, _, _ = checkpoint.open_model(tmp_path / 'config.json', 'cpu')
    assert torch.equal(logits_of(found), logits_of(model))


def test_a_folder_that_holds_something_else_is_not_written_to(tmp_path):
    (tmp_path / 'thesis.tex').write_bytes(b'')
    state = state_of(random_model(config_of('llama')))
    with pytest.raises(SystemExit) as stop:
        pretrained.export_folder(state, tmp_path)
    one_line(stop, 'thesis.tex', 'another')
    with pytest.raises(SystemExit) as stop:
        pretrained.export_folder(state, tmp_path / 'a.gguf')
    one_line(stop, 'a.gguf', 'name of a folder')
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
    # an earlier export is replaced, a downloaded model is not
    pretrained.export_folder(state, tmp_path / 'model')
    pretrained.export_folder(state, tmp_path / 'model')
    config = json.loads((tmp_path / 'model' / 'config.json').read_bytes())
    del config[pretrained.MARK]
    (tmp_path / 'model' / 'config.json').write_bytes(json.dumps(config).encode())
    with pytest.raises(SystemExit) as stop:
        pretrained.export_folder(state, tmp_path / 'model')
    one_line(stop, 'config.json', 'another')


def test_numbers_beyond_float16_are_refused(tmp_path):
    state = state_of(random_model(config_of('llama')))
    state['model']['transformer.ln_f.weight'][0] = 1e5
    with pytest.raises(SystemExit) as stop:
        pretrained.export_folder(state, tmp_path, 'float16')
    one_line(stop, 'model.norm.weight', 'bfloat16')
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(tmp_path / 'config.json')  # nothing that looks complete is left
    one_line(stop, 'config.json')


# ---- bad input: one line each


@pytest.fixture(scope='module')
def good_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('good')
    pretrained.export_folder(state_of(random_model(config_of('llama'))), folder)
    return folder


@pytest.fixture
def refused(good_folder, tmp_path):
    """refused(change, *words): after change(copy of a folder), read() stops with these words."""
    folder = tmp_path / 'model'
    shutil.copytree(good_folder, folder)

    def check(change, *words):
        change(folder)
        with pytest.raises(SystemExit) as stop:
            checkpoint.load(folder / 'config.json')
        one_line(stop, *words)

    return check


@pytest.mark.parametrize('change, words', [
    (dict(model_type='mamba'), ['model_type', 'mamba', 'qwen3']),
    (
        dict(model_type='qwen3_moe', architectures=None, norm_topk_prob=False),
        ['norm_topk_prob', 'False', 'True'],
    ),
    (dict(model_type=None), ['model_type']),
    (dict(model_type=['llama']), ['model_type']),
    (dict(architectures=['LlamaForSequenceClassification']), ['SequenceClassification']),
    (dict(rope_parameters=dict(rope_type='yarn', factor=2.0)), ['rope_parameters', 'yarn']),
    (dict(rope_scaling=dict(type='linear', factor=2.0)), ['rope_scaling', 'linear']),
    (dict(rope_scaling=3), ['rope_scaling']),
    (dict(sliding_window=4096), ['sliding_window', '4096']),
    (dict(layer_types=['full_attention', 'sliding_attention']), ['layer_types']),
    (dict(attention_bias=True), ['mlp_bias', 'the same']),
    (dict(attention_bias=True, mlp_bias=True), ['lacks the tensor', 'bias']),
    (dict(hidden_act='gelu'), ['hidden_act', 'gelu']),
    (dict(quantization_config=dict(bits=4)), ['quantization_config']),
    (dict(hidden_size=None), ['hidden_size']),
    (dict(hidden_size='many'), ['hidden_size', 'many']),
    (dict(hidden_size=64), ['safetensors', 'expected', '64']),
    (dict(num_hidden_layers=10**9), ['tensors', 'layers']),
    (dict(num_hidden_layers=3), ['lacks the tensor', 'layers.2']),
    (dict(num_hidden_layers=1), ['layers.1', 'model.py lacks']),
    (dict(num_hidden_layers=True), ['num_hidden_layers']),
    (dict(max_position_embeddings=10**12), ['max_position_embeddings']),
    (dict(rms_norm_eps=float('nan')), ['rms_norm_eps']),
    (dict(vocab_size=299), ['tokenizer', '299']),
    (dict(model_type='flatgpt'), ['model_config']),
    (dict(model_type='flatgpt', model_config=dict(n_embd='a')), ['n_embd']),
])  # fmt: skip
def test_wrong_configs(refused, change, words):
    def edit(folder):
        found = json.loads((folder / 'config.json').read_bytes())
        (folder / 'config.json').write_bytes(json.dumps({**found, **change}).encode())

    refused(edit, *words)


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


# ---- names of folders, and the hub


@pytest.fixture
def hub(good_folder, tmp_path, monkeypatch):
    """A hub with the repository owner/tiny. Yields the paths that it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.path)
            name = self.path.removeprefix('/owner/tiny/resolve/main/')
            content = b''
            if self.path.startswith('/api/models/owner/tiny/tree/main'):
                files = [*good_folder.iterdir(), good_folder / 'README.md']
                content = [dict(path=p.name, size=size_of(p)) for p in files]
                content = json.dumps(content).encode()
            elif (good_folder / name).is_file():
                content = (good_folder / name).read_bytes()
            self.send_response(200 if content else 404)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def size_of(path):
        return path.stat().st_size if path.exists() else 3

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(pretrained, 'HUB_FOLDER', tmp_path / 'hub')
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_of_the_hub_is_downloaded_once(hub, good_folder):
    path = checkpoint.find('hf:owner/tiny')
    same_model(checkpoint.load(path), checkpoint.load(good_folder / 'config.json'))
    assert not any('README' in name or 'special_tokens' in name for name in hub)
    count = len(hub)
    assert checkpoint.find('hf:owner/tiny') == path and len(hub) == count


def test_without_a_network_the_folder_for_the_files_is_named(tmp_path, monkeypatch, good_folder):
    monkeypatch.setattr(pretrained, 'HUB_FOLDER', tmp_path)
    monkeypatch.setattr(download, 'sleep', lambda seconds, stop: None)
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')  # no server listens there
    folder = tmp_path / 'openai-community' / 'gpt2-xl'
    with pytest.raises(SystemExit) as stop:
        checkpoint.find('gpt2-xl')
    one_line(stop, folder, 'config.json', WEIGHTS, 'huggingface.co/openai-community/gpt2-xl')
    shutil.copytree(good_folder, folder, dirs_exist_ok=True)  # as told
    assert checkpoint.find('gpt2-xl') == folder / 'config.json'


def test_names(tmp_path, good_folder, monkeypatch):
    monkeypatch.setenv('HOME', str(good_folder.parent))
    config = good_folder / 'config.json'
    for name in (f'hf:{good_folder}', good_folder, config, f'hf:~/{good_folder.name}'):
        assert checkpoint.find(str(name)) == config
    assert checkpoint.load_tokenizer(f'hf:{good_folder}').hash == tokenizer().hash
    assert checkpoint.load_tokenizer(good_folder).hash == tokenizer().hash
    with pytest.raises(SystemExit) as stop:
        checkpoint.find('hf:no such folder')
    one_line(stop, 'no such folder', 'owner/name')
    # a run's folder stays one, even if a config.json lies in it
    (tmp_path / 'config.json').write_bytes(b'{}')
    checkpoint.save(tmp_path / 'ckpt.pt', state_of(random_model(config_of('llama'))))
    assert checkpoint.find(str(tmp_path)) == tmp_path / 'ckpt.pt'
    # the hash of a folder changes with its weights
    before = checkpoint.identity(config)['sha256']
    shutil.copytree(good_folder, tmp_path / 'other')
    with open(tmp_path / 'other' / WEIGHTS, 'r+b') as file:
        file.seek(-1, 2)
        file.write(b'\7')
    assert checkpoint.identity(tmp_path / 'other' / 'config.json')['sha256'] != before


# ---- nanoGPT's commands


@pytest.fixture
def gpt2_xl(tmp_path, monkeypatch):
    """A small GPT-2 with random weights where gpt2-xl's files belong, and GPT-2's ids as data."""
    monkeypatch.setattr(pretrained, 'HUB_FOLDER', tmp_path / 'hub')
    config = config_of('gpt2', bias=True, n_layer=1, n_embd=8, n_head=2, block_size=16)
    folder = tmp_path / 'hub' / 'openai-community' / 'gpt2-xl'
    pretrained.export_folder(state_of(random_model(config)), folder)
    return folder


def test_sampling_from_gpt2(gpt2_xl, program):
    """With the options of nanoGPT's README."""
    question = 'What is the answer to life, the universe, and everything?'
    done = program(
        'sample.py', '--init_from=gpt2-xl', f'--start={question}', '--num_samples=5',
        '--max_new_tokens=100', '--device=cpu',
    )  # fmt: skip
    assert not done.error, done.error
    assert done.stdout.count(question) == 5 == done.stdout.count('---------------')


@pytest.mark.slow
def test_evaluating_and_fine_tuning_gpt2(tmp_path, program, monkeypatch):
    """nanoGPT's data has no tokenizer: its ids are GPT-2's, and so are those of the folder, though
    it has no tokenizer.json. A shorter context crops the table of positions."""
    # 1) A model with GPT-2's vocabulary, and data
    monkeypatch.setattr(pretrained, 'HUB_FOLDER', tmp_path / 'hub')
    config = config_of('gpt2', bias=True, n_layer=1, n_embd=2, n_head=1, vocab_size=50257)
    model = random_model(config)
    for name in ('gpt2', 'gpt2-xl'):
        folder = tmp_path / 'hub' / 'openai-community' / name
        pretrained.export_folder(state_of(model), folder)
        (folder / 'tokenizer.json').unlink()
    ids = np.arange(500, dtype='<u2') * 100
    (tmp_path / 'data').mkdir()
    for split in ('train', 'val'):
        ids.tofile(tmp_path / 'data' / f'{split}.bin')
    # 2) Evaluate: the loss is the model's
    place = f'--dataset={tmp_path / "data"}'
    done = program('train.py', ROOT / 'config' / 'eval_gpt2.py', place, '--device=cpu')
    assert not done.error, done.error
    rows = torch.from_numpy(ids.astype(np.int64))[:481].unfold(0, 33, 32)
    with torch.no_grad():
        expected = float(model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).mean())
    val = float(re.search(r'val ([\d.]+)', done.stdout).group(1))
    assert val == pytest.approx(expected, abs=6e-5)  # it has four digits
    # 3) Fine-tune
    settings = ('--max_iters=2', '--gradient_accumulation_steps=2', '--block_size=8')
    settings += (f'--out_dir={tmp_path / "tuned"}', '--sample_prompts=', '--device=cpu')
    done = program(
        'train.py', ROOT / 'config' / 'finetune_shakespeare.py', place, '--eval_interval=1',
        *settings,
    )  # fmt: skip
    assert not done.error, done.error
    tuned = checkpoint.load(tmp_path / 'tuned' / 'ckpt.pt')
    assert tuned['model_config']['block_size'] == 8 and tuned['step'] == 2
    assert tuned['model']['transformer.wpe.weight'].shape == (8, 2)


# ---- transformers


@pytest.fixture
def transformers(oracle):
    found = oracle('transformers')
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


@pytest.mark.slow
@pytest.mark.parametrize('more, architecture', MODELS.values(), ids=list(MODELS))
def test_transformers_computes_what_we_do(transformers, tmp_path, more, architecture):
    model = random_model(config_of(**more))
    out_and_in_again(tmp_path, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / 'a', trust_remote_code=not architecture
    )
    assert type(theirs).__name__ == (architecture or 'FlatGPTForCausalLM')
    close(logits_of(theirs), logits_of(model), 1e-4)
    # padded on the left, as batches are: the rows are continued as without padding
    padded = torch.nn.functional.pad(inputs()[:, :8], (3, 0), value=0)
    mask = torch.nn.functional.pad(torch.ones(2, 8, dtype=torch.int64), (3, 0))
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = theirs.generate(inputs()[:, :8], **options)[:, 8:]
    without = theirs.generate(inputs()[:, :8], use_cache=False, **options)[:, 8:]
    assert torch.equal(without, expected)
    assert torch.equal(theirs.generate(padded, attention_mask=mask, **options)[:, 11:], expected)
    ids = inputs()[:, :8]
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat((ids, model(ids)[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(ids[:, 8:], expected)


LLAMA = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
THEIRS = [
    ('GPT2', dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    ('GPT2', dict(n_embd=32, n_layer=2, n_head=4, n_inner=40, tie_word_embeddings=False)),
    ('Llama', dict(LLAMA, num_key_value_heads=4)),
    ('Llama', dict(LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ('Llama', dict(LLAMA, head_dim=16, rope_parameters=dict(rope_type='default', rope_theta=5e5))),
    ('Qwen3', dict(LLAMA, head_dim=16, tie_word_embeddings=True)),
    ('Qwen3', dict(LLAMA, head_dim=8, num_key_value_heads=4, rms_norm_eps=1e-5)),
    (
        'Qwen3Moe',
        dict(
            LLAMA,
            head_dim=8,
            moe_intermediate_size=24,
            num_experts=5,
            num_experts_per_tok=2,
            norm_topk_prob=True,
        ),
    ),
    ('NanoChat', dict(LLAMA)),
    ('NanoChat', dict(LLAMA, num_key_value_heads=4, final_logit_softcapping=5.0)),
]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name, sizes', THEIRS)
def test_we_compute_what_transformers_does(transformers, tmp_path, name, sizes, dtype):
    """Their own files, in several shards, with more rows than the tokenizer has ids."""
    import hf_tokenizer

    config = getattr(transformers, name + 'Config')(vocab_size=337, **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, 'GPT2LMHeadModel' if name == 'GPT2' else name + 'ForCausalLM')
    model = model(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, float(p.ndim == 1), 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size='20KB')
    hf_tokenizer.write(tmp_path, tokenizer())
    assert len(list(tmp_path.glob('*.safetensors'))) > 1
    found, _, state = checkpoint.open_model(tmp_path / 'config.json', 'cpu')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    close(logits_of(found), logits_of(theirs), 1e-4)
    again = tmp_path / 'again'
    pretrained.export_folder(checkpoint.load(tmp_path / 'config.json'), again, dtype)
    same_model(checkpoint.load(again / 'config.json'), checkpoint.load(tmp_path / 'config.json'))


@functools.cache
def box_answers():
    """[(prompt, answer)] as ids: what the engine generates greedily from the model in the box, for
    20 questions that call for no calculator."""
    model, tokenizer, _ = checkpoint.open_model(BOX, 'cpu')
    chat = Chat(tokenizer)
    lines = (ROOT / 'assets' / 'prompts.jsonl').read_text(encoding='utf-8').splitlines()
    prompts = [chat.prompt(json.loads(line)['messages'][:1]) for line in lines[:60]]
    answers = Engine(model, tokenizer, chat).generate(prompts, 40, Sampling(temperature=0.0))
    pairs = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers)]
    return [pair for pair in pairs if chat.python_start not in pair[1]][:20]


@pytest.mark.slow
@pytest.mark.parametrize('own_code', [False, True])
def test_transformers_generates_from_the_box_what_our_engine_does(
    transformers, tmp_path, monkeypatch, own_code
):
    if own_code:
        monkeypatch.setattr(pretrained, 'FAMILIES', {})
        monkeypatch.setattr(pretrained, 'choose', lambda config: (pretrained.OWN, config, ''))
    pretrained.export_folder(checkpoint.load(BOX), tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=own_code)
    assert type(model).__name__ == ('FlatGPTForCausalLM' if own_code else 'Qwen3ForCausalLM')
    assert len(box_answers()) == 20
    for prompt, answer in box_answers():
        ids = torch.tensor([prompt])
        made = model.generate(ids, max_new_tokens=len(answer), do_sample=False)
        assert made[0, len(prompt) :].tolist() == answer


# ---- GGUF


@pytest.fixture
def gguf(oracle):
    return oracle('gguf')


GGUF_MODELS = ['gpt2', 'gpt2, untied, no biases', 'llama', 'llama, GQA, tied, biases', 'qwen3']


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, dtype',
    [(name, 'float32') for name in GGUF_MODELS]
    + [('qwen3', dtype) for dtype in ('float16', 'bfloat16', 'q8_0')],
)
def test_a_gguf_holds_the_model(gguf, transformers, oracle, tmp_path, name, dtype):
    """Read back by the gguf package, and as a model by transformers."""
    more, architecture = MODELS[name]
    # transformers takes Qwen3's head_dim to be 128 and GPT-2's context to be 1024, and leaves out a
    # Llama's biases
    more = {**more, 'n_embd': 64, 'block_size': 1024}
    more |= dict(bias=False) if 'Llama' in architecture else {}
    more |= dict(head_dim=128) if 'Qwen3' in architecture else {}
    model = random_model(config_of(**more))
    path = tmp_path / 'model.gguf'
    pretrained.export_gguf(state_of(model), path, dtype)
    # 1) Every tensor, in the type that was asked for
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert found['token_embd.weight'].tensor_type.name == pretrained.GGUF_TYPES[dtype]
    table = gguf.dequantize(found['token_embd.weight'].data, found['token_embd.weight'].tensor_type)
    exact = model.transformer.wte.weight.detach().numpy()[: len(table)]
    tolerance = dict(float32=0, float16=1e-3, bfloat16=1e-2, q8_0=1e-2)[dtype]
    np.testing.assert_allclose(table, exact, atol=tolerance)
    # 2) The logits
    oracle('accelerate')  # gguf_file= needs it
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    assert type(theirs).__name__ == architecture
    tolerance = 1e-4 if dtype == 'float32' else 0.2
    close(logits_of(theirs), logits_of(model), tolerance)


def in_llama_cpp(oracle, path, pairs):
    """What llama.cpp generates greedily after each prompt, as many ids as the answer has."""
    llama = oracle('xllamacpp')
    settings = llama.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = 256
    settings.n_parallel = 1
    settings.warmup = False
    settings.cpuparams.n_threads = 1
    settings.verbosity = -1
    server = llama.Server(settings)
    for prompt, answer in pairs:
        asked = dict(prompt=prompt, n_predict=len(answer), temperature=0, top_k=1, logprobs=1)
        done = server.handle_completions(asked)
        yield [token['id'] for token in done['choices'][0]['logprobs']['content']]


@pytest.mark.slow
def test_llama_cpp_generates_from_the_box_what_our_engine_does(gguf, oracle, tmp_path):
    pretrained.export_gguf(checkpoint.load(BOX), tmp_path / 'box.gguf')
    made = list(in_llama_cpp(oracle, tmp_path / 'box.gguf', box_answers()))
    stop = box_answers()[0][1][-1]
    for (_, answer), ids in zip(box_answers(), made):
        assert ids in (answer, answer[:-1]) and answer[-1] == stop  # it may leave the end out


@pytest.mark.slow
@pytest.mark.parametrize('name', GGUF_MODELS)
def test_llama_cpp_generates_what_we_do(gguf, oracle, tmp_path, name):
    model = random_model(config_of(**{**MODELS[name][0], 'n_embd': 64}))
    # llama.cpp does not list tokens that are a part of a character: they get a logit of 0
    parts = [i for i in range(300) if not tokenizer().decode_bytes([i]).isascii()]
    model.lm_head.weight.data[parts] = 0
    pretrained.export_gguf(state_of(model), tmp_path / 'model.gguf')
    prompts = inputs().tolist()
    answers = Engine(model, tokenizer()).generate(prompts, 10, Sampling(temperature=0.0))
    pairs = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers)]
    assert list(in_llama_cpp(oracle, tmp_path / 'model.gguf', pairs)) == [ids for _, ids in pairs]


def test_llama_cpp_has_no_nanochat(tmp_path):
    with pytest.raises(SystemExit) as stop:
        pretrained.export_gguf(state_of(random_model(config_of('nano'))), tmp_path / 'a.gguf')
    one_line(stop, 'llama.cpp', 'NanoChat', '--preset=gpt2')
    assert not list(tmp_path.iterdir())


# ---- an imported chat model, in all programs


@pytest.mark.slow
def test_an_imported_chat_model_trains_chats_and_is_exported(tmp_path, program, monkeypatch):
    """A Llama with ChatML: sft, sample.py --chat, and out again."""
    # 1) The model, and conversations
    names = ('<|endoftext|>', *CHATML)
    config = config_of('llama', n_kv_head=2, vocab_size=300, block_size=256)
    state = state_of(GPT(config), names, stage='sft')
    pretrained.export_folder(state, tmp_path / 'chat')
    from data.writing import Writer

    read = checkpoint.load(tmp_path / 'chat' / 'config.json')
    assert read['stage'] == 'sft'
    chat = Chat(tokenizer(names))
    with Writer(tmp_path / 'data', tokenizer(names), notes={'kind': 'conversations'}) as out:
        for i in range(40):
            question = {'role': 'user', 'content': f'What is {i} plus 1?'}
            ids = chat.render([question, {'role': 'assistant', 'content': f'It is {i + 1}.'}])
            out.write('val' if i % 10 == 9 else 'train', ids, 30)
    # 2) Train
    done = program(
        'train.py', '--stage=sft', f'--init_from=hf:{tmp_path / "chat"}', '--max_iters=50',
        f'--dataset={tmp_path / "data"}', f'--out_dir={tmp_path / "run"}', '--block_size=64',
        '--log_interval=1', '--eval_interval=0', '--device=cpu', '--eval_problems=0',
        '--sample_prompts=', '--learning_rate=1e-2',
    )  # fmt: skip
    assert not done.error, done.error
    rows = (tmp_path / 'run' / 'log.jsonl').read_text(encoding='utf-8').splitlines()
    losses = [row['loss'] for row in map(json.loads, rows) if 'loss' in row]
    assert len(losses) == 50 and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    # 3) Chat, in its own format, and out again
    model, _, state = checkpoint.open_model(tmp_path / 'run' / 'ckpt.pt', 'cpu')
    engine = Engine(model, tokenizer(names), chat)
    question = [{'role': 'user', 'content': 'What is 3 plus 1?'}]
    answer = engine.generate([chat.prompt(question)], 20, Sampling(temperature=0.0))[0]
    assert answer.text.startswith('It is')
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'What is 3 plus 1?\n')))
    done = program('sample.py', '--out_dir=run', '--chat', '--temperature=0', '--device=cpu')
    assert done.stdout == f'{answer.text}\n', done.error
    done = program('pretrained.py', '--export=run', '--to=again')
    assert 'LlamaForCausalLM' in done.stdout, done.error
    found, _, _ = checkpoint.open_model(tmp_path / 'again' / 'config.json', 'cpu')
    assert torch.equal(logits_of(found), logits_of(model))


# ---- the program


def test_the_program(tmp_path, program):
    done = program('pretrained.py', f'--export={BOX}', '--to=box')
    assert 'Qwen3ForCausalLM' in done.stdout and not done.error
    done = program('pretrained.py', '--import=hf:box', '--to=run')
    assert not done.error and 'run' in done.stdout
    box = checkpoint.load(BOX)
    run = checkpoint.load(tmp_path / 'run' / 'ckpt.pt')
    assert all(torch.equal(x.float(), run['model'][name]) for name, x in box['model'].items())
    assert run['stage'] == 'sft'  # it has a chat template
    assert run['tokenizer'] == box['tokenizer']


@pytest.mark.parametrize('args, words', [
    ([], ['--export', '--import', '--to']),
    (['--export=a', '--import=b'], ['--export', '--import']),
    ([f'--export={BOX}'], ['--to=FOLDER']),
    (['--export=nowhere', '--to=a'], ['nowhere']),
    ([f'--export={BOX}', '--to=a', '--dtype=int8'], ['int8', 'bfloat16']),
    ([f'--export={BOX}', '--to=a', '--dtype=q8_0'], ['q8_0']),
    ([f'--export={BOX}', '--to=a', '--format=onnx'], ['onnx', 'gguf']),
    (['--import=hf:none/such/thing'], ['none/such/thing']),
])  # fmt: skip
def test_the_program_s_errors(program, args, words):
    done = program('pretrained.py', *args)
    assert '\n' not in done.error and all(word in done.error for word in words), done.error
