"""train.py as a user runs it: one process and several, the log, the folder, a person's mistakes."""
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import NO_SUCH_GPU, SMALL, last_weights, log, read_json, run, run_ranks, same
from safetensors.torch import load_file

import train
from model import Config
from parts.budget import length_for, shape_for
from parts.checkpoint import load_checkpoint, save_checkpoint

# nine steps
SHORT = [*SMALL, '--n_tokens=0.005', '--eval_tokens=0.002']


def validated(folder):
    """{step: validation loss} of a run's log."""
    return {int(row['step']): float(row['val_loss']) for row in log(folder) if row['val_loss']}


# --- one run ---

def test_any_seed_is_a_seed_and_gives_a_run_of_its_own(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SHORT, '--dropout=0.1', '--bigram_init=false']
    run('train.py', *flags, f'--out_dir={tmp_path / "a"}', f'--seed={2 ** 63 - 1}')
    run('train.py', *flags, f'--out_dir={tmp_path / "b"}', f'--seed={2 ** 63 - 2}')
    assert len(log(tmp_path / 'a')) == len(log(tmp_path / 'b')) == 9
    assert not same(last_weights(tmp_path / 'a'), last_weights(tmp_path / 'b'))


def test_the_log_tells_how_the_run_went(models):
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
    assert rates[-1] == pytest.approx(6e-3 * 2 / steps, rel=1e-3)     # the line to zero
    assert float(rows[-1]['train_loss']) < 0.7 * float(rows[0]['train_loss'])


def test_a_run_begins_as_a_bigram_model(demo, models):
    knowing_nothing = math.log(read_json(demo / 'tokenizer/meta.json')['vocab_size'])
    assert float(log(models / 'decoder')[0]['train_loss']) < 0.5 * knowing_nothing


def test_the_folder_holds_a_model_and_a_state_and_nothing_unfinished(models):
    folder = models / 'decoder'
    names = {file.name for file in folder.iterdir()}
    assert names >= {
        'config.json', 'model.safetensors', 'generation_config.json', 'meta.json', 'README.md',
        'tokenizer.model', 'tokenizer_config.json', 'tokenizer.json', 'state.pt', 'log.csv'}
    assert not list(folder.glob('*.part'))


def test_the_best_model_outlives_worse_ones(tmp_path):
    """Twelve epochs of sixty reviews: from the middle of the run on, it learns them by heart."""
    data, out = tmp_path / 'data', tmp_path / 'out'
    run('prepare.py', '--source=demo', f'--output_dir={data}', '--n_reviews=60', '--mode=manual')
    run('train.py', f'--data_dir={data}', '--mode=manual', f'--out_dir={out}', *SMALL,
        '--d_model=64', '--epochs=12', '--lr=2e-2', '--eval_interval=10')
    val_losses = validated(out)
    best_step = min(val_losses, key=val_losses.get)
    assert best_step < max(val_losses), 'the run was meant to be too long'
    meta = read_json(out / 'meta.json')
    assert meta['step'] == best_step
    assert meta['val_loss'] == pytest.approx(val_losses[best_step], abs=1e-4)
    best = load_file(out / 'model.safetensors')
    assert not torch.equal(best['lm_head.weight'], last_weights(out)['lm_head.weight'])


@pytest.mark.parametrize('steps', [5, 100, 100_000])
def test_validation_reads_a_tenth_as_many_tokens_as_training(steps):
    """Each costs half a training token, so a twentieth of the time."""
    run_ = SimpleNamespace(eval_interval=0, eval_tokens=0.1, given=set())
    data = SimpleNamespace(steps=steps, tokens_per_step=4096)
    interval, million = train.validation_plan(run_, data)
    n_validations = -(-steps // interval)
    assert 1 <= n_validations <= 10
    assert n_validations * million * 1e6 <= 0.1 * steps * 4096 * 1.001


def test_validation_comes_as_often_as_it_is_asked_for(demo, tmp_path):
    run('train.py', f'--data_dir={demo}', *SHORT, f'--out_dir={tmp_path}', '--eval_interval=4')
    assert list(validated(tmp_path)) == [4, 8, 9]


def test_a_model_that_was_not_asked_for_ratings_is_not_said_to_read(demo, models, tmp_path):
    def reads_ratings(folder):
        return read_json(folder / 'config.json')['reads_ratings']

    run('train.py', f'--data_dir={demo}', *SHORT, '--read_share=0', f'--out_dir={tmp_path}')
    assert reads_ratings(models / 'decoder')
    assert not reads_ratings(models / 'ffn')
    assert not reads_ratings(tmp_path)


def test_float16_trains_on_a_cpu_too(demo, tmp_path):
    """Some steps overflow at first. The loss scale comes down, and the run learns as in float32."""
    flags = [f'--data_dir={demo}', *SMALL, '--batch_size=2', '--n_tokens=0.0015',
             '--eval_interval=100']
    losses = {}
    for dtype in ('float16', 'float32'):
        run('train.py', *flags, f'--dtype={dtype}', f'--out_dir={tmp_path / dtype}')
        losses[dtype] = validated(tmp_path / dtype)[11]
    assert losses['float16'] == pytest.approx(losses['float32'], rel=0.02)
    state = torch.load(tmp_path / 'float16/state.pt', weights_only=True)
    assert 0 < state['scaler']['scale'] <= 2 ** 16


def test_tables_of_a_text_of_one_step_an_epoch_are_not_erased(demo, tmp_path):
    run('train.py', f'--data_dir={demo}', *SMALL, '--n_tokens=0.0006', '--epochs=4', '--lr=1e-4',
        '--table_decay=1', '--bigram_init=false', f'--out_dir={tmp_path}')
    assert last_weights(tmp_path)['model.embed_tokens.weight'].std() > 0.8    # it began with 1


def test_a_state_without_its_model_goes_on_and_leaves_one(models, tmp_path):
    state = load_checkpoint(models / 'decoder')
    shutil.copy(models / 'decoder/state.before.pt', tmp_path / 'state.pt')
    before = load_checkpoint(tmp_path)
    assert before['step'] < state['step']
    save_checkpoint(tmp_path, {**before, 'best': 0.0})        # of other validation tokens, perhaps
    run('train.py', '--init_from=resume', f'--out_dir={tmp_path}')
    assert same(load_file(tmp_path / 'model.safetensors'), last_weights(models / 'decoder'))


def test_a_loss_over_another_text_is_no_mark_to_beat(models, tmp_path):
    shutil.copy(models / 'decoder/state.before.pt', tmp_path / 'state.pt')
    (tmp_path / 'model.safetensors').write_bytes(b'the best on another text')
    save_checkpoint(tmp_path, {**load_checkpoint(tmp_path), 'best': 0.0, 'validation': 1})
    run('train.py', '--init_from=resume', f'--out_dir={tmp_path}')
    assert same(load_file(tmp_path / 'model.safetensors'), last_weights(models / 'decoder'))


# --- several processes ---

@pytest.mark.parametrize('arch', ['decoder', pytest.param('ffn', marks=pytest.mark.long)])
def test_two_processes_draw_the_curve_of_one(arch, demo, tmp_path):
    """The two also take other micro-batches than the one."""
    flags = [f'--data_dir={demo}', *SMALL, f'--arch={arch}', '--n_tokens=0.01', '--log_interval=1',
             '--lr=1e-3', '--eval_interval=4']
    run('train.py', *flags, f'--out_dir={tmp_path / "one"}')
    flags_of_two = [*flags, '--micro_batch=2', f'--out_dir={tmp_path / "two"}']
    for done in run_ranks('train.py', flags_of_two, flags_of_two):
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = log(tmp_path / 'one'), log(tmp_path / 'two')
    assert len(one) == len(two) == 19
    for a, b in zip(one, two):
        assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)
    assert validated(tmp_path / 'two') == pytest.approx(validated(tmp_path / 'one'), rel=1e-3)


def assert_refused(processes, words):
    """Each rank ended with a sentence that holds these words."""
    for rank, done in enumerate(processes):
        assert done.returncode == 2, done.stderr[-3000:]
        assert f'(rank {rank})' in done.stderr
        assert words in done.stderr
        assert 'Traceback' not in done.stderr


def test_processes_with_two_corpora_are_refused(demo, tmp_path):
    other = tmp_path / 'other'
    run('prepare.py', '--source=demo', f'--output_dir={other}', '--n_reviews=2000',
        '--vocab_size=600')
    processes = run_ranks('train.py', *[
        [*SHORT, f'--data_dir={data}', f'--out_dir={tmp_path / "out"}'] for data in (demo, other)])
    assert_refused(processes, 'the checksum of train.bin is ')


def test_processes_with_two_vocabularies_are_refused(demo, tmp_path):
    other = shutil.copytree(demo, tmp_path / 'other')
    path = other / 'tokenizer/tokenizer_config.json'
    path.write_text(path.read_text() + ' ')
    processes = run_ranks('train.py', *[
        [*SHORT, f'--data_dir={data}', f'--out_dir={tmp_path / "out"}'] for data in (demo, other)])
    assert_refused(processes, 'the vocabulary is ')


def test_processes_with_other_settings_are_refused(demo, tmp_path):
    processes = run_ranks('train.py', *[
        [*SHORT, f'--data_dir={demo}', f'--out_dir={tmp_path / "out"}', f'--log_interval={n}']
        for n in (1, 2)])
    assert_refused(processes, 'log_interval is 1 for rank 0')


def test_processes_with_states_of_other_steps_are_refused(demo, models, tmp_path):
    for rank, name in enumerate(('state.pt', 'state.before.pt')):
        (tmp_path / str(rank)).mkdir()
        shutil.copy(models / 'decoder' / name, tmp_path / str(rank) / 'state.pt')
    processes = run_ranks('train.py', *[
        ['--init_from=resume', f'--out_dir={tmp_path / str(rank)}'] for rank in (0, 1)])
    assert_refused(processes, 'the last step is 234 for rank 0')
    (tmp_path / '1/state.pt').unlink()                        # one has none, and would begin
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.06', '--epochs=2', '--d_model=64',
             '--eval_interval=23', '--init_from=auto']        # of models/decoder
    processes = run_ranks('train.py', *[
        [*flags, f'--out_dir={tmp_path / str(rank)}'] for rank in (0, 1)])
    assert_refused(processes, 'the last step is 234 for rank 0')


def test_a_mistake_is_heard_from_every_rank(tmp_path):
    processes = run_ranks('train.py', *[[f'--data_dir={tmp_path}', '--epochs=0']] * 2)
    assert_refused(processes, 'epochs=0: it takes 1 or more')


# --- what is said when a run cannot begin ---

@pytest.mark.parametrize('flags, words', [
    (['--init_from=resume'], 'no run to resume'),
    (['--out_dir=/dev/null/x'], 'cannot be written to'),
    (['--out_dir=' + 300 * 'x'], 'cannot be written to'),
    (['--data_dir=/dev/null'], 'run prepare.py first'),
    ([f'--data_dir={__file__}'], f'{__file__} is a file, and it takes a folder'),
    (['--mode=char'], "it is 'tokenizer' or 'manual'"),
    (['--data_dir=' + 300 * 'x'], 'run prepare.py first'),
    (['--data_dir=~nobody-of-this-name'], 'home directory'),
    (['--n_layers=-1', '--minutes=1'], 'n_layers=-1: it takes 1 or more'),
    (['--arch=rnn'], "'decoder' or 'ffn'"),
    (['--optimizer=sgd'], "'muon' or 'adamw'"),
    (['--d_model=33'], 'd_model=33'),
    (['--batch_size=100000'], 'do not fill one batch'),
    (['--device=cuda:9'], NO_SUCH_GPU),
    (['--epochs=0'], 'epochs=0'),
    (['--read_share=1.5'], 'it takes 0 to 1'),
    (['--dropout=1'], 'dropout=1.0: it takes 0 or more and less than 1'),
    (['--chunk_size=1'], 'it takes 2 or more'),
    (['--seed=-1'], 'from 0 to 2^63 - 1'),
    ([f'--seed={2 ** 63}'], 'from 0 to 2^63 - 1'),
    (['--compile=maybe'], 'true, false or auto'),
    (['--dtype=int8'], 'bfloat16, float16, float32'),
])
def test_mistakes_are_found_before_any_work(flags, words, demo, tmp_path):
    done = run('train.py', f'--data_dir={demo}', *SMALL, f'--out_dir={tmp_path / "new"}', *flags,
               ok=False)
    assert words in done.stderr
    assert not list(tmp_path.rglob('state.pt'))


@pytest.mark.parametrize('flags, words', [
    ([], 'already holds a run'),
    (['--init_from=resume', '--epochs=9'], 'was started with epochs=2, not 9'),
])
def test_an_old_run_is_not_overwritten_and_stays_what_it_is(flags, words, demo, models):
    done = run('train.py', f'--data_dir={demo}', f'--out_dir={models / "decoder"}', *flags,
               ok=False)
    assert words in done.stderr


@pytest.mark.parametrize('name', ['README.md', 'log.csv', 'tokenizer.json'])
def test_what_a_person_wrote_is_not_written_over(demo, tmp_path, name):
    (tmp_path / name).write_text('mine')
    done = run('train.py', f'--data_dir={demo}', *SMALL, f'--out_dir={tmp_path}', ok=False)
    assert f"holds a {name} that may be somebody's own" in done.stderr
    assert (tmp_path / name).read_text() == 'mine'


def test_a_model_that_is_fine_tuned_keeps_its_context(monkeypatch):
    base = SimpleNamespace(config=Config(65, chunk_size=512))
    monkeypatch.setattr('parts.folder.base_model', lambda *words: (base, {}))
    settings = SimpleNamespace(**{**vars(train.settings), 'given': set()})
    assert train.fine_tune(settings, {})[0].chunk_size == 512
    settings = SimpleNamespace(**{**vars(settings), 'given': {'chunk_size'}})
    assert train.fine_tune(settings, {})[0].chunk_size == 256


def test_old_flags_are_accepted_in_both_forms(demo, tmp_path):
    flags = ['--arch', 'decoder', '--batch_size', '8', '--epochs', '1', '--chunk_size', '64',
             '--d_model', '32', '--d_ffn', '64', '--n_layers', '1', '--dropout', '0.1',
             '--lr', '1e-3', '--mode', 'manual', '--nhead', '2', '--n_tokens', '0.003',
             '--compile', '0', '--eval_tokens', '0.01']
    run('train.py', *flags, '--data_dir', demo, '--out_dir', tmp_path)
    assert read_json(tmp_path / 'config.json')['intermediate_size'] == 64


def test_showing_texts_changes_nothing(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.01', '--dropout=0.1', '--eval_interval=10']
    plain, shown = tmp_path / 'plain', tmp_path / 'shown'
    run('train.py', *flags, f'--out_dir={plain}')
    said = run('train.py', *flags, f'--out_dir={shown}', '--show=true').stdout
    assert same(last_weights(plain), last_weights(shown))
    assert said.count('    negative   ') == 2
    assert said.count('    ambiguous  ') == 2


# --- --minutes ---

def test_minutes_choose_what_was_not_given_and_say_it_as_flags(demo, tmp_path):
    """The flags make the same run, and a clock does not move one that goes on."""
    given = ['--n_layers=1', '--d_model=32', '--chunk_size=64', '--eval_interval=8',
             '--eval_tokens=0.001', '--epochs=2', '--compile=false', '--dropout=0.1']
    timed, same_flags, resumed = (tmp_path / name for name in ('timed', 'flags', 'resumed'))
    said = run('train.py', f'--data_dir={demo}', *given, '--minutes=0.1',
               f'--out_dir={timed}').stdout
    flags = said.partition('0.1 minutes here: ')[2].splitlines()[0].split()
    assert [flag.split('=')[0] for flag in flags] == [
        '--batch_size', '--lr', '--n_tokens', '--table_decay', '--dtype']
    assert '--table_decay=1.0' in flags, 'it goes with the dropout, whoever chose that'
    run('train.py', f'--data_dir={demo}', *given, *flags, f'--out_dir={same_flags}')
    assert same(last_weights(timed), last_weights(same_flags))

    resumed.mkdir()
    shutil.copy(timed / 'state.before.pt', resumed / 'state.pt')
    said = run('train.py', '--init_from=resume', '--minutes=0.1', f'--out_dir={resumed}').stdout
    assert 'minutes here' not in said
    assert same(last_weights(timed), last_weights(resumed))
    error = run('train.py', '--init_from=resume', '--minutes=9', f'--out_dir={timed}', ok=False)
    assert 'was started with minutes=0.1, not 9.0' in error.stderr


def test_a_run_has_no_time_where_beginning_takes_all_of_it(demo, tmp_path):
    flags = [f'--data_dir={demo}', f'--out_dir={tmp_path}', '--d_model=32', '--n_layers=1']
    error = run('train.py', *flags, '--minutes=1e-5', ok=False).stderr
    assert 'minutes=1e-05: to begin takes' in error
    error = run('train.py', *flags, '--minutes=2', '--optimizer=adamw', ok=False).stderr
    assert 'with --optimizer=adamw say one' in error
    error = run('train.py', *flags, '--minutes=2', '--n_tokens=0.5', ok=False).stderr
    assert 'minutes=2 and n_tokens=0.5: both say how much is read' in error


def test_more_time_gives_a_larger_model_and_a_smaller_text_more_epochs():
    shapes = [shape_for(10 ** 8, 8000, flops) for flops in (1e9, 3e12, 3e13, 3e14, 1e18, 1e22)]
    widths = [shape['d_model'] for shape in shapes]
    depths = [shape['n_layers'] for shape in shapes]
    assert widths == sorted(widths) and len(set(widths)) >= 4
    assert depths == sorted(depths) and len(set(depths)) >= 4
    for shape in shapes:
        assert shape['d_model'] % (2 * max(1, round(shape['d_model'] / 64))) == 0
    assert shape_for(5000, 8000, 3e12)['batch_size'] == 2
    # rows and rate are those of a width that is given, layers as many as there is time for
    assert shape_for(10 ** 8, 8000, 1.5e17, d_model=512) == {
        'n_layers': 8, 'd_model': 512, 'batch_size': 64, 'lr': 6e-3, 'dropout': 0.0}
    assert shape_for(10 ** 8, 8000, 1e9, d_model=512)['n_layers'] == 1
    # a text that will come back often, before a model that could hold it
    assert shape_for(10 ** 5, 8000, 3e13)['dropout'] == 0.3
    assert shape_for(10 ** 5, 8000, 3e13, epochs=1)['dropout'] == 0.0
    # deep where that is given, and then narrower; as many tokens a step in rows of any length
    deep = shape_for(10 ** 8, 70, 1.6e13, n_layers=12)
    assert deep['n_layers'] == 12
    assert deep['d_model'] < shape_for(10 ** 8, 70, 1.6e13)['d_model']
    for chunk_size, n_rows in ((64, 32), (256, 8), (1024, 2)):
        assert shape_for(10 ** 8, 70, 1.6e13, chunk_size)['batch_size'] == n_rows
    # a text shorter than a row
    assert shape_for(257, 70, 1.6e13).get('chunk_size', 256) == 256
    for n_tokens, chunk_size in ((256, 128), (78, 64), (22, 16), (3, 2)):
        assert shape_for(n_tokens, 70, 1.6e13)['chunk_size'] == chunk_size
    # a vocabulary of few characters leaves more for the blocks
    few, many = (shape_for(10 ** 8, vocab_size, 1.6e13) for vocab_size in (70, 8000))
    assert few['n_layers'] > many['n_layers'] and few['d_model'] >= many['d_model']


def test_heads_divide_any_even_width():
    widths = (32, 64, 96, 128, 200, 256)
    assert [train.usual_heads(d_model) for d_model in widths] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize('n_tokens, budget, epochs, expected', [  # of a width of 128
    (1e7, 3e6, 0, (1, 3.0, 0.0, 0.0)),
    (1e6, 2.5e6, 0, (3, 0.8333, 0.0, 0.0)),
    (1e6, 2.05e6, 0, (2, 0.0, 0.0, 0.0)),                     # all of it, twice
    (1e6, 2.5e6, 5, (5, 0.5, 0.0, 0.0)),                      # of each epoch another half
    (6e4, 7e4, 20, (20, 0.0035, 0.1, 1.0)),
    (1e6, 9e6, 0, (9, 0.0, 0.0, 0.0)),
    (1e6, 15e6, 0, (15, 0.0, 0.1, 1.0)),                      # learned by heart
    (6e4, 2e6, 25, (25, 0.0, 0.2, 1.0)),                      # often
    (600, 9e6, 0, (60, 0.0, 0.4, 1.0)),
])
def test_how_long_a_model_reads(n_tokens, budget, epochs, expected):
    assert tuple(length_for(n_tokens, 1e6, 128, budget, epochs).values()) == expected


def test_a_wide_model_has_more_dropout():
    dropout = [length_for(6e4, 1e6, d_model, 2e6, 25)['dropout'] for d_model in (64, 128, 224)]
    assert dropout == [0.1, 0.2, 0.3]
