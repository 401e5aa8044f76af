"""Before the first step: settings that make sense, a run to go on with, data that fit.

Whatever can be wrong is found here, before an hour of work.
"""
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from parts.batches import Batches, open_stream, validation_rows
from parts.checkpoint import has_checkpoint, load_checkpoint
from parts.errors import UserError
from parts.runtime import check_same_checkpoint, world_size

# When a run goes on, only these flags may differ from its own. NOT_KEPT are not stored with it.
MAY_CHANGE = {'micro_batch', 'eval_interval', 'eval_tokens', 'log_interval',
              'device', 'dtype', 'compile', 'show', 'wandb'}
NOT_KEPT = {'init_from', 'out_dir', 'given'}


def settings_and_checkpoint(settings, out):
    """For a new run (its settings, None); to go on (the run's settings, its checkpoint)."""
    run, checkpoint = settings, None
    if settings.init_from == 'resume':
        checkpoint, checksum = load_checkpoint(out)
        checkpoint['checksum'] = checksum
        held = checkpoint['settings']
        run = adopt(settings, held, f'the run in {out} was started with')
    elif has_checkpoint(out) or (out / 'model.safetensors').exists():
        raise UserError(f'{out} already holds a run; go on with it (--init_from=resume), '
                        'or name another --out_dir')
    check_settings(run)
    return run, checkpoint


def check_settings(run):
    """Raise UserError where a number makes no sense."""
    for name in ('batch_size', 'epochs'):
        if getattr(run, name) < 1:
            raise UserError(f'{name}={getattr(run, name)}: it takes 1 or more')
    for name in ('lr', 'n_tokens', 'micro_batch', 'warmup', 'weight_decay', 'table_decay',
                 'grad_clip', 'read_weight', 'eval_interval', 'eval_tokens', 'log_interval'):
        if getattr(run, name) < 0:
            raise UserError(f'{name}={getattr(run, name)}: it takes 0 or more')
    if not 0 <= run.read_share <= 1:
        raise UserError(f'read_share={run.read_share}: it takes 0 to 1')
    if run.chunk_size < 2:
        raise UserError(f'chunk_size={run.chunk_size}: it takes 2 or more')
    if not 0 <= run.seed < 2 ** 63:
        raise UserError(f'seed={run.seed}: it takes a whole number from 0 to 2^63 - 1')
    if run.batch_size % world_size:
        raise UserError(f'batch_size={run.batch_size} does not divide among {world_size} processes')


def adopt(settings, held, whose):
    """The settings, with those stored in `held` in place of the defaults.

    A flag that a person set must agree with them, or UserError is raised.
    """
    run = SimpleNamespace(**vars(settings))
    for name, value in held.items():
        asked = getattr(settings, name)
        if name not in settings.given:
            setattr(run, name, value)
        elif asked != value and name not in MAY_CHANGE:
            raise UserError(f'{whose} {name}={value}, not {asked}; leave --{name} out')
    return run


def fine_tuned_model(run, meta, checkpoint):
    """(settings, the model that init_from names or None, what the next model card tells of it)."""
    if checkpoint:
        check_same_checkpoint(checkpoint['step'], checkpoint['checksum'])
        return run, None, checkpoint['about']
    if run.init_from == 'scratch':
        return run, None, {}
    from parts.folder import base_model  # here, for it is slow to import
    base, about = base_model(run.init_from, Path(run.data_dir, run.mode), meta, run.dropout)
    config = base.config
    if 'chunk_size' in run.given:
        config.chunk_size = run.chunk_size
    config.chunk_size = min(run.chunk_size, config.chunk_size)
    held = {'counts': False}
    for name in ('arch', 'd_model', 'd_ffn', 'n_layers', 'nhead', 'window', 'chunk_size'):
        held[name] = getattr(config, name)
    return adopt(run, held, f'the model in {run.init_from} has'), base, about


def load_data(run, meta, checkpoint):
    """All that the loop reads: the batches, the validation rows, the vocabulary.

    Raises UserError where they do not fit each other or the settings.
    """
    folder = Path(run.data_dir, run.mode)
    eos, T = meta['eos'], run.chunk_size
    tokens, review_offsets = open_stream(folder, meta, 'train')
    checksum = meta['train_crc32']
    if checkpoint and checkpoint['data'] != checksum:
        raise UserError(f'{folder}/train.bin is not what the run in {run.out_dir} was trained '
                        'on; prepare it as it was, or begin anew in another --out_dir')

    # how long the run is follows from the data
    tokens_per_epoch = len(tokens) - 1
    if run.n_tokens:
        tokens_per_epoch = min(int(run.n_tokens * 1e6), tokens_per_epoch)
    batches = Batches(tokens, review_offsets, eos, T, run.batch_size, tokens_per_epoch, run.seed)
    steps = run.epochs * batches.steps_per_epoch
    if not steps:
        raise UserError(f'{tokens_per_epoch:,} tokens do not fill one batch of {run.batch_size} '
                        f'rows of {T}; take a smaller --batch_size or --chunk_size, or more data')
    rows_per_rank = batches.rows_per_step // world_size
    micro_rows = run.micro_batch * T // batches.row_length or rows_per_rank

    if not checkpoint:
        plan = validation_plan(run, steps, batches.tokens_per_step)
        run.eval_interval, run.eval_tokens = plan
    val_tokens, val_offsets = open_stream(folder, meta, 'val')
    most_tokens = run.eval_tokens * 1e6 or math.inf
    val_rows = validation_rows(val_tokens, val_offsets, T, eos, most_tokens)

    tokens_per_char = (meta['val_tokens'] - 1) / meta['val_chars']
    to_bits_per_char = tokens_per_char / math.log(2)  # times nats per token
    about = {name: meta[name] for name in ('base_model', 'sources', 'vocabulary_licence')
             if name in meta}
    vocabulary_files = {}
    for name in ('tokenizer.json', 'tokenizer_config.json', meta['vocabulary']):
        vocabulary_files[name] = (folder / name).read_bytes()
    rating_ids = [start for name, start in meta['starts'].items() if name != 'unknown']
    start_ids = [*rating_ids, meta['starts']['unknown']]
    # the ffn is not asked for ratings: at the end of a text it sees the last words alone
    asks = run.arch == 'decoder' and run.read_share > 0
    reads = asks and tell_ratings(tokens, review_offsets, rating_ids)
    return SimpleNamespace(
        meta=meta, eos=eos, start_ids=start_ids, reads=reads, tokens=tokens, checksum=checksum,
        batches=batches, steps=steps, tokens_per_epoch=tokens_per_epoch,
        rows_per_rank=rows_per_rank, micro_rows=micro_rows, val_rows=val_rows,
        to_bits_per_char=to_bits_per_char, floor=meta.get('floor_bits_per_char'),
        about=about, vocabulary_files=vocabulary_files)


def tell_ratings(tokens, review_offsets, rating_ids):
    """Whether the reviews have ratings, and more than one: a thousand of them show it."""
    which = np.linspace(0, len(review_offsets) - 2, 1000).astype(np.int64)
    starts = tokens[review_offsets[which].astype(np.int64) + 1]
    return len(set(starts.tolist()) & set(rating_ids)) > 1


def validation_plan(run, steps, tokens_per_step):
    """(eval_interval, eval_tokens in millions): as given or, where not, a twentieth of the time.

    A validation token has no backward pass and costs at most half a training token. So a tenth of
    the run's tokens is spent: on ten validations or, if they had under 20,000 each, on fewer.
    """
    interval, million = run.eval_interval, run.eval_tokens
    if 'eval_tokens' not in run.given:
        budget = steps * tokens_per_step / 1e6 / 10
        n_validations = min(10, max(1, int(budget / 0.02)))
        if 'eval_interval' in run.given:
            n_validations = max(1, steps // (interval or max(1, steps // 10)))
        else:
            interval = math.ceil(steps / n_validations)
        million = min(million, budget / n_validations)
    return interval, million
