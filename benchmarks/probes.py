"""All probes in one batched pass against one after another: ``python -m benchmarks.probes``.

Both do the same work: attention over positions and a read-out for every layer, target and kind, the
same number of steps of Adam on batches of the same size, the same checks of the validation error.
One after another is written as one would write it plainly, a small module and a loop for each
probe. The hidden states
are random: the time does not depend on their values. Both are timed in one process, in turn, and
the median of the rounds is reported.
"""

import argparse
import copy
import statistics
import time

import torch
from torch import Tensor, nn

from incontext_linear.probing import Column, fit_probes, split_prompts
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.tasks import generator

# layers, tokens, width, sizes of the targets, sizes of the MLPs
SIZES = {
    "base: 4 layers, width 64, d = 3, 12 examples": (5, 23, 64, (3, 3, 3, 6), (16, 64)),
    "pretrained: 15 layers, width 128, d = 8, 40 examples": (16, 79, 128, (8, 8), (64,)),
}


class PlainProbe(nn.Module):
    """One probe of one layer, target and kind."""

    def __init__(self, num_tokens: int, width: int, size: int, hidden_units: int | None):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_tokens))
        self.read_out = (
            nn.Linear(width, size)
            if hidden_units is None
            else nn.Sequential(
                nn.Linear(width, hidden_units), nn.GELU(), nn.Linear(hidden_units, size)
            )
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, T, H) to values (B, D)."""
        return self.read_out(self.scores.softmax(0) @ hidden)


def fit_one(
    hidden: Tensor, values: Tensor, hidden_units: int | None, config: ProbingConfig, seed: int
) -> float:
    """Train one probe with early stopping; returns its test error."""
    split = split_prompts(len(hidden), config, seed)
    probe = PlainProbe(*hidden.shape[1:], values.shape[1], hidden_units).to(hidden.device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    rng, best, kept = generator(seed, "plain"), float("inf"), probe.state_dict()
    check_every = max(1, config.num_steps // 25)
    validation = hidden[split.validation], values[split.validation]
    for step in range(1, config.num_steps + 1):
        batch = split.train[torch.randint(len(split.train), (config.batch_size,), generator=rng)]
        (probe(hidden[batch]) - values[batch]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % check_every == 0 or step == config.num_steps:
            with torch.no_grad():
                error = (probe(validation[0]) - validation[1]).square().mean().item()
            if error < best:
                best, kept = error, copy.deepcopy(probe.state_dict())
    probe.load_state_dict(kept)
    with torch.no_grad():
        return (probe(hidden[split.test]) - values[split.test]).square().mean().item()


def compare(name: str, num_prompts: int, num_steps: int, rounds: int, device: str) -> str:
    """Time both ways of fitting; returns a row of the report."""
    num_layers, num_tokens, width, sizes, hidden_units = SIZES[name]
    config = ProbingConfig(num_steps=num_steps, batch_size=128, hidden_units=hidden_units)
    rng = generator(0, "benchmark")
    hidden = torch.randn(num_layers, num_tokens, num_prompts, width, generator=rng).to(device)
    columns = [
        Column(
            str(index),
            (num_tokens - 1) // 2,
            torch.randn(num_prompts, size, generator=rng).to(device),
        )
        for index, size in enumerate(sizes)
    ]
    by_prompt = hidden.transpose(1, 2).contiguous()

    def together() -> None:
        fit_probes(hidden, list(range(num_layers)), columns, config, seed=0)

    def one_after_another() -> None:
        for states in by_prompt:
            for column in columns:
                for units in (None, *hidden_units):
                    fit_one(states, column.values, units, config, seed=0)

    times = {together: [], one_after_another: []}
    for _ in range(rounds):
        for action, taken in times.items():
            start = time.perf_counter()
            action()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    batched, plain = (statistics.median(taken) for taken in times.values())
    num_probes = num_layers * len(sizes) * (1 + len(hidden_units))
    return f"| {name} | {num_probes} | {plain:.2f} | {batched:.2f} | {plain / batched:.1f} |"


def main() -> None:
    """Print the comparison as a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    print(
        f"{arguments.device}, {torch.get_num_threads()} threads, {arguments.steps} steps, batches "
        "of 128"
    )
    print(
        "| size | probes | one after another, s | one batched pass, s | ratio "
        "|\n|---|---|---|---|---|"
    )
    for name in SIZES:
        print(compare(name, arguments.prompts, arguments.steps, arguments.rounds, arguments.device))


if __name__ == "__main__":
    main()
