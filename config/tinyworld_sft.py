# Supervised fine-tuning: answers to all that people may ask, imitated. Only what the assistant says counts.
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
