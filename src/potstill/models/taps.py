"""Inner tensors of a model by name, without changing its code: states, attention, the output of any module.

The names are those of `potstill.signals.Signals`. States and module outputs come from hooks. Queries, keys and values
come from a function that, within the context, replaces the model's own in the attention interface of `transformers`,
records its arguments, and calls the original. These are the values after rotary embedding and norms, with grouped
heads, which a hook on `q_proj` would not see.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ModelError, did_you_mean
from potstill.models.anatomy import inner_model, model_layers, text_config
from potstill.models.tasks import is_plain, unwrap

_MODULE = "module:"
_ATTENTION = ("queries", "keys", "values")
_KINDS = "hidden.k, queries.k, keys.k, values.k, module:<path>"


@contextmanager
def tapped(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Record inner tensors of the model's forward passes within the context.

    with tapped(model, ["hidden.3", "queries.2", "module:encoder.layer.1.output"]) as taps:
        model(**inputs)
    taps["hidden.3"]  # [B,T,H]

    The tensors are on the graph, under the caller's modes. A second forward pass overwrites the first, and so does a
    module that runs several times in one (shared layers). Recomputation by gradient checkpointing is not recorded; it
    may happen after the context closes, so taps add nothing to the saved tensors.

    Other models in the process and the configuration are not touched. Not for threads that run models side by side.

    Args:
        model: a model of `transformers`, wrapped by peft or not, or any module (`module:` names alone).
        names: as in `Signals.taps`. Paths of modules are those inside a peft wrapper (`get_base_model()`).

    Raises:
        ModelError: no such name, layer or module (the error suggests the nearest); this family's attention does not
            use the interface; or, when the context closes, a tensor was never seen.
    """
    taps: dict[str, Tensor] = {}
    with ExitStack() as stack:
        _attach(model, names, taps, stack)
        yield taps
    if missing := sorted(set(names) - taps.keys()):
        raise ModelError(
            f"no tensor came by for {', '.join(missing)}",
            fix="these parts of the model did not run"
            + ("" if missing[0].startswith(_MODULE) else ", or its attention is not that of transformers' interface"),
        )


def check_taps(model: nn.Module, names: Collection[str]) -> None:
    """Whether the model has tensors of these names, as far as that is known before it runs. Its weights may be on the
    meta device. Raises ModelError as `tapped`."""
    with ExitStack() as stack:
        _attach(model, names, {}, stack)


def _attach(model: nn.Module, names: Collection[str], taps: dict[str, Tensor], stack: ExitStack) -> None:
    _hook_modules(model, [name for name in names if name.startswith(_MODULE)], taps, stack)
    states, layers = _numbered(model, [name for name in names if not name.startswith(_MODULE)])
    _hook_states(model, states, taps, stack)
    if layers:
        _watch_attention(model, layers, taps, stack)


# ---- modules -----------------------------------------------------------------------------------------------------


def _hook_modules(model: nn.Module, names: Collection[str], taps: dict[str, Tensor], stack: ExitStack) -> None:
    parts = dict((model if is_plain(model) else unwrap(model)).named_modules()) if names else {}
    for name in names:
        path = name.removeprefix(_MODULE)
        if path not in parts or not path:
            raise ModelError(f"there is no module {path!r}{_nearest(path, parts)}", fix="print(model) shows all paths")
        stack.callback(parts[path].register_forward_hook(_keep_output(name, taps)).remove)


def _nearest(path: str, parts: Mapping[str, nn.Module]) -> str:
    """The nearest name, or the children of the last module that the path reaches."""
    if (near := did_you_mean(path, parts)).startswith("; did you mean"):
        return near
    steps = path.split(".")
    known = ".".join(steps[: next(n for n in range(len(steps), -1, -1) if ".".join(steps[:n]) in parts)])
    children = [child for child, _ in parts[known].named_children()][:20]
    return f"; {known or 'the model'} has: {', '.join(children) or 'no parts'}"


def _keep_output(name: str, taps: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, _: Any, output: Any) -> None:
        if not _recomputing():
            taps[name] = _first_tensor(output, name)

    return hook


def _first_tensor(output: Any, name: str) -> Tensor:
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)):
        output = output[0] if output else None
    if not isinstance(output, Tensor):
        raise ModelError(f"{name} gives no tensor but a {type(output).__name__}", fix="tap a module inside it")
    return output


def _recomputing() -> bool:
    """Whether this runs inside a backward pass, as gradient checkpointing does."""
    return torch._C._current_graph_task_id() != -1


# ---- states ------------------------------------------------------------------------------------------------------


def _numbered(model: nn.Module, names: Collection[str]) -> tuple[list[int], dict[int, list[str]]]:
    """The requested states, and for each attention layer its requested tensors."""
    states: list[int] = []
    layers: dict[int, list[str]] = {}
    for name in names:
        kind, _, number = name.partition(".")
        if kind not in ("hidden", *_ATTENTION) or not number.isdecimal():
            raise ModelError(f"there is no tap of the name {name!r}", fix=f"names are: {_KINDS}")
        if is_plain(model):
            raise ModelError(
                f"{type(model).__name__} has no {name}: it is no model of transformers",
                fix="name its parts by their paths (module:<path>)",
            )
        if kind == "hidden":
            states.append(int(number))
        else:
            layers.setdefault(int(number), []).append(kind)
    if states or layers:
        count = _count_layers(model)
        if wrong := sorted(k for k in states if k > count):
            raise ModelError(
                f"hidden state {wrong[0]} of a model with {count} layers",
                fix=f"states are counted from 0 (the embeddings) to {count} (the last, after the final norm)",
            )
        if wrong := sorted(k for k in layers if k >= count):
            raise ModelError(
                f"attention of layer {wrong[0]} of a model with {count} layers",
                fix=f"layers are counted from 0 to {count - 1}",
            )
    return states, layers


def _count_layers(model: nn.Module) -> int:
    count = getattr(text_config(model), "num_hidden_layers", None)
    return int(count) if isinstance(count, int) else len(model_layers(model))  # raises if there are none


def _hook_states(model: nn.Module, states: Collection[int], taps: dict[str, Tensor], stack: ExitStack) -> None:
    """State k is the input of layer k, and the last state is the output of the inner model.

    Uses hooks because `output_hidden_states` would keep the states of all layers alive. Gradient checkpointing
    recomputes inside the layers and so does not affect what passes between them.
    """
    if not states:
        return
    last = _count_layers(model)
    layers = model_layers(model) if set(states) - {last} else nn.ModuleList()

    def keep_input(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not _recomputing():
                taps[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    for k in sorted(set(states)):
        if k == last:
            hook = inner_model(model).register_forward_hook(_keep_output(f"hidden.{k}", taps))
        else:
            hook = layers[k].register_forward_pre_hook(keep_input(f"hidden.{k}"), with_kwargs=True)
        stack.callback(hook.remove)


# ---- attention ---------------------------------------------------------------------------------------------------


def _watch_attention(
    model: nn.Module, asked: Mapping[int, Collection[str]], taps: dict[str, Tensor], stack: ExitStack
) -> None:
    """Replace the attention function under the name that the model's configuration uses, so that masks, and anything
    else derived from that name, stay the same. Calls from other modules pass through."""
    layers = model_layers(model)
    layer_of = {part: k for k in asked for part in layers[k].modules()}
    implementation = str(text_config(model)._attn_implementation)
    interfaces = {id(found): found for part in layer_of if (found := _interface_of(part)) is not None}
    if not interfaces:
        raise ModelError(
            f"attention of {type(unwrap(model)).__name__} does not go through transformers' attention interface",
            fix="tap its parts by their paths (module:<path>)",
        )
    for interface in interfaces.values():
        before = interface.get(implementation)

        def watching(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, _own: Any = before, **kwargs: Any
        ) -> Any:
            if module in layer_of and not _recomputing():
                k = layer_of[module]
                given = {"queries": query, "keys": key, "values": value}
                for kind in asked[k]:
                    tensor = given[kind]
                    taps[f"{kind}.{k}"] = _scaled(tensor, kwargs.get("scaling")) if kind == "queries" else tensor
            own = _own if _own is not None else _eager_of(module)
            return own(module, query, key, value, *args, **kwargs)

        stack.callback(_put_back, interface, implementation, interface._local_mapping.get(implementation))
        interface[implementation] = watching


def _put_back(interface: Any, implementation: str, before: Any) -> None:
    if before is None:
        del interface[implementation]
    else:
        interface[implementation] = before


def _interface_of(part: nn.Module) -> Any:
    """The attention interface that a module's own file uses, or None."""
    return getattr(sys.modules[type(part).__module__], "ALL_ATTENTION_FUNCTIONS", None)


def _eager_of(module: nn.Module) -> Callable[..., Any]:
    """The eager attention function of a module's own file, which is in no interface."""
    own: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return own


def _scaled(query: Tensor, scaling: float | None) -> Tensor:
    """Rescale queries so that queries · keysᵀ / √d are the scores, for families that scale by something other than
    1/√d."""
    factor = 1.0 if scaling is None else scaling * math.sqrt(query.shape[-1])
    return query if abs(factor - 1.0) < 1e-6 else query * factor
