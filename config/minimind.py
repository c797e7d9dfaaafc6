# MiniMind's small model, 27M parameters, with the rates of its own trainers (June 2025).
# docs/minimind.md has the commands from its JSONL files to a chat.
#
# $ python train.py config/minimind.py
#
# Not measured here. MiniMind's README gives two hours for pretraining and sft on one RTX 3090.

out_dir = 'out/minimind/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'minimind'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# 8 layers * (20 * 64 * 512 for q, k, v and the output of attention + 3 * 512 * 1,536 for the MLP)
# + 6,400 * 512 + 17 * 512 gains = 27,402,752 parameters
preset = 'llama'
tied_head = True
n_layer = 8
n_head = 8
n_kv_head = 2
n_embd = 512
n_hidden = 3 * 512
rope_theta = 1e6  # MiniMind's positions go to 32,768; it trains on rows of 512
block_size = 512

# 32 rows * 8 micro-batches * 512 = 131,072 tokens per step
batch_size = 32
gradient_accumulation_steps = 8
epochs = 1.0

# torch's AdamW with its defaults; a cosine from the rate to a tenth of it
optimizer = 'adamw'
learning_rate = 5e-4
min_lr = 5e-5
schedule = 'cosine'
beta2 = 0.999
weight_decay = 0.01

eval_interval = 500
eval_iters = 32  # 32 * 32 rows * 512 = 0.5M tokens
save_interval = 500  # 0.3 GB each
