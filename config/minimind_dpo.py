# Preferences for minimind_sft.py: two epochs of pairs, as MiniMind.
#
# $ python train.py config/minimind_dpo.py
#
# Not measured here.

stage = 'dpo'
init_from = 'out/minimind/sft'
out_dir = 'out/minimind/dpo'
auto_resume = True
dataset = 'minimind_dpo'
sample_prompts = 'Who are you?|What is 12 + 7?|Why is the sky blue?'

# 4 pairs per step. MiniMind's rows have 1,024 tokens here; ours keep the 512 of pretraining, and
# longer pairs are cut at the end
batch_size = 8
epochs = 2.0
learning_rate = 1e-8
min_lr = 1e-9
schedule = 'cosine'
dpo_beta = 0.1

eval_interval = 500
eval_iters = 64
eval_problems = 0
