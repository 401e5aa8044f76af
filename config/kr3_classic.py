# The system this one replaces, in its own numbers. Prepare its data first:
# python prepare.py --model_name=skt/kogpt2-base-v2 --output_dir=data/kr3_kogpt2
data_dir = 'data/kr3_kogpt2'
out_dir = 'out/kr3_classic'
d_model = 256
d_ffn = 1024
n_layers = 6
chunk_size = 256
batch_size = 64
optimizer = 'adamw'
bigram_init = False
read_share = 0        # it was never asked for a rating
lr = 1e-3
n_tokens = 30         # million
epochs = 1
