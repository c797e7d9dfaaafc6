# Midtraining: the pretrained model learns the format of a conversation, multiple choice and the
# calculator.
#
# $ python train.py config/tinyworld_mid.py

stage = 'mid'
init_from = 'out/tinyworld/pretrain'  # weights, architecture and rates
out_dir = 'out/tinyworld/mid'
auto_resume = True  # run the command again to resume
dataset = 'tinyworld/mid'

batch_size = 4
max_iters = 400
eval_interval = 400
eval_problems = 30
log_interval = 50
