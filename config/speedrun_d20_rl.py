# Reinforcement learning of speedrun_d20.py on GSM8K, one epoch, as nanochat 0.1.0: 1/20 of the
# rates, falling linearly to 0. Two things differ: nanochat draws from the 50 likeliest tokens, we
# draw from all; it measures pass@k, we measure greedy answers. Not measured here: GSM8K .0455 ->
# .0758 (nanochat's d20); 15 minutes and the evaluations (computed).
#
# $ torchrun --standalone --nproc_per_node=8 train.py config/speedrun_d20_rl.py

stage = 'rl'
init_from = 'out/speedrun_d20/sft'
out_dir = 'out/speedrun_d20/rl'
auto_resume = True
dataset = 'gsm8k'
sample_prompts = 'Who are you?|What is 12 * 7?|Why is the sky blue?'

# 32 answers * 8 GPUs = 256 per step: 16 answers to each of 16 questions. 7,473 / 16 = 467 steps
batch_size = 32
gradient_accumulation_steps = 8
rl_samples = 16
rl_tokens = 256
epochs = 1.0
learning_rate = 0.05 * 2.8e-3
warmdown = 1.0

eval_interval = 60
eval_iters = 20  # 640 rows
save_interval = 60
log_interval = 1
eval_problems = 400
max_new_tokens = 256
