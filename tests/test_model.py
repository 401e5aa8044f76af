"""The models: what a token may look at, the cache, sampling, guidance, dropout."""
import math

import pytest
import torch
from conftest import random_model

from model import (
    Config,
    Decoder,
    build,
    dropout,
    generate,
    hash32,
    next_logits,
    read_prompt,
    sample_ids,
)
from parts.fused import FusedStep

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
    assert model(x).shape == (2, 8, 50)
    assert model(x, x).item() == pytest.approx(16 * math.log(50))


@both
def test_no_token_sees_the_future_or_another_review(arch):
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

    # Nor does it matter where in the row a review stands.
    assert_close(model(x[:, 6:])[0], logits[6:], atol=1e-5)

@pytest.mark.parametrize('T, compiled, dtype, atol', [
    (7, False, torch.float32, 1e-4),
    (256, False, torch.float32, 1e-4),
    (40, False, torch.bfloat16, 0.2),
    (40, True, torch.bfloat16, 0.2),
])
def test_the_mask_as_a_rule_for_gpus_hides_what_the_mask_hides(monkeypatch, T, compiled, dtype,
                                                               atol):
    """On a CPU the rule runs without its kernel, and compiled with one, but forward alone."""
    model = random_model(nkv=1)
    x = random_ids(3, T)
    x[:, 0] = x[0, 5] = x[1, 2] = x[1, 3] = x[2, -1] = EOS
    with torch.no_grad(), torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        plain = model(x)
        monkeypatch.setattr(Decoder, 'mask', lambda self, idx, _: self.block_mask(
            (idx == self.config.eos).cumsum(dim=1)))
        ruled = torch.compile(model) if compiled else model
        assert_close(ruled(x), plain, atol=atol)


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


@both
def test_a_rating_competes_with_the_other_ratings_alone(arch):
    model = random_model(arch)
    x = torch.tensor([[0, 1, 9, 11, 0, 1, 12, 13], [0, 3, 5, 6, 7, 8, 9, 10]])
    y = torch.tensor([[3, 9, 11, 0, 3, 12, 13, 0], [3, 5, 6, 7, 8, 9, 10, 0]])
    ratings = torch.full_like(x, -1)
    ratings[0, 3], ratings[0, 7] = 2, 0
    rating_ids = torch.tensor([3, 4, 5])
    nats, rating_nats = model(x, y, ratings=ratings, rating_ids=rating_ids)
    assert nats.item() == pytest.approx(model(x, y).item())
    of_ratings = model(x)[0, :, 3:6].log_softmax(dim=-1)      # (T, 3)
    assert rating_nats.item() == pytest.approx(-(of_ratings[3, 2] + of_ratings[7, 0]).item())


def test_padding_is_no_target():
    model = random_model()
    x = random_ids(2, 8)
    y = x.clone()
    y[:, 5:] = -1
    without_padding = x[:, :5]
    expected = model(without_padding, without_padding).item()
    assert model(x, y).item() == pytest.approx(expected, rel=1e-5)


# --- the cache ---

@both
@pytest.mark.parametrize('T', [1, 5, 16, 30])
@pytest.mark.parametrize('sampling', [
    dict(temperature=0),
    dict(temperature=1.0, top_k=20, top_p=0.9),
])
def test_the_cache_changes_nothing_also_past_chunk_size(arch, T, sampling):
    model = random_model(arch).double()
    text = random_ids(3, T)
    text[:, 0] = EOS
    cached = written(model, text, 40, banned=[EOS], generator=seeded(5), **sampling)
    generator = seeded(5)
    for _ in range(40):
        logits = model(text)[:, -1]
        logits[:, EOS] = -math.inf
        ids = sample_ids(logits, generator=generator, **sampling)
        text = torch.cat((text, ids[:, None]), dim=1)
    assert torch.equal(cached, text[:, T:])


@both
@pytest.mark.parametrize('nkv', [2, 1])
@pytest.mark.parametrize('T', [1, 7, 16])
def test_logits_through_the_cache_equal_those_of_the_whole_pass(arch, nkv, T):
    model = random_model(arch, nkv=nkv).double()
    x = random_ids(2, 45)
    x[:, 0] = EOS
    with torch.no_grad():
        cache = model.new_cache(2, 45)
        pieces = [model.logits(model.hidden(x[:, :T], cache=cache))]
        for t in range(T, 45):
            one_token = x[:, t:t + 1]
            pieces.append(model.logits(model.hidden(one_token, cache=cache)))
        assert_close(torch.cat(pieces, dim=1), model(x), atol=1e-12)


def test_a_compiled_model_writes_the_same():
    model = random_model()
    prompt = random_ids(2, 5)
    prompt[:, 0] = EOS
    plain = written(model, prompt, 30, banned=[EOS], temperature=0)
    step = torch.compile(next_logits)
    compiled = written(model, prompt, 30, banned=[EOS], temperature=0, step=step)
    assert torch.equal(compiled, plain)


@pytest.mark.parametrize('nkv', [2, 1])
@pytest.mark.parametrize('T', [1, 5, 16, 30])
def test_the_fused_step_computes_what_the_plain_one_does(nkv, T):
    """Also past chunk_size, and past the 256 positions of its tables."""
    model = random_model(nkv=nkv).double()
    text = random_ids(3, 300)
    text[:, 0] = EOS
    plain, fused = model.new_cache(3, 300), model.new_cache(3, 300)
    step = FusedStep(model)
    with torch.no_grad():
        list(read_prompt(model, text[:, :T], plain))
        list(read_prompt(model, text[:, :T], fused))
        for ids in text[:, T:].unbind(dim=1):
            torch.testing.assert_close(step(model, ids, fused), next_logits(model, ids, plain),
                                       atol=1e-10, rtol=0)


# --- sampling ---

@pytest.mark.parametrize('sampling, expected', [
    (dict(), [0.5, 0.3, 0.15, 0.05]),
    (dict(top_k=2), [0.625, 0.375, 0, 0]),
    (dict(top_p=0.7), [0.625, 0.375, 0, 0]),
    (dict(top_p=0.9), [0.5263, 0.3158, 0.1579, 0]),
    (dict(temperature=0.01), [1, 0, 0, 0]),
    (dict(top_p=1e-9), [1, 0, 0, 0]),
    (dict(temperature=0), [1, 0, 0, 0]),
    (dict(temperature=2.0), [0.3790, 0.2936, 0.2076, 0.1198]),  # roots of the first, rescaled
])
def test_ids_come_as_often_as_they_should(sampling, expected):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    ids = sample_ids(logits, generator=seeded(0), **sampling)      # (4000,)
    shares = torch.bincount(ids, minlength=4) / 4000
    assert_close(shares, torch.tensor(expected, dtype=torch.float), atol=0.03)


def test_writing_ends_where_the_review_does():
    model = random_model()
    prompt = torch.tensor([[EOS, 1, 2], [EOS, 3, 4]])
    out = written(model, prompt, 400, generator=seeded(0))
    assert out.shape[1] < 400
    for row in out.tolist():
        assert EOS in row
        from_the_end = row[row.index(EOS):]
        assert set(from_the_end) == {EOS}


def test_a_banned_id_is_never_written():
    model = random_model()
    prompt = torch.tensor([[EOS, 1, 2], [EOS, 3, 4]])
    out = written(model, prompt, 50, banned=[EOS, 7], generator=seeded(0))
    assert out.shape == (2, 50)
    assert not (out == EOS).any()
    assert not (out == 7).any()


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
    out = written(model, prompt, 12, [EOS], [rival], guidance, temperature=0)
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


# --- dropout ---

def test_dropout_keeps_its_share_and_the_mean():
    x = torch.ones(64, 32, 64)
    seeds = torch.arange(64, dtype=torch.int32)
    for share in (0.1, 0.5):
        y = dropout(x, share, seeds, place=1)
        dropped = (y == 0).float()
        assert dropped.mean().item() == pytest.approx(share, abs=0.005)
        assert y.mean().item() == pytest.approx(1, abs=0.01)
        assert y.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
        variance = share * (1 - share)
        per_row = dropped.mean((1, 2))
        per_place = dropped.mean(0)
        assert (per_row - share).abs().max() < 5 * math.sqrt(variance / 2048)
        assert (per_place - share).abs().max() < 6 * math.sqrt(variance / 64)


def test_without_seeds_nothing_is_dropped():
    x = torch.ones(64, 32, 64)
    assert torch.equal(dropout(x, 0.1, None, place=1), x)


def test_what_is_dropped_depends_on_the_row_and_the_place_alone():
    x = torch.ones(8, 4, 16)
    seeds = torch.arange(8, dtype=torch.int32)
    whole = dropout(x, 0.5, seeds, place=1)
    two_rows_each = zip(x.split(2), seeds.split(2))
    pieces = [dropout(rows, 0.5, own_seeds, place=1) for rows, own_seeds in two_rows_each]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.equal(whole, dropout(x, 0.5, seeds, place=2))
    assert not torch.equal(whole[0], whole[1])


def test_the_hash_has_no_pattern():
    """Flipping any bit of the input flips each bit of the output half of the time."""
    x = torch.arange(0, 2 ** 31, 2 ** 17, dtype=torch.int64).to(torch.int32)
    for bit in range(31):
        changed = hash32(x) ^ hash32(x ^ (1 << bit))
        for out in range(31):
            output_bit = (changed >> out) & 1
            assert output_bit.float().mean().item() == pytest.approx(0.5, abs=0.05)


@both
def test_dropout_moves_the_loss_only_with_seeds(arch):
    model = random_model(arch, dropout=0.2)
    x = random_ids(4, 8)
    plain = random_model(arch)(x, x)
    assert torch.equal(model(x, x), plain)
    seeds = torch.arange(4, dtype=torch.int32)
    dropped = model(x, x, seeds)
    assert dropped != plain
    assert dropped == model(x, x, seeds)
    assert dropped != model(x, x, seeds + 1)


# --- shapes ---

@pytest.mark.parametrize('wrong', [
    dict(d_model=30),
    dict(nhead=5),
    dict(arch='rnn'),
    dict(n_layers=0),
    dict(dropout=1.0),
    dict(nkv=3, nhead=4),
])
def test_impossible_shapes_are_refused(wrong):
    shape = {**dict(vocab_size=10, d_model=32, nhead=2), **wrong}
    with pytest.raises(ValueError):
        Config(**shape)
