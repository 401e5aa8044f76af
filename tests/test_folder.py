"""The model folder: written and read, in the hands of Transformers, fine-tuned, hostile."""
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
from conftest import SMALL, last_weights, random_model, run, same
from test_hub import Hub

from model import generate
from parts.corpus import read_split
from parts.errors import UserError
from parts.folder import check_flags, find_model_folder, load_model, open_model, save_model
from parts.scoring import rating_log_probs
from parts.vocabulary import load_vocabulary

EOS = 0
SMALL_BUT_WIDTH = [flag for flag in SMALL if 'd_model' not in flag]  # that comes with the model
ODD_TEXTS = ['', 'ㅋㅋㅋ ㅠㅠ', '맛집 😀👍🏽', '漢字 鱻味', 'Pasta 12,000원', '두\n줄', '  두  칸',
             '끝 ', '한글', '<pos></s>', '뷁쀍', '\u200f오른쪽', '𠮷野家']


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


def edit(file, **changes):
    """Change keys of a JSON file."""
    content = json.loads(file.read_text('utf-8'))
    file.write_text(json.dumps({**content, **changes}), 'utf-8')


# --- written and read back ---

@pytest.mark.parametrize('arch', ['decoder', 'ffn'])
@pytest.mark.parametrize('tied', [False, True])
def test_a_folder_gives_the_model_back(arch, tied, tmp_path):
    model = random_model(arch, tied=tied, window=8)
    save_model(model, tmp_path / 'm', {'data_dir': 'data/x'}, {'README.md': b'# m'})
    again, meta = load_model(tmp_path / 'm')
    assert again.config == model.config
    assert meta == {'data_dir': 'data/x'}
    assert (tmp_path / 'm/README.md').read_text() == '# m'
    idx = random_rows(2, 9)
    assert torch.equal(again(idx), model(idx))
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_flags_that_contradict_the_folder_are_refused():
    model = random_model()
    meta = {'mode': 'manual'}
    check_flags(model, meta, {'arch': 'decoder', 'mode': 'manual', 'd_model': 32, 'd_ffn': 0})
    with pytest.raises(UserError, match='--d_model=64, but the model has d_model=32'):
        check_flags(model, meta, {'d_model': 64})
    with pytest.raises(UserError, match='--mode=tokenizer, but the model has mode=manual'):
        check_flags(model, meta, {'mode': 'tokenizer'})


def test_the_newest_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='no trained model under out/'):
        find_model_folder()
    for age, name in ((100, 'old'), (50, 'new'), (70, 'middle')):
        save_model(random_model(), tmp_path / 'out' / name)
        weights = tmp_path / 'out' / name / 'model.safetensors'
        time = weights.stat().st_mtime - age
        os.utime(weights, (time, time))
    assert find_model_folder().name == 'new'
    assert find_model_folder('out/old').name == 'old'


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    save_model(random_model(), tmp_path / 'm', {'step': 1})
    before = {file.name: file.read_bytes() for file in (tmp_path / 'm').iterdir()}

    def no_space(file):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', no_space)
    with pytest.raises(OSError, match='No space left'):
        save_model(random_model(), tmp_path / 'm', {'step': 2})
    assert {file.name: file.read_bytes() for file in (tmp_path / 'm').iterdir()} == before


# --- Transformers ---

@pytest.mark.parametrize('tied', [False, True])
def test_transformers_reads_the_folder_unconverted(tied, tmp_path):
    transformers = pytest.importorskip('transformers')
    model = random_model(tied=tied, chunk_size=128)
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


def test_a_folder_transformers_wrote_is_read_too(tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
        eos_token_id=0, bos_token_id=1, rope_theta=5e5, tie_word_embeddings=True,
        initializer_range=0.3)
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model, meta = load_model(tmp_path)
    assert meta == {}
    assert largest_difference(theirs, model, random_rows(2, 30)) < 1e-4


@pytest.mark.parametrize('name', ['decoder', 'manual'])
def test_transformers_continues_as_we_do(name, models, demo):
    transformers = pytest.importorskip('transformers')
    model, _ = load_model(models / name)
    vocabulary = load_vocabulary(models / name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(models / name).eval()
    words = transformers.AutoTokenizer.from_pretrained(models / name)

    texts = [text for _, text in read_split(demo / 'train.txt')] * 4
    encoded = words(texts, add_special_tokens=False)['input_ids']
    assert encoded == vocabulary.encode(texts)
    odd = [words.encode(text, add_special_tokens=False) for text in ODD_TEXTS]
    assert odd == vocabulary.encode(ODD_TEXTS)

    generator = torch.Generator().manual_seed(0)
    idx = torch.randint(6, vocabulary.size, (2, 64), generator=generator)
    idx[:, 0] = vocabulary.eos
    assert largest_difference(theirs, model, idx) < 1e-4

    ids = vocabulary.encode(['점심에'])[0]
    prompt = torch.tensor([[vocabulary.eos, vocabulary.rating_ids[1], *ids]])
    ours = greedy(model, prompt, 100)
    out = theirs.generate(prompt, max_new_tokens=100, do_sample=False)
    assert torch.equal(out[:, prompt.shape[1]:], ours)
    assert ours.shape[1] == 100 or ours[0, -1] == vocabulary.eos


def test_the_card_tells_the_truth_and_its_example_runs(models):
    pytest.importorskip('transformers')
    folder = models / 'decoder'
    card = (folder / 'README.md').read_text('utf-8')
    meta = json.loads((folder / 'meta.json').read_text('utf-8'))
    assert card.startswith('---\nlanguage: ko\nlicense: mit\n')
    assert f'{meta["tokens"]:,} tokens' in card
    assert f'{meta["bits_per_char"]:.4f} bits' in card
    example = re.search('```python\n(.*?)```', card, re.DOTALL)[1]
    example = example.replace('max_new_tokens=100', 'max_new_tokens=5')
    done = subprocess.run([sys.executable, '-c', example], cwd=folder, capture_output=True,
                          text=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.startswith('김치찌개가')
    model, _ = load_model(folder)
    vocabulary = load_vocabulary(folder)
    texts = vocabulary.encode(['다시는 안 가요'])
    shares = rating_log_probs(model, texts, vocabulary.rating_ids).exp()[0]
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(shares.tolist(), rel=1e-3)


# --- fine-tuning ---

def test_a_model_is_fine_tuned_in_its_own_vocabulary_and_resumed(models, tmp_path):
    base, data, tuned = tmp_path / 'base', tmp_path / 'data', tmp_path / 'tuned'
    shutil.copytree(models / 'decoder', base)
    about = json.loads((base / 'meta.json').read_text('utf-8'))
    about['sources'][0].update(name='kr3', licence='CC BY-NC-SA 4.0')
    edit(base / 'meta.json', sources=about['sources'])
    run('prepare.py', '--source=demo', '--seed=7', '--n_reviews=500', f'--model_name={base}',
        f'--output_dir={data}')
    said = run('train.py', f'--data_dir={data}', *SMALL_BUT_WIDTH, '--lr=1e-3', '--dropout=0.1',
               '--eval_interval=5', f'--init_from={base}', f'--out_dir={tuned}').stdout
    losses = [float(loss) for loss in re.findall(r'validation (\d+\.\d+)', said)]
    assert max(losses) < 1.1 * about['val_loss'], 'it goes on from where the first model stood'
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
    if (again / 'README.md').exists():                        # written where the loss improved
        assert 'CC BY-NC-SA' in (again / 'README.md').read_text('utf-8')


def hub_tokenizer():
    """A byte-level tokenizer that knows nothing of ratings."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    words = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    words.pre_tokenizer = byte_level(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=['<|endoftext|>'], initial_alphabet=byte_level.alphabet(),
        show_progress=False)
    words.train_from_iterator(['맛있어요 국물이 진짜 좋았어요'] * 9, trainer)
    return words


def test_a_qwen3_checkpoint_of_the_hub_gets_ratings_and_is_tuned(tmp_path):
    """Shared key-value heads, a head size of its own, tied, bfloat16, and no ratings."""
    transformers = pytest.importorskip('transformers')
    words = hub_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=words.get_vocab_size(), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=4096, rope_theta=1e6, tie_word_embeddings=True,
        dtype=torch.bfloat16)
    theirs, data, tuned = tmp_path / 'theirs', tmp_path / 'data', tmp_path / 'tuned'
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(theirs)
    hub = Hub()
    for file in ('config.json', 'model.safetensors'):
        hub.answers[f'/some/one/resolve/main/{file}'] = [(theirs / file).read_bytes()]
    hub.answers['/some/one/resolve/main/tokenizer.json'] = [words.to_str().encode()]
    env = {'HF_ENDPOINT': hub.url}
    run('prepare.py', '--source=demo', '--n_reviews=300', '--model_name=some/one',
        f'--output_dir={data}', cwd=tmp_path, env=env)
    run('train.py', f'--data_dir={data}', '--init_from=some/one', f'--out_dir={tuned}',
        '--n_tokens=0.02', *SMALL_BUT_WIDTH, cwd=tmp_path, env=env, nproc=2)
    hub.stop()

    model, meta = load_model(tuned)
    c = model.config
    assert c.vocab_size == words.get_vocab_size() + 4         # <s> and three ratings
    assert (c.nkv, c.head_dim, c.rope_theta, c.tied, c.chunk_size) == (2, 16, 1e6, True, 64)
    assert {source['licence'] for source in meta['sources']} == {'its own', 'MIT'}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tuned)
    assert largest_difference(loaded, model, torch.arange(64)[None] + 1) < 1e-4
    said = run('sample.py', f'--model_path={tuned}', '--prompt=국물', '--max_token=5').stdout
    assert said.split('] ')[1].startswith('국물')


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
    'shape': (set_keys('config.json', hidden_size=128, head_dim=128), 'disagree'),
    'type': (set_keys('config.json', model_type='llama', auto_map={'AutoModel': 'evil.Evil'}),
             'architectures known here'),
    'list': (set_keys('config.json', model_type=['qwen3']), 'architectures known here'),
    'word': (set_keys('config.json', hidden_size='wide'), 'does not describe a model'),
    'half': (set_keys('config.json', intermediate_size=100.5), 'does not describe a model'),
    'layers': (set_keys('config.json', num_hidden_layers=10**9), '1,000,000,000 layers'),
    'elsewhere': (set_keys('meta.json', vocabulary='../../etc/passwd'), 'no vocabulary'),
    'ids': (set_keys('meta.json', vocab_size=9999), '9,999 ids'),
    'many': (set_keys('meta.json', vocab_size='many'), 'not a whole number'),
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
        open_model(tmp_path / 'm', 'cpu', {})
    sentence = str(error.value)
    assert told in sentence
    assert str(tmp_path / 'm') in sentence
    assert '\n' not in sentence
    assert not (tmp_path / 'harmed').exists()


@pytest.mark.parametrize('script, args', [('sample.py', ['--prompt=']), ('eval.py', [])])
def test_the_scripts_tell_it_too(script, args, models, tmp_path):
    harmed_copy(put_pickle, models, tmp_path / 'm')
    said = run(script, f'--model_path={tmp_path / "m"}', *args, cwd=tmp_path, ok=False).stderr
    assert 'cannot be read' in said
    assert not (tmp_path / 'harmed').exists()
