"""Which weights a model of transformers ties by itself: not those of a packed embedding and its head.

Such a model ties anew what its `_tied_weights_keys` name, by putting the parameter of one module into another. A packed
embedding has no parameter for its matrix, and the head over it reads the embedding's: they cannot come apart.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_KEYS = ("_tied_weights_keys", "all_tied_weights_keys")
_BEFORE = "_maskedlinear_tied_before"
_OPTION, _LEFT_OUT = "tie_word_embeddings", "left out"


def leave_out(model: nn.Module, kind: type[nn.Module]) -> None:
    """Let models of transformers not tie the weights of modules that tie themselves.

    Args:
        model: It, or modules of it, may be such a model.
        kind: The class of the modules.
    """
    for whole in model.modules():
        expand: Any = getattr(whole, "get_expanded_tied_weights_keys", None)
        if expand is None:
            continue
        ties = _expanded(whole, expand, kind)
        own = {name: other for name, other in ties.items() if not isinstance(_owner(whole, name), kind)}
        if len(own) < len(ties):
            before = {name: vars(whole)[name] for name in _KEYS if name in vars(whole)}
            before |= {_OPTION: getattr(whole.config, _OPTION, None), _LEFT_OUT: sorted(ties.keys() - own.keys())}
            vars(whole).setdefault(_BEFORE, before)
            vars(whole)["_tied_weights_keys"] = own
        known = vars(whole).get("all_tied_weights_keys")
        if known and any(isinstance(_owner(whole, name), kind) for name in known):
            vars(whole).setdefault(_BEFORE, {"all_tied_weights_keys": known})
            vars(whole)["all_tied_weights_keys"] = {
                name: other for name, other in known.items() if not isinstance(_owner(whole, name), kind)
            }


def restore(model: nn.Module, kind: type[nn.Module]) -> None:
    """Let them tie again what they tied before, and say so in their configuration where the modules are still there.

    Args:
        model: As for `leave_out`, before its modules are replaced.
        kind: The class of the modules that tie themselves.
    """
    for whole in model.modules():
        before = vars(whole).pop(_BEFORE, None)
        if before is not None:
            for name in _KEYS:
                vars(whole).pop(name, None)
            option, names = before.pop(_OPTION, None), before.pop(_LEFT_OUT, [])
            # PEFT's merge says that a head is tied no more, for it compares addresses. A head of the user's own is not.
            if option is not None and all(isinstance(_owner(whole, name), kind) for name in names):
                setattr(whole.config, _OPTION, option)
            vars(whole).update(before)


def _expanded(whole: nn.Module, expand: Any, kind: type[nn.Module]) -> dict[str, str]:
    # What a model ties, by full names. transformers looks patterns up among the parameters that there are: names of
    # modules that tie themselves, whose weight is no parameter, stand for themselves.
    keys: Any = getattr(whole, "_tied_weights_keys", None)
    named = (
        {name: keys[name] for name in keys if isinstance(_owner(whole, name), kind)} if isinstance(keys, dict) else {}
    )
    if not named:
        found: dict[str, str] = expand(all_submodels=False)
        return found
    before = vars(whole).get("_tied_weights_keys")
    vars(whole)["_tied_weights_keys"] = {name: keys[name] for name in keys if name not in named}
    try:
        return named | expand(all_submodels=False)
    finally:
        del vars(whole)["_tied_weights_keys"]
        if before is not None:
            vars(whole)["_tied_weights_keys"] = before


def _owner(model: nn.Module, name: str) -> nn.Module | None:
    module: Any = model
    for part in name.split(".")[:-1]:
        module = getattr(module, "_modules", {}).get(part)
    return module
