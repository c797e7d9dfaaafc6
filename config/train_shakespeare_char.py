# nanoGPT's character-level Shakespeare on one GPU: a sanity check that takes minutes. Its 10.7M
# parameters see the text many times, so dropout is high and the best checkpoint is kept.
#
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/train_shakespeare_char.py
# $ python sample.py --out_dir=out-shakespeare-char
#
# On a laptop, use config/shakespeare_char_cpu.py, or nanoGPT's command line for a CPU (README.md).

out_dir = 'out-shakespeare-char'
dataset = 'shakespeare_char'

eval_interval = 250  # often, because the model overfits
eval_iters = 200  # 200 * 64 rows are more than exist: all of the validation text
log_interval = 10
always_save_checkpoint = False  # keep the best as best.pt

wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

# 64 * 256 = 16,384 characters per step
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

# a baby GPT
preset = 'nano'  # the model that docs/shakespeare.md compares with nanoGPT's
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3
max_iters = 5000  # 82M characters: 82 epochs
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # a step has few tokens
warmup_iters = 100
