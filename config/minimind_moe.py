# MiniMind with a mixture of experts: 4 routed experts, of which a token uses 2, and a shared one.
# 103M parameters, of which a token uses 65M.
#
# $ python train.py config/minimind_moe.py
#
# The later stages are those of minimind.py, with other folders:
#
# $ python train.py config/minimind_sft.py --init_from=out/minimind_moe/pretrain \
# >     --out_dir=out/minimind_moe/sft
#
# Not measured here.

out_dir = 'out/minimind_moe/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'minimind'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# 8 layers * (655,360 for attention + 5 experts * 3 * 512 * 1,536 + 4 * 512 for the router)
# + 6,400 * 512 + 17 * 512 gains = 102,916,608 parameters. Of each layer's experts 3 are active:
# 8 * 2 * 2,359,296 fewer, 65,167,872
preset = 'llama'
tied_head = True
n_layer = 8
n_head = 8
n_kv_head = 2
n_embd = 512
n_hidden = 3 * 512  # of each expert
n_expert = 4
n_expert_active = 2
n_expert_shared = 1
expert_balance = 0.1  # MiniMind's: its loss is ours, of each row and summed over layers
rope_theta = 1e6
block_size = 512

# As minimind.py: 131,072 tokens per step
batch_size = 32
gradient_accumulation_steps = 8
epochs = 1.0

optimizer = 'adamw'
learning_rate = 5e-4
min_lr = 5e-5
schedule = 'cosine'
beta2 = 0.999
weight_decay = 0.01

eval_interval = 500
eval_iters = 32  # 32 * 32 rows * 512 = 0.5M tokens
save_interval = 500  # 1.2 GB each
