#!/usr/bin/env bash
# The whole life of a ChatGPT on a laptop: from nothing to a model that chats, on two CPU cores,
# without a download of data.
#
#     bash quickstart.sh
#
# Stop it at any time (Ctrl-C) and run it again to resume. To see the progress, run
# `python report.py out/tinyworld` in a second terminal.
set -euo pipefail
trap 'exit 130' INT # after Ctrl-C train.py saves and exits with 0; later stages must not start
cd "$(dirname "${BASH_SOURCE[0]}")"

# ---- Installation: into the active virtual environment, else into .venv
for python in python python3 none; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null && break
done
if [ "$python" = none ]; then
    echo 'Python 3.10 or newer is needed, on the PATH as python or python3: https://www.python.org' >&2
    exit 1
fi
if "$python" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
    [ -e .venv/bin/activate ] || [ -e .venv/Scripts/activate ] || "$python" -m venv .venv
    source .venv/bin/activate 2> /dev/null || source .venv/Scripts/activate # on Windows
fi
if ! python -c 'import matplotlib, numpy, regex, requests, tiktoken, tqdm, torch
assert (2, 9) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)' 2> /dev/null; then
    echo 'Installing PyTorch and a few small packages; this may take minutes.'
    # an environment made by uv has no pip
    python -m pip --version > /dev/null 2>&1 || python -m ensurepip > /dev/null
    if [ "$(uname)" = Linux ] && ! nvidia-smi -L > /dev/null 2>&1; then
        # no NVIDIA card: PyTorch's CPU build is a tenth as large, and only on PyTorch's own index
        python -m pip install --quiet --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
            'torch>=2.9,<2.14' 2> /dev/null || echo "PyTorch's own index has none for us: taking the large build."
    fi
    python -m pip install --quiet '.[report]'
fi

# ---- Data: a small world of people, places and things, as text, conversations and problems; and
# its tokenizer
if [ ! -e data/tinyworld/problems.jsonl ]; then
    python data/tinyworld/prepare.py
fi

# ---- Games: words that are repeated in another order. Before any language the model learns to look
# back
python train.py config/tinyworld_games.py

# ---- Pretraining: predict the next token of plain text. The model learns words, grammar and the
# facts of its world
python train.py config/tinyworld_pretrain.py

# ---- Midtraining: the format of a conversation: whose turn it is, multiple choice, when to use the
# calculator
python train.py config/tinyworld_mid.py

# ---- Supervised fine-tuning (SFT): imitate good answers to everything people may ask. Now the
# model can chat
python train.py config/tinyworld_sft.py

# ---- Preferences (DPO): of two answers, make the one that is right, polite and to the point more
# likely
python train.py config/tinyworld_dpo.py

# ---- Reinforcement (RL): try each problem several times and do more of what worked. This goes
# beyond imitation
python train.py config/tinyworld_rl.py

# ---- Exam: problems that no stage has learned from
python evaluate.py --out_dir=out/tinyworld/rl --limit=100 --json=out/tinyworld/exam.json

# ---- Report: the cost and the effect of each stage, with plots
python report.py out/tinyworld

# ---- Chat
echo 'The report is out/tinyworld/report.md. To chat: python sample.py --chat'
