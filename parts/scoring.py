"""How well does a model read? The surprise of every token, and the rating of a review.

    reviews (ids) → batches of like length → the model → -log P of every token, in nats

A model that writes reviews of a rating also reads ratings, with no head for it, in two ways:

1. It is asked. `</s> <s> text` tells no rating, and in many training rows the model had to name
   it at this point: the logits of the ratings' ids say P(rating | text). One pass.
2. Any model can be asked under which rating the text is likeliest. By Bayes' rule
   P(rating | text) = P(rating) P(text | rating) / P(text), and the model knows both factors:
   P(rating) is what it expects after a lone `</s>`, P(text | rating) the product of what it gives
   to the tokens. (This is a generative classifier.) One pass for each rating.

The first is better, most of all where texts are long or of another kind: the second adds up the
errors of all tokens. See docs/LOG.md.
"""
import math

import torch
import torch.nn.functional as F

# An unseen character, which <unk> hides, is one of the numbers that Unicode can give: all code
# points but the surrogates (The Unicode Standard, D76). All are equally likely.
BITS_OF_UNSEEN = math.log2(0x110000 - 0x800)
POSITIONS_AT_ONCE = 1024   # for the head: logits of all positions, (B, T, V), would fill the memory


# --- surprise: -log P of every token ---

@torch.inference_mode()
def surprise(model, reviews, batch_tokens=8192):
    """How surprised the model is by every token of every review, given the tokens before it.

    reviews: lists of ids, `</s> <rating> tokens… </s>`. Returns a list with one (nats, hit) each.
    Both are tensors one shorter than the review, for its first token is given:
        nats, float32    -log P of the token
        hit, bool        whether the token was the model's first guess
    A review of more than chunk_size tokens is read in pieces of chunk_size, and a piece does not
    see the one before it. A batch has at most batch_tokens tokens, or else one piece.
    """
    results = []
    for review in reviews:
        n_targets = len(review) - 1
        results.append((torch.empty(n_targets), torch.empty(n_targets, dtype=torch.bool)))
    pieces = cut_into_pieces(reviews, model.config.chunk_size)
    for batch in batches_by_length(pieces, batch_tokens):
        scored = score_rows(model, [ids for _, _, ids in batch])
        for (number, first, _), (nats, hit) in zip(batch, scored):
            review_nats, review_hit = results[number]
            review_nats[first:first + len(nats)] = nats
            review_hit[first:first + len(hit)] = hit
    return results


def cut_into_pieces(reviews, chunk_size):
    """[(number of the review, its first target, ids)]: chunk_size inputs, and a target for each."""
    pieces = []
    for number, review in enumerate(reviews):
        for first in range(0, len(review) - 1, chunk_size):
            pieces.append((number, first, review[first:first + chunk_size + 1]))
    return pieces


def batches_by_length(pieces, batch_tokens):
    """Lists of pieces of like length, the longest first. To compute padding is work for nothing."""
    pieces = sorted(pieces, key=n_inputs)
    while pieces:
        longest = n_inputs(pieces[-1])
        n_rows = max(1, batch_tokens // longest)
        yield pieces[-n_rows:]
        del pieces[-n_rows:]


def n_inputs(piece):
    """How many tokens of a piece the model reads: all but the last, which is a target alone."""
    _, _, ids = piece
    return len(ids) - 1


def score_rows(model, rows):
    """(nats, hit) for each row of ids, on the CPU; both are one shorter than the row."""
    device = model.lm_head.weight.device
    padded, n_targets = pad(rows, model.config.eos)           # (B, T+1), (B,)
    is_text = torch.arange(padded.shape[1] - 1) < n_targets[:, None]      # (B, T), not padding
    text = is_text.flatten().nonzero()[:, 0].to(device)       # (N,): all rows, end to end
    padded = padded.to(device)
    x = model.hidden(padded[:, :-1]).flatten(0, 1)[text]      # (N, C)
    targets = padded[:, 1:].flatten()[text]                   # (N,)
    nats, hit = [], []
    for first in range(0, len(x), POSITIONS_AT_ONCE):
        here = slice(first, first + POSITIONS_AT_ONCE)
        logits = model.logits(x[here]).float()                # (1024, V)
        nats.append(F.cross_entropy(logits, targets[here], reduction='none'))
        hit.append(logits.argmax(dim=-1) == targets[here])
    lengths = n_targets.tolist()
    nats = torch.cat(nats).cpu().split(lengths)
    hit = torch.cat(hit).cpu().split(lengths)
    return list(zip(nats, hit))


def pad(rows, eos):
    """Lists of ids → (ids (B, T+1), what is left of a row filled up with eos; targets of each
    row (B,), one fewer than its ids). Both on the CPU.
    """
    n_targets = torch.tensor([len(row) - 1 for row in rows])
    padded = torch.full((len(rows), int(n_targets.max()) + 1), eos)
    for n, row in enumerate(rows):
        padded[n, :len(row)] = torch.tensor(row)
    return padded, n_targets


# --- the rating of a text ---

def rating_log_probs(model, texts, rating_ids, batch_tokens=8192):
    """(N, R) in nats for N texts and R ratings. The softmax of a row is P(rating | text).

    texts: lists of ids without control tokens. rating_ids (R,): the start tokens of the ratings.
    A model that was trained for it is asked; for others Bayes' rule is used.
    """
    if model.config.reads_ratings:
        return asked_ratings(model, texts, rating_ids, batch_tokens)
    return log_joint(model, texts, rating_ids, batch_tokens)


@torch.inference_mode()
def asked_ratings(model, texts, rating_ids, batch_tokens=8192):
    """log P(rating | text) (N, R), as the model says it after `</s> <s> text`.

    A text that does not fit into chunk_size is read in pieces, and the mean over them counts.
    """
    eos, bos = model.config.eos, model.config.bos
    device = model.lm_head.weight.device
    most = max(1, model.config.chunk_size - 2)
    pieces = []  # (number of the text, 0, ids): the form that batches_by_length() takes
    for number, text in enumerate(texts):
        for first in range(0, max(1, len(text)), most):
            pieces.append((number, 0, [eos, bos, *text[first:first + most], eos]))  # no eos is read
    sums = torch.zeros(len(texts), len(rating_ids), device=device)
    n_pieces = torch.zeros(len(texts), 1, device=device)
    for batch in batches_by_length(pieces, batch_tokens):
        padded, n_targets = pad([ids for _, _, ids in batch], eos)
        x = model.hidden(padded[:, :-1].to(device))           # (B, T, C)
        last = n_targets.to(device) - 1                       # (B,)
        x = x[torch.arange(len(batch), device=device), last]  # (B, C), at the end
        log_probs = model.logits(x)[:, rating_ids].float().log_softmax(dim=-1)
        numbers = torch.tensor([number for number, _, _ in batch], device=device)
        sums.index_add_(0, numbers, log_probs)
        n_pieces.index_add_(0, numbers, torch.ones_like(log_probs[:, :1]))
    return (sums / n_pieces).log_softmax(dim=-1).cpu()


def log_joint(model, texts, rating_ids, batch_tokens=8192):
    """log P(rating, text) (N, R) = log P(rating) + log P(text | rating): the sum of the log
    probabilities of all tokens, which is the very sum that training raises.
    """
    eos = model.config.eos
    reviews = [[eos, rating_id, *text, eos] for text in texts for rating_id in rating_ids]
    sums = [-nats.sum() for nats, _ in surprise(model, reviews, batch_tokens)]
    return torch.stack(sums).view(len(texts), len(rating_ids))


# --- negative or positive? ---

def sentiment(model, rating_ids, rated, batch_tokens=8192):
    """Negative against positive, as the authors of KR3 test it: see sentiment_scores.

    rated: [(rating, ids)] of negative (0) and positive (1) reviews.
    """
    texts = [ids for _, ids in rated]
    log_odds, even_log_odds = positive_log_odds(model, rating_ids, texts, batch_tokens)
    return sentiment_scores([rating for rating, _ in rated], log_odds, even_log_odds)


@torch.inference_mode()
def positive_log_odds(model, rating_ids, texts, batch_tokens=8192):
    """log P(positive | text) less log P(negative | text), for every text; and the same without
    P(rating), which is what the model expects after a lone `</s>`.
    """
    two_ids = rating_ids[:2]
    log_probs = rating_log_probs(model, texts, two_ids, batch_tokens).double()   # (N, 2)
    nothing_read = torch.tensor([[model.config.eos]], device=model.lm_head.weight.device)
    prior = model(nothing_read)[0, 0, two_ids].cpu().double()  # an Apple GPU has no doubles
    log_odds = log_probs[:, 1] - log_probs[:, 0]
    return log_odds.tolist(), (log_odds - (prior[1] - prior[0])).tolist()


def sentiment_scores(truth, log_odds, even_log_odds):
    """How well evidence tells positive from negative reviews: what `eval.py --json=true` prints.

    truth: 0 or 1 for each review, both present. log_odds: log P(positive, text) less
    log P(negative, text). even_log_odds: the same without P(rating), which leans to the commoner
    rating; it is the right one where a test set is half and half. Balanced accuracy and macro-F1
    count both ratings alike. The area under the ROC curve depends on no threshold.
    """
    table = confusion_table(truth, log_odds)
    even_table = confusion_table(truth, even_log_odds)
    f1 = 2 * table.diagonal() / (table.sum(dim=0) + table.sum(dim=1))
    return {
        'sentiment_accuracy': (table.diagonal().sum() / table.sum()).item(),
        'sentiment_balanced_accuracy': balanced_accuracy(table),
        'sentiment_balanced_accuracy_at_even_odds': balanced_accuracy(even_table),
        'sentiment_macro_f1': f1.mean().item(),
        'sentiment_auc': area_under_roc(truth, log_odds),
        'confusion': table.long().tolist(),
    }


def confusion_table(truth, log_odds):
    """How many reviews of each rating (rows) were read as which (columns): (2, 2) float64.

    Where the log-odds are 0 the model cannot tell, and the review is read as positive, whatever
    it is. So a model that never can tell has a balanced accuracy of 0.5.
    """
    table = torch.zeros(2, 2, dtype=torch.float64)
    for rating, evidence in zip(truth, log_odds):
        guess = 1 if evidence >= 0 else 0
        table[rating, guess] += 1
    return table


def balanced_accuracy(table):
    """The mean of two shares: negative reviews that were read right, and positive ones."""
    recall = table.diagonal() / table.sum(dim=1)
    return recall.mean().item()


def area_under_roc(truth, scores):
    """The probability that a positive review has a higher score than a negative one; 0.5 is chance.

    Computed from ranks; equal scores share the mean of theirs, so a tie counts as half a win
    (Mann & Whitney 1947; Hanley & McNeil 1982).
    """
    truth = torch.tensor(truth)
    scores = torch.tensor(scores, dtype=torch.float64)
    _, group, size = scores.unique(return_inverse=True, return_counts=True)  # equal scores, rising
    last_rank = size.cumsum(dim=0)                            # of each group, counting from 1
    mean_rank = last_rank - (size.double() - 1) / 2
    n_positive = int((truth == 1).sum())
    n_negative = len(truth) - n_positive
    rank_sum = mean_rank[group][truth == 1].sum().item()
    wins = rank_sum - n_positive * (n_positive + 1) / 2       # of n_positive * n_negative pairs
    return wins / (n_positive * n_negative)
