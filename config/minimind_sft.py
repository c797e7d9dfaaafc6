# Supervised fine-tuning of minimind.py: two epochs of conversations, as MiniMind.
#
# $ python train.py config/minimind_sft.py
#
# Not measured here.

stage = 'sft'
init_from = 'out/minimind/pretrain'  # weights, architecture and AdamW's settings
out_dir = 'out/minimind/sft'
auto_resume = True
dataset = 'minimind_sft'
sample_prompts = 'Who are you?|What is 12 + 7?|Why is the sky blue?'

# MiniMind pads each of 16 conversations to a row; here conversations share the 16 rows of a step
batch_size = 16
epochs = 2.0
learning_rate = 5e-7
min_lr = 5e-8
schedule = 'cosine'

eval_interval = 1000
eval_iters = 64
eval_problems = 0  # its data have none
