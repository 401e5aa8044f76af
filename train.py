"""Train a model on the tokens that prepare.py wrote: one loop for a laptop, a GPU, or many.

    python train.py config/demo.py                                     # one process, CPU or GPU
    torchrun --standalone --nproc_per_node=4 train.py config/kr3.py    # four GPUs, the same steps
    python train.py --out_dir=out/demo --init_from=resume              # go on where a run stopped
    python train.py --init_from=out/kr3 --data_dir=data/mine --out_dir=out/mine    # fine-tune

    train.bin → shuffled texts → rows (R, T) → batch (B, T) of step s → loss → gradients → optimizer
    → out_dir/

The batch of step s is a function of (data, settings, s) and nothing else. So a resumed run is the
run that never stopped and, without dropout, four processes draw the curve of one.
"""
import math
import os
import shlex
import signal
import statistics
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

from parts.errors import UserError, how_to_wait, print0, user_path

os.environ.update(how_to_wait())  # before torch reads it

import torch
from torch.nn.parallel import DistributedDataParallel

from configurator import configure
from model import Config, build, generate
from parts.bigram import init_from_bigrams
from parts.budget import length_for, shape_for
from parts.checkpoint import (
    append_log,
    has_checkpoint,
    is_log,
    load_checkpoint,
    lock_folder,
    save_checkpoint,
    set_aside,
    start_log,
    sweep,
)
from parts.corpus import RATING_NAMES, check_texts
from parts.data import Data, read_meta
from parts.machine import (
    StopRequest,
    all_reduce,
    check_same_everywhere,
    compile_and_check,
    explain_failures,
    from_rank0,
    matmul_flops,
    matmul_peak,
    on_any_rank,
    rank,
    run_distributed,
    select_device,
    select_dtype,
    start_process,
    wait_for_all,
    world_size,
    worth_compiling,
)
from parts.optim import get_lr, make_optimizer
from parts.vocabulary import VOCABULARIES, printable, vocabulary_files

# --- data ---
data_dir = 'data/kr3'  # what prepare.py wrote
out_dir = 'out/kr3'    # where the model folder, the state and the log go
mode = 'tokenizer'     # vocabulary of data_dir: tokenizer (sub-words) or manual (characters)
init_from = 'scratch'  # scratch; resume; auto: resume where there is a run; a folder or Hub name
# --- model ---
arch = 'decoder'       # decoder: attention; ffn: an MLP over the last `window` tokens
d_model = 256          # width of the model
d_ffn = 0              # width inside its MLPs (0: 8/3 of d_model, up to a multiple of 64)
n_layers = 6           # depth
nhead = 0              # attention heads (0: one per 64 of d_model)
window = 8             # ffn: how many tokens it reads
chunk_size = 256       # longest row in tokens, and how far attention looks back
dropout = 0.0          # share of activations dropped in training; 0.1 or more if data repeat often
# --- optimizer ---
batch_size = 16        # a step reads batch_size * chunk_size tokens, all processes together
micro_batch = 0        # rows that a process computes at once; fewer save memory (0: all of them)
epochs = 1             # passes over the data
n_tokens = 0.0         # million tokens per epoch, each time another random part (0: all there are)
read_share = 0.7       # share of the rows where the rating is hidden and asked for at the end
bigram_init = True     # begin as a bigram model: count in train.bin what follows what
optimizer = 'muon'     # muon: Muon for matrices, AdamW for embedding and head; adamw: all
lr = 6e-3              # peak learning rate
table_decay = 0.0      # pull of embedding and head to zero, per epoch; 1 if data are repeated often
# --- run ---
minutes = 0.0          # choose size and length of the run for so many minutes (0: as said above)
eval_interval = 0      # steps between validations, each saving the state (0: some ten a run)
eval_tokens = 0.1      # million validation tokens, always the same (0: all); fewer in a short run
log_interval = 0       # steps between lines of the log (0: forty a run)
seed = 0               # of initial weights, order of the data, dropout; 0 to 2^63 - 1
device = 'auto'        # cuda, mps, cpu, or auto: the first of them that is there
dtype = 'auto'         # bfloat16, float16, float32, or auto: the one measured fastest here
compile = 'auto'       # torch.compile: true, false, or auto: where the run is long enough to pay
show = False           # at every validation, show what the model writes by now
settings = configure(globals())

RATING_WEIGHT = 10     # a rating that is asked for counts as 10 tokens (LOG.md, Reading ratings)
GRAD_CLIP = 1.0        # gradients are clipped to this length
MOST_DECAY = 1 / 30    # the most that table_decay takes in one step: it spares short texts
# --minutes guesses the shape from the peak, before the speed is measured:
USUAL_SHARE = 0.45       # of the peak, which training usually reaches
TRIAL_SHARE = 0.04       # of the time, to measure the speed,
MOST_TRIAL_SECONDS = 20  # and no more than this
TRAINING_SHARE = 0.88    # of what is left then; the rest is for counting, validation and saving
# When a run goes on, only these may differ from its own settings; NOT_KEPT are not stored with it.
MAY_CHANGE = {'data_dir', 'micro_batch', 'eval_interval', 'eval_tokens', 'log_interval',
              'device', 'dtype', 'compile', 'show'}
NOT_KEPT = {'init_from', 'out_dir', 'given'}


# --- the run, from beginning to end ---

@explain_failures(advice='take a smaller --micro_batch, as 8; the step stays the same')
def main():
    # --- this process, this machine ---
    out = user_path(settings.out_dir)
    # run: the settings in force; where a run goes on, those saved with it
    run, checkpoint = begin_or_go_on(settings, out)
    check_settings(run)
    device = select_device(run.device)
    if rank == 0:
        claim_folder(out, begins=not checkpoint)
    start_process(device)  # from here on the processes know each other
    stop = StopRequest()

    # --- data ---
    meta = read_meta(run.data_dir, run.mode)
    vocabulary = vocabulary_files(Path(run.data_dir, run.mode))           # {name: content}
    check_data(run, meta, vocabulary, checkpoint)
    base, origin = None, {}  # the model to fine-tune, and what the model card says of it
    if checkpoint:
        origin = checkpoint['origin']
    elif run.init_from not in ('scratch', 'auto'):
        run, base, origin = fine_tune(run, meta)
    if run.minutes and not checkpoint:
        run = fit_to_minutes(run, meta, base, device)
    data = Data(run, meta, rank, world_size)
    step = checkpoint['step'] if checkpoint else 0
    if step >= data.steps:
        print0(f'the run in {out} is complete: {data.steps:,} steps')
        return 0
    micro_rows = choose_micro_rows(run, data)
    if not checkpoint:
        run.eval_interval, run.eval_tokens = validation_plan(run, data)
    val_rows = data.validation_rows(run.eval_tokens * 1e6 or math.inf)
    validate_every = run.eval_interval or max(1, data.steps // 10)
    log_every = run.log_interval or max(1, data.steps // 40)

    # --- model ---
    model = (base or new_model(run, data, meta, checkpoint)).to(device)
    model.config.reads_ratings = data.asks_ratings            # kept in the model folder
    rating_ids = torch.tensor(data.rating_ids, device=device)
    # seconds: how long the run has trained so far, the counting of bigrams included
    seconds, warm_start = first_weights(model, run, data, base, checkpoint)
    best = checkpoint['best'] if checkpoint else math.inf  # the lowest validation loss
    dtype, compiled, peak = choose_computation(model, run, data, device)
    # the model compiled and in DDP; where what was compiled is wrong, dtype or compiled change
    network, dtype, compiled = make_network(
        model, data.batch(step), rating_ids, micro_rows, dtype, compiled, device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    # --- optimizer ---
    table_decay = min(run.table_decay / data.steps_per_epoch, MOST_DECAY)
    optimizer = make_optimizer(model, run.optimizer, run.lr, table_decay, warm_start, dtype)
    # float16 knows no number below 6e-8, so the loss is scaled up before the backward pass and the
    # gradients down after it (Micikevicius et al. 2018, arXiv:1710.03740). Other formats need none.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    if checkpoint:
        optimizer.load_state_dict(checkpoint['optimizer'])
        if checkpoint['scaler']:  # {} where it was not float16
            scaler.load_state_dict(checkpoint['scaler'])

    # --- the log, and what never changes in the state.pt of a run ---
    if rank == 0:
        start_log(out, step)
    checkpoint = None  # its content is loaded: free the memory
    unchanging = {
        'settings': kept(run),
        'device': device.type,
        'dtype': str(dtype).removeprefix('torch.'),
        'compiled': compiled,
        'config': vars(model.config),
        'warm_start': warm_start,
        'origin': origin,
        'data': meta['train_crc32'],
        'validation': meta['val_crc32'],
    }

    # --- the loop ---
    flops_per_token = matmul_flops(model, data.row_length)
    first_step, first_seconds = step, seconds                 # for the speed, tokens a second
    loss_sum = torch.zeros((), device=device)                 # of the steps since the last log
    logged_step = step
    stopping = False
    clock = time.perf_counter()
    while step < data.steps and not stopping:
        lr = get_lr(step, data.steps, run.lr)
        for group in optimizer.param_groups:
            group['lr'] = lr * group['lr_mult']
        if run.dropout:  # it depends on these three numbers alone
            torch.manual_seed(hash((run.seed, step, rank)))

        # --- forward and backward, some rows at a time where memory is short ---
        batch = data.batch(step)
        for first in range(0, data.rows_per_rank, micro_rows):
            end = first + micro_rows
            if world_size > 1:  # the processes exchange gradients once a step, at its end
                network.require_backward_grad_sync = end == data.rows_per_rank
            x, y, ratings = batch.rows(first, end, device)    # (B, T) each
            with autocast:  # (texts without ratings: ratings is -1, and rating_loss 0)
                token_loss, rating_loss = network(x, y, ratings, rating_ids)
            # the mean over all targets of the step, across processes and micro-batches
            loss = (token_loss + RATING_WEIGHT * rating_loss) / batch.n_targets
            # DDP averages over processes, and we want the sum: hence * world_size
            scaler.scale(loss * world_size).backward()
            loss_sum += token_loss.detach() / batch.n_targets

        # --- clip and step ---
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        scaler.step(optimizer)  # float16: not where a gradient overflowed
        scaler.update()
        optimizer.zero_grad()
        step += 1

        # --- stop? Every process after the same step ---
        # (On GPUs only after every eighth: waiting for the answer would leave them idle.)
        if world_size == 1:
            stopping = stop.signal > 0
        elif device.type != 'cuda' or step % 8 == 0:
            stopping = on_any_rank(stop.signal, device)

        # --- now and then: log, validate, save ---
        validating = step == data.steps or step % validate_every == 0
        if not (validating or stopping or step % log_every == 0):
            continue
        train_loss = all_reduce(loss_sum / (step - logged_step)).item()
        seconds += time.perf_counter() - clock
        val_loss = None
        if validating:
            val_loss = validate(model, data, val_rows, micro_rows, device, autocast)
        check_finite(out, step, lr, train_loss, val_loss)
        is_best = validating and val_loss < best
        if is_best:
            best = val_loss
        if rank == 0:
            row = log_row(data, step, seconds, train_loss, val_loss, lr)
            speed = (step - first_step) * data.tokens_per_step / (seconds - first_seconds)
            append_log(out, row)
            print_row(row, data, speed, flops_per_token * speed / peak, stop)
            if validating and run.show and not stop.signal:
                show_texts(model, data, vocabulary, device)
            if is_best:  # the model folder: the best so far on validation
                save_best(out, model, run, data, {**meta, **origin}, vocabulary, row)
            if validating or stopping:  # state.pt: the last step, all that resuming needs
                # the loss is one update old; the update itself may have made a weight NaN
                check_finite(out, step, lr, *[p.sum().item() for p in model.parameters()])
                save_checkpoint(out, {**unchanging, 'model': model.state_dict(),
                                      'optimizer': optimizer.state_dict(),
                                      'scaler': scaler.state_dict(),
                                      'step': step, 'best': best, 'seconds': seconds})
        loss_sum.zero_()
        logged_step = step
        clock = time.perf_counter()

    # --- the end ---
    if rank == 0 and step == data.steps:
        from parts.pictures import draw_losses
        draw_losses(out, data.floor)
    wait_for_all()  # none leaves while another still saves
    say_goodbye(out, run, step, data, best)
    return 128 + (stop.signal or signal.SIGTERM) if step < data.steps else 0  # as a shell says it


# --- to begin, or to go on ---

def begin_or_go_on(settings, out):
    """(the settings, None) to begin; (the run's settings, its last state) to go on."""
    settings.data_dir = str(user_path(settings.data_dir))
    auto = settings.init_from == 'auto'
    goes_on = settings.init_from == 'resume' or (auto and has_checkpoint(out))
    if not goes_on:
        if not auto and (has_checkpoint(out) or os.path.exists(out / 'model.safetensors')):
            advice = 'go on with it (--init_from=resume), or ' if has_checkpoint(out) else ''
            raise UserError(f'{out} already holds a run; {advice}name another --out_dir')
        ours = is_log(out / 'log.csv')
        for name in ('README.md', 'meta.json', 'config.json', 'tokenizer.json', 'log.csv'):
            if os.path.exists(out / name) and not ours:
                raise UserError(f"{out} holds a {name} that may be somebody's own, for no log.csv "
                                'of train.py is there; name another --out_dir')
        return settings, None
    checkpoint = load_checkpoint(out)
    run = adopt(settings, checkpoint['settings'], f'the run in {out} was started with',
                f'leave it out, or begin from its model: --init_from={out} and another --out_dir')
    # a loss over other tokens is no mark to beat, nor is that of a model that is not there
    same_tokens = run.eval_tokens == checkpoint['settings']['eval_tokens']
    if not same_tokens or not os.path.exists(out / 'model.safetensors'):
        checkpoint['best'] = math.inf
    # what was measured or decided is not measured again: on a busy machine it might come out anew
    decided = {'dtype': checkpoint['dtype'],
               'compile': 'true' if checkpoint['compiled'] else 'false'}
    for name, value in decided.items():
        if name not in settings.given or getattr(run, name) == 'auto':
            setattr(run, name, value)
    if run.device == 'auto' and 'device' not in settings.given:
        run.device = checkpoint['device']
    return run, checkpoint


def claim_folder(out, begins):
    """Lock the folder. A run that was killed in its first save left a model without a state; where
    --init_from=auto begins anew there, that model is renamed and not written over.
    """
    lock_folder(out)
    sweep(out)
    model_file = out / 'model.safetensors'
    if begins and model_file.exists():
        print0(f'{model_file} has no state.pt to go on from; it is now {set_aside(model_file)}')


def adopt(settings, fixed, whose, advice):
    """The settings, with those in `fixed` in place of the defaults.

    A flag that a person gave must agree with them, or UserError is raised: '{whose} lr=0.1, not
    0.2; {advice}'.
    """
    run = SimpleNamespace(**vars(settings))
    for name, value in fixed.items():
        if name not in settings.given:
            setattr(run, name, value)
        elif getattr(run, name) != value and name not in MAY_CHANGE:
            raise UserError(f'{whose} {name}={value}, not {getattr(run, name)}; {advice}')
    return run


def kept(run):
    """The settings that state.pt holds: {name: value}."""
    return {name: value for name, value in vars(run).items() if name not in NOT_KEPT}


def check_settings(run):
    """Raise UserError where a number makes no sense, and say which does nothing."""
    least = dict.fromkeys(('batch_size', 'epochs', 'd_model', 'n_layers'), 1) | {'chunk_size': 2}
    least |= dict.fromkeys(('minutes', 'lr', 'n_tokens', 'micro_batch', 'table_decay',
                            'eval_interval', 'eval_tokens', 'log_interval'), 0)
    for name, n in least.items():
        if getattr(run, name) < n:
            raise UserError(f'{name}={getattr(run, name)}: it takes {n} or more')
    if run.optimizer not in ('muon', 'adamw'):
        raise UserError(f"optimizer='{run.optimizer}': it is 'muon' or 'adamw'")
    if run.optimizer == 'adamw' and run.table_decay:
        print0('table_decay does nothing with --optimizer=adamw')
    if not 0 <= run.read_share <= 1:
        raise UserError(f'read_share={run.read_share}: it takes 0 to 1')
    if not 0 <= run.dropout < 1:
        raise UserError(f'dropout={run.dropout}: it takes 0 or more and less than 1')
    if not 0 <= run.seed < 2 ** 63:
        raise UserError(f'seed={run.seed}: it takes a whole number from 0 to 2^63 - 1')


def check_data(run, meta, vocabulary, checkpoint):
    """Raise UserError where the data are not those of the run, or where the processes, which may
    stand on several machines, do not agree on data, settings and step. vocabulary: its files.
    Where another text validates, the checkpoint's best loss is forgotten.
    """
    check_texts(Path(run.data_dir), meta)
    state = checkpoint or {'step': 0, 'checksum': 'none'}
    agreed = {  # the causes first: who has no state.pt has none of its settings either
        'the last step': state['step'],
        'the checksum of state.pt': state['checksum'],
        'the checksum of train.bin': meta.get('train_crc32'),
        'the checksum of val.bin': meta.get('val_crc32'),
        'the checksum of the vocabulary': zlib.crc32(b''.join(vocabulary.values())),
    }
    agreed |= {name: value for name, value in kept(run).items()
               if name not in ('data_dir', 'device', 'show')}  # each machine has its own
    check_same_everywhere(agreed)
    if checkpoint and checkpoint['data'] != meta.get('train_crc32'):
        raise UserError(f'{run.data_dir} holds other tokens than the run in {run.out_dir} was '
                        'trained on; name the folder that has them (--data_dir=), prepare them as '
                        'they were, or begin anew in another --out_dir')
    if checkpoint and checkpoint.get('validation') != meta.get('val_crc32'):
        checkpoint['best'] = math.inf  # a loss over another text is no mark to beat


# --- how much fits into some minutes ---

def fit_to_minutes(run, meta, base, device):
    """The settings, with a shape and a length that let the whole command take run.minutes.

    The peak of this machine tells the shape of the model. Some steps of that shape, with a model
    that is thrown away, tell how many will fit. What a person gave stands, and of a model that is
    fine-tuned only rows and length are chosen. A run that goes on has what was chosen among its
    settings, so no clock can change it.
    """
    start = time.perf_counter()
    if 'n_tokens' in run.given:
        raise UserError(f'minutes={run.minutes:g} and n_tokens={run.n_tokens:g}: both say how much '
                        'is read; leave one of them out')
    if run.optimizer == 'adamw' and 'lr' not in run.given:
        raise UserError(f'minutes={run.minutes:g} chooses a learning rate for Muon; with '
                        '--optimizer=adamw say one, as --lr=3e-3')
    run = SimpleNamespace(**vars(run))
    n_tokens = meta['train_tokens']
    dtype, _ = from_rank0(select_dtype(run.dtype, device))
    peak = from_rank0(matmul_peak(device, dtype)) * world_size
    flops = 60 * run.minutes * peak * USUAL_SHARE
    given = {name: getattr(run, name) for name in ('d_model', 'n_layers', 'epochs')
             if name in run.given}
    epochs = given.get('epochs', 0)
    if base:  # its shape is known; a short text takes fewer rows, for eight steps an epoch
        n_rows = max(1, n_tokens // (8 * run.chunk_size))
        shape = {'batch_size': min(n_rows, run.batch_size)}
    else:
        shape = shape_for(n_tokens, meta['vocab_size'], flops, run.chunk_size, **given)
    shape['batch_size'] = math.ceil(shape['batch_size'] / world_size) * world_size
    chosen = choose(run, shape)

    model, step_seconds, step_tokens, dtype, compiled, measuring = time_steps(
        run, meta, flops, dtype, device)
    n_weights = sum(p.numel() for p in model.parameters())
    spent = time.perf_counter() - start
    # The run itself begins like this, too. What was compiled is in a cache by then.
    again = (spent - measuring) / (2 if compiled else 1)
    seconds = from_rank0((60 * run.minutes - spent - again) * TRAINING_SHARE)
    budget = from_rank0(step_tokens / step_seconds) * seconds
    if budget < max(1, epochs) * step_tokens:
        raise UserError(f'minutes={run.minutes:g}: to begin takes {spent + again:.0f} s here, and '
                        f'a step {step_seconds:.2g} s')
    length = length_for(n_tokens, n_weights, run.d_model, budget, epochs)
    if 'dropout' in run.given:
        length['table_decay'] = 1.0 if run.dropout else 0.0  # they go together
    if base:
        del length['dropout']  # it has its own
    if base or run.optimizer == 'adamw':
        del length['table_decay']
    chosen |= choose(run, {**length, 'dtype': str(dtype).removeprefix('torch.'),
                           'compile': 'true' if compiled else 'false'})
    flags = ' '.join(f'--{name}={value}' for name, value in chosen.items())
    print0(f'{run.minutes:g} minute{"s" * (run.minutes != 1)} here: {flags}')
    if budget > 1.1 * run.epochs * n_tokens:
        print0(f'--epochs={run.epochs} takes less time, so it ends sooner')
    return run


def choose(run, values):
    """Set in `run` what a person did not give; returns what was set, {name: value}."""
    chosen = {name: value for name, value in values.items() if name not in run.given}
    vars(run).update(chosen)
    return chosen


def time_steps(run, meta, flops, dtype, device):
    """(a model, the seconds of a step, its tokens, the number format, whether it is compiled, the
    seconds that the measuring took). flops: of the run.
    """
    data = Data(run, meta, rank, world_size)
    micro_rows = choose_micro_rows(run, data)
    model = new_model(run, data, meta).to(device)
    batch = data.batch(0)
    rating_ids = torch.tensor(data.rating_ids, device=device)
    compiled = worth_compiling(run.compile, flops / world_size, device, run.minutes)
    network, dtype, compiled = make_network(
        model, batch, rating_ids, micro_rows, dtype, compiled, device)
    optimizer = make_optimizer(model, run.optimizer, run.lr, 0, False, dtype)
    synchronize = getattr(torch, device.type).synchronize

    def seconds_of(n_steps):
        synchronize()
        start = time.perf_counter()
        for _ in range(n_steps):
            for _ in range(data.rows_per_rank // micro_rows):
                trial_loss(network, batch, micro_rows, rating_ids, dtype, device).backward()
            optimizer.step()
            optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - start

    # The first few steps warm up, and show how many more fit, in five parts, of which the median
    # leaves out moments in which the machine was busy. All processes must make the same number.
    first = seconds_of(3)
    measuring = min(60 * run.minutes * TRIAL_SHARE, MOST_TRIAL_SECONDS)
    n_steps = from_rank0(max(1, int(measuring / (first / 3) / 5)))
    parts = [seconds_of(n_steps) for _ in range(5)]
    step_seconds = statistics.median(parts) / n_steps
    return model, step_seconds, data.tokens_per_step, dtype, compiled, first + sum(parts)


# --- the model before the first step ---

def new_model(run, data, meta, checkpoint=None):
    """An untrained model of the shape that the checkpoint or the settings tell."""
    torch.manual_seed(run.seed)
    if checkpoint:
        return build(Config(**checkpoint['config']))
    shape = {
        'vocab_size': meta['vocab_size'],
        'eos': data.eos,
        'bos': data.unrated_id,
        'd_ffn': run.d_ffn or math.ceil(run.d_model * 8 / 3 / 64) * 64,
        'nhead': run.nhead or usual_heads(run.d_model),
    }
    for name in ('arch', 'd_model', 'n_layers', 'chunk_size', 'window', 'dropout'):
        shape[name] = getattr(run, name)
    try:
        return build(Config(**shape))
    except ValueError as error:
        raise UserError(error) from None


def usual_heads(d_model):
    """One head per 64 of d_model or, where that does not divide it, the number nearest to that."""
    fitting = [n for n in range(1, d_model // 2 + 1) if d_model % (2 * n) == 0]
    return min(reversed(fitting), key=lambda n: abs(n - d_model / 64), default=1)


def fine_tune(run, meta):
    """(settings, the model that init_from names, what the next model card tells of it)."""
    from parts.folder import base_model  # here, for it is slow to import
    base, origin = base_model(run.init_from, Path(run.data_dir, run.mode), meta, run.dropout)
    config = base.config
    if 'chunk_size' in run.given:
        config.chunk_size = run.chunk_size
    fixed = {'bigram_init': False}
    for name in ('arch', 'd_model', 'd_ffn', 'n_layers', 'nhead', 'window', 'chunk_size'):
        fixed[name] = getattr(config, name)
    run = adopt(run, fixed, f'the model in {run.init_from} has', 'leave it out')
    return run, base, origin


def first_weights(model, run, data, base, checkpoint):
    """Those of the checkpoint, of the base model, counted, or random.

    Returns (seconds of training so far, whether embedding and head hold what was learned already).
    """
    if checkpoint:
        model.load_state_dict(checkpoint['model'])
        return checkpoint['seconds'], checkpoint['warm_start']
    if base or not run.bigram_init or run.d_model < 3:        # counting needs three coordinates
        return 0.0, bool(base)
    start = time.perf_counter()
    if rank == 0:  # the other processes get these weights from DistributedDataParallel
        init_from_bigrams(model, data.tokens)
    return time.perf_counter() - start, True                  # counting is part of training


def choose_computation(model, run, data, device):
    """(number format, whether to compile, peak of all processes in operations a second)."""
    n_flops = matmul_flops(model, data.row_length) * data.steps * data.tokens_per_step
    compiled = worth_compiling(run.compile, n_flops / world_size, device)
    dtype, how = from_rank0(select_dtype(run.dtype, device))
    peak = from_rank0(matmul_peak(device, dtype)) * world_size
    n_parameters = sum(p.numel() for p in model.parameters())
    spins = os.environ.get('GOMP_SPINCOUNT')
    spins = f', threads that wait spin {spins} times' if spins else ''
    n_val, all_val = run.eval_tokens * 1e6, len(data.val_tokens)
    part = f'; validation: the first {n_val:,.0f} of {all_val:,}' if 0 < n_val < all_val else ''
    print0(f'{run.arch} of {n_parameters:,} parameters on {world_size} × {device.type} in {how}, '
           f'{"" if compiled else "not "}compiled, measured peak {peak / 1e12:.2f} TFLOP/s{spins}\n'
           f'{data.steps:,} steps of {data.tokens_per_step:,} tokens: '
           f'{run.epochs} × {data.tokens_per_epoch:,}{part}')
    return dtype, compiled, peak


def choose_micro_rows(run, data):
    """How many rows of T a process reads at a time: equal parts, for one size is compiled."""
    if not run.micro_batch:
        return data.rows_per_rank
    rows = max(1, min(run.micro_batch * run.chunk_size // data.row_length, data.rows_per_rank))
    while data.rows_per_rank % rows:
        rows -= 1
    return rows


def make_network(model, batch, rating_ids, micro_rows, dtype, compiled, device):
    """What the loop calls in place of the model: the same one, compiled where that pays, inside of
    DistributedDataParallel where there are several processes.

    batch: that of the first step. Returns (network, dtype, whether it is compiled).
    """
    def trial(network, n_rows):
        return trial_loss(network, batch, n_rows, rating_ids, dtype, device)

    if compiled:
        # Four rows would do for the plain pass, and need little memory. But with dropout, what is
        # dropped depends on the number of rows, so both passes need the same.
        plain_rows = micro_rows if model.config.dropout else min(4, micro_rows)
        compiled, dtype = compile_and_check(
            model, lambda: trial(model, plain_rows), lambda: trial(model, micro_rows),
            dtype, device)
    if world_size == 1:
        return model, dtype, compiled
    devices = [device.index] if device.type == 'cuda' else None
    network = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    # After its first pass DDP arranges its buffers anew, and sums over several processes may then
    # differ in the last bit. So every run makes that pass before its first step, resumed or not.
    trial(network, micro_rows).backward()
    model.zero_grad()
    return network, dtype, compiled


def trial_loss(network, batch, n_rows, rating_ids, dtype, device):
    """The loss of n_rows of a batch, for timing and checking. Only the first four have targets, so
    that 4 rows and 64 give the same loss.
    """
    x, y, ratings = batch.rows(0, n_rows, device)
    few = torch.arange(n_rows, device=device)[:, None] < 4    # (B, 1)
    y, ratings = y.where(few, -1), ratings.where(few, -1)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        token_loss, rating_loss = network(x, y, ratings, rating_ids)
    # divided by four rows, not by all their tokens: float16 would round that to zero
    return (token_loss + RATING_WEIGHT * rating_loss) / 4


def validation_plan(run, data):
    """(eval_interval, eval_tokens in millions): as given or, where not, a twentieth of the time.

    A validation token has no backward pass and costs at most half a training token. So a tenth of
    the run's tokens is spent: on ten validations or, if they had under 20,000 each, on fewer.
    """
    interval, million = run.eval_interval, run.eval_tokens
    if 'eval_tokens' not in run.given:
        budget = data.steps * data.tokens_per_step / 1e6 / 10
        n_validations = min(10, max(1, int(budget / 0.02)))
        if 'eval_interval' in run.given:
            n_validations = max(1, data.steps // (interval or max(1, data.steps // 10)))
        else:
            interval = math.ceil(data.steps / n_validations)
        million = min(million, budget / n_validations)
    return interval, million


# --- now and then ---

@torch.no_grad()
def validate(model, data, val_rows, micro_rows, device, autocast):
    """Mean loss in nats per token over the validation rows, shared out among the processes."""
    rows_per_pass = max(1, micro_rows * data.row_length // data.chunk_size)
    sums = torch.zeros(2, dtype=torch.float64)                # nats, targets
    model.eval()
    for first in range(rank * rows_per_pass, len(val_rows), world_size * rows_per_pass):
        x, y = data.validation_batch(val_rows[first:first + rows_per_pass])
        with autocast:
            loss, _ = model(x.to(device), y.to(device))
        sums += torch.tensor([loss.item(), (y >= 0).sum().item()], dtype=torch.float64)
    model.train()
    if world_size > 1:
        sums = all_reduce(sums.to(device)).cpu()
    return (sums[0] / sums[1]).item()


def check_finite(out, step, lr, *numbers):
    """End the run if a number is NaN or infinite, before anything good is overwritten."""
    if all(number is None or math.isfinite(number) for number in numbers):
        return
    good = f'{out} keeps the last good state. ' if has_checkpoint(out) else ''
    print0(f'the loss is NaN or infinite by step {step:,}, learning rate {lr:.2e}; {good}'
           'Start again with a smaller --lr.')
    raise SystemExit(1)


def log_row(data, step, seconds, train_loss, val_loss, lr):
    """A line of log.csv: {column: value}, None where there was no validation."""
    return {
        'step': step,
        'tokens': step * data.tokens_per_step,
        'seconds': seconds,
        'train_loss': train_loss,
        'val_loss': val_loss,
        'bits_per_char': None if val_loss is None else data.bits_per_char(val_loss),
        'lr': lr,
    }


def print_row(row, data, speed, share_of_peak, stop):
    """Print a log_row(). speed: tokens a second. (With read_share the training loss is higher than
    the validation loss, where no rating is hidden.) Where the terminal or the `| tee` is gone, ask
    the run to save and stop.
    """
    validation = ''
    if row['val_loss'] is not None:
        bits = row['bits_per_char']
        validation = f'  validation {row["val_loss"]:.3f}  {bits:.4f} bits/char'
        if data.floor:
            validation += f' ({bits / data.floor - 1:+.1%} from the floor)'
    # a machine that was busy as its peak was measured has more than that peak: say nothing then
    share = f'  {share_of_peak:.0%} of peak' if share_of_peak <= 1 else ''
    minutes = (data.steps * data.tokens_per_step - row['tokens']) / speed / 60
    try:
        print(f'step {row["step"]:,}/{data.steps:,}  loss {row["train_loss"]:.3f}{validation}  '
              f'{speed:,.0f} tokens/s{share}  {minutes:.1f} min left', flush=True)
    except OSError:
        stop.signal = stop.signal or signal.SIGTERM


def show_texts(model, data, files, device):
    """Print a short text of each rating, always of the same seed: one can watch it learn. files: of
    the vocabulary, {name: content}.
    """
    name = data.meta['vocabulary']
    vocabulary = VOCABULARIES[name](files[name])
    starts = [(f'{RATING_NAMES[n][0]:9}  ', data.rating_ids[n]) for n in data.ratings]
    model.eval()
    for name, start in starts or [('', data.unrated_id)]:
        idx = torch.tensor([[data.eos, start]], device=device)
        generator = torch.Generator(device).manual_seed(0)    # of its own: training's draws on
        columns = generate(model, idx, 40, vocabulary.banned, temperature=0.8, generator=generator)
        ids = [column.item() for column in columns]
        text = vocabulary.decode([i for i in ids if i != data.eos])
        print(f'    {name}{printable(text)}')
    model.train()


def save_best(out, model, run, data, meta, files, row):
    """Write the model folder. files: of the vocabulary, {name: content}. row: of the log, with the
    validation that was the best so far.
    """
    from parts.folder import model_card, save_model  # here, for it is slow to import
    facts = {
        **meta,
        'ratings': data.ratings,                              # that the texts have
        'step': row['step'],
        'tokens': row['tokens'],
        'training_flops': matmul_flops(model, data.row_length) * row['tokens'],
        'val_loss': row['val_loss'],
        'bits_per_char': row['bits_per_char'],
        'data_dir': run.data_dir,
    }
    card = model_card(model, facts, out.resolve().name)
    save_model(model, out, facts, {**files, 'README.md': card.encode(errors='replace')})


def say_goodbye(out, run, step, data, best):
    """Say how the run ended, and what one can do next."""
    folder = shlex.quote(str(out))
    if step < data.steps:
        start = 'python' if world_size == 1 else 'torchrun (its flags as before)'
        print0(f'stopped at step {step:,} of {data.steps:,}; '
               f'go on with: {start} train.py --out_dir={folder} --init_from=resume')
        return
    print0(f'best validation loss {best:.4f}, kept in {out}; '
           f'write with: python sample.py --model_path={folder}')
    if run.arch == 'decoder' and data.meta['vocabulary'] != 'tokenizer.json':
        page = shlex.quote(f'{out}/page.html')
        print0(f'look inside: python sample.py --model_path={folder} --page={page}')


if __name__ == '__main__':
    run_distributed(main)
