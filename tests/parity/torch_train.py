"""The PyTorch side of `python -m train.bench --torch=...`: trains on request, one JSON line each way.

    {"key": key, "model": {n_layers, ...}, "kind": "plain" | "transformers", "compiled": false, ...}
                                                                -> {"parameters": n, "versions": ..., ...}
    {"use": key, "steps": 10, "batch": 4, "length": 256}        -> {"seconds": s, "loss": nats}

Float32, AdamW (fused), gradients clipped by their global norm; OMP_NUM_THREADS sets the threads. "plain" is a
Llama block written in PyTorch with scaled_dot_product_attention; "transformers" is LlamaForCausalLM with the
same attention. Imports torch, not our packages.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class Block(nn.Module):
    def __init__(self, n_heads, n_kv_heads, head_dim, d_model, d_ff, **_):
        super().__init__()
        self.head_dim = head_dim
        self.q, self.o = linear(d_model, n_heads * head_dim), linear(n_heads * head_dim, d_model)
        self.k, self.v = (linear(d_model, n_kv_heads * head_dim) for _ in range(2))
        self.gate, self.up, self.down = linear(d_model, d_ff), linear(d_model, d_ff), linear(d_ff, d_model)
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(d_model, eps=1e-6) for _ in range(2))

    def forward(self, x, cos, sin):
        h = self.attention_norm(x)
        q, k, v = (self.heads(part(h)) for part in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(a.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))

    def heads(self, y):
        return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Llama(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width = shape["d_model"]
        self.embed = nn.Embedding(shape["vocab_size"], width)
        self.blocks = nn.ModuleList(Block(**shape) for _ in range(shape["n_layers"]))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), linear(width, shape["vocab_size"])
        half = torch.arange(0, shape["head_dim"], 2) / shape["head_dim"]
        angle = torch.outer(torch.arange(shape["length"]).float(), 10_000.0**-half)
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], -1))
        self.register_buffer("sin", torch.cat([angle.sin(), angle.sin()], -1))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def linear(d_in, d_out):
    return nn.Linear(d_in, d_out, bias=False)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def transformers_model(shape):
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["d_model"],
        intermediate_size=shape["d_ff"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=shape["head_dim"],
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    return model, lambda tokens: model(tokens).logits


class Side:
    """One model with its optimizer and training loop."""

    def __init__(self, ask):
        torch.manual_seed(0)
        if ask["kind"] == "plain":
            self.model = Llama(ask["model"])
            call = self.model
        else:
            self.model, call = transformers_model(ask["model"])
        vocab = ask["model"]["vocab_size"]

        def loss(tokens, target):
            return F.cross_entropy(call(tokens).view(-1, vocab), target.reshape(-1))

        self.loss = torch.compile(loss) if ask["compiled"] else loss
        betas = (ask["beta1"], ask["beta2"])
        self.rule = torch.optim.AdamW(
            self.model.parameters(), lr=ask["rate"], betas=betas, weight_decay=0.0, fused=True
        )
        self.clip, self.vocab = ask["clip"], vocab

    def train(self, steps, batch, length):
        rows = torch.randint(1, self.vocab, (steps, batch, length + 1))
        begin = time.perf_counter()
        for row in rows:
            loss = self.loss(row[:, :-1], row[:, 1:])
            self.rule.zero_grad(set_to_none=True)
            loss.backward()
            if self.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.rule.step()
        last = loss.item()
        return {"seconds": time.perf_counter() - begin, "loss": last}


def main() -> None:
    sides = {}
    for line in sys.stdin:
        ask = json.loads(line)
        if "model" in ask:
            side = sides[ask["key"]] = Side(ask)
            answer = {
                "parameters": sum(p.numel() for p in side.model.parameters()),
                "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
                "threads": torch.get_num_threads(),
            }
        else:
            answer = sides[ask["use"]].train(ask["steps"], ask["batch"], ask["length"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
