"""Trains the built-in model from texts it makes itself:  python -m builtin_model.train --minutes 60

Curriculum: lists of a few lines first, longer ones as soon as the present length is mastered. A run can be stopped and
started again: it goes on from the state file, with the same random numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlamaConfig, LlamaForCausalLM

from builtin_model import CHECKPOINT
from builtin_model.tasks import SMALL_TASKS, listing, pairs, question
from builtin_model.tokenizer import save_tokenizer, train_tokenizer

STAGES = ((8, 256), (24, 256), (64, 512), (160, 1024), (370, 2048))  # (lines of a list, tokens of a sequence)
TOKENS_PER_STEP = 4096
MASTERED = 0.93  # share of right look-up answers that ends a stage
IGNORED = -100


@dataclass(slots=True)
class State:
    """What a resumed run needs besides weights and optimisers."""

    step: int = 0
    stage: int = 0
    seconds: float = 0.0
    look_up_right: float = 0.0


class Samples:
    """Training sequences: token ids and, where an answer stands, labels."""

    def __init__(self, seed: int) -> None:
        self.tokenizer = train_tokenizer()
        self.rng = random.Random(seed)
        self.eos = self.tokenizer.token_to_id("<eos>")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def _add(self, ids: list[int], labels: list[int], prompt: str, answer: str) -> None:
        question_ids, answer_ids = self._encode(prompt), [*self._encode(answer), self.eos]
        ids += question_ids + answer_ids
        labels += [IGNORED] * len(question_ids) + answer_ids

    def look_ups(self, lines: int, length: int) -> tuple[list[int], list[int]]:
        """A list, then as many questions about it as fit: many answers for the price of one list."""
        entries = pairs(self.rng, self.rng.randint(max(2, lines // 3), lines))
        ids = self._encode(listing(entries))
        labels = [IGNORED] * len(ids)
        while len(ids) < length:
            name, value = self.rng.choice(entries)
            self._add(ids, labels, question(name), f" {value}")
        return ids[:length], labels[:length]

    def small_tasks(self, length: int) -> tuple[list[int], list[int]]:
        """Other tasks, one after the other."""
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            task = self.rng.choice(SMALL_TASKS)(self.rng)
            self._add(ids, labels, task.prompt, task.answer)
        return ids[:length], labels[:length]

    def batch(self, lines: int, length: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """`[n, length]` ids and labels, the first rows look-ups; and how many those are."""
        count = max(2, TOKENS_PER_STEP // length)
        num_look_ups = count - count // 2
        rows = [self.look_ups(lines, length) for _ in range(num_look_ups)]
        rows += [self.small_tasks(length) for _ in range(count - num_look_ups)]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows]), num_look_ups


def build_model(vocab_size: int, eos: int, seed: int) -> LlamaForCausalLM:
    """The architecture, freshly initialised."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices (Jordan et al. 2024), AdamW for embedding and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_step(
    model: LlamaForCausalLM, optims: list[torch.optim.Optimizer], batch: tuple[torch.Tensor, torch.Tensor, int]
) -> tuple[float, float]:
    """One update; returns the loss and the share of look-up answers (value and end) that were right."""
    ids, labels, num_look_ups = batch
    hidden = model.model(ids[:, :-1]).last_hidden_state
    targets = labels[:, 1:]
    answered = targets != IGNORED
    logits = F.linear(hidden[answered], model.lm_head.weight)
    wanted = targets[answered]
    loss = F.cross_entropy(logits, wanted)
    for optim in optims:
        optim.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optim in optims:
        optim.step()
    rows = torch.arange(len(ids)).unsqueeze(1).expand_as(answered)[answered]
    look_ups = (rows < num_look_ups) & (wanted != model.config.eos_token_id)
    right = (logits.detach().argmax(-1) == wanted)[look_ups].float().mean()
    return float(loss.detach()), float(right)


def learning_rate_share(share_done: float, step: int) -> float:
    """Warm up over 50 steps, stay, and come down over the last 30 % of the time."""
    return min(1.0, (step + 1) / 50) * (1.0 if share_done < 0.7 else max(0.02, (1.0 - share_done) / 0.3))


def save(model: LlamaForCausalLM, samples: Samples, folder: Path) -> None:
    """The checkpoint as it ships: bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()}
    exported = build_model(model.config.vocab_size, model.config.eos_token_id, 0).to(torch.bfloat16)
    exported.load_state_dict(kept)
    exported.save_pretrained(folder)
    save_tokenizer(samples.tokenizer, folder)


def run(args: argparse.Namespace) -> None:
    """Train until the minutes are over."""
    torch.set_num_threads(args.threads)
    samples = Samples(args.seed)
    model = build_model(samples.tokenizer.get_vocab_size(), samples.eos, args.seed)
    optims = optimisers(model)
    state = State()
    file = args.state / "train.pt"
    if file.is_file():
        state = _resume(file, model, optims, samples)
    base = [[group["lr"] for group in optim.param_groups] for optim in optims]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=args.minutes * 60)
        while state.seconds < args.minutes * 60:
            started = time.monotonic()
            factor = learning_rate_share(state.seconds / (args.minutes * 60), state.step)
            for optim, rates in zip(optims, base, strict=True):
                for group, rate in zip(optim.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            # Earlier stages come back now and then, so that short lists are not forgotten.
            stage = state.stage if samples.rng.random() < 0.8 else samples.rng.randint(0, state.stage)
            loss, right = train_step(model, optims, samples.batch(*STAGES[stage]))
            if math.isnan(loss):
                raise SystemExit("The loss is not a number any more: start again with another seed.")
            if stage == state.stage:
                state.look_up_right += 0.05 * (right - state.look_up_right)
            if state.look_up_right > MASTERED and state.stage + 1 < len(STAGES):
                state.stage, state.look_up_right = state.stage + 1, 0.0
            state.step += 1
            state.seconds += time.monotonic() - started
            line = f"step {state.step} lists of {STAGES[state.stage][0]} loss {loss:.3f} look-ups {state.look_up_right:.2f}"
            progress.update(bar, completed=state.seconds, description=line)
            if state.step % 50 == 0:
                _store(file, model, optims, samples, state)
                if not progress.console.is_terminal:
                    print(f"{state.seconds:.0f} s {line}", flush=True)
    _store(file, model, optims, samples, state)
    save(model, samples, args.out)
    (args.out / "training.json").write_text(
        json.dumps({"steps": state.step, "seconds": state.seconds, "seed": args.seed})
    )


def _store(file: Path, model: Any, optims: list[Any], samples: Samples, state: State) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "model": model.state_dict(),
        "optims": [optim.state_dict() for optim in optims],
        "random": samples.rng.getstate(),
        "state": (state.step, state.stage, state.seconds, state.look_up_right),
    }
    draft = file.with_suffix(".draft")
    torch.save(content, draft)
    draft.replace(file)


def _resume(file: Path, model: Any, optims: list[Any], samples: Samples) -> State:
    content = torch.load(file, weights_only=True)
    model.load_state_dict(content["model"])
    for optim, stored in zip(optims, content["optims"], strict=True):
        optim.load_state_dict(stored)
    version, numbers, gauss = content["random"]
    samples.rng.setstate((version, tuple(numbers), gauss))
    return State(*content["state"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="time to train, over all runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--state", type=Path, default=Path("build/builtin_model"), help="where a run can go on from")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="where the checkpoint goes")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
