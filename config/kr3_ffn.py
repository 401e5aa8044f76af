# What attention buys: kr3.py's data and schedule, and an MLP over the last 8 tokens.
data_dir = 'data/kr3'
out_dir = 'out/kr3_ffn'
arch = 'ffn'
window = 8
d_model = 512
n_layers = 8
batch_size = 64
epochs = 8
dropout = 0.1
table_decay = 1
