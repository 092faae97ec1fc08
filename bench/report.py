"""What the kernels cost, against the machine's limits and against rivals: runs the benches and
writes a page and two plots.

Usage: report.py FOLDER [--rivals PYTHON] [--model MODEL] [--quick] [--run NAME ...]
[--records build/report] [--page bench/report.md] [--images docs]

FOLDER has the benches of the build tree (build/bench/bench). PYTHON is that of the rivals'
environment (build/rivals/bin/python); without it the page says that they are missing. MODEL has
MiniLM, for the whole step. Each program's lines of JSON and what it printed are kept in --records;
--run runs only the programs named, none where no name is given, and takes the other records from
there. gnuplot draws the plots. --quick, to try this out: few repetitions of one shape.
"""

import argparse
import collections
import os
import pathlib
import shutil
import subprocess
import sys

import records
from report_page import OURS, grouped, limit_rate, page

ROOT = pathlib.Path(__file__).resolve().parents[1]


def commands(arguments):
    """Name -> command, of all that can be run, in the order of the page."""
    quick = ["--quick"] if arguments.quick else []
    found = {name: [arguments.folder / name, *quick] for name in records.programs()}
    if arguments.rivals:
        script = ROOT / "bench/rivals/kernel_rivals.py"
        found["kernel_rivals"] = [arguments.rivals, script, arguments.folder, *quick]
    if arguments.rivals and arguments.model:
        script = ROOT / "bench/rivals/text_step.py"
        options = ["--models", "MiniLM", "--turns", "3"] if arguments.quick else ["--compile"]
        program = arguments.folder / "text_step"
        found["text_step"] = [arguments.rivals, script, program, arguments.model, *options]
    return found


def run(name, command, folder):
    """Whether it ran."""
    path = folder / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    print(name, file=sys.stderr, flush=True)
    if records.run([*command, "--json", path], path.with_suffix(".log")):
        return True
    print(f"{name} failed: {path.with_suffix('.log')}", file=sys.stderr)
    return False


def read(folder):
    """Machine by program, limits by program and what is limited, and all other records."""
    machines, limits, found = {}, {}, []
    for name in [*records.programs(), "kernel_rivals", "text_step"]:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            continue
        machine, its = records.read(path)
        if machine:
            machines[name] = machine
        for record in its:
            if record["kernel"] != "limit":
                found.append(record)
            elif record["dtype"] == "fp32":
                limits[name, record["shape"]] = record
    return machines, limits, found


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "processor unknown"


def commit():
    def git(*command):
        command = ["git", "-C", ROOT, *command]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "include", "bench/*pp", "examples/models")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def write_roofline(found, path):
    """Operations a byte, GFLOP/s, whose, kernel: a line for each row that says both."""
    with open(path, "w", encoding="utf-8") as file:
        for record in found:
            flops = record.get("total_flops", record.get("flops"))
            size = record.get("total_bytes", record.get("bytes"))
            if flops and size and record["who"] in (OURS, "eager LibTorch"):
                whose = "ours" if record["who"] == OURS else "eager"
                rate = 1e-9 * flops / record["seconds"]
                print(flops / size, rate, whose, record["kernel"], sep="\t", file=file)


def write_layers(found, path):
    """Kernel, shape, share of the layers active, and as shares of those of all layers: what was
    measured, its error, what is ideal."""
    keys = {
        "step_skip": ("seconds", "error", "limit_seconds"),
        "peak_memory": ("peak_bytes", None, "limit_bytes"),
    }
    rows = [record for record in found if "active" in record]
    with open(path, "w", encoding="utf-8") as file:
        for (kernel, shape), its in grouped(rows, "kernel", "shape").items():
            value, error, ideal = keys[kernel]
            its.sort(key=lambda each: each["active"])
            full = its[-1][value]
            for each in its:
                share = each["active"] / each["layers"]
                parts = [each[value] / full, each.get(error, 0) / full, each[ideal] / full]
                print(kernel, shape, share, *parts, sep="\t", file=file)


def draw(limits, found, folder, images):
    """The plots' tables in `folder`, and the plots. Name -> caption of those drawn."""
    write_roofline(found, folder / "roofline.tsv")
    write_layers(found, folder / "layers.tsv")
    if not shutil.which("gnuplot"):
        print("no gnuplot, no plots", file=sys.stderr)
        return {}
    fastest = collections.defaultdict(float)
    for (_, what), record in limits.items():
        fastest[what] = max(fastest[what], limit_rate(record))
    settings = {
        "roofline": f"fma={fastest['FMA']}; triad={fastest['triad']}; ",
        "layers": "",
    }
    for name, values in settings.items():
        values += f"data='{folder / name}.tsv'; image='{images / name}.png'"
        subprocess.run(["gnuplot", "-e", values, ROOT / f"bench/{name}.gp"], check=True)
    return {
        "roofline": "Arithmetic and traffic of the kernels under the machine's limits",
        "layers": "Time and peak bytes of a step against the active layers",
    }


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rivals", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--run", nargs="*")
    parser.add_argument("--records", type=pathlib.Path, default=ROOT / "build/report")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "bench/report.md")
    parser.add_argument("--images", type=pathlib.Path, default=ROOT / "docs")
    arguments = parser.parse_args()

    arguments.records.mkdir(parents=True, exist_ok=True)
    all_ran = True
    for name, command in commands(arguments).items():
        if arguments.run is None or name in arguments.run:
            all_ran &= run(name, command, arguments.records)
    machines, limits, found = read(arguments.records)
    if not machines:
        raise SystemExit(f"no records of benches in {arguments.records}")
    images = os.path.relpath(arguments.images, arguments.page.parent)
    drawn = draw(limits, found, arguments.records, arguments.images)
    pictures = {f"{images}/{name}.png": caption for name, caption in drawn.items()}
    where = f"{processor()}, commit {commit()}" + (", A QUICK RUN" if arguments.quick else "")
    has_rivals = (arguments.records / "kernel_rivals.jsonl").exists()
    text = page(machines, found, limits, where, has_rivals, pictures)
    arguments.page.write_text(text, encoding="utf-8")
    return 0 if all_ran else 1


if __name__ == "__main__":
    raise SystemExit(main())
