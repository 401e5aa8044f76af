"""The two models and how they write: the lesson. It needs torch alone.

    ids (B, T) → embedding → (B, T, C) → n_layers blocks → (B, T, C) → head → logits (B, T, V)

B batch, T time, C = d_model, H heads, K key-value heads, D head size, V vocabulary.

- decoder: RMSNorm, rotary positions, QK-norm, causal attention, SwiGLU, no biases. This is the
  public Qwen3 architecture with the parameter names of Transformers, so it loads there unconverted.
- ffn: no attention. Bengio et al. (2003) grown up: the embeddings of the last `window` tokens,
  concatenated and projected, then residual MLP blocks. It shows what attention buys.

Both see one review at a time. The stream is `</s> <rating> ids… </s> <rating> ids… </s>`: as a
target, `</s>` ends a review; as an input it opens the next, and nothing before it is looked at.
Read Attention, Block and Decoder first, then generate.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


@dataclass
class Config:
    vocab_size: int
    arch: str = 'decoder'    # decoder | ffn
    d_model: int = 256       # C, width of the residual stream
    d_ffn: int = 704         # width inside the MLP
    n_layers: int = 6
    nhead: int = 4           # H; head size D = C / H unless head_dim says otherwise
    chunk_size: int = 256    # how many tokens it may look at, itself included
    window: int = 8          # ffn: how many tokens it reads
    eos: int = 0             # the id of </s>, which opens and closes a review
    bos: int = 1             # the id of <s>, the start of a review of unknown rating
    reads_ratings: bool = False  # trained to tell the rating of a text
    rope_theta: float = 1e4  # sets the longest wavelength of the rotary positions
    eps: float = 1e-6        # inside RMSNorm's square root
    dropout: float = 0.0     # in training only; the model folder does not hold it

    def __post_init__(self):
        """Fill in what is derived.

        Raises ValueError, in one sentence, where the numbers cannot make a model.
        """
        for name in ('vocab_size', 'd_model', 'd_ffn', 'n_layers', 'nhead', 'chunk_size', 'window'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)}: it takes 1 or more')
        if self.arch not in ('decoder', 'ffn'):
            raise ValueError(f"arch={self.arch}: it is 'decoder' or 'ffn'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout={self.dropout}: it takes 0 or more and less than 1')
        splits = self.d_model % (2 * self.nhead) == 0
        if self.arch == 'decoder' and not splits:
            raise ValueError(f'd_model={self.d_model} does not divide into nhead={self.nhead} '
                             'heads of an even size')


# --- the parts of a block ---

class RMSNorm(nn.RMSNorm):
    """Scale to unit root mean square, times a learned gain (Zhang & Sennrich 2019,
    arXiv:1910.07467). The gain takes the format of x: q and k may have 16 bits.
    """

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SwiGLU(nn.Module):
    """The MLP: down(silu(gate(x)) * up(x)), * entry by entry (Shazeer 2020, arXiv:2002.05202)."""

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
    position. What a query times a key says of positions is then their distance and nothing else.
    """
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Attention(nn.Module):
    """A token looks at itself and the tokens before it, up to chunk_size and in its review:
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
        B, T, _ = x.shape
        H = K = self.config.nhead
        D = self.config.d_model // H
        q = self.q_proj(x).view(B, T, H, D)
        k = self.k_proj(x).view(B, T, K, D)
        v = self.v_proj(x).view(B, T, K, D).transpose(1, 2)   # (B, K, T, D)
        q = rotate(self.q_norm(q).transpose(1, 2), *rope)     # (B, H, T, D)
        k = rotate(self.k_norm(k).transpose(1, 2), *rope)     # (B, K, T, D)
        if cache is not None:
            k, v = cache.add(k, v)                            # (B, K, tokens seen, D)
        y = attend(q, k, v, mask)                             # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, H * D))


def attend(q, k, v, mask):
    """softmax(q kᵀ / √D) v of every head. q (B, H, T, D), k and v (B, H, S, D), mask (B, 1, T, S),
    a BlockMask or None → (B, H, T, D)
    """
    if mask is not None and not torch.is_tensor(mask):
        # the rotation left q and k in float32
        return flex_attention(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    # Written out, the same is faster in training on a CPU (docs/LOG.md), and on a GPU its backward
    # pass adds up in the same order every time.
    scores = q @ k.mT                                         # (B, H, T, S)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1).to(q.dtype) @ v


class Block(nn.Module):
    """Read from the residual stream, add to it: attention, then the MLP. (B, T, C) → (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.eps)
        self.mlp = SwiGLU(config)
        self.dropout = config.dropout

    def forward(self, x, rope, mask, cache=None, seeds=None):
        attended = self.self_attn(self.input_layernorm(x), rope, mask, cache)
        x = x + dropout(attended, self.dropout, seeds, place=1)
        computed = self.mlp(self.post_attention_layernorm(x))
        return x + dropout(computed, self.dropout, seeds, place=2)


# --- dropout as a function ---

def dropout(x, share, seeds, place):
    """Set a share of x to zero, scale up the rest (Srivastava et al. 2014). x (B, T, C), seeds (B,)
    int32 → (B, T, C)

    Which entries are zeroed is a function of the row's seed, the place in the network and the
    position in the row alone. Neither the number of processes nor the size of a micro-batch moves
    it. Without seeds none is.
    """
    if seeds is None or share == 0:
        return x
    _, T, C = x.shape
    index = torch.arange(T * C, dtype=torch.int32, device=x.device).view(T, C)
    start = hash32(seeds + place)
    number = hash32(start[:, None, None] + index)             # (B, T, C), each as good as random
    keep = (number & 0x7FFFFFFF) >= int(share * 2 ** 31)      # without the sign, from 0 to 2^31 - 1
    return torch.where(keep, x / (1 - share), 0.0)


def hash32(x):
    """An int32 for every int32, with no pattern a model could find (Wellons 2018, "lowbias32").

    Products wrap around.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - 2 ** 32)                            # the same 32 bits, as a signed number
    return x ^ ((x >> 16) & 0xFFFF)


# --- the two models ---

class Model(nn.Module):
    """What both architectures share: embedding at the bottom, head and loss at the top."""

    def __init__(self, config, layers, **more):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding(config.vocab_size, config.d_model), **more,
            layers=nn.ModuleList(layers), norm=RMSNorm(config.d_model, config.eps)))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.init_weights()

    def init_weights(self):
        for name, p in self.named_parameters():
            if name.endswith(('o_proj.weight', 'down_proj.weight', 'lm_head.weight')):
                nn.init.zeros_(p)    # blocks begin as the identity, all tokens equally likely
            elif 'embed_tokens' in name:
                # 1 is the size that RMSNorm makes. Tied, it is the head too: logits start small.
                nn.init.normal_(p, std=1.0)
            elif p.ndim == 2:
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]))  # as large out as in

    def forward(self, idx, targets=None, seeds=None, ratings=None, rating_ids=None):
        """idx (B, T) → logits (B, T, V). With targets (B, T): the summed cross-entropy in nats,
        targets of -1 left out.

        seeds (B,) int32 make dropout happen, see dropout().
        With ratings (B, T), too: (nats of the targets, nats of the ratings). A rating that is not
        -1 is the place of the right id in rating_ids (R,), and only these R ids compete.
        """
        x = self.model.norm(self.hidden(idx, seeds=seeds))    # (B, T, C)
        logits = self.lm_head(x)                              # (B, T, V)
        if targets is None:
            return logits
        nats = summed_nats(logits, targets)
        if ratings is None:
            return nats, nats.new_zeros(())
        rating_logits = F.linear(x, self.lm_head.weight[rating_ids])      # (B, T, R)
        return nats, summed_nats(rating_logits, ratings)

    def read(self, idx, cache):
        """Stand-in."""
        for x in read_prompt(self, idx, cache):
            pass
        return self.logits(x)

    def logits(self, x):
        """The residual stream (..., C) → logits (..., V)"""
        return self.lm_head(self.model.norm(x))


def summed_nats(logits, targets):
    """The summed cross-entropy of logits (B, T, V) and targets (B, T); those of -1 are left out."""
    logits = logits.float().flatten(0, 1)                     # (B*T, V)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction='sum')


class Decoder(Model):
    """The transformer."""

    def __init__(self, config):
        super().__init__(config, [Block(config) for _ in range(config.n_layers)])

    def hidden(self, idx, seeds=None, cache=None):
        """idx (B, T) → the residual stream after the last block (B, T, C).

        With a cache, idx goes on where it stopped.
        """
        first = 0 if cache is None else cache.n_read
        position = torch.arange(first, first + idx.shape[1], device=idx.device)
        # a cache holds only what is earlier, near and of the same review: nothing is masked there
        mask = None if first else self.mask(idx, position)
        x = self.model.embed_tokens(idx)
        x = dropout(x, self.config.dropout, seeds, place=0)
        rope = self.rope(position, x.dtype)
        if cache is not None:
            cache.take_places(position)
        for n, block in enumerate(self.model.layers):
            layer_cache = None if cache is None else cache.layers[n]
            layer_seeds = None if seeds is None else seeds + 2 * n  # a block has two places
            x = block(x, rope, mask, layer_cache, layer_seeds)
        return x

    def mask(self, idx, position):
        """(B, 1, T, T), True where a query may look at a key: the same review, not later, less than
        chunk_size back.

        A pass that is compiled for a GPU, in 16 bits, gets it as a BlockMask: the rule itself
        goes into the kernel, which keeps no (T, T) in memory (FlexAttention, Dong et al.
        2024, arXiv:2412.05496).
        """
        is_eos = idx == self.config.eos
        review = is_eos.cumsum(dim=1, dtype=torch.int32)      # (B, T): </s> opens a review
        short = torch.is_autocast_enabled('cuda')
        if idx.is_cuda and short and torch.compiler.is_compiling():
            return self.block_mask(review)
        same = review[:, :, None] == review[:, None, :]       # (B, T, T)
        position = position.int()
        distance = position[:, None] - position[None, :]      # (T, T)
        near = (distance >= 0) & (distance < self.config.chunk_size)
        return (same & near)[:, None]

    def block_mask(self, review):
        """The same as a rule, for reviews numbered (B, T)."""
        def may_look(b, h, query, key):
            same = review[b, query] == review[b, key]
            return same & (query >= key) & (query - key < self.config.chunk_size)

        B, T = review.shape
        return create_block_mask(may_look, B, None, T, T, device=review.device)

    def rope(self, position, dtype):
        """Cosine and sine (T, D/2) of the angles by which rotate() turns the heads at these
        positions (T,).
        """
        pair = torch.arange(0, (self.config.d_model // self.config.nhead), 2, device=position.device)
        # theta^(-pair / D). A compiler that sees an exp keeps the result; cosines without one it
        # would compute anew in every layer.
        frequency = torch.exp(-math.log(self.config.rope_theta) / (self.config.d_model // self.config.nhead) * pair)
        angle = position[:, None] * frequency                 # (T, D/2)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def new_cache(self, B, length):
        """An empty cache for B reviews that will be up to `length` tokens long."""
        return Cache(self.config, B, min(self.config.chunk_size, length), self.lm_head.weight)


class Cache:
    """Keys and values of the tokens read so far: the next token costs one token's work, not all.

    They lie in rings of `size` places: a new token takes the place of the one `size` back, which is
    out of sight. The beginning of the prompt is read in one pass, then one token a call.
    """

    def __init__(self, config, B, size, weight):
        shape = (config.n_layers, B, config.nhead, size, config.d_model // config.nhead)
        self.keys, self.values = weight.new_zeros(2, *shape)  # (L, B, K, size, D) each
        self.layers = [LayerCache(self, n) for n in range(config.n_layers)]
        self.size = size
        self.n_read = 0

    def take_places(self, position):
        """The tokens at these positions (T,) come next. Raises ValueError if they are too many."""
        T = len(position)
        if T > 1 and (self.n_read or T > self.size):
            raise ValueError(f'a cache takes up to {self.size} tokens at once, then one a call')
        self.place = position % self.size                     # (T,)
        self.n_read += T
        self.n_seen = min(self.n_read, self.size)


class LayerCache:
    """The part of a Cache that belongs to one layer."""

    def __init__(self, cache, n):
        self.cache, self.keys, self.values = cache, cache.keys[n], cache.values[n]

    def add(self, k, v):
        """k and v (B, K, T, D) of the new tokens → those of all they may look at (B, K, S, D)."""
        self.keys.index_copy_(2, self.cache.place, k)
        self.values.index_copy_(2, self.cache.place, v)
        seen = self.cache.n_seen  # in any order: keys were turned by their position before
        return self.keys[:, :, :seen], self.values[:, :, :seen]


class MLPBlock(nn.Module):
    """A Block without the attention. (B, T, C) → (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.eps)
        self.mlp = SwiGLU(config)
        self.dropout = config.dropout

    def forward(self, x, seeds=None):
        return x + dropout(self.mlp(self.norm(x)), self.dropout, seeds, place=1)


class FFN(Model):
    """Each position sees the last `window` tokens and no more (Bengio et al. 2003, grown up)."""

    def __init__(self, config):
        project = nn.Linear(config.window * config.d_model, config.d_model, bias=False)
        blocks = [MLPBlock(config) for _ in range(config.n_layers)]
        super().__init__(config, blocks, project=project)
        nn.init.eye_(self.model.project.weight)               # at first: the last token alone

    def hidden(self, idx, seeds=None, cache=None):
        """idx (B, T) → the residual stream after the last block (B, T, C)"""
        T = idx.shape[1]
        if cache is not None:
            idx = cache.add(idx)                              # with the tokens that came before
        review = (idx == self.config.eos).cumsum(dim=1)
        x = self.model.embed_tokens(idx)                      # (B, T, C)
        x = dropout(x, self.config.dropout, seeds, place=0)
        seen = [x]
        for back in range(1, self.config.window):
            earlier = F.pad(x, (0, 0, back, 0))[:, :x.shape[1]]   # the token `back` places ago
            its_review = F.pad(review, (back, 0), value=-1)[:, :x.shape[1]]
            same = its_review == review
            seen.append(earlier * same[:, :, None])           # zeros where it is of another review
        x = self.model.project(torch.cat(seen, dim=-1))       # (B, T, window * C) → (B, T, C)
        x = x[:, -T:]
        for n, block in enumerate(self.model.layers):
            x = block(x, None if seeds is None else seeds + n)
        return x

    def new_cache(self, B, length):
        return WindowCache(self.config.window)


class WindowCache:
    """All that the ffn needs to keep: the last ids."""

    def __init__(self, window):
        self.window = window
        self.ids = None

    def add(self, idx):
        self.ids = idx if self.ids is None else torch.cat((self.ids, idx), dim=1)
        seen = self.ids
        self.ids = seen[:, -self.window:]
        return seen


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
    # Nucleus by rejection, faster than sorting: an id is outside where the likelier ones together
    # have top_p already; then another is drawn.
    while top_p < 1:
        likelier = (probs * (probs > probs.gather(1, ids))).sum(dim=-1, keepdim=True)
        outside = likelier >= top_p
        if not outside.any():
            break
        ids = torch.where(outside, draw_ids(cumulative, generator), ids)
    return ids[:, 0]


def draw_ids(cumulative, generator):
    """A random id of every row (B, 1), from the cumulative probabilities (B, V)."""
    B, V = cumulative.shape
    u = torch.rand(B, 1, device=cumulative.device, generator=generator)
    ids = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
    return ids.clamp(max=V - 1)                               # rounding may give u the whole sum


def read_prompt(model, prompt, cache):
    """Yield the residual stream (B, C) after each token of prompt (B, T), and fill the cache.

    The first chunk_size tokens are read in one pass: attention takes memory as their square.
    """
    if getattr(cache, 'n_read', 0):
        first = 1
    else:
        first = model.config.chunk_size
    x = model.hidden(prompt[:, :first], cache=cache)
    yield from x.unbind(dim=1)
    for ids in prompt[:, first:].unbind(dim=1):
        yield model.hidden(ids[:, None], cache=cache)[:, 0]


def next_logits(model, ids, cache):
    """Read one more id a row (B,) → logits of the one after (B, V)."""
    return model.logits(model.hidden(ids[:, None], cache=cache)[:, 0])


def log_probability(logits, ids):
    """log P(id) of one id a row. logits (B, V), ids (B,) → (B,)"""
    return -F.cross_entropy(logits.float(), ids, reduction='none')


@torch.inference_mode()
def generate(model, idx, max_token, banned=(), **sampling):
    """Stand-in."""
    B, T = idx.shape
    banned = torch.tensor(list(banned), dtype=torch.long, device=idx.device)
    cache = model.new_cache(B, T + max_token)
    logits = model.read(idx, cache)
    closed = torch.zeros(B, dtype=torch.bool, device=idx.device)
    for n in range(max_token):
        ids = sample_ids(logits.index_fill(1, banned, -math.inf), **sampling)
        ids = ids.masked_fill(closed, model.config.eos)
        yield ids
        closed |= ids == model.config.eos
        if closed.all() or n == max_token - 1:
            return
        logits = model.read(ids[:, None], cache)
