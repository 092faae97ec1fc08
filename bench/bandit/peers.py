"""Selectors of droppeft against SMPyBandits and MABWiser: nanoseconds per play, and regret on the
very same tables of rewards.

Usage: peers.py PROGRAM [--problems bernoulli2 bernoulli10] [--horizon 10000] [--runs 30] [--seed 0]

PROGRAM is the bench regret of the build tree; it writes the tables and plays with one thread. A
play is choosing, looking up the reward and learning it; nanoseconds are medians over the runs.
Algorithms and constants are the same but for what the column "peer" says. "ours worse": one-sided p
of Welch's test, by Holm over all comparisons; below 0.05 we are worse. The peers take about 8
seconds of processor time for each of --runs.

Left out, being something else: SMPyBandits' EpsilonGreedy takes the highest sum of rewards, not the
highest mean, and never explores the last arm.
"""

import argparse
import contextlib
import csv
import io
import math
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numba
import numpy as np
import scipy.stats
from mabwiser.mab import MAB, LearningPolicy

# Where numba kept jit until 2020, and SMPyBandits looks for it; without, its KL-UCB is interpreted.
sys.modules["numba.decorators"] = numba
warnings.simplefilter("ignore")
with contextlib.redirect_stdout(io.StringIO()):
    from SMPyBandits import Policies as smp

MEANS = {
    "bernoulli2": [0.9, 0.8],
    "bernoulli10": [0.1, 0.05, 0.05, 0.05, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01],
}


def exp3_exploration(arms, horizon):
    return min(1.0, math.sqrt(arms * math.log(arms) / ((math.e - 1) * horizon)))


# Our name -> peers: description, and what makes one for a number of arms and a horizon.
SMPYBANDITS = [
    ("UCB1", "UCBalpha(alpha=4)", lambda k, t: smp.UCBalpha(k, alpha=4)),
    ("UCB-V", "UCBV", lambda k, t: smp.UCBV(k)),
    ("UCB-tuned", "UCBVtuned, no cap of 1/4", lambda k, t: smp.UCBVtuned(k)),
    ("MOSS", "MOSS", lambda k, t: smp.MOSS(k)),
    ("MOSS T", "MOSSH(horizon)", lambda k, t: smp.MOSSH(k, horizon=t)),
    ("KL-UCB", "klUCB, tolerance 1e-4", lambda k, t: smp.klUCB(k)),
    ("Beta Thompson", "Thompson, arms not tried first", lambda k, t: smp.Thompson(k)),
    ("softmax", "Softmax(0.1), sum / (1 + n)", lambda k, t: smp.Softmax(k, temperature=0.1)),
    ("EXP3", "Exp3(gamma)", lambda k, t: smp.Exp3(k, gamma=exp3_exploration(k, t))),
]
MABWISER = [
    ("UCB1", "UCB1(alpha=1)", LearningPolicy.UCB1(alpha=1)),
    ("Beta Thompson", "ThompsonSampling", LearningPolicy.ThompsonSampling()),
    ("epsilon-greedy", "EpsilonGreedy(0.1)", LearningPolicy.EpsilonGreedy(epsilon=0.1)),
    ("softmax", "Softmax(0.1), argmax of Dirichlet", LearningPolicy.Softmax(tau=0.1)),
]


def play_smpybandits(make, rewards, seed):
    """Plays of each arm, and nanoseconds per play."""
    horizon, arms = rewards.shape
    np.random.seed(seed)
    random.seed(seed)
    policy = make(arms, horizon)
    policy.startGame()
    rows = rewards.tolist()
    plays = [0] * arms
    start = time.perf_counter_ns()
    for row in rows:
        arm = policy.choice()
        policy.getReward(arm, row[arm])
        plays[arm] += 1
    return plays, (time.perf_counter_ns() - start) / horizon


def play_mabwiser(policy, rewards, seed):
    """As above. Its fit wants data: every arm once."""
    horizon, arms = rewards.shape
    bandit = MAB(arms=list(range(arms)), learning_policy=policy, seed=seed)
    bandit.fit(list(range(arms)), [int(rewards[arm, arm]) for arm in range(arms)])
    rows = rewards.tolist()
    plays = [1] * arms
    start = time.perf_counter_ns()
    for row in rows[arms:]:
        arm = bandit.predict()
        bandit.partial_fit([arm], [row[arm]])
        plays[arm] += 1
    return plays, (time.perf_counter_ns() - start) / (horizon - arms)


def run_program(arguments, problem, folder):
    """The rewards, [run, time, arm], and by policy the regret and nanoseconds of each run."""
    command = [arguments.program, "--problem", problem]
    for option in ("horizon", "runs", "seed"):
        command += [f"--{option}", str(getattr(arguments, option))]
    subprocess.run([*command, "--table", folder / "table"], check=True)
    each = [*command, "--each", folder / "each"]
    subprocess.run(each, check=True, stdout=subprocess.DEVNULL)
    table = np.fromfile(folder / "table", dtype=np.uint8)
    ours = {}
    with open(folder / "each", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            regrets, times = ours.setdefault(row["policy"], ([], []))
            regrets.append(round(float(row["regret"]), 6))
            times.append(float(row["ns_per_play"]))
    return table.reshape(arguments.runs, arguments.horizon, len(MEANS[problem])), ours


def compare(problem, rewards, ours):
    """Rows: problem, our name, peer, its regrets and times, ours and our times."""
    gaps = [max(MEANS[problem]) - mean for mean in MEANS[problem]]
    rows = []
    for library, play, peers in (
        ("SMPyBandits", play_smpybandits, SMPYBANDITS),
        ("MABWiser", play_mabwiser, MABWISER),
    ):
        for name, peer, made_by in peers:
            play(made_by, rewards[0, :100], 0)  # compiles what numba compiles
            regrets, times = [], []
            for run, table in enumerate(rewards):
                plays, nanoseconds = play(made_by, table, run)
                regret = sum(gap * count for gap, count in zip(gaps, plays))
                regrets.append(round(regret, 6))
                times.append(nanoseconds)
            rows.append((problem, name, f"{library} {peer}", regrets, times, *ours[name]))
            print(".", end="", file=sys.stderr, flush=True)
    return rows


def holm(p_values):
    """Holm's adjusted p values."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def p_worse(ours, theirs):
    """Of regrets as high as ours if the peer were no better; 1 where all are the same."""
    test = scipy.stats.ttest_ind(ours, theirs, equal_var=False, alternative="greater")
    return 1.0 if math.isnan(test.pvalue) else float(test.pvalue)


def report(rows):
    p_values = holm([p_worse(ours, theirs) for _, _, _, theirs, _, ours, _ in rows])
    header = ["problem", "ours", "peer", "ns a play: ours, peer", "ratio", "regret: ours, peer"]
    header += ["ours - peer, 95 %", "ours worse, p"]
    print("|", " | ".join(header), "|")
    print("|---" * len(header) + "|")
    for (problem, name, peer, theirs, their_times, ours, our_times), p in zip(rows, p_values):
        our_ns, their_ns = statistics.median(our_times), statistics.median(their_times)
        times = f"{our_ns:.0f}, {their_ns:.0f} | {their_ns / our_ns:.0f}"
        test = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
        low, high = test.confidence_interval(0.95)
        print(
            f"| {problem} | {name} | {peer} | {times} "
            f"| {statistics.mean(ours):.1f}, {statistics.mean(theirs):.1f} "
            f"| {low:.1f} to {high:.1f} | {p:.3g}{' WORSE' if p < 0.05 else ''} |"
        )


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("program")
    parser.add_argument("--problems", nargs="+", choices=MEANS, default=list(MEANS))
    parser.add_argument("--horizon", type=int, default=10000)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for problem in arguments.problems:
        with tempfile.TemporaryDirectory() as folder:
            rewards, ours = run_program(arguments, problem, pathlib.Path(folder))
        rows += compare(problem, rewards, ours)
    print(file=sys.stderr)
    report(rows)


if __name__ == "__main__":
    main()
