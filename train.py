"""Train a model on the tokens that prepare.py wrote: one loop for a laptop, a GPU, or many.

    python train.py config/demo.py                                     one process, CPU or GPU
    torchrun --standalone --nproc_per_node=4 train.py config/kr3.py    four GPUs, the same losses
    python train.py --out_dir=out/demo --init_from=resume              go on where a run stopped
    python train.py --init_from=out/kr3 --data_dir=data/mine --out_dir=out/mine    fine-tune a model folder

    train.bin → shuffled reviews → rows (R, T+1) → batch (B, T+1) of step s → loss → gradients → optimizer → out_dir/

The batch of step s is a function of (data, seed, s) and nothing else, so a resumed run is the run that never stopped, bit
for bit, and four processes draw the curve of one. Read main() first, then what it calls: data/rows.py makes the rows, data/counts.py the first
weights, data/muon.py the steps; data/state.py keeps what resuming needs.
"""
import math
import os
import re
import signal
import sys
import time
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from configurator import configure, declared, refuse, say
from data.card import card
from data.counts import start_from_counts
from data.device import choose, matmul_flops, matmul_peak
from data.muon import Muon
from data.pictures import draw_losses
from data.rows import inputs_and_targets, pack, read_bin, read_meta, row_length
from data.state import add_to_log, begin_log, claim, keep_state, last_state
from data.tune import model_to_tune
from model import Config, build, save

data_dir = 'data/kr3'      # what prepare.py wrote
out_dir = 'out/kr3'        # where the model folder, the state and the log go
mode = 'tokenizer'         # which of data_dir's vocabularies: tokenizer or manual
init_from = 'scratch'      # scratch; resume: go on with the run in out_dir; or a model folder or Hub repository to fine-tune
arch = 'decoder'           # decoder: attention; ffn: an MLP over the last `window` tokens
d_model = 256              # width of the model
d_ffn = 0                  # width inside its MLPs (0: 8/3 of d_model, in 64s)
n_layers = 6               # depth
nhead = 0                  # attention heads (0: one per 64 of d_model)
window = 8                 # ffn: how many tokens it looks back
chunk_size = 256           # tokens in a row, and how far attention looks back
tied = False               # one matrix for embedding and head
dropout = 0.0              # share of activations dropped in training; 0.1 when the data is repeated often
batch_size = 16            # rows per optimizer step, over all processes together
micro_batch = 0            # rows per forward pass of one process, to fit its memory (0: its whole share)
epochs = 1                 # passes over the data
n_tokens = 0.0             # million tokens per epoch (0: all there are)
counts = True              # begin as a bigram model, by counting which token follows which (needs tied = False)
optimizer = 'muon'         # muon: Muon for the matrices, AdamW for the rest; adamw: AdamW for all, the classic
lr = 6e-3                  # peak learning rate
weight_decay = 0.1         # pull of the matrices towards zero, per step and unit of learning rate
warmup = 0                 # steps of rising learning rate (0: a fiftieth of the run)
grad_clip = 1.0            # longest gradient allowed (0: any)
eval_interval = 0          # steps between validations, each saving the state (0: ten a run)
eval_tokens = 0.1          # million validation tokens, the same ones every time (0: all there are)
log_interval = 0           # steps between lines of the log (0: forty a run)
seed = 0                   # of initial weights, order of the data, dropout
device = 'auto'            # cuda, mps, cpu, or auto: the first of them that is there
dtype = 'auto'             # bfloat16, float16, float32, or auto: the fastest this device has in hardware
compile = True             # torch.compile: 1.2 to 1.5 times as fast on two cores, after half a minute
given = configure(globals())

MAY_CHANGE = {'micro_batch', 'eval_interval', 'eval_tokens', 'log_interval', 'device', 'dtype', 'compile'}
RUN = [name for name in declared(Path(__file__).read_text('utf-8')) if name not in ('init_from', 'out_dir')]  # what makes a run this run
rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def add_up(tensor):
    """The sum of what every process holds, on each of them."""
    if world > 1:
        dist.all_reduce(tensor)
    return tensor


def make_optimizers(model, device, kind):
    """Every parameter in exactly one group. Rates are for AdamW's steps, about 1 in size; Muon's are scaled to the same."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and 'embed' not in name and 'lm_head' not in name]
    gains = [p for p in model.parameters() if p.ndim == 1]
    table = [model.model.embed_tokens.weight]
    head = [] if tied else [model.lm_head.weight]
    fused = dict(betas=(0.9, 0.99), fused=device.type in ('cpu', 'cuda'))
    if optimizer == 'adamw':
        opts = [torch.optim.AdamW([dict(params=matrices + table + head, weight_decay=weight_decay), dict(params=gains, weight_decay=0.0)], lr=lr, **fused)]
    elif optimizer == 'muon':
        # Entries of the embedding are of size 1, so it takes longer steps than the rest. What was counted or trained needs but a touch:
        # 4 and 0.3 ended at 4.41 bits/char after 100,000 tokens, 10 and 1 at 4.47.
        far, near = (1, 1) if tied else (4, 0.25) if counts or init_from != 'scratch' else (25, 1)
        opts = [torch.optim.AdamW([dict(params=table, lr=far * lr), dict(params=head, lr=near * lr), dict(params=gains)], lr=lr, weight_decay=0.0, **fused),
                Muon(matrices, lr, weight_decay, kind)]
    else:
        refuse(f"optimizer='{optimizer}': it is 'muon' or 'adamw'")
    grouped = [id(p) for o in opts for g in o.param_groups for p in g['params']]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in model.parameters()}
    for g in (g for o in opts for g in o.param_groups):
        g['peak'] = g['lr']
    return opts


def schedule(step, steps):
    """Share of the peak learning rate: up in a line, down along half a cosine to zero at the last step (arXiv:1608.03983)."""
    rise = warmup or max(1, steps // 50)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def adopt(held, whose):
    """Take over the settings that a run or a model goes by, whatever the defaults say today; a flag that says otherwise is refused."""
    for name, value in held.items():
        if name in given and globals()[name] != value and name not in MAY_CHANGE:
            refuse(f'{whose} {name}={value}, not {globals()[name]}; leave --{name} out')
        if name not in given:
            globals()[name] = value


def check(out):
    """Everything that can be wrong before an hour of work is wrong now. Returns meta, and the state to resume from or None."""
    state = None
    if init_from == 'resume':
        if not (out / 'state.pt').exists() and not (out / 'state.before.pt').exists():
            refuse(f'{out} holds no run to resume (no state.pt)')
        state = last_state(out)
        adopt(state['settings'], f'the run in {out} was started with')
    elif (out / 'state.pt').exists() or (out / 'model.safetensors').exists():
        refuse(f'{out} already holds a run; go on with it (--init_from=resume), or name another --out_dir')
    for name, least in dict(batch_size=1, epochs=1, lr=0, n_tokens=0, micro_batch=0, warmup=0, weight_decay=0, chunk_size=2).items():
        if globals()[name] < least:
            refuse(f'{name}={globals()[name]}: it takes {least} or more')
    if batch_size % world:
        refuse(f'batch_size={batch_size} does not divide among {world} processes')
    return read_meta(data_dir, mode), state


def main():
    out = Path(out_dir)
    meta, state = check(out)
    try:
        dev, kind = choose(device, dtype)
    except ValueError as e:
        refuse(e)
    if rank == 0:
        claim(out)
    if world > 1:
        dist.init_process_group('nccl' if dev.type == 'cuda' else 'gloo')
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True, warn_only=True)  # sums in a fixed order, or two runs part ways in the last bit
    torch.utils.deterministic.fill_uninitialized_memory = False  # its other half, which costs time and finds only bugs
    asked = []

    def ask(number, frame):
        if asked and number == signal.SIGINT and time.monotonic() > asked[-1][1] + 1:  # sooner it is torchrun, which passes on what all have heard
            os._exit(130)  # Ctrl-C twice: at once
        asked.append((number, time.monotonic()))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    eos, folder, about, base = meta['eos'], Path(data_dir, mode), {}, None
    if state:
        about = state['about']
    elif init_from != 'scratch':
        try:
            base, about = model_to_tune(init_from, folder, meta, dropout)
        except (OSError, ValueError, LookupError, TypeError) as e:
            refuse(f'{init_from} cannot be fine-tuned: {e}')
        base.config.chunk_size = chunk_size if 'chunk_size' in given else min(chunk_size, base.config.chunk_size)
        adopt({**{name: getattr(base.config, name) for name in ('arch', 'd_model', 'd_ffn', 'n_layers', 'nhead', 'window', 'chunk_size', 'tied')}, 'counts': False},
              f'the model in {init_from} has')
    meta, T = {**meta, **about}, chunk_size
    vocabulary = {file: (folder / file).read_bytes() for file in ('tokenizer.json', 'tokenizer_config.json', meta['vocabulary'])}
    data, starts = read_bin(folder / 'train.bin', meta, 'train')
    val_data, val_starts = read_bin(folder / 'val.bin', meta, 'val')

    mark = zlib.crc32(data)
    if state and state['data'] != mark:
        refuse(f'{folder}/train.bin is not what the run in {out} was trained on; prepare it as it was, or begin anew in another --out_dir')

    # how long the run is follows from the data
    tokens = int(min(n_tokens * 1e6, len(data) - 1)) if n_tokens else len(data) - 1
    steps_per_epoch = tokens // (batch_size * T)
    steps = epochs * steps_per_epoch
    if not steps:
        refuse(f'{tokens:,} tokens do not fill one batch of {batch_size} rows of {T}; take a smaller --batch_size or --chunk_size, or more data')
    every = eval_interval or max(1, steps // 10)
    log_every = log_interval or max(1, steps // 40)

    lengths = np.diff(starts)
    row = row_length(lengths, T)
    rows_per_step = batch_size * T // row

    @lru_cache(1)
    def epoch_rows(epoch):
        """The rows of an epoch: all reviews shuffled and packed, or as many of them as n_tokens asks for."""
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(starts) - 1)
        count = np.searchsorted(lengths[order].cumsum(), steps_per_epoch * batch_size * T) + 1
        rows = pack(data, starts, order[:count], row, eos)[:steps_per_epoch * rows_per_step]
        return rows[rng.permutation(len(rows))]

    limit = eval_tokens * 1e6 or math.inf
    val_rows = pack(val_data, val_starts, range(max(1, int((val_starts[1:] <= limit).sum()))), T, eos)

    # the model
    torch.manual_seed(seed)
    if state and state['step'] >= steps:
        say(f'the run in {out} is complete: {steps:,} steps')
        return
    if not base:
        try:
            base = build(Config(**state['config']) if state else Config(
                vocab_size=meta['vocab_size'], arch=arch, d_model=d_model, d_ffn=d_ffn or -(-d_model * 8 // 3 // 64) * 64, n_layers=n_layers,
                nhead=nhead or max(1, round(d_model / 64)), chunk_size=T, window=window, eos=eos, bos=meta['starts']['unknown'], tied=tied, dropout=dropout))
        except ValueError as e:
            refuse(e)
    raw = base.to(dev)
    optimizers = make_optimizers(raw, dev, kind)
    scaler = torch.amp.GradScaler(dev.type, enabled=kind == torch.float16)
    begin, best, seconds = 0, math.inf, 0.0
    if counts and not tied and d_model > 2 and not state and rank == 0:  # the other processes get the first one's weights
        clock = time.perf_counter()
        start_from_counts(raw, data)
        seconds = time.perf_counter() - clock
    if state:
        raw.load_state_dict(state['model'])
        for opt, saved in zip(optimizers, state['optimizers']):
            opt.load_state_dict(saved)
        scaler.load_state_dict(state['scaler'])
        begin, best, seconds = state['step'], state['best'], state['seconds']
    share = rows_per_step // world
    micro = min(micro_batch * T // row or share, share)
    peak = matmul_peak(dev, kind) * world
    say(f'{arch} of {sum(p.numel() for p in raw.parameters()):,} parameters on {world} × {dev.type} in {str(kind).removeprefix("torch.")}, '
        f'measured peak {peak / 1e12:.2f} TFLOP/s\n{steps:,} steps of {batch_size * T:,} tokens: {epochs} × {tokens:,}; {len(val_rows) * T:,} validation tokens')

    model = raw
    if compile:
        raw.compile(dynamic=False)  # in place: names of parameters stay as they are
    if world > 1:
        model = DistributedDataParallel(raw, device_ids=[dev.index] if dev.type == 'cuda' else None)
    autocast = torch.autocast(dev.type, kind, enabled=kind != torch.float32)

    def forward_backward(rows):
        """Gradients of the mean loss over the whole global batch, rows (rows_per_step, row+1). Returns this process's share of that loss."""
        goals = int((~((rows[:, :-1] == eos) & (rows[:, 1:] == eos))).sum())
        mine, total = rows[rank * share:(rank + 1) * share], 0.0
        for i in range(0, share, micro):
            x, y = inputs_and_targets(mine[i:i + micro], eos, dev)
            if world > 1:
                model.require_backward_grad_sync = i + micro >= share  # the processes talk once a step
            with autocast:
                loss = model(x, y) / goals
            scaler.scale(loss * world).backward()  # times world, because DDP averages what we want summed
            total = total + loss.detach()
        return total

    @torch.no_grad()
    def validate():
        """Mean loss per token over the validation rows, shared out among the processes."""
        raw.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        wide = max(micro * row, 4096) // T  # rows; nothing is kept for a backward pass
        for i in range(rank * wide, len(val_rows), world * wide):
            x, y = inputs_and_targets(val_rows[i:i + wide], eos, dev)
            with autocast:
                sums += torch.tensor([raw.forward(x, y).item(), (y >= 0).sum().item()], dtype=torch.float64)  # not compiled: a second compilation pays late
        raw.train()
        nats, count = add_up(sums.to(dev) if world > 1 else sums).tolist()
        return nats / count

    raw.train()
    first = epoch_rows(begin // steps_per_epoch)[:rows_per_step]
    try:  # the first pass compiles; it is thrown away, so that the clock measures training
        forward_backward(first)
    except torch._dynamo.exc.TorchDynamoException as e:
        say(f'not compiled: {str(e).strip().splitlines()[0]}')
        torch._dynamo.reset()
        raw._compiled_call_impl = None
        forward_backward(first)
    for opt in optimizers:
        opt.zero_grad(set_to_none=True)

    if rank == 0:
        begin_log(out, begin)
    to_bits = (meta['val_tokens'] - 1) / meta['val_chars'] / math.log(2)
    floor = meta.get('floor_bits_per_char')
    running, logged, clock, here = 0.0, begin, time.perf_counter(), seconds
    for step in range(begin, steps + 1):  # one more than there are steps: the last weights are validated too
        stop = add_up(torch.tensor(len(asked), device=dev)).item() > 0 if world > 1 else bool(asked)  # all of them or none
        last, due = step == steps, step % every == 0
        if last or step > begin and (due or stop or step % log_every == 0):
            mean = add_up(torch.as_tensor(running / max(1, step - logged), device=dev)).item()
            seconds += time.perf_counter() - clock
            val = validate() if due or last else None
            if not math.isfinite(mean + (val or 0)):
                say(f'the loss is {mean if val is None else val} by step {step:,}, learning rate {lr * schedule(step - 1, steps):.2e}; {out} keeps the last '
                    'good state. Start again with a smaller --lr.')
                raise SystemExit(1)
            if rank == 0:
                speed = (step - begin) * batch_size * T / max(1e-9, seconds - here)
                report(out, step, steps, mean, val, seconds, speed, matmul_flops(raw, row) * speed / peak, to_bits, floor)
                if val is not None and val < best:
                    best = val
                    scores = {'step': step, 'tokens': step * batch_size * T, 'val_loss': val, 'bits_per_char': val * to_bits, 'data_dir': data_dir}
                    save(raw, out, {**meta, **scores}, {**vocabulary, 'README.md': card(raw, {**meta, **scores}, out.resolve().name).encode()})
                if due or last or stop:
                    keep_state(out, model=raw.state_dict(), optimizers=[o.state_dict() for o in optimizers], scaler=scaler.state_dict(), step=step, best=best,
                               seconds=seconds, settings={name: globals()[name] for name in RUN}, config=vars(raw.config), about=about, data=mark)
            running, logged, clock = 0.0, step, time.perf_counter()
        if last or stop:
            break

        torch.manual_seed((seed * 1_000_003 + step) * 1_000_003 + rank)  # dropout is a function of the step, too
        epoch, at = divmod(step, steps_per_epoch)
        running = running + forward_backward(epoch_rows(epoch)[at * rows_per_step:(at + 1) * rows_per_step])
        for opt in optimizers:
            scaler.unscale_(opt)
            for group in opt.param_groups:
                group['lr'] = group['peak'] * schedule(step, steps)
        if grad_clip:
            torch.nn.utils.clip_grad_norm_(raw.parameters(), grad_clip)
        for opt in optimizers:
            scaler.step(opt)
            opt.zero_grad(set_to_none=True)
        scaler.update()
    if rank == 0:
        draw_losses(out, floor)
    if world > 1:
        dist.barrier()  # none leaves while another still saves
    if step < steps:
        say(f'stopped at step {step:,} of {steps:,}; go on with: python train.py --out_dir={out} --init_from=resume')
        raise SystemExit(128 + (asked[0][0] if asked else signal.SIGTERM))
    say(f'best validation loss {best:.4f}, kept in {out}; write with: python sample.py --model_path={out}')


def report(out, step, steps, loss, val, seconds, speed, used, to_bits, floor):
    """One line for the screen and one for the log."""
    bits = '' if val is None else f'{val * to_bits:.4f}'
    add_to_log(out, step, step * batch_size * chunk_size, f'{seconds:.2f}', f'{loss:.5f}', '' if val is None else f'{val:.5f}', bits, f'{lr * schedule(step, steps):.3e}')
    left = (steps - step) * batch_size * chunk_size / speed if speed else 0
    above = f' ({val * to_bits / floor - 1:+.1%} from the floor)' if val is not None and floor else ''
    print(f'step {step:,}/{steps:,}  loss {loss:.3f}' + (f'  validation {val:.3f}  {bits} bits/char{above}' if val is not None else '')
          + f'  {speed:,.0f} tokens/s  {used:.0%} of peak  {left / 60:.1f} min left', flush=True)


def guarded():
    """main(), with a sentence for what the machine may do to it."""
    try:
        main()
    except torch.OutOfMemoryError:
        refuse(f'the {device} has too little memory for {micro_batch or batch_size // world} rows at once; take a smaller --micro_batch, the result is the same')
    except OSError as e:  # a full disk, a folder gone: what was saved before is whole
        refuse(f'{e}; what was saved before is there still')
    except RuntimeError as e:
        if world == 1 or not re.search('gloo|nccl', str(e), re.IGNORECASE):
            raise
        print(f'process {rank}: another process has ended ({str(e).splitlines()[0]}); what was saved before is there still: --init_from=resume', file=sys.stderr)
        raise SystemExit(1)


if __name__ == '__main__':
    try:
        guarded()
        status = 0
    except SystemExit as e:
        status = e.code
    sys.stdout.flush()
    (os._exit if world > 1 else sys.exit)(status)  # several: at once, for gloo's threads may hold tensors of Python's, and abort when it goes first (pytorch/pytorch#190489)
