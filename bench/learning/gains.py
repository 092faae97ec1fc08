#!/usr/bin/env python3
"""Which estimator of a device's gain orders two drop rates rightly: judges the table of gains.cpp.

    python3 bench/learning/gains.py bench/learning/gains.csv

Truth: the mean over a stage's replicates of the fall of the loss on the test set when all devices
have the rate, or of that per simulated second of the round. A pair of rates of one stage counts where
|t| of the paired difference is above 2. For a pair, rounds are drawn in which each device has one of
the two rates, both being there; over n of them, sums of gains over sums of seconds (of what each
device would take without dropout) are compared, or gains per device. Printed: the share of draws in
which the order is right, mean over pairs, with a 95 % bootstrap interval over the stages; the same for
all rounds there are at once, which is below 1 where an estimator is biased; and the gain at each rate
over that at full depth, in mixed rounds of the two, beside the truth. Needs Python only; minutes.
"""
import argparse
import csv
import itertools
import math
import random
import statistics

RATES = [0, 1 / 3, 2 / 3, 5 / 6]
DEVICES = 5
COUNTS = [1, 4, 16]
DRAWS = 1000
HELD_ROWS, SERVER_ROWS, TEST_ROWS = 8, 32, 400


class Replicate:
    """What five devices did at each rate from one start: lists [rate][device]."""

    def __init__(self, lines):
        self.lines = [lines[c * DEVICES:(c + 1) * DEVICES] for c in range(len(RATES))]
        self.gram = {}
        for block in ["layers", "head"]:
            gram = self.gram[block] = [[0.0] * len(lines) for _ in lines]
            for i, line in enumerate(lines):
                for j in range(i + 1):
                    gram[i][j] = gram[j][i] = float(line[f"{block}_{j}"])
        self.examples = self.column("examples")[0]
        self.shares = [[s / f for s, f in zip(*rows)]
                       for rows in zip(self.column("seconds"), self.column("full_seconds"))]

    def column(self, name):
        return [[float(line[name]) for line in row] for row in self.lines]

    def fall(self, before, after):
        return [[b - a for b, a in zip(*rows)]
                for rows in zip(self.column(before), self.column(after))]

    def round_fall(self, before="test_before", after="test_after"):
        return [row[0] for row in self.fall(before, after)]

    def round_seconds(self):
        return [max(row) for row in self.column("seconds")]


def read(path):
    """Replicates by (set, stage)."""
    lines = {}
    with open(path, newline="") as file:
        for line in csv.DictReader(file):
            lines.setdefault((line["set"], int(line["stage"])), {}).setdefault(
                int(line["replicate"]), []).append(line)
    return {stage: [Replicate(each) for each in replicates.values()]
            for stage, replicates in lines.items()}


def true_values(replicates, by_seconds):
    """[replicate][rate]"""
    return [[fall / seconds if by_seconds else fall
             for fall, seconds in zip(r.round_fall(), r.round_seconds())] for r in replicates]


def significant_pairs(values):
    """The pairs (better, worse) of rates."""
    pairs = []
    for a, b in itertools.combinations(range(len(RATES)), 2):
        differences = [each[a] - each[b] for each in values]
        t = statistics.mean(differences) / statistics.stdev(differences) * len(values) ** 0.5
        if abs(t) > 2:
            pairs.append((a, b) if t > 0 else (b, a))
    return pairs


# An estimator: (replicate, the rate of each device) -> the gain of each device.

def alone(compute):
    """One that looks at each device by itself: compute(replicate) -> [rate][device]."""
    known = {}

    def gains(replicate, mix):
        if replicate not in known:
            known[replicate] = compute(replicate)
        return [known[replicate][c][i] for i, c in enumerate(mix)]
    return gains


def agreement(blocks=("layers", "head"), deepest=False):
    """droppeft::agreement; deepest: with those of the others alone that dropped least."""
    def gains(replicate, mix):
        lines = [c * DEVICES + i for i, c in enumerate(mix)]
        result = []
        for i in range(DEVICES):
            others = [j for j in range(DEVICES) if j != i]
            if deepest:
                least = min(mix[j] for j in others)
                others = [j for j in others if mix[j] == least]
            along = square = 0.0
            for gram in map(replicate.gram.get, blocks):
                along += sum(replicate.examples[j] * gram[lines[i]][lines[j]] for j in others)
                square += sum(replicate.examples[j] * replicate.examples[k]
                              * gram[lines[j]][lines[k]] for j in others for k in others)
            result.append(along / math.sqrt(square))
        return result
    return gains


def last_step(*blocks):
    """The length along the last step of the server, but for the factor of all."""
    return alone(lambda replicate: [[sum(float(line[f"{block}_20"]) for block in blocks)
                                     for line in row] for row in replicate.lines])


def norm(replicate):
    return [[math.sqrt(sum(gram[i][i] for gram in replicate.gram.values()))
             for i in range(c * DEVICES, (c + 1) * DEVICES)] for c in range(len(RATES))]


def controlled(gain, covariates, stages):
    """Gains less what covariates tell of their noise: linear, in deviations from the round's mean.
    Coefficients by least squares over all stages but the one that is judged, within a rate, or a
    covariate would take for its own what the rate does; stages count alike, by the gain's variance."""
    size = range(len(covariates))
    moments = {}
    for stage, replicates in stages.items():
        xx, xy = [[0.0] * len(covariates) for _ in size], [0.0] * len(covariates)
        for c in range(len(RATES)):
            samples = []
            for estimator in [gain, *covariates]:
                values = [x for r in replicates for x in estimator(r, [c] * DEVICES)]
                mean = statistics.mean(values)
                samples.append([x - mean for x in values])
            y, *x = samples
            variance = statistics.pvariance(y) or 1.0
            for a in size:
                xy[a] += sum(p * q for p, q in zip(x[a], y)) / variance
                for b in size:
                    xx[a][b] += sum(p * q for p, q in zip(x[a], x[b])) / variance
        moments[stage] = xx, xy

    def of_stage(stage):
        others = [m for s, m in moments.items() if s != stage]
        beta = solve([[sum(m[0][a][b] for m in others) for b in size] for a in size],
                     [sum(m[1][a] for m in others) for a in size])

        def gains(replicate, mix):
            result = gain(replicate, mix)
            for factor, covariate in zip(beta, covariates):
                x = covariate(replicate, mix)
                mean = statistics.mean(x)
                result = [g - factor * (each - mean) for g, each in zip(result, x)]
            return result
        return gains
    return of_stage


def solve(matrix, right):
    """Gauss without pivoting, for a positive matrix."""
    rows = [row + [y] for row, y in zip(matrix, right)]
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            if j != i:
                factor = other[i] / row[i]
                rows[j] = [x - factor * y for x, y in zip(other, row)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]


class Rounds:
    """All mixed rounds of a pair of rates: for each, sums over the devices of the better and of the
    worse of (gains, devices, seconds). With a prior, gains are learned as by PaceConfigurator: those
    of a round are scaled to sum to that of 1 - rate, and 1 - rate counts as so many reports."""

    def __init__(self, replicates, pair, estimator, prior=0):
        self.prior = prior
        self.depths = [1 - RATES[rate] for rate in pair]
        self.of_replicate = []
        for replicate in replicates:
            self.of_replicate.append([])
            for mix in mixes(pair):
                gains = estimator(replicate, mix)
                if prior:
                    depths = [1 - RATES[rate] for rate in mix]
                    total = sum(gains)
                    gains = [max(-2, min(4, gain / total * sum(depths))) if total > 0 else depth
                             for gain, depth in zip(gains, depths)]
                sums = []
                for rate in pair:
                    here = [i for i in range(DEVICES) if mix[i] == rate]
                    sums += [sum(gains[i] for i in here), len(here),
                             sum(replicate.shares[rate][i] for i in here)]
                self.of_replicate[-1].append(sums)

    def means(self, sums, by_seconds):
        """What is believed of the better and of the worse."""
        for depth, (gain, count, seconds) in zip(self.depths, [sums[:3], sums[3:]]):
            mean = (gain + self.prior * depth) / (count + self.prior)
            yield mean / (seconds / count) if by_seconds else mean

    def right(self, sums, by_seconds):
        """1 where the order is right, 1/2 where there is none, else 0."""
        better, worse = self.means(sums, by_seconds)
        return 0.5 * ((better > worse) + (better >= worse))

    def all(self):
        return [sum(column) for column in zip(*itertools.chain(*self.of_replicate))]

    def scores(self, by_seconds, stream):
        """For each n, and for all rounds at once."""
        found = []
        for n in COUNTS:
            right = 0.0
            for _ in range(DRAWS):
                drawn = [stream.choice(stream.choice(self.of_replicate)) for _ in range(n)]
                right += self.right([sum(column) for column in zip(*drawn)], by_seconds)
            found.append(right / DRAWS)
        return found + [self.right(self.all(), by_seconds)]


class Curve(Rounds):
    """What the falls of the global loss over n mixed rounds say: a line through them in the share of
    the devices' examples that had the better rate. The fall of a mixed round is taken as the mean of
    those of its devices' rates, weighted by examples. One round says nothing."""

    def __init__(self, replicates, pair, before, after):
        self.of_replicate = []
        for replicate in replicates:
            falls = replicate.round_fall(before, after)
            seconds = [statistics.mean(replicate.shares[rate]) for rate in pair]
            self.of_replicate.append([])
            for mix in mixes(pair):
                share = sum(e for e, rate in zip(replicate.examples, mix)
                            if rate == pair[0]) / sum(replicate.examples)
                fall = share * falls[pair[0]] + (1 - share) * falls[pair[1]]
                self.of_replicate[-1].append([1, share, share ** 2, fall, share * fall, *seconds])

    def means(self, sums, by_seconds):
        n, x, xx, y, xy, *seconds = sums
        spread = n * xx - x * x
        if n == 1 or spread <= 0:
            return 0, 0
        slope = (n * xy - x * y) / spread
        levels = (y + slope * (n - x)) / n, (y - slope * x) / n
        return [level * n / s for level, s in zip(levels, seconds)] if by_seconds else levels


def mixes(pair):
    return [mix for mix in itertools.product(pair, repeat=DEVICES) if len(set(mix)) == 2]


def judges(stages):
    """By name: (stage, pair) -> Rounds; and the rows that a round evaluates: (before and after, of each
    device, by itself), (by the server)."""
    loss = alone(lambda r: r.fall("held_before", "held_after"))
    before = alone(lambda r: r.column("held_before"))
    rows = alone(lambda r: r.column("examples"))
    halves = alone(lambda r: r.fall("train_early", "train_late"))
    plain = {
        "1 - rate, nothing measured": alone(lambda r: [[1 - x] * DEVICES for x in RATES]),
        "accuracy": alone(lambda r: r.fall("right_after", "right_before")),
        "loss": loss,
        "training loss, ends": alone(lambda r: r.fall("train_first", "train_last")),
        "training loss, halves": halves,
        "agreement": agreement(),
        "agreement, adapters": agreement(["layers"]),
        "agreement with the deepest": agreement(deepest=True),
        "last step": last_step("layers", "head"),
        "last step, adapters": last_step("layers"),
        "norm": alone(norm),
        "server's loss": alone(lambda r: r.fall("server_before", "server_after")),
    }
    of_stage = {name: (lambda stage, e=e: e) for name, e in plain.items()}
    of_stage["loss, known before"] = controlled(loss, [before, rows], stages)
    of_stage["loss, all controls"] = controlled(loss, [before, rows, halves], stages)
    of_stage["loss, agreement"] = controlled(loss, [agreement()], stages)
    found = {}

    def add(name, estimator, prior=0):
        found[name] = lambda stage, pair: Rounds(stages[stage], pair, estimator(stage), prior)
    for name, estimator in of_stage.items():
        add(name, estimator)
    for name, prior in [("loss", 2), ("agreement", 2), ("agreement, adapters", 2),
                        ("last step", 2), ("last step, adapters", 2)]:
        add(f"{name}, prior of {prior}", of_stage[name], prior)
    for name, columns in {"curve, test rows": ("test_before", "test_after"),
                          "curve, server's rows": ("server_before", "round_server_after")}.items():
        found[name] = lambda stage, pair, c=columns: Curve(stages[stage], pair, *c)
    return found


def costs(stages, pairs):
    """Operations of evaluating over those of the devices' steps, mean over the pairs, by name: the
    devices' own, and the server's (one evaluation more for the model before)."""
    def share(rows_of_devices):
        return statistics.mean(
            rows_of_devices * sum(look) / (2 * HELD_ROWS) / sum(steps) for look, steps in [
                ([x for r in stages[s] for c in pair for x in r.column("look_flops")[c]],
                 [x for r in stages[s] for c in pair for x in r.column("step_flops")[c]])
                for s, pair in pairs])
    look = share(2 * HELD_ROWS)
    devices = {name: look for name in ["accuracy", "loss", "loss, known before", "loss, all controls",
                                       "loss, agreement", "loss, prior of 2"]}
    server = {"server's loss": share(SERVER_ROWS * (DEVICES + 1) / DEVICES),
              "curve, test rows": share(TEST_ROWS / DEVICES),
              "curve, server's rows": share(SERVER_ROWS / DEVICES)}
    return devices, server


def interval(of_stage, column, stream):
    """Mean over the pairs, and bounds of a bootstrap over the stages."""
    def mean(stages):
        return statistics.mean(scores[column] for pairs in stages for scores in pairs)
    lists = list(of_stage.values())
    draws = sorted(mean(stream.choices(lists, k=len(lists))) for _ in range(1000))
    return mean(lists), draws[25], draws[974]


def print_scores(stages, by_seconds, stream):
    pairs = [(stage, pair) for stage, replicates in stages.items()
             for pair in significant_pairs(true_values(replicates, by_seconds))]
    possible = math.comb(len(RATES), 2) * len(stages)
    deeper = sum(a < b for _, (a, b) in pairs)
    print(f"\n{'Gain per second' if by_seconds else 'Gain'}: {len(pairs)} of {possible} pairs; the "
          f"lower rate is the better in {deeper}\n")
    print("| estimator |", *(f"n = {n} |" for n in COUNTS), "all | devices' cost | server's |")
    print("|" + "---|" * (len(COUNTS) + 4))
    devices, server = costs(stages, pairs)
    for name, rounds in judges(stages).items():
        scores = {}
        for stage, pair in pairs:
            scores.setdefault(stage, []).append(rounds(stage, pair).scores(by_seconds, stream))
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*interval(scores, k, stream))
                 for k in range(len(COUNTS))]
        cells.append(f"{interval(scores, len(COUNTS), stream)[0]:.2f}")
        cells += [f"{100 * cost[name]:.1f} %" if name in cost else "0" for cost in (devices, server)]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def print_ratios(stages):
    print("\nGain at 1/3, 2/3 and 5/6 over that at full depth, and the mean absolute error\n")
    print("| |", *(f"{name} after {stage} |" for name, stage in stages), "error |")
    print("|" + "---|" * (len(stages) + 2))
    truth = {}
    for stage, replicates in stages.items():
        falls = [statistics.mean(column) for column in zip(*true_values(replicates, False))]
        truth[stage] = [fall / falls[0] for fall in falls[1:]]

    def row(name, of_stage):
        error = statistics.mean(abs(x - y) for s in stages for x, y in zip(of_stage[s], truth[s]))
        print(f"| {name} |", *(" ".join(f"{x:.2f}" for x in of_stage[s]) + " |" for s in stages),
              f"{error:.2f} |", flush=True)
    row("truth", truth)
    for name, rounds in judges(stages).items():
        ratios = {}
        for stage in stages:
            ratios[stage] = []
            for rate in range(1, len(RATES)):
                of_pair = rounds(stage, (0, rate))
                full, dropped = of_pair.means(of_pair.all(), False)
                ratios[stage].append(dropped / full if full else math.nan)
        row(name, ratios)


def print_directions(stages):
    """Products of updates of different devices estimate those of the mean updates, without noise."""
    print("\nThe mean update at a rate: its length over that at full depth, and their cosine\n")
    print("| |", *(f"{name} after {stage} |" for name, stage in stages))
    print("|" + "---|" * (len(stages) + 1))
    for rate in range(1, len(RATES)):
        cells = []
        for replicates in stages.values():
            def product(a, b):
                return statistics.mean(gram[a * DEVICES + i][b * DEVICES + j] for r in replicates
                                       for i, j in itertools.permutations(range(DEVICES), 2)
                                       for gram in r.gram.values())
            square = product(rate, rate)
            cells.append(f"{math.sqrt(square / product(0, 0)):.2f}, "
                         f"{product(rate, 0) / math.sqrt(square * product(0, 0)):.2f}")
        print(f"| {RATES[rate]:.2f} |", " | ".join(cells), "|")


def print_mixing(stages):
    """How far the mean of the devices' rates tells the fall of a mixed round."""
    pairs = []
    for replicates in stages.values():
        full = statistics.mean(r.round_fall()[0] for r in replicates)
        for r in replicates:
            falls = r.round_fall()
            told = sum(falls[c] * r.examples[i] * r.column("mixed")[c][i]
                       for c in range(len(RATES)) for i in range(DEVICES)) / sum(r.examples)
            pairs.append((told / full, r.round_fall(after="mixed_after")[0] / full))
    print(f"\n{len(pairs)} mixed rounds, falls in units of full depth's: "
          f"{statistics.mean(y for _, y in pairs):.2f}, by their devices' rates "
          f"{statistics.mean(x for x, _ in pairs):.2f}; correlation "
          f"{statistics.correlation(*zip(*pairs)):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    stages = read(parser.parse_args().table)
    print("Replicates:", *(f"{name} after {stage}: {len(replicates)};"
                           for (name, stage), replicates in stages.items()))
    stream = random.Random(0)
    print_ratios(stages)
    print_directions(stages)
    print_mixing(stages)
    for by_seconds in [False, True]:
        print_scores(stages, by_seconds, stream)


if __name__ == "__main__":
    main()
