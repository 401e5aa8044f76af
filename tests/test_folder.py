"""The model folder: written and read, in the hands of Transformers, fine-tuned, hostile."""
import contextlib
import io
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, edit, last_weights, random_model, run, same

from model import generate
from parts import folder as folder_module
from parts.corpus import NotFound
from parts.errors import UserError
from parts.folder import (
    MODEL_FLAGS,
    base_model_folder,
    load_model,
    open_model,
    reading_example,
    save_model,
)
from parts.scoring import rating_log_probs
from parts.vocabulary import load_vocabulary

EOS = 0
NO_FLAGS = SimpleNamespace(**{name: default for name, (default, _) in MODEL_FLAGS.items()})
SMALL_BUT_WIDTH = [flag for flag in SMALL if 'd_model' not in flag]  # that comes with the model


def random_rows(B, T):
    return torch.randint(1, 50, (B, T), generator=torch.Generator().manual_seed(1))


def greedy(model, prompt, n_tokens):
    """What the model writes after prompt (1, T) when it always takes the likeliest: (1, n)."""
    columns = list(generate(model, prompt, n_tokens, temperature=0))
    return torch.stack(columns, dim=1)


def largest_difference(theirs, model, idx):
    """Between the logits of Transformers' model and ours."""
    with torch.no_grad():
        return (theirs(idx).logits - model(idx)).abs().max().item()


# --- written and read back ---

@pytest.mark.parametrize('arch', ['decoder', 'ffn'])
def test_a_folder_gives_the_model_back(arch, tmp_path):
    model = random_model(arch, window=8, reads_ratings=True)
    save_model(model, tmp_path / 'm', {'data_dir': 'data/x'}, {'README.md': b'# m'})
    again, meta = load_model(tmp_path / 'm')
    assert again.config == model.config
    assert meta == {'data_dir': 'data/x'}
    assert (tmp_path / 'm/README.md').read_text() == '# m'
    idx = random_rows(2, 9)
    assert torch.equal(again(idx), model(idx))
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())


def test_a_folder_of_the_first_version_still_loads(tmp_path):
    model = random_model()
    save_model(model, tmp_path)
    edit(tmp_path / 'config.json', reads_ratings=None, use_sliding_window=None, layer_types=None,
         sliding_window=None, rope_parameters=None, max_window_layers=None)
    again, _ = load_model(tmp_path)
    idx = random_rows(2, 9)
    assert torch.equal(again(idx), model(idx))


@pytest.mark.parametrize('key, value', [
    ('rope_scaling', {'rope_type': 'linear', 'factor': 2.0}),
    ('rope_parameters', {'rope_type': 'yarn', 'factor': 4.0, 'rope_theta': 10000.0}),
    ('rope_parameters', {'rope_type': 'default', 'rope_theta': 5e5}),
    ('hidden_act', 'gelu'),
    ('attention_bias', True),
    ('tie_word_embeddings', True),
    ('num_key_value_heads', 1),
    ('head_dim', 8),
    ('sliding_window', 4),
    ('layer_types', ['linear_attention', 'full_attention']),
    ('quantization_config', {'bits': 4}),
])
def test_what_the_model_does_not_compute_is_refused(key, value, tmp_path):
    save_model(random_model(), tmp_path)
    edit(tmp_path / 'config.json', **{key: value})
    with pytest.raises(UserError, match='computes'):
        load_model(tmp_path)


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    save_model(random_model(), tmp_path / 'm', {'step': 1})
    before = {file.name: file.read_bytes() for file in (tmp_path / 'm').iterdir()}

    def no_space(file):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', no_space)
    with pytest.raises(UserError, match='No space left'):
        save_model(random_model(), tmp_path / 'm', {'step': 2})
    assert {file.name: file.read_bytes() for file in (tmp_path / 'm').iterdir()} == before


# --- Transformers ---

def test_transformers_reads_the_folder_unconverted(tmp_path):
    transformers = pytest.importorskip('transformers')
    model = random_model(chunk_size=128)
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation='eager').eval()
    idx = random_rows(2, 128)
    idx[:, 0] = EOS
    assert largest_difference(theirs, model, idx) < 1e-4
    prompt = idx[:1, :5]
    ours = greedy(model, prompt, 100)
    out = theirs.generate(prompt, max_new_tokens=100, do_sample=False, pad_token_id=EOS)
    assert torch.equal(out[:, 5:], ours)


def test_a_folder_that_transformers_saved_again_gets_advice(models, tmp_path):
    transformers = pytest.importorskip('transformers')
    model = transformers.AutoModelForCausalLM.from_pretrained(models / 'decoder')
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(models / 'decoder').save_pretrained(tmp_path)
    with pytest.raises(UserError, match='Transformers saved again.*copy') as error:
        open_model(tmp_path, 'cpu', NO_FLAGS)
    assert 'tokenizer.model' in str(error.value)
    for file in ('meta.json', 'tokenizer.model'):
        shutil.copy(models / 'decoder' / file, tmp_path)
    again, _, _ = open_model(tmp_path, 'cpu', NO_FLAGS)
    ours, _ = load_model(models / 'decoder')
    idx = torch.arange(6, 40)[None]
    assert torch.equal(again(idx), ours(idx))


def run_example(folder, changes):
    """Run the example of a folder's card, with some words changed; its stdout."""
    card = (folder / 'README.md').read_text('utf-8')
    example = re.search('```python\n(.*?)```', card, re.DOTALL)[1]
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        exec(example, {})
    return said.getvalue().splitlines()


def test_the_card_s_example_writes_a_batch_and_rates_a_review_as_we_do(models):
    pytest.importorskip('transformers')
    folder = models / 'decoder'
    greedily = {'=100': '=20', 'do_sample=True': 'do_sample=False'}
    first, second, shares = run_example(folder, greedily)
    model, vocabulary = load_model(folder)[0], load_vocabulary(folder)
    lengths = []
    for text, written in (('김치찌개가', first), ('점심에 친구랑', second)):
        ids = vocabulary.encode([text])[0]
        lengths.append(len(ids))
        prompt = torch.tensor([[vocabulary.eos, vocabulary.rating_ids[1], *ids]])
        alone = greedy(model, prompt, 20)[0].tolist()
        assert written == vocabulary.decode([*ids, *alone])
    assert lengths[0] != lengths[1], 'or nothing is padded'
    ids = vocabulary.encode(['다시는 안 가요'])
    expected = rating_log_probs(model, ids, vocabulary.rating_ids).exp()[0]
    assert json.loads(shares) == pytest.approx(expected.tolist(), rel=1e-3)


def test_the_card_says_what_the_model_is(models):
    card = (models / 'decoder/README.md').read_text('utf-8')
    meta = json.loads((models / 'decoder/meta.json').read_text('utf-8'))
    assert card.startswith('---\nlanguage: ko\nlicense: mit\nlibrary_name: transformers\n---\n')
    assert 'to write Korean reviews of a given rating' in card
    assert f'{meta["tokens"]:,} tokens' in card
    assert f'{meta["bits_per_char"]:.4f} bits' in card


def test_the_card_of_texts_without_ratings_speaks_of_none(songs):
    pytest.importorskip('transformers')
    card = (songs / 'README.md').read_text('utf-8')
    assert not re.search('rating|review|Korean|language', card)
    assert '| songs |' in card
    written = run_example(songs, {'=100': '=5'})
    assert len(written) == 2


def test_the_card_asks_for_the_rating_of_a_text_in_its_own_language():
    meta = {'eos': 0, 'starts': {'0': 2, '1': 3, 'unknown': 1}}
    for language, review in (('ko', '다시는 안 가요'), ('', 'A review of yours')):
        assert f'encode("{review}"' in reading_example(meta, [0, 1], language)


def test_a_run_that_has_no_model_yet_is_told_from_what_is_none(tmp_path):
    with pytest.raises(UserError, match='is not a model folder'):
        load_model(tmp_path)
    (tmp_path / 'state.pt').write_bytes(b'')
    with pytest.raises(UserError, match='stopped before its first validation.*init_from=resume'):
        load_model(tmp_path)


# --- fine-tuning ---

def test_a_model_is_fine_tuned_in_its_own_vocabulary_and_resumed(models, tmp_path):
    base, data, tuned = tmp_path / 'base', tmp_path / 'data', tmp_path / 'tuned'
    shutil.copytree(models / 'decoder', base)
    meta = json.loads((base / 'meta.json').read_text('utf-8'))
    meta['sources'][0].update(name='kr3', licence='CC BY-NC-SA 4.0')
    edit(base / 'meta.json', sources=meta['sources'])
    run('prepare.py', '--source=demo', '--seed=7', '--n_reviews=500', f'--model_name={base}',
        f'--output_dir={data}')
    said = run('train.py', f'--data_dir={data}', *SMALL_BUT_WIDTH, '--lr=1e-3', '--dropout=0.1',
               '--eval_interval=5', f'--init_from={base}', f'--out_dir={tuned}').stdout
    losses = [float(loss) for loss in re.findall(r'validation (\d+\.\d+)', said)]
    assert max(losses) < 1.1 * meta['val_loss'], 'it goes on from where the first model stood'
    assert losses[-1] < losses[0]
    assert load_model(tuned)[0].config.d_model == 64
    card = (tuned / 'README.md').read_text('utf-8')
    for words in ('Not for commercial use', '| kr3 |', '| demo |', 'license: other',
                  f'begun with the weights of {base}'):
        assert words in card

    again = tmp_path / 'again'                                # from the last state but one
    again.mkdir()
    shutil.copy(tuned / 'state.before.pt', again / 'state.pt')
    run('train.py', '--init_from=resume', f'--out_dir={again}')
    assert same(last_weights(tuned), last_weights(again))


def test_another_vocabulary_is_refused_with_a_command_that_can_be_pasted(models, demo, tmp_path):
    base = tmp_path / 'my model'
    shutil.copytree(models / 'decoder', base)
    run('prepare.py', '--source=demo', '--seed=7', '--n_reviews=500', '--vocab_size=590',
        f'--output_dir={tmp_path / "data"}')
    said = run('train.py', f'--data_dir={tmp_path / "data"}', f'--init_from={base}',
               f'--out_dir={tmp_path / "tuned"}', *SMALL_BUT_WIDTH, ok=False).stderr
    assert f"--model_name='{base}'" in said


def test_a_model_of_the_hub_comes_from_one_commit(models, monkeypatch):
    asked = []

    def hub_file(repository, file, revision=None):
        asked.append((repository, file, revision))
        return models / 'decoder' / file
    monkeypatch.setattr(folder_module, 'hub_file', hub_file)
    assert base_model_folder('some/one@v2') == models / 'decoder'
    assert {repository for repository, _, _ in asked} == {'some/one'}
    assert {revision for _, file, revision in asked if file == 'meta.json'} == {'v2'}
    others = {(file, revision) for _, file, revision in asked if file != 'meta.json'}
    commit = 'decoder'                                        # the name of the folder
    assert others == {(file, commit) for file in
                      ('config.json', 'tokenizer.json', 'model.safetensors')}


def test_a_download_that_fails_is_no_model_of_somebody_else(monkeypatch):
    def broken(repository, file, revision=None):
        raise UserError('the connection broke')
    monkeypatch.setattr(folder_module, 'hub_file', broken)
    with pytest.raises(UserError, match='^the connection broke$'):
        base_model_folder('some/one')

    def missing(repository, file, revision=None):
        raise NotFound(f'{file} is not there')
    monkeypatch.setattr(folder_module, 'hub_file', missing)
    with pytest.raises(UserError, match='some/one is no model of this project: meta.json'):
        base_model_folder('some/one')


# --- damaged and hostile folders ---

class Evil:
    """Pickled, it writes a file wherever it is unpickled."""

    def __reduce__(self):
        return exec, ('open("harmed", "w")',)


def put_pickle(folder):
    torch.save(Evil(), folder / 'model.safetensors')


def cut_weights(folder):
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-10])


def put_noise(folder):
    (folder / 'tokenizer.model').write_bytes(np.random.default_rng(0).bytes(999))


def put_longer_vocabulary(folder):
    characters = ['</s>', '<s>', '<neg>', '<pos>', '<amb>', '<unk>']
    characters += [chr(code) for code in range(0xAC00, 0xAC00 + 999)]
    (folder / 'characters.json').write_text(json.dumps(characters), 'utf-8')
    edit(folder / 'meta.json', vocabulary='characters.json')


def set_keys(file, **changes):
    """The harm that sets keys of a JSON file of a folder."""
    def harm(folder):
        edit(folder / file, **changes)
    return harm


def put_text(file, text):
    """The harm that puts other text into a file of a folder."""
    def harm(folder):
        (folder / file).write_text(text, 'utf-8')
    return harm


def put_nan(folder):
    from safetensors.torch import load_file, save_file
    weights = load_file(folder / 'model.safetensors')
    weights['lm_head.weight'][3, 4] = float('nan')
    save_file(weights, folder / 'model.safetensors')


def remove(file):
    """The harm that removes a file of a folder."""
    def harm(folder):
        (folder / file).unlink()
    return harm


HARMS = {                  # what is done to a folder, and words of the sentence that tells of it
    'pickle': (put_pickle, 'cannot be read'),
    'cut': (cut_weights, 'cannot be read'),
    'no config': (remove('config.json'), 'no config.json'),
    'no weights': (remove('model.safetensors'), 'cannot be read'),
    'no vocabulary': (remove('tokenizer.model'), 'no vocabulary'),
    'no JSON': (put_text('config.json', '{'), 'cannot be read'),
    'no object': (put_text('meta.json', '[1]'), 'does not hold a JSON object'),
    'no number': (put_nan, 'lm_head.weight holds values that are not numbers'),
    'shape': (set_keys('config.json', intermediate_size=128), 'disagree'),
    'type': (set_keys('config.json', model_type='llama', auto_map={'AutoModel': 'evil.Evil'}),
             'architectures known here'),
    'list': (set_keys('config.json', model_type=['qwen3']), 'architectures known here'),
    'word': (set_keys('config.json', hidden_size='wide'), 'does not describe a model'),
    'half': (set_keys('config.json', intermediate_size=100.5), 'does not describe a model'),
    'layers': (set_keys('config.json', num_hidden_layers=10**9), '1,000,000,000 layers'),
    'elsewhere': (set_keys('meta.json', vocabulary='../../etc/passwd'), 'no vocabulary'),
    'bits': (set_keys('meta.json', bits_per_char='few'), "bits_per_char is 'few'"),
    'source': (set_keys('meta.json', sources=['kr3']), 'no source'),
    'licence': (set_keys('meta.json', sources=[{'name': 'kr3', 'licence': []}]), 'no source'),
    'rating': (set_keys('meta.json', ratings=[1.0]), '1.0 is no rating'),
    'eos': (set_keys('config.json', eos_token_id=5), '</s> is'),
    'beyond': (set_keys('config.json', eos_token_id=10**6), 'beyond vocab_size'),
    'theta': (set_keys('config.json', rope_theta=0), 'rope_theta is 0'),
    'noise': (put_noise, 'no vocabulary'),
    'longer': (put_longer_vocabulary, '1,005 ids'),
}


def harmed_copy(harm, models, folder):
    shutil.copytree(models / 'decoder', folder, ignore=shutil.ignore_patterns('state*'))
    harm(folder)


@pytest.mark.parametrize('harm, told', HARMS.values(), ids=HARMS)
def test_a_harmed_folder_is_a_sentence_and_nothing_of_it_runs(harm, told, models, tmp_path,
                                                              monkeypatch):
    harmed_copy(harm, models, tmp_path / 'm')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        open_model(tmp_path / 'm', 'cpu', NO_FLAGS)
    sentence = str(error.value)
    assert told in sentence
    assert str(tmp_path / 'm') in sentence
    assert '\n' not in sentence
    assert not (tmp_path / 'harmed').exists()
