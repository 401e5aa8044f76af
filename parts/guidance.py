"""Writing that insists on a rating: an addition to model.generate.

    generate(model, idx, …)                              what the model would say
    generate(Guided(model, rivals, 1.0), idx, …)         the same, leaning towards its rating

Guided has what generate() asks of a model, new_cache() and read(), and gives other logits.
"""
import torch


class Guided:
    """A model that insists on the rating of its texts (Ho & Salimans 2022, arXiv:2207.12598).

    The score of an id is log P(id | start, text) + guidance * log P(start | text, id). By Bayes'
    rule
        P(start | text, id) = P(start, text, id) / sum of P(s, text, id) over start and rival_ids,
    so the text is read R times at once: under its own start token, and under each of its rivals.

    rival_ids: the start tokens of the other ratings. guidance: 0 or more; 0 changes nothing.
    One Guided serves one call of generate() at a time: it remembers log P(start, text).
    """

    def __init__(self, model, rival_ids, guidance):
        self.model, self.rival_ids, self.guidance = model, rival_ids, guidance
        self.config = model.config
        self.R = 1 + len(rival_ids)

    def new_cache(self, B, length):
        self.log_joint = torch.zeros(self.R, B, device=self.model.lm_head.weight.device)
        self.log_p = None                                     # (R, B, V), of every next id
        return self.model.new_cache(self.R * B, length)

    def read(self, idx, cache):
        """Read idx (B, T) under every start → scores (B, V) of what comes next."""
        variants = idx.repeat(self.R, 1, 1)                   # (R, B, T)
        if self.log_p is None:                                # the prompt: </s>, its start, text
            for n, rival in enumerate(self.rival_ids, start=1):
                variants[n, :, 1] = rival
        for ids in variants.unbind(dim=2):  # (R, B): one token at a time, for log P of each counts
            if self.log_p is not None:
                self.log_joint += self.log_p.gather(2, ids[:, :, None])[:, :, 0]
            logits = self.model.read(ids.reshape(-1, 1), cache)           # (R*B, V)
            self.log_p = logits.float().log_softmax(dim=-1).view(*ids.shape, -1)
        joint = self.log_joint[:, :, None] + self.log_p       # log P(start, text, id): (R, B, V)
        posterior = joint[0] - joint.logsumexp(dim=0)         # log P(start | text, id): (B, V)
        return self.log_p[0] + self.guidance * posterior
