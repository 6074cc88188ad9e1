"""What makes a model fast on a CPU, done to its plain layers from outside: `prepare(model)`, and `undo(model)`.

`prepare` gives each layer of `FAST` a subclass of its own class, in place. Such a layer has the same parameters and
gives the same result by another way; it takes the plain way where anything but numbers is asked for (gradients, a
graph, autocast) and where a layer inside it is no longer bare (an adapter, a hook, quantized weights). `.train()`,
`.to(...)` and putting a layer into another module, as adapters do, make it plain again; so do copies and pickles.

Which product is the quickest was measured on 2 cores each of two kinds of processor (docs/log.md). On an AMD EPYC
with AVX-512, where PyTorch's own choice, MKL, uses half the width of the registers and reads the weights anew for
every row:

- matrices of less than 512 x 512 numbers: MKL, since oneDNN takes 10 µs before it begins;
- 2 to 4 rows, a matrix at least as tall as wide: (W xᵀ)ᵀ, up to 3 times as fast where the weights come from memory, as
  a whole model's do (of a single 768 x 768 matrix that stays in the core's cache, MKL is faster);
- else oneDNN on the plain weights, up to 2 times as fast for few rows, 1.3 times for thousands;
- weights that oneDNN has re-ordered once ("packed"): up to twice as fast again.

On an Intel Xeon with AVX-512 MKL is the quickest for up to 4 rows and for many, as fast as memory lets it:

- 5 to 32 rows of a large matrix: oneDNN, about as fast to 1.8 times;
- packed weights, 4 to 64 rows: 2.5 times as fast for few rows of a large matrix, about as fast for many;
- many rows in bfloat16 without AMX: in float32, weights converted on the way, 1.2 to 1.6 times, because bfloat16's own
  instructions are the slower ones there; not a vocabulary's matrix, whose conversion takes longer than it saves.

Where nothing was measured (other processors) PyTorch's own choice, or packed weights, do all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from lavis.common.device import bfloat16_is_slow, cpu_maker
from lavis.nn import language_model, text, transformer
from lavis.nn.attention import Mask, Reader, split_heads
from lavis.nn.linear import ExactLinear

M = TypeVar("M", bound=nn.Module)

_TRANSPOSED_ROWS = range(2, 5)
_MANY_ROWS = 64  # so many that arithmetic, and not reading the weights, takes the time
# numbers in a matrix
_SMALL = 1 << 18  # for smaller ones PyTorch's own product is the quickest
_LARGE = 2 << 20  # more than a core's own cache holds
_CONVERTIBLE = 6 << 20  # whose float32 copy the allocator has at hand, see _SLICE
# A larger tensor is fetched from the system and given back each time (glibc's limit is 32 MiB), page by page: 32
# images of 577 tokens through ViT-B took 18.1 s at once and 14.5 s by threes (docs/log.md).
_SLICE = 24 << 20  # bytes


def prepare(model: M, pack: bool = False) -> M:
    """Make the layers of a model on a CPU fast, in place; of any model, such as one of transformers, too.

    Cheap, and without effect where it has been done. Models of this library do it themselves when they are asked for
    a result in evaluation mode.

    Args:
        pack: keep a second copy of the weights as oneDNN likes them, which costs their memory once more; for models
            that are asked for many results. After weights were changed in place through `.data`, pack again.

    Returns:
        The model.
    """
    first = next(model.parameters(), None)
    if first is None or first.device.type != "cpu" or torch.compiler.is_compiling():
        return model
    _watch_adapters()
    for module in _modules(model):
        fast = FAST.get(type(module))
        if fast is not None:
            module.__class__ = fast
    if pack:
        _pack(model)
    return model


def undo(model: M) -> M:
    """Make the layers of a model plain again, in place."""
    for module in _modules(model):
        _plain(module)
    return model


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """As `model.modules()`, in a third of the time; a module that stands in two places may come twice."""
    left = [model]
    while left:
        module = left.pop()
        yield module
        left.extend(child for child in module._modules.values() if child is not None)


def _plain(module: nn.Module) -> nn.Module:
    plain = _PLAIN.get(type(module))
    if plain is not None:
        module.__class__ = plain
        module.__dict__.pop("packed", None)
    return module


@functools.cache
def _watch_adapters() -> None:
    """A fast layer that becomes part of another module, as adapters take layers in, is plain from then on: its weights
    may soon be others."""

    def registered(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if child is not None:
            _plain(child)

    nn.modules.module.register_module_module_registration_hook(registered)


# ------------------------------------------------------------------------------------------ when


def _is_inference(x: torch.Tensor) -> bool:
    """Whether a result on a CPU is asked for and nothing else: no gradients, no graph."""
    return not (torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_grad_enabled())


def _is_bare(*layers: nn.Module) -> bool:
    """Whether layers are fast ones that compute nothing but their product, so that a whole may compute it for them.

    An adapter or a parametrization has another class, quantized weights have too, and a hook wants to see the call.
    """
    return all(
        type(layer) is FastLinear
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and type(layer.weight) is nn.Parameter
        and "forward" not in layer.__dict__
        for layer in layers
    )


class _Fast(nn.Module):
    """A fast layer: when it goes back to its plain class."""

    def train(self, mode: bool = True) -> Any:
        if mode and type(self) in _PLAIN:
            return _plain(self).train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # .to(), .half(), .cuda()
        if type(self) in _PLAIN:
            return _plain(self)._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies and pickles are plain
        if type(self) not in _PLAIN:
            return super().__reduce_ex__(protocol)
        return _blank, (_PLAIN[type(self)],), {k: v for k, v in self.__dict__.items() if k != "packed"}


def _blank(plain: type[nn.Module]) -> nn.Module:
    return plain.__new__(plain)


# ---------------------------------------------------------------------------------------- products


class Packed(NamedTuple):
    """Weights in oneDNN's layout; the bias; and of which state of which parameters they are a copy."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    state: tuple[tuple[int, int], ...]


def _state(layers: Sequence[nn.Linear]) -> tuple[tuple[int, int], ...]:
    """Changes with the layers' weights, but for changes in place through `.data`."""
    weights = [layer.weight for layer in layers]
    return tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)


def _packed(layers: Sequence[nn.Linear]) -> Packed | None:
    """The packed weights of layers that read the same; None where oneDNN has no product for them, or none that pays."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    if not _packs(weight.dtype) or weight.numel() < _SMALL:
        return None
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    return Packed(torch.ops.mkldnn._reorder_linear_weight(weight, 16), bias, _state(layers))


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of a format on this CPU: bfloat16 needs AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _pack(model: nn.Module) -> None:
    """Pack the weights of a model's fast layers, those of a self-attention's projections together."""
    together: set[nn.Module] = set()
    for module in _modules(model):
        if type(module) is FastSelfProjections:
            module.packed = _packed(module.layers) if _is_bare(*module.layers) else None
            together.update(module.layers if module.packed is not None else ())
    for module in _modules(model):
        if isinstance(module, FastLinear) and type(module.weight) is nn.Parameter and type(module) in _PLAIN:
            module.packed = None if module in together else _packed([module])


def _better_in_float32(x: torch.Tensor, rows: int, weight: torch.Tensor) -> bool:
    many = rows > _MANY_ROWS and weight.numel() <= _CONVERTIBLE
    return many and x.dtype == torch.bfloat16 and bfloat16_is_slow()


def _pays(x: torch.Tensor, rows: int, packed: Packed) -> bool:
    """Whether packed weights are the quickest for `x`."""
    if x.dtype == torch.bfloat16:
        return not _better_in_float32(x, rows, packed.weight)
    return 4 <= rows <= _MANY_ROWS or cpu_maker() != "Intel"


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str) -> torch.Tensor:
    """oneDNN's product, of plain or packed weights, and `then` "gelu" of it or "none"."""
    # for "gelu" the last argument says which: "none" is the exact one
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none" if then == "gelu" else "")


def _transposed(x: torch.Tensor, rows: int, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    columns = x.reshape(rows, -1).t()  # (in, rows)
    out = torch.mm(weight, columns) if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    # rows side by side again: attention's quick kernel refuses queries that lie otherwise
    return out.t().contiguous().view(*x.shape[:-1], -1)


def _finish(x: torch.Tensor, then: str) -> torch.Tensor:
    return torch.ops.aten.gelu_(x) if then == "gelu" else x


class FastLinear(_Fast, nn.Linear):
    packed: Packed | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., in_features) -> (..., out_features)
        if _is_inference(input):
            return self.product(input)
        return super().forward(input)

    def product(self, x: torch.Tensor, then: str = "none") -> torch.Tensor:
        """`forward` in inference, and `then` "gelu" of it or "none"."""
        weight, bias, wide = self.weight, self.bias, self.in_features
        size, rows = weight.numel(), x.numel() // wide
        if (
            type(weight) is not nn.Parameter or type(x) is not torch.Tensor or x.dtype != weight.dtype
            or not rows or x.ndim < 2 or x.shape[-1] != wide or torch.is_autocast_enabled("cpu")
        ):  # fmt: skip
            return _finish(super().forward(x), then)  # or says what is wrong
        packed = self.packed
        if packed is not None and _pays(x, rows, packed) and packed.state == _state([self]):
            return _onednn(x, packed.weight, packed.bias, then)
        if _better_in_float32(x, rows, weight):
            wider = None if bias is None else bias.float()
            return _finish(F.linear(x.float(), weight.float(), wider), then).bfloat16()
        maker = cpu_maker() if x.dtype == torch.float32 and size >= _SMALL else ""
        if maker == "AMD" and rows in _TRANSPOSED_ROWS and self.out_features >= wide:
            return _finish(_transposed(x, rows, weight, bias), then)
        if maker == "AMD" or (maker == "Intel" and 5 <= rows <= 32 and size >= _LARGE):
            return _onednn(x, weight, bias, then)
        return _finish(F.linear(x, weight, bias), then)


class FastExactLinear(ExactLinear, FastLinear):
    pass


# ------------------------------------------------------------------------------------- feed-forward


class FastIntermediate(_Fast, text.Intermediate):
    """GELU in the product's own pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _is_inference(x) and _is_bare(self.dense):
            return self.dense.product(x, "gelu")  # type: ignore[operator]
        return super().forward(x)


class FastHeadTransform(_Fast, language_model.HeadTransform):
    """GELU in the product's own pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _is_inference(x) and _is_bare(self.dense):
            return self.LayerNorm(self.dense.product(x, "gelu"))  # type: ignore[operator]
        return super().forward(x)


class FastMlp(_Fast, transformer.Mlp):
    """GELU in the product's own pass; one new tensor for `quick_gelu` instead of three, half the time of many rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _is_inference(x) and self.activation == "quick_gelu":
            x = self.fc1(x)
            return self.fc2((1.702 * x).sigmoid_().mul_(x))
        if _is_inference(x) and self.activation == "gelu" and _is_bare(self.fc1):
            return self.fc2(self.fc1.product(x, "gelu"))  # type: ignore[operator]
        return super().forward(x)


class FastResidual(_Fast, text.Residual):
    """In a decoding step even the call of an idle dropout takes time."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        drop = self.dropout
        if drop.training or type(drop) is not nn.Dropout or drop._forward_hooks or drop._forward_pre_hooks:
            return super().forward(x, residual)
        return self.LayerNorm(self.dense(x) + residual)


# ---------------------------------------------------------------------------------------- attention


class _FastReader(_Fast, Reader):
    """Short masked texts with padded keys; many queries of bfloat16 in float32 where its products are slow."""

    def read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask = None) -> torch.Tensor:
        if self.kept is not None or not _is_inference(q):
            return super().read(q, k, v, mask)
        if q.dtype == torch.float32 and isinstance(mask, torch.Tensor):
            k, v, mask = _in_whole_vectors(k, v, mask)
        elif q.dtype == torch.bfloat16 and q.shape[:2].numel() > 64 * k.shape[0] and bfloat16_is_slow():
            with torch.autocast("cpu", enabled=False):
                return super().read(q.float(), k.float(), v.float(), mask).to(q.dtype)
        return super().read(q, k, v, mask)


def _in_whole_vectors(
    k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and mask with padding that nobody looks at, where it saves time: of short texts.

    PyTorch's kernel takes keys 16 at a time and the rest one by one: 64 texts of 11 tokens took it 2.7 times as long
    as those of 16 (docs/log.md).
    """
    lacking = -k.shape[2] % 16
    if not lacking or k.shape[2] > 48 or k.shape[0] < 8:
        return k, v, mask
    pad = (0, 0, 0, lacking)
    return F.pad(k, pad), F.pad(v, pad), F.pad(mask, (0, lacking))


class FastAttention(_FastReader, transformer.Attention):
    pass


class FastCrossAttention(_FastReader, text.CrossAttention):
    pass


class FastTwinCrossAttention(_FastReader, text.TwinCrossAttention):
    pass


class FastSelfProjections(_Fast, text.SelfProjections):
    """A single product once it is packed."""

    packed: Packed | None = None

    @property
    def layers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.query, self.key, self.value

    def forward(self, x: torch.Tensor, only_first: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        packed = self.packed
        if (
            packed is None or not _is_inference(x) or torch.is_autocast_enabled("cpu")
            or x.dtype != packed.weight.dtype or not x.numel() or not _pays(x, x.shape[:2].numel(), packed)
            or not _is_bare(*self.layers) or packed.state != _state(self.layers)
        ):  # fmt: skip
            return super().forward(x, only_first)
        q, k, v = _onednn(x, packed.weight, packed.bias, "none").chunk(3, dim=-1)
        return q[:, :1] if only_first else q, split_heads(k, self.heads), split_heads(v, self.heads)


class FastSelfAttention(_FastReader, text.SelfAttention):
    """The last layer's first token without every token's keys and values."""

    def forward(self, x: torch.Tensor, mask: Mask, cache: Any, index: int, only_first: bool) -> torch.Tensor:
        if (
            only_first and cache is None and self.kept is None and not self.training and _is_inference(x)
            and (mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.shape[2] == 1))
            and _is_bare(self.self.key, self.self.value)
        ):  # fmt: skip
            return self.first(x, mask)
        return super().forward(x, mask, cache, index, only_first)

    def first(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The first token among all of its text, (R, T, D) -> (R, 1, D).

        Its query goes through the key projection and its sum of states through the value projection, in place of
        every token's state through both. The key's bias adds the same to all scores of a query.
        """
        q = self.self.query(x[:, 0]).unflatten(-1, (self.heads, -1))  # (R, H, Dh)
        key, value = self.self.key.weight, self.self.value.weight
        with torch.autocast("cpu", enabled=False):  # in float32, as attention's kernels keep their scores
            states, width = x.float(), (self.heads, -1, x.shape[-1])  # (H, Dh, D)
            q = torch.einsum("rhd,hde->rhe", q.float() * q.shape[-1] ** -0.5, key.float().view(width))
            scores = q @ states.transpose(1, 2)  # (R, H, T)
            if mask is not None:
                scores = scores.masked_fill(~mask[:, 0], float("-inf"))
            found = scores.softmax(dim=-1) @ states  # (R, H, D)
            found = torch.einsum("rhe,hde->rhd", found, value.float().view(width)).flatten(1)
        found = found.to(value.dtype) + self.self.value.bias
        return self.output(found[:, None], x[:, :1])


# ------------------------------------------------------------------------------------------- stacks


class FastBlocks(_Fast, transformer.Blocks):
    """A large batch goes through the blocks a few rows at a time.

    While something looks on there (an attention that keeps its weights, a hook), all rows go at once.
    """

    def forward(self, x: torch.Tensor, *more: Any) -> torch.Tensor:
        if not _is_inference(x):
            return super().forward(x, *more)
        # inner states are about four times as wide as x
        rows = max(_SLICE // (x.shape[1] * x.shape[2] * 4 * x.element_size()), 1)
        if (
            len(x) <= rows
            or any(isinstance(each, torch.Tensor) for each in more)  # might be of the rows, too
            or any(_is_watched(module) for module in self.modules())
        ):
            return super().forward(x, *more)
        return torch.cat([super(FastBlocks, self).forward(part, *more) for part in x.split(rows)])


def _is_watched(module: nn.Module) -> bool:
    kept = isinstance(module, Reader) and module.kept is not None
    return kept or bool(module._forward_hooks or module._forward_pre_hooks)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FastLinear,
    ExactLinear: FastExactLinear,
    text.Intermediate: FastIntermediate,
    text.Residual: FastResidual,
    text.SelfProjections: FastSelfProjections,
    text.SelfAttention: FastSelfAttention,
    text.CrossAttention: FastCrossAttention,
    text.TwinCrossAttention: FastTwinCrossAttention,
    language_model.HeadTransform: FastHeadTransform,
    transformer.Mlp: FastMlp,
    transformer.Attention: FastAttention,
    transformer.Blocks: FastBlocks,
}
_PLAIN = {fast: plain for plain, fast in FAST.items()}
