# Evaluate OpenAI's GPT-2 (124M) on OpenWebText. nanoGPT's README gives a val loss of 3.12;
# not measured here. Without a network: docs/weights.md.
#
# $ python data/openwebtext/prepare.py
# $ python train.py config/eval_gpt2.py

init_from = 'gpt2'
dataset = 'openwebtext'
eval_only = True
batch_size = 8
eval_iters = 500  # 500 * 8 rows of 1,024 tokens
sample_prompts = ''
