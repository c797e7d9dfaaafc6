"""
A checkpoint for other programs, against transformers' own classes, the gguf package and llama.cpp.

Models are tiny and random. The oracles' tests are slow ones: importing transformers takes seconds.
"""

import functools
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line
from random_models import (
    MODELS,
    close,
    config_of,
    inputs,
    logits_of,
    random_model,
    same_model,
    state_of,
    tokenizer,
)

import checkpoint
import export
from conversation import Chat
from engine import Engine
from families import OWN
from sampling import Sampling

BOX = ROOT / 'assets' / 'tinyworld.pt'
FEW = ('nano', 'gpt2', 'llama, GQA, tied, biases', 'qwen3', 'qwen3, experts', 'gpt2, GQA', 'plus')


# ---- a folder


def out_and_in_again(tmp_path, model):
    export.export_folder(state_of(model), tmp_path / 'a')
    found, _, state = checkpoint.open_model(tmp_path / 'a' / 'config.json', 'cpu')
    assert (state['stage'], state['step']) == ('pretrain', 0)
    close(logits_of(found), logits_of(model), 1e-5)
    # bit-stable: import, export, import
    first = checkpoint.load(tmp_path / 'a' / 'config.json')
    export.export_folder(first, tmp_path / 'b')
    same_model(first, checkpoint.load(tmp_path / 'b' / 'config.json'))


@pytest.mark.parametrize('name', FEW)  # all of them below, with transformers
def test_out_and_in_again_is_the_same_model(tmp_path, name):
    out_and_in_again(tmp_path, random_model(config_of(**MODELS[name][0])))


def test_a_folder_that_holds_something_else_is_not_written_to(tmp_path):
    (tmp_path / 'thesis.tex').write_bytes(b'')
    state = state_of(random_model(config_of('llama')))
    with pytest.raises(SystemExit) as stop:
        export.export_folder(state, tmp_path)
    one_line(stop, 'thesis.tex', 'another')
    with pytest.raises(SystemExit) as stop:
        export.export_folder(state, tmp_path / 'a.gguf')
    one_line(stop, 'a.gguf', 'name of a folder')
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
    # an earlier export is replaced, a downloaded model is not
    export.export_folder(state, tmp_path / 'model')
    export.export_folder(state, tmp_path / 'model')
    config = json.loads((tmp_path / 'model' / 'config.json').read_bytes())
    del config[export.MARK]
    (tmp_path / 'model' / 'config.json').write_bytes(json.dumps(config).encode())
    with pytest.raises(SystemExit) as stop:
        export.export_folder(state, tmp_path / 'model')
    one_line(stop, 'config.json', 'another')


def test_numbers_beyond_float16_are_refused(tmp_path):
    state = state_of(random_model(config_of('llama')))
    state['model']['transformer.ln_f.weight'][0] = 1e5
    with pytest.raises(SystemExit) as stop:
        export.export_folder(state, tmp_path, 'float16')
    one_line(stop, 'model.norm.weight', 'bfloat16')
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(tmp_path / 'config.json')  # nothing that looks complete is left
    one_line(stop, 'config.json')


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
        monkeypatch.setattr(export, 'FAMILIES', {})
        monkeypatch.setattr(export, 'choose', lambda config: (OWN, config, ''))
    export.export_folder(checkpoint.load(BOX), tmp_path)
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
    export.export_gguf(state_of(model), path, dtype)
    # 1) Every tensor, in the type that was asked for
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert found['token_embd.weight'].tensor_type.name == export.GGUF_TYPES[dtype]
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
    export.export_gguf(checkpoint.load(BOX), tmp_path / 'box.gguf')
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
    export.export_gguf(state_of(model), tmp_path / 'model.gguf')
    prompts = inputs().tolist()
    answers = Engine(model, tokenizer()).generate(prompts, 10, Sampling(temperature=0.0))
    pairs = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers)]
    assert list(in_llama_cpp(oracle, tmp_path / 'model.gguf', pairs)) == [ids for _, ids in pairs]


def test_llama_cpp_has_no_nanochat(tmp_path):
    with pytest.raises(SystemExit) as stop:
        export.export_gguf(state_of(random_model(config_of('nano'))), tmp_path / 'a.gguf')
    one_line(stop, 'llama.cpp', 'NanoChat', '--preset=gpt2')
    assert not list(tmp_path.iterdir())
