"""The models: what a token may look at, the cache, sampling, guidance, dropout."""
import math

import pytest
import torch
from conftest import random_model

from model import Config, build, generate, sample_ids
from parts.guidance import Guided

EOS = 0
both = pytest.mark.parametrize('arch', ['decoder', 'ffn'])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_ids(B, T, seed=1):
    """(B, T) ids without `</s>`."""
    return torch.randint(1, 50, (B, T), generator=seeded(seed))


def written(*args, **more):
    """What generate() yields, as (B, tokens)."""
    return torch.stack(list(generate(*args, **more)), dim=1)


def assert_close(a, b, atol):
    assert torch.allclose(a, b, atol=atol)


def assert_not_close(a, b, atol):
    assert not torch.allclose(a, b, atol=atol)


# --- what a token may look at ---

@both
def test_a_fresh_model_knows_nothing(arch):
    model = build(Config(vocab_size=50, arch=arch, d_model=32, d_ffn=48, n_layers=2, nhead=2))
    x = random_ids(2, 8)
    token_loss, rating_loss = model(x, x)
    assert token_loss.item() == pytest.approx(16 * math.log(50))
    assert rating_loss == 0


@both
def test_no_token_sees_the_future_or_another_text(arch):
    model = random_model(arch)
    x = random_ids(1, 12)
    x[0, 0] = EOS
    x[0, 6] = EOS
    logits = model(x)[0]                                           # (T, V)

    other_future = x.clone()
    other_future[0, 9:] = 7
    changed = model(other_future)[0]
    assert_close(changed[:9], logits[:9], atol=1e-6)
    assert_not_close(changed[9:], logits[9:], atol=1e-3)

    other_neighbour = x.clone()
    other_neighbour[0, 1:6] = 7
    changed = model(other_neighbour)[0]
    assert_close(changed[6:], logits[6:], atol=1e-6)
    assert_not_close(changed[1:6], logits[1:6], atol=1e-3)

    # Nor does it matter where in the row a text stands.
    assert_close(model(x[:, 6:])[0], logits[6:], atol=1e-5)


@pytest.mark.parametrize('arch, reach', [('decoder', 2 * 15), ('ffn', 3)])
def test_the_decoder_looks_chunk_size_back_in_each_layer_and_the_ffn_a_window(arch, reach):
    model = random_model(arch)
    x = random_ids(1, 40)
    last_logits = model(x)[0, -1]                                  # (V,)
    other = x.clone()
    other[0, :39 - reach] = 7                                      # all that is out of reach
    assert_close(model(other)[0, -1], last_logits, atol=1e-6)
    other[0, :40 - reach] = 7                                      # and the first token within it
    assert_not_close(model(other)[0, -1], last_logits, atol=1e-6)


# --- the loss ---

@both
def test_a_rating_competes_with_the_other_ratings_alone(arch):
    model = random_model(arch)
    x = torch.tensor([[0, 1, 9, 11, 0, 1, 12, 13], [0, 3, 5, 6, 7, 8, 9, 10]])
    y = torch.tensor([[3, 9, 11, 0, 3, 12, 13, 0], [3, 5, 6, 7, 8, 9, 10, 0]])
    ratings = torch.full_like(x, -1)
    ratings[0, 3], ratings[0, 7] = 2, 0
    rating_ids = torch.tensor([3, 4, 5])
    token_loss, rating_loss = model(x, y, ratings, rating_ids)
    assert token_loss == model(x, y)[0]
    log_p = model(x)[0, :, 3:6].log_softmax(dim=-1)                # (T, 3)
    assert rating_loss.item() == pytest.approx(-(log_p[3, 2] + log_p[7, 0]).item())


def test_what_stays_empty_is_no_target():
    model = random_model()
    x = random_ids(2, 8)
    y = x.clone()
    y[:, 5:] = -1
    expected, _ = model(x[:, :5], x[:, :5])
    assert model(x, y)[0].item() == pytest.approx(expected.item(), rel=1e-5)


# --- the cache ---

@both
@pytest.mark.parametrize('T', [1, 7, 16, 30])
def test_logits_through_the_cache_equal_those_of_the_whole_pass(arch, T):
    """Also past chunk_size, which is 16, and for a prompt that is longer."""
    model = random_model(arch).double()
    x = random_ids(2, 45)
    x[:, 0] = EOS
    with torch.no_grad():
        expected = model(x)
        cache = model.new_cache(2, 45)
        assert_close(model.read(x[:, :T], cache), expected[:, T - 1], atol=1e-5)
        for t in range(T, 45):
            assert_close(model.read(x[:, t:t + 1], cache), expected[:, t], atol=1e-5)


@both
@pytest.mark.parametrize('sampling', [
    dict(temperature=0),
    dict(temperature=1.0, top_k=20, top_p=0.9),
])
def test_writing_is_the_loop_that_generate_tells_of(arch, sampling):
    model = random_model(arch).double()
    text = random_ids(3, 5)
    text[:, 0] = EOS
    cached = written(model, text, 40, banned=[EOS], generator=seeded(5), **sampling)
    generator = seeded(5)
    for _ in range(40):
        logits = model(text)[:, -1]
        logits[:, EOS] = -math.inf
        ids = sample_ids(logits, generator=generator, **sampling)
        text = torch.cat((text, ids[:, None]), dim=1)
    assert torch.equal(cached, text[:, 5:])


# --- sampling ---

@pytest.mark.parametrize('sampling, expected', [
    (dict(), [0.5, 0.3, 0.15, 0.05]),
    (dict(top_k=2), [0.625, 0.375, 0, 0]),
    (dict(top_p=0.7), [0.625, 0.375, 0, 0]),
    (dict(top_p=0.9), [0.5263, 0.3158, 0.1579, 0]),
    (dict(temperature=0.01), [1, 0, 0, 0]),
    (dict(top_p=1e-9), [1, 0, 0, 0]),
    (dict(temperature=0), [1, 0, 0, 0]),
    (dict(temperature=2.0), [0.3790, 0.2936, 0.2076, 0.1198]),     # roots of the first, rescaled
])
def test_ids_come_as_often_as_they_should(sampling, expected):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    ids = sample_ids(logits, generator=seeded(0), **sampling)      # (4000,)
    shares = torch.bincount(ids, minlength=4) / 4000
    assert_close(shares, torch.tensor(expected, dtype=torch.float), atol=0.03)


def test_writing_ends_where_the_text_does():
    model = random_model()
    prompt = torch.tensor([[EOS, 1, 2], [EOS, 3, 4]])
    out = written(model, prompt, 400, generator=seeded(0))
    first_end = (out == EOS).int().argmax(dim=1)                   # (B,)
    assert out.shape[1] == first_end.max() + 1 < 400
    assert first_end[0] != first_end[1]
    for row, first in zip(out, first_end):
        assert row[first:].eq(EOS).all()


def test_a_banned_id_is_never_written():
    model = random_model()
    prompt = torch.tensor([[EOS, 1, 2], [EOS, 3, 4]])
    out = written(model, prompt, 50, banned=[EOS, 7], generator=seeded(0))
    assert out.shape == (2, 50)
    assert not torch.isin(out, torch.tensor([EOS, 7])).any()


def log_probs_under(model, text, rating_id):
    """Of a text whose rating is replaced: (log P(rating, text), log P(next id | rating, text))."""
    text = text.clone()
    text[1] = rating_id
    with torch.no_grad():
        log_p = model(text[None])[0].log_softmax(-1)               # (T, V)
    log_joint = log_p[range(len(text) - 1), text[1:]].sum()
    return log_joint, log_p[-1]                                    # scalar, (V,)


@pytest.mark.parametrize('guidance', [0.0, 1.5])
def test_guidance_is_bayes_rule_by_hand(guidance):
    """Every id is the best of log P(id) + guidance * log P(own rating | text, id)."""
    model = random_model().double()
    own_ratings, rival = [4, 3], 5
    prompt = torch.tensor([[EOS, 4, 9, 11], [EOS, 3, 9, 11]])
    out = written(Guided(model, [rival], guidance), prompt, 12, [EOS], temperature=0)
    texts = torch.cat((prompt, out), dim=1)
    for row, own in zip(texts, own_ratings):
        for n in range(4, 16):
            own_joint, own_next = log_probs_under(model, row[:n], own)
            rival_joint, rival_next = log_probs_under(model, row[:n], rival)
            joint = torch.stack((own_joint + own_next, rival_joint + rival_next))  # (2, V)
            log_own = joint.log_softmax(0)[0]                      # log P(own rating | text, id)
            score = own_next + guidance * log_own
            score[EOS] = -math.inf
            assert row[n] == score.argmax()


# --- dropout, shapes ---

@both
def test_dropout_acts_in_training_alone_and_draws_from_the_seed(arch):
    model = random_model(arch, dropout=0.2)
    x = random_ids(4, 8)
    plain = random_model(arch)(x)
    assert torch.equal(model(x), plain)                            # .eval()

    def in_training(seed):
        torch.manual_seed(seed)
        return model.train()(x)

    assert torch.equal(in_training(1), in_training(1))
    assert_not_close(in_training(1), in_training(2), atol=1e-3)
    assert_not_close(in_training(1), plain, atol=1e-3)


@pytest.mark.parametrize('wrong', [
    dict(d_model=30),
    dict(nhead=5),
    dict(nhead=0),
    dict(arch='rnn'),
    dict(n_layers=0),
    dict(dropout=1.0),
])
def test_impossible_shapes_are_refused(wrong):
    shape = {**dict(vocab_size=10, d_model=32, nhead=2), **wrong}
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}='):
        Config(**shape)
