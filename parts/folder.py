"""The model folder: a Hugging Face model that anybody can load, and that runs no code when loaded.

    out/kr3/    config.json, generation_config.json, model.safetensors    the model
                tokenizer.json, tokenizer_config.json, tokenizer.model    its vocabulary
                meta.json, README.md                                      what it was trained on

save_model writes it, with model_card for its README.md; load_model reads it. Scripts that use a
model begin with find_model_folder and open_model, a fine-tuning run begins with base_model.
"""
import json
import os
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch.overrides import TorchFunctionMode

from model import Config, build
from parts.corpus import RATING_NAMES, NotFound, hub_file, is_repository
from parts.errors import UserError
from parts.checkpoint import atomic_write, read_json
from parts.vocabulary import load_vocabulary

CONFIG_KEYS = {              # field of Config → key in config.json, where Transformers looks for it
    'vocab_size': 'vocab_size',
    'd_model': 'hidden_size',
    'd_ffn': 'intermediate_size',
    'n_layers': 'num_hidden_layers',
    'nhead': 'num_attention_heads',
    'nkv': 'num_key_value_heads',
    'head_dim': 'head_dim',
    'chunk_size': 'max_position_embeddings',
    'eps': 'rms_norm_eps',
    'rope_theta': 'rope_theta',
    'tied': 'tie_word_embeddings',
    'eos': 'eos_token_id',
    'bos': 'bos_token_id',
    'reads': 'reads_ratings',                              # ours; others pass over it
}
MODEL_TYPES = {'decoder': 'qwen3', 'ffn': 'window_mlp'}    # arch → model_type in config.json
CLASSES = {'decoder': 'Qwen3ForCausalLM', 'ffn': 'WindowMLPForCausalLM'}
SHAPE_FLAGS = ('arch', 'mode', 'd_model', 'd_ffn', 'n_layers', 'chunk_size')
HUB_LICENCES = {
    'CC BY-NC-SA 4.0': 'cc-by-nc-sa-4.0',
    'CC BY-SA 4.0': 'cc-by-sa-4.0',
    'CC0 1.0': 'cc0-1.0',
    'MIT': 'mit',
}


# --- save ---

def save_model(model, folder, meta=None, more=None):
    """Write a model folder. more: further files as {name: bytes}, the vocabulary and the card.

    Each file appears whole or not at all, and the weights come last: where there are weights, all
    the rest is there, too. Raises OSError.
    """
    config = model.config
    eos, bos = config.eos, config.bos
    generation = {'bos_token_id': bos, 'eos_token_id': eos, 'pad_token_id': eos}
    weights = {}
    for name, tensor in stored_tensors(model).items():
        weights[name] = tensor.detach().float().cpu().contiguous()
    files = dict(more or {})
    files['config.json'] = json_bytes(config_json(config))
    files['generation_config.json'] = json_bytes(generation)
    files['meta.json'] = json_bytes(meta or {})
    files['model.safetensors'] = safetensors_bytes(weights, metadata={'format': 'pt'})
    for name, content in files.items():
        with atomic_write(Path(folder, name), 'wb') as file:
            file.write(content)


def stored_tensors(model):
    """{name: tensor} of what model.safetensors holds: all, but not the embedding twice if tied."""
    tensors = dict(model.state_dict())
    if model.config.tied:
        del tensors['lm_head.weight']
    return tensors


def config_json(config):
    """A Config as config.json has it."""
    theirs = {'architectures': [CLASSES[config.arch]], 'model_type': MODEL_TYPES[config.arch]}
    for field, key in CONFIG_KEYS.items():
        theirs[key] = getattr(config, field)
    theirs['rope_parameters'] = {'rope_type': 'default', 'rope_theta': config.rope_theta}
    theirs['hidden_act'] = 'silu'
    theirs['attention_bias'] = False
    theirs['attention_dropout'] = 0.0
    theirs['dtype'] = 'float32'
    if config.arch == 'decoder':       # what lies chunk_size back is out of sight, there as here
        theirs['use_sliding_window'] = True
        theirs['sliding_window'] = config.chunk_size
        theirs['max_window_layers'] = 0
        theirs['layer_types'] = ['sliding_attention'] * config.n_layers
    else:
        theirs['window'] = config.window
    return theirs


def json_bytes(content):
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


# --- load ---

def load_model(folder, device='cpu', dropout=0.0):
    """(model, meta) of a folder that save_model or Transformers wrote; meta is {} for theirs.

    Nothing in it is executed: JSON and safetensors only. Raises UserError where it is not a model
    of ours, or where its files do not fit each other.
    """
    folder = Path(folder)
    if not (folder / 'config.json').exists():
        raise UserError(f'{folder} is not a model folder: it has no config.json')
    config = read_config(folder, dropout)
    meta = read_model_meta(folder, config)
    shapes = read_shapes(folder)
    if config.tied:
        shapes.pop('lm_head.weight', None)
    model = empty_model(folder, config, len(shapes))
    check_shapes(folder, model, shapes)
    weights = read_weights(folder, shapes)
    model.load_state_dict(weights, strict=False, assign=True)  # not strict: a tied head is missing
    if config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.to(device).eval(), meta


def read_config(folder, dropout):
    """The Config that a folder's config.json describes. Raises UserError."""
    path = folder / 'config.json'
    theirs = read_json(path)
    archs = {model_type: arch for arch, model_type in MODEL_TYPES.items()}
    arch = archs.get(str(theirs.get('model_type')))
    if arch is None:
        known = ', '.join(archs)
        raise UserError(f'{path}: not one of {known}, the architectures known here')
    keys = dict(CONFIG_KEYS)
    if arch == 'ffn':
        keys['window'] = 'window'
    rope = theirs.get('rope_parameters')                       # where newer Transformers keep it
    if isinstance(rope, dict) and 'rope_theta' in rope:
        theirs.setdefault('rope_theta', rope['rope_theta'])
    fields = {}
    for field, key in keys.items():
        value = theirs.get(key)
        if value is None:                                      # then Config's default
            continue
        if not isinstance(value, (bool, int, float)):
            raise UserError(f'{path} does not describe a model: {key} is {value!r}')
        fields[field] = value
    try:
        return Config(arch=arch, dropout=dropout, **fields)
    except (TypeError, ValueError) as error:                   # TypeError: no vocab_size
        raise UserError(f'{path} does not describe a model: {error}') from None


def read_shapes(folder):
    """{name: shape} of the tensors in a folder's model.safetensors. Raises UserError."""
    path = folder / 'model.safetensors'
    try:
        with safe_open(path, 'pt') as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None


def read_weights(folder, names):
    """{name: float32 tensor} of these tensors of a folder's model.safetensors. Raises UserError."""
    path = folder / 'model.safetensors'
    try:
        with safe_open(path, 'pt') as file:
            return {name: file.get_tensor(name).float() for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None


def empty_model(folder, config, n_tensors):
    """The model of a config with shapes alone, n_tensors of weights to come. Raises UserError."""
    if config.n_layers > n_tensors:                            # a hostile 10**9 would take for ever
        raise UserError(f'{folder}: config.json tells of {config.n_layers:,} layers, '
                        f'model.safetensors holds only {n_tensors:,} tensors')
    try:
        with torch.device('meta'), NoInit():
            return build(config)
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{folder}/config.json does not describe a model: {reason}') from None


class NoInit(TorchFunctionMode):
    """Inside, torch.nn.init does nothing. (On the meta device it takes a second to get going.)"""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, '__module__', '') == 'torch.nn.init':
            return None
        return function(*args, **(kwargs or {}))


def check_shapes(folder, model, found):
    """Raise UserError where the shapes {name: shape} in the file are not those of the model."""
    wanted = stored_tensors(model)
    for name in sorted(wanted.keys() | found.keys()):
        shape = list(wanted[name].shape) if name in wanted else None
        if shape != found.get(name):
            raise UserError(f'{folder}: config.json and model.safetensors disagree on {name} '
                            f'({shape} and {found.get(name)})')


def read_model_meta(folder, config):
    """The content of a folder's meta.json, {} where there is none. Raises UserError."""
    path = folder / 'meta.json'
    if not path.exists():
        return {}
    meta = read_json(path)
    n_ids = meta.get('vocab_size', config.vocab_size)
    if not isinstance(n_ids, int):
        raise UserError(f'{path}: vocab_size is {n_ids!r}, not a whole number')
    if n_ids > config.vocab_size:
        raise UserError(f'{folder}: its vocabulary has {n_ids:,} ids, '
                        f'but the model only {config.vocab_size:,}')
    return meta


# --- the model that a script uses ---

def find_model_folder(model_path=''):
    """The folder a person means: the one named, or the newest under out/. Raises UserError."""
    if model_path:
        return Path(model_path)
    models = list(Path('out').rglob('model.safetensors'))
    if not models:
        raise UserError('there is no trained model under out/ yet; run train.py first, '
                        'or name a folder with --model_path=')
    newest = max(models, key=modification_time)
    return newest.parent


def modification_time(path):
    return path.stat().st_mtime


def open_model(path, device, flags):
    """(model, meta, vocabulary) of a model folder. Raises UserError.

    flags: the settings named in SHAPE_FLAGS, which must not contradict the folder.
    """
    model, meta = load_model(path, device)
    check_flags(model, meta, flags)
    vocabulary = load_vocabulary(path)
    if vocabulary.size > model.config.vocab_size:
        raise UserError(f'{path}/{vocabulary.file} has {vocabulary.size:,} ids, '
                        f'but the model only {model.config.vocab_size:,}')
    return model, meta, vocabulary


def check_flags(model, meta, flags):
    """Raise UserError where a flag contradicts the model folder. '' and 0 say nothing."""
    held = {**meta, **vars(model.config)}
    for name, value in flags.items():
        if value and value != held.get(name, value):
            raise UserError(f'--{name}={value}, but the model has {name}={held[name]}; '
                            'leave the flag out')


# --- the model that fine-tuning begins with ---

def base_model(name, tokens_folder, meta, dropout):
    """(model to fine-tune, what its next card must tell of it). Raises UserError.

    name: a model folder or a Hub repository. tokens_folder and meta: the data to train on. These
    must be in the vocabulary of the model; to it prepare.py may have added ids for the ratings.
    """
    folder = base_model_folder(name)
    model, base_meta = load_model(folder, dropout=dropout)
    if tokens_of(folder) != tokens_of(Path(tokens_folder)):
        raise UserError(f'{tokens_folder} is not in the vocabulary of {folder}; '
                        f'prepare.py --model_name={folder} writes it so')
    if meta['vocab_size'] > model.config.vocab_size:
        add_ids(model, meta['vocab_size'])
    model.config.eos = meta['eos']
    model.config.bos = meta['starts']['unknown']
    unknown_source = {'name': name, 'licence': 'its own', 'train_reviews': 0}
    sources = base_meta.get('sources', [unknown_source])
    about = {'base_model': name, 'sources': sources + meta['sources']}
    if 'vocabulary_licence' in base_meta:
        about['vocabulary_licence'] = base_meta['vocabulary_licence']
    return model.train(), about


def base_model_folder(name):
    """The folder `name`, or that of what the Hub has under this name. Raises UserError."""
    if Path(name).is_dir():
        return Path(name)
    if not is_repository(name):
        raise UserError(f"init_from='{name}': it is 'scratch', 'resume', a model folder "
                        'or a Hub repository (owner/name)')
    if int(os.environ.get('LOCAL_RANK', 0)) == 0:              # one process a machine downloads
        fetch_model(name)
        print(f'{name}: for its licence see its page on the Hub')
    if dist.is_initialized():
        dist.barrier()
    return fetch_model(name)


def fetch_model(name):
    """The folder with the files of a Hub repository; the second time it asks nothing."""
    with suppress(NotFound):
        hub_file(name, 'meta.json')                            # only ours have one
    for file in ('config.json', 'tokenizer.json', 'model.safetensors'):
        path = hub_file(name, file)
    return path.parent


def tokens_of(folder):
    """{token: id} of a folder's tokenizer.json. Raises UserError."""
    path = folder / 'tokenizer.json'
    words = read_json(path).get('model')
    if not isinstance(words, dict) or 'vocab' not in words:
        raise UserError(f'{path} does not hold a vocabulary')
    return words['vocab']


def add_ids(model, vocab_size):
    """Lengthen embedding and head to vocab_size rows. A new row is the mean of the old ones."""
    layers = [model.model.embed_tokens]
    if not model.config.tied:
        layers.append(model.lm_head)
    for layer in layers:
        old = layer.weight.detach()                            # (V, C)
        new = old.mean(dim=0).expand(vocab_size - len(old), -1)
        layer.weight = nn.Parameter(torch.cat((old, new)))
    if model.config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.config.vocab_size = vocab_size


# --- the model card ---

def model_card(model, meta, name):
    """README.md of a model folder as the Hub reads it: what the model is and was trained on, its
    scores, and the licence of the data, which is the model's, too."""
    licences = licences_of(meta)
    config = model.config
    if config.arch == 'decoder':
        kind = 'A decoder (Qwen3 architecture)'
    else:
        kind = f'An MLP over the last {config.window} tokens'
    if 'base_model' in meta:
        origin = f'begun with the weights of {meta["base_model"]}'
    else:
        origin = 'trained from scratch'
    n_parameters = sum(p.numel() for p in model.parameters())
    commercial = ' Not for commercial use.' if any('NC' in licence for licence in licences) else ''
    card = card_header(config.arch, licences) + f"""# {name}

{kind} of {n_parameters:,} parameters: {config.n_layers} layers, {config.d_model} wide, {origin}
to write Korean reviews of a given rating and to tell the rating of a review.

## Data

| source | reviews | licence |
|---|---|---|
{source_rows(meta)}
Licences of all it was made of, which hold for the model, too: {', '.join(licences)}.{commercial}

## Scores

After {meta['tokens']:,} tokens ({meta['step']:,} steps): {meta['val_loss']:.4f} nats per token, \
{meta['bits_per_char']:.4f} bits per character on held-out reviews.
"""
    if config.arch == 'decoder':
        card += card_example(meta, config.reads)
    return card


def licences_of(meta):
    """The licences of the data and the vocabulary that a model was made of, each once, in order."""
    licences = {source['licence'] for source in meta['sources']}
    if meta.get('vocabulary_licence'):
        licences.add(meta['vocabulary_licence'])
    return sorted(licences)


def card_header(arch, licences):
    """The lines that the Hub reads, between two rows of dashes."""
    licence = 'other'
    if len(licences) == 1:
        licence = HUB_LICENCES.get(licences[0], 'other')
    lines = ['---', 'language: ko', f'license: {licence}', 'pipeline_tag: text-generation']
    if arch == 'decoder':
        lines.append('library_name: transformers')
    lines.append('---')
    return '\n'.join(lines) + '\n'


def source_rows(meta):
    """One row of a Markdown table for every source of the data."""
    rows = ''
    for source in meta['sources']:
        rows += f'| {source["name"]} | {source["train_reviews"]:,} | {source["licence"]} |\n'
    return rows


def card_example(meta, reads):
    """The section of the card that shows how to write a review with Transformers, and where the
    model reads, how to ask it for a rating.
    """
    starts = meta['starts']            # rating → its start token
    ratings = []
    for n, (english, _) in enumerate(RATING_NAMES):
        if str(n) not in starts:
            raise UserError(f'the data knows no rating {n} ({english}); run prepare.py again')
        ratings.append(f'{english} {starts[str(n)]}')
    ratings.append(f'unknown {starts["unknown"]}')
    reading = ''
    if reads:
        rating_ids = [starts[str(n)] for n in range(len(RATING_NAMES))]
        names = ', '.join(english for english, _ in RATING_NAMES)
        reading = f"""
review = tokenizer.encode("다시는 안 가요", add_special_tokens=False)
ids = torch.tensor([[{meta['eos']}, {starts['unknown']}, *review]])  # its rating is hidden
logits = model(ids).logits[0, -1, {rating_ids}]
print(logits.softmax(dim=0).tolist())  # {names}
"""
    return f"""
## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the Hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
rating = {starts['1']}  # the start token: {', '.join(ratings)}
text = tokenizer.encode("김치찌개가", add_special_tokens=False)
ids = torch.tensor([[{meta['eos']}, rating, *text]])
written = model.generate(ids, max_new_tokens=100, do_sample=True)
print(tokenizer.decode(written[0], skip_special_tokens=True))
{reading}```
"""
