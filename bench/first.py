"""Lesson 0, continued: the model of model.py trained on what prepare.py wrote, plain or with this
project's ideas, one after the other. On a CPU; nothing is saved.

    python prepare.py --source=shakespeare
    python -m bench.first
    python -m bench.first --ideas=weights,counting,muon,schedule,packing
    python -m bench.first --data_dir=data/mine --mode=tokenizer --prompt="It was"      # your text

Without ideas it trains as nanoGPT does, with a higher rate, a shorter warmup and an eighth of the
steps; the model is this project's. With all of them it is `train.py config/shakespeare_small.py
--dtype=float32`.
"""
import math
from types import SimpleNamespace

import numpy as np
import torch

from bench.lesson import B, T, score  # a step reads B rows of T tokens
from configurator import configure
from model import Config, build, generate
from parts.bigram import init_from_bigrams
from parts.data import Data, read_meta
from parts.errors import UserError, run_script
from parts.optim import get_lr, make_optimizer
from parts.scoring import BITS_OF_UNSEEN
from parts.vocabulary import load_vocabulary

ideas = ''                     # which of IDEAS to use, with commas between them ('': none)
data_dir = 'data/shakespeare'  # what prepare.py wrote
mode = 'manual'                # which of its vocabularies
n_tokens = 0.2                 # million tokens to read
lr = 0.0                       # peak learning rate (0: the best of those tried)
seed = 0                       # of the first weights and the choice of rows
prompt = 'ROMEO:'              # the beginning that it continues at the end
configure(globals())

IDEAS = ('weights', 'counting', 'muon', 'schedule', 'packing')


def main():
    ours = ideas.split(',') if ideas else []
    if not set(ours) <= set(IDEAS):
        raise UserError(f"ideas='{ideas}': choose from {','.join(IDEAS)}")
    if not 0 <= seed < 2 ** 63 or lr < 0 or n_tokens <= 0:
        raise UserError('seed and lr take 0 or more, n_tokens more than 0')
    meta = read_meta(data_dir, mode)
    vocabulary = load_vocabulary(f'{data_dir}/{mode}')
    train, val = read_ids('train'), read_ids('val')
    if min(len(train), len(val)) <= T:
        raise UserError(f'{data_dir} has too little text')
    some = train[2:12].tolist()                               # after </s> and the start token
    print(f'{len(train):,} ids to learn from; {some} decodes to {vocabulary.decode(some)!r}')
    steps = max(1, int(n_tokens * 1e6) // (B * T))

    torch.manual_seed(seed)
    model = build(Config(meta['vocab_size'], d_model=128, d_ffn=384, n_layers=4, nhead=4,
                         chunk_size=T, eos=meta['eos'], bos=meta['starts']['unknown']))
    if 'weights' not in ours:
        gpt2_weights(model)
    if 'counting' in ours:
        init_from_bigrams(model, train)                       # nearly a bigram model, at once
    optimizer, peak = choose_optimizer(model, ours)
    batch = choose_rows(train, meta, ours)

    for step in range(steps):
        if 'schedule' in ours:                                # up, level, linearly down to zero
            rate = get_lr(step, steps, peak)
        else:                                                 # up, then down to a tenth
            cosine = 0.55 + 0.45 * math.cos(math.pi * step / steps)           # from 1 to 0.1
            rate = peak * min((step + 1) / 10, cosine)
        for group in optimizer.param_groups:
            group['lr'] = rate * group.get('lr_mult', 1)              # times 1 without Muon
        x, y = batch(step)                                    # (B, T) each: ids, the id after each
        nats, _ = model(x, y)                                 # summed over y (_: for ratings)
        loss = nats / (y >= 0).sum()                          # the mean; -1 in y is no token
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            print(f'step {step}/{steps}  loss {loss.item():.3f}', flush=True)

    nats = score(model, torch.from_numpy(val))                # a mean over the held-out ids
    bits = nats / math.log(2) * (len(val) - 1)
    bits += BITS_OF_UNSEEN * meta['val_unseen']               # which character each <unk> was
    bits /= meta['val_chars']
    print(f'held out: {nats:.3f} nats per token; '
          f'{bits:.3f} bits, {bits * math.log(2):.3f} nats per character')

    # </s> and the start token of the first held-out text, then the prompt
    beginning = [*val[:2].tolist(), *vocabulary.encode([prompt])[0]]
    columns = generate(model, torch.tensor([beginning]), 300, vocabulary.banned, temperature=0.8)
    print(vocabulary.decode(beginning[2:] + [ids.item() for ids in columns]))


def read_ids(side):
    """The ids (N,) of the training or held-out text, as prepare.py wrote them."""
    return np.fromfile(f'{data_dir}/{mode}/{side}.bin', '<u2').astype(np.int64)


def gpt2_weights(model):
    """As GPT-2 begins (Radford et al. 2019): small, and smaller where a block adds to x."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            adds = name.endswith(('o_proj.weight', 'down_proj.weight'))
            std = 0.02 / math.sqrt(2 * model.config.n_layers) if adds else 0.02
            torch.nn.init.normal_(p, std=std)


def choose_optimizer(model, ours):
    """(the optimizer, its peak learning rate)"""
    if 'muon' in ours:  # for matrices; AdamW for embedding and head, their own rates, no decay
        peak = lr or 8e-3
        optimizer = make_optimizer(model, 'muon', peak, table_decay=0.0,
                                   warm_start='counting' in ours, dtype=torch.float32)
        return optimizer, peak
    decayed = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': gains, 'weight_decay': 0.0}]
    peak = lr or (4e-3 if 'weights' in ours else 2e-3)
    return torch.optim.AdamW(groups, betas=(0.9, 0.99)), peak


def choose_rows(train, meta, ours):
    """The function that gives x (B, T) and y (B, T) of a step."""
    if 'packing' in ours:  # short texts whole, long ones in rows that do not overlap, shuffled
        data = Data(SimpleNamespace(                          # settings of train.py that it reads
            data_dir=data_dir, mode=mode, chunk_size=T, batch_size=B, n_tokens=n_tokens, epochs=1,
            seed=seed, read_share=0, arch='decoder'), meta)
        return lambda step: data.batch(step)[:2]

    def cut_anywhere(step):
        starts = np.random.default_rng((seed, step)).integers(len(train) - T, size=B)
        rows = torch.from_numpy(train[starts[:, None] + np.arange(T + 1)])
        return rows[:, :-1], rows[:, 1:]
    return cut_anywhere


if __name__ == '__main__':
    run_script(main)
