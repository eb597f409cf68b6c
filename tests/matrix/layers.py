"""Networks of the matrix: layers, norms, sequences and attention."""

from __future__ import annotations

import copy

import torch
from cases import batches_of
from matrix.problem import Parts, Problem, labelled, problem, symbols, trainable
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from spectra import Task


def mlp() -> Problem:
    return problem(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), *labelled())


def smooth_mlp() -> Problem:
    return problem(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), *labelled())


def _batch_norm(layer: type[nn.Module], *, frozen: bool = False) -> Problem:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), layer(2), nn.ReLU(), nn.Dropout(0.4), nn.Flatten(), nn.Linear(8, 3))
    norm = model[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.normal_()
        norm.bias.normal_()
    model[:2].requires_grad_(not frozen)
    data = batches_of(*labelled(9, (1, 3, 3)), 5, 4)
    model.train()

    def parts(bn_mode: str) -> Parts:
        def moments(h):
            return h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=bn_mode == "recalibrated")

        mean, variance = norm.running_mean, norm.running_var
        if bn_mode == "recalibrated":  # means over the batches, weighted by their rows
            found = [(len(x) / 9, *moments(model[0](x).detach())) for x, _ in data]
            mean, variance = sum(w * m for w, m, _ in found), sum(w * v for w, _, v in found)
        made = []
        for x, y in data:
            h = model[0](x)
            if bn_mode == "train":
                mean, variance = moments(h)
            h = (h - mean.view(-1, 1, 1)) / torch.sqrt(variance.view(-1, 1, 1) + norm.eps)
            h = h * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
            made.append((model[5](F.relu(h).flatten(1)), y))
        return made

    return Problem(Task(model, nn.CrossEntropyLoss(), data), parts, trainable(model))


def conv_batch_norm() -> Problem:
    return _batch_norm(nn.BatchNorm2d)


def sync_batch_norm() -> Problem:
    return _batch_norm(nn.SyncBatchNorm)


def frozen_backbone() -> Problem:
    return _batch_norm(nn.BatchNorm2d, frozen=True)


def _normalised(norm: nn.Module) -> Problem:
    model = nn.Sequential(nn.Conv2d(1, 4, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        for p in norm.parameters():
            p.normal_()
    return problem(model, *labelled(7, (1, 3, 3)))


def group_norm() -> Problem:
    return _normalised(nn.GroupNorm(2, 4))


def instance_norm() -> Problem:
    return _normalised(nn.InstanceNorm2d(4, affine=True))


def instance_norm_tracked() -> Problem:
    return _normalised(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))


def layer_norm() -> Problem:
    return _normalised(nn.LayerNorm([4, 2, 2]))


def rms_norm() -> Problem:
    model = nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Tanh(), nn.Linear(5, 3))
    x, y = labelled()

    def plain(x):
        h = model[0](x)
        h = h / torch.sqrt(h.square().mean(1, keepdim=True) + torch.finfo(h.dtype).eps) * model[1].weight
        return model[3](torch.tanh(h))

    return problem(model, x, y, plain=plain)


class Sequences(nn.Module):
    """A recurrent network over symbols; a class per sequence, from the last state or the masked mean of all."""

    def __init__(self, kind: type[nn.RNNBase], **options):
        super().__init__()
        self.embed = nn.Embedding(5, 2)
        self.body = kind(2, 2, batch_first=True, **options)
        self.head = nn.Linear(4 if options.get("bidirectional") else 2, 3)

    def forward(self, x, lengths=None):
        h = self.embed(x)
        if lengths is None:
            return self.head(self.body(h)[0][:, -1])
        packed = pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.body(packed)[0], batch_first=True)
        return self.head(states.sum(1) / lengths[:, None])


def rnn() -> Problem:
    return problem(Sequences(nn.RNN), *symbols())


def lstm() -> Problem:
    return problem(Sequences(nn.LSTM, num_layers=2, dropout=0.3), *symbols())


def gru() -> Problem:
    return problem(Sequences(nn.GRU, bidirectional=True), *symbols())


def packed_sequences() -> Problem:
    """Sequences of several lengths, packed; the reference runs them one by one."""
    model, (x, y), lengths = Sequences(nn.GRU), symbols(6, 4), torch.tensor([4, 1, 3, 2, 4, 2])
    data = [((x[rows], lengths[rows]), y[rows]) for rows in torch.arange(6).split((4, 2))]

    def plain(x):
        states = [model.body(model.embed(row[None, :length]))[0].mean(1) for row, length in zip(x, lengths)]
        return model.head(torch.cat(states))

    return problem(model, x, y, data=data, plain=plain, options={"forward": lambda m, b: m(*b[0])})


def transformer() -> Problem:
    layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.2, batch_first=True)
    model = nn.Sequential(nn.Embedding(5, 4), layer, nn.Flatten(), nn.Linear(12, 3))

    def plain(x):
        """Attention by a softmax over scores."""
        attention = layer.self_attn
        h = model[0](x)
        projected = h @ attention.in_proj_weight.T + attention.in_proj_bias
        q, k, v = (part.unflatten(2, (2, 2)).transpose(1, 2) for part in projected.chunk(3, 2))
        mixed = (q @ k.transpose(2, 3) / 2**0.5).softmax(3) @ v
        h = layer.norm1(h + attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        h = layer.norm2(h + layer.linear2(F.relu(layer.linear1(h))))
        return model[3](h.flatten(1))

    return problem(model, *symbols(), plain=plain)


class Attention(nn.Module):
    """Causal attention of two heads of two over symbols: grouped keys and values, rotary positions, tied embedding."""

    def __init__(self, groups: int = 2, *, rotary: bool = False, tied: bool = False):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 2 * groups), nn.Linear(4, 2 * groups)
        self.head = nn.Linear(4, 5 if tied else 3, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.rotary = rotary

    def heads(self, x):
        h = self.embed(x)
        q, k, v = (layer(h).unflatten(2, (-1, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.rotary:
            q, k = rotated(q), rotated(k)
        return q, k, v

    def forward(self, x):
        q, k, v = self.heads(x)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < 2)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))

    def plainly(self, x):
        q, k, v = self.heads(x)
        k, v = k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1)
        hidden = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        mixed = (q @ k.transpose(2, 3) / 2**0.5 + hidden).softmax(3) @ v
        return mixed.transpose(1, 2).flatten(2).mean(1) @ self.head.weight.T


def rotated(h):
    """Pairs of entries turned by their position, as complex numbers."""
    positions = torch.arange(h.shape[2], dtype=h.dtype)
    turned = torch.view_as_complex(h.unflatten(3, (1, 2)).contiguous()) * torch.polar(
        torch.ones_like(positions), positions
    ).view(-1, 1)
    return torch.view_as_real(turned).flatten(3)


def _attention(**options) -> Problem:
    model = Attention(**options)
    return problem(model, *symbols(), plain=model.plainly)


def attention() -> Problem:
    return _attention()


def grouped_queries() -> Problem:
    return _attention(groups=1)


def rotary() -> Problem:
    return _attention(rotary=True)


def tied_embedding() -> Problem:
    return _attention(tied=True)


class UNet(nn.Module):
    """One level down by a maximum, one up by a transposed convolution; the mean of the pixels is classified."""

    def __init__(self):
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding="same")
        self.up, self.out = nn.ConvTranspose2d(2, 2, 2, stride=2), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        kept = F.silu(self.down(x))
        low = F.silu(self.bottom(F.max_pool2d(kept, 2)))
        return self.out(torch.cat([kept, self.up(low)], 1)).mean((2, 3))


def unet() -> Problem:
    return problem(UNet(), *labelled(5, (1, 4, 4)))


class Scattered(nn.Module):
    """Messages along edges, added up at their ends by `index_add`."""

    def __init__(self):
        super().__init__()
        self.message, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, graph):
        x, edges = graph
        sent = F.softplus(self.message(x))[edges[0]]
        return self.head(torch.zeros(len(x), 4, dtype=x.dtype).index_add(0, edges[1], sent))


def graph_scatter() -> Problem:
    """Two graphs, a batch each, with a label per node; the reference has dense matrices of edges."""
    model, sizes = Scattered(), (5, 4)
    x, y = torch.randn(9, 3), torch.randint(3, (9,))
    edges = [torch.randint(size, (2, 3 * size)) for size in sizes]
    data = [((a, e), b) for (a, b), e in zip(batches_of(x, y, *sizes), edges)]
    adjacency = torch.zeros(9, 9)
    for start, e in zip((0, 5), edges):
        for sender, receiver in e.T:
            adjacency[start + receiver, start + sender] += 1
    return problem(model, x, y, data=data, plain=lambda x: model.head(adjacency @ F.softplus(model.message(x))))


class Experts(nn.Module):
    """Each row goes to the expert with the largest score, its output times the score; the last expert gets none."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        with torch.no_grad():
            self.router.bias[2] = -50.0

    def forward(self, x):
        scores = self.router(x).softmax(1)
        chosen = scores.argmax(1)
        out = torch.zeros(len(x), 3, dtype=x.dtype)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * scores[rows, index, None])
        return out


def mixture_of_experts() -> Problem:
    model = Experts()

    def plain(x):
        scores = model.router(x).softmax(1)
        best = F.one_hot(scores.argmax(1), 3)
        return sum((best[:, i] * scores[:, i])[:, None] * model.experts[i](x) for i in range(3))

    return problem(model, *labelled(), plain=plain)


def ensemble() -> Problem:
    """Two copies of one network whose outputs are added, with dropout in train mode."""
    body = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 3))

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList([body, copy.deepcopy(body)])

        def forward(self, x):
            return sum(member(x) for member in self.members)

    return problem(Sum(), *labelled())
