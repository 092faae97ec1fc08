"""Selectors of droppeft against SMPyBandits and MABWiser: nanoseconds per play, and regret on the
very same tables of contexts and rewards.

Usage: peers.py FOLDER [--problems bernoulli2 bernoulli10 linear] [--horizon 10000] [--runs 30]
[--seed 0]

FOLDER has the benches regret and contextual of the build tree; they write the tables and play with
one thread. A play is choosing, looking up the reward and learning it; nanoseconds are medians over
the runs, of time for ours and of processor time for the peers. Algorithms and constants are the
same but for what the column "peer" says. "ours worse": one-sided p of Welch's test, by Holm over
all comparisons; below 0.05 we are worse. The peers take about 8 seconds of processor time for each
of --runs, and 28 more for the problem linear.

Left out, being something else: SMPyBandits' EpsilonGreedy takes the highest sum of rewards, not the
highest mean, and never explores the last arm. MABWiser's LinTS differs, too: the random numbers of
all arms are copies of one generator, so that all arms see the same draw at each play.
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
import typing
import warnings

import numba
import numpy as np
import scipy.stats
from mabwiser.mab import MAB, LearningPolicy

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from holm import holm

# Where numba kept jit until 2020, and SMPyBandits looks for it; without, its KL-UCB is interpreted.
sys.modules["numba.decorators"] = numba
warnings.simplefilter("ignore")
with contextlib.redirect_stdout(io.StringIO()):
    from SMPyBandits import Policies as smp

MEANS = {
    "bernoulli2": [0.9, 0.8],
    "bernoulli10": [0.1, 0.05, 0.05, 0.05, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01],
}
# Of the table that contextual writes.
CONTEXT, LINEAR_ARMS = 8, 10


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
MABWISER_LINEAR = [
    ("LinUCB alpha=1", "LinUCB(alpha=1)", LearningPolicy.LinUCB(alpha=1)),
    ("LinUCB alpha=0.25", "LinUCB(alpha=0.25)", LearningPolicy.LinUCB(alpha=0.25)),
    ("linear Thompson", "LinTS(alpha=0.5), one draw for all arms", LearningPolicy.LinTS(alpha=0.5)),
]


class Game(typing.NamedTuple):
    """What a run meets: rewards and gaps, [time, arm], and contexts, [time, number] or None."""

    rewards: np.ndarray
    gaps: np.ndarray
    contexts: np.ndarray | None = None

    def start(self, plays):
        return Game(*(None if part is None else part[:plays] for part in self))

    def regret(self, played):
        """Of the arm played at each time."""
        return round(float(self.gaps[np.arange(len(played)), played].sum()), 6)


def play_smpybandits(make, game, seed):
    """The arm played at each time, and nanoseconds per play."""
    horizon, arms = game.rewards.shape
    np.random.seed(seed)
    random.seed(seed)
    policy = make(arms, horizon)
    policy.startGame()
    rows = game.rewards.tolist()
    played = []
    start = time.thread_time_ns()
    for row in rows:
        arm = policy.choice()
        policy.getReward(arm, row[arm])
        played.append(arm)
    return played, (time.thread_time_ns() - start) / horizon


def play_mabwiser(policy, game, seed):
    """As above. Its fit wants data: every arm once."""
    horizon, arms = game.rewards.shape
    rows = game.rewards.tolist()
    first, contexts = None, [None] * horizon
    if game.contexts is not None:
        first, contexts = game.contexts[:arms], np.split(game.contexts, horizon)
    bandit = MAB(arms=list(range(arms)), learning_policy=policy, seed=seed)
    bandit.fit(list(range(arms)), [rows[arm][arm] for arm in range(arms)], first)
    played = list(range(arms))
    start = time.thread_time_ns()
    for row, context in zip(rows[arms:], contexts[arms:]):
        arm = bandit.predict(context)
        bandit.partial_fit([arm], [row[arm]], context)
        played.append(arm)
    return played, (time.thread_time_ns() - start) / (horizon - arms)


def run_program(arguments, command, folder):
    """The file of the table, and by policy the regret and nanoseconds of each run."""
    for option in ("horizon", "runs", "seed"):
        command += [f"--{option}", str(getattr(arguments, option))]
    subprocess.run([*command, "--table", folder / "table"], check=True)
    each = [*command, "--each", folder / "each"]
    subprocess.run(each, check=True, stdout=subprocess.DEVNULL)
    ours = {}
    with open(folder / "each", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            regrets, times = ours.setdefault(row["policy"], ([], []))
            regrets.append(round(float(row["regret"]), 6))
            times.append(float(row["ns_per_play"]))
    return folder / "table", ours


def bernoulli(arguments, problem, folder):
    """The games, and what run_program says of ours."""
    command = [arguments.folder / "regret", "--problem", problem]
    table, ours = run_program(arguments, command, folder)
    shape = arguments.horizon, len(MEANS[problem])
    gaps = np.broadcast_to(max(MEANS[problem]) - np.array(MEANS[problem]), shape)
    rewards = np.fromfile(table, dtype=np.uint8).reshape(arguments.runs, *shape)
    return [Game(its_rewards, gaps) for its_rewards in rewards], ours


def linear(arguments, folder):
    """As above."""
    table, ours = run_program(arguments, [arguments.folder / "contextual"], folder)
    rows = np.fromfile(table).reshape(arguments.runs, arguments.horizon, -1)
    contexts, rewards, gaps = np.split(rows, [CONTEXT, CONTEXT + LINEAR_ARMS], axis=2)
    return [Game(*parts) for parts in zip(rewards, gaps, contexts)], ours


def compare(problem, libraries, games, ours):
    """Rows: problem, our name, peer, its regrets and times, ours and our times."""
    rows = []
    for library, play, peers in libraries:
        for name, peer, made_by in peers:
            play(made_by, games[0].start(100), 0)  # compiles what numba compiles
            regrets, times = [], []
            for run, game in enumerate(games):
                played, nanoseconds = play(made_by, game, run)
                regrets.append(game.regret(played))
                times.append(nanoseconds)
            rows.append((problem, name, f"{library} {peer}", regrets, times, *ours[name]))
            print(".", end="", file=sys.stderr, flush=True)
    return rows


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
    parser.add_argument("folder", type=pathlib.Path)
    problems = [*MEANS, "linear"]
    parser.add_argument("--problems", nargs="+", choices=problems, default=problems)
    parser.add_argument("--horizon", type=int, default=10000)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    smpybandits = ("SMPyBandits", play_smpybandits, SMPYBANDITS)
    mabwiser = ("MABWiser", play_mabwiser, MABWISER)
    rows = []
    for problem in arguments.problems:
        with tempfile.TemporaryDirectory() as folder:
            if problem == "linear":
                games, ours = linear(arguments, pathlib.Path(folder))
                libraries = [("MABWiser", play_mabwiser, MABWISER_LINEAR)]
            else:
                games, ours = bernoulli(arguments, problem, pathlib.Path(folder))
                libraries = [smpybandits, mabwiser]
        rows += compare(problem, libraries, games, ours)
    print(file=sys.stderr)
    report(rows)


if __name__ == "__main__":
    main()
