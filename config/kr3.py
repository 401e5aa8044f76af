# KR3 on one to four GPUs.  torchrun --standalone --nproc_per_node=4 train.py config/kr3.py
data_dir = 'data/kr3'
out_dir = 'out/kr3'
d_model = 512
n_layers = 8
batch_size = 64       # rows of 256 tokens: 16,384 tokens a step, whatever the number of processes
epochs = 8
dropout = 0.1         # the same 41M tokens come back each epoch
