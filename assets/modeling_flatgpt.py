"""
A model with its own code, for transformers: model.py, extras.py and moe.py beside this file, in a
class that transformers can load, train and generate with. pretrained.py copies the files into an
export whose switches no class of transformers has.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
"""

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .model import GPT, GPTConfig, rotation_table


class FlatGPTConfig(PretrainedConfig):
    model_type = 'flatgpt'

    def __init__(self, model_config: dict | None = None, **more):
        self.model_config = model_config or {}
        super().__init__(**more)


class Cache:
    """The cache of transformers, as model.py asks for it. attention_mask (B, width): 0 where a row
    is padded on its left, or None."""

    def __init__(self, cache, n_layer, attention_mask):
        self.cache = cache
        self.n_layer = n_layer
        self.attention_mask = attention_mask

    def begin(self, T: int):
        """Positions (B, T) of the new tokens."""
        past = self.cache.get_seq_length()
        mask = self.attention_mask
        new = torch.arange(past, past + T, device=mask.device)
        causal = new[:, None] >= torch.arange(past + T, device=mask.device)  # (T, width)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, past:]  # padding has none
        # a token of the padding attends to itself: a row without any key would give NaN
        itself = torch.eye(past + T, dtype=torch.bool, device=mask.device)[past:]
        self.mask = (causal & mask[:, None].bool() | itself)[:, None]  # (B, 1, T, width)
        return positions

    def before(self, inputs):
        """(B, T) the id before each of inputs. The ids of the past are in one more layer of the
        cache, which transformers reorders and crops as it does the others."""
        while len(self.cache.layers) <= self.n_layer:
            self.cache.layers.append(DynamicLayer())
        new = inputs[:, None, :, None]
        ids, _ = self.cache.update(new, new, self.n_layer)  # (B, 1, width, 1)
        return F.pad(ids[:, 0, :, 0], (1, 0))[:, -1 - inputs.shape[1] : -1]

    def attend(self, layer: int, q, k, v):
        """q (B, H, T, D), new k and v (B, H_kv, T, D) -> (B, H, T, D)."""
        k, v = self.cache.update(k, v, layer)
        gqa = k.shape[1] < q.shape[1]
        return F.scaled_dot_product_attention(q, k, v, self.mask, enable_gqa=gqa)


class FlatGPTForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = FlatGPTConfig
    _tied_weights_keys = {'model.lm_head.weight': 'model.transformer.wte.weight'}

    def __init__(self, config):
        super().__init__(config)
        self.model = GPT(GPTConfig(**config.model_config))
        self.post_init()

    def _init_weights(self, module):
        """RoPE's table is no weight: it is computed here, after transformers has allocated it."""
        if isinstance(module, GPT) and module.config.positions == 'rope':
            cos, sin = rotation_table(module.config)
            module.cos.copy_(cos)
            module.sin.copy_(sin)

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        return self.model.lm_head

    def forward(
        self, input_ids, attention_mask=None, cache=None, past_key_values=None, labels=None,
        use_cache=None, logits_to_keep=0, **ignored,
    ):  # fmt: skip
        """transformers calls the cache past_key_values, and from 5.20 on cache."""
        # 1) The cache, and a mask that covers it
        name = 'cache' if 'cache' in CausalLMOutputWithPast.__annotations__ else 'past_key_values'
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if cache is None else cache
        if attention_mask is None:
            width = cache.get_seq_length() + input_ids.shape[1]
            attention_mask = input_ids.new_ones(len(input_ids), width)

        # 2) Logits, and the loss of labels, which are the inputs: -100 does not count
        cache_of_model = Cache(cache, self.model.config.n_layer, attention_mask)
        x = self.model.hidden(input_ids, cache_of_model)
        logits = self.model.logits(x[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        kept = {} if use_cache is False else {name: cache}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **kept)
