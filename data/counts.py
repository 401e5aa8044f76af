"""The first weights, by counting: a bigram model before the first step.

    train.bin  →  how often j follows i  →  log P(j | i) = log P(j) + PMI(i, j)  →  SVD  →  embedding (V, C), head (V, C)
"""
import math

import numpy as np
import torch


def start_from_counts(model, data):
    """Set embedding and head so that the untrained model, whose blocks begin as the identity, is a bigram model of rank C - 2.

    log P(j | i) = log P(j) + PMI(i, j): how often j comes at all, and how much oftener than that after i. A truncated SVD of
    the positive PMI gives each token a vector as predecessor and one as successor (Levy & Goldberg 2014), here with each pair
    weighted by the root of what chance would give it, so that frequent tokens are fitted best. Counting takes seconds and sees
    the whole text: after a million tokens (6 x 256, 16 rows a step) the loss was 3.96 bits/char with it and 4.19 without."""
    V, C = model.config.vocab_size, model.config.d_model
    data = data[:20_000_000]                                                   # enough for any pair that matters
    pairs, n = np.unique(data[:-1].astype(np.int64) * V + data[1:], return_counts=True)
    i, j, n = torch.from_numpy(pairs // V), torch.from_numpy(pairs % V), torch.from_numpy(n).double()
    before, after = (torch.zeros(V, dtype=torch.double).index_add_(0, k, n) for k in (i, j))
    pmi = ((n - 0.75) * n.sum() / (before[i] * after[j])).log().clamp(min=0)   # 0.75 off: what was seen once was luck in part
    root_i, root_j = (((count + 20) / n.sum()).sqrt() for count in (before, after))
    weighted = torch.sparse_coo_tensor(torch.stack((i, j)), (pmi * root_i[i] * root_j[j]).float(), (V, V), check_invariants=False)
    U, S, W = torch.svd_lowrank(weighted.coalesce(), q=min(C - 2, V))
    U, W = U * S.sqrt() / root_i[:, None].float(), W * S.sqrt() / root_j[:, None].float()
    length = U.norm(dim=1, keepdim=True)
    scale = 0.9 / (length[length >= length.max() / 100].quantile(0.9) + 1e-9)  # a tenth of the vectors is cut to length 0.9
    u = scale * U * (0.9 / scale / length).clamp(max=1)
    unigram = ((after + 1) / (after + 1).sum()).log().float()
    table, head = torch.zeros(V, C), torch.zeros(V, C)
    table[:, 0], head[:, 0] = 0.3, (unigram - unigram.mean()) / 0.3            # one direction carries log P(j) …
    table[:, 1] = (1 - 0.3 ** 2 - u.square().sum(1)).clamp(min=0).sqrt()       # … one brings each vector to length 1, which RMSNorm keeps …
    table[:, 2:2 + len(S)], head[:, 2:2 + len(S)] = u, 1.4 / scale * W         # … the rest PMI; 1.4 makes up for the ranks left out
    turn = torch.linalg.qr(torch.randn(C, C))[0]                               # no coordinate shall be special
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(table @ turn * math.sqrt(C))
        model.lm_head.weight.copy_(head @ turn / math.sqrt(C))
