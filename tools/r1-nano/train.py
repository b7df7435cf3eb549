#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains r1-nano on conversations that are made meanwhile. See README.md.

Each call works for --seconds and brings the schedule from where --state stands to --until; the call
with --until 1 ends the training. A call ends with an evaluation on held-out questions.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time

START = time.monotonic()  # before the slow imports: --seconds is the time of the whole process

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

import attention  # noqa: E402
import data  # noqa: E402
import decode  # noqa: E402
import fp8  # noqa: E402
import state  # noqa: E402
from model import Nano, Shape, causal, num_parameters  # noqa: E402

WARM_UP_STEPS = 200
DECAY_FROM = 0.6  # of the schedule; the rate is constant before and falls to LAST_RATE of it
LAST_RATE = 0.01
FP8_FROM = 0.85  # from here weights are rounded to FP8 in the forward pass, so that storing them loses nothing
PROMPT_WEIGHT = 0.03  # in the loss, of tokens that users and templates write
BIAS_RATE = 0.001  # of the routers' correction bias, for an even load without a loss for it
# Relative L2 over all parameters. bf16 alone gives up to 0.15 where routers are near ties; a wrong kernel gives about 1.
GRADIENT_TOLERANCE = 0.5
UNCOMPILED_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
POOL_ROWS = 1 << 20  # on the device: 4.3 GB for 1.1 billion tokens; the oldest give way
REPORT_SECONDS = 20
EVALUATION_SEED = "evaluation"


def say(line):
    print(f"[{time.monotonic() - START:5.0f} s] {line}", flush=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step does, from how far the schedule is."""

    rate: float
    mtp_weight: float
    fp8: bool

    @staticmethod
    def at(fraction, warm_steps):
        decay = min(1.0, max(LAST_RATE, (1 - fraction) / (1 - DECAY_FROM)))
        warm = min(1.0, (warm_steps + 1) / WARM_UP_STEPS)
        return Plan(warm * decay, 0.3 if fraction < DECAY_FROM else 0.1, fraction >= FP8_FROM)


class RowPool:
    """Rows on the device, drawn at random; a ring that new ones overwrite."""

    def __init__(self, capacity, device):
        self._rows = torch.zeros(capacity, 2, data.ROW_LENGTH, dtype=torch.int16, device=device)
        self._next = 0
        self.size = 0

    def add(self, chunks):
        capacity = self._rows.shape[0]
        for chunk in chunks:
            rows = torch.from_numpy(chunk).transpose(0, 1)
            if self._next + len(rows) > capacity:
                self._next = 0
            self._rows[self._next : self._next + len(rows)] = rows.to(self._rows.device)
            self._next += len(rows)
            self.size = max(self.size, self._next)

    def draw(self, count):
        """ids [count, ROW_LENGTH] int64 and loss weights [count, ROW_LENGTH]."""
        chosen = torch.randint(0, self.size, (count,), device=self._rows.device)
        rows = self._rows[chosen]
        return rows[:, 0].long(), rows[:, 1].float() * (1 - PROMPT_WEIGHT) + PROMPT_WEIGHT


def weighted_loss(logits, targets, weights):
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def loss_function(model, attend, dtype):
    """(ids, weights, mtp_weight) -> total, main and MTP loss, and the experts' loads [MoE layers, E]."""

    def losses(ids, weights, mtp_weight):
        rope = model.rope(torch.arange(ids.shape[1] - 2, device=ids.device))
        attends = [attend] * model.shape.num_hidden_layers
        hidden, loads = model.hidden(ids[:, :-2], rope, attends, dtype)
        main = weighted_loss(model.lm_head(hidden), ids[:, 1:-1], weights[:, 1:-1])
        drafted, load = model.draft(hidden, ids[:, 1:-1], rope, attend)
        mtp = weighted_loss(model.lm_head(drafted), ids[:, 2:], weights[:, 2:])
        return main + mtp_weight * mtp, main.detach(), mtp.detach(), torch.stack([*loads, load])

    return losses


def new_optimizer(model, device):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=BETAS, fused=device.type == "cuda")


class Trainer:
    """One call's training. Confined to the main thread."""

    def __init__(self, arguments, device):
        self._arguments, self._device = arguments, device
        self.progress = state.progress_of(arguments.state)
        torch.manual_seed(arguments.seed + self.progress.step)
        if self.progress.step > 0:
            self.model = state.load_model(arguments.state).to(device)
        else:
            self.model = Nano(read_shape(arguments.shape)).to(device)
        self.optimizer = new_optimizer(self.model, device)
        kept = self.progress.step > 0 and state.load_optimizer(arguments.state, self.optimizer)
        self._warm_from = 0 if kept else self.progress.step  # a fresh optimizer warms up again
        self.pool = RowPool(arguments.pool_rows, device)
        self._mtp_weight = torch.zeros((), device=device)
        say(f"{num_parameters(self.model) / 1e6:.2f}M parameters, from step {self.progress.step}, {self.progress}")

    def plan(self):
        return Plan.at(self.progress.fraction, self.progress.step - self._warm_from)

    def backward(self, batch, plan):
        self._mtp_weight.fill_(plan.mtp_weight)
        with fp8.stored_weights(self.model, plan.fp8):
            total, main, mtp, loads = self._losses(*batch, self._mtp_weight)
            total.backward()
        return main, mtp, loads

    def choose_losses(self, dtype):
        """The compiled losses with the fastest attention that gives the same gradients as without the compiler.

        Returns the context to train in. Compiling takes a minute, in which the first data is made.
        """
        for kernel in attention.kernels(self.model.shape, self._device, say):
            losses = loss_function(self.model, kernel.attend(self.model.shape), dtype)
            self._losses = torch.compile(losses, dynamic=False) if self._device.type == "cuda" else losses
            try:
                with kernel.allowed():
                    error = self._gradient_error(loss_function(self.model, causal(self.model.shape), dtype))
            except RuntimeError as failure:
                say(f"attention {kernel.name}: does not compile ({str(failure).splitlines()[0]})")
                continue
            say(f"compiled with attention {kernel.name}; gradients differ from uncompiled ones by {error:.1e}")
            if error < GRADIENT_TOLERANCE:
                return kernel.allowed()
        raise RuntimeError("no attention kernel gives the right gradients")

    def _gradient_error(self, plain_losses):
        rows, plan = self._arguments.batch_rows, self.plan()
        ids = torch.randint(0, self.model.shape.vocab_size, (rows, data.ROW_LENGTH), device=self._device)
        weights = torch.ones(ids.shape, device=self._device)
        self.backward((ids, weights), plan)
        found = self._take_gradient()
        parts = min(rows, 8)  # uncompiled, the whole batch would take several times the memory
        with fp8.stored_weights(self.model, plan.fp8), sdpa_kernel(UNCOMPILED_KERNELS):
            for part in ids.chunk(parts):
                total, *_ = plain_losses(part, weights[: len(part)], self._mtp_weight)
                (total * len(part) / rows).backward()
        return attention.relative_error(found, self._take_gradient())

    def _take_gradient(self):
        gradient = torch.cat([parameter.grad.flatten() for parameter in self.model.parameters()])
        self.optimizer.zero_grad(set_to_none=True)
        return gradient

    def step(self):
        plan = self.plan()
        main, mtp, loads = self.backward(self.pool.draw(self._arguments.batch_rows), plan)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = self._arguments.learning_rate * plan.rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._balance(loads.float(), plan)
        self.progress.step += 1
        self.progress.tokens += self._arguments.batch_rows * (data.ROW_LENGTH - 2)
        return main, mtp, norm, loads

    @torch.no_grad()
    def _balance(self, loads, plan):
        """Experts that were chosen too rarely become a little more attractive."""
        direction = torch.sign(loads.mean(-1, keepdim=True) - loads)
        for router, change in zip(self.model.routers(), direction, strict=True):
            router.e_score_correction_bias += BIAS_RATE * plan.rate * change

    def run(self, producers, until, end):
        """Steps until `end` (monotonic), or --steps of them, while the schedule goes to `until`."""
        begin, first = time.monotonic(), self.progress.fraction
        before, first_step = dataclasses.replace(self.progress), self.progress.step
        reported = begin
        while (now := time.monotonic()) < end and self.progress.fraction < until:
            self.pool.add(producers.take())
            result = self.step()
            done = (time.monotonic() - begin) / (end - begin)
            if self._arguments.steps:
                done = (self.progress.step - first_step) / self._arguments.steps
            self.progress.fraction = min(until, first + (until - first) * done)
            self.progress.seconds = before.seconds + time.monotonic() - begin
            if now - reported >= REPORT_SECONDS or self.progress.step == first_step + 1:
                reported = now
                self._report(result, (self.progress.tokens - before.tokens) / (time.monotonic() - begin))

    def _report(self, result, speed):
        main, mtp, norm, loads = result
        loads = loads.float()
        uneven = (loads.amax(-1) / loads.mean(-1)).max().item()
        plan = self.plan()
        say(
            f"step {self.progress.step} ({self.progress.fraction:.1%}) loss {main.item():.4f} mtp {mtp.item():.4f} "
            f"norm {norm.item():.2f} rate {plan.rate:.3f}{' fp8' if plan.fp8 else ''} load {uneven:.2f} "
            f"{speed / 1e6:.2f}M tokens/s, pool {self.pool.size * (data.ROW_LENGTH - 2) / 1e6:.0f}M of tokens"
        )


def read_shape(path):
    return Shape(**json.loads(pathlib.Path(path).read_text())) if path else Shape()


def evaluate(trainer, tokenizer, arguments, dtype):
    """Prints the table and returns what results.json keeps. Ends about at --seconds."""
    with fp8.stored_weights(trainer.model, trainer.plan().fp8):
        deadline = START + arguments.seconds
        tally, wrong = decode.evaluate(
            trainer.model, tokenizer, arguments.evaluate_per_kind, EVALUATION_SEED, dtype, deadline
        )
        agreement = decode.mtp_agreement(trainer.model, tokenizer, EVALUATION_SEED, dtype)
    for (split, kind), (question, completion) in sorted(wrong.items()):
        turn = question.conversation.turns[-1]
        say(f"wrong, {split} {kind}: {turn.question!r} -> {completion[-200:]!r}, expected {turn.answer!r}")
    say("held-out questions, right of asked\n" + tally.table())
    say(f"MTP agreement {agreement:.2%}")
    return tally.as_json() | {"mtp_agreement": agreement}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--state", required=True, help="directory; continued if it exists")
    parser.add_argument("--seconds", type=float, required=True, help="of this process, with start-up and evaluation")
    parser.add_argument("--reserve", type=float, default=60, help="seconds of these for saving and evaluating")
    parser.add_argument("--until", type=float, default=1.0, help="fraction of the schedule at this call's end")
    parser.add_argument("--tokenizer", default=str(here.parents[1] / "models/r1-nano/tokenizer.json"))
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-rows", type=int, default=128, help="rows of 1024 tokens a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--producers", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--first-tokens", type=float, default=30e6, help="made before the first step")
    parser.add_argument("--pool-rows", type=int, default=POOL_ROWS)
    parser.add_argument("--evaluate-per-kind", type=int, default=25)
    parser.add_argument("--results", help="JSON file for the evaluation")
    parser.add_argument("--shape", help="JSON file of sizes that differ from r1-nano's, for tests")
    parser.add_argument("--steps", type=int, help="at most so many steps, for tests")
    return parser.parse_args()


def train(trainer, producers, arguments, dtype):
    kernel = trainer.choose_losses(dtype)
    chunk_tokens = data.CHUNK_ROWS * (data.ROW_LENGTH - 2)
    trainer.pool.add(producers.take(at_least=-(-int(arguments.first_tokens) // chunk_tokens)))
    say(f"first {trainer.pool.size * (data.ROW_LENGTH - 2) / 1e6:.0f}M tokens are there")
    with kernel:
        trainer.run(producers, arguments.until, START + arguments.seconds - arguments.reserve)
    producers.stop()
    state.save(arguments.state, trainer.model, trainer.optimizer, trainer.progress)
    say(f"saved {trainer.progress}")


def main():
    arguments = parse_arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Forked before CUDA is touched. Each call has its own seed, or it would train on the same data again.
    seed = f"{arguments.seed}/{state.progress_of(arguments.state).step}"
    producers = data.Producers(arguments.producers, arguments.tokenizer, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    trainer = Trainer(arguments, device)
    train(trainer, producers, arguments, dtype)
    tokenizer = Tokenizer.from_file(arguments.tokenizer)
    results = evaluate(trainer, tokenizer, arguments, dtype)
    results["training"] = dataclasses.asdict(trainer.progress) | {"parameters": num_parameters(trainer.model)}
    if arguments.results:
        pathlib.Path(arguments.results).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
