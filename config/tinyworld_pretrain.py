# Pretraining on tinyworld's plain text, a minute on two cores: words, grammar, and the facts of its
# world.
#
# $ python train.py config/tinyworld_pretrain.py

stage = 'pretrain'
init_from = 'out/tinyworld/games'  # weights, architecture and rates
out_dir = 'out/tinyworld/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'tinyworld/pretrain'

# 4 * 256 = 1,024 tokens per step: a model this small learns more from more steps
batch_size = 4
max_iters = 600
eval_interval = 300
log_interval = 50
