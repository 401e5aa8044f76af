"""The first weights, by counting: a bigram model before the first step.

    train.bin  →  how often j follows i  →  log P(j | i) = log P(j) + PMI(i, j)  →  SVD  →
    embedding (V, C), head (V, C)
"""
import math

import numpy as np
import torch

MOST_TOKENS = 20_000_000  # to count; enough for any pair that matters
PIECE = 2 ** 16           # a longer stream is sampled in pieces of so many tokens, evenly spaced
DISCOUNT = 0.75           # off each count, for counts of one mislead (Ney et al. 1994)
# The next four were tuned, not derived.
SMOOTHING = 20            # added to each token's count where a pair is weighed for the fit
UNIGRAM_SIZE = 0.3        # coordinate 0 of every embedding of length 1: it carries log P(j)
PMI_SIZE = 0.9            # the longest that the PMI part of an embedding may be
PMI_GAIN = 1.4            # makes up for what is left out: negative PMI, faint directions


@torch.no_grad()
def init_from_bigrams(model, tokens):
    """Set embedding and head so that the untrained model, whose blocks begin as the identity, is a
    bigram model of rank C - 2:

        head_j · embedding_i  ≈  log P(j | i)  =  log P(j) + PMI(i, j)

    up to a constant, which the softmax removes. PMI, pointwise mutual information, says how much
    more often j follows i than j occurs overall; where it is less often, 0 is taken (positive PMI).
    Its truncated SVD gives each token a vector as predecessor and one as successor (Levy & Goldberg
    2014). tokens: the ids (N,) of the whole stream, even where a run trains on a part of it.
    """
    V, C = model.config.vocab_size, model.config.d_model
    # (V, rank), (V, rank), (V,)
    predecessor, successor, log_p = factor_bigrams(sample_stream(tokens), V, C)
    rank = predecessor.shape[1]                               # C - 2, or V where that is smaller

    # RMSNorm removes the length of an embedding, so only its direction counts. Each is built as a
    # unit vector:
    #     embedding_i = (UNIGRAM_SIZE, filler_i, pmi_part_i …)        filler: what is missing to 1
    #     head_j      = (log P(j) / UNIGRAM_SIZE, 0, PMI_GAIN / scale · successor_j …)
    # so head_j · embedding_i ≈ log P(j) + PMI_GAIN · shrink_i · PMI(i, j); the gain was tuned.
    length = predecessor.norm(dim=1, keepdim=True)
    # nine in ten do not exceed it; rare tokens, with vectors near 0, are left out
    usual_length = length[length >= length.max() / 100].quantile(0.9) + 1e-9
    scale = PMI_SIZE / usual_length
    shrink = (usual_length / length).clamp(max=1)             # the longest tenth, to that length
    pmi_part = scale * shrink * predecessor
    filler = (1 - UNIGRAM_SIZE ** 2 - pmi_part.square().sum(dim=1)).clamp(min=0).sqrt()

    embedding, head = torch.zeros(V, C), torch.zeros(V, C)
    embedding[:, 0] = UNIGRAM_SIZE
    head[:, 0] = (log_p - log_p.mean()) / UNIGRAM_SIZE
    embedding[:, 1] = filler
    embedding[:, 2:2 + rank] = pmi_part
    head[:, 2:2 + rank] = PMI_GAIN / scale * successor

    rotation = torch.linalg.qr(torch.randn(C, C))[0]          # so that no coordinate is special
    # entries of size 1, as RMSNorm makes them; the head makes up for it
    model.model.embed_tokens.weight.copy_(embedding @ rotation * math.sqrt(C))
    model.lm_head.weight.copy_(head @ rotation / math.sqrt(C))


def sample_stream(tokens):
    """All tokens (N,), or MOST_TOKENS of it in pieces from the whole of its length."""
    if len(tokens) <= MOST_TOKENS:
        return np.asarray(tokens)
    starts = np.linspace(0, len(tokens) - PIECE, MOST_TOKENS // PIECE).astype(np.int64)
    return np.concatenate([tokens[start:start + PIECE] for start in starts])


def factor_bigrams(tokens, V, C):
    """Count the pairs in tokens and factor their positive PMI.

    Returns predecessor (V, rank), successor (V, rank), log P (V,). A pair has the weight
    √(P(i) P(j)), so that frequent pairs are fitted best.
    """
    # ids are below 2^16, so i * V + j fits into 32 bits
    pairs, n = np.unique(tokens[:-1].astype(np.uint32) * np.uint32(V) + tokens[1:],
                         return_counts=True)
    pairs = torch.from_numpy(pairs.astype(np.int64))
    i, j = pairs // V, pairs % V
    n = torch.from_numpy(n).double()                                   # how often j follows i
    total = n.sum()
    n_before = torch.zeros(V, dtype=torch.double).index_add_(0, i, n)  # how often i comes first
    n_after = torch.zeros(V, dtype=torch.double).index_add_(0, j, n)   # how often j comes second
    pmi = ((n - DISCOUNT) * total / (n_before[i] * n_after[j])).log().clamp(min=0)
    weight_before = ((n_before + SMOOTHING) / total).sqrt()
    weight_after = ((n_after + SMOOTHING) / total).sqrt()
    weighted = (pmi * weight_before[i] * weight_after[j]).float()
    with torch.sparse.check_sparse_tensor_invariants(False):           # or torch 2.11 warns
        matrix = torch.sparse_coo_tensor(torch.stack((i, j)), weighted, (V, V)).coalesce()
    U, S, W = torch.svd_lowrank(matrix, q=min(C - 2, V))               # matrix ≈ U diag(S) Wᵀ
    predecessor = U * S.sqrt() / weight_before[:, None].float()
    successor = W * S.sqrt() / weight_after[:, None].float()
    log_p = ((n_after + 1) / (n_after + 1).sum()).log().float()
    return predecessor, successor, log_p
