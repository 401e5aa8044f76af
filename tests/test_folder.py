"""The model folder in other hands: Transformers, a second training, the Hub, and people who mean harm."""
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import torch
from conftest import SMALL, run
from test_hub import Hub

from model import generate, load
from prepare import load_vocabulary, read_split

transformers = pytest.importorskip('transformers')
ODD = ['', 'ㅋㅋㅋ ㅠㅠ', '맛집 😀👍🏽', '漢字 鱻味', 'Pasta 12,000원', '두\n줄', '  두  칸', '끝 ', '한글', '<pos></s>', '뷁쀍', '\u200f오른쪽', '𠮷野家']


def test_transformers_continues_as_we_do(models, demo):
    for name in ('decoder', 'manual'):
        model, vocab = load(models / name)[0], load_vocabulary(models / name)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(models / name).eval()
        words = transformers.AutoTokenizer.from_pretrained(models / name)
        texts = [text for _, text in read_split(demo / 'train.txt')] * 4
        assert words(texts, add_special_tokens=False)['input_ids'] == vocab.encode(texts)
        assert [words.encode(t, add_special_tokens=False) for t in ODD] == vocab.encode(ODD)
        x = torch.randint(6, vocab.size, (2, 64), generator=torch.Generator().manual_seed(0))
        x[:, 0] = vocab.eos
        with torch.no_grad():
            assert (theirs(x).logits - model(x)).abs().max() < 1e-4
        prompt = torch.tensor([[vocab.eos, vocab.starts[1], *vocab.encode(['점심에'])[0]]])
        ours = torch.stack(list(generate(model, prompt, 100, temperature=0)), dim=1)
        assert torch.equal(theirs.generate(prompt, max_new_tokens=100, do_sample=False)[:, prompt.shape[1]:], ours)
        assert ours.shape[1] == 100 or ours[0, -1] == vocab.eos


def test_the_card_tells_the_truth_and_its_example_runs(models):
    folder = models / 'decoder'
    text, meta = (folder / 'README.md').read_text('utf-8'), json.loads((folder / 'meta.json').read_text('utf-8'))
    assert text.startswith('---\nlanguage: ko\nlicense: mit\n') and f"{meta['tokens']:,} tokens" in text and f"{meta['bits_per_char']:.4f} bits" in text
    example = re.search('```python\n(.*?)```', text, re.S)[1].replace('max_new_tokens=100', 'max_new_tokens=5')
    done = subprocess.run([sys.executable, '-c', example], cwd=folder, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0 and done.stdout.startswith('김치찌개가'), done.stderr[-1000:]


def test_a_model_is_fine_tuned_in_its_own_vocabulary_and_resumed(models, tmp_path):
    base = models / 'decoder'
    meta = base / 'meta.json'
    (tmp_path / 'base').mkdir()
    for file in base.iterdir():
        shutil.copy(file, tmp_path / 'base')
    about = json.loads(meta.read_text('utf-8'))
    about['sources'][0].update(name='kr3', licence='CC BY-NC-SA 4.0')
    (tmp_path / 'base/meta.json').write_text(json.dumps(about), 'utf-8')
    run('prepare.py', '--source=demo', '--seed=7', '--n_reviews=500', f'--model_name={tmp_path / "base"}', f'--output_dir={tmp_path / "data"}')
    flags = [f'--data_dir={tmp_path / "data"}', *(f for f in SMALL if 'd_model' not in f), '--lr=1e-3', '--dropout=0.1', '--eval_interval=5']
    said = run('train.py', *flags, f'--init_from={tmp_path / "base"}', f'--out_dir={tmp_path / "tuned"}').stdout
    losses = [float(v) for v in re.findall(r'validation (\d+\.\d+)', said)]
    assert losses[-1] < about['val_loss'], 'it goes on from where the first model stood'
    card = (tmp_path / 'tuned/README.md').read_text('utf-8')
    assert 'Not for commercial use' in card and '| kr3 |' in card and '| demo |' in card and 'license: other' in card and f'begun with the weights of {tmp_path / "base"}' in card
    assert load(tmp_path / 'tuned')[0].config.d_model == 64
    state = tmp_path / 'tuned/state.before.pt'  # the last but one: from there to the end again
    (tmp_path / 'again').mkdir()
    shutil.copy(state, tmp_path / 'again/state.pt')
    run('train.py', '--init_from=resume', f'--out_dir={tmp_path / "again"}')
    a, b = (torch.load(tmp_path / name / 'state.pt', weights_only=True)['model'] for name in ('tuned', 'again'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert 'CC BY-NC-SA' in (tmp_path / 'again/README.md').read_text('utf-8') if (tmp_path / 'again/README.md').exists() else True


def test_a_qwen3_checkpoint_of_the_hub_gets_ratings_and_is_tuned(tmp_path):
    """Shared key-value heads, a head size of its own, tied, bfloat16, and a vocabulary that knows nothing of ratings."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    words.pre_tokenizer, words.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    words.train_from_iterator(['맛있어요 국물이 진짜 좋았어요'] * 9, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=['<|endoftext|>'], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    config = transformers.Qwen3Config(vocab_size=words.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                      head_dim=16, max_position_embeddings=4096, rope_theta=1e6, tie_word_embeddings=True, dtype=torch.bfloat16)
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / 'theirs')
    server = Hub()
    for file in ('config.json', 'model.safetensors'):
        server.say[f'/some/one/resolve/main/{file}'] = [(tmp_path / 'theirs' / file).read_bytes()]
    server.say['/some/one/resolve/main/tokenizer.json'] = [words.to_str().encode()]
    env = {'HF_ENDPOINT': server.url}
    run('prepare.py', '--source=demo', '--n_reviews=300', '--model_name=some/one', f'--output_dir={tmp_path / "data"}', cwd=tmp_path, env=env)
    flags = [f'--data_dir={tmp_path / "data"}', '--init_from=some/one', f'--out_dir={tmp_path / "tuned"}', '--n_tokens=0.02', *(f for f in SMALL if 'd_model' not in f)]
    run('train.py', *flags, cwd=tmp_path, env=env, nproc=2)
    server.shutdown(), server.server_close()
    model, meta = load(tmp_path / 'tuned')
    c = model.config
    assert (c.vocab_size, c.nkv, c.head_dim, c.rope_theta, c.tied, c.chunk_size) == (words.get_vocab_size() + 4, 2, 16, 1e6, True, 64)
    assert {s['licence'] for s in meta['sources']} == {'its own', 'MIT'}
    theirs, x = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'tuned'), torch.arange(64)[None] + 1
    with torch.no_grad():
        assert (theirs(x).logits - model(x)).abs().max() < 1e-4
    assert run('sample.py', f'--model_path={tmp_path / "tuned"}', '--prompt=국물', '--max_token=5').stdout.split('] ')[1].startswith('국물')


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text('utf-8')), **changes}), 'utf-8')


class Evil:
    def __reduce__(self):
        return exec, ('open("harmed", "w")',)


@pytest.mark.parametrize('harm, told', [
    (lambda m: torch.save(Evil(), m / 'model.safetensors'), 'cannot be read'),
    (lambda m: edit(m / 'config.json', hidden_size=128, head_dim=128), 'disagree'),
    (lambda m: edit(m / 'config.json', model_type='llama', auto_map={'AutoModel': 'evil.Evil'}), 'architectures known here'),
    (lambda m: edit(m / 'config.json', num_hidden_layers=10**9), '1,000,000,000 layers'),
    (lambda m: (m / 'tokenizer.model').unlink(), 'no vocabulary'),
    (lambda m: edit(m / 'meta.json', vocabulary='../../etc/passwd'), 'no vocabulary'),
    (lambda m: edit(m / 'meta.json', vocab_size=9999), '9,999 ids'),
    (lambda m: (m / 'tokenizer.model').write_bytes(np.random.default_rng(0).bytes(999)), 'no vocabulary'),
], ids=['pickle', 'shape', 'type', 'layers', 'gone', 'elsewhere', 'ids', 'noise'])
def test_a_hostile_folder_is_a_sentence_and_nothing_of_it_runs(harm, told, models, tmp_path, monkeypatch):
    shutil.copytree(models / 'decoder', tmp_path / 'm', ignore=shutil.ignore_patterns('state*'))
    harm(tmp_path / 'm')
    if told == 'cannot be read':  # one by the script, the others, quicker, by what it calls
        said = run('sample.py', f'--model_path={tmp_path / "m"}', '--prompt=', cwd=tmp_path, ok=False).stderr
    else:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError) as e:
            load(tmp_path / 'm'), load_vocabulary(tmp_path / 'm')
        said = str(e.value)
    assert told in said and not (tmp_path / 'harmed').exists()
