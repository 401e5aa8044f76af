"""Train a model on the tokens that prepare.py wrote: one loop for a laptop, a GPU, or many.

    python train.py config/demo.py                                     one process, CPU or GPU
    torchrun --standalone --nproc_per_node=4 train.py config/kr3.py    four GPUs, the same losses
    python train.py --out_dir=out/demo --init_from=resume              go on where a run stopped
    python train.py --init_from=out/kr3 --data_dir=data/mine_kr3 --out_dir=out/mine_kr3 fine-tune

    train.bin → shuffled reviews → rows (R, T+1) → batch (B, T+1) of step s → loss → gradients
    → optimizer → out_dir/

The batch of step s is a function of (data, settings, s) and nothing else, and so is the dropout of
its rows. So a resumed run is the run that never stopped, and four processes draw the curve of one.
Read main() first, then Trainer, then parts/batches.py, parts/bigram.py and parts/optim.py.
"""
import math
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from configurator import configure
from model import Config, build, generate
from parts import checkpoint as run_files
from parts.batches import hide_ratings, inputs_and_targets, read_meta, slice_rows, to_device
from parts.bigram import init_from_bigrams
from parts.compiling import compile_and_check, worth_compiling
from parts.errors import UserError, print0
from parts.optim import (
    LossScaler,
    load_optimizer_states,
    lr_schedule,
    make_optimizers,
    set_learning_rate,
)
from parts.runtime import (
    StopRequest,
    all_reduce,
    explain_failures,
    from_rank0,
    matmul_flops,
    matmul_peak,
    rank,
    run_distributed,
    select_device,
    select_dtype,
    start_process,
    wait_for_all,
    world_size,
)
from parts.setup import NOT_KEPT, fine_tuned_model, load_data, settings_and_checkpoint

data_dir = 'data/kr3'  # what prepare.py wrote
out_dir = 'out/kr3'    # where the model folder, the state and the log go
mode = 'tokenizer'     # which of data_dir's vocabularies: tokenizer or manual
init_from = 'scratch'  # scratch; resume the run in out_dir; a model folder or Hub name to fine-tune
teachers = ''          # model folders, with commas between: learn also from what they say together
arch = 'decoder'       # decoder: attention; ffn: an MLP over the last `window` tokens
d_model = 256          # width of the model
d_ffn = 0              # width inside its MLPs (0: 8/3 of d_model, in 64s)
n_layers = 6           # depth
nhead = 0              # attention heads (0: one per 64 of d_model)
window = 8             # ffn: how many tokens it reads
chunk_size = 256       # longest row in tokens, and how far attention looks back
tied = False           # one matrix for embedding and head
dropout = 0.0          # share of activations dropped in training; 0.1 where data is repeated often
batch_size = 16        # rows of chunk_size per optimizer step, over all processes together
micro_batch = 0        # rows per forward pass of one process, to fit its memory (0: its share)
epochs = 1             # passes over the data
n_tokens = 0.0         # million tokens per epoch, each time another random part (0: all there are)
read_share = 0.7       # share of the rows where the rating is hidden and asked for at the end
read_weight = 10.0     # what a rating counts there, in tokens
counts = True          # begin as a bigram model: count in train.bin what follows what (not if tied)
optimizer = 'muon'     # muon: Muon for the matrices, AdamW for the rest; adamw: AdamW for all
lr = 6e-3              # peak learning rate
weight_decay = 0.1     # pull of the weights towards zero, per step and unit of learning rate
table_decay = 0.0      # pull of embedding and head to zero, per epoch; 1 if data come back often
warmup = 0             # steps of rising learning rate (0: a fiftieth of the run)
grad_clip = 1.0        # longest gradient allowed (0: any)
eval_interval = 0      # steps between validations, each saving the state (0: some ten a run)
eval_tokens = 0.1      # million validation tokens, always the same (0: all); fewer in a short run
log_interval = 0       # steps between lines of the log (0: forty a run)
seed = 0               # of initial weights, order of the data, dropout; 0 to 2^63 - 1
device = 'auto'        # cuda, mps, cpu, or auto: the first of them that is there
dtype = 'auto'         # bfloat16, float16, float32, or auto: the one measured fastest here
compile = 'auto'       # torch.compile: true, false, or auto: where the run is long enough to pay
show = False           # at every validation, show what the model writes by now
wandb = ''             # also log to this project of Weights & Biases (pip install wandb first)
settings = configure(globals())


def main():
    device = select_device(settings.device)
    with explain_failures(device):
        out = Path(settings.out_dir)
        run, checkpoint = settings_and_checkpoint(settings, out)
        meta = read_meta(run.data_dir, run.mode)
        if rank == 0:
            run_files.lock_folder(out)
        start_process(device)
        stop = StopRequest()
        run, base, about = fine_tuned_model(run, meta, checkpoint)
        data = load_data(run, {**meta, **about}, checkpoint)
        if checkpoint and checkpoint['step'] >= data.steps:
            print0(f'the run in {out} is complete: {data.steps:,} steps')
            return 0
        trainer = Trainer(run, data, device, out, checkpoint, base)
        return training_loop(trainer, stop)


def training_loop(trainer, stop):
    """All steps that are left; returns the exit status."""
    while trainer.step < trainer.steps:
        batch, n_targets = trainer.next_batch()
        loss = trainer.forward_backward(batch, n_targets)
        gradient_norm = trainer.clip_gradients()
        trainer.optimizer_step(gradient_norm)
        trainer.count_step(loss)

        last = trainer.step == trainer.steps
        stopping = stop.heard(trainer.device, trainer.step)
        due = last or trainer.step % trainer.eval_interval == 0
        if due or stopping or trainer.step % trainer.log_interval == 0:
            trainer.log(validate=due)
        if due or stopping:
            trainer.save_state()
        if stopping and not last:
            return trainer.stopped(stop)
    return trainer.finished()


class Trainer:
    """A run: the model, what makes it learn, and how far it has come."""

    def __init__(self, run, data, device, out, checkpoint, base):
        self.run, self.data, self.device, self.out = run, data, device, out
        self.batches, self.steps = data.batches, data.steps
        self.eval_interval = run.eval_interval or max(1, self.steps // 10)
        self.log_interval = run.log_interval or max(1, self.steps // 40)
        self.step, self.best, self.seconds = 0, math.inf, 0.0
        self.model = (base or new_model(run, data, checkpoint)).to(device)
        self.parallel = self.model                            # until share_gradients() wraps it
        self.model.config.reads_ratings = data.reads
        self.rating_ids = torch.tensor(data.start_ids[:-1], device=device)
        self.first_weights(checkpoint, base)
        self.teachers = None
        self.choose_computation(checkpoint)

        self.optimizers = make_optimizers(self.model, run.optimizer, run.lr, run.weight_decay,
                                          self.dtype, self.warm_start,
                                          run.table_decay / self.batches.steps_per_epoch,
                                          self.steps,
                                          self.flops_per_token * self.batches.tokens_per_step)
        self.scaler = LossScaler(self.dtype)
        if checkpoint:
            load_optimizer_states(self.optimizers, checkpoint['optimizers'])
            self.scaler.load_state_dict(checkpoint['scaler'])
        if world_size > 1:
            self.share_gradients()

        if rank == 0:
            run_files.start_log(out, self.step)
        if rank == 0 and run.wandb:
            import wandb
            self.wandb = wandb.init(project=run.wandb, name=out.resolve().name, config=vars(run))
        self.first_step, self.first_seconds = self.step, self.seconds
        self.loss_sum, self.steps_since_log = 0.0, 0
        self.clock = time.perf_counter()

    def first_weights(self, checkpoint, base):
        """Those of the checkpoint, or of the base model, or counted ones, or random ones."""
        run = self.run
        counted = run.counts and run.d_model > 2
        self.warm_start = bool(base) or counted
        if checkpoint:
            self.model.load_state_dict(checkpoint['model'])
            self.warm_start = checkpoint['warm_start']
            self.step = checkpoint['step']
            self.best = checkpoint['best']
            self.seconds = checkpoint['seconds']
        elif counted and not base and rank == 0:  # the other processes get the first one's weights
            start = time.perf_counter()
            init_from_bigrams(self.model, self.data.tokens)
            self.seconds = time.perf_counter() - start  # counting is part of training

    def choose_computation(self, checkpoint):
        """Choose number format and compiling: as asked, as measured, or as the run did before."""
        run, device = self.run, self.device
        self.micro_rows = min(self.data.micro_rows, self.data.rows_per_rank)
        self.flops_per_token = matmul_flops(self.model, self.batches.row_length)
        n_tokens = self.steps * self.batches.tokens_per_step
        n_flops = self.flops_per_token * n_tokens / world_size
        compiled = worth_compiling(run.compile, n_flops, device)
        dtype = run.dtype
        if checkpoint and dtype == 'auto':
            dtype = checkpoint['computation']['dtype']
        if checkpoint and run.compile == 'auto':
            compiled = checkpoint['computation']['compiled']
        self.dtype, told = from_rank0(select_dtype(dtype, device))
        self.peak = from_rank0(matmul_peak(device, self.dtype)) * world_size
        n_parameters = sum(p.numel() for p in self.model.parameters())
        print0(f'{run.arch} of {n_parameters:,} parameters on {world_size} × {device.type} '
               f'in {told}, {"" if compiled else "not "}compiled, '
               f'measured peak {self.peak / 1e12:.2f} TFLOP/s\n'
               f'{self.steps:,} steps of {self.batches.tokens_per_step:,} tokens: '
               f'{run.epochs} × {self.data.tokens_per_epoch:,}; '
               f'{self.data.val_rows[:, 1:].size:,} validation tokens')
        self.compiled = compiled
        if compiled:
            checked = compile_and_check(self.model, self.one_pass, self.dtype, device)
            self.compiled, self.dtype = checked

    def share_gradients(self):
        """From now on a backward pass adds up the gradients of all processes."""
        devices = [self.device.index] if self.device.type == 'cuda' else None
        self.parallel = DistributedDataParallel(self.model, device_ids=devices,
                                                gradient_as_bucket_view=True)
        # After its first pass it arranges the gradients anew, and on their place depends in which
        # order three processes are added. A resumed run must not be the only one to arrange them.
        self.one_pass(self.dtype)
        self.model.zero_grad(set_to_none=True)

    # --- one step ---

    def next_batch(self):
        """([x, y, seeds, ratings] of this process's rows, how many targets the step has in all).

        x, y and ratings (B, T), seeds (B,). seeds is None without dropout, ratings without reading.
        """
        first = rank * self.data.rows_per_rank
        end = first + self.data.rows_per_rank
        rows, n_targets = self.batches.rows(self.step, first, end)
        x, y = inputs_and_targets(rows, self.data.eos)
        seeds, ratings = None, None
        if self.run.dropout:
            seeds = self.batches.dropout_seeds(self.step)[first:end]
        if self.data.reads:
            read = self.batches.rows_to_read(self.step, self.run.read_share)[first:end]
            x, ratings = hide_ratings(x, y, read, self.data.eos, self.data.start_ids)
        return [x, y, seeds, ratings], n_targets

    def forward_backward(self, batch, n_targets):
        """Gradients of the mean loss over the whole step. Returns this process's share of the mean
        loss of the tokens."""
        total = 0.0
        n_rows = len(batch[0])
        for i in range(0, n_rows, self.micro_rows):
            if world_size > 1:  # the processes talk once a step
                self.parallel.require_backward_grad_sync = i + self.micro_rows >= n_rows
            micro_batch = slice_rows(batch, i, i + self.micro_rows)
            nats, loss = self.losses(self.parallel, micro_batch, self.dtype)
            # DistributedDataParallel averages gradients; their sum is needed, hence world_size
            (loss / n_targets * self.scaler.scale * world_size).backward()
            total = total + nats.detach() / n_targets
        return total

    def losses(self, model, batch, dtype):
        """(nats of the tokens, what to learn from: the same and the ratings' nats), each a sum.

        batch: [x, y, seeds, ratings], see next_batch().
        """
        x, y, seeds, ratings = to_device(batch, self.device)
        with self.autocast(dtype):
            if ratings is None:
                nats, _ = model(x, y)
                return nats, nats
            nats, rating_nats = model(x, y, ratings, self.rating_ids)
            return nats, nats + self.run.read_weight * rating_nats

    def clip_gradients(self):
        """Shorten the gradient of all parameters together to grad_clip; returns the norm it had."""
        parameters = list(self.model.parameters())
        self.scaler.unscale(parameters)
        longest = self.run.grad_clip or math.inf
        return torch.nn.utils.clip_grad_norm_(parameters, longest)

    def optimizer_step(self, gradient_norm):
        set_learning_rate(self.optimizers, self.lr_at(self.step))
        sound = self.scaler.allows_step(gradient_norm)  # float16 alone may say no
        for optimizer in self.optimizers:
            if sound:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def count_step(self, loss):
        self.step += 1
        self.loss_sum = self.loss_sum + loss
        self.steps_since_log += 1

    def one_pass(self, dtype):
        """Forward and backward of the next step's first micro-batch; returns its loss, of a row:
        that of a token is too small a number for float16."""
        batch, _ = self.next_batch()
        _, loss = self.losses(self.parallel, slice_rows(batch, 0, self.micro_rows), dtype)
        loss = loss / self.micro_rows
        loss.backward()
        return loss.detach()

    def autocast(self, dtype):
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def lr_at(self, step):
        return self.run.lr * lr_schedule(step, self.steps, self.run.warmup)

    # --- between steps ---

    @torch.no_grad()
    def validate(self):
        """Mean loss in nats per token over the validation rows, shared out among the processes."""
        rows = self.data.val_rows
        tokens_per_pass = max(self.micro_rows * self.batches.row_length, 4096)
        width = max(1, tokens_per_pass // self.run.chunk_size)  # rows a pass
        sums = torch.zeros(2, dtype=torch.float64)              # nats, targets
        for i in range(rank * width, len(rows), world_size * width):
            x, y = inputs_and_targets(rows[i:i + width], self.data.eos)
            x, y = to_device([x, y], self.device)
            with self.autocast(self.dtype):
                # forward() by name skips the compiled pass: these rows have another shape
                nats, _ = self.model.forward(x, y)
            sums += torch.tensor([nats.item(), (y >= 0).sum().item()], dtype=torch.float64)
        if world_size > 1:
            sums = all_reduce(sums.to(self.device)).cpu()
        return (sums[0] / sums[1]).item()

    def log(self, validate):
        """Tell the mean loss since the last line; with validate also that on held-out reviews, and
        keep the model if it is the best so far."""
        mean = torch.as_tensor(self.loss_sum / self.steps_since_log, device=self.device)
        mean = all_reduce(mean).item()
        self.seconds += time.perf_counter() - self.clock
        val_loss = self.validate() if validate else None
        self.check_finite(mean, val_loss)
        if rank == 0:
            self.report(mean, val_loss)
            if validate and self.run.show:
                self.show_reviews()
        if validate and val_loss < self.best:
            self.best = val_loss
            if rank == 0:
                self.save_model(val_loss)
        self.loss_sum, self.steps_since_log = 0.0, 0
        self.clock = time.perf_counter()

    def check_finite(self, *losses):
        """End the run where it has come to no number, before anything good is overwritten."""
        for loss in losses:
            if loss is not None and not math.isfinite(loss):
                print0(f'the loss is {loss} by step {self.step:,}, learning rate '
                       f'{self.lr_at(self.step - 1):.2e}; {self.out} keeps the last good state. '
                       'Start again with a smaller --lr.')
                raise SystemExit(1)

    def report(self, mean, val_loss):
        """One line for the screen and one for log.csv."""
        tokens_per_step = self.batches.tokens_per_step
        seconds_here = max(1e-9, self.seconds - self.first_seconds)
        speed = (self.step - self.first_step) * tokens_per_step / seconds_here
        minutes_left = (self.steps - self.step) * tokens_per_step / speed / 60
        validation, bits = '', ''
        if val_loss is not None:
            bits_per_char = val_loss * self.data.to_bits_per_char
            bits = f'{bits_per_char:.4f}'
            validation = f'  validation {val_loss:.3f}  {bits} bits/char'
            if self.data.floor:
                validation += f' ({bits_per_char / self.data.floor - 1:+.1%} from the floor)'
        used = self.flops_per_token * speed / self.peak
        print(f'step {self.step:,}/{self.steps:,}  loss {mean:.3f}{validation}  '
              f'{speed:,.0f} tokens/s  {used:.0%} of peak  {minutes_left:.1f} min left', flush=True)
        row = {
            'step': self.step,
            'tokens': self.step * tokens_per_step,
            'seconds': f'{self.seconds:.2f}',
            'train_loss': f'{mean:.5f}',
            'val_loss': '' if val_loss is None else f'{val_loss:.5f}',
            'bits_per_char': bits,
            'lr': f'{self.lr_at(self.step - 1):.3e}',
        }
        run_files.append_log(self.out, row)
        if self.run.wandb:
            known = {name: float(value) for name, value in row.items() if value}
            self.wandb.log(known, step=self.step)

    def show_reviews(self):
        """Print a short review of each rating, always of the same seed: one can watch it learn."""
        from parts.corpus import RATING_NAMES
        from parts.vocabulary import load_vocabulary
        vocabulary = load_vocabulary(Path(self.run.data_dir, self.run.mode))
        for rating, (name, _) in enumerate(RATING_NAMES):
            start = [vocabulary.eos, vocabulary.rating_ids[rating]]
            idx = torch.tensor([start], device=self.device)
            generator = torch.Generator(self.device).manual_seed(0)  # training's stays as it is
            columns = generate(self.model, idx, 40, vocabulary.banned, temperature=0.8,
                               generator=generator)
            ids = [column.item() for column in columns]
            print(f'    {name:9}  {vocabulary.decode([i for i in ids if i != vocabulary.eos])}')

    def save_model(self, val_loss):
        """The model folder: the best so far on validation."""
        from parts.folder import model_card, save_model  # here, for it is slow to import
        n_tokens = self.step * self.batches.tokens_per_step
        meta = {
            **self.data.meta,
            'step': self.step,
            'tokens': n_tokens,
            'training_flops': self.flops_per_token * n_tokens,
            'val_loss': val_loss,
            'bits_per_char': val_loss * self.data.to_bits_per_char,
            'data_dir': self.run.data_dir,
        }
        card = model_card(self.model, meta, self.out.resolve().name)
        files = {**self.data.vocabulary_files, 'README.md': card.encode()}
        save_model(self.model, self.out, meta, files)

    def save_state(self):
        """state.pt: the last step, all that resuming needs."""
        if rank != 0:
            return
        if not all(p.isfinite().all() for p in self.model.parameters()):
            self.check_finite(math.nan)
        kept = {name: value for name, value in vars(self.run).items() if name not in NOT_KEPT}
        dtype = str(self.dtype).removeprefix('torch.')
        run_files.save_checkpoint(self.out, {
            'model': self.model.state_dict(),
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'scaler': self.scaler.state_dict(),
            'step': self.step,
            'best': self.best,
            'seconds': self.seconds,
            'settings': kept,
            'computation': {'dtype': dtype, 'compiled': self.compiled},
            'config': vars(self.model.config),
            'warm_start': self.warm_start,
            'about': self.data.about,
            'data': self.data.checksum,
        })

    def stopped(self, stop):
        self.close()
        print0(f'stopped at step {self.step:,} of {self.steps:,}; '
               f'go on with: python train.py --out_dir={self.out} --init_from=resume')
        return stop.exit_status

    def close(self):
        if rank == 0 and self.run.wandb:
            self.wandb.finish()
        wait_for_all()

    def finished(self):
        if rank == 0:
            from parts.pictures import draw_losses
            draw_losses(self.out, self.data.floor)
        self.close()
        print0(f'best validation loss {self.best:.4f}, kept in {self.out}; '
               f'write with: python sample.py --model_path={self.out}')
        if self.run.arch == 'decoder':
            print0(f'look inside: python sample.py --model_path={self.out} '
                   f'--page={self.out}/page.html')
        return 0


# --- the model before the first step ---

def new_model(run, data, checkpoint):
    """An untrained model of the shape that the settings or the checkpoint tell."""
    torch.manual_seed(run.seed)
    in_64s = -(-run.d_model * 8 // 3 // 64) * 64
    shape = {
        'vocab_size': data.meta['vocab_size'],
        'eos': data.eos,
        'bos': data.meta['starts']['unknown'],
        'd_ffn': run.d_ffn or in_64s,
        'nhead': run.nhead or max(1, round(run.d_model / 64)),
    }
    for name in ('arch', 'd_model', 'n_layers', 'chunk_size', 'window', 'dropout'):
        shape[name] = getattr(run, name)
    if checkpoint:
        shape = checkpoint['config']
    try:
        return build(Config(**shape))
    except ValueError as error:
        raise UserError(error) from None


if __name__ == '__main__':
    run_distributed(main)
