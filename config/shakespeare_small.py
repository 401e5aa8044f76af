# Tiny Shakespeare in the shape of nanoGPT's recipe for a CPU: 4 layers of 128, 64 characters back.
data_dir = 'data/shakespeare'
out_dir = 'out/shakespeare_small'
mode = 'manual'
d_model = 128
n_layers = 4
nhead = 4
chunk_size = 64
batch_size = 12
n_tokens = 0.2        # million, of 1.0: nanoGPT's recipe reads 1.5
lr = 8e-3
eval_interval = 400   # one validation, at the end
eval_tokens = 0       # of all characters
