"""Training as a pure function: the rows, one process and two, killed and resumed, and what is said when it cannot begin."""
import json
import math
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, last_weights, log, run, same
from safetensors.torch import load_file

import train


def stream(lengths, seed=0):
    """A stream of reviews of so many tokens, </s> = 0 included, and its starts."""
    rng = np.random.default_rng(seed)
    data = np.concatenate([np.r_[0, rng.integers(1, 900, n - 1)] for n in lengths] + [[0]]).astype(np.uint16)
    return data, np.flatnonzero(data == 0)


@pytest.mark.parametrize('T', [16, 64])
def test_rows_hold_every_review_once_and_whole(T):
    lengths = np.random.default_rng(1).integers(2, 40, 3000)
    data, starts = stream(lengths)
    rows = train.pack(data, starts, np.random.default_rng(2).permutation(len(lengths)), T, 0)
    pairs = lambda x, y: sorted(zip(x.tolist(), y.tolist()))
    x, y = train.inputs_and_targets(rows, 0, torch.device('cpu'))
    real = y.flatten() >= 0
    assert pairs(x.flatten()[real], y.flatten()[real]) == pairs(data[:-1], data[1:])  # every token predicted once from its true forerunner
    inside = {tuple(piece) for row in rows for piece in np.split(row, np.flatnonzero(row == 0))}
    assert all(tuple(data[a:b]) in inside for a, b in zip(starts, starts[1:]) if b - a <= T)
    assert real.float().mean() > (0.99 if T == 64 else 0.85)


def test_short_reviews_are_read_in_short_rows_and_long_ones_in_long():
    for lengths, row in (([20] * 1000, 128), ([20] * 995 + [100] * 5, 128), ([20] * 995 + [200] * 5, 256), ([100] * 50, 256)):
        assert train.row_length(np.array(lengths), 256) == row


def test_counting_gives_the_bigram_model():
    """A source in which each token depends on the one before: the untrained model comes near its entropy, far below the unigrams'."""
    V, rng = 60, np.random.default_rng(0)
    follows = rng.dirichlet(np.full(V, 0.05), V)
    data = np.empty(60_000, dtype=np.uint16)
    data[0] = 0
    for t in range(1, len(data)):
        data[t] = rng.choice(V, p=follows[data[t - 1]])
    torch.manual_seed(0)
    for arch in ('decoder', 'ffn'):
        model = train.build(train.Config(vocab_size=V, d_model=64, nhead=1, n_layers=1, chunk_size=64, arch=arch, eos=0, bos=1))
        train.start_from_counts(model, data)
        seen = np.bincount(data, minlength=V) / len(data)
        unigram, bigram = -(seen * np.log(seen + 1e-9)).sum(), -(seen[:, None] * follows * np.log(follows + 1e-12)).sum()
        x = torch.from_numpy(data[:6401].astype(np.int64))
        with torch.no_grad():
            loss = model(x[:-1].view(-1, 64), x[1:].view(-1, 64)).item() / 6400
        assert bigram < loss < bigram + 0.25 * (unigram - bigram), (unigram, bigram, loss)


def test_muon_steps_in_every_direction_alike():
    torch.manual_seed(0)
    for shape in ((128, 32), (32, 128)):
        params = [torch.nn.Parameter(torch.zeros(shape)) for _ in range(2)]
        for p in params:
            p.grad = torch.randn(shape) * 1e-3
        train.Muon(params, lr=1.0, weight_decay=0.0, dtype=torch.float32).step()
        for p in params:
            u, s, v = torch.linalg.svd(p.grad, full_matrices=False)
            turned = u.T @ -p.data @ v.T / (0.2 * max(shape) ** 0.5)  # the singular values of the step, in the gradient's own directions
            assert 0.7 < turned.diagonal().min() and turned.diagonal().max() < 1.3, turned.diagonal()
            assert (turned - turned.diagonal().diag()).abs().max() < 0.1


def test_the_batch_of_a_step_is_the_same_in_every_run(demo, tmp_path):
    for name in 'ab':
        run('train.py', f'--data_dir={demo}', f'--out_dir={tmp_path / name}', *SMALL, '--n_tokens=0.01', '--seed=3')
    assert same(last_weights(tmp_path / 'a'), last_weights(tmp_path / 'b'))
    assert log(tmp_path / 'a')[0]['train_loss'] != log(tmp_path / 'a')[1]['train_loss']


def test_the_run_learns_logs_and_keeps_best_and_last(demo, models):
    meta = json.loads((demo / 'tokenizer/meta.json').read_text())
    rows = log(models / 'decoder')
    steps = 2 * (60_000 // (8 * 64))
    assert list(rows[0]) == ['step', 'tokens', 'seconds', 'train_loss', 'val_loss', 'bits_per_char', 'lr']
    assert int(rows[-1]['step']) == steps and int(rows[-1]['tokens']) == steps * 8 * 64
    assert float(rows[0]['train_loss']) < 0.5 * math.log(meta['vocab_size']), 'it begins as a bigram model'
    vals = [float(r['val_loss']) for r in rows if r['val_loss']]
    assert len(vals) >= 10 and vals[-1] < 0.7 * vals[0] and vals[-1] == min(vals)
    assert float(rows[-1]['lr']) == 0 and max(float(r['lr']) for r in rows) <= 6e-3
    assert [float(r['seconds']) for r in rows] == sorted(float(r['seconds']) for r in rows)
    folder = models / 'decoder'
    assert {f.name for f in folder.iterdir()} >= {'config.json', 'model.safetensors', 'generation_config.json', 'meta.json', 'tokenizer.model',
                                                  'tokenizer_config.json', 'tokenizer.json', 'state.pt', 'log.csv'}
    assert json.loads((folder / 'meta.json').read_text())['val_loss'] == pytest.approx(min(vals), abs=1e-4)
    assert not list(folder.glob('*.part'))


def test_the_best_model_outlives_worse_ones(demo, tmp_path):
    run('train.py', f'--data_dir={demo}', f'--out_dir={tmp_path}', *SMALL, '--n_tokens=0.02', '--epochs=1', '--lr=2', '--warmup=39', '--optimizer=adamw', '--grad_clip=0', '--eval_interval=1')
    vals = {int(r['step']): float(r['val_loss']) for r in log(tmp_path) if r['val_loss']}
    best = min(vals, key=vals.get)
    assert best != max(vals), 'the rate was meant to be harmful'
    assert json.loads((tmp_path / 'meta.json').read_text())['step'] == best
    kept, last = load_file(tmp_path / 'model.safetensors'), last_weights(tmp_path)
    assert not torch.equal(kept['lm_head.weight'], last['lm_head.weight'])


@pytest.mark.parametrize('arch, nodes', [('decoder', 2), ('ffn', 1)])
def test_two_processes_draw_the_curve_of_one_also_on_two_machines(arch, nodes, demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, f'--arch={arch}', '--n_tokens=0.02', '--log_interval=1', '--micro_batch=2', '--lr=1e-3']
    run('train.py', *flags, f'--out_dir={tmp_path / "one"}')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        meeting = ['--rdzv_backend=c10d', f'--rdzv_endpoint=127.0.0.1:{free.getsockname()[1]}']
    machines = [subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', f'--nnodes={nodes}', f'--nproc_per_node={2 // nodes}', *meeting, str(ROOT / 'train.py'), *flags,
                                  f'--out_dir={tmp_path / "two"}'], cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=subprocess.DEVNULL) for _ in range(nodes)]
    assert [machine.wait(200) for machine in machines] == [0] * nodes
    one, two = log(tmp_path / 'one'), log(tmp_path / 'two')
    assert len(one) == len(two) == 39
    for a, b in zip(one, two):
        assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)
        assert (a['val_loss'] == '') == (b['val_loss'] == '') and (not a['val_loss'] or float(a['val_loss']) == pytest.approx(float(b['val_loss']), rel=1e-3))


def test_compiled_or_told_why_not(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.004', '--n_layers=1', '--compile=true']
    done = run('train.py', *flags, f'--out_dir={tmp_path / "without"}', env={'PATH': str(tmp_path), 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache'), 'CXX': ''})
    assert len([line for line in done.stdout.splitlines() if 'not compiled' in line]) == 1
    if shutil.which('g++'):
        for name in ('compiled', 'again'):  # two threads may add up in any order, unless told not to
            assert 'not compiled' not in run('train.py', *flags, f'--out_dir={tmp_path / name}', env={'OMP_NUM_THREADS': '2'}).stdout
        assert same(last_weights(tmp_path / 'compiled'), last_weights(tmp_path / 'again'))
        assert float(log(tmp_path / 'compiled')[-1]['val_loss']) == pytest.approx(float(log(tmp_path / 'without')[-1]['val_loss']), rel=1e-3)
        assert set(load_file(tmp_path / 'compiled/model.safetensors')) == set(load_file(tmp_path / 'without/model.safetensors'))


def test_mistakes_are_found_before_any_work(demo, models, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL]
    for args, words in [
        (['--out_dir=' + str(models / 'decoder')], 'already holds a run'),
        (['--out_dir=' + str(tmp_path / 'n'), '--init_from=resume'], 'no run to resume'),
        (['--out_dir=' + str(models / 'decoder'), '--init_from=resume', '--d_model=64', '--epochs=9'], 'was started with epochs=2'),
        (['--out_dir=' + str(tmp_path / 'n'), '--data_dir=' + str(tmp_path)], 'run prepare.py first'),
        (['--out_dir=/dev/null/x'], 'cannot be written to'), (['--out_dir=/proc/x'], 'cannot be written to'),
        (['--out_dir=' + str(tmp_path / 'n'), '--arch=rnn'], "'decoder' or 'ffn'"),
        (['--out_dir=' + str(tmp_path / 'n'), '--optimizer=sgd'], "'muon' or 'adamw'"),
        (['--out_dir=' + str(tmp_path / 'n'), '--d_model=33'], 'd_model=33'),
        (['--out_dir=' + str(tmp_path / 'n'), '--batch_size=100000'], 'do not fill one batch'),
        (['--out_dir=' + str(tmp_path / 'n'), '--device=cuda:9'], 'there is none here'),
        (['--out_dir=' + str(tmp_path / 'n'), '--epochs=0'], 'epochs=0'),
    ]:
        assert words in run('train.py', *flags, *args, ok=False).stderr


def test_bins_that_do_not_fit_their_meta_are_refused(demo, tmp_path):
    shutil.copytree(demo, tmp_path / 'd')
    flags = [f'--data_dir={tmp_path / "d"}', *SMALL, f'--out_dir={tmp_path / "o"}']
    path = tmp_path / 'd/tokenizer/train.bin'
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    assert 'run prepare.py again' in run('train.py', *flags, ok=False).stderr
    path.write_bytes(b'\xff\xff' + good[2:])
    assert 'holds the id 65535' in run('train.py', *flags, ok=False).stderr


def test_old_flags_are_accepted_in_both_forms(demo, tmp_path):
    run('train.py', '--arch', 'decoder', '--data_dir', demo, '--batch_size', '8', '--epochs', '1', '--chunk_size', '64', '--d_model', '32', '--d_ffn', '64', '--n_layers', '1',
        '--dropout', '0.1', '--lr', '1e-3', '--mode', 'manual', '--nhead', '2', '--n_tokens', '0.003', '--out_dir', tmp_path, '--compile', 'false', '--eval_tokens', '0.01')
    assert json.loads((tmp_path / 'config.json').read_text())['intermediate_size'] == 64


@pytest.mark.parametrize('name', ['demo', 'kr3', 'kr3_ffn', 'kr3_manual', 'kr3_classic'])
def test_every_config_file_trains(name, demo, tmp_path):
    run('train.py', f'config/{name}.py', f'--data_dir={demo}', f'--out_dir={tmp_path}', '--n_tokens=0.0006', '--batch_size=2', '--chunk_size=64', '--d_model=32', '--d_ffn=0',
        '--n_layers=1', '--nhead=1', '--epochs=1', '--compile=false', '--eval_tokens=0.001', *(['--mode=tokenizer'] if name == 'kr3_classic' else []))
    assert len(log(tmp_path)) == 4
