"""
Tiny models of every family with random weights, and how tests compare them: for the tests of
families.py, hf_files.py, pretrained.py and export.py.
"""

import dataclasses
import functools

import torch
from conftest import ROOT

from model import GPT, PRESETS, GPTConfig
from tokenizer import train_bpe

TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')[:3000]
TINY = dict(block_size=32, n_layer=2, n_head=4, n_embd=32)

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
