"""
Weights of other projects, read: names, the hub, damaged or unknown folders, and transformers' own
files. In the programs too.

Models are tiny and random. The oracles' tests are slow ones: importing transformers takes seconds.
"""

import http.server
import io
import json
import re
import runpy
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line
from random_models import (
    close,
    config_of,
    logits_of,
    random_model,
    same_model,
    state_of,
    tokenizer,
)

import checkpoint
import pretrained
import runtime
from conversation import CHATML, Chat
from data import download
from engine import Engine
from export import export_folder
from hf_files import WEIGHTS
from model import GPT
from sampling import Sampling

BOX = ROOT / 'assets' / 'tinyworld.pt'


# ---- a folder as a checkpoint


def test_tables_are_cut_to_the_tokenizer_and_weights_keep_their_type(tmp_path):
    """As in Qwen3, whose table has 267 rows more than its tokenizer has ids."""
    model = random_model(config_of('qwen3', vocab_size=tokenizer().vocab_size + 70))
    state = state_of(model)
    export_folder(state, tmp_path, 'bfloat16')
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
    export_folder(state_of(model), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors = {name.removeprefix('transformer.'): x for name, x in tensors.items()}
    save_file({**tensors, 'h.0.attn.bias': torch.ones(1, 1, 32, 32)}, tmp_path / WEIGHTS)
    found, _, _ = checkpoint.open_model(tmp_path / 'config.json', 'cpu')
    assert torch.equal(logits_of(found), logits_of(model))


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


@pytest.fixture
def gpt2_xl(tmp_path, monkeypatch):
    """A small GPT-2 with random weights where gpt2-xl's files belong, and GPT-2's ids as data."""
    monkeypatch.setattr(pretrained, 'HUB_FOLDER', tmp_path / 'hub')
    config = config_of('gpt2', bias=True, n_layer=1, n_embd=8, n_head=2, block_size=16)
    folder = tmp_path / 'hub' / 'openai-community' / 'gpt2-xl'
    export_folder(state_of(random_model(config)), folder)
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
        export_folder(state_of(model), folder)
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
    export_folder(checkpoint.load(tmp_path / 'config.json'), again, dtype)
    same_model(checkpoint.load(again / 'config.json'), checkpoint.load(tmp_path / 'config.json'))


# ---- an imported chat model, in all programs


@pytest.mark.slow
def test_an_imported_chat_model_trains_chats_and_is_exported(tmp_path, program, monkeypatch):
    """A Llama with ChatML: sft, sample.py --chat, and out again."""
    # 1) The model, and conversations
    names = ('<|endoftext|>', *CHATML)
    config = config_of('llama', n_kv_head=2, vocab_size=300, block_size=256)
    state = state_of(GPT(config), names, stage='sft')
    export_folder(state, tmp_path / 'chat')
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
