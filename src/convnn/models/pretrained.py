"""Saving and loading: a folder of weights and the configuration that builds the model again; nothing in it is run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from .._utils.files import make_folder, staged
from ..errors import invalid, missing_extra, unknown_name
from ..nn.layer import NeighborLayer
from ..types import Random
from .config import config_of
from .create import create_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT_VERSION = 1
_KEYS = ("format_version", "convnn_version", "architecture", "eval_seeds")
# Keywords of create_model that read weights from elsewhere: not allowed in a file that is loaded.
_ELSEWHERE = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def save_pretrained(model: nn.Module, folder: str | Path) -> Path:
    """Write a model that ``create_model`` made into a folder: ``model.safetensors`` and ``config.json``.

    The weights have the names of the model's own state dict (timm's), and their dtype. Returns the folder.

    Raises:
        ConvNNError: the model is not what its configuration builds, has no weights, or the folder cannot be made.
        MissingExtraError: safetensors is not installed.

    Example:
        >>> import tempfile
        >>> model = create_model("small_cnn", num_classes=3, layer="hybrid", candidates="random:20")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     same = from_pretrained(save_pretrained(model, folder))
        >>> images = torch.randn(1, 3, 32, 32)
        >>> torch.equal(same(images), model.eval()(images))
        True
    """
    save_file = _safetensors().torch.save_file
    architecture = config_of(model)
    config = {
        "format_version": FORMAT_VERSION,
        "convnn_version": __version__,
        "architecture": architecture,
        "eval_seeds": {name: layer.eval_seed for name, layer in _drawing(model)},
    }
    weights = _weights(model)
    _check_rebuilds(model, architecture)
    path = Path(folder)
    make_folder(path, argument="folder", fix="choose another")
    with staged(path) as temporary:
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(temporary / CONFIG, temporary / WEIGHTS)  # safetensors' mode is for the owner alone
    return path


def from_pretrained(
    folder_or_repo_id: str | Path,
    *,
    map_location: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    strict: bool = True,
    **download: Any,
) -> nn.Module:
    """Build the model that ``save_pretrained`` wrote, with its weights, in eval mode.

    An evaluation gives the same result as before, bit for bit on the same machine: random candidates keep their draws.

    Args:
        folder_or_repo_id: the folder, or the id of a model on the Hugging Face hub (``"owner/name"``).
        map_location: the device to load to.
        dtype: of the weights; as they were saved if left out.
        strict: whether every weight of the model must be in the file, and no other.
        **download: ``revision``, ``token``, ``cache_dir``, ``force_download`` or ``local_files_only``, as of
            ``huggingface_hub.hf_hub_download``; without effect on a folder.

    Raises:
        ConvNNError: a file is missing, damaged or of a newer convnn, or the weights are not the model's.
        MissingExtraError: safetensors is not installed, or huggingface_hub, where it is needed.
    """
    for name in download:
        if name not in _DOWNLOAD:
            raise unknown_name("option", name, ("map_location", "dtype", "strict", *_DOWNLOAD))
    config = _read_config(_find(folder_or_repo_id, CONFIG, download))
    model = _build(config["architecture"])
    _load(model, _read_weights(_find(folder_or_repo_id, WEIGHTS, download)), strict=strict)
    seeds: dict[str, int] = config["eval_seeds"]
    for name, layer in _drawing(model):
        layer.eval_seed = seeds.get(name, layer.eval_seed)
    return model.to(device=map_location, dtype=dtype).eval()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise missing_extra("safetensors", "vision") from error
    return safetensors


def _drawing(model: nn.Module) -> list[tuple[str, NeighborLayer]]:
    """Return the layers that draw candidates, and with them their seed."""
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, NeighborLayer)]
    return [(name, layer) for name, layer in layers if isinstance(layer.candidates, Random)]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict as tensors that share no memory, which the format cannot express."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise invalid("model", "one with weights", f"{name} on the meta device", "load its weights first")
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        weights[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return weights


def _build(architecture: dict[str, Any]) -> nn.Module:
    """Build a model without touching torch's random numbers: its weights are replaced anyway."""
    with torch.random.fork_rng(devices=[]):
        return create_model(**architecture)


def _check_rebuilds(model: nn.Module, architecture: dict[str, Any]) -> None:
    """Raise ConvNNError for a model that was changed after its creation, since it could not be loaded."""
    built = _build(architecture)
    problem = _difference(_shapes(built.state_dict()), _shapes(model.state_dict()))
    if not problem:
        made, now = _layers(built), _layers(model)
        problem = next((f"{name} {now.get(name)} instead of {made.get(name)}" for name in {**made, **now}
                        if made.get(name) != now.get(name)), "")  # fmt: skip
    if problem:
        fix = "make every change by create_model's options, or save model.state_dict() yourself"
        raise invalid("model", f"what create_model(**{architecture}) builds", problem, fix)


def _layers(model: nn.Module) -> dict[str, str]:
    """Describe every layer that finds neighbours, without its implementation."""
    return {name: re.sub(r", impl='\w+'", "", f"{type(part).__name__}({part.extra_repr()})")
            for name, part in model.named_modules() if isinstance(part, NeighborLayer)}  # fmt: skip


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _difference(expected: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]], *, strict: bool = True) -> str:
    """Return how weights differ in name or shape from those expected; empty if they do not."""
    for name, shape in got.items():
        if name in expected and expected[name] != shape:
            return f"{name} of shape {shape} instead of {expected[name]}"
    for names, word in ((expected.keys() - got.keys(), "without"), (got.keys() - expected.keys(), "with")):
        if strict and names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"weights {word} {min(names)}{more}"
    return ""


def _find(source: str | Path, name: str, download: dict[str, Any]) -> Path:
    """Return the path of a file in a folder, or of a model on the hub, downloaded."""
    folder = Path(source)
    expected = "a folder that save_pretrained wrote, or the id of such a model on the hub"
    if folder.is_dir():
        if not (folder / name).is_file():
            raise invalid("folder_or_repo_id", expected, f"{str(source)!r} without {name}", "check the path")
        return folder / name
    if folder.exists() or isinstance(source, Path):
        got = f"{str(source)!r}, which is no folder"
        raise invalid("folder_or_repo_id", expected, got, "give the folder")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise missing_extra("huggingface_hub", "vision") from error
    try:
        return Path(hf_hub_download(repo_id=source, filename=name, **download))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")[:200]
        got = f"{source!r} (no such folder here, and from the hub: {reason})"
        raise invalid("folder_or_repo_id", expected, got, "check the path, or the id and the connection") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise invalid(CONFIG, "JSON", str(error), "restore the file that save_pretrained wrote") from error
    return check_config(config)


def check_config(config: object) -> dict[str, Any]:
    """Return the content of ``config.json``; raises ConvNNError if this version does not write such a file."""
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), dict):
        got = "none" if isinstance(config, dict) else type(config).__name__
        fix = "give a folder that save_pretrained wrote"
        raise invalid(CONFIG, "the keywords of create_model under 'architecture'", got, fix)
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        fix = f"update convnn (the file was written by version {config.get('convnn_version', 'unknown')})"
        raise invalid(CONFIG, f"format_version {FORMAT_VERSION} or below", repr(version), fix)
    for name in config:
        if name not in _KEYS:
            raise unknown_name(CONFIG, name, _KEYS)
    for name in _ELSEWHERE:
        if name in config["architecture"]:
            fix = "remove it: the weights are in " + WEIGHTS
            raise invalid(CONFIG, "an architecture alone", f"{name!r} under 'architecture'", fix)
    try:
        seeds = {str(name): int(seed) for name, seed in dict(config.get("eval_seeds", {})).items()}
    except (TypeError, ValueError) as error:
        fix = "restore the file that save_pretrained wrote"
        raise invalid(CONFIG, "a seed per layer under 'eval_seeds'", repr(config["eval_seeds"]), fix) from error
    return {**config, "eval_seeds": seeds}


def _read_weights(path: Path) -> dict[str, Tensor]:
    package = _safetensors()
    try:
        weights: dict[str, Tensor] = package.torch.load_file(path)
    except (OSError, package.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise invalid(WEIGHTS, "a safetensors file", reason, "save or download it again") from error
    return weights


def _load(model: nn.Module, weights: dict[str, Tensor], *, strict: bool) -> None:
    """Load weights in the dtypes in which they were saved."""
    problem = _difference(_shapes(model.state_dict()), _shapes(weights), strict=strict)
    if problem:
        fix = "the two files are of different models: save or download both again"
        raise invalid(WEIGHTS, f"the weights of the model that {CONFIG} describes", problem, fix)
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:  # then the buffers that are not saved had it too
        model.to(dtypes.pop())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in weights and weights[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(weights[name].dtype)
    try:
        model.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        fix = "save or download it again"
        raise invalid(WEIGHTS, "weights that the model takes", str(error).splitlines()[-1].strip(), fix) from error
