"""The models: what a token may look at, the cache, sampling, the folder, and agreement with Transformers."""
import json
import math

import pytest
import torch

from eval import agree, find, rate, surprise
from model import Config, build, generate, load, pick, save

EOS = 0


def tiny(arch='decoder', **more):
    torch.manual_seed(0)
    model = build(Config(**{**dict(vocab_size=50, arch=arch, d_model=32, d_ffn=48, n_layers=2, nhead=2, chunk_size=16, window=4, eos=EOS), **more}))
    for p in model.parameters():  # the zeros of a fresh model would hide every mistake
        torch.nn.init.normal_(p, std=0.3) if p.ndim == 2 else torch.nn.init.normal_(p, 1, 0.2)
    return model.eval()


def rows(B, T, seed=1):
    return torch.randint(1, 50, (B, T), generator=torch.Generator().manual_seed(seed))


both = pytest.mark.parametrize('arch', ['decoder', 'ffn'])


@both
def test_a_fresh_model_knows_nothing(arch):
    model = build(Config(vocab_size=50, arch=arch, d_model=32, d_ffn=48, n_layers=2, nhead=2))
    x = rows(2, 8)
    assert model(x).shape == (2, 8, 50)
    assert model(x, x).item() == pytest.approx(16 * math.log(50))


@both
def test_no_token_sees_the_future_or_another_review(arch):
    model, x = tiny(arch), rows(1, 12)
    x[0, 0] = x[0, 6] = EOS
    before = model(x)
    later, neighbour = x.clone(), x.clone()
    later[0, 9:] = 7
    neighbour[0, 1:6] = 7
    assert torch.allclose(model(later)[0, :9], before[0, :9], atol=1e-6) and not torch.allclose(model(later)[0, 9:], before[0, 9:], atol=1e-3)
    assert torch.allclose(model(neighbour)[0, 6:], before[0, 6:], atol=1e-6) and not torch.allclose(model(neighbour)[0, 1:6], before[0, 1:6], atol=1e-3)
    assert torch.allclose(model(x[:, 6:]), before[:, 6:], atol=1e-5)  # nor does it matter where in the row a review stands


def test_the_decoder_looks_chunk_size_back_in_each_layer_and_the_ffn_a_window():
    for arch, reach in (('decoder', 2 * 15), ('ffn', 3)):
        model, x = tiny(arch), rows(1, 40)
        other = x.clone()
        other[0, :39 - reach] = 7
        assert torch.allclose(model(x)[0, -1], model(other)[0, -1], atol=1e-6)
        other[0, :40 - reach] = 7
        assert not torch.allclose(model(x)[0, -1], model(other)[0, -1], atol=1e-6)


@both
@pytest.mark.parametrize('T', [1, 5, 16, 30])
def test_cache_changes_nothing_also_past_chunk_size(arch, T):
    model = tiny(arch).double()
    prompt = rows(3, T)
    prompt[:, 0] = EOS
    for picking in (dict(temperature=0), dict(temperature=1.0, top_k=20, top_p=0.9)):
        draw = lambda: {**picking, 'generator': torch.Generator().manual_seed(5)}
        written = torch.stack(list(generate(model, prompt, 40, banned=[EOS], **draw())), dim=1)
        uncached, args = prompt, draw()
        for _ in range(40):
            logits = model(uncached)[:, -1]
            logits[:, EOS] = -math.inf
            uncached = torch.cat((uncached, pick(logits, **args)[:, None]), dim=1)
        assert torch.equal(written, uncached[:, T:])


@both
def test_what_the_writer_reads_equals_the_whole_pass(arch):
    model, x = tiny(arch).double(), rows(2, 40)
    x[:, 0] = EOS
    x[:, 1:].clamp_(min=EOS + 1)
    with torch.no_grad():
        read = model.writer(2)
        assert torch.allclose(torch.stack([read(ids) for ids in x.unbind(1)], dim=1), model(x), atol=1e-12)


def test_pick():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    g = torch.Generator().manual_seed(0)
    share = lambda **k: torch.bincount(pick(logits, generator=g, **k), minlength=4) / 4000
    assert torch.allclose(share(), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)
    assert torch.allclose(share(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.03)
    assert torch.allclose(share(top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.03)
    assert torch.allclose(share(top_p=0.9), torch.tensor([0.5263, 0.3158, 0.1579, 0]), atol=0.03)
    assert share(temperature=0.01)[0] == 1 and share(top_p=1e-9)[0] == 1 and share(temperature=0)[0] == 1
    assert torch.allclose(share(temperature=2.0), torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt() / torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt().sum(), atol=0.03)


def test_generation_ends_where_the_review_does():
    model = tiny()
    prompt = torch.tensor([[EOS, 1, 2], [EOS, 3, 4]])
    out = torch.stack(list(generate(model, prompt, 400, generator=torch.Generator().manual_seed(0))), dim=1)
    assert out.shape[1] < 400
    for row in out.tolist():
        assert EOS in row and set(row[row.index(EOS):]) == {EOS}
    assert not (torch.stack(list(generate(model, prompt, 50, banned=[EOS, 7], generator=torch.Generator().manual_seed(0)))) == 7).any()


def test_guidance_is_bayes_rule_by_hand():
    """At every token: log P(id) + guidance * log P(start | text, id), over the starts' probabilities after </s>."""
    model = tiny().double()
    prompt = torch.tensor([[EOS, 4, 9, 11], [EOS, 3, 9, 11]])
    for guidance in (0.0, 1.5):
        written = torch.stack(list(generate(model, prompt, 12, [EOS], [5], guidance, temperature=0)), dim=1)
        for row, own in zip(torch.cat((prompt, written), dim=1), (4, 3)):
            for n in range(4, 16):
                with torch.no_grad():
                    logp = torch.stack([model(torch.cat((row[:1], torch.tensor([s]), row[2:n]))[None])[0].log_softmax(-1) for s in (own, 5)])  # (2, n, V)
                text = torch.stack([logp[0, 0, own] + logp[0, range(1, n - 1), row[2:n]].sum(), logp[1, 0, 5] + logp[1, range(1, n - 1), row[2:n]].sum()])
                posterior = (text[:, None] + logp[:, -1]).log_softmax(0)[0]  # log P(own start | text, id) for every id
                score = logp[0, -1] + guidance * posterior
                score[EOS] = -math.inf
                assert row[n] == score.argmax()


@both
def test_surprise_is_the_loss_review_by_review(arch):
    model = tiny(arch)
    reviews = [[EOS, *rows(1, n, n)[0].tolist(), EOS] for n in (3, 14, 1, 40, 9, 0)]
    scored = surprise(model, reviews, batch_tokens=32)
    for review, (nats, hit) in zip(reviews, scored):
        assert len(nats) == len(hit) == len(review) - 1
        ids = torch.tensor([review])
        logp = torch.cat([model(ids[:, i:i + 16]).log_softmax(-1) for i in range(0, len(review) - 1, 16)], dim=1)[0, :len(review) - 1]
        assert torch.allclose(nats, -logp[range(len(review) - 1), review[1:]], atol=1e-4)
        assert torch.equal(hit, logp.argmax(-1) == ids[0, 1:])


def test_rate_is_bayes_rule():
    model = tiny()
    text = [5, 9, 11]
    scores = rate(model, [text, []], [1, 2, 3])
    for column, start in enumerate((1, 2, 3)):
        ids = torch.tensor([[EOS, start, *text, EOS]])
        assert scores[0, column].item() == pytest.approx(-model(ids[:, :-1], ids[:, 1:]).item(), abs=1e-4)


def test_padding_is_no_target():
    model, x = tiny(), rows(2, 8)
    y = x.clone()
    y[:, 5:] = -1
    assert model(x, y).item() == pytest.approx(model(x[:, :5], x[:, :5]).item(), rel=1e-5)


@both
@pytest.mark.parametrize('tied', [False, True])
def test_a_folder_gives_the_model_back(arch, tied, tmp_path):
    model = tiny(arch, tied=tied, window=8)
    save(model, tmp_path / 'm', {'data_dir': 'data/x'})
    again, meta = load(tmp_path / 'm')
    assert again.config == model.config and meta == {'data_dir': 'data/x'}
    assert torch.equal(again(rows(2, 9)), model(rows(2, 9))) and again.lm_head.weight.requires_grad
    agree(again, meta, arch=arch, d_model=32, d_ffn=0, n_layers=2)
    with pytest.raises(ValueError, match='--d_model=64, but the model has d_model=32'):
        agree(again, meta, d_model=64)


@pytest.mark.parametrize('tied', [False, True])
def test_transformers_reads_the_folder_unconverted(tied, tmp_path):
    transformers = pytest.importorskip('transformers')
    model = tiny(tied=tied, chunk_size=128)
    save(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation='eager').eval()
    x = rows(2, 128)
    x[:, 0] = EOS
    with torch.no_grad():
        assert (theirs(x).logits - model(x)).abs().max() < 1e-4
    prompt = x[:1, :5]
    ours = torch.stack(list(generate(model, prompt, 100, temperature=0)), dim=1)
    out = theirs.generate(prompt, max_new_tokens=100, do_sample=False, pad_token_id=EOS)[:, 5:]
    assert torch.equal(ours[:, :out.shape[1]], out) and (ours.shape == out.shape)


def test_a_folder_transformers_wrote_is_read_too(tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                                      max_position_embeddings=64, eos_token_id=0, bos_token_id=1, rope_theta=5e5, tie_word_embeddings=True, initializer_range=0.3)
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model, _ = load(tmp_path)
    x = rows(2, 30)
    with torch.no_grad():
        assert (theirs(x).logits - model(x)).abs().max() < 1e-4


def damaged(folder, what):
    if what == 'pickle':
        torch.save({'x': 1}, folder / 'model.safetensors')
    elif what == 'cut':
        (folder / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:-10])
    elif what == 'shape':
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, 'hidden_size': 64, 'head_dim': 32}))
    elif what == 'type':
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, 'model_type': 'llama'}))
    elif what == 'word':
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, 'hidden_size': 'wide'}))
    elif what == 'json':
        (folder / 'config.json').write_text('{')
    else:
        (folder / what).unlink()


@pytest.mark.parametrize('what', ['pickle', 'cut', 'shape', 'type', 'word', 'json', 'config.json', 'model.safetensors'])
def test_damaged_folders_are_refused_in_a_sentence(what, tmp_path):
    save(tiny(), tmp_path)
    damaged(tmp_path, what)
    with pytest.raises(ValueError) as e:
        load(tmp_path)
    assert str(tmp_path) in str(e.value) and '\n' not in str(e.value)


def test_the_newest_folder_is_found(tmp_path, monkeypatch):
    import os
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='no trained model under out/'):
        find()
    for age, name in ((100, 'old'), (50, 'new'), (70, 'middle')):
        save(tiny(), tmp_path / 'out' / name)
        when = (tmp_path / 'out' / name / 'model.safetensors').stat().st_mtime - age
        os.utime(tmp_path / 'out' / name / 'model.safetensors', (when, when))
    assert find().name == 'new' and find('out/old').name == 'old'


@pytest.mark.parametrize('wrong', [dict(d_model=30), dict(nhead=5), dict(arch='rnn'), dict(n_layers=0), dict(dropout=1.0), dict(nkv=3, nhead=4)])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError):
        Config(**{**dict(vocab_size=10, d_model=32, nhead=2), **wrong})
