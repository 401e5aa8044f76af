"""What several models know together, taught to one.

    folders → teachers → the mean of their logits (B, T, V) → a part of each target

Models that began from other seeds err in other places. Together they err less than any of them, and
a model that learns from all of them keeps what they know: knowledge distillation (Hinton et al.
2015, arXiv:1503.02531). It pays where computing is cheap and data are few (Kim et al. 2025,
arXiv:2509.14786). Figures are in docs/LOG.md.
"""
from pathlib import Path

import torch
import torch.nn.functional as F

from parts.errors import UserError

SHARE = 0.7  # of a target that comes from the teachers; the rest is the token that stands there


def open_teachers(names, tokens_folder, device):
    """The models of these folders, named with commas between them.

    Raises UserError where one has another vocabulary than the data in tokens_folder.
    """
    if not names:
        return []
    from parts.folder import load_model, tokens_of  # here, for it is slow to import
    teachers = []
    for name in names.split(','):
        model, _ = load_model(name, device)
        if tokens_of(Path(name)) != tokens_of(tokens_folder):
            raise UserError(f'{tokens_folder} is not in the vocabulary of {name}, so it cannot '
                            'be a teacher')
        teachers.append(model)
    return teachers


@torch.no_grad()
def taught(teachers, x):
    """x (B, T) → the teachers' probabilities (B, T, V): the normalized product of what each says,
    each to the power of 1/n, for that is one softmax and not n.
    """
    return (sum(teacher(x) for teacher in teachers) / len(teachers)).float().softmax(dim=-1)


def taught_losses(logits, targets, probabilities):
    """(nats of the targets (B, T), what to learn from: in part these, in part the nats of the
    teachers' probabilities (B, T, V)), each a sum. Targets of -1 are left out.
    """
    log_p = logits.float().log_softmax(dim=-1)                # (B, T, V)
    to_text = F.nll_loss(log_p.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction='sum')
    to_teachers = -(probabilities * log_p).sum(dim=-1)        # (B, T)
    mixed = (1 - SHARE) * to_text + SHARE * (to_teachers * (targets >= 0)).sum()
    return to_text, mixed
