"""Records, in one forward pass, how the activations of a network scale with its parameters (their degrees).

Every activation has a degree (its log-scale), and every parameter tensor an exponent. The rules are:

- The input has degree 0.
- A linear map or convolution adds the exponent of its weight; its bias has the degree of its output.
- ReLU and similar activations, pooling and changes of shape keep the degree.
- Tensors that are added or concatenated must have the same degree.

Any other operation (tanh, a softmax, an added constant) is not positively homogeneous. The pass is then refused, with
the name and the place of the operation. Calls are intercepted with ``torch.overrides``, so functional calls are treated
like layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from spectra.errors import TaskError
from spectra.sharpness.float64_copy import leaves
from spectra.sharpness.operation_names import DROPOUT, JOINS, KEEPING, LINEAR, NUMBERS, PRODUCTS, QUOTIENTS, SUMS

Form = dict[int, Fraction]  # a linear form in the unknowns: {unknown: coefficient}


@dataclass(frozen=True)
class Layer:
    """A linear map or convolution as it was called, by the names of its parameters in the model."""

    kind: str
    weight: str
    bias: str | None
    groups: int


@dataclass(frozen=True)
class Degrees:
    """The constraints of one forward pass on the exponents of the trainable parameters."""

    exponents: dict[str, Form]  # of every trainable parameter that was used
    constraints: list[Form]  # forms that must be 0
    unknowns: int
    layers: tuple[Layer, ...]  # in the order of the calls


def record_degrees(model: nn.Module, batch: Any, call: Callable[[], Any]) -> Degrees:
    """The degrees of one forward pass, ``call()``, of a model in eval mode.

    Args:
        model: the model, whose parameters are known by their names.
        batch: what it is called with; its tensors have degree 0.
        call: calls the model, and returns its outputs, which must have degree 0.

    Raises:
        TaskError: an operation is not positively homogeneous; the message has its name and place.
    """
    recorder = _Recorder(model)
    for tensor in leaves(batch):
        recorder.give(tensor, {})
    with recorder.places(model), recorder:
        outputs = leaves(call())
    for tensor in outputs:
        form = recorder.degree(tensor)
        if form is not None:
            recorder.constraints.append(form)
    return Degrees(recorder.exponents, recorder.constraints, recorder.unknowns, tuple(recorder.layers))


def _minus(a: Form, b: Form) -> Form:
    result = dict(a)
    for key, value in b.items():
        result[key] = result.get(key, Fraction(0)) - value
    return {key: value for key, value in result.items() if value}


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parameters = {id(p): (name, p.requires_grad) for name, p in model.named_parameters()}
        self.degrees: dict[int, Form] = {}  # of activations, by address
        self.kept: list[torch.Tensor] = []  # alive, so that no address is used twice
        self.exponents: dict[str, Form] = {}
        self.constraints: list[Form] = []
        self.layers: list[Layer] = []
        self.unknowns = 0
        self.where: list[str] = []

    @contextmanager
    def places(self, model: nn.Module) -> Iterator[None]:
        """Track the module in which each call is made."""
        handles: list[Any] = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise TaskError("the layers of a TorchScript module cannot be followed: pass the module it was made of")
            place = f"{name} ({type(module).__name__})" if name else type(module).__name__
            handles.append(module.register_forward_pre_hook(lambda *_, place=place: self.where.append(place)))
            handles.append(module.register_forward_hook(lambda *_: void(self.where.pop())))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -- the state of a tensor: an activation has a degree, a parameter (or a view of one) an exponent

    def give(self, tensor: torch.Tensor, form: Form) -> None:
        self.degrees[id(tensor)] = form
        self.kept.append(tensor)

    def degree(self, tensor: torch.Tensor) -> Form | None:
        """The degree of an activation, or of a parameter used as one; None for a constant."""
        if id(tensor) in self.degrees:
            return self.degrees[id(tensor)]
        if id(tensor) in self.parameters:
            name, trainable = self.parameters[id(tensor)]
            if not trainable:
                return {}
            if name not in self.exponents:
                self.exponents[name] = self.unknown()
            return self.exponents[name]
        return None

    def unknown(self) -> Form:
        self.unknowns += 1
        return {self.unknowns - 1: Fraction(1)}

    def known(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and (id(value) in self.degrees or id(value) in self.parameters)

    def refuse(self, what: str) -> TaskError:
        where = self.where[-1] if self.where else "the forward function"
        return TaskError(f"the network is not positively homogeneous: {what} in {where}")

    # -- the rules

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = leaves([args, kwargs])
        is_known = [self.known(tensor) for tensor in inputs]
        constant = (
            [tensor.clone() for tensor, is_scaled in zip(inputs, is_known) if not is_scaled] if any(is_known) else []
        )
        result = func(*args, **kwargs)
        if not any(is_known):
            return result
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a property: x.shape, x.T
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        outputs = leaves(result)
        if not outputs:
            if name in NUMBERS or name == "__setitem__":
                raise self.refuse(f"{name}, which takes numbers out of a tensor or writes into one,")
            return result
        if "out" in kwargs:
            raise self.refuse(f"{name} with out=")
        self.follow(func, name, args, kwargs, inputs, outputs, constant)
        return result

    def follow(
        self,
        func: Callable[..., Any],
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
        made: list[torch.Tensor],
        constant: list[torch.Tensor],
    ) -> None:
        """Give the results of one call their degree, or refuse it."""
        if name in LINEAR:
            self.linear(name, args, kwargs, made[0])
        elif name == "embedding":
            weight = given[1] if given[0].dtype in (torch.int64, torch.int32) else given[0]
            if _argument(args, kwargs, 3, "max_norm") is not None:
                raise self.refuse("embedding with max_norm")
            self.give(made[0], self.degree(weight) or {})
        elif name in PRODUCTS or name in QUOTIENTS:
            self.product(name, args, kwargs, made[0])
        elif name in SUMS:
            self.sum(name, args, kwargs, constant, made[0])
        elif name == "prelu":
            slope = self.parameters.get(id(given[1]))
            if slope is not None and slope[1]:  # a slope is a ratio: it does not scale
                self.constraints.append(self.exponents.setdefault(slope[0], {}))
            self.keep(given[0], made)
        elif name in DROPOUT:
            if _argument(args, kwargs, 2, "training", name != "dropout"):
                raise self.refuse(f"{name}, which is active")
            self.keep(given[0], made)
        elif name in ("pad", "constant_pad_nd"):
            plain = name == "constant_pad_nd"  # which has no mode
            value = _argument(args, kwargs, 2 if plain else 3, "value")
            if value and (plain or _argument(args, kwargs, 2, "mode", "constant") == "constant"):
                raise self.refuse(f"padding with {value}")
            self.keep(given[0], made)
        elif name in ("clamp", "clamp_", "clamp_min", "clamp_min_", "clip"):
            low, high = _argument(args, kwargs, 1, "min"), _argument(args, kwargs, 2, "max")
            if high is not None or isinstance(low, torch.Tensor) or low != 0:
                raise self.refuse(f"{name} to [{low}, {high}]")
            self.keep(given[0], made)
        elif name in KEEPING:
            if len(given) > 1 and self.known(given[1]) and name in ("max", "min"):
                self.sum(name, args, kwargs, constant, made[0])
            else:
                self.keep(given[0], made)
        else:
            raise self.refuse(name)

    def keep(self, x: torch.Tensor, made: list[torch.Tensor]) -> None:
        if id(x) in self.parameters and id(x) not in self.degrees:  # a view of a parameter is that parameter
            for tensor in made:
                self.parameters[id(tensor)] = self.parameters[id(x)]
                self.kept.append(tensor)
            return
        form = self.degree(x)
        for tensor in made:
            self.give(tensor, form or {})

    def linear(self, name: str, args: Any, kwargs: dict[str, Any], made: torch.Tensor) -> None:
        x, weight, bias = (_argument(args, kwargs, i, key) for i, key in enumerate(("input", "weight", "bias")))
        self.product(name, (x, weight), {}, made)
        if bias is not None:
            self.sum(name, (made, bias), {}, [] if self.known(bias) else [bias], made)
        if id(weight) in self.parameters:
            groups = 1 if name == "linear" else _argument(args, kwargs, 6, "groups", 1)
            of_bias = self.parameters.get(id(bias), (None, False))[0]
            self.layers.append(Layer(name, self.parameters[id(weight)][0], of_bias, int(groups)))

    def product(self, name: str, args: Any, kwargs: dict[str, Any], made: torch.Tensor) -> None:
        """The degree of ``a b`` is the sum of both; the exponent of a parameter met first is free."""
        a, b = [*args, *(kwargs[key] for key in ("other", "mat2") if key in kwargs)][:2]
        a_known, b_known = self.known(a), self.known(b)
        if name in QUOTIENTS and b_known:
            raise self.refuse(f"{name} by an activation or a parameter")
        if not (a_known and b_known):  # times a number or a constant
            self.give(made, self.degree(a if a_known else b) or {})
            return
        activations = [t for t in (a, b) if id(t) in self.degrees]
        weights = [t for t in (a, b) if id(t) not in self.degrees]
        if len(activations) == 2:
            raise self.refuse(f"{name}, a product of two activations,")
        weight = weights[-1]
        other = self.degree(activations[0] if activations else weights[0]) or {}
        of_weight, trainable = self.parameters[id(weight)]
        if not trainable:
            self.give(made, other)
        elif of_weight in self.exponents:
            self.give(made, _minus(other, _minus({}, self.exponents[of_weight])))
        else:
            form = self.unknown()
            self.exponents[of_weight] = _minus(form, other)
            self.give(made, form)

    def sum(
        self, name: str, args: Any, kwargs: dict[str, Any], constant: list[torch.Tensor], made: torch.Tensor
    ) -> None:
        """Tensors that are added, concatenated or compared must have one degree; a constant must be 0."""
        terms = leaves([args, kwargs.get("other"), kwargs.get("tensors")])
        numbers = [v for v in [*args[:2], kwargs.get("other")] if isinstance(v, (int, float, complex))]
        if any(bool((t != 0).any()) for t in constant) or (name not in JOINS and any(v != 0 for v in numbers)):
            raise self.refuse(f"{name} of a constant that is not 0")
        forms = [self.degrees[id(term)] for term in terms if id(term) in self.degrees]
        for term in terms:
            if id(term) in self.degrees or id(term) not in self.parameters:
                continue
            of_term, trainable = self.parameters[id(term)]
            if not trainable:  # it does not scale, so what it is added to must not either
                if bool((term != 0).any()):
                    forms.append({})
            elif of_term in self.exponents or not forms:
                forms.append(self.degree(term) or {})
            else:
                forms.append(self.exponents.setdefault(of_term, forms[0]))
        for form in forms[1:]:
            gap = _minus(form, forms[0])
            if gap:
                self.constraints.append(gap)
        self.give(made, forms[0])


def _argument(args: Any, kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    """An argument of a call by its place or name."""
    return kwargs.get(name, args[place] if len(args) > place else default)


def void(_: Any) -> None:
    """For a hook: return None, because a hook's return value would replace the output."""
