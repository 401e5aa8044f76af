"""The two models and how they write. It needs torch alone.

    ids (B, T) → embedding → (B, T, C) → n_layers blocks → (B, T, C) → head → logits (B, T, V)

B batch, T time, C = d_model, H heads, D = C / H head size, V vocabulary, R ratings.

- decoder: RMSNorm, rotary positions, QK-norm, causal attention, SwiGLU, no biases. This is the
  public Qwen3 architecture with the parameter names of Transformers, so it loads there unconverted.
- ffn: no attention. Bengio et al. (2003) grown up: the embeddings of the last `window` tokens,
  concatenated and projected, then residual MLP blocks. It shows what attention buys.

Both see one text at a time. The stream is `</s> <rating> ids… </s> <rating> ids… </s>`: as a
target, `</s>` ends a text; as an input it opens the next, and nothing before it is looked at.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    vocab_size: int
    arch: str = 'decoder'        # decoder | ffn
    d_model: int = 256           # C, width of the residual stream
    d_ffn: int = 704             # width inside the MLP
    n_layers: int = 6
    nhead: int = 4               # H
    chunk_size: int = 256        # how many tokens it may look at, itself included
    window: int = 8              # ffn: how many tokens it reads
    eos: int = 0                 # the id of </s>, which opens and closes a text
    bos: int = 1                 # the id of <s>, the start of a text of unknown rating
    reads_ratings: bool = False  # trained to tell the rating of a text: hide_ratings in data.py
    rope_theta: float = 1e4      # sets the longest wavelength of the rotary positions
    eps: float = 1e-6            # inside RMSNorm's square root
    dropout: float = 0.0         # in training only; the model folder does not hold it

    def __post_init__(self):
        """Raises ValueError, in one sentence, where the numbers cannot make a model."""
        for name in ('vocab_size', 'd_model', 'd_ffn', 'n_layers', 'nhead', 'chunk_size', 'window'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)}: it takes 1 or more')
        if self.arch not in ('decoder', 'ffn'):
            raise ValueError(f"arch={self.arch}: it is 'decoder' or 'ffn'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout={self.dropout}: it takes 0 or more and less than 1')
        if self.arch == 'decoder' and self.d_model % (2 * self.nhead):
            raise ValueError(f'd_model={self.d_model} does not divide into nhead={self.nhead} '
                             'heads of an even size')


# --- the parts of a block ---

class RMSNorm(nn.RMSNorm):
    """Scale to unit root mean square, times a learned gain (Zhang & Sennrich 2019,
    arXiv:1910.07467)."""

    def forward(self, x):
        # the gain takes the format of x: q and k may have 16 bits
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SwiGLU(nn.Module):
    """The MLP: down(silu(gate(x)) * up(x)), * elementwise (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ffn, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ffn, bias=False)
        self.down_proj = nn.Linear(config.d_ffn, config.d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x, cos, sin):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864). x (B, H, T, D), cos and sin (T, D/2) →
    (B, H, T, D)

    Pair i of every head, its coordinates i and i + D/2, is turned by an angle that grows with the
    position. A query times a key then depends only on the distance between their positions.
    """
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Attention(nn.Module):
    """A token looks at itself and at earlier tokens of its text, less than chunk_size back:
    softmax(q kᵀ / √D) v (Vaswani et al. 2017, arXiv:1706.03762).
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        C, D = config.d_model, config.d_model // config.nhead
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, C, bias=False)
        self.v_proj = nn.Linear(C, C, bias=False)
        self.o_proj = nn.Linear(C, C, bias=False)
        # QK-norm (Henry et al. 2020, arXiv:2010.04245): no score grows without bound
        self.q_norm = RMSNorm(D, config.eps)
        self.k_norm = RMSNorm(D, config.eps)

    def forward(self, x, rope, mask, cache=None):
        """x (B, T, C) → (B, T, C). mask: of Decoder.mask(); None: a query may look at all keys."""
        B, T, C = x.shape
        heads = (B, T, self.config.nhead, C // self.config.nhead)
        q = self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2)   # (B, H, T, D)
        k = self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2)   # (B, H, T, D)
        v = self.v_proj(x).view(heads).transpose(1, 2)                # (B, H, T, D)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.add(k, v)                                    # (B, H, tokens seen, D)
        # torch's kernel on CUDA, or without a mask; with one, plain code is faster on a CPU
        if mask is None or q.is_cuda:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = (q @ k.mT).float() / math.sqrt(q.shape[-1])      # (B, H, T, T)
            scores = scores.masked_fill(~mask, -math.inf)
            y = scores.softmax(dim=-1).to(v.dtype) @ v                # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Read from the residual stream, add to it: attention, then the MLP. (B, T, C) → (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.eps)   # before the MLP
        self.mlp = SwiGLU(config)
        self.dropout = config.dropout

    def forward(self, x, rope, mask, cache=None):
        attended = self.self_attn(self.input_layernorm(x), rope, mask, cache)
        x = x + F.dropout(attended, self.dropout, self.training)
        computed = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(computed, self.dropout, self.training)


# --- the two models ---

class Model(nn.Module):
    """What both architectures share: embedding at the bottom, head and loss at the top."""

    def __init__(self, config, layers, **modules):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(dict(                      # named as in Transformers
            embed_tokens=nn.Embedding(config.vocab_size, config.d_model), **modules,
            layers=nn.ModuleList(layers), norm=RMSNorm(config.d_model, config.eps)))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.init_weights()

    def init_weights(self):
        for name, p in self.named_parameters():
            if name.endswith(('o_proj.weight', 'down_proj.weight', 'lm_head.weight')):
                nn.init.zeros_(p)         # blocks begin as the identity, all tokens equally likely
            elif 'embed_tokens' in name:
                nn.init.normal_(p)        # of size 1, which is what RMSNorm makes
            elif p.ndim == 2:
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]))  # keeps the variance

    def forward(self, idx, targets=None, ratings=None, rating_ids=None):
        """idx (B, T) → logits (B, T, V). With targets (B, T): two losses, each a sum in nats, of
        the tokens and of the ratings that are asked for. A target of -1 is left out.

        ratings (B, T): n where the model is asked for the rating rating_ids[n], else -1. There the
        softmax is over rating_ids (R,) alone.
        """
        if targets is None:
            return self.logits(self.hidden(idx))
        x = self.model.norm(self.hidden(idx))                 # (B, T, C)
        token_loss = self.summed_loss(self.lm_head(x), targets)
        if ratings is None:
            return token_loss, torch.zeros_like(token_loss)
        # logits[..., rating_ids], but its backward pass would fill another (B, T, V) with zeros
        rating_logits = F.linear(x, self.lm_head.weight[rating_ids])      # (B, T, R)
        return token_loss, self.summed_loss(rating_logits, ratings)

    @staticmethod
    def summed_loss(logits, targets):
        """The summed cross-entropy of logits (B, T, V), where targets (B, T) are not -1."""
        logits = logits.float().flatten(0, 1)                 # (B*T, V)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction='sum')

    def logits(self, x):
        """The residual stream (..., C) → logits (..., V)"""
        return self.lm_head(self.model.norm(x))

    def read(self, idx, cache):
        """Read idx (B, T) into the cache → logits (B, V) of what comes next.

        The first chunk_size tokens of a prompt are read in one pass, each further one in a pass of
        its own (slow, and rare): by then the first ones are out of sight.
        """
        x = self.hidden(idx[:, :self.config.chunk_size], cache)
        for t in range(self.config.chunk_size, idx.shape[1]):
            x = self.hidden(idx[:, t:t + 1], cache)
        return self.logits(x[:, -1])


class Decoder(Model):
    """The transformer."""

    def __init__(self, config):
        super().__init__(config, [Block(config) for _ in range(config.n_layers)])

    def hidden(self, idx, cache=None):
        """idx (B, T) → the residual stream after the last block (B, T, C).

        With a cache, idx continues what it holds: first the prompt, then one token at a time.
        """
        first = cache[0].n_read if cache else 0
        position = torch.arange(first, first + idx.shape[1], device=idx.device)
        # a cache holds only keys that a new token may look at: nothing to mask
        mask = None if first else self.mask(idx, position)
        x = self.model.embed_tokens(idx)
        x = F.dropout(x, self.config.dropout, self.training)
        rope = self.rope(position, x.dtype)
        for n, block in enumerate(self.model.layers):
            x = block(x, rope, mask, cache[n] if cache else None)
        return x

    def mask(self, idx, position):
        """(B, 1, T, T), True where a query may look at a key: the same text, not later, less than
        chunk_size back."""
        text = (idx == self.config.eos).cumsum(dim=1)         # (B, T): </s> opens a text
        same = text[:, :, None] == text[:, None, :]           # (B, T, T)
        distance = position[:, None] - position[None, :]      # (T, T)
        near = (distance >= 0) & (distance < self.config.chunk_size)
        return (same & near)[:, None]

    def rope(self, position, dtype):
        """Cosine and sine (T, D/2) of the angles by which rotate() turns the heads."""
        D = self.config.d_model // self.config.nhead
        coordinate = torch.arange(0, D, 2, device=position.device)        # the first of each pair
        # theta^(-coordinate / D)
        frequency = torch.exp(-math.log(self.config.rope_theta) / D * coordinate)
        angle = position[:, None] * frequency                 # (T, D/2)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def new_cache(self, B, length):
        """An empty cache for B texts that will be up to `length` tokens long."""
        config = self.config
        size = min(config.chunk_size, length)
        shape = (B, config.nhead, size, config.d_model // config.nhead)
        return [KVCache(self.lm_head.weight, shape) for _ in range(config.n_layers)]


class KVCache:
    """The keys and values of one layer: the next token costs one token's work, not all.

    They lie in a ring of `size` slots: a new token takes the slot of the one `size` back, which
    is out of sight. Takes the prompt, of up to `size` tokens, then one token a call.
    """

    def __init__(self, like, shape):
        self.keys = like.new_zeros(shape)                     # (B, H, size, D)
        self.values = like.new_zeros(shape)                   # (B, H, size, D)
        self.size = shape[2]
        self.n_read = 0

    def add(self, k, v):
        """k and v (B, H, T, D) of new tokens → of every token they may look at (B, H, S, D)."""
        T = k.shape[2]
        slot = self.n_read % self.size
        self.keys[:, :, slot:slot + T] = k
        self.values[:, :, slot:slot + T] = v
        self.n_read += T
        seen = min(self.n_read, self.size)  # in any order: a key was turned by its position
        return self.keys[:, :, :seen], self.values[:, :, :seen]


# --- the ffn, to compare with; skip it on a first reading ---

class MLPBlock(nn.Module):
    """A Block without the attention. (B, T, C) → (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.eps)
        self.mlp = SwiGLU(config)
        self.dropout = config.dropout

    def forward(self, x):
        return x + F.dropout(self.mlp(self.norm(x)), self.dropout, self.training)


class FFN(Model):
    """Each position sees the last `window` tokens and no more (Bengio et al. 2003, grown up)."""

    def __init__(self, config):
        project = nn.Linear(config.window * config.d_model, config.d_model, bias=False)
        blocks = [MLPBlock(config) for _ in range(config.n_layers)]
        super().__init__(config, blocks, project=project)
        nn.init.eye_(self.model.project.weight)               # at first: the last token alone

    def hidden(self, idx, cache=None):
        """idx (B, T) → the residual stream after the last block (B, T, C)"""
        T = idx.shape[1]
        if cache is not None:
            idx = cache.add(idx)                              # with the tokens that came before
        text = (idx == self.config.eos).cumsum(dim=1)
        x = self.model.embed_tokens(idx)                      # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        seen = [x]
        for back in range(1, self.config.window):
            earlier = F.pad(x, (0, 0, back, 0))[:, :x.shape[1]]   # the token `back` places ago
            its_text = F.pad(text, (back, 0), value=-1)[:, :x.shape[1]]
            same = its_text == text
            seen.append(earlier * same[:, :, None])           # zeros where it is of another text
        x = self.model.project(torch.cat(seen, dim=-1))       # (B, T, window * C) → (B, T, C)
        x = x[:, -T:]
        for block in self.model.layers:
            x = block(x)
        return x

    def new_cache(self, B, length):
        return WindowCache(self.config.window)


class WindowCache:
    """All that the ffn needs to keep: the last ids."""

    def __init__(self, window):
        self.window = window
        self.ids = None

    def add(self, idx):
        seen = idx if self.ids is None else torch.cat((self.ids, idx), dim=1)
        self.ids = seen[:, -self.window:]
        return seen


# --- both ---

def build(config):
    """The model of a Config."""
    return {'decoder': Decoder, 'ffn': FFN}[config.arch](config)


# --- writing ---

def sample_ids(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """One id a row from logits (B, V) → (B,).

    Temperature 0 takes the likeliest. top_k keeps the k likeliest (0: all). top_p keeps the fewest
    that together hold that much probability (nucleus sampling, Holtzman et al. 2020,
    arXiv:1904.09751).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    probs = logits.softmax(dim=-1)                            # (B, V)
    cumulative = probs.cumsum(dim=-1)
    ids = draw_ids(cumulative, generator)                     # (B, 1)
    # top_p by rejection: if the ids likelier than the drawn one already hold top_p, it is outside
    # the nucleus; draw again. (The likeliest id never is, so this ends. Sorting 64 rows of 8,000
    # takes longer than computing them.)
    while top_p < 1:
        likelier = (probs * (probs > probs.gather(1, ids))).sum(dim=-1, keepdim=True)
        outside = likelier >= top_p
        if not outside.any():
            break
        ids = torch.where(outside, draw_ids(cumulative, generator), ids)
    return ids[:, 0]


def draw_ids(cumulative, generator):
    """A random id of every row (B, 1), from the cumulative probabilities (B, V). One random number
    a row; torch.multinomial draws V of them.
    """
    B, V = cumulative.shape
    u = torch.rand(B, 1, device=cumulative.device, generator=generator)
    ids = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
    return ids.clamp(max=V - 1)                               # rounding may give u the whole sum


@torch.inference_mode()
def generate(model, idx, max_token, banned=(), **sampling):
    """Continue idx (B, T), one text a row, each beginning with `</s>` and its start token.

    Yields (B,) ids at a time until every row has closed its text with `</s>`, or max_token ids are
    written. A closed row goes on saying `</s>`. Ids in `banned` are never written. `sampling` goes
    to sample_ids().

    Without cache and </s>, all of it would be
        for _ in range(max_token):
            ids = sample_ids(model(idx)[:, -1])               # what the last position says: (B,)
            idx = torch.cat((idx, ids[:, None]), dim=1)       # (B, T) → (B, T+1)
    """
    eos = model.config.eos
    banned = torch.tensor(list(banned), dtype=torch.long, device=idx.device)
    closed = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
    cache = model.new_cache(len(idx), idx.shape[1] + max_token)
    for _ in range(max_token):
        logits = model.read(idx, cache)                       # (B, V)
        ids = sample_ids(logits.index_fill(1, banned, -math.inf), **sampling)
        ids = ids.masked_fill(closed, eos)
        yield ids
        closed |= ids == eos
        if closed.all():
            return
        idx = ids[:, None]                                    # (B, 1)
