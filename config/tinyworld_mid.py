# Midtraining: the pretrained model meets the format of a conversation, multiple choice and the calculator.
#
# $ python train.py config/tinyworld_mid.py

stage = 'mid'
init_from = 'out/tinyworld/pretrain'  # its weights, architecture and rates
out_dir = 'out/tinyworld/mid'
auto_resume = True  # started again, it goes on where it stopped
dataset = 'tinyworld/mid'

max_iters = 250  # of 16 * 128 = 2,048 tokens
learning_rate = 3e-3
warmdown = 0.7
eval_interval = 250
