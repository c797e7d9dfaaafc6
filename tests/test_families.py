"""The families of transformers: which one holds a model, and tensors there and back."""

import pytest
import torch
from random_models import MODELS, config_of, random_model

import families
from families import FAMILIES


def test_an_export_says_which_class_and_why():
    def why(**more):
        return families.choose(config_of(**more))[2]

    assert why(preset='llama') == 'LlamaForCausalLM, a class of transformers'
    assert 'norms have gains of 1' in why(preset='llama', norm='rms')
    own = why(preset='nano', bias=True)
    assert 'trust_remote_code' in own and 'NanoChatForCausalLM, lacks bias=True' in own
    # with learned positions, a norm after the embedding is not part of the table
    assert 'embed_norm=True' in why(preset='gpt2', bias=True, embed_norm=True)


@pytest.mark.parametrize('more, architecture', MODELS.values(), ids=list(MODELS))
def test_tensors_there_and_back_are_the_same(more, architecture):
    """Of the family that holds the model, or under our own names: no file is involved."""
    # 1) There
    model = random_model(config_of(**more))
    weights = model.state_dict()
    model_type, config, _ = families.choose(model.config)
    family = FAMILIES.get(model_type)
    assert (family.architecture if family else '') == architecture
    if model.config.embed_norm and not config.embed_norm:
        weights = families.fold_embed_norm(config, weights)
    theirs = dict(families.to_theirs(config, weights, family))
    # 2) They have the shapes that a reader expects
    maps = families.map_tensors(config, family)
    shapes = {name: m.their_shape(i) for m in maps for i, name in enumerate(m.theirs)}
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == shapes
    # 3) And back. The padding of a table is not kept
    ours = families.to_ours(config, maps, theirs.__getitem__, config.vocab_size)
    tables = {m.ours for m in maps if m.is_table} | {'lm_head.weight'}
    for name, tensor in weights.items():
        rows = config.vocab_size if name in tables else None
        assert torch.equal(ours[name][:rows], tensor[:rows]), name
