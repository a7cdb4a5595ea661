"""The training loop: one for every method, on one or several processes; it can be stopped and resumed anywhere."""

from __future__ import annotations

import math
import os
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everymask.data.loader import batches, default_workers
from everymask.data.sampling import Draw
from everymask.data.store import CACHE_BYTES
from everymask.errors import InputError
from everymask.files import check_writable_folder
from everymask.methods import method_name
from everymask.train.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from everymask.train.engine import Engine
from everymask.train.interrupt import Interruption
from everymask.train.progress import LOG, Clock, Progress, RunLog
from everymask.train.samples import TrainingSamples
from everymask.train.schedule import Schedule
from everymask.train.setup import check_fit, check_identity, explained_memory, identity
from everymask.train.tensorboard import FOLDER, PICTURES, TensorBoard, check_installed
from everymask.train.thresholds import tune_thresholds
from everymask.train.validation import Validator
from everymask.weights import load_strictly, save_model

if TYPE_CHECKING:
    from everymask.data.preprocessing import Preprocessing
    from everymask.methods.base import Method
    from everymask.methods.recipe import Recipe
    from everymask.types import Categories, Dataset

BEST = "best.safetensors"
MODEL = "model.safetensors"
CHECKPOINT_SECONDS = 600.0
"""A checkpoint is written at the end of every epoch, and within an epoch when the last one is this old."""
LOG_STEPS = 20
"""Optimiser steps between two ``step`` lines of the log; on accelerators also between two looks at the losses."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run gives.

    Args:
        model: The model file.
        epochs: Epochs that were trained.
        best_epoch: The epoch whose weights were kept.
        validation: Validation figures of the model as saved; empty without validation data.
        thresholds: Decision thresholds of the model.
        history: The ``epoch`` entries of the log (see `RunLog`).
        seconds: Time in training, over all parts of the run.
    """

    model: Path
    epochs: int
    best_epoch: int
    validation: dict[str, float]
    thresholds: dict[str, float]
    history: list[dict[str, Any]]
    seconds: float


@dataclass
class RunState:
    """How far a run is: what a checkpoint keeps besides tensors, as JSON values."""

    best_score: float | None = None
    best_epoch: int = 0
    best_figures: dict[str, float] = field(default_factory=dict)
    validations_without_improvement: int = 0
    seconds: float = 0.0
    log_bytes: int = 0


def train(
    method: Method,
    train_data: Dataset,
    val_data: Dataset | None,
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    categories: Categories,
    out: Path | str,
    resume: bool = False,
    provenance: dict[str, Any] | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    device: str | None = None,
) -> TrainingResult:
    """Trains a method and writes ``model.safetensors`` into the folder `out`.

    Runs on an accelerator if there is one. Started by ``torchrun`` (or ``accelerate launch``) it shares each step among
    the processes: with the same global batch (batch_size x processes) they learn what one process learns. Every random
    number derives from the seed and the number of the step, so a run that was killed at any moment and resumed takes
    the same course as one that was not.

    Args:
        method: The network to train, in place; its present weights are the start. Afterwards it has the best weights.
        train_data: Annotated images.
        val_data: Annotated images that pick the best epoch and tune the thresholds; None keeps the last epoch.
        recipe: Every number of the training.
        preprocessing: Of the images; stored with the model.
        categories: In the order of the class indices; `train_data` and `val_data` use their ids.
        out: Folder of the run: ``model.safetensors`` at the end; ``best.safetensors`` (a model file, too),
            ``checkpoint.safetensors`` and ``log.jsonl`` (see `RunLog`) all the time.
        resume: Go on with the run in `out`, if there is one. Only epochs, patience, workers, tune and
            checkpointing may have changed.
        provenance: Stored with the model: data, licence and the like, as JSON values.
        quiet: Show no progress.
        tensorboard: Write event files for TensorBoard, into the folder ``tensorboard`` of `out`.
        device: ``"cpu"`` trains on the CPU even if there is an accelerator.

    Raises:
        InputError: Data, method and recipe do not fit together; `out` already holds a run and `resume` is false, or
            holds a different one and `resume` is true; the memory is too small; or the loss becomes infinite or NaN.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    check_fit(method, train_data, val_data, recipe, preprocessing, categories)
    out = check_writable_folder(out)
    if not resume and any((out / name).exists() for name in (CHECKPOINT, MODEL, LOG)):
        raise InputError(f"{out} already holds a training run; go on with it by --resume, or choose another --out")
    if tensorboard:
        check_installed()
    trainer = Trainer(method, train_data, val_data, recipe, preprocessing, categories, out, provenance, quiet, device)
    if (out / CHECKPOINT).exists():
        trainer.restore()
    else:
        trainer.begin()
    if tensorboard and trainer.main:
        trainer.add_tensorboard()
    trainer.fit()
    return trainer.finish()


class Trainer:
    """The course of one training run; see `train` for the arguments."""

    def __init__(
        self,
        method: Method,
        train_data: Dataset,
        val_data: Dataset | None,
        recipe: Recipe,
        preprocessing: Preprocessing,
        categories: Categories,
        out: Path,
        provenance: dict[str, Any] | None,
        quiet: bool,
        device: str | None,
    ) -> None:
        self.method, self.recipe, self.out = method, recipe, out
        self.preprocessing, self.categories, self.provenance = preprocessing, categories, provenance
        self.main = os.environ.get("RANK", "0") == "0"
        self.progress = Progress(recipe.epochs, quiet or not self.main)
        processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.workers = default_workers(processes_here) if recipe.workers < 0 else recipe.workers
        budget = CACHE_BYTES // processes_here
        self.samples = TrainingSamples(
            method,
            train_data,
            recipe,
            preprocessing,
            categories,
            budget=budget,
            workers=self.workers,
            counting=self.progress.counting,
        )
        self.engine = Engine(method, recipe, device, self.progress.line)
        accelerator = self.engine.accelerator
        self.state = RunState()
        self.history: list[dict[str, Any]] = []
        self.log = RunLog(out / LOG, self.main)
        processes = accelerator.num_processes
        self.identity = identity(method, train_data, val_data, recipe, preprocessing, categories, processes)
        visits = sum(self.samples.visits)
        self.steps_per_epoch = recipe.steps_per_epoch or math.ceil(visits / self.engine.crops_per_step)
        self.progress.steps = self.steps_per_epoch
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.schedule = Schedule(recipe, self.steps_per_epoch)
        self.validator: Validator | None = None
        if val_data is not None:
            with self.progress.counting("reading validation images") as told:
                self.validator = Validator(
                    method, val_data, recipe, preprocessing, categories, accelerator, budget=budget, progress=told
                )

        self.tensorboard: TensorBoard | None = None

    def add_tensorboard(self) -> None:
        """Writes event files from now on."""
        steps = self.engine.steps
        self.tensorboard = TensorBoard(self.out / FOLDER, steps + 1, self.preprocessing, self.categories)
        self.log.mirror = self.tensorboard.write
        if self.validator is not None:
            self.validator.shows = PICTURES

    @property
    def epoch(self) -> int:
        """The epoch, from 1, to which the last step belongs."""
        return (self.engine.steps - 1) // self.steps_per_epoch + 1

    @property
    def stopped_early(self) -> bool:
        """Whether there has been no improvement for too long."""
        return 0 < self.recipe.patience <= self.state.validations_without_improvement

    def begin(self) -> None:
        """Writes the first line of the log and a checkpoint of the start."""
        self.engine.accelerator.wait_for_everyone()
        self.log.cut(0)
        self.log.write(
            "start",
            method=method_name(self.method),
            config=self.method.config,
            recipe=self.recipe.to_json(),
            preprocessing=self.preprocessing.to_json(),
            categories=self.categories.names,
            images=self.identity["number of training images"],
            validation_images=self.identity["number of validation images"],
            parameters=sum(each.numel() for each in self.engine.parameters),
            device=str(self.engine.device),
            precision="bfloat16" if self.engine.bfloat16 else "float32",
            processes=self.engine.accelerator.num_processes,
            steps_per_epoch=self.steps_per_epoch,
            metric=self.method.metric,
            monitor=self.recipe.monitor,
        )
        self.save()

    def fit(self) -> None:
        """Trains until the last epoch, or until there has been no improvement for long.

        Raises:
            InputError: Memory is too small, or the loss becomes infinite or NaN.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been written.
        """
        engine, recipe = self.engine, self.recipe
        stream = self.samples.stream(
            self.total_steps * recipe.accumulate,
            start=engine.steps * recipe.accumulate,
            process=engine.accelerator.process_index,
            processes=engine.accelerator.num_processes,
        )
        crops = self.samples.crops(self.steps_per_epoch, engine.accelerator.num_processes)
        if len(stream):
            _ = crops[Draw(0, 0)]  # compiles the kernels once, before loader processes are forked
        every_step = engine.device.type == "cpu"  # looking at a loss costs accelerators a wait
        source = batches(
            crops,
            stream,
            workers=self.workers,
            pin_memory=engine.device.type == "cuda",
            ragged=self.method.ragged,
        )
        with ExitStack() as stack:
            stack.enter_context(closing(source))
            stack.enter_context(self.progress)
            interruption = stack.enter_context(Interruption())
            stack.enter_context(explained_memory(recipe))
            engine.objective.train()
            clock = Clock(self.state.seconds)
            saved = time.monotonic()
            plain = self.steps_per_epoch * recipe.mixed_epochs if recipe.plain_epochs else None
            while engine.steps < self.total_steps and not self.stopped_early:
                if plain is not None and engine.steps >= plain:
                    self.method.begin_plain_epochs()
                    plain = None
                norm = engine.step(source, self.schedule.rate(engine.steps))
                clock.count(engine.crops_per_step)
                self.state.seconds = clock.seconds()
                ends_epoch = engine.steps % self.steps_per_epoch == 0
                if every_step or ends_epoch or engine.steps % LOG_STEPS == 0:
                    engine.check_finite()
                    self._tell_step(clock, norm)
                if ends_epoch:
                    self._end_epoch(clock)
                # Several processes must agree, which costs a message; a stop can wait for some steps.
                asks = engine.accelerator.num_processes == 1 or ends_epoch or engine.steps % 10 == 0
                stop = asks and engine.any_process(interruption.requested)
                if ends_epoch or stop or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if stop:
                    self.progress.line(f"stopped after step {engine.steps}; go on with --resume --out {self.out}")
                    raise KeyboardInterrupt

    def _tell_step(self, clock: Clock, norm: Tensor) -> None:
        """Shows the step, and logs every few of them."""
        step, losses = self.engine.steps, self.engine.losses()
        done = (step - 1) % self.steps_per_epoch + 1
        left = (self.total_steps - step) * self.engine.crops_per_step / clock.rate()
        self.progress.step(self.epoch, done, f"{_described(losses)}  {clock.rate():.0f} images/s", left)
        if step % LOG_STEPS == 0:
            self.log.write(
                "step",
                epoch=self.epoch,
                step=step,
                loss=losses,
                learning_rate=self.schedule.rate(step - 1),
                gradient_norm=float(norm),
                images_per_second=clock.rate(),
                seconds=self.state.seconds,
            )

    def _end_epoch(self, clock: Clock) -> None:
        """Validation, the best weights, the schedule and the log."""
        epoch, losses = self.epoch, self.engine.losses_of_all()
        self.engine.reset_losses()
        entry: dict[str, Any] = {
            "epoch": epoch,
            "step": self.engine.steps,
            "loss": losses,
            "learning_rate": self.schedule.rate(self.engine.steps - 1),
            "images_per_second": clock.rate(),
        }
        told = f"epoch {epoch}/{self.recipe.epochs}  {_described(losses)}"
        if self.validator is None:
            self.state.best_epoch = epoch
            self.schedule.observe(losses["total"])
        elif epoch % self.recipe.validate_every == 0 or epoch == self.recipe.epochs:
            self.engine.synchronise()
            with clock.paused(), self.engine.average.applied(), self.progress.counting("validating") as shown:
                figures = self.validator(shown)
                best = self._judge(figures, epoch)
                if best and self.main:
                    self._save_model(self.out / BEST, figures)
            entry |= {"validation": figures, "best": best}
            figure = self.method.metric[1]
            told += f"  validation: loss {figures['loss']:.4g}, {figure} {figures[figure]:.4f}"
            told += " (best)" if best else ""
            self.schedule.observe(figures["loss"])
        self.state.seconds = entry["seconds"] = clock.seconds()
        self.history.append(entry)
        self.log.write("epoch", **entry)
        if self.tensorboard is not None and self.validator is not None and "validation" in entry:
            self.tensorboard.show(self.validator.shown, self.engine.steps)
        self.progress.line(told)

    def _judge(self, figures: dict[str, float], epoch: int) -> bool:
        """Whether these are the best figures so far, which are then remembered."""
        state = self.state
        score = -figures["loss"] if self.recipe.monitor == "loss" else figures[self.method.metric[1]]
        # A figure may be undefined, as when no validation image has an object; any defined one is better.
        defined = math.isfinite(score)
        if state.best_epoch and not (defined and (state.best_score is None or score > state.best_score)):
            state.validations_without_improvement += 1
            return False
        state.best_score = score if defined else None
        state.best_epoch, state.validations_without_improvement = epoch, 0
        state.best_figures = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        return True

    def save(self) -> None:
        """Writes the checkpoint.

        Raises:
            InputError: The weights are spoilt; the last checkpoint is left as it is.
        """
        self.engine.check_finite()
        if self.main:
            self.state.log_bytes = self.log.size()
            state = {"run": asdict(self.state), "schedule": self.schedule.state(), "identity": self.identity}
            write_checkpoint(self.out / CHECKPOINT, self.engine.tensors(), state)

    def restore(self) -> None:
        """Takes up the run of the checkpoint.

        Raises:
            InputError: It is another run.
        """
        path = self.out / CHECKPOINT
        tensors, state = read_checkpoint(path)
        check_identity(state["identity"], self.identity, str(self.out))
        self.engine.restore(tensors, path)
        self.schedule.restore(state["schedule"])
        self.state = RunState(**state["run"])
        self.history = self.log.epochs(self.state.log_bytes)
        self.engine.accelerator.wait_for_everyone()
        self.log.cut(self.state.log_bytes)
        steps = self.engine.steps
        self.log.write("resume", epoch=steps // self.steps_per_epoch, step=steps)
        self.progress.line(f"resuming after step {steps} of {self.total_steps}")

    def finish(self) -> TrainingResult:
        """Takes the best weights, tunes the thresholds and writes the model."""
        from safetensors.torch import load_file

        state, figures, tuned = self.state, self.state.best_figures, None
        self.engine.accelerator.wait_for_everyone()
        if self.validator is None:
            load_strictly(self.method, self.engine.average.average, "the averaged weights")
        else:
            load_strictly(self.method, load_file(self.out / BEST), str(self.out / BEST))
        self.method.eval()
        self._complete()
        if self.validator is not None and self.recipe.tune and self.method.tunable:
            with explained_memory(self.recipe), self.progress.counting("tuning the thresholds, trial") as shown:
                self.method.thresholds = tune_thresholds(self.validator, progress=shown)
                tuned = self.validator()
            chosen = ", ".join(f"{name} {value:.3g}" for name, value in self.method.thresholds.items())
            figure = self.method.metric[1]
            self.progress.line(f"thresholds: {chosen}; {figure} {tuned[figure]:.4f}")
        validation = figures if tuned is None else tuned
        self.engine.release()
        if self.main:
            self._save_model(self.out / MODEL, validation)
        self.log.write(
            "end",
            reason="early_stop" if self.stopped_early else "finished",
            epoch=self.epoch,
            step=self.engine.steps,
            best_epoch=state.best_epoch,
            thresholds=self.method.thresholds,
            validation=figures,
            tuned=tuned,
            seconds=state.seconds,
        )
        if self.tensorboard is not None:
            self.tensorboard.close()
        self.engine.accelerator.wait_for_everyone()
        self.progress.line(f"model of epoch {state.best_epoch}: {self.out / MODEL}")
        thresholds = dict(self.method.thresholds)
        return TrainingResult(
            self.out / MODEL, self.epoch, state.best_epoch, validation, thresholds, self.history, state.seconds
        )

    def _complete(self) -> None:
        """Shows the finished network some of the training images, for methods that learn from that."""
        found = self.samples.unchanged(self.method.completion_images)
        with torch.no_grad(), explained_memory(self.recipe):
            self.method.complete((torch.from_numpy(image).to(self.engine.device), each) for image, each in found)

    def _save_model(self, path: Path, figures: dict[str, float]) -> None:
        """Writes the present weights as a model file."""
        training = {
            "epoch": self.state.best_epoch,
            "seconds": round(self.state.seconds, 1),
            "images": self.identity["number of training images"],
            "validation": {name: float(value) for name, value in figures.items() if math.isfinite(value)},
        }
        metadata = {"recipe": self.recipe.to_json(), "training": training, "provenance": self.provenance or {}}
        save_model(path, self.method, self.categories, self.preprocessing, metadata=metadata)


def _described(losses: dict[str, float]) -> str:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items() if name != "total")
    return f"loss {losses['total']:.4g} ({terms})"
