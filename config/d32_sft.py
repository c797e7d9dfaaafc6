# Supervised fine-tuning of d32.py, one epoch, as nanochat 0.1.0: 1/50 of the rates,
# falling linearly to 0. Scores: not measured.
#
# $ torchrun --standalone --nproc_per_node=8 train.py config/d32_sft.py

stage = 'sft'
init_from = 'out/d32/mid'
out_dir = 'out/d32/sft'
auto_resume = True
dataset = 'arc,gsm8k,smoltalk/10k,identity,spelling/small'
sample_prompts = 'Who are you?|What is 12 * 7?|Why is the sky blue?'

# nanochat takes 32 conversations per step. Ours share rows: 8 rows of 2,048 tokens hold about 32 if
# a conversation has 500 tokens, which is an estimate. One row for each of 8 GPUs
batch_size = 1
gradient_accumulation_steps = 8
epochs = 1.0
learning_rate = 0.02 * 2.2e-3
warmdown = 1.0

eval_interval = 200
eval_iters = 800  # rows
save_interval = 200
eval_problems = 100
max_new_tokens = 256
