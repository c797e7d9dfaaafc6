# GPT-2 (124M) on OpenWebText, nanoGPT's reproduction. Its README gives a val loss of 2.85 after 4
# days on 8 A100s; not measured here.
#
# $ python data/openwebtext/prepare.py
# $ torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

out_dir = 'out/gpt2'
dataset = 'openwebtext'
wandb_log = True
wandb_project = 'owt'
wandb_run_name = 'gpt2-124M'

preset = 'gpt2'
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024

# 12 rows * 1,024 tokens * 5 micro-batches * 8 GPUs = 491,520 tokens per step, about GPT-2's half a
# million. On fewer GPUs each runs more micro-batches; the step stays the same
batch_size = 12
gradient_accumulation_steps = 5 * 8

max_iters = 600000  # 295B tokens
lr_decay_iters = 600000

optimizer = 'adamw'
learning_rate = 6e-4
min_lr = 6e-5
schedule = 'cosine'
warmup_iters = 2000
weight_decay = 1e-1

eval_interval = 1000
save_interval = 1000  # 1.5 GB each
eval_iters = 200
log_interval = 10
