#!/usr/bin/env bash
# A ChatGPT's whole life on a laptop: from nothing to a model to talk to, on two CPU cores, with no data to download.
#
#     bash quickstart.sh
#
# Stop it whenever you like (Ctrl-C); started again, it goes on where it stopped. While it runs, a second terminal's
# `python report.py out/tinyworld` shows how far it has come.
set -euo pipefail
trap 'exit 130' INT # train.py answers Ctrl-C by saving and leaving in peace: the stages after it must not begin
cd "$(dirname "${BASH_SOURCE[0]}")"

# ---- Installation: into the virtual environment that is active, else into .venv
for python in python python3 none; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null && break
done
if [ "$python" = none ]; then
    echo 'Python 3.10 or newer is needed, on the PATH as python or python3: https://www.python.org' >&2
    exit 1
fi
if "$python" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
    [ -e .venv/bin/activate ] || [ -e .venv/Scripts/activate ] || "$python" -m venv .venv
    source .venv/bin/activate 2> /dev/null || source .venv/Scripts/activate # the latter on Windows
fi
if ! python -c 'import matplotlib, numpy, regex, requests, tiktoken, tqdm, torch
assert (2, 9) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)' 2> /dev/null; then
    echo 'Installing PyTorch and a few small packages; this may take minutes.'
    python -m pip --version > /dev/null 2>&1 || python -m ensurepip > /dev/null # where uv made the environment
    if [ "$(uname)" = Linux ] && ! nvidia-smi -L > /dev/null 2>&1; then
        # no NVIDIA card: PyTorch's CPU build is a tenth as large, and stands on PyTorch's own index only
        python -m pip install --quiet --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
            'torch>=2.9,<2.14' 2> /dev/null || echo "PyTorch's own index has none for us: taking the large build."
    fi
    python -m pip install --quiet '.[report]'
fi

# ---- Data: a small world of people, places and things, in text, conversations and problems; and a tokenizer for it
if [ ! -e data/tinyworld/problems.jsonl ]; then
    python data/tinyworld/prepare.py
fi

# ---- Games: rows of words that come again in another order. Before any language the model learns to look back
python train.py config/tinyworld_games.py

# ---- Pretraining: guess the next token of plain text. The model picks up words, grammar and the facts of its world
python train.py config/tinyworld_pretrain.py

# ---- Midtraining: the form of a conversation: whose turn it is, choosing one of several answers, when to take the calculator
python train.py config/tinyworld_mid.py

# ---- Supervised fine-tuning (SFT): imitate good answers to all that people may ask. Now it can chat
python train.py config/tinyworld_sft.py

# ---- Preferences (DPO): of two answers, make the one that is right, polite and to the point the likelier
python train.py config/tinyworld_dpo.py

# ---- Reinforcement (RL): try each problem several times, do more of what came out right. This goes beyond imitation
python train.py config/tinyworld_rl.py

# ---- Examination: problems that no stage has learned from
python evaluate.py --out_dir=out/tinyworld/rl --limit=100 --json=out/tinyworld/exam.json

# ---- Report: what each stage cost and what it changed, with plots
python report.py out/tinyworld

# ---- And now: talk to it
echo 'The report is out/tinyworld/report.md. To chat: python sample.py --chat'
