# One id per character.  python prepare.py --mode=manual first. A review is twice as many tokens, so
# rows are twice as long.
data_dir = 'data/kr3'
out_dir = 'out/kr3_manual'
mode = 'manual'
d_model = 512
n_layers = 8
chunk_size = 512
batch_size = 32
epochs = 8
dropout = 0.1
table_decay = 1
read_share = 0.5      # eight epochs ask for each rating some four times; 0.7 costs more bits
