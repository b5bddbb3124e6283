"""Trains the built-in model on generated texts:  python -m benchmarks.builtin_model.train

Curriculum: lists of a few lines first, longer ones as soon as the current length is mastered. A stopped run resumes
from its state file, with the same random numbers. One thread is fastest on shared cores.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlamaForCausalLM

from baton.builtin_model import CHECKPOINT
from benchmarks.builtin_model.muon import Muon
from benchmarks.builtin_model.samples import IGNORED, Batch, Samples, Stage
from benchmarks.builtin_model.start import build_model
from benchmarks.builtin_model.tokenizer import save_tokenizer, train_tokenizer

STAGES = (
    Stage(lines=12, length=168, rows=12),
    Stage(lines=40, length=480, rows=4),
    Stage(lines=110, length=1024, rows=2),
    Stage(lines=260, length=1856, rows=1),
)
SMALL_TASKS_SHAPE = (12, 256)  # (sequences, tokens per sequence)
MASTERED = 0.95  # Share of correct look-up tokens that ends a stage.
REVISION = 0.4  # Share of steps that repeat earlier stages.
WARM_UP = 60  # Steps.
DECAY = 0.4  # Share of the steps, at the end, in which the learning rate decays.
REPORT_EVERY = 50  # Steps.


@dataclass(slots=True)
class Progression:
    """The state of a run besides weights, optimisers and random numbers."""

    step: int = 0
    stage: int = 0
    tokens: int = 0
    cpu_seconds: float = 0.0
    look_up_right: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """The complete state of a run."""

    model: LlamaForCausalLM
    optimisers: list[torch.optim.Optimizer]
    samples: Samples
    at: Progression

    def store(self, file: Path) -> None:
        """Write the state atomically."""
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "random": self.samples.rng.getstate(),
            "at": asdict(self.at),
        }
        draft = file.with_suffix(".draft")
        torch.save(content, draft)
        draft.replace(file)

    def resume(self, file: Path) -> None:
        """Restore the state that `store` wrote."""
        content = torch.load(file, weights_only=True)
        self.model.load_state_dict(content["model"])
        for optimiser, stored in zip(self.optimisers, content["optimisers"], strict=True):
            optimiser.load_state_dict(stored)
        version, numbers, gauss = content["random"]
        self.samples.rng.setstate((version, tuple(numbers), gauss))
        for name, value in content["at"].items():
            setattr(self.at, name, value)


def build_optimisers(model: LlamaForCausalLM, scale: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for vocabulary matrices and norms."""
    hidden = {name for name, p in model.named_parameters() if name.endswith("_proj.weight")}
    matrices = [p for name, p in model.named_parameters() if name in hidden]
    others = [p for name, p in model.named_parameters() if name not in hidden]
    optimisers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=0.02 * scale),
        torch.optim.AdamW(others, lr=0.01 * scale, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return optimisers


def train_step(run: Run, look_ups: Batch, small_tasks: Batch) -> tuple[float, float]:
    """One update; returns the loss and the share of correct look-up digits."""
    logits, targets = _answers(run.model, look_ups)
    loss = F.cross_entropy(logits, targets) + F.cross_entropy(*_answers(run.model, small_tasks))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimiser in run.optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    digits = targets != run.model.config.eos_token_id
    right = (logits.detach().argmax(-1) == targets)[digits].float().mean()
    return float(loss.detach()), float(right)


def _answers(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and correct tokens at the positions of answers; other positions skip the vocabulary matrix."""
    hidden = model.model(batch.ids[:, :-1]).last_hidden_state
    wanted = batch.labels[:, 1:]
    answered = wanted != IGNORED
    return F.linear(hidden[answered], model.lm_head.weight), wanted[answered]


def rate(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: warm-up, constant, decay."""
    return min(1.0, (step + 1) / WARM_UP, max(0.02, (1.0 - step / steps) / DECAY))


def train(run: Run, steps: int, state_file: Path) -> None:
    """Train until `steps` steps are done, including those of earlier sessions."""
    at, rng = run.at, run.samples.rng
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=steps)
        while at.step < steps:
            started = time.process_time()
            share = rate(at.step, steps)
            for optimiser in run.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * share
            revision = rng.random() < REVISION
            stage = rng.randrange(at.stage + 1) if revision else at.stage
            look_ups, small_tasks = run.samples.look_ups(STAGES[stage]), run.samples.small_tasks(*SMALL_TASKS_SHAPE)
            loss, right = train_step(run, look_ups, small_tasks)
            _advance(at, stage, right)
            at.tokens += look_ups.ids.numel() + small_tasks.ids.numel()
            at.cpu_seconds += time.process_time() - started
            line = f"step {at.step}  lists of {STAGES[at.stage].lines}  loss {loss:.3f}  digits {at.look_up_right:.2f}"
            progress.update(bar, completed=at.step, description=line)
            if at.step % REPORT_EVERY == 0:
                run.store(state_file)
                if not progress.console.is_terminal:
                    print(f"{at.cpu_seconds:.0f} s  {at.tokens / 1e6:.2f} M tokens  {line}", flush=True)
    run.store(state_file)


def _advance(at: Progression, stage: int, right: float) -> None:
    at.step += 1
    if stage == at.stage:
        at.look_up_right += 0.05 * (right - at.look_up_right)
    if at.look_up_right > MASTERED and at.stage + 1 < len(STAGES):
        at.stage, at.look_up_right = at.stage + 1, 0.0


def export(model: LlamaForCausalLM, tokenizer: Any, folder: Path) -> None:
    """Write the checkpoint in bfloat16, as it ships."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = LlamaForCausalLM(model.config).bfloat16()
    shipped.load_state_dict(model.state_dict())
    shipped.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def main() -> None:
    """Parse the arguments, start or resume training, write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1250, help="number of steps, including resumed ones")
    parser.add_argument("--seed", type=int, default=0, help="seed of random numbers")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    state = Path("build/builtin_model/state.pt")
    parser.add_argument("--state", type=Path, default=state, help="file to resume from and to write to")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer()
    samples = Samples(tokenizer, random.Random(args.seed))
    model = build_model(tokenizer.get_vocab_size(), samples.eos)
    run = Run(model, build_optimisers(model, args.rate), samples, Progression())
    if args.state.is_file():
        run.resume(args.state)
    train(run, args.steps, args.state)
    export(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
