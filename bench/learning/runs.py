"""Runs of federated_text: what they are given, played once into a folder each, and read back."""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

# Rounds of 5 of 20 devices with 10 steps each; more classes want more rounds. Methods with shorter
# rounds have the simulated time that fedlora took with the same seed, and at most six times its rounds.
ROUNDS = {"sst2": 10, "agnews": 8, "clinc150": 16, "messages": 12}
MORE = 6


def parser(description, methods, datasets, others=True):
    """Of the options that all have. By default all methods and these data sets; others, if they may be."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--program", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--datasets", nargs="+", default=datasets,
                        choices=None if others else datasets)
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=6000)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each of --threads")
    return parser


def metrics(folder):
    """The rounds played so far, a dictionary each."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_folder(args, data, method, seed):
    return args.out / data / re.sub("[^a-zA-Z0-9.]+", "_", method) / str(seed)


def play(args, data, method, seed, rounds, seconds, options, enough=None):
    """Plays a run with the method's `options` for so many rounds or simulated seconds (0: no limit),
    unless that was done already, and returns its rounds. A run that was interrupted goes on from its
    checkpoint. Ends as soon as enough(rounds), if given, is true, without a summary then."""
    where = ["--model", args.model] + ([] if data == "messages" else ["--data", args.data / data])
    options = ["--seed", seed, "--rounds", rounds, "--sim-seconds", seconds, "--train-rows",
               args.train_rows, "--test-rows", args.test_rows, "--threads", args.threads, *options]
    options = [str(option) for option in options]
    folder = run_folder(args, data, method, seed)
    asked, finished = folder / "options.json", folder / "finished"
    if asked.exists() and json.loads(asked.read_text()) != options:
        sys.exit(f"{folder} was made with other options, {asked.read_text()}: move it away")
    if finished.exists() or (folder / "summary.json").exists():
        return metrics(folder)
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps(options))
    print(*folder.parts[-3:], flush=True)
    command = [args.program, *where, "--out", folder, "--resume", *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            time.sleep(0.5)
            if enough and enough(metrics(folder)):
                break
        else:
            if process.returncode:
                sys.exit(f"{folder}: the program ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
    finished.touch()
    return metrics(folder)


def smoothed(rounds, last, window, key="accuracy"):
    """The mean over the rounds up to `last` that ended within the last `window` simulated seconds: runs
    whose rounds differ in length lag alike."""
    begin = rounds[last]["sim_seconds"] - window
    values = [line[key] for line in rounds[:last + 1] if line["sim_seconds"] > begin]
    return sum(values) / len(values)


def time_to(rounds, target, window):
    """Simulated seconds until that mean is at the target, `window` seconds having passed, or None."""
    for i, line in enumerate(rounds):
        if line["sim_seconds"] >= window and smoothed(rounds, i, window) >= target:
            return line["sim_seconds"]
    return None
