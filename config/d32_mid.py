# Midtraining of d32.py: conversations, multiple choice, the calculator, spelling. One epoch at the
# rates of pretraining, as nanochat 0.1.0.
#
# $ torchrun --standalone --nproc_per_node=8 train.py config/d32_mid.py

stage = 'mid'
init_from = 'out/d32/pretrain'  # weights, architecture and rates
out_dir = 'out/d32/mid'
auto_resume = True
dataset = 'smoltalk,mmlu,gsm8k,identity:2,spelling'
sample_prompts = 'Who are you?|What is 12 * 7?|Why is the sky blue?'

# 8 rows * 2,048 tokens * 8 GPUs * 4 micro-batches = 524,288 tokens per step
batch_size = 8
gradient_accumulation_steps = 8 * 4
epochs = 1.0
warmdown = 0.2

eval_interval = 150
eval_iters = 640
save_interval = 150
eval_problems = 100
max_new_tokens = 256
