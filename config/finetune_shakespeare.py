# Fine-tune OpenAI's GPT-2 XL on Shakespeare, as nanoGPT does: 20 steps at a low, constant rate. On
# a small machine add --init_from=gpt2.
#
# $ python data/shakespeare/prepare.py
# $ python train.py config/finetune_shakespeare.py
# $ python sample.py --out_dir=out-shakespeare

out_dir = 'out-shakespeare'
dataset = 'shakespeare'
init_from = 'gpt2-xl'

wandb_log = False
wandb_project = 'shakespeare'

eval_interval = 5
eval_iters = 40
always_save_checkpoint = False  # keep the best as best.pt

# 1 * 32 rows * 1,024 tokens = 32,768 tokens per step; the text has about 300,000, so 20 steps are
# about 2 epochs
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

optimizer = 'adamw'
learning_rate = 3e-5
decay_lr = False
