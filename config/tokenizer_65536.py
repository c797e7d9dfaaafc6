# A tokenizer of 65,536 ids, nanochat's size: as many as a uint16 can name. Our nine special tokens come last.
#
# $ python tokenizer.py config/tokenizer_65536.py --input=FILES --out=tok.json

from conversation import SPECIAL

vocab_size = 2**16
special = ','.join(SPECIAL)
max_chars = 2_000_000_000  # more text changes few merges
