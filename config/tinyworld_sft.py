# Supervised fine-tuning: imitate good answers to everything people may ask. Only the tokens of the
# assistant count.
#
# $ python train.py config/tinyworld_sft.py

stage = 'sft'
init_from = 'out/tinyworld/mid'
out_dir = 'out/tinyworld/sft'
auto_resume = True
dataset = 'tinyworld/sft'

batch_size = 4
max_iters = 2500
warmdown = 0.7
eval_interval = 2500
eval_problems = 30
log_interval = 50
