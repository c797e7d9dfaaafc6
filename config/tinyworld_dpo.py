# Direct preference optimisation: make the better of two answers more likely.
#
# $ python train.py config/tinyworld_dpo.py

stage = 'dpo'
init_from = 'out/tinyworld/sft'
out_dir = 'out/tinyworld/dpo'
auto_resume = True
dataset = 'tinyworld/dpo'

batch_size = 32  # 16 pairs per step
max_iters = 30
learning_rate = 2e-4
dpo_beta = 0.1
eval_interval = 30
eval_problems = 30
