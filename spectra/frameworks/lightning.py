"""A task from a Lightning checkpoint and the user's module class: its network, its data and its ``training_step``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from spectra.checkpoints.checkpoint import Checkpoint
from spectra.errors import DataError, TaskError
from spectra.task.task import Task

_HYPER, _NAME, _DATA_HYPER = "hyper_parameters", "hparams_name", "datamodule_hyper_parameters"


def lightning_task(
    module: Callable[..., Any],
    checkpoint: Checkpoint,
    given: Mapping[str, Any],
    datamodule: Callable[..., Any] | None = None,
    weight: Callable[[Any], Any] | None = None,
) -> Task:
    """The mean over the training data of the loss that ``training_step`` returns. The data are read in order.

    Args:
        module: a class of LightningModule.
        checkpoint: whose ``hyper_parameters`` are the arguments of the class.
        given: arguments of the class that go before those in the checkpoint.
        datamodule: a class of LightningDataModule; without it, the data are the module's own ``train_dataloader()``.
        weight: of a batch, where the loss is no mean over its rows.

    Raises:
        TaskError: the class cannot be built, or its training step makes optimizer steps itself.
        DataError: there is no single loader of training data.
    """
    model = module(**_arguments(module, checkpoint, given, _HYPER, _NAME))
    name = getattr(module, "__name__", "the class")
    if not isinstance(model, nn.Module) or not callable(getattr(model, "training_step", None)):
        raise TaskError(f"{name} has no training_step: a class of LightningModule is needed")
    if not getattr(model, "automatic_optimization", True):
        raise TaskError(
            f"{name} has automatic_optimization=False: its training_step makes optimizer steps and may return no loss; "
            "write a task function with the loss"
        )
    for hook, arguments in (("configure_model", ()), ("setup", ("fit",))):
        getattr(model, hook, lambda *_: None)(*arguments)
    for log in ("log", "log_dict"):
        setattr(model, log, _nothing)
    source: Any = model
    if datamodule is not None:
        source = datamodule(**_arguments(datamodule, checkpoint, {}, _DATA_HYPER, "datamodule_hparams_name"))
        getattr(source, "setup", lambda *_: None)("fit")
    return Task.from_loss(model, _loss_of_step, in_order(source.train_dataloader()), weight)


def identity_of(checkpoint: Checkpoint) -> str:
    """Equal for checkpoints that can share one task."""
    return repr([checkpoint.metadata.get(key) for key in (_HYPER, _NAME, _DATA_HYPER)])


def _nothing(*_: Any, **__: Any) -> None:
    """In place of ``self.log``."""


def _loss_of_step(model: Any, batch: Any) -> Any:
    """The loss that ``training_step(batch, 0)`` returns, itself or under the key ``loss``."""
    parameters = inspect.signature(model.training_step).parameters.values()
    takes_index = len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    returned = model.training_step(batch, 0) if takes_index else model.training_step(batch)
    for part in model.modules():  # a metric of torchmetrics that keeps what it has seen would grow with every pass
        if all(callable(getattr(part, name, None)) for name in ("update", "compute", "reset")):
            part.reset()
    if isinstance(returned, Mapping):
        returned = returned.get("loss")
    if returned is None:
        raise TaskError("training_step returned no loss for a batch")
    return returned


def _arguments(
    called: Callable[..., Any], checkpoint: Checkpoint, given: Mapping[str, Any], key: str, name_key: str
) -> dict[str, Any]:
    """The arguments of a class: those saved by ``save_hyperparameters``, and those that are given.

    Raises:
        TaskError: one is missing, or given and not taken.
    """
    saved, kind = checkpoint.metadata.get(key), checkpoint.metadata.get(name_key)
    title = getattr(called, "__name__", repr(called))
    if kind is not None and not isinstance(saved, Mapping):
        raise TaskError(
            f"{checkpoint.path}: its {key} are no plain values, so {title} cannot be built from them: write a task "
            "function"
        )
    if any(isinstance(value, Mapping) and "class_path" in value for value in (saved or {}).values()):
        raise TaskError(
            f"{checkpoint.path}: its {key} name classes to build (class_path, of Lightning's command line), which a "
            "checkpoint may not choose: write a task function"
        )
    parameters = inspect.signature(called).parameters
    named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    saved = {name: value for name, value in (saved or {}).items() if name not in ("_class_path", "_instantiator")}
    if isinstance(kind, str) and kind != "kwargs" and kind in named:  # save_hyperparameters(config), of one object
        saved = {kind: _Attributes(saved)}
    arguments = {str(name): value for name, value in saved.items() if takes_any or name in named}
    for name in given:
        if not takes_any and name not in named:
            raise TaskError(f"{title} has no argument {name!r}; its arguments: {', '.join(named) or 'none'}")
    arguments.update(given)
    needed = [n for n in named if parameters[n].default is parameters[n].empty and n not in arguments]
    if needed:
        raise TaskError(
            f"{title} needs {needed[0]!r}, which is not among the {key} in {checkpoint.path} (save_hyperparameters "
            f"stores them): --task-arg {needed[0]}=VALUE"
        )
    return arguments


class _Attributes(dict[str, Any]):
    """A dictionary whose entries are attributes too, as Lightning passes hyperparameters."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def in_order(loader: Any) -> Iterable[Any]:
    """The batches of a loader without shuffling and without dropping the last; other loaders are kept as they are.

    Raises:
        DataError: several loaders, or none.
    """
    if loader is None or (isinstance(loader, (Mapping, list, tuple)) and any(_is_loader(x) for x in _entries(loader))):
        raise DataError("train_dataloader() returns no single loader: name one with --task-arg datamodule=module:Class")
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader  # type: ignore[no-any-return]
    sampler = loader.sampler
    every = isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    plain = type(loader.batch_sampler) in (BatchSampler, type(None))
    if not plain or not (every or isinstance(sampler, SequentialSampler)):
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        timeout=loader.timeout,
    )


def _entries(loaders: Any) -> Iterable[Any]:
    return loaders.values() if isinstance(loaders, Mapping) else loaders


def _is_loader(value: Any) -> bool:
    return isinstance(value, DataLoader)
