"""The same numbers, faster; skip it on a first reading.

model.next_logits() is the lesson, and this is checked against it. To compute one token takes less
time than to start the operations, so here there are few of them: what reads the same is multiplied
at once (q, k, v; gate, up), and RMSNorm's √n and gain stand in the matrix that follows it, or in
the rotation. Matrices lie in the order in which a single row is multiplied by them fastest.
For figures see docs/LOG.md.
"""
import math

import torch
import torch.nn.functional as F


class FusedStep:
    """To be called as model.next_logits(), for one decoder, which must not change meanwhile."""

    def __init__(self, model):
        config = model.config
        H, K, D = config.nhead, config.nkv, config.head_dim
        self.config = config
        self.layers, self.gains = [], []
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            self.layers.append((
                merged((attention.q_proj, attention.k_proj, attention.v_proj),
                       block.input_layernorm),
                merged((attention.o_proj,)),
                merged((mlp.gate_proj, mlp.up_proj), block.post_attention_layernorm),
                merged((mlp.down_proj,)),
            ))
            # q's √D and the 1/√D of the scores cancel
            q_gain = attention.q_norm.weight.expand(H, D)
            k_gain = attention.k_norm.weight.expand(K, D) * math.sqrt(D)
            self.gains.append(torch.cat((q_gain, k_gain)))     # (H+K, D)
        self.head = merged((model.lm_head,), model.model.norm)
        self.first = None                                      # of the positions in self.turns

    def __call__(self, model, ids, cache):
        """Read one more id a row (B,) → logits of the one after (B, V)."""
        B, H, K, D = len(ids), self.config.nhead, self.config.nkv, self.config.head_dim
        position, place = cache.n_read, cache.n_read % cache.size
        cache.n_read += 1
        cache.n_seen = min(cache.n_read, cache.size)
        n, turns = self.turns_at(model, position)
        x = model.model.embed_tokens(ids)                      # (B, C)
        for layer, (cos, sin), keys, values in zip(self.layers, turns, cache.keys, cache.values):
            w_qkv, w_o, w_gate_up, w_down = layer
            qkv = (self.norm(x) @ w_qkv).view(B, H + 2 * K, D)
            qk = self.norm(qkv[:, :H + K])
            qk = torch.addcmul(qk * cos[n], qk.roll(D // 2, -1), sin[n])
            keys[:, :, place] = qk[:, H:]                      # keys and values (B, K, size, D)
            values[:, :, place] = qkv[:, H + K:]
            keys, values = keys[:, :, :cache.n_seen], values[:, :, :cache.n_seen]
            q = qk[:, :H].reshape(B, K, H // K, D)             # H / K heads share a key
            y = (q @ keys.mT).softmax(dim=-1) @ values         # (B, K, H/K, D)
            x = torch.addmm(x, y.reshape(B, H * D), w_o)
            gate, up = (self.norm(x) @ w_gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, w_down)
        return self.norm(x) @ self.head

    def norm(self, x):
        """RMSNorm but for √n and the gain: x / √(|x|² + n eps), n its size."""
        least = math.sqrt(x.shape[-1] * self.config.eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / length.hypot(length.new_tensor(least))

    def turns_at(self, model, position):
        """(n, tables): cos[n] and sin[n] (H+K, D) of every layer turn the heads at this position.

        Written as x cos + (x with its halves exchanged) sin, with the gains inside. The tables hold
        256 positions and are made anew for the next 256.
        """
        if self.first is None or not self.first <= position < self.first + 256:
            self.first = position
            positions = torch.arange(position, position + 256, device=self.head.device)
            cos, sin = model.rope(positions, self.head.dtype)  # (256, D/2) each
            cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
            self.turns = []
            for gain in self.gains:
                exchanged = gain.roll(gain.shape[-1] // 2, -1)
                self.turns.append((cos[:, None] * gain, sin[:, None] * exchanged))
        return position - self.first, self.turns


def merged(linears, norm=None):
    """Linear layers that read the same, as one matrix (in, out) with the gain of their norm."""
    weight = torch.cat([linear.weight for linear in linears])  # (out, in)
    if norm is not None:
        weight = weight * norm.weight * math.sqrt(len(norm.weight))
    return weight.detach().t().contiguous()
