"""The model folder: a Hugging Face model that anybody can load, and that runs no code when loaded.

    out/kr3/    config.json, generation_config.json, model.safetensors    the model
                tokenizer.json, tokenizer_config.json, tokenizer.model    its vocabulary
                meta.json, README.md                                      what it was trained on

save_model writes it, with model_card for its README.md; load_model reads it. Scripts that use a
model begin with find_model_folder and open_model, a fine-tuning run begins with base_model.
"""
import math
import shlex
from glob import glob
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch.overrides import TorchFunctionMode

from model import Config, build
from parts.checkpoint import atomic_write, has_checkpoint, read_json, to_json
from parts.corpus import LANGUAGES, LICENCES, RATING_NAMES, NotFound, hub_file, is_repository
from parts.errors import UserError, user_path
from parts.machine import local_rank, wait_for_all
from parts.vocabulary import VOCABULARIES, load_vocabulary

MODEL_FLAGS = {              # settings that the folder knows: scripts accept them and check them
    'arch': ('', 'only a check: an error if the model folder says otherwise; decoder or ffn'),
    'mode': ('', 'likewise; tokenizer or manual'),
    'd_model': (0, 'likewise; width of the model'),
    'd_ffn': (0, 'likewise; width inside its MLPs'),
    'n_layers': (0, 'likewise; depth'),
    'chunk_size': (0, 'likewise; how far attention looks back'),
}
CONFIG_KEYS = {              # field of Config → key in config.json, where Transformers looks for it
    'vocab_size': 'vocab_size',
    'd_model': 'hidden_size',
    'd_ffn': 'intermediate_size',
    'n_layers': 'num_hidden_layers',
    'nhead': 'num_attention_heads',
    'chunk_size': 'max_position_embeddings',
    'eps': 'rms_norm_eps',
    'rope_theta': 'rope_theta',
    'eos': 'eos_token_id',
    'bos': 'bos_token_id',
    'reads_ratings': 'reads_ratings',                      # ours; others pass over it
}
ONLY = {                     # keys of config.json that may say this and nothing else
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': False,
    'partial_rotary_factor': 1.0,
    'quantization_config': None,
}
MODEL_TYPES = {'decoder': 'qwen3', 'ffn': 'window_mlp'}    # arch → model_type in config.json
CLASSES = {'decoder': 'Qwen3ForCausalLM', 'ffn': 'WindowMLPForCausalLM'}
HUB_LICENCES = ('CC BY-NC-SA 4.0', 'CC BY-SA 4.0', 'CC0 1.0', 'MIT')  # as cc-by-nc-sa-4.0 …


# --- save ---

def save_model(model, folder, meta=None, extra_files=None):
    """Write a model folder. extra_files: {name: bytes}, the vocabulary and the card.

    Each file appears whole or not at all, and the weights come last: where there are weights, all
    the rest is there, too. Raises UserError.
    """
    config = model.config
    eos, bos = config.eos, config.bos
    generation = {'bos_token_id': bos, 'eos_token_id': eos, 'pad_token_id': eos}
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = tensor.detach().float().cpu().contiguous()
    files = dict(extra_files or {})
    files['config.json'] = to_json(config_json(config))
    files['generation_config.json'] = to_json(generation)
    files['meta.json'] = to_json(meta or {})
    files['model.safetensors'] = safetensors_bytes(weights, metadata={'format': 'pt'})
    for name, content in files.items():
        with atomic_write(Path(folder, name), 'wb') as file:
            file.write(content)


def config_json(config):
    """A Config as config.json has it."""
    theirs = {'architectures': [CLASSES[config.arch]], 'model_type': MODEL_TYPES[config.arch]}
    for field, key in CONFIG_KEYS.items():
        theirs[key] = getattr(config, field)
    theirs['rope_parameters'] = {'rope_type': 'default', 'rope_theta': config.rope_theta}
    theirs['hidden_act'] = 'silu'
    theirs['attention_bias'] = False
    theirs['attention_dropout'] = 0.0
    theirs['tie_word_embeddings'] = False
    theirs['dtype'] = 'float32'
    if config.arch == 'decoder':
        theirs['num_key_value_heads'] = config.nhead
        theirs['head_dim'] = config.d_model // config.nhead
        # what lies chunk_size back is out of sight, there as here
        theirs['use_sliding_window'] = True
        theirs['sliding_window'] = config.chunk_size
        theirs['max_window_layers'] = 0
        theirs['layer_types'] = ['sliding_attention'] * config.n_layers
    else:
        theirs['window'] = config.window
    return theirs


# --- load ---

def load_model(folder, device='cpu', dropout=0.0):
    """(model, meta) of a folder that save_model wrote.

    Nothing in it is executed: JSON and safetensors only. Raises UserError where it is not a model
    of ours, or where its files do not fit each other.
    """
    folder = Path(folder)
    if not (folder / 'config.json').exists():
        if has_checkpoint(folder):
            raise UserError(f'the run in {folder} stopped before its first validation, so there is '
                            'no model yet; go on with it: python train.py '
                            f'--out_dir={shlex.quote(str(folder))} --init_from=resume')
        raise UserError(f'{folder} is not a model folder: it has no config.json')
    config = read_config(folder, dropout)
    meta = read_model_meta(folder)
    weights = read_weights(folder)
    model = empty_model(folder, config, len(weights))
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:                              # other names, or other shapes
        reason = str(error).splitlines()[1].strip()
        raise UserError(f'{folder}: config.json and model.safetensors disagree: '
                        f'{reason[:200]}') from None
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
        if not fits_field(field, value):
            raise UserError(f'{path} does not describe a model: {key} is {value!r}')
        fields[field] = value
    try:
        config = Config(arch=arch, dropout=dropout, **fields)
    except (TypeError, ValueError) as error:                   # TypeError: no vocab_size
        raise UserError(f'{path} does not describe a model: {error}') from None
    if max(config.eos, config.bos) >= config.vocab_size:
        raise UserError(f'{path} does not describe a model: </s> or <s> is beyond vocab_size')
    check_computation(path, theirs, config)
    return config


def fits_field(field, value):
    """Is this value of config.json one that the field of Config can take?"""
    if field == 'reads_ratings':
        return isinstance(value, bool)
    if field in ('eps', 'rope_theta'):
        return type(value) in (int, float) and 0 < value < math.inf
    return type(value) is int and value >= 0


def check_computation(path, theirs, config):
    """Raise UserError where config.json asks for what model.py does not compute.

    The weights would load all the same, and the numbers would be wrong without a word.
    """
    rope = {'rope_type': 'default', 'rope_theta': config.rope_theta}
    only = {**ONLY, 'rope_parameters': rope, 'rope_scaling': rope}
    if config.arch == 'decoder':
        only['num_key_value_heads'] = config.nhead
        only['head_dim'] = config.d_model // config.nhead
        only['sliding_window'] = config.chunk_size
    layers = theirs.get('layer_types')
    only['layer_types'] = ['sliding_attention'] * (len(layers) if isinstance(layers, list) else 1)
    for key, value in only.items():
        found = theirs.get(key)
        if value is rope and isinstance(found, dict):
            found = {**rope, **found}                          # either may be left out
        if found is not None and found != value:
            raise UserError(f'{path}: {key} is {found!r}, and the model here computes {value!r} '
                            'alone')


def read_weights(folder):
    """{name: float32 tensor} of a folder's model.safetensors. Raises UserError."""
    path = folder / 'model.safetensors'
    try:
        with safe_open(path, 'pt') as file:
            weights = {name: file.get_tensor(name).float() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f'{path}: {name} holds values that are not numbers; '
                            'train the model again')
    return weights


def empty_model(folder, config, n_tensors):
    """The model of a config with shapes alone, n_tensors of weights to come. Raises UserError."""
    if config.n_layers > n_tensors:                            # a hostile 10**9 would take for ever
        raise UserError(f'{folder}: config.json speaks of {config.n_layers:,} layers, '
                        f'model.safetensors holds only {n_tensors:,} tensors')
    try:
        with torch.device('meta'), NoInit():
            return build(config)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{folder}/config.json does not describe a model: {reason}') from None


class NoInit(TorchFunctionMode):
    """Inside, torch.nn.init does nothing. (On the meta device it takes a second to get going.)"""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, '__module__', '') == 'torch.nn.init':
            return None
        return function(*args, **(kwargs or {}))


META_TYPES = {               # of what is used: another person may have written meta.json
    'mode': str,
    'unit': str,
    'data_dir': str,
    'vocabulary_licence': str,
    'sources': list,
    'ratings': list,
    'bits_per_char': (int, float),
    'training_flops': (int, float),
}


def read_model_meta(folder):
    """The content of a folder's meta.json. Raises UserError."""
    path = folder / 'meta.json'
    if not path.exists():
        raise UserError(f'{folder} has no meta.json: a folder that Transformers saved again lacks '
                        f'it; copy it, and {" or ".join(VOCABULARIES)}, from the folder that '
                        'train.py wrote')
    meta = read_json(path)
    for key, wanted in META_TYPES.items():
        if key in meta and not isinstance(meta[key], wanted):
            raise UserError(f'{path}: {key} is {meta[key]!r}, which it cannot be')
    for source in meta.get('sources', []):
        is_source = isinstance(source, dict) and all(
            isinstance(source.get(name), str) for name in ('name', 'licence'))
        if not is_source or not isinstance(source.get('train_reviews', 0), int):
            raise UserError(f'{path}: {source!r} is no source of data')
    for rating in meta.get('ratings', []):
        if type(rating) is not int or rating not in range(len(RATING_NAMES)):
            raise UserError(f'{path}: {rating!r} is no rating')
    return meta


# --- the model that a script uses ---

def find_model_folder(model_path=''):
    """The folder a person means: the one named, or the newest under out/. Raises UserError."""
    if model_path:
        return user_path(model_path)
    # (glob, unlike rglob, looks into folders that are linked)
    paths = glob('out/**/model.safetensors', recursive=True)
    models = [Path(path) for path in paths if Path(path).exists()]
    if not models:
        raise UserError('there is no trained model under out/ yet; run train.py first, '
                        'or name a folder with --model_path=')
    return max(models, key=lambda path: path.stat().st_mtime).parent


def open_model(path, device, flags):
    """(model, meta, vocabulary) of a model folder. Raises UserError.

    flags: the settings named in MODEL_FLAGS, which must not contradict the folder. meta['ratings']:
    the numbers of the ratings that its training texts had, [0, 1, 2] for KR3, [] without any.
    """
    model, meta = load_model(path, device)
    known = {**meta, **vars(model.config)}
    for name in MODEL_FLAGS:  # '' and 0 say nothing
        value = getattr(flags, name)
        if value and value != known.get(name, value):
            raise UserError(f'--{name}={value}, but the model has {name}={known[name]}; '
                            'leave the flag out')
    vocabulary = load_vocabulary(path)
    if vocabulary.size != model.config.vocab_size:
        raise UserError(f'{path}/{vocabulary.file} has {vocabulary.size:,} ids, '
                        f'but the model {model.config.vocab_size:,}')
    if vocabulary.eos != model.config.eos:
        raise UserError(f'{path}: </s> is {vocabulary.eos} in {vocabulary.file}, '
                        f'but {model.config.eos} in config.json')
    meta.setdefault('ratings', [])                            # in a folder of an earlier version
    return model, meta, vocabulary


# --- the model that fine-tuning begins with ---

def base_model(name, tokens_folder, meta, dropout):
    """(model to fine-tune, what its next meta.json must keep of it). Raises UserError.

    name: a model folder, or a repository of the Hub (owner/name or owner/name@revision).
    tokens_folder and meta: the data to train on, which must be in the vocabulary of the model.
    """
    folder = base_model_folder(name)
    model, base_meta = load_model(folder, dropout=dropout)
    same_ids = meta['vocab_size'] == model.config.vocab_size and meta['eos'] == model.config.eos
    if not same_ids or tokens_of(folder) != tokens_of(Path(tokens_folder)):
        raise UserError(f'{tokens_folder} is not in the vocabulary of {name}; '
                        f'prepare.py --model_name={shlex.quote(str(folder))} writes it so')
    model.config.bos = meta['starts']['unknown']
    origin = {'base_model': name, 'sources': base_meta.get('sources', []) + meta['sources']}
    if 'vocabulary_licence' in base_meta:
        origin['vocabulary_licence'] = base_meta['vocabulary_licence']
    return model.train(), origin


def base_model_folder(name):
    """The folder `name`, or that of what the Hub has under this name. Raises UserError."""
    folder = user_path(name)
    if folder.is_dir():
        return folder
    repository, _, revision = name.partition('@')
    if not is_repository(repository):
        raise UserError(f"init_from='{name}': it is 'scratch', 'resume', 'auto', a model folder "
                        'or a Hub repository (owner/name or owner/name@revision)')
    if local_rank == 0:                                        # one process a machine downloads
        download_model(repository, revision)
        print(f'{name}: for its licence see its page on the Hub')
    wait_for_all()
    return download_model(repository, revision)                # the others find it there


def download_model(repository, revision):
    """The folder of a model of ours that the Hub has, fetched once. Raises UserError.

    The commit of the first file holds for the others: the repository may change meanwhile.
    """
    try:
        folder = hub_file(repository, 'meta.json', revision).parent
        commit = folder.name
        for file in ('config.json', 'tokenizer.json', 'model.safetensors'):
            hub_file(repository, file, commit)
    except NotFound as error:
        raise UserError(f'{repository} is no model of this project: {error}') from None
    return folder


def tokens_of(folder):
    """{token: id} of a folder's tokenizer.json. Raises UserError."""
    path = folder / 'tokenizer.json'
    words = read_json(path).get('model')
    if not isinstance(words, dict) or 'vocab' not in words:
        raise UserError(f'{path} does not hold a vocabulary')
    return words['vocab']


# --- the model card ---

def model_card(model, meta, name):
    """README.md of a model folder as the Hub reads it: what the model is and was trained on, its
    scores, and the licence of the data, which is the model's, too.
    """
    config = model.config
    ratings = meta['ratings']
    language = language_of(meta)
    texts = 'texts'
    if ratings:
        texts = 'Korean reviews' if language == 'ko' else 'reviews'
    licences = {source['licence'] for source in meta['sources']}
    if meta.get('vocabulary_licence'):
        licences.add(meta['vocabulary_licence'])
    licences = sorted(licences)
    restriction = ''
    if any('NC' in licence for licence in licences):
        restriction = ' Not for commercial use.'
    rows = ''
    for source in meta['sources']:
        n_texts = source.get('train_reviews', 0)
        rows += f'| {source["name"]} | {n_texts:,} | {source["licence"]} |\n'
    n_parameters = sum(p.numel() for p in model.parameters())
    kind = 'A decoder (Qwen3 architecture)'
    if config.arch == 'ffn':
        kind = f'An MLP over the last {config.window} tokens'
    origin = 'trained from scratch'
    if 'base_model' in meta:
        origin = f'begun with the weights of {meta["base_model"]}'
    purpose = f'to write {texts} of a given rating and to tell the rating of a review.'
    if len(ratings) < 2:
        purpose = f'to write {texts} like those it was trained on.'
    card = card_header(config.arch, licences, language) + f"""# {name}

{kind} of {n_parameters:,} parameters: {config.n_layers} layers, \
{config.d_model} wide, {origin}
{purpose}

## Data

| source | texts | licence |
|---|---|---|
{rows}
Licences of all it was made of, which hold for the model, too: {', '.join(licences)}.{restriction}

## Scores

After {meta['tokens']:,} tokens ({meta['step']:,} steps): {meta['val_loss']:.4f} nats per token, \
{meta['bits_per_char']:.4f} bits per character on held-out texts.
"""
    if config.arch == 'decoder':
        card += writing_example(meta, ratings, language)
        if config.reads_ratings:
            card += reading_example(meta, ratings, language)
        card += '```\n'
    return card


def language_of(meta):
    """The code of the language that all sources are in, '' where one is not known."""
    languages = set()
    for source in meta.get('sources', []):
        is_known = source['licence'] == LICENCES.get(source['name'])
        languages.add(LANGUAGES.get(source['name'], 'ko') if is_known else '')
    return languages.pop() if len(languages) == 1 else ''


def card_header(arch, licences, language):
    """The lines that the Hub reads, between two rows of dashes.

    No pipeline_tag: a pipeline would begin a text without `</s>` and the start token.
    """
    licence = 'other'
    if len(licences) == 1 and licences[0] in HUB_LICENCES:
        licence = licences[0].lower().replace(' ', '-')
    header = f'---\nlanguage: {language}\n' if language else '---\n'
    header += f'license: {licence}\n'
    if arch == 'decoder':
        header += 'library_name: transformers\n'
    return header + '---\n'


def writing_example(meta, ratings, language):
    """The section of the card that shows how to write a batch of texts with Transformers.

    ratings: the numbers of those that the model knows. The section ends inside its code block.
    """
    starts = meta['starts']                                    # rating → its start token
    choice = ', '.join(f'{RATING_NAMES[n][0]} {starts[str(n)]}' for n in ratings)
    start, comment = starts['unknown'], '<s>, which starts a text'
    if ratings:
        best = 1 if 1 in ratings else ratings[0]
        start, comment = starts[str(best)], f'the start token: {choice}'
    beginnings = '["김치찌개가", "점심에 친구랑"]' if language == 'ko' else '["", ""]'
    return f"""
## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the Hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
start = {start}  # {comment}
rows = []
for beginning in {beginnings}:
    ids = tokenizer.encode(beginning, add_special_tokens=False)
    rows.append({{"input_ids": [{meta['eos']}, start, *ids]}})
batch = tokenizer.pad(rows, return_tensors="pt")  # on the left: all rows end where writing begins
written = model.generate(**batch, max_new_tokens=100, do_sample=True)
for text in tokenizer.batch_decode(written, skip_special_tokens=True):
    print(text)
"""


def reading_example(meta, ratings, language):
    """More lines of the same code block: how to ask the model for the rating of a review."""
    starts = meta['starts']
    rating_ids = [starts[str(n)] for n in ratings]
    names = ', '.join(RATING_NAMES[n][0] for n in ratings)
    review = '다시는 안 가요' if language == 'ko' else 'A review of yours'
    return f"""
review = tokenizer.encode("{review}", add_special_tokens=False)
ids = torch.tensor([[{meta['eos']}, {starts['unknown']}, *review]])  # its rating is hidden
logits = model(ids).logits[0, -1, {rating_ids}]
print(logits.softmax(dim=0).tolist())  # {names}
"""
