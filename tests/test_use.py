"""eval.py and sample.py as a user runs them, on small trained models."""
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import run
from matplotlib.image import imread
from prepare import load_vocabulary, read_split

from eval import rate, surprise
from model import load


def scores(*args):
    return [json.loads(line) for line in run('eval.py', '--json=true', '--device=cpu', '--dtype=float32', *args).stdout.splitlines()]


def test_eval_is_the_loss_computed_by_hand(demo, models):
    score, = scores(f'--model_path={models / "decoder"}', '--n_tokens=0.003')
    model, _ = load(models / 'decoder')
    vocab = load_vocabulary(models / 'decoder')
    nats = tokens = chars = hits = 0
    for rating, text in read_split(demo / 'validation.txt'):
        ids = torch.tensor([[vocab.eos, vocab.starts[rating], *vocab.encode([text])[0], vocab.eos]])
        if tokens + ids.shape[1] - 1 > 3000:
            break
        with torch.no_grad():  # rows of chunk_size, as in training
            logits = torch.cat([model(ids[:, i:i + 64]) for i in range(0, ids.shape[1] - 1, 64)], dim=1)[:, :ids.shape[1] - 1]
        nats += torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction='sum').item()
        hits += (logits[0].argmax(-1) == ids[0, 1:]).sum().item()
        tokens, chars = tokens + ids.shape[1] - 1, chars + len(text)
    assert score['tokens'] == tokens and score['data_dir'] == str(demo)
    assert score['loss'] == pytest.approx(nats / tokens, rel=1e-4) and score['perplexity'] == pytest.approx(math.exp(nats / tokens), rel=1e-3)
    assert score['bits_per_char'] == pytest.approx(nats / chars / math.log(2), rel=1e-4) and score['accuracy'] == pytest.approx(hits / tokens, abs=1e-3)
    assert score['above_floor'] == pytest.approx(score['bits_per_char'] / score['floor_bits_per_char'] - 1)


def test_models_of_both_archs_and_modes_in_one_table(models):
    paths = ','.join(str(models / n) for n in ('decoder', 'ffn', 'manual'))
    rows = scores(f'--model_path={paths}', '--n_tokens=0.01')
    assert [r['arch'] for r in rows] == ['decoder', 'ffn', 'decoder'] and len({r['reviews'] for r in rows}) == 1
    assert rows[0]['bits_per_char'] < rows[1]['bits_per_char'] and rows[2]['tokens'] > rows[0]['tokens']
    table = run('eval.py', f'--model_path={paths}', '--n_tokens=0.01', '--dtype=float32').stdout
    for row in rows:
        assert f'{row["bits_per_char"]:.4f}' in table


def test_sentiment_is_counted_right(demo, models):
    score, = scores(f'--model_path={models / "decoder"}', '--n_tokens=0.02')
    (nn, np_), (pn, pp) = score['confusion']
    assert score['sentiment_accuracy'] == pytest.approx((nn + pp) / (nn + np_ + pn + pp))
    assert score['sentiment_balanced_accuracy'] == pytest.approx((nn / (nn + np_) + pp / (pn + pp)) / 2)
    f1 = lambda hit, a, b: 2 * hit / (2 * hit + a + b)
    assert score['sentiment_macro_f1'] == pytest.approx((f1(nn, np_, pn) + f1(pp, np_, pn)) / 2)
    model, vocab = load(models / 'decoder')[0], load_vocabulary(models / 'decoder')
    rated = [(rating, text) for rating, text in list(read_split(demo / 'validation.txt'))[:score['reviews']] if rating < 2]
    scored = rate(model, vocab.encode([text for _, text in rated]), vocab.starts[:2])
    prior = model(torch.tensor([[vocab.eos]]))[0, -1].log_softmax(-1)[vocab.starts[:2]]
    even = (scored - prior).argmax(1).tolist()
    assert score['sentiment_balanced_accuracy_at_even_odds'] == pytest.approx(sum(
        sum(r == t == g for (r, _), g in zip(rated, even)) / sum(r == t for r, _ in rated) for t in (0, 1)) / 2)
    guess = scored.argmax(1).tolist()
    assert [[sum(r == t and g == h for (r, _), g in zip(rated, guess)) for h in (0, 1)] for t in (0, 1)] == score['confusion']


def test_eval_reads_another_data_folder(models, tmp_path):
    (tmp_path / 'x.txt').write_text('\n'.join(f'처음 보는 문장 {i} 😀' for i in range(50)), 'utf-8')
    run('prepare.py', f'--source={tmp_path / "x.txt"}', f'--output_dir={tmp_path / "x"}', '--val_ratio=0.5')
    there, = scores(f'--model_path={models / "decoder"}', f'--data_dir={tmp_path / "x"}')
    home, = scores(f'--model_path={models / "decoder"}')
    assert there['bits_per_char'] > 2 * home['bits_per_char'] and 'sentiment_accuracy' not in there


def test_models_of_different_data_are_compared_on_that_of_the_first(demo, models, tmp_path):
    run('prepare.py', f'--data_dir={demo}', f'--output_dir={tmp_path / "again"}', '--mode=manual')
    shutil.copytree(models / 'ffn', tmp_path / 'ffn')
    meta = json.loads((tmp_path / 'ffn/meta.json').read_text('utf-8'))
    (tmp_path / 'ffn/meta.json').write_text(json.dumps({**meta, 'data_dir': str(tmp_path / 'again')}), 'utf-8')
    rows = scores(f'--model_path={tmp_path / "ffn"},{models / "decoder"}', '--n_tokens=0.001')
    assert [row['data_dir'] for row in rows] == [str(tmp_path / 'again')] * 2 and rows[0]['reviews'] == rows[1]['reviews']
    alone, = scores(f'--model_path={models / "decoder"}', '--n_tokens=0.001')
    assert rows[1]['above_floor'] == pytest.approx(alone['above_floor'])


def test_a_person_s_own_sentences_are_rated(models):
    lines = ['다시는 안 가겠어요.', '', '또 가고 싶어요.']
    out = run('eval.py', f'--model_path={models / "decoder"}', '--text=-', stdin='\n'.join(lines)).stdout.splitlines()
    model, vocab = load(models / 'decoder')[0], load_vocabulary(models / 'decoder')
    for line, said in zip((lines[0], lines[2]), out, strict=True):
        share, best = rate(model, vocab.encode([line]), vocab.starts[:3])[0].softmax(0).max(0)
        assert said == f'{("negative", "positive", "ambiguous")[best]:9} {share:4.0%}   {line}'


def test_on_a_terminal_every_character_shows_the_surprise(models):
    for name, text in (('decoder', '점심에 😀 친구랑  漢'), ('manual', '점심에 친구랑')):
        line = run('eval.py', f'--model_path={models / name}', f'--text={text}', '--device=cpu', env={'FORCE_COLOR': '1'}).stdout
        pieces = re.findall('\033\\[30;48;2;(\\d+);(\\d+);90m([^\033]*)', line)
        assert ''.join(piece for *_, piece in pieces) == ' '.join(text.split())
    model, vocab = load(models / 'manual')[0], load_vocabulary(models / 'manual')  # a character a token
    ids = vocab.encode([text])[0]
    best = rate(model, [ids], vocab.starts[:3])[0].argmax()
    for (red, green, _), nats in zip(pieces, surprise(model, [[vocab.eos, vocab.starts[best], *ids, vocab.eos]])[0][0][1:].tolist(), strict=False):
        share = min(1, nats / math.log(2) / 8)
        assert (int(red), int(green)) == pytest.approx((255 * min(1, 2 * share), 255 * min(1, 2 - 2 * share)), abs=1.1)


def test_pictures_are_drawn_with_matplotlib_and_not_missed_without(models, tmp_path):
    args = [f'--model_path={models / "decoder"},{models / "ffn"}', '--n_tokens=0.001']
    drawn = run('eval.py', *args, cwd=tmp_path).stdout
    for picture in (models / 'decoder/loss.png', tmp_path / 'out/ladder.png'):
        blue = (imread(picture)[:, :, :3] == np.float32([0x1f, 0x77, 0xb4]) / 255).all(2)
        assert blue.sum() > 100, picture
    assert len({n for n in blue.sum(1).tolist() if n}) > 1  # bars, one longer than the other
    (tmp_path / 'matplotlib.py').write_text('raise ImportError')
    bare = run('eval.py', *args, cwd=tmp_path.parent, env={'PYTHONPATH': str(tmp_path)}).stdout
    assert bare == drawn.replace('\nout/ladder.png: the same as a picture\n', '') != drawn


def test_flags_that_agree_are_fine_and_others_refused(demo, models):
    path = f'--model_path={models / "decoder"}'
    shape = ['--arch', 'decoder', '--d_model', '64', '--n_layers', '2', '--chunk_size', '64', '--mode', 'tokenizer', '--d_ffn', '192']
    assert scores(path, '--data_dir', demo, '--batch_size', '4', '--n_tokens', '0.001', *shape)
    assert run('sample.py', path, '--prompt=', '--max_token', '5', *shape).stdout
    assert 'arch=decoder' in run('eval.py', path, '--arch=ffn', ok=False).stderr
    assert 'mode=tokenizer' in run('eval.py', path, '--mode=manual', ok=False).stderr
    assert 'd_model=64' in run('sample.py', path, '--d_model=32', '--prompt=', ok=False).stderr
    assert 'mode=tokenizer' in run('sample.py', path, '--mode=manual', '--prompt=', ok=False).stderr


@pytest.mark.parametrize('name', ['decoder', 'ffn', 'manual'])
def test_samples_are_the_models_own_and_follow_the_seed(models, name):
    write = lambda *args: run('sample.py', f'--model_path={models / name}', '--prompt=어제', '--device=cpu', *args).stdout
    reviews = write('--num_samples=4', '--rating=negative', '--max_token=12').splitlines()
    assert len(reviews) == 4 and len(set(reviews)) > 1 and all(r.startswith('어제') for r in reviews)
    if name == 'decoder':
        assert write('--temperature=0', '--rating=positive') == write('--temperature=0', '--rating=긍정', '--seed=5')
        assert write('--seed=1') == write('--seed=1') != write('--seed=2')


def test_the_rating_picked_is_said_and_the_asked_one_is_written(models):
    out = run('sample.py', f'--model_path={models / "decoder"}', '--prompt=', '--num_samples=40').stdout.splitlines()
    names = [line[1:line.index(']')] for line in out]
    assert 15 <= names.count('positive') <= 33 and set(names) <= {'positive', 'negative', 'ambiguous'}
    review, said = run('sample.py', f'--model_path={models / "decoder"}', '--prompt=', '--rating=negative', '--show_rating=true').stdout.splitlines()
    model, vocab = load(models / 'decoder')[0], load_vocabulary(models / 'decoder')
    shares = rate(model, vocab.encode([review]), vocab.starts[:3])[0].softmax(0).tolist()
    assert said.split(':')[-1] == '    reads as ' + ', '.join(f'{n} {p:.0%}' for n, p in zip(('negative', 'positive', 'ambiguous'), shares))


def test_guidance_insists_on_the_rating_asked_for(models):
    def share(guidance):
        out = run('sample.py', f'--model_path={models / "decoder"}', '--prompt=', '--rating=부정', '--num_samples=40', f'--guidance={guidance}', '--show_rating=true').stdout
        return sum(int(p) for p in re.findall(r'reads as negative (\d+)%', out)) / 40
    assert share(20) > share(0) + 8  # little as so small a model knows of ratings


def test_piped_prompts_and_an_interactive_terminal(models):
    path = f'--model_path={models / "decoder"}'
    out = run('sample.py', path, '--rating=positive', '--max_token=20', stdin='어제\n\n점심에\n').stdout.splitlines()
    assert len(out) == 3 and out[0].startswith('어제') and out[2].startswith('점심에')
    pty, os, sys = (pytest.importorskip(m) for m in ('pty', 'os', 'sys'))
    from conftest import ROOT
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, str(ROOT / 'sample.py'), path, '--max_token=20'])
    seen = b''
    for word in ('어제', 'exit'):
        while seen.count(b'begin with') < (1 if word == '어제' else 2):
            seen += os.read(fd, 1000)
        os.write(fd, f'{word}\n'.encode())
    assert os.waitpid(pid, 0)[1] == 0 and '] 어제'.encode() in seen


@pytest.mark.parametrize('name', ['decoder', 'manual'])
def test_every_prompt_works(models, name):
    prompts = ['', '   ', '😀 unseen 漢字 ', '<pos></s>', '길다 ' * 200, 'ㅋㅋㅋ\t', '어제\x00 친구랑']
    reviews = run('sample.py', f'--model_path={models / name}', '--max_token=10', '--rating=2', stdin='\n'.join(prompts)).stdout.splitlines()
    begun = [' '.join(p.replace('\0', '').split()) for p in prompts]
    assert len(reviews) == len(prompts)
    for review, begin in zip(reviews, begun):
        assert review.startswith(begin) if name == 'decoder' else len(review) >= len(begin) and (not begin or '�' in review or review.startswith(begin))


@pytest.mark.parametrize('args, words', [
    (['--rating=good'], 'negative (0, 부정), positive (1, 긍정), ambiguous (2, 보통)'), (['--max_token=0'], '1 or more'), (['--temperature=-1'], '0 or more'), (['--top_p=0'], 'top_p'),
    (['--model_path=nowhere'], 'no config.json'), (['--device=cuda:7'], 'there is none here'),
])
def test_mistakes_are_one_sentence(models, args, words):
    assert words in run('sample.py', f'--model_path={models / "decoder"}', '--prompt=', *args, ok=False).stderr


def test_the_newest_model_is_taken_and_named(models, tmp_path):
    (tmp_path / 'out').symlink_to(models)
    for script, args in (('sample.py', ['--prompt=', '--max_token=3']), ('eval.py', ['--n_tokens=0.001'])):
        done = run(script, *args, cwd=tmp_path)
        assert done.stderr.strip() == 'out/manual, the newest' and done.stdout
