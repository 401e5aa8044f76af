"""How a model reads: surprise token by token, the rating of a text, negative against positive."""
import random

import pytest
import torch
from conftest import random_model

from model import Config, build
from parts.scoring import (
    batches_by_length,
    cut_into_pieces,
    rating_log_probs,
    sentiment,
    sentiment_scores,
    surprise,
)

EOS = 0
both_archs = pytest.mark.parametrize('arch', ['decoder', 'ffn'])


def fresh_model(arch='decoder'):
    """A model at the start of training: its head is zero, so all tokens are equally likely."""
    torch.manual_seed(0)
    config = Config(vocab_size=50, arch=arch, d_model=32, d_ffn=48, n_layers=2, nhead=2,
                    chunk_size=16, window=4, eos=EOS)
    return build(config).eval()


def random_ids(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 50, (n,), generator=generator).tolist()


# --- surprise ---

@both_archs
def test_surprise_is_the_loss_review_by_review(arch):
    model = random_model(arch)
    reviews = [[EOS, *random_ids(n, seed=n), EOS] for n in (3, 14, 1, 40, 9, 0)]
    scored = surprise(model, reviews, batch_tokens=32)
    for review, (nats, hit) in zip(reviews, scored, strict=True):
        inputs = torch.tensor([review[:-1]])
        targets = torch.tensor(review[1:])
        pieces = [model(piece) for piece in inputs.split(16, dim=1)]  # chunk_size at a time
        log_probs = torch.cat(pieces, dim=1)[0].log_softmax(dim=-1)   # (T, V)
        own = log_probs.gather(1, targets[:, None])[:, 0]
        assert torch.allclose(nats, -own, atol=1e-4)
        assert torch.equal(hit, log_probs.argmax(dim=-1) == targets)


def test_neither_batches_nor_slices_of_the_head_change_the_surprise(monkeypatch):
    model = random_model()
    reviews = [[EOS, *random_ids(n, seed=n), EOS] for n in range(20)]
    alone = surprise(model, reviews, batch_tokens=1)
    monkeypatch.setattr('parts.scoring.POSITIONS_AT_ONCE', 7)
    together = surprise(model, reviews, batch_tokens=1000)
    for (nats, hit), (nats_together, hit_together) in zip(alone, together, strict=True):
        assert torch.allclose(nats, nats_together, atol=1e-5)
        assert torch.equal(hit, hit_together)


def test_every_piece_is_read_once_in_batches_of_bounded_size():
    reviews = [random_ids(n, seed=n) for n in (2, 17, 5, 33, 18, 9, 100)]
    pieces = cut_into_pieces(reviews, chunk_size=16)
    batches = list(batches_by_length(pieces, batch_tokens=40))
    assert sorted(piece for batch in batches for piece in batch) == sorted(pieces)
    longest = [max(len(ids) - 1 for _, _, ids in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(len(batch) * n <= 40 for batch, n in zip(batches, longest))
    for number, review in enumerate(reviews):
        targets = [ids[1:] for n, _, ids in pieces if n == number]
        assert sum(targets, []) == review[1:]


# --- the rating of a text ---

def test_rating_log_probs_are_bayes_rule():
    model = random_model()
    text = [5, 9, 11]
    log_probs = rating_log_probs(model, [text, []], rating_ids=[1, 2, 3])
    assert log_probs.shape == (2, 3)
    for column, rating_id in enumerate((1, 2, 3)):
        ids = torch.tensor([[EOS, rating_id, *text, EOS]])
        nats, _ = model(ids[:, :-1], ids[:, 1:])
        assert log_probs[0, column].item() == pytest.approx(-nats.item(), abs=1e-4)


@both_archs
def test_a_model_that_reads_is_asked_at_the_end_of_the_text(arch):
    model = random_model(arch, reads_ratings=True, bos=7)             # chunk_size is 16
    short, longer = [5, 9, 11], random_ids(30)
    rating_ids = [1, 2, 3]

    def asked(text):
        logits = model(torch.tensor([[EOS, 7, *text]]))[0, -1, rating_ids]
        return logits.log_softmax(dim=0)

    pieces = [asked(longer[:14]), asked(longer[14:28]), asked(longer[28:])]
    wanted = torch.stack((asked(short), asked([]), sum(pieces) / 3)).log_softmax(dim=1)
    for batch_tokens in (1, 10_000):
        found = rating_log_probs(model, [short, [], longer], rating_ids, batch_tokens)
        assert torch.allclose(found, wanted, atol=1e-5)


# --- negative or positive? ---

@both_archs
def test_what_a_reading_model_says_of_negative_and_positive(arch):
    model = random_model(arch, reads_ratings=True, bos=7)
    rated = [(n % 2, random_ids(n + 1, seed=n)) for n in range(30)]
    scores = sentiment(model, [1, 2, 3], rated)
    prior = model(torch.tensor([[EOS]]))[0, 0].log_softmax(dim=-1)[1:3]
    log_probs = rating_log_probs(model, [ids for _, ids in rated], [1, 2])
    truth = torch.tensor([rating for rating, _ in rated])
    hits, even_hits = [], []
    for rating in (0, 1):
        here = truth == rating
        hits.append((log_probs.argmax(dim=1)[here] == rating).double().mean())
        even_hits.append(((log_probs - prior).argmax(dim=1)[here] == rating).double().mean())
    assert scores['sentiment_balanced_accuracy'] == pytest.approx(float(sum(hits) / 2))
    told = scores['sentiment_balanced_accuracy_at_even_odds']
    assert told == pytest.approx(float(sum(even_hits) / 2))
    assert 0 < scores['sentiment_balanced_accuracy'] < 1, 'or this tests little'


def test_scores_that_all_tie_are_no_better_than_a_coin():
    model = fresh_model()                                     # says log 50 nats of every token
    rated = [(rating, random_ids(n, seed=n)) for n, rating in enumerate([0, 1, 1, 0, 1, 1, 1])]
    scores = sentiment(model, [1, 2], rated)
    assert scores['sentiment_balanced_accuracy'] == 0.5
    assert scores['sentiment_balanced_accuracy_at_even_odds'] == 0.5
    assert scores['sentiment_auc'] == 0.5
    assert scores['confusion'] == [[0, 2], [0, 5]]


def test_sentiment_scores_by_hand():
    truth = [0, 0, 0, 1, 1, 1, 1, 1]
    log_odds = [-2, -1, 3, -1, 1, 2, 4, 5]                    # wrong: the third and the fourth
    even_log_odds = [-2, -1, -3, 1, 1, 2, 4, 5]               # none is
    scores = sentiment_scores(truth, log_odds, even_log_odds)
    assert scores['confusion'] == [[2, 1], [1, 4]]
    assert scores['sentiment_accuracy'] == pytest.approx(6 / 8)
    assert scores['sentiment_balanced_accuracy'] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores['sentiment_balanced_accuracy_at_even_odds'] == 1
    assert scores['sentiment_macro_f1'] == pytest.approx((2 * 2 / 6 + 2 * 4 / 10) / 2)
    wins = 4.5 + 5 + 2                                        # positives above -1 (a tie), -2 and 3
    assert scores['sentiment_auc'] == pytest.approx(wins / 15)


def test_scikit_learn_computes_the_same_scores():
    metrics = pytest.importorskip('sklearn.metrics')
    source = random.Random(1)
    truth = [source.randint(0, 1) for _ in range(500)]
    log_odds = [round(source.gauss(rating, 2), 1) for rating in truth]
    guess = [int(evidence >= 0) for evidence in log_odds]
    scores = sentiment_scores(truth, log_odds, log_odds)
    assert scores['sentiment_auc'] == pytest.approx(metrics.roc_auc_score(truth, log_odds))
    assert scores['sentiment_macro_f1'] == pytest.approx(
        metrics.f1_score(truth, guess, average='macro'))
    assert scores['sentiment_balanced_accuracy'] == pytest.approx(
        metrics.balanced_accuracy_score(truth, guess))
    assert scores['confusion'] == metrics.confusion_matrix(truth, guess).tolist()
