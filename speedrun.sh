#!/usr/bin/env bash
# The whole life of a ChatGPT on a node of eight H100s: from a blank machine to a model that chats.
#
#     bash speedrun.sh                  # config/speedrun_d20*.py
#     bash speedrun.sh d32              # config/d32*.py
#     WANDB_RUN=first bash speedrun.sh  # also log to Weights & Biases (wandb login before)
#
# Stop it at any time (Ctrl-C) and run it again to resume. A part that has finished leaves a mark in
# out/NAME/done and is not run again. docs/speedrun.md explains each part, and what it costs.
set -euo pipefail
trap 'exit 130' INT
cd "$(dirname "${BASH_SOURCE[0]}")"

name=${1:-speedrun_d20}
WANDB_RUN=${WANDB_RUN:-}               # the name of the run; '' is off
NPROC_PER_NODE=${NPROC_PER_NODE:-auto} # processes; auto is one per GPU
out=out/$name
tok=$out/tok.json

for part in '' _mid _sft _rl _data _tokenizer; do
    if [ ! -e "config/$name$part.py" ]; then
        echo "config/$name$part.py does not exist, expected one file for each part (docs/speedrun.md)" >&2
        exit 1
    fi
done
mkdir -p "$out/done"

once() { # once MARK COMMAND...: run the command, unless it has finished in an earlier call
    if [ ! -e "$out/done/$1" ]; then
        echo "---- $1: ${*:2}"
        "${@:2}"
        touch "$out/done/$1"
    fi
}

on_all_gpus() { # on_all_gpus PROGRAM...: if a process dies, all are started again, at most 3 times
    torchrun --standalone --nproc_per_node="$NPROC_PER_NODE" --max-restarts=3 "$@"
}

stage() { # stage STAGE CONFIG EXAM: train, measure, report
    once "$1" on_all_gpus train.py "$2" \
        ${WANDB_RUN:+--wandb_log=True} ${WANDB_RUN:+"--wandb_run_name=$WANDB_RUN-$1"}
    once "$1-exam" on_all_gpus evaluate.py --out_dir="$out/$1" "${@:3}"
    once "$1-report" python report.py "$out"
}

# ---- Installation: into the active virtual environment, else into .venv
if python3 -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
    [ -e .venv/bin/activate ] || python3 -m venv .venv
    source .venv/bin/activate
fi
if ! python -c "import matplotlib, numpy, pyarrow, regex, requests, tiktoken, tqdm, torch${WANDB_RUN:+, wandb}
assert (2, 9) <= tuple(map(int, torch.__version__.split('.')[:2])) < (2, 14)" 2> /dev/null; then
    python -m pip install --quiet ".[data,report${WANDB_RUN:+,wandb}]"
fi

# ---- Pretraining data: the first shards, then a tokenizer that learns from them. The other shards
# are downloaded meanwhile, and while the first ones are encoded
shards=(python data/fineweb_edu/prepare.py "config/${name}_data.py")
once first-shards "${shards[@]}" --download_only=True
if [ ! -e "$out/done/tokenizer" ]; then
    "${shards[@]}" --download_only=True --first_shards=0 > "$out/download.txt" 2>&1 &
    download=$!
    trap 'kill $download 2> /dev/null || true' EXIT
    once tokenizer python tokenizer.py "config/${name}_tokenizer.py" --out="$tok"
    kill $download 2> /dev/null || true # the next line continues it
    wait $download || true
    trap - EXIT
fi
once shards "${shards[@]}" --tokenizer="$tok"

# ---- Data of the later stages and of the exams
once core python data/core/prepare.py
once humaneval python data/humaneval/prepare.py
for set in mmlu arc gsm8k identity spelling smoltalk; do
    once $set python data/$set/prepare.py --tokenizer="$tok"
done
once smoltalk-10k python data/smoltalk/prepare.py --tokenizer="$tok" --max_rows=10000 --part=10k
once spelling-small python data/spelling/prepare.py --tokenizer="$tok" --spell=300 --count=300 --num_val=250 \
    --part=small

# ---- Pretraining: predict the next token of web pages. CORE: 22 tasks for a model that cannot chat
stage pretrain "config/$name.py" --core=data/core/eval_bundle

# ---- Midtraining: the format of a conversation, multiple choice, the calculator
exams="--problems=arc,mmlu,gsm8k,humaneval,spelling/small --limit=0 --max_new_tokens=512"
stage mid "config/${name}_mid.py" $exams

# ---- Supervised fine-tuning: imitate good answers
stage sft "config/${name}_sft.py" $exams

# ---- Reinforcement: try each problem several times and do more of what worked
stage rl "config/${name}_rl.py" $exams

# ---- Chat
echo "The report is $out/report.md. To chat: python sample.py --out_dir=$out/rl --chat"
