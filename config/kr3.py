# KR3 on one to four GPUs.  torchrun --standalone --nproc_per_node=4 train.py config/kr3.py
data_dir = 'data/kr3'
out_dir = 'out/kr3'
d_model = 512
n_layers = 8
batch_size = 64       # rows of 256 tokens: 16,384 tokens a step, whatever the number of processes
epochs = 8            # in a scale model 4 gave 4.26 bits/char, 8 4.22, 16 4.24: docs/LOG.md
dropout = 0.1         # the same 41M tokens come back: without it 8 epochs gave 4.36, with 0.2 4.26
