"""Fine-tuning: a model folder, from this disk or the Hub, as the beginning of another run."""
import json
import os
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from data import hub
from model import load


def model_folder(name):
    """The folder of the model to fine-tune: the one named, or what the Hub has under that name, downloaded by one process a machine."""
    if Path(name).is_dir():
        return Path(name)
    if not hub.is_repository(name):
        raise ValueError(f"init_from='{name}': it is 'scratch', 'resume', a model folder or a Hub repository (owner/name)")
    if int(os.environ.get('LOCAL_RANK', 0)) == 0:
        with suppress(OSError):
            hub.download_model(name, 'meta.json')  # only ours have one
        for file in ('config.json', 'tokenizer.json', 'model.safetensors'):
            hub.download_model(name, file)
        print(f'{name}: for its licence see its page on the Hub')
    if dist.is_initialized():
        dist.barrier()
    return hub.DOWNLOADS / name.replace('/', '--')


def model_to_tune(name, data, meta, dropout):
    """(model, what its next card must tell). The data must be written in its vocabulary; ids that prepare.py added at the end, for
    ratings it did not know, get the mean of the others as their vector. Raises OSError or ValueError in one sentence."""
    folder = model_folder(name)
    model, before = load(folder, dropout=dropout)
    words = lambda f: json.loads((f / 'tokenizer.json').read_text('utf-8'))['model']['vocab']
    if words(folder) != words(data):
        raise ValueError(f'{data} is not in the vocabulary of {folder}; prepare.py --model_name={folder} writes it so')
    c, V = model.config, meta['vocab_size']
    if V > c.vocab_size:
        for layer in (model.model.embed_tokens, model.lm_head)[:1 if c.tied else 2]:
            w = layer.weight.detach()
            layer.weight = torch.nn.Parameter(torch.cat((w, w.mean(0).expand(V - len(w), -1))))
        c.vocab_size = V
        if c.tied:
            model.lm_head.weight = model.model.embed_tokens.weight
    c.eos, c.bos = meta['eos'], meta['starts']['unknown']
    unknown = [{'name': name, 'licence': 'its own', 'train_reviews': 0}]
    kept = {key: before[key] for key in {'vocabulary_licence'} & before.keys()}
    return model.train(), {'base_model': name, 'sources': [*before.get('sources', unknown), *meta['sources']], **kept}
