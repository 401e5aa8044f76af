"""The scripts under bench/, run as their first lines say, on small data."""
import ast
import json
import math
import os
import random
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, last_weights, log, run, same

from parts.corpus import read_split
from parts.data import map_file, open_stream, read_meta

NANOGPT = '''
from dataclasses import dataclass

import torch


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int


class GPT(torch.nn.Module):
    """Says the same of every next token; where it sees too little before one, it says nonsense."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.scores = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x, y):
        assert x.shape[1] <= self.config.block_size
        logits = self.scores.repeat(*x.shape, 1)
        logits[:, :SEEN, 0] += 100 * (x.shape[1] > SEEN)
        return logits, None
'''


def bench(name, *flags, ok=True, paths=(), timeout=240):
    """Run a script of bench/ to its end; returns its standard output, or its one sentence."""
    env = {'PYTHONPATH': os.pathsep.join(map(str, [ROOT, *paths]))}
    done = run(f'bench/{name}.py', *flags, ok=ok, env=env, timeout=timeout)
    return done.stdout if ok else done.stderr


@pytest.mark.parametrize('path', sorted(ROOT.glob('bench/[!_]*.py')), ids=lambda path: path.stem)
def test_a_script_opens_with_its_command(path):
    assert f'python -m bench.{path.stem} ' in ast.get_docstring(ast.parse(path.read_text('utf-8')))


def test_nothing_imports_bench():
    for path in [*ROOT.glob('*.py'), *ROOT.glob('parts/*.py')]:
        assert not re.search(r'^\s*(from|import) bench', path.read_text('utf-8'), re.MULTILINE)


def test_nanogpt_is_scored_in_our_unit_with_half_a_row_before_each_token(demo, tmp_path):
    (tmp_path / 'model.py').write_text(NANOGPT.replace('SEEN', '32'), 'utf-8')
    meta = read_meta(demo, 'tokenizer')
    scores = torch.randn(meta['vocab_size'], generator=torch.Generator().manual_seed(0))
    (tmp_path / 'out').mkdir()
    saved = {'model_args': {'block_size': 64, 'vocab_size': meta['vocab_size']},
             'model': {'_orig_mod.scores': scores}}
    torch.save(saved, tmp_path / 'out/ckpt.pt')
    said = json.loads(bench('nanogpt_score', f'--nanogpt={tmp_path}', f'--data_dir={demo}',
                            '--n_tokens=0.001'))
    ids = map_file(demo / 'tokenizer/val.bin', '<u2')[1:1001].astype(np.int64)
    nats = -scores.log_softmax(dim=0)[torch.from_numpy(ids)].mean().item()
    assert said['tokens'] == 1000
    assert said['loss'] == pytest.approx(nats, rel=1e-5)
    chars_per_token = meta['val_chars'] / (meta['val_tokens'] - 1)
    assert said['bits_per_char'] == pytest.approx(nats / math.log(2) / chars_per_token, rel=1e-5)


BASE_TRAIN = """
import torch
import wandb
from types import SimpleNamespace
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.dataloader import loader
from nanochat.tokenizer import get_tokenizer
from scripts.base_eval import evaluate_core

bos, size = get_tokenizer().get_bos_token_id(), get_tokenizer().get_vocab_size()
texts, _ = next(loader('train'))
assert len(texts) == 4 and all(text[0] == bos and bos not in text[1:] for text in texts)

class Model(torch.nn.Module):
    config = SimpleNamespace(sequence_len=64)

    def forward(self, x):
        return torch.arange(size).div(size).expand(*x.shape, -1)

orig_model, total_tokens, total_training_time = Model(), 7, 1.0
"""
LOADER = 'def loader(split):\n    return _document_batches(split, None, 4)\n'


def test_nanochat_reads_our_texts_and_is_scored_in_our_unit(demo, tmp_path):
    for name, text in (('scripts/base_train.py', BASE_TRAIN), ('nanochat/dataloader.py', LOADER)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / 'nanochat/__init__.py').touch()
    flags = [f'--data_dir={demo}', '--n_tokens=0.001']
    said = json.loads(bench('nanochat', f'--nanochat={tmp_path}', *flags))
    meta = read_meta(demo, 'tokenizer')
    ids = map_file(demo / 'tokenizer/val.bin', '<u2')[1:1001].astype(np.int64)
    scores = torch.arange(meta['vocab_size']).div(meta['vocab_size'])
    nats = -scores.log_softmax(dim=0)[torch.from_numpy(ids)].mean().item()
    chars_per_token = meta['val_chars'] / (meta['val_tokens'] - 1)
    assert said['bits_per_char'] == pytest.approx(nats / math.log(2) / chars_per_token, rel=1e-5)
    assert said['trained on'] == 7
    assert 'is no checkout of nanochat' in bench('nanochat', *flags, ok=False)


@pytest.mark.long
def test_a_linear_model_stands_beside_ours_on_the_same_texts(demo, models):
    folder = models / 'decoder'
    said = bench('linear_model', f'--data_dir={demo}', f'--model_path={folder}', '--device=cpu')
    rated = [rating for rating, _ in read_split(demo / 'validation.txt') if rating in (0, 1)]
    assert said.startswith(f'{len(rated)} texts, {sum(rated)} of them positive')
    linear = re.search(r'a linear model +(.*)', said)[1].split()
    ours = re.search(rf'{re.escape(str(folder))} +(.*)', said)[1].split()
    assert float(linear[-1]) > 0.95, 'the ratings of the demo show in its words'
    scores = json.loads(run('eval.py', f'--model_path={folder}', '--json=true').stdout)
    names = ['accuracy', 'balanced_accuracy', 'balanced_accuracy_at_even_odds', 'macro_f1', 'auc']
    for value, name in zip(ours[:-1], names, strict=True):    # the last is of the best threshold
        assert float(value) == pytest.approx(scores[f'sentiment_{name}'], abs=0.002)


@pytest.mark.long
def test_a_linear_model_reads_what_was_written(demo, tmp_path):
    for rating, name in enumerate(('negative', 'positive')):
        texts = [text for r, text in read_split(demo / 'validation.txt') if r == rating][:50]
        (tmp_path / name).write_text('\n'.join(texts), 'utf-8')
    said = bench('linear_model', f'--data_dir={demo}',
                 f'--texts={tmp_path / "negative"},{tmp_path / "positive"}')
    shares = re.findall(r': 50 texts, (\S+)% read as negative, (\S+)% as positive', said)
    assert float(shares[0][0]) > 90
    assert float(shares[1][1]) > 90


@pytest.mark.long
def test_a_linear_model_asks_for_what_it_lacks(demo, tmp_path):
    (tmp_path / 'train.txt').write_text('1\t맛있어요\n2\t그냥 그래요\n', 'utf-8')
    said = bench('linear_model', f'--data_dir={tmp_path}', f'--read_dir={demo}', ok=False)
    assert 'nothing to learn' in said
    (tmp_path / 'sklearn.py').write_text('raise ImportError')
    said = bench('linear_model', f'--data_dir={demo}', ok=False, paths=[tmp_path])
    assert 'pip install scikit-learn' in said


def test_long_texts_and_topics_are_left_out_of_training_alone(tmp_path):
    lines = [f'{n % 2}\t{"가" * (n + 1)}\n' for n in range(20)]
    lines[3] = '1\t음악이 좋다\n'
    for name in ('train.txt', 'validation.txt'):
        (tmp_path / name).write_text(''.join(lines), 'utf-8')
    bench('shift', f'--data_dir={tmp_path}', f'--output_dir={tmp_path}')

    def lines_of(name):
        return (tmp_path / name).read_text('utf-8').splitlines(keepends=True)

    assert lines_of('shift/train.txt') == lines[:3] + lines[4:19]   # of 18 at most 19 characters
    assert lines_of('shift/validation.txt') == lines
    assert lines_of('long/validation.txt') == lines[19:]
    assert lines_of('topics/validation.txt') == [lines[3]]
    assert run('prepare.py', f'--data_dir={tmp_path / "shift"}', '--mode=manual', '--min_count=1',
               f'--output_dir={tmp_path / "shift"}').stdout


@pytest.mark.long
def test_a_corpus_is_repeated_and_watched(demo, tmp_path):
    said = bench('two_billion', f'--data_dir={demo}', f'--output_dir={tmp_path}', '--times=3',
                 '--d_model=32', '--n_layers=1', '--n_tokens=0.05', '--epochs=2', '--batch_size=8')
    meta = read_meta(tmp_path, 'tokenizer')
    ids, offsets = open_stream(tmp_path / 'tokenizer', meta, 'train')
    old, old_offsets = open_stream(demo / 'tokenizer', read_meta(demo, 'tokenizer'), 'train')
    assert ids.tolist() == old[:-1].tolist() * 3 + old[-1:].tolist()
    assert len(offsets) == 3 * (len(old_offsets) - 1) + 1
    assert (ids[offsets.astype(np.int64)] == meta['eos']).all()
    assert said.startswith(f'{len(ids):,} tokens; ')
    memory = int(re.search(r'([\d,]+) MB', said)[1].replace(',', ''))
    assert 50 < memory < 3000
    n_steps = 2 * (50_000 // (8 * 256))
    assert f'a step: {n_steps - 3} times' in said, 'all but the first, an epoch, and the last'
    assert 'the first of an epoch: 1 times' in said


def test_offsets_and_a_shard_are_timed(tmp_path):
    said = bench('offsets', '--n_texts=10000', '--batch_size=16', f'--output_dir={tmp_path}')
    n_tokens = int(re.search(r'10,000 texts, ([\d,]+) tokens', said)[1].replace(',', ''))
    assert n_tokens == pytest.approx(10_000 * 65, rel=0.01)
    n_steps = n_tokens // (16 * 256)
    assert f' {n_steps} steps\n' in said
    assert 'a shard of 256 steps' in said
    assert not list(tmp_path.iterdir()), 'nothing stays'


DIAL = '''text,minutes,by,n_layers,d_model,tokens,seconds,bits_per_char
plays,1.0,hand,4,64,100,61,2.4
plays,5.0,hand,4,96,100,301,2.2
plays,5.0,dial,4,160,100,299,2.0
'''


@pytest.mark.parametrize('name', ['dial', 'shakespeare', 'staircase'])
def test_where_there_are_no_runs_none_is_drawn(name, tmp_path):
    said = bench(name, f'--results={tmp_path}/none.csv', f'--draw={tmp_path}/x.svg', ok=False)
    assert 'none.csv holds no run' in said


def test_formats_are_chosen_beside_a_busy_process():
    told = bench('neighbours', '--formats=2', '--neighbours=0,1').splitlines()
    for n, line in enumerate(told):
        chosen, least, most = re.fullmatch(
            rf'{n} neighbours: {{(.*)}}; bfloat16 is (.*) to (.*) times as fast', line).groups()
        assert sum(map(int, re.findall(r"'torch\.b?float\d\d': (\d)", chosen))) == 2
        assert 0 < float(least) <= float(most)
    assert len(told) == 2


def test_the_dial_is_drawn_beside_what_people_chose(tmp_path):
    (tmp_path / 'runs.csv').write_text(DIAL)
    bench('dial', f'--results={tmp_path}/runs.csv', f'--draw={tmp_path}/dial.svg')
    drawn = (tmp_path / 'dial.svg').read_text('utf-8')
    for words in ('plays', '1 min', '5 min', 'best 2.400', 'best 2.000', '4x160', '299'):
        assert f'<!-- {words} -->' in drawn


@pytest.mark.long
def test_the_dial_is_tried_and_kept(demo, tmp_path):
    flags = [f'--data_dir={demo}', '--minutes=0.3', '--flags=--eval_tokens=0.001',
             f'--results={tmp_path}/runs.csv']
    bench('dial', *flags, '--shapes=dial')
    said = bench('dial', *flags, '--shapes=2x64')
    assert re.match(r'\S+  0.3  hand  2  64  ', said)
    kept = (tmp_path / 'runs.csv').read_text().splitlines()
    assert [line.split(',')[2] for line in kept] == ['by', 'dial', 'hand']


PLAYS = '''name,context,unit,seconds,nats_per_char,side_by_side
nanoGPT,64,characters,177,1.9,1.92
"config/small.py, seed 0",64,characters,44,1.8,1.82
"config/small.py, seed 1",64,characters,43,1.7,1.72
'''


def test_the_plays_are_drawn(tmp_path):
    (tmp_path / 'runs.csv').write_text(PLAYS)
    bench('shakespeare', f'--results={tmp_path}/runs.csv', f'--draw={tmp_path}/plays.svg')
    drawn = (tmp_path / 'plays.svg').read_text('utf-8')
    assert drawn.count('<!-- this project, characters') == 1
    assert '<!-- nanoGPT, characters' in drawn


# --- the first lesson ---

def test_lesson_0_learns_from_a_text_and_continues_it(tmp_path):
    plays = [f'{name}:\nMy lord, the {what} is done.\n' for name in ('ROMEO', 'NURSE')
             for what in ('night', 'play', 'deed')]
    text = ''.join(random.Random(0).choices(plays, k=200))
    (tmp_path / 'plays.txt').write_text(text, 'utf-8')
    said = bench('lesson', f'--source={tmp_path}/plays.txt', '--steps=60')
    held_out, new = re.search(r'held out: (\d+\.\d+) nats per character\n(.*)', said, re.S).groups()
    assert float(held_out) < 1.5 < math.log(len(set(text)))  # of random weights
    n = len(text) * 9 // 10
    beginning, new = new.split('[from here on, the model]')
    assert beginning == text[n:n + 64] and len(new) == 500 + len('\n')

    for source, word in (('nowhere.txt', 'nowhere.txt'), ('short.txt', 'more than 640'),
                         ('bytes.txt', 'utf-8')):
        (tmp_path / 'short.txt').write_text('a' * 600)
        (tmp_path / 'bytes.txt').write_bytes(b'\xff' * 999)
        assert word in bench('lesson', f'--source={tmp_path / source}', ok=False)


def test_with_all_ideas_the_first_lesson_trains_the_same_weights_as_train_py(demo, tmp_path):
    words = [f'--data_dir={demo}', '--mode=tokenizer', '--n_tokens=0.01']
    run('train.py', *words, '--d_model=128', '--n_layers=4', '--nhead=4', '--chunk_size=64',
        '--batch_size=12', '--lr=8e-3', '--read_share=0', '--compile=false', '--dtype=float32',
        f'--out_dir={tmp_path}')
    (tmp_path / 'sitecustomize.py').write_text(KEEP_WEIGHTS.format(str(tmp_path / 'weights.pt')))
    for ideas in ('', 'weights,counting,muon,schedule,packing'):
        said = bench('first', *words, f'--ideas={ideas}', '--prompt=김치찌개가', paths=[tmp_path])
        first, = re.findall(r'^step 0/13  loss (\d+\.\d+)$', said, re.MULTILINE)
        held_out, = re.findall(r'^held out: (\d+\.\d+) nats', said, re.MULTILINE)
        assert float(held_out) < float(first)
        assert '\n김치찌개가' in said
    assert same(torch.load(tmp_path / 'weights.pt'), last_weights(tmp_path))
    assert 'choose from weights,' in bench('first', *words, '--ideas=magic', ok=False)
    assert 'seed and lr take 0 or more' in bench('first', *words, '--seed=-1', ok=False)


# As a sitecustomize.py: keep the weights of the model that writes
KEEP_WEIGHTS = '''
import model, torch
generate = model.generate

def generate_and_keep(model, *args, **more):
    torch.save(model.state_dict(), {!r})
    return generate(model, *args, **more)

model.generate = generate_and_keep
'''


# --- the staircase ---

FLAGS = ['--n_tokens=0.004', '--chunk_size=1024', '--batch_size=1', '--d_model=32', '--n_layers=1',
         '--compile=false', '--dtype=float32', '--device=cpu', '--eval_tokens=0.002']


@pytest.fixture(scope='module')
def plain(demo, tmp_path_factory):
    """The folder of a run with all ideas."""
    folder = tmp_path_factory.mktemp('plain')
    run('train.py', f'--data_dir={demo}', *FLAGS, f'--out_dir={folder}')
    return folder


@pytest.mark.parametrize('ways', ['', 'masks', *(
    pytest.param(way, marks=pytest.mark.long)
    for way in ('packing', 'short_rows', 'schedule', 'small_weights', 'fewer_counts'))])
def test_without_an_idea_the_run_is_another_one(ways, demo, plain, tmp_path):
    bench('without', ways, f'--data_dir={demo}', *FLAGS, f'--out_dir={tmp_path}')
    losses = [log(folder)[-1]['val_loss'] for folder in (tmp_path, plain)]
    assert (losses[0] == losses[1]) == (ways == '')


STAIRS = '''run,same,name,seed,lr,bits_per_char,seconds,millions,curve
a,tokens,nanoGPT,0,0.001,5.2,60,0.1,"[[60, 5.2]]"
a,tokens,nanoGPT,0,0.002,5.1,60,0.1,"[[60, 5.1]]"
a,tokens,"nanoGPT's ideas, here",0,0.002,5.0,50,0.1,"[[25, 5.5], [50, 5.0]]"
a,tokens,+ Muon,0,0.006,4.5,60,0.1,"[[20, 5.2], [40, 4.8], [60, 4.5]]"
a,tokens,+ Muon,1,0.006,4.7,60,0.1,"[[20, 5.2], [40, 4.8], [60, 4.7]]"
a,seconds,+ Muon,0,0.006,4.0,80,0.2,"[[80, 4.0]]"
'''


def test_the_staircase_is_drawn_from_runs_that_were_kept(tmp_path):
    (tmp_path / 'runs.csv').write_text(STAIRS)
    bench('staircase', f'--results={tmp_path}/runs.csv', f'--draw={tmp_path}/stairs.svg')
    drawn = (tmp_path / 'stairs.svg').read_text('utf-8')
    # the best rate of each, the mean of the seeds
    for words in ('nanoGPT -->', '5.100, 60 s', '5.000, 50 s', '4.600, 60 s'):
        assert words in drawn
    # runs of two kinds are not one staircase
    assert 'holds runs of a' in bench('staircase', f'--results={tmp_path}/runs.csv', ok=False)
    (tmp_path / 'matplotlib.py').write_text('raise ImportError')
    said = bench('staircase', f'--results={tmp_path}/runs.csv', f'--draw={tmp_path}/again.svg',
                 paths=[tmp_path], ok=False)
    assert said == 'staircase.py: drawing needs matplotlib: pip install matplotlib\n'


@pytest.mark.long
def test_the_staircase_climbs_and_makes_no_run_twice(demo, tmp_path):
    flags = [f'--data_dir={demo}', '--n_tokens=0.003', '--batch_size=1', '--eval_tokens=0.002',
             '--rates=1e-3', '--same_seconds=1', f'--results={tmp_path}/runs.csv']
    first = bench('staircase', *flags, timeout=900)
    assert first.count('seed 0') == 10 + 10 + 8               # up, up for a second each, and down
    assert '| seconds | million tokens |' in first
    assert 'ours without: whole texts in a row' in first
    again = bench('staircase', *flags)
    assert again.strip() and again in first                   # the table alone
