# Pretraining on tinyworld's plain text, a minute on two cores: words, grammar, and the facts of its world.
#
# $ python train.py config/tinyworld_pretrain.py

stage = 'pretrain'
init_from = 'out/tinyworld/games'  # its weights, architecture and rates
out_dir = 'out/tinyworld/pretrain'
auto_resume = True  # started again, it goes on where it stopped
dataset = 'tinyworld/pretrain'

batch_size = 4  # 4 * 256 = 1,024 tokens a step: at this size it is the number of steps that teaches
max_iters = 600
eval_interval = 300
log_interval = 50
