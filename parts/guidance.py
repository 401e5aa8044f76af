"""Stand-in."""
import torch

from model import log_probability, read_prompt


class Guided:
    """Stand-in."""

    def __init__(self, model, rival_ids, guidance):
        self.model, self.rival_ids, self.guidance = model, list(rival_ids), guidance
        self.config = model.config

    def new_cache(self, B, length):
        R = 1 + len(self.rival_ids)
        return [self.model.new_cache(R * B, length), None, None]

    def read(self, idx, state):
        cache, log_joint, logits = state
        R = 1 + len(self.rival_ids)
        B, T = idx.shape
        if log_joint is None:
            readings = [idx]
            for rival in self.rival_ids:
                other = idx.clone()
                other[:, 1] = rival
                readings.append(other)
            prompt = torch.cat(readings)
            log_joint = torch.zeros(R, B, device=idx.device)
            for t, x in enumerate(read_prompt(self.model, prompt, cache)):
                if t < T - 1:
                    log_joint += log_probability(self.model.logits(x), prompt[:, t + 1]).view(R, B)
            logits = self.model.logits(x)
        else:
            ids = idx[:, 0].repeat(R)
            log_joint = log_joint + log_probability(logits, ids).view(R, B)
            logits = self.model.read(ids[:, None], cache)
        state[1], state[2] = log_joint, logits
        score = logits.view(R, B, -1).log_softmax(dim=-1)
        joint = log_joint[:, :, None] + score
        return score[0] + self.guidance * (joint[0] - joint.logsumexp(dim=0))
