"""The two models, how they write, and how they are kept: the room the others stand around.

    ids (B, T) → embedding → (B, T, C) → n_layers blocks → (B, T, C) → head → logits (B, T, V)

One letter each, everywhere: B batch, T time, C = d_model, H heads, K key-value heads, D head size, V vocabulary.

- decoder: attention. RMSNorm, rotary positions, QK-norm, causal attention, SwiGLU, no biases: exactly the public Qwen3
  architecture under Transformers' parameter names, so a folder written by save() loads there unconverted.
- ffn: no attention. Bengio et al. (2003) grown up: the embeddings of the last `window` tokens, concatenated and
  projected, then residual MLP blocks. It is there to show what attention buys.

Both see one review at a time: `</s>` opens a review, and nothing before it is looked at. Read Attention, Block and
Decoder first, then generate, then save and load. How good a model is, eval.py tells.
"""
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes


@dataclass
class Config:
    vocab_size: int
    arch: str = 'decoder'    # decoder | ffn
    d_model: int = 256       # C, width of the residual stream
    d_ffn: int = 704         # width inside the MLP
    n_layers: int = 6
    nhead: int = 4           # H; head size D = C / H unless head_dim says otherwise
    chunk_size: int = 256    # how many positions back a token may look
    window: int = 8          # ffn: how many tokens it reads
    eos: int = 0             # the id of </s>, which opens and closes a review
    bos: int = 1             # the id of <s>, the start of a review of unknown rating
    tied: bool = False       # one matrix for embedding and head
    nkv: int = 0             # K, heads that share keys and values (0: H, every head its own)
    head_dim: int = 0        # D (0: C / H)
    rope_theta: float = 1e4  # the longest wavelength of the rotary positions
    eps: float = 1e-6        # inside RMSNorm's square root
    dropout: float = 0.0     # in training only, never saved

    def __post_init__(self):
        """Fill in what is derived; raises ValueError in one sentence where the numbers cannot make a model."""
        for name in ('vocab_size', 'd_model', 'd_ffn', 'n_layers', 'nhead', 'chunk_size', 'window'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)}: it takes 1 or more')
        if self.arch not in ('decoder', 'ffn'):
            raise ValueError(f"arch={self.arch}: it is 'decoder' or 'ffn'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout={self.dropout}: it takes 0 or more and less than 1')
        self.nkv = self.nkv or self.nhead
        if self.arch == 'decoder' and not self.head_dim and self.d_model % (2 * self.nhead):
            raise ValueError(f'd_model={self.d_model} does not divide into nhead={self.nhead} heads of an even size')
        self.head_dim = self.head_dim or self.d_model // self.nhead
        if self.nhead % self.nkv or self.head_dim % 2:
            raise ValueError(f'{self.nhead} heads of size {self.head_dim} cannot share {self.nkv} key-value heads')


class RMSNorm(nn.RMSNorm):
    """Scale to unit root mean square, times a learned gain (Zhang & Sennrich 2019, arXiv:1910.07467), in the dtype that comes in."""

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SwiGLU(nn.Module):
    """The MLP: one half gates the other (Shazeer 2020, arXiv:2002.05202). (B, T, C) → (B, T, C)"""

    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.d_model, c.d_ffn, bias=False)
        self.up_proj = nn.Linear(c.d_model, c.d_ffn, bias=False)
        self.down_proj = nn.Linear(c.d_ffn, c.d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x, cos, sin):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): turn pair i of every head by an angle that grows with the
    position, so that a query times a key depends on their distance alone. x (B, H, T, D), cos and sin (T, D)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.d_model, c.nhead * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.d_model, c.nkv * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.d_model, c.nkv * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.nhead * c.head_dim, c.d_model, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.eps)  # QK-norm (Henry et al. 2020): no logit can grow without bound
        self.k_norm = RMSNorm(c.head_dim, c.eps)

    def forward(self, x, rope, mask):
        """x (B, T, C), mask (B, 1, T, T) True where a query may look at a key → (B, T, C)"""
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.c.head_dim)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.c.head_dim)).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, self.c.head_dim).transpose(1, 2)               # (B, K, T, D)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if self.c.nkv != self.c.nhead:
            k, v = (t.repeat_interleave(self.c.nhead // self.c.nkv, dim=1) for t in (k, v))  # (B, H, T, D)
        if q.device.type == 'cpu':  # written out: at 6 x 256, 16 rows, compiled, a step took 684 ms; with the function below, which means the same, 823
            scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float)) / math.sqrt(self.c.head_dim)  # (B, H, T, T)
            y = scores.masked_fill(~mask, -math.inf).softmax(-1).to(q.dtype) @ v          # (B, H, T, D)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class Block(nn.Module):
    """Read from the residual stream, add to it: x + attention(norm(x)), then x + mlp(norm(x)). (B, T, C) → (B, T, C)"""

    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c.d_model, c.eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.d_model, c.eps)
        self.mlp = SwiGLU(c)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x, rope, mask):
        x = x + self.drop(self.self_attn(self.input_layernorm(x), rope, mask))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class Model(nn.Module):
    """What both architectures share: embedding at the bottom, head and loss at the top."""

    def __init__(self, c, layers, **more):
        super().__init__()
        self.config = c
        self.model = nn.ModuleDict(dict(embed_tokens=nn.Embedding(c.vocab_size, c.d_model), **more,
                                        layers=nn.ModuleList(layers), norm=RMSNorm(c.d_model, c.eps)))
        self.lm_head = nn.Linear(c.d_model, c.vocab_size, bias=False)
        self.drop = nn.Dropout(c.dropout)
        for name, p in self.named_parameters():
            if name.endswith(('o_proj.weight', 'down_proj.weight', 'lm_head.weight')):
                nn.init.zeros_(p)  # every block begins as the identity and every guess as uniform: loss starts at log V
            elif 'embed_tokens' in name:
                nn.init.normal_(p, std=0.02 if c.tied else 1.0)
            elif p.ndim == 2:
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]))  # keeps the size of what passes through
        if c.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, idx, targets=None):
        """idx (B, T) → logits (B, T, V); with targets (B, T), the summed cross-entropy in nats instead, targets of -1 left out."""
        x = self.hidden(idx)                        # (B, T, C)
        logits = self.lm_head(self.model.norm(x))   # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1, reduction='sum')


class Decoder(Model):
    def __init__(self, c):
        super().__init__(c, [Block(c) for _ in range(c.n_layers)])

    def rope(self, position):
        """Cosine and sine (T, D) of the angles by which rotate() turns the heads at these positions (T,)"""
        pair = torch.arange(0, self.config.head_dim, 2, device=position.device)
        angle = position[:, None] * self.config.rope_theta ** (-pair / self.config.head_dim)  # (T, D/2)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    def hidden(self, idx):
        """idx (B, T) → the residual stream after the last block (B, T, C)"""
        position = torch.arange(idx.shape[1], device=idx.device)
        review = (idx == self.config.eos).cumsum(1)                                   # (B, T): which review a token is of
        back = position[:, None] - position                                           # (T, T): how far back the key lies
        mask = ((back >= 0) & (back < self.config.chunk_size) & (review[:, :, None] == review[:, None, :]))[:, None]
        x = self.drop(self.model.embed_tokens(idx))
        rope = [t.to(x.dtype) for t in self.rope(position)]
        for block in self.model.layers:
            x = block(x, rope, mask)
        return x

    def writer(self, rows, length=math.inf):
        return Writer(self, rows, length)


class Writer:
    """The decoder laid out for writing: called with the next id of every row (B,), it returns the logits (B, V) of the one after.

    It keeps the keys and values of the tokens it has read, so that each costs one token's work and not the whole text's; and for one
    token starting an operation takes longer than computing it, so there are few: what reads the same is multiplied at once (q, k, v; gate,
    up), and RMSNorm's √n and gain stand in the matrix, or the rotation, that follows it (a single stream: 354 to 394 tokens/s, not 276 to 333)."""

    def __init__(self, model, rows, length):
        self.model, self.c, self.t, self.layers, self.gains = model, model.config, 0, [], []
        self.size = min(self.c.chunk_size, length)  # a ring: what lies chunk_size back is overwritten; a text of `length` tokens may need less
        H, K, D = self.c.nhead, self.c.nkv, self.c.head_dim
        gain = lambda norm: norm.weight * math.sqrt(len(norm.weight)) if norm else 1
        across = lambda *linear, after=None: (torch.cat([f.weight for f in linear]) * gain(after)).t().contiguous()  # (in, out): read in the order it lies in memory
        for b in model.model.layers:
            a, mlp = b.self_attn, b.mlp
            self.gains.append(torch.cat((a.q_norm.weight.expand(H, D), gain(a.k_norm).expand(K, D))))  # q's √D and the scores' 1/√D cancel
            self.layers.append((across(a.q_proj, a.k_proj, a.v_proj, after=b.input_layernorm), across(a.o_proj), across(mlp.gate_proj, mlp.up_proj, after=b.post_attention_layernorm),
                                across(mlp.down_proj), *self.gains[0].new_zeros(2, rows * K, self.size, D)))
        self.head = across(model.lm_head, after=model.model.norm)
        self.least = {n: self.head.new_tensor(math.sqrt(n * self.c.eps)) for n in (self.c.d_model, D)}

    def norm(self, x):
        """x / √(|x|² + n eps), n its size: RMSNorm but for √n and the gain."""
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(self.least[x.shape[-1]])

    def __call__(self, ids):
        B, H, K, D = len(ids), self.c.nhead, self.c.nkv, self.c.head_dim
        at, seen = self.t % self.size, min(self.t + 1, self.size)
        if at == 0:  # what rotate() does, as x cos + (x with its halves exchanged) sin
            cos, sin = self.model.rope(torch.arange(self.t, self.t + self.size, device=ids.device))  # (size, D)
            sin[:, :D // 2].neg_()
            self.turns = [(cos[:, None] * g, sin[:, None] * g.roll(D // 2, -1)) for g in self.gains]  # (size, H+K, D) each
        x = self.model.model.embed_tokens(ids)                                     # (B, C)
        for (w_qkv, w_o, w_gate_up, w_down, keys, values), (cos, sin) in zip(self.layers, self.turns):
            qkv = (self.norm(x) @ w_qkv).view(B, H + 2 * K, D)
            qk = self.norm(qkv[:, :H + K])
            qk = torch.addcmul(qk * cos[at], qk.roll(D // 2, -1), sin[at])
            keys[:, at], values[:, at] = qk[:, H:].reshape(-1, D), qkv[:, H + K:].reshape(-1, D)  # their order does not matter: the rotation tells where each is from
            scores = torch.bmm(qk[:, :H].reshape(B * K, H // K, D), keys[:, :seen].mT)
            x = torch.addmm(x, torch.bmm(scores.softmax(-1), values[:, :seen]).view(B, H * D), w_o)
            gate, up = (self.norm(x) @ w_gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, w_down)
        self.t += 1
        return self.norm(x) @ self.head


class MLPBlock(nn.Module):
    """x + mlp(norm(x)): a Block without the attention. (B, T, C) → (B, T, C)"""

    def __init__(self, c):
        super().__init__()
        self.norm, self.mlp, self.drop = RMSNorm(c.d_model, c.eps), SwiGLU(c), nn.Dropout(c.dropout)

    def forward(self, x):
        return x + self.drop(self.mlp(self.norm(x)))


class FFN(Model):
    def __init__(self, c):
        super().__init__(c, [MLPBlock(c) for _ in range(c.n_layers)], project=nn.Linear(c.window * c.d_model, c.d_model, bias=False))
        nn.init.eye_(self.model.project.weight)  # it begins with what it sees of the last token alone

    def hidden(self, idx):
        """idx (B, T) → (B, T, C), each position from its own last `window` tokens alone"""
        review = (idx == self.config.eos).cumsum(1)
        e = self.drop(self.model.embed_tokens(idx))                                       # (B, T, C)
        seen = [e]
        for back in range(1, self.config.window):
            shifted = F.pad(e, (0, 0, back, 0))[:, :e.shape[1]]                           # the token `back` places ago …
            same = F.pad(review, (back, 0), value=-1)[:, :e.shape[1]] == review           # … if it is of this review, else zeros
            seen.append(shifted * same[:, :, None])
        x = self.model.project(torch.cat(seen, dim=-1))                                   # (B, T, window * C) → (B, T, C)
        for block in self.model.layers:
            x = block(x)
        return x

    def writer(self, rows, length=math.inf):
        """As Decoder's; all this model needs to keep is the last `window` ids."""
        kept = []

        def read(ids):
            kept.append(ids)
            return self(torch.stack(kept[-self.config.window:], dim=1))[:, -1]
        return read


def build(config):
    return {'decoder': Decoder, 'ffn': FFN}[config.arch](config)


def pick(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """One id a row from logits (B, V) → (B,). Temperature 0 takes the likeliest; top_k keeps the k likeliest (0: all); top_p the
    fewest that together hold that much probability (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    probs = logits.softmax(-1)
    cdf = probs.cumsum(-1)
    draw = lambda: torch.searchsorted(cdf, torch.rand(len(cdf), 1, device=cdf.device, generator=generator) * cdf[:, -1:], right=True).clamp(max=cdf.shape[-1] - 1)
    ids = draw()
    # drawn from all, kept if what is likelier is not enough already: the same as sorting them all, in a fraction of its time
    while top_p < 1 and (outside := (probs * (probs > probs.gather(1, ids))).sum(-1, keepdim=True) >= top_p).any():
        ids = torch.where(outside, draw(), ids)
    return ids[:, 0]


@torch.inference_mode()
def generate(model, idx, max_token, banned=(), rivals=(), guidance=0.0, **picking):
    """Continue idx (B, T), one review a row, each beginning with </s> and a start id. Yields (B,) ids at a time, until every row has closed
    its review with </s> or max_token are written; a closed row goes on saying </s>. `banned` ids are never written; the rest goes to pick().

    With guidance, the model reads what it writes as rate() in eval.py would: every row is also read under each of the `rivals`, the other start ids, and
    an id is drawn from P(id) P(start | text, id)^guidance, so that it insists on its start (Ho & Salimans 2022, arXiv:2207.12598, by Bayes' rule)."""
    eos, B, R = model.config.eos, len(idx), 1 + len(rivals) * (guidance > 0)
    texts = idx.repeat(R, 1, 1)                                            # (R, B, T)
    for text, start in zip(texts[1:], rivals):
        text[:, 1] = start
    read = model.writer(R * B, idx.shape[1] + max_token)
    banned = torch.tensor(list(banned), dtype=torch.long, device=idx.device)
    closed, belief, ids, logits = torch.zeros(B, dtype=torch.bool, device=idx.device), 0.0, None, None
    for n in range(idx.shape[1] + max_token - 1):
        ids = texts[:, :, n] if n < idx.shape[1] else ids.expand(R, B)
        if R > 1 and n:
            belief = belief + logits.gather(-1, ids[:, :, None])[:, :, 0]  # log P(text | start) of every start so far (R, B)
        logits = read(ids.flatten()).view(R, B, -1)
        logits = logits.log_softmax(-1) if R > 1 else logits
        if n < idx.shape[1] - 1:
            continue
        own = logits[0]                                                    # (B, V)
        if R > 1:
            own = own + guidance * (own - (logits + belief.log_softmax(0)[:, :, None]).logsumexp(0))
        ids = pick(own.index_fill(1, banned, -math.inf), **picking).masked_fill(closed, eos)
        yield ids
        closed |= ids == eos
        if closed.all():
            return


NAMES = dict(vocab_size='vocab_size', d_model='hidden_size', d_ffn='intermediate_size', n_layers='num_hidden_layers',
             nhead='num_attention_heads', nkv='num_key_value_heads', head_dim='head_dim', chunk_size='max_position_embeddings',
             eps='rms_norm_eps', rope_theta='rope_theta', tied='tie_word_embeddings', eos='eos_token_id', bos='bos_token_id')
ARCHS = {'qwen3': 'decoder', 'window_mlp': 'ffn'}  # model_type in config.json → our arch


def save(model, folder, meta=None, more=None):
    """Write a model folder that Transformers reads: config.json, model.safetensors, generation_config.json, meta.json and
    more files ({name: bytes}: the vocabulary's, the card). Each is written beside its place and moved there whole."""
    c, folder, meta = model.config, Path(folder), meta or {}
    decoder = c.arch == 'decoder'
    config = {'architectures': ['Qwen3ForCausalLM' if decoder else 'WindowMLPForCausalLM'],
              'model_type': {arch: name for name, arch in ARCHS.items()}[c.arch], **{theirs: getattr(c, ours) for ours, theirs in NAMES.items()},
              'rope_parameters': {'rope_type': 'default', 'rope_theta': c.rope_theta}, 'hidden_act': 'silu', 'attention_bias': False,
              'attention_dropout': 0.0, 'dtype': 'float32',
              **({'use_sliding_window': True, 'sliding_window': c.chunk_size, 'max_window_layers': 0, 'layer_types': ['sliding_attention'] * c.n_layers}
                 if decoder else {'window': c.window})}  # what lies chunk_size back is out of sight, there as here
    weights = {name: p.detach().float().cpu().contiguous() for name, p in model.state_dict().items() if not (c.tied and name == 'lm_head.weight')}
    texts = {'config.json': config, 'generation_config.json': {'bos_token_id': c.bos, 'eos_token_id': c.eos, 'pad_token_id': c.eos}, 'meta.json': meta}
    files = {**(more or {}), **{name: json.dumps(text, indent=1, ensure_ascii=False).encode() for name, text in texts.items()}}
    files['model.safetensors'] = to_bytes(weights, metadata={'format': 'pt'})  # last: a folder with weights is complete
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        part = folder / f'{name}.part'
        try:
            part.write_bytes(content)
            os.replace(part, folder / name)
        finally:
            part.unlink(missing_ok=True)  # where the disk was full


def load(folder, device='cpu', dropout=0.0):
    """(model, meta) from a folder that save() or Transformers wrote. Nothing in it is executed: JSON and safetensors only.
    Raises ValueError, in one sentence, where it is not a model of ours or its parts do not fit each other."""
    folder = Path(folder)
    try:
        theirs = json.loads((folder / 'config.json').read_text('utf-8'))
        meta = json.loads((folder / 'meta.json').read_text('utf-8')) if (folder / 'meta.json').exists() else {}
    except FileNotFoundError:
        raise ValueError(f'{folder} is not a model folder: it has no config.json') from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f'{folder} cannot be read: {e}') from None
    arch = ARCHS.get(theirs.get('model_type')) if isinstance(theirs, dict) else None
    if arch is None:
        raise ValueError(f"{folder}/config.json: not one of {', '.join(ARCHS)}, the architectures known here")
    theirs.setdefault('rope_theta', (theirs.get('rope_parameters') or {}).get('rope_theta', 1e4))
    try:
        c = Config(arch=arch, dropout=dropout, **{ours: theirs[name] for ours, name in NAMES.items() if name in theirs},
                   **({'window': theirs['window']} if arch == 'ffn' else {}))
        with safe_open(folder / 'model.safetensors', 'pt') as f:
            held = {name: f.get_slice(name).get_shape() for name in f.keys() if not (c.tied and name == 'lm_head.weight')}
            if c.n_layers > len(held):  # before memory is asked for
                raise ValueError(f'{folder}: config.json tells of {c.n_layers:,} layers, model.safetensors holds but {len(held):,} tensors')
            with torch.device('meta'):
                model = build(c)
            wanted = {name: list(p.shape) for name, p in model.state_dict().items() if not (c.tied and name == 'lm_head.weight')}
            wrong = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
            if wrong:
                raise ValueError(f'{folder}: config.json and model.safetensors disagree on {wrong[0]} ({wanted.get(wrong[0])} and {held.get(wrong[0])})')
            weights = {name: f.get_tensor(name).float() for name in held}
    except (KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f'{folder}/config.json does not describe a model: {e!r}') from None
    except (OSError, SafetensorError) as e:
        raise ValueError(f'{folder}/model.safetensors cannot be read: {e}') from None
    if meta.get('vocab_size', 0) > c.vocab_size:
        raise ValueError(f'{folder}: its vocabulary has {meta["vocab_size"]:,} ids, but the model only {c.vocab_size:,}')
    model.load_state_dict(weights, strict=False, assign=True)
    if c.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.to(device).eval(), meta
