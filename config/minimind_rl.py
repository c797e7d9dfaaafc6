# Reinforcement learning of minimind_sft.py: one epoch, as MiniMind's GRPO.
#
# $ python train.py config/minimind_rl.py --reward=mine.py:score
#
# Without --reward, problems need answers: see docs/minimind.md. Two things differ: MiniMind
# penalises the distance to the starting model (KL, 0.02), and its answers may have 1,536 tokens.
# Not measured here.

stage = 'rl'
init_from = 'out/minimind/sft'
out_dir = 'out/minimind/rl'
auto_resume = True
dataset = 'minimind_rl'
sample_prompts = 'Who are you?|What is 12 + 7?|Why is the sky blue?'

# 8 answers to each of 2 questions per step
batch_size = 16
rl_samples = 8
rl_tokens = 256
epochs = 1.0
learning_rate = 8e-8
min_lr = 8e-9
schedule = 'cosine'

eval_interval = 500
eval_iters = 64
log_interval = 1
