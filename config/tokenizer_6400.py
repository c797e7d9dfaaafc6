# A tokenizer with MiniMind's size and layout. 6,400 ids, so that a small model spends few
# parameters on its embeddings. Ids 0 to 2 are the special tokens of its conversations (ChatML).
#
# $ python tokenizer.py config/tokenizer_6400.py --input=FILES --out=tok.json

vocab_size = 6400
special = '<|endoftext|>,<|im_start|>,<|im_end|>'
special_first = True
