# Two T4s of 16 GB (a Kaggle notebook) in fp16: MiniMind's small model, 26M parameters, and its
# recipe as a reproduction on two T4s reports it: 5 epochs, about 25 hours there; not measured here.
#
# $ python data/fineweb_edu/prepare.py --num_shards=8 --download_only=True
# $ python tokenizer.py config/tokenizer_65536.py --vocab_size=6400
# $ python data/fineweb_edu/prepare.py --num_shards=8
# $ torchrun --standalone --nproc_per_node=2 train.py config/t4x2.py
#
# The data differ from MiniMind's, so the time does too. Its sft has a learning rate of 5e-7.

out_dir = 'out/t4x2/pretrain'
auto_resume = True  # run the command again to resume: notebooks end after some hours
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'
dtype = 'float16'  # a T4 has no bf16; the loss is scaled

# 8 * (20 * 64 * 512 + 3 * 512 * 1,408) + 6,400 * 512 = 25.8M parameters
preset = 'llama'
tied_head = True
n_layer = 8
n_head = 8
n_kv_head = 2
n_embd = 512
block_size = 512

# 32 rows * 2 GPUs = 64 rows per step
batch_size = 32
gradient_accumulation_steps = 2
epochs = 5.0

optimizer = 'adamw'
learning_rate = 2e-4
warmup_iters = 2000
schedule = 'cosine'
min_lr = 2e-5

eval_interval = 1000
eval_iters = 64  # 64 * 32 rows * 512 = 1.0M tokens
save_interval = 1000  # 0.3 GB each
