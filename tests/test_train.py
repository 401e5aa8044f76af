"""train.py as a user runs it: one process and two, the log, the folder, and a person's mistakes."""
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import NO_SUCH_GPU, ROOT, SMALL, last_weights, log, random_model, run, same
from safetensors.torch import load_file

from parts.teachers import SHARE, taught, taught_losses


def without(name, flags):
    """The flags but those that begin with --name."""
    return [flag for flag in flags if not flag.startswith(f'--{name}')]


def validated(rows):
    """The rows of a log that have a validation loss."""
    return [row for row in rows if row['val_loss']]


def read_json(path):
    return json.loads(path.read_text('utf-8'))


# --- one run ---

def test_the_same_settings_give_the_same_run(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.01', '--seed=3']
    run('train.py', *flags, f'--out_dir={tmp_path / "a"}')
    run('train.py', *flags, f'--out_dir={tmp_path / "b"}')
    assert same(last_weights(tmp_path / 'a'), last_weights(tmp_path / 'b'))
    first_row, second_row, *_ = log(tmp_path / 'a')
    assert first_row['train_loss'] != second_row['train_loss']


@pytest.mark.parametrize('seed', [0, 20240607, 2 ** 63 - 1])
def test_any_seed_is_a_seed(seed, demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.002', '--dropout=0.1']
    run('train.py', *flags, f'--out_dir={tmp_path}', f'--seed={seed}')
    assert len(log(tmp_path)) == 3


def test_the_log_tells_how_the_run_went(demo, models):
    rows = log(models / 'decoder')
    columns = ['step', 'tokens', 'seconds', 'train_loss', 'val_loss', 'bits_per_char', 'lr']
    assert list(rows[0]) == columns
    tokens_per_step = 8 * 64
    steps = 2 * (60_000 // tokens_per_step)
    assert int(rows[-1]['step']) == steps
    assert int(rows[-1]['tokens']) == steps * tokens_per_step
    seconds = [float(row['seconds']) for row in rows]
    assert seconds == sorted(seconds)
    rates = [float(row['lr']) for row in rows]
    assert max(rates) <= 6e-3
    assert 0 < rates[-1] < 1e-3 * max(rates)


def test_a_run_begins_as_a_bigram_model(demo, models):
    meta = read_json(demo / 'tokenizer/meta.json')
    first_row = log(models / 'decoder')[0]
    knowing_nothing = math.log(meta['vocab_size'])
    assert float(first_row['train_loss']) < 0.5 * knowing_nothing


def test_the_folder_holds_the_best_model_and_the_last_state(models):
    folder = models / 'decoder'
    names = {file.name for file in folder.iterdir()}
    assert names >= {
        'config.json', 'model.safetensors', 'generation_config.json', 'meta.json',
        'tokenizer.model', 'tokenizer_config.json', 'tokenizer.json', 'state.pt', 'log.csv'}
    assert not list(folder.glob('*.part'))
    val_losses = [float(row['val_loss']) for row in validated(log(folder))]
    meta = read_json(folder / 'meta.json')
    assert meta['val_loss'] == pytest.approx(min(val_losses), abs=1e-4)


def test_the_best_model_outlives_worse_ones(demo, tmp_path):
    harmful = ['--lr=2', '--warmup=39', '--optimizer=adamw', '--grad_clip=0']
    run('train.py', f'--data_dir={demo}', f'--out_dir={tmp_path}', *SMALL, '--n_tokens=0.02',
        '--eval_interval=1', *harmful)
    val_losses = {int(row['step']): float(row['val_loss']) for row in validated(log(tmp_path))}
    best_step = min(val_losses, key=val_losses.get)
    assert best_step != max(val_losses), 'the rate was meant to be harmful'
    assert read_json(tmp_path / 'meta.json')['step'] == best_step
    best = load_file(tmp_path / 'model.safetensors')
    last = last_weights(tmp_path)
    assert not torch.equal(best['lm_head.weight'], last['lm_head.weight'])


def test_validation_takes_a_twentieth_of_the_run(demo, tmp_path):
    """A validation token costs at most half a training token, so a tenth as many are read."""
    flags = [f'--data_dir={demo}', *without('eval_tokens', SMALL), '--n_tokens=0.06']
    said = run('train.py', *flags, f'--out_dir={tmp_path}').stdout
    n_val_tokens = int(re.search(r'([\d,]+) validation tokens', said)[1].replace(',', ''))
    n_validations = len(validated(log(tmp_path)))
    padding = 1 / 0.6  # short rows are not quite full
    assert n_validations >= 1
    assert n_validations * n_val_tokens <= 0.1 * 60_000 * padding


def test_validation_takes_more_where_more_is_asked_for(demo, tmp_path):
    flags = [f'--data_dir={demo}', *without('eval_tokens', SMALL), '--n_tokens=0.06']
    run('train.py', *flags, f'--out_dir={tmp_path}', '--eval_interval=20', '--eval_tokens=0.01')
    steps = [int(row['step']) for row in validated(log(tmp_path))]
    assert steps == [20, 40, 60, 80, 100, 117]


def test_what_ratings_cost_is_learned_from_but_not_logged(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.01', '--log_interval=1']
    runs = {}
    for weight in (0, 10):
        runs[weight] = tmp_path / str(weight)
        run('train.py', *flags, f'--read_weight={weight}', f'--out_dir={runs[weight]}')
    first, second = (log(runs[weight])[0]['train_loss'] for weight in (0, 10))
    assert first == second
    assert not same(last_weights(runs[0]), last_weights(runs[10]))


@pytest.mark.parametrize('flags', [['--read_share=0'], ['--arch=ffn']])
def test_a_model_that_was_not_asked_for_ratings_is_not_said_to_read(flags, demo, models, tmp_path):
    def reads(folder):
        return json.loads((folder / 'config.json').read_text())['reads_ratings']

    run('train.py', f'--data_dir={demo}', *SMALL, '--n_tokens=0.01', *flags,
        f'--out_dir={tmp_path / "new"}')
    assert reads(models / 'decoder')
    assert not reads(tmp_path / 'new')


def test_data_without_ratings_ask_for_none(tmp_path):
    lines = [f'별점이 없는 {i}번째 문장' for i in range(2000)]
    (tmp_path / 'x.txt').write_text('\n'.join(lines), 'utf-8')
    run('prepare.py', f'--source={tmp_path / "x.txt"}', f'--output_dir={tmp_path / "x"}',
        '--mode=manual')
    done = run('train.py', f'--data_dir={tmp_path / "x"}', *SMALL, '--mode=manual',
               f'--out_dir={tmp_path / "new"}')
    assert done.returncode == 0
    assert not json.loads((tmp_path / 'new/config.json').read_text())['reads_ratings']


def test_float16_trains_on_a_cpu_too(demo, tmp_path):
    """Some steps overflow at first. The loss scale comes down, and the run learns as in float32."""
    flags = [f'--data_dir={demo}', *without('dtype', SMALL), '--n_tokens=0.02',
             '--eval_interval=10']
    losses = {}
    for dtype in ('float16', 'float32'):
        run('train.py', *flags, f'--dtype={dtype}', f'--out_dir={tmp_path / dtype}')
        losses[dtype] = float(log(tmp_path / dtype)[-1]['val_loss'])
    assert losses['float16'] == pytest.approx(losses['float32'], rel=0.02)
    state = torch.load(tmp_path / 'float16/state.pt', weights_only=True)
    assert 0 < state['scaler']['scale'] <= 2 ** 16


# --- taught by other models ---

def test_what_teachers_say_is_a_part_of_each_target():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    probabilities = torch.randn(2, 3, 5).softmax(dim=-1)
    targets = torch.tensor([[1, 2, -1], [4, 0, 0]])
    nats, loss = taught_losses(logits, targets, probabilities)
    loss.backward()
    of_text = torch.nn.functional.cross_entropy(logits.mT, targets, ignore_index=-1,
                                                reduction='sum')
    assert nats.item() == pytest.approx(of_text.item())
    text = torch.nn.functional.one_hot(targets.clamp(min=0), 5)
    mixed = (1 - SHARE) * text + SHARE * probabilities
    toward = (logits.detach().softmax(dim=-1) - mixed) * (targets >= 0)[..., None]
    assert torch.allclose(logits.grad, toward, atol=1e-6)


def test_teachers_that_say_the_same_are_one():
    teacher = random_model()
    x = torch.randint(50, (2, 16))
    one, three = taught([teacher], x), taught([teacher] * 3, x)
    assert torch.allclose(one, teacher(x).softmax(dim=-1), atol=1e-6)
    assert torch.allclose(one, three, atol=1e-6)
    assert not one.requires_grad


def test_a_taught_run_goes_on_and_is_divided_as_any(demo, models, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, f'--teachers={models / "decoder"},{models / "ffn"}',
             '--n_tokens=0.01', '--dropout=0.1', '--lr=1e-3', '--table_decay=1', '--epochs=2',
             '--eval_interval=10', '--log_interval=1']
    one, two, resumed = tmp_path / 'one', tmp_path / 'two', tmp_path / 'resumed'
    run('train.py', *flags, f'--out_dir={one}')
    train_on_machines(1, 2, *flags, '--micro_batch=2', f'--out_dir={two}')
    for a, b in zip(log(one), log(two), strict=True):
        assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)
    resumed.mkdir()
    shutil.copy(one / 'state.before.pt', resumed / 'state.pt')
    run('train.py', '--init_from=resume', f'--out_dir={resumed}')
    assert same(last_weights(one), last_weights(resumed))


def test_a_teacher_of_another_vocabulary_is_refused(demo, models, tmp_path):
    done = run('train.py', f'--data_dir={demo}', *SMALL, f'--out_dir={tmp_path / "new"}',
               f'--teachers={models / "decoder"},{models / "manual"}', ok=False)
    assert 'cannot be a teacher' in done.stderr


# --- several processes ---

def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def train_on_machines(n_machines, processes_each, *flags):
    """Run train.py through as many torchruns as there are machines, all of them on this one."""
    torchrun = [sys.executable, '-m', 'torch.distributed.run', f'--nnodes={n_machines}',
                f'--nproc_per_node={processes_each}', '--rdzv_backend=c10d',
                f'--rdzv_endpoint=127.0.0.1:{free_port()}']
    words = [*torchrun, str(ROOT / 'train.py'), *flags]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    machines = []
    for _ in range(n_machines):
        machine = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        machines.append(machine)
    for machine in machines:
        assert machine.wait(200) == 0


@pytest.mark.parametrize('arch, n_machines', [('decoder', 2), ('ffn', 1)])
def test_two_processes_draw_the_curve_of_one(arch, n_machines, demo, tmp_path):
    """The two also take other micro-batches than the one."""
    flags = [f'--data_dir={demo}', *SMALL, f'--arch={arch}', '--n_tokens=0.02', '--log_interval=1',
             '--lr=1e-3', '--dropout=0.2', '--eval_interval=4']
    run('train.py', *flags, f'--out_dir={tmp_path / "one"}')
    train_on_machines(n_machines, 2 // n_machines, *flags, '--micro_batch=2',
                      f'--out_dir={tmp_path / "two"}')
    one = log(tmp_path / 'one')
    two = log(tmp_path / 'two')
    assert len(one) == len(two) == 39
    for a, b in zip(one, two):
        assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)
        assert bool(a['val_loss']) == bool(b['val_loss'])
        if a['val_loss']:
            assert float(a['val_loss']) == pytest.approx(float(b['val_loss']), rel=1e-3)


def test_a_mistake_is_heard_from_every_rank(tmp_path):
    for rank in '01':
        environment = {'RANK': rank, 'WORLD_SIZE': '2'}
        done = run('train.py', f'--data_dir={tmp_path}', env=environment, ok=False)
        assert f'(rank {rank})' in done.stderr
        assert 'run prepare.py first' in done.stderr


# --- what is said when a run cannot begin ---

@pytest.mark.parametrize('flags, words', [
    (['--init_from=resume'], 'no run to resume'),
    (['--out_dir=/dev/null/x'], 'cannot be written to'),
    (['--arch=rnn'], "'decoder' or 'ffn'"),
    (['--optimizer=sgd'], "'muon' or 'adamw'"),
    (['--d_model=33'], 'd_model=33'),
    (['--batch_size=100000'], 'do not fill one batch'),
    (['--device=cuda:9'], NO_SUCH_GPU),
    (['--epochs=0'], 'epochs=0'),
    (['--read_share=1.5'], 'it takes 0 to 1'),
    (['--read_weight=-1'], 'it takes 0 or more'),
    (['--teachers=out/nobody'], 'is not a model folder'),
    (['--seed=-1'], 'from 0 to 2^63 - 1'),
    ([f'--seed={2 ** 63}'], 'from 0 to 2^63 - 1'),
    (['--compile=maybe'], 'true, false or auto'),
    (['--dtype=int8'], 'bfloat16, float16, float32'),
])
def test_mistakes_are_found_before_any_work(flags, words, demo, tmp_path):
    done = run('train.py', f'--data_dir={demo}', *SMALL, f'--out_dir={tmp_path / "new"}', *flags,
               ok=False)
    assert words in done.stderr


def test_without_prepared_data_it_says_what_to_do(tmp_path):
    done = run('train.py', f'--data_dir={tmp_path}', f'--out_dir={tmp_path / "new"}', *SMALL,
               ok=False)
    assert 'run prepare.py first' in done.stderr


@pytest.mark.parametrize('flags, words', [
    ([], 'already holds a run'),
    (['--init_from=resume', '--d_model=64', '--epochs=9'], 'was started with epochs=2'),
])
def test_an_old_run_is_not_overwritten_and_stays_what_it_is(flags, words, demo, models):
    done = run('train.py', f'--data_dir={demo}', *SMALL, f'--out_dir={models / "decoder"}', *flags,
               ok=False)
    assert words in done.stderr


def test_bins_that_do_not_fit_their_meta_are_refused(demo, tmp_path):
    shutil.copytree(demo, tmp_path / 'data')
    flags = [f'--data_dir={tmp_path / "data"}', *SMALL, f'--out_dir={tmp_path / "out"}']
    path = tmp_path / 'data/tokenizer/train.bin'
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    too_short = run('train.py', *flags, ok=False).stderr
    assert 'run prepare.py again' in too_short
    path.write_bytes(b'\xff\xff' + good[2:])
    changed = run('train.py', *flags, ok=False).stderr
    assert 'train.bin is damaged' in changed
    assert 'run prepare.py again' in changed


def test_ids_beyond_the_vocabulary_are_refused(demo, tmp_path):
    shutil.copytree(demo, tmp_path / 'data')
    path = tmp_path / 'data/tokenizer/meta.json'
    meta = read_json(path)
    largest = meta['train_largest_id']
    meta['vocab_size'] = largest
    path.write_text(json.dumps(meta), 'utf-8')
    error = run('train.py', f'--data_dir={tmp_path / "data"}', *SMALL,
                f'--out_dir={tmp_path / "out"}', ok=False).stderr
    assert f'holds the id {largest}, but the vocabulary ends at {largest - 1}' in error


def test_old_flags_are_accepted_in_both_forms(demo, tmp_path):
    flags = ['--arch', 'decoder', '--batch_size', '8', '--epochs', '1', '--chunk_size', '64',
             '--d_model', '32', '--d_ffn', '64', '--n_layers', '1', '--dropout', '0.1',
             '--lr', '1e-3', '--mode', 'manual', '--nhead', '2', '--n_tokens', '0.003',
             '--compile', 'false', '--eval_tokens', '0.01']
    run('train.py', *flags, '--data_dir', demo, '--out_dir', tmp_path)
    assert read_json(tmp_path / 'config.json')['intermediate_size'] == 64


# --- shown and logged elsewhere ---

# Stands in for the package of that name, and prints what it is told.
WANDB = '''
import json

class Run:
    def log(self, values, step):
        print(json.dumps({'step_told': step, **values}))

    def finish(self):
        print('project closed')

def init(project, name, config):
    print('project', project, config['d_model'])
    return Run()
'''


def test_showing_reviews_and_logging_elsewhere_change_nothing(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.01', '--dropout=0.1', '--eval_interval=10']
    plain = tmp_path / 'plain'
    shown = tmp_path / 'shown'
    run('train.py', *flags, f'--out_dir={plain}')
    (tmp_path / 'wandb.py').write_text(WANDB)
    said = run('train.py', *flags, f'--out_dir={shown}', '--show=true', '--wandb=reviews',
               env={'PYTHONPATH': str(tmp_path)}).stdout
    assert same(last_weights(plain), last_weights(shown))
    assert said.count('    negative   ') == 2
    assert said.count('    ambiguous  ') == 2
    assert 'project reviews 32' in said
    assert 'project closed' in said
    told = [json.loads(line) for line in said.splitlines() if line.startswith('{')]
    steps_told = [row['step_told'] for row in told]
    rows = log(shown)
    assert steps_told == [int(row['step']) for row in rows]
    assert told[-1]['val_loss'] == float(rows[-1]['val_loss'])
