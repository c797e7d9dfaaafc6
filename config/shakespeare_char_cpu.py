# Tiny Shakespeare by characters on two CPU cores: 4 to 5 minutes from nothing to readable lines.
#
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/shakespeare_char_cpu.py
# $ python sample.py

out_dir = 'out/shakespeare_char_cpu'
dataset = 'shakespeare_char'

n_layer = 4
n_head = 4
n_embd = 128

# 16 * 128 = 2,048 characters a step
batch_size = 16
block_size = 128

max_iters = 2000  # 4.1M characters: the text four times over, too few to over-fit
learning_rate = 4e-3  # best of 1e-3, 2e-3, 4e-3, 8e-3 at this width, see LOG.md
warmup_iters = 50
beta2 = 0.99  # few tokens a step

eval_interval = 500
log_interval = 100
