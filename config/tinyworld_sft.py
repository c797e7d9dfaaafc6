# Supervised fine-tuning: answers. Only what the assistant says counts.
#
# $ python train.py config/tinyworld_sft.py

stage = 'sft'
init_from = 'out/tinyworld/mid'
out_dir = 'out/tinyworld/sft'
auto_resume = True
dataset = 'tinyworld/sft'

max_iters = 400
learning_rate = 3e-3
warmdown = 0.7
eval_interval = 200
