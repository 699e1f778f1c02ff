"""A changed network as data: what differs from its original architecture, and its tensors.

A pruned network's state_dict does not fit a fresh network, and a pickled module runs code when
it is loaded. Here a description (JSON) names the attributes and shapes that changed; a fresh
network of the same architecture takes them on and then loads the weights, bit for bit.
"""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vcompress.bench.errors import UserError, nearest
from vcompress.export.folding import computed, fold

_OUR_OWN = ("head_paths", "exported_precision")
_KEYS = {"attributes", "shapes", "identities", "versions", "folded"}


def describe(model: nn.Module, base: nn.Module) -> dict[str, Any]:
    """What to change in `base`, a fresh network of the same architecture, to hold `model`.

    Returns a JSON-able dict: `attributes` (module path to the numbers that changed), `shapes`
    (tensor name to its new shape), `identities` (modules dropped, now `nn.Identity`) and
    `versions` (module path to its state_dict version, where that is not 1). What `reshape` would
    refuse, such as a counter that has grown, is left out: `differing` names it. `folded` has the
    weights that are computed in `base` and plain in `model`, where there are any. Raises UserError
    where the two differ in a way that numbers cannot express.
    """
    still = set(computed(model))
    plain = [name for name in computed(base) if name not in still]
    if plain:
        base = copy.deepcopy(base)
        fold(base, plain)
    theirs = dict(base.named_modules())
    ours = dict(model.named_modules())
    identities = [
        path
        for path, module in ours.items()
        if type(module) is nn.Identity and path in theirs and type(theirs[path]) is not nn.Identity
    ]
    attributes: dict[str, dict[str, Any]] = {}
    for path, module in theirs.items():
        if _within(path, identities):
            continue
        if path not in ours or _kind(ours[path]) is not _kind(module):
            got = type(ours[path]).__name__ if path in ours else "nothing"
            raise UserError(
                f"Module {path!r} is {got} where the architecture has {type(module).__name__}: "
                "give the architecture that this network was made from."
            )
        changed = {
            name: _plain(found)
            for name, value in vars(module).items()
            if _numeric(name, value)
            and (found := vars(ours[path]).get(name)) != value
            and _refused(_plain(found), value) is None
        }
        if changed:
            attributes[path] = changed
    extra = sorted(set(ours) - set(theirs))
    if extra:
        raise UserError(f"The architecture has no module {extra[0]!r}: it was added later.")
    before = {name: tuple(t.shape) for name, t in base.state_dict().items() if _is_tensor(t)}
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        if name not in before:
            raise UserError(f"The architecture has no tensor {name!r}: it was added later.")
        if tuple(tensor.shape) != before[name]:
            shapes[name] = list(tensor.shape)
            if not _is_cut(shapes[name], before[name]):
                raise UserError(_grown(model, name, shapes[name], before[name]))
    versions = {
        path: int(entry["version"])
        for path, entry in getattr(model.state_dict(), "_metadata", {}).items()
        if entry.get("version", 1) != 1
    }
    return {
        "attributes": attributes,
        "shapes": shapes,
        "identities": sorted(identities),
        "versions": versions,
        **({"folded": plain} if plain else {}),
    }


def differing(model: nn.Module, base: nn.Module) -> list[str]:
    """Attributes of modules, neither parameters nor buffers nor modules, that are not the same in
    both: texts, truth values, numbers, tensors."""
    found = []
    theirs = dict(base.named_modules())
    for path, module in model.named_modules():
        other = vars(theirs[path]) if path in theirs else {}
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("training", *_OUR_OWN) or name not in other:
                continue
            before = other[name]
            plain = isinstance(value, (Tensor, str, bool, int, float, tuple, list, type(None)))
            if plain and not _same(value, before):
                found.append(f"{path}.{name}" if path else name)
    return found


def reshape(base: nn.Module, description: dict[str, Any]) -> nn.Module:
    """Set the described attributes and resize parameters and buffers, in place.

    The description is untrusted: modules and tensors must exist in `base`, attributes must be
    plain numbers there already, nothing may grow, and layers must agree with their tensors.
    Otherwise UserError, with `base` unchanged but for the last of these checks. Resized tensors
    hold zeros until the weights are loaded.
    """
    if not isinstance(description, dict):
        raise UserError(f"An architecture's description is a table, not {description!r:.80}.")
    for key in description:
        if key not in _KEYS:
            raise UserError(f"Unknown key {key!r} in the description.{nearest(str(key), _KEYS)}")
    plain = description.get("folded", [])
    if not isinstance(plain, list) or not set(map(str, plain)) <= set(computed(base)):
        raise UserError(f"folded = {plain!r:.80}: expected names of weights that are computed.")
    modules = dict(base.named_modules())
    attributes = _table(description, "attributes")
    identities = description.get("identities", [])
    if not isinstance(identities, list) or not all(isinstance(path, str) for path in identities):
        raise UserError("identities must be a list of module paths.")
    for path in (*attributes, *identities):
        if path not in modules:
            raise UserError(
                f"The description names module {path!r}, which the architecture lacks."
                f"{nearest(str(path), modules)}"
            )
    if "" in identities:
        raise UserError("The description drops the whole network.")
    settings = [
        (modules[path], name, _checked(path, name, value, modules[path]))
        for path, values in attributes.items()
        for name, value in _items(path, values)
    ]
    fold(base, plain)
    existing = {n: t for n, t in base.state_dict().items() if not _within_tensor(n, identities)}
    resized = {}
    for name, shape in _table(description, "shapes").items():
        if name not in existing or not _is_tensor(existing[name]):
            raise UserError(
                f"The description names tensor {name!r}, which the architecture lacks."
                f"{nearest(str(name), existing)}"
            )
        resized[name] = _checked_shape(name, shape, tuple(existing[name].shape))

    for path in identities:
        parent, _, child = path.rpartition(".")
        setattr(base.get_submodule(parent), child, nn.Identity())
    for module, name, value in settings:
        setattr(module, name, value)
    _resize(base, resized)
    for path, module in base.named_modules():
        _check_agreement(path, module)
    return base


def load(
    model: nn.Module, tensors: dict[str, Tensor], versions: dict[str, int] | None = None
) -> nn.Module:
    """Copy `tensors` into `model` in place; every tensor must be there, with shape and dtype."""
    expected = model.state_dict()
    missing = sorted(set(expected) - set(tensors))
    left_over = sorted(set(tensors) - set(expected))
    if missing or left_over:
        raise UserError(
            f"The weights do not fit the network: {len(missing)} missing ({', '.join(missing[:3])})"
            f", {len(left_over)} left over ({', '.join(left_over[:3])})."
        )
    for name, tensor in tensors.items():
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise UserError(
                f"Tensor {name!r} is {tuple(tensor.shape)} {tensor.dtype}, the network has "
                f"{tuple(want.shape)} {want.dtype}: these weights belong to another network."
            )
    state: OrderedDict[str, Tensor] = OrderedDict(tensors)
    if versions is not None:
        known = _versions(versions)
        # Some architectures (MNASNet) convert what they take for an older checkpoint.
        state._metadata = {  # type: ignore[attr-defined]
            path: {"version": known.get(path, 1)} for path, _ in model.named_modules()
        }
    else:
        state._metadata = expected._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=True)
    return model


def save_tensors(model: nn.Module, path: Path) -> None:
    """The state_dict of `model` as safetensors; tied tensors are written once."""
    from safetensors.torch import save_file

    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_of(model).items():
        memory = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            tensor.dtype,
        )
        if tensor.numel() and memory in first:
            aliases[name] = first[memory]
        else:
            first[memory] = name
            # clone: views of one storage are allowed in a network, not in the file
            tensors[name] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    # One key alone: several would be written in a random order, and the file's hash with them.
    save_file(tensors, str(path), metadata={"aliases": json.dumps(aliases)})


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict, which holds tensors alone.

    Raises:
        UserError: a module has a `get_extra_state` that gives something else.
    """
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        if not _is_tensor(value):
            kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
            raise UserError(
                f"{name!r} of a {kind} is a {type(value).__name__}, and only tensors are saved. "
                "Let get_extra_state return a tensor, or keep what it returns in a buffer."
            )
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, tied ones under each of their names."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    if not isinstance(aliases, dict):
        raise UserError(f"{path}: its table of tied tensors is not a table.")
    for name, source in aliases.items():
        if not isinstance(source, str) or source not in tensors:
            raise UserError(f"{path}: {name!r} is tied to {source!r}, which the file lacks.")
        tensors[name] = tensors[source]
    return tensors


def _kind(module: nn.Module) -> type[nn.Module]:
    """Its class; a parametrised layer has one of its own."""
    kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return kind


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _within(path: str, roots: list[str]) -> bool:
    return any(path == root or path.startswith(root + ".") for root in roots)


def _within_tensor(name: str, roots: list[str]) -> bool:
    return any(name.startswith(root + ".") for root in roots)


def _numeric(name: object, value: object) -> bool:
    """Whether an attribute is one that a description may carry."""
    if not isinstance(name, str) or name.startswith("_") or name == "training":
        return False
    if isinstance(value, (tuple, list)):
        return len(value) > 0 and all(_number(item) for item in value)
    return _number(value)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def _table(description: dict[str, Any], key: str) -> dict[str, Any]:
    value = description.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{key} in the description must be a table, not {value!r:.80}.")
    return value


def _items(path: str, values: Any) -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        raise UserError(f"The attributes of {path!r} must be a table, not {values!r:.80}.")
    return list(values.items())


def _checked(path: str, name: str, value: Any, module: nn.Module) -> Any:
    where = f"{path}.{name}" if path else str(name)
    old: Any = vars(module).get(name)
    if not _numeric(name, old):
        raise UserError(f"{where} is not a number of that module: it cannot be set.")
    if why := _refused(value, old):
        raise UserError(f"{where} = {value!r:.80}: {why}.")
    return type(old)(value)


def _refused(value: Any, old: Any) -> str | None:
    """Why an attribute that was `old` must not become `value`; a list stands for a tuple."""
    several = isinstance(old, (tuple, list))
    if several != isinstance(value, list) or not _numeric("value", value):
        return f"expected numbers like {old!r}"
    if several and len(value) != len(old):
        return f"it has {len(value)} entries, expected {len(old)}"
    for new, was in zip(value if several else [value], old if several else [old], strict=True):
        if isinstance(was, int) and (not isinstance(new, int) or not 0 <= new <= max(was, 0)):
            return f"expected a whole number from 0 to {was}"
        if not math.isfinite(new):
            return "expected a finite number"
    return None


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    try:
        return bool(a == b)
    except Exception:  # lists of arrays, say
        return True


def _checked_shape(name: str, shape: Any, old: tuple[int, ...]) -> tuple[int, ...]:
    if not _is_cut(shape, old):
        wanted = f"from 1 to {list(old)}, as many numbers" if old else "[], a single number"
        raise UserError(f"Shape {shape!r:.80} for {name!r}: expected {wanted}.")
    return tuple(shape)


def _is_cut(shape: Any, old: tuple[int, ...]) -> bool:
    """Whether a tensor of the shape `old` may be cut to `shape`, a list."""
    return (
        isinstance(shape, list)
        and len(shape) == len(old)
        and all(
            isinstance(new, int) and not isinstance(new, bool) and 1 <= new <= was
            for new, was in zip(shape, old, strict=True)
        )
    )


def _grown(model: nn.Module, name: str, shape: list[int], old: tuple[int, ...]) -> str:
    said = (
        f"has the shape {shape}, and the architecture builds it with {list(old)}: a tensor may "
        "become smaller, as by pruning, and nothing else."
    )
    if name in dict(model.named_parameters(remove_duplicate=False)):
        return f"The parameter {name!r} {said} Give the architecture that this network is of."
    return (
        f"The buffer {name!r} {said} Where the forward pass gives it that shape, let it keep its "
        "own, or leave it out of what is saved: register_buffer(..., persistent=False)."
    )


def _versions(versions: Any) -> dict[str, int]:
    if not isinstance(versions, dict) or not all(
        isinstance(path, str) and isinstance(version, int) for path, version in versions.items()
    ):
        raise UserError("versions in the description must be a table of whole numbers.")
    return versions


def _resize(base: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    # The old ones are kept too: the address of one that is gone may be that of the next.
    tied: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owner = base.get_submodule(path)
        old = getattr(owner, leaf)
        if isinstance(old, nn.Parameter):
            _, fresh = tied.get(id(old), (old, None))
            if fresh is None:
                zeros = torch.zeros(shape, dtype=old.dtype, device=old.device)
                fresh = nn.Parameter(zeros, requires_grad=old.requires_grad)
                tied[id(old)] = old, fresh
                tied[id(fresh)] = fresh, fresh  # of a module under two names
            elif tuple(fresh.shape) != shape:
                raise UserError(f"{name!r} is tied to another tensor and described otherwise.")
            setattr(owner, leaf, fresh)
        else:
            setattr(owner, leaf, torch.zeros(shape, dtype=old.dtype, device=old.device))


def _check_agreement(path: str, module: nn.Module) -> None:
    """A layer's numbers must be those of its tensors, or a forward pass would go astray."""
    wanted: tuple[int, ...] | None = None
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        groups = module.groups
        if groups < 1 or module.in_channels % groups or module.out_channels % groups:
            raise UserError(
                f"{path}: {module.in_channels} to {module.out_channels} channels do "
                f"not divide by {groups} groups."
            )
        sides = (module.out_channels, module.in_channels // groups)
        if module.transposed:
            sides = (module.in_channels, module.out_channels // groups)
        wanted = (*sides, *module.kernel_size)
    elif isinstance(module, nn.Linear):
        wanted = (module.out_features, module.in_features)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        wanted = (module.num_features,)
    elif isinstance(module, nn.LayerNorm):
        wanted = tuple(module.normalized_shape)
    elif isinstance(module, nn.GroupNorm):
        wanted = (module.num_channels,)
        if module.num_groups < 1 or module.num_channels % module.num_groups:
            raise UserError(f"{path}: {module.num_channels} channels, {module.num_groups} groups.")
    elif isinstance(module, nn.MultiheadAttention):
        weight = module.in_proj_weight
        if module.head_dim * module.num_heads != module.embed_dim:
            raise UserError(
                f"{path}: {module.num_heads} heads of {module.head_dim} are not {module.embed_dim}."
            )
        wanted = (3 * module.embed_dim, module.embed_dim)
    if wanted is not None and isinstance(weight, Tensor) and tuple(weight.shape) != wanted:
        raise UserError(
            f"{path}: its numbers ask for weights of {list(wanted)}, the description says "
            f"{list(weight.shape)}."
        )
