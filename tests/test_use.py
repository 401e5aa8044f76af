"""eval.py and sample.py as a user runs them, on small trained models."""
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from conftest import NO_SUCH_GPU, ROOT, SMALL, edit, run
from matplotlib.image import imread

from parts.corpus import RATING_NAMES, read_split
from parts.folder import load_model
from parts.scoring import log_joint, rating_log_probs, surprise
from parts.vocabulary import load_vocabulary

NAMES = [english for english, _ in RATING_NAMES]


def scores(*args):
    """What eval.py --json=true prints of each model, as dictionaries."""
    said = run('eval.py', '--json=true', '--device=cpu', *args).stdout
    return [json.loads(line) for line in said.splitlines()]


def write(model, *args, **more):
    """The lines that sample.py prints."""
    done = run('sample.py', f'--model_path={model}', '--device=cpu', *args, **more)
    return done.stdout.removesuffix('\n').split('\n')  # a raw model may write other line breaks


def open_folder(folder):
    """(model, vocabulary) of a model folder."""
    return load_model(folder)[0], load_vocabulary(folder)


# --- eval.py: scores ---

def test_eval_is_the_loss_computed_by_hand(demo, models):
    score, = scores(f'--model_path={models / "decoder"}', '--n_tokens=0.003')
    model, vocabulary = open_folder(models / 'decoder')
    nats = n_targets = n_chars = hits = 0
    for rating, text in read_split(demo / 'validation.txt'):
        ids = vocabulary.encode([text])[0]
        review = torch.tensor([vocabulary.eos, vocabulary.start_ids[rating], *ids, vocabulary.eos])
        inputs, targets = review[None, :-1], review[1:]
        if n_targets + len(targets) > 3000:
            break
        with torch.no_grad():
            pieces = [model(piece) for piece in inputs.split(64, dim=1)]  # chunk_size at a time
        logits = torch.cat(pieces, dim=1)[0]
        nats += torch.nn.functional.cross_entropy(logits, targets, reduction='sum').item()
        hits += (logits.argmax(dim=-1) == targets).sum().item()
        n_targets += len(targets)
        n_chars += len(text)
    assert score['tokens'] == n_targets
    assert score['data_dir'] == str(demo)
    assert score['loss'] == pytest.approx(nats / n_targets, rel=1e-4)
    assert score['perplexity'] == pytest.approx(math.exp(nats / n_targets), rel=1e-3)
    assert score['bits_per_char'] == pytest.approx(nats / n_chars / math.log(2), rel=1e-4)
    assert score['accuracy'] == pytest.approx(hits / n_targets, abs=1e-3)
    above = score['bits_per_char'] / score['floor_bits_per_char'] - 1
    assert score['above_floor'] == pytest.approx(above)


def test_models_of_both_archs_and_modes_in_one_table(models, tmp_path):
    paths = ','.join(str(models / name) for name in ('decoder', 'ffn', 'manual'))
    flags = [f'--model_path={paths}', '--n_tokens=0.01']
    rows = scores(*flags)
    assert [row['arch'] for row in rows] == ['decoder', 'ffn', 'decoder']
    assert len({row['reviews'] for row in rows}) == 1
    decoder, ffn, manual = rows
    assert decoder['bits_per_char'] < ffn['bits_per_char']
    assert manual['tokens'] > decoder['tokens']

    said = run('eval.py', *flags, cwd=tmp_path).stdout        # where it draws out/ladder.png
    table = [re.split('  +', line) for line in said.splitlines()]
    for row in rows:
        path = row['model_path']
        first, = [line for line in table if line[0] == path and line[1] == row['arch']]
        assert f'{row["bits_per_char"]:.4f}' in first
        assert f'{row["above_floor"]:+.1%}' in first
        second, = [line for line in table if line[0] == path and line[1] != row['arch']]
        assert f'{row["sentiment_macro_f1"]:.3f}' in second
        assert f'{row["sentiment_auc"]:.3f}' in second


def test_eval_reads_another_data_folder(models, tmp_path):
    lines = [f'처음 보는 문장 {i} 😀' for i in range(50)]
    (tmp_path / 'x.txt').write_text('\n'.join(lines), 'utf-8')
    run('prepare.py', f'--source={tmp_path / "x.txt"}', f'--output_dir={tmp_path / "x"}',
        '--val_ratio=0.5')
    there, = scores(f'--model_path={models / "decoder"}', f'--data_dir={tmp_path / "x"}')
    home, = scores(f'--model_path={models / "decoder"}')
    assert there['bits_per_char'] > 2 * home['bits_per_char']
    assert 'sentiment_accuracy' not in there
    assert 'above_floor' not in there


def test_models_of_different_data_are_compared_on_that_of_the_first(demo, models, tmp_path):
    run('prepare.py', f'--data_dir={demo}', f'--output_dir={tmp_path / "again"}', '--mode=manual')
    shutil.copytree(models / 'ffn', tmp_path / 'ffn')
    edit(tmp_path / 'ffn/meta.json', data_dir=str(tmp_path / 'again'))
    rows = scores(f'--model_path={tmp_path / "ffn"},{models / "decoder"}', '--n_tokens=0.001')
    assert [row['data_dir'] for row in rows] == [str(tmp_path / 'again')] * 2
    assert rows[0]['reviews'] == rows[1]['reviews']
    alone, = scores(f'--model_path={models / "decoder"}', '--n_tokens=0.001')
    assert rows[1]['above_floor'] == pytest.approx(alone['above_floor'])


def test_a_long_text_is_read_as_far_as_asked(models, tmp_path):
    words = '점심에 친구랑 맛있게 먹었어요. '
    (tmp_path / 'validation.txt').write_text(f'1\t{words * 500}\n', 'utf-8')
    flags = [f'--model_path={models / "manual"}', f'--data_dir={tmp_path}']
    score, = scores(*flags, '--n_tokens=0.001')
    assert 990 <= score['tokens'] <= 1002
    (tmp_path / 'validation.txt').write_text('-\t\n1\t점심에\n', 'utf-8')       # by hand
    assert scores(*flags, '--n_tokens=0.000001')[0]['reviews'] == 1


def test_the_floor_of_other_texts_is_not_shown(demo, models, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(demo, data)
    flags = [f'--model_path={models / "decoder"}', f'--data_dir={data}', '--n_tokens=0.001']
    assert 'above_floor' in scores(*flags)[0]
    text = data / 'validation.txt'
    text.write_text(text.read_text('utf-8').replace('점심', '저녁'), 'utf-8')
    assert 'above_floor' not in scores(*flags)[0]


def test_data_that_were_moved_are_asked_for(models, tmp_path):
    shutil.copytree(models / 'ffn', tmp_path / 'ffn')
    edit(tmp_path / 'ffn/meta.json', data_dir='data/gone')
    said = run('eval.py', f'--model_path={tmp_path / "ffn"}', ok=False).stderr
    assert 'trained on data/gone, which is not there; name its data folder' in said


def test_texts_that_a_model_may_have_learned_are_not_its_score(demo, models, tmp_path):
    shutil.copytree(demo, tmp_path / 'data')
    shutil.copytree(models / 'ffn', tmp_path / 'ffn')
    edit(tmp_path / 'ffn/meta.json', data_dir=str(tmp_path / 'data'))
    flags = [f'--model_path={tmp_path / "ffn"}', '--n_tokens=0.001']
    run('eval.py', *flags)
    texts = tmp_path / 'data/validation.txt'
    texts.write_text(texts.read_text('utf-8').replace('맛', '멋', 1), 'utf-8')
    said = run('eval.py', *flags, ok=False).stderr
    assert f'{texts} is no longer what {tmp_path / "ffn"} was trained with' in said
    run('eval.py', *flags, f'--data_dir={tmp_path / "data"}')
    # the same folder, and a model of today's text before it
    shutil.copytree(tmp_path / 'ffn', tmp_path / 'new')
    content = texts.read_bytes()
    edit(tmp_path / 'new/meta.json', val_txt_bytes=len(content), val_txt_crc32=zlib.crc32(content))
    both = f'--model_path={tmp_path / "new"},{tmp_path / "ffn"}'
    assert 'is no longer what' in run('eval.py', both, '--n_tokens=0.001', ok=False).stderr
    run('eval.py', f'--model_path={tmp_path / "new"}', '--n_tokens=0.001')


def test_pictures_are_drawn_with_matplotlib_and_not_missed_without(models, tmp_path):
    args = [f'--model_path={models / "decoder"},{models / "ffn"}', '--n_tokens=0.001']
    drawn = run('eval.py', *args, cwd=tmp_path).stdout
    first_colour = np.float32([0x1f, 0x77, 0xb4]) / 255       # of matplotlib's lines and bars
    out = tmp_path / 'out'
    for picture in (models / 'decoder/loss.png', out / 'ladder.png'):
        blue = (imread(picture)[:, :, :3] == first_colour).all(axis=2)
        assert blue.sum() > 100, picture
    lengths = {int(n) for n in blue.sum(axis=1) if n}
    assert len(lengths) > 1, 'one bar is longer than the other'

    (tmp_path / 'matplotlib.py').write_text('raise ImportError')
    bare = run('eval.py', *args, cwd=tmp_path.parent, env={'PYTHONPATH': str(tmp_path)}).stdout
    assert bare != drawn
    told = '\nout/ladder.png: the same as a picture\n'
    assert bare == drawn.replace(told, '')


def test_an_unseen_character_pays_for_which_it_was(models, tmp_path):
    """So a vocabulary of nothing but <unk> does not win."""
    def bits(text, name):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'validation.txt').write_text(f'1\t{text}\n', 'utf-8')
        return scores(f'--model_path={models / "manual"}', f'--data_dir={tmp_path / name}')[0]
    once, twice = bits('점심에 龍', 'once'), bits('점심에 龍龍', 'twice')
    assert once['unseen'] == pytest.approx(1 / 5)
    assert twice['unseen'] == pytest.approx(2 / 6)
    for row, n_chars, n_unseen in ((once, 5, 1), (twice, 6, 2)):
        told = row['loss'] * row['tokens'] / math.log(2)
        assert row['bits_per_char'] * n_chars - told == pytest.approx(n_unseen * math.log2(1112064))


# --- eval.py: a sentence ---

def test_a_person_s_own_sentences_are_rated(models):
    lines = ['다시는 안 가겠어요.', '', '또 가고 싶어요.']
    model_path = f'--model_path={models / "decoder"}'
    said = run('eval.py', model_path, '--text=-', stdin='\n'.join(lines)).stdout.splitlines()
    as_json = run('eval.py', model_path, '--text=-', '--json=true', stdin='\n'.join(lines)).stdout
    objects = [json.loads(line) for line in as_json.splitlines()]
    model, vocabulary = open_folder(models / 'decoder')
    for line, words, one in zip((lines[0], lines[2]), said, objects, strict=True):
        ids = vocabulary.encode([line])
        log_probs = rating_log_probs(model, ids, vocabulary.rating_ids)[0]
        share, best = log_probs.softmax(dim=0).max(dim=0)
        assert words == f'{NAMES[best]:9} {share:4.0%}   {line}'
        assert (one['text'], one['rating']) == (line, int(best))
        assert one['probability'] == pytest.approx(share.item())


def test_a_character_that_was_never_seen_pays_in_a_sentence_too(models, tmp_path):
    folder = tmp_path / 'a,b'                                 # a comma in a name parts nothing
    shutil.copytree(models / 'manual', folder)
    edit(folder / 'meta.json', ratings=[])                    # so it says bits
    said = run('eval.py', f'--model_path={folder}', '--json=true', '--text=점심에 龍').stdout
    model, vocabulary = open_folder(folder)
    row = [vocabulary.eos, vocabulary.start_ids[-1], *vocabulary.encode(['점심에 龍'])[0],
           vocabulary.eos]
    nats = surprise(model, [row])[0][0][1:-1].sum().item()
    wanted = (nats / math.log(2) + math.log2(1112064)) / 5
    assert json.loads(said)['bits_per_char'] == pytest.approx(wanted, rel=1e-4)


def coloured(model, text):
    """[(red, green, characters)] of a sentence as a terminal shows it."""
    line = run('eval.py', f'--model_path={model}', f'--text={text}', '--device=cpu',
               env={'FORCE_COLOR': '1'}).stdout
    return re.findall('\033\\[30;48;2;(\\d+);(\\d+);90m([^\033]*)', line)


def test_on_a_terminal_every_character_shows_the_surprise(models):
    text = '점심에 친구랑'
    model, vocabulary = open_folder(models / 'manual')        # a character is a token
    ids = vocabulary.encode([text])[0]
    rating = rating_log_probs(model, [ids], vocabulary.rating_ids)[0].argmax()
    row = [vocabulary.eos, vocabulary.rating_ids[rating], *ids, vocabulary.eos]
    nats, _ = surprise(model, [row])[0]
    shown = coloured(models / 'manual', text)
    assert ''.join(character for _, _, character in shown) == text
    for (red, green, _), surprised in zip(shown, nats[1:-1].tolist(), strict=True):
        share = min(1, surprised / math.log(2) / 8)
        assert int(red) == pytest.approx(255 * min(1, 2 * share), abs=1.1)
        assert int(green) == pytest.approx(255 * min(1, 2 - 2 * share), abs=1.1)


def test_a_character_of_several_bytes_has_one_colour(models):
    shown = coloured(models / 'decoder', '점심에 😀 漢')
    assert ''.join(characters for _, _, characters in shown) == '점심에 😀 漢'


# --- sample.py ---

@pytest.mark.parametrize('name', ['decoder', 'ffn', 'manual'])
def test_samples_are_the_models_own_and_follow_the_seed(models, name):
    def reviews(*args):
        return write(models / name, '--prompt=어제', *args)
    four = reviews('--num_samples=4', '--rating=negative', '--max_token=12')
    assert len(four) == 4
    assert len(set(four)) > 1
    assert all(review.startswith('어제') for review in four)
    likeliest = reviews('--temperature=0', '--rating=positive')
    assert likeliest == reviews('--temperature=0', '--rating=긍정', '--seed=5')
    assert reviews('--seed=1') == reviews('--seed=1')
    assert reviews('--seed=1') != reviews('--seed=2')


def test_more_samples_begin_with_the_batches_of_fewer(models):
    flags = ['--prompt=', '--max_token=4', '--seed=3']
    more = write(models / 'decoder', *flags, '--num_samples=600')
    fewer = write(models / 'decoder', *flags, '--num_samples=300')
    assert len(more) == 600 and len(fewer) == 300
    assert more[:256] == fewer[:256]
    assert more[256:512] != more[:256]


def test_a_thousand_million_samples_come_in_batches(models):
    """They are written as they come, in memory that does not grow, until the reader hangs up."""
    words = [sys.executable, str(ROOT / 'sample.py'), f'--model_path={models / "decoder"}',
             '--prompt=', '--num_samples=1e9', '--max_token=2']
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(1000):
        assert running.stdout.readline().startswith(b'[')
    running.stdout.close()
    error = running.stderr.read()
    assert running.wait() == 0, error
    assert error == b''


def test_the_rating_picked_is_said_and_the_asked_one_is_written(models):
    lines = write(models / 'decoder', '--prompt=', '--num_samples=40')
    picked = [line[1:line.index(']')] for line in lines]
    assert 15 <= picked.count('positive') <= 33
    assert set(picked) <= set(NAMES)
    review, said = write(models / 'manual', '--prompt=', '--rating=negative', '--show_rating=true')
    model, vocabulary = open_folder(models / 'manual')
    log_probs = rating_log_probs(model, vocabulary.encode([review]), vocabulary.rating_ids)
    shares = log_probs[0].softmax(dim=0).tolist()
    words = [f'{name} {share:.0%}' for name, share in zip(NAMES, shares)]
    assert said == '    reads as ' + ', '.join(words)


def test_guidance_insists_on_the_rating_asked_for(models):
    model, vocabulary = open_folder(models / 'decoder')

    def mean_share(guidance):
        reviews = write(models / 'decoder', '--prompt=', '--rating=부정', '--num_samples=40',
                        f'--guidance={guidance}')
        texts = vocabulary.encode(reviews)                    # guidance goes by Bayes' rule, so
        shares = log_joint(model, texts, vocabulary.rating_ids).softmax(dim=1)  # this does
        return shares[:, 0].mean().item()
    assert mean_share(20) > mean_share(0) + 0.08              # little as so small a model knows


def test_piped_beginnings(models):
    beginnings = '어제\n\n점심에\n'
    lines = write(models / 'decoder', '--rating=positive', '--max_token=20', stdin=beginnings)
    assert len(lines) == 3
    assert lines[0].startswith('어제') and lines[2].startswith('점심에')


def test_korean_goes_through_a_pipe_whatever_its_encoding(models):
    """On a Korean Windows a pipe is cp949, which has no 😀 and other bytes for 어제."""
    env = {'PYTHONIOENCODING': 'cp949'}
    beginnings = ['어제', '어제 😀']
    lines = write(models / 'decoder', '--rating=positive', '--max_token=9',
                  stdin='\n'.join(beginnings), env=env)
    assert [line.startswith(begin) for line, begin in zip(lines, beginnings)] == [True, True]
    said = run('eval.py', f'--model_path={models / "decoder"}', '--text=-',
               stdin='\n'.join(beginnings), env=env).stdout.splitlines()
    assert [line.endswith(begin) for line, begin in zip(said, beginnings)] == [True, True]


def test_a_person_at_a_terminal_is_asked_until_exit(models):
    pty = pytest.importorskip('pty', reason='Windows has no pseudo-terminals')
    words = [sys.executable, str(ROOT / 'sample.py'), f'--model_path={models / "decoder"}',
             '--max_token=20']
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, words)
    seen = b''
    for n, line in enumerate(('어제', 'exit'), 1):
        while seen.count(b'begin with') < n:
            seen += os.read(terminal, 1000)
        os.write(terminal, f'{line}\n'.encode())
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert '] 어제'.encode() in seen


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_next_sub_word(songs, tmp_path):
    shutil.copytree(songs, tmp_path / 'm')
    edit(tmp_path / 'm/meta.json', unit='file')               # where spaces are kept
    words = [f'--model_path={tmp_path / "m"}', '--max_token=20', '--temperature=0']
    plain = run('sample.py', *words, '--prompt=line 7: the').stdout
    assert run('sample.py', *words, '--prompt=line 7: the ').stdout == plain


def test_every_prompt_works(models):
    prompts = ['', '   ', '😀 unseen 漢字 ', '<pos></s>', '길다 ' * 200, 'ㅋㅋㅋ\t', '어제\x00 친구랑']
    texts = write(models / 'decoder', '--max_token=10', '--rating=2', stdin='\n'.join(prompts))
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.startswith(' '.join(prompt.replace('\0', '').split()))


def test_a_character_that_is_not_in_the_vocabulary_is_written_as_one(models):
    text, = write(models / 'manual', '--prompt=漢 점심', '--max_token=3', '--rating=2')
    assert text.startswith('� 점심')
    said = run('sample.py', f'--model_path={models / "manual"}', '--prompt=' + 30 * '漢' + '字',
               '--max_token=3', '--rating=2')
    assert said.stdout.startswith(30 * '�')
    assert said.stderr == "sample.py: the model never saw '漢', '字'\n"


def test_a_text_of_several_lines_is_written_and_begun_with_them(models, tmp_path):
    """The folder says what one text was; here its commonest letter becomes a line break."""
    folder = tmp_path / 'lines'
    shutil.copytree(models / 'manual', folder)
    characters = json.loads((folder / 'characters.json').read_text('utf-8'))
    letter, characters[7] = characters[7], '\n'
    (folder / 'characters.json').write_text(json.dumps(characters), 'utf-8')
    edit(folder / 'meta.json', unit='file')
    flags = ['--rating=positive', '--seed=1', '--max_token=60']
    plain = run('sample.py', f'--model_path={models / "manual"}', f'--prompt=점심에{letter}친구',
                *flags).stdout
    said = run('sample.py', f'--model_path={folder}', '--prompt=점심에\n친구', *flags).stdout
    assert said == plain.replace(letter, '\n')
    assert said.startswith('점심에\n친구')
    two = run('sample.py', f'--model_path={folder}', '--prompt=점심에\n  친구', '--num_samples=2',
              *flags).stdout
    first, second, rest = two.split('---------------\n')
    assert first.startswith('점심에\n  친구') and second.startswith('점심에\n  친구')
    assert rest == ''
    piped = run('sample.py', f'--model_path={folder}', *flags, stdin='점심에\n친구\n').stdout
    assert piped.count('\n---------------\n') == 2


def test_a_pipe_that_says_nothing_is_told_of_the_prompt(models):
    """As in a notebook, where nobody can type."""
    said = run('sample.py', f'--model_path={models / "decoder"}', ok=False).stderr
    assert '--prompt=' in said


# --- texts without ratings ---

def test_a_model_that_never_saw_a_rating_claims_none(songs):
    path = f'--model_path={songs}'
    for flag in ('--rating=positive', '--show_rating=true'):
        said = run('sample.py', path, '--prompt=line', flag, ok=False).stderr
        assert 'trained on texts without ratings' in said
    written = run('sample.py', path, '--prompt=line', '--num_samples=3', '--max_token=9').stdout
    assert [line[:4] for line in written.splitlines()] == ['line'] * 3
    table = run('eval.py', path, '--n_tokens=0.001').stdout
    assert not re.search('rating|review|negative', table)


def test_such_a_model_tells_the_surprise_of_a_sentence(songs):
    text = 'line 12: the 5 little words of 1 songs'
    done = run('eval.py', f'--model_path={songs}', f'--text={text}')
    assert 'never saw texts of different ratings' in done.stderr
    model, vocabulary = open_folder(songs)
    row = [vocabulary.eos, vocabulary.start_ids[-1], *vocabulary.encode([text])[0], vocabulary.eos]
    nats, _ = surprise(model, [row])[0]
    bits = nats[1:-1].sum().item() / math.log(2) / len(text)
    assert done.stdout == f'{bits:6.2f}   {text}\n'


def test_only_ratings_that_the_model_saw_are_told(models, tmp_path):
    """As movie reviews have them: negative and positive ones alone."""
    data = tmp_path / 'data'
    data.mkdir()
    lines = [f'{n % 2}\t{"좋아요" if n % 2 else "싫어요"} {n}' for n in range(400)]
    for name in ('train.txt', 'validation.txt'):
        (data / name).write_text('\n'.join(lines) + '\n', 'utf-8')
    run('prepare.py', f'--data_dir={data}', '--vocab_size=300')
    run('train.py', f'--data_dir={data}', f'--out_dir={tmp_path / "out"}', *SMALL, '--epochs=3')
    said, = write(tmp_path / 'out', '--prompt=', '--rating=1', '--show_rating=true')[1:]
    assert re.fullmatch('    reads as negative \\d+%, positive \\d+%', said)
    refusal = run('sample.py', f'--model_path={tmp_path / "out"}', '--prompt=', '--rating=2',
                  ok=False).stderr
    assert 'never saw a text that is ambiguous; it knows negative and positive ones' in refusal


# --- both ---

def test_flags_that_agree_are_fine_and_others_refused(demo, models):
    path = f'--model_path={models / "decoder"}'
    shape = ['--arch', 'decoder', '--d_model', '64', '--n_layers', '2', '--chunk_size', '64',
             '--mode', 'tokenizer', '--d_ffn', '192']
    assert scores(path, '--data_dir', demo, '--batch_size', '4', '--n_tokens', '0.001', *shape)
    assert write(models / 'decoder', '--prompt=', '--max_token', '5', *shape)
    for script, flag, told in (('eval.py', '--arch=ffn', 'arch=decoder'),
                               ('eval.py', '--mode=manual', 'mode=tokenizer'),
                               ('sample.py', '--d_model=32', 'd_model=64'),
                               ('sample.py', '--mode=manual', 'mode=tokenizer')):
        assert told in run(script, path, flag, ok=False).stderr


@pytest.mark.parametrize('script, flag, told', [
    ('sample.py', '--rating=good', 'negative (0, 부정), positive (1, 긍정), ambiguous (2, 보통)'),
    ('sample.py', '--max_token=0', 'max_token=0: it takes 1 or more'),
    ('sample.py', '--num_samples=0', 'num_samples=0: it takes 1 or more'),
    ('sample.py', '--temperature=1e-40', 'temperature=1e-40: it takes 0, which is'),
    ('sample.py', '--guidance=1e39', 'guidance=1e+39: it takes 0 to 1000'),
    ('sample.py', '--temperature=1e39', 'always the likeliest token, or 0.001 to 1000'),
    ('sample.py', '--top_p=0', 'top_p=0.0: it takes more than 0'),
    ('sample.py', '--top_p=1e-50', 'top_p=1e-50: it takes more than 0 (1e-9 or more)'),
    ('sample.py', f'--seed={2**63}', 'it takes 0 to 2^63 - 1'),
    ('sample.py', '--model_path=nowhere', 'no config.json'),
    ('sample.py', '--device=cuda:7', NO_SUCH_GPU),
    ('sample.py', '--page=.', 'page=. is a folder; name a file'),
    ('sample.py', f'--page={__file__}', 'is there and is no page; name another file'),
    ('sample.py', '--prompt=\udcb1', 'prompt is not UTF-8'),
    ('sample.py', f'--model_path={"m" * 300}', 'File name too long'),
    ('sample.py', 'out/demo', 'out/demo: a word without -- names a config file'),
    ('eval.py', '--text=', 'text is empty'),
    ('eval.py', '--text=\udcb1', 'text is not UTF-8'),
    ('eval.py', '--text=\a', 'there is no sentence to read'),
    ('eval.py', '--text=-', 'there is no sentence to read'),
    ('eval.py', '--batch_size=0', 'batch_size takes 1 or more'),
    ('eval.py', '--model_path=a,b --text=좋아요', 'one model reads --text='),
    ('eval.py', '--n_tokens=-1', 'n_tokens 0 or more'),
    ('eval.py', '--data_dir=nowhere', 'nowhere has no validation.txt'),
    ('eval.py', "--dtype=int8", "dtype='int8'"),
])
def test_a_mistake_is_one_sentence(models, script, flag, told):
    more = ['--prompt='] if script == 'sample.py' else []
    path = f'--model_path={models / "decoder"}'
    assert told in run(script, path, *more, *flag.split(), ok=False).stderr


@pytest.mark.parametrize('script, flags', [('sample.py', []), ('eval.py', ['--text=-'])])
def test_input_that_is_not_utf8_is_one_sentence(script, flags, models):
    words = [sys.executable, str(ROOT / script), f'--model_path={models / "decoder"}', *flags]
    done = subprocess.run(words, input='어제\n'.encode('cp949'), capture_output=True)
    assert done.returncode == 2
    assert done.stderr.decode() == f'{script}: the input is not UTF-8\n'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
def test_a_full_disk_behind_the_output_is_one_sentence(models):
    with open('/dev/full', 'w') as full:
        words = [sys.executable, str(ROOT / 'sample.py'), '--prompt=', '--max_token=9',
                 f'--model_path={models / "ffn"}']
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == 'sample.py: the output cannot be written: No space left on device\n'


def test_a_table_for_nobody_is_no_failure(models):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, str(ROOT / 'eval.py'), f'--model_path={models / "ffn"}',
             '--n_tokens=0.001']
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b'')


def test_the_newest_model_is_taken_and_named(models, tmp_path):
    (tmp_path / 'out').symlink_to(models)
    flags = {'sample.py': ['--prompt=', '--max_token=3'], 'eval.py': ['--n_tokens=0.001']}
    for script in flags:
        done = run(script, *flags[script], cwd=tmp_path)
        assert done.stderr.strip() == 'out/manual, the newest'
        assert done.stdout
    (tmp_path / 'disk/out').mkdir(parents=True)
    (tmp_path / 'disk/out/mine').symlink_to(models / 'ffn')
    done = run('sample.py', '--prompt=', '--max_token=3', cwd=tmp_path / 'disk')
    assert done.stderr.strip() == 'out/mine, the newest'
    (tmp_path / 'empty').mkdir()
    nothing = run('sample.py', '--prompt=', cwd=tmp_path / 'empty', ok=False).stderr
    assert 'no trained model under out/' in nothing


def test_sample_loads_nothing_slow_that_it_does_not_need(models):
    """So that its first word comes a second sooner: torch alone takes as long as it takes."""
    words = [sys.executable, '-X', 'importtime', str(ROOT / 'sample.py'), '--prompt=어제',
             f'--model_path={models / "decoder"}']
    done = subprocess.run(words, capture_output=True, text=True, encoding='utf-8')
    assert done.stdout.split('] ')[1].startswith('어제')
    loaded = {line.split('|')[-1].strip() for line in done.stderr.splitlines()}
    assert 'torch' in loaded
    slow = {'torch._dynamo', 'torch._inductor', 'requests', 'pyarrow', 'tokenizers', 'matplotlib'}
    assert not loaded & slow
