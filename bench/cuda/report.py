#!/usr/bin/env python3
"""What nvcc made of the device kernels, as a table: registers, spills, shared memory and the width
of loads and stores, read by cuobjdump from an object that holds register.cu.

python3 bench/cuda/report.py OBJECT > bench/cuda/resources.md

cuobjdump and nvdisasm are looked for in PATH, in /usr/local/cuda/bin and among Python's packages
(pip install -r bench/cuda/requirements.txt).
"""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

MOVES = ["gather", "put", "add", "merge"]  # rows.cuh


def tool(name):
    places = [os.environ["PATH"], "/usr/local/cuda/bin"]
    packages = pathlib.Path(sysconfig.get_paths()["purelib"], "nvidia")
    places += [str(folder) for folder in packages.glob("*/bin")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        sys.exit(f"report.py: no {name}; see bench/cuda/requirements.txt")
    return found


def dump(option, file):
    environment = dict(os.environ)  # cuobjdump calls nvdisasm
    environment["PATH"] = os.pathsep.join(
        [str(pathlib.Path(tool("nvdisasm")).parent), environment["PATH"]])
    return subprocess.run([tool("cuobjdump"), option, file], check=True, text=True,
                          stdout=subprocess.PIPE, env=environment).stdout


def readable(symbols):
    names = subprocess.run(["c++filt"], input="\n".join(symbols), check=True, text=True,
                           stdout=subprocess.PIPE).stdout.split("\n")
    for name in names:
        name = re.sub(r"^void |droppeft::(cuda::|cpu::)?|detail::", "", name)
        name = re.sub(r"\(Move\)(\d)", lambda move: MOVES[int(move[1])], name)
        yield name[:name.index("(")]


def main(file):
    usage = {}
    for line in dump("--dump-resource-usage", file).splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\S+):", line):
            symbol = match[1]
        if match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            usage[arch, symbol] = match.groups()

    counts = collections.defaultdict(collections.Counter)
    for line in dump("-sass", file).splitlines():
        if match := re.search(r"code for (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            count = counts[arch, match[1]]
        elif match := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", line):
            operation = match[1]
            name = operation.split(".")[0]
            count["all"] += operation != "NOP"
            count[name] += 1
            count[name + " 16 bytes"] += ".128" in operation

    symbols = sorted({symbol for _, symbol in usage})
    names = dict(zip(symbols, readable(symbols)))
    compiler = subprocess.run([tool("nvcc"), "--version"], check=True, text=True,
                              stdout=subprocess.PIPE).stdout
    version = re.search(r"release [\d.]+, V([\d.]+)", compiler)[1]
    print(f"""# The device kernels as compiled

Made by `bench/cuda/report.py` from what nvcc {version} makes of `register.cu`: what the compiler did. How
fast the kernels are on a GPU is in [results.md](results.md).

Stack in bytes, and the instructions that spill to it and load from it. Shared memory in bytes; 1024
of those of sm_90 are the system's. Loads and stores of device memory: those of 16 bytes + all others.
The arguments in `<>` are those of the sources, in their order; where `Whole` is false, rows take no
vectors of 16 bytes, and there are none.""")
    for arch in sorted({arch for arch, _ in usage}):
        print(f"""
## {arch}

| kernel | registers | stack | spill stores | spill loads | shared memory | loads | stores | instructions |
|---|---|---|---|---|---|---|---|---|""")
        for symbol in sorted(symbols, key=names.get):
            if (arch, symbol) not in usage:
                continue
            registers, stack, shared = usage[arch, symbol]
            count = counts[arch, symbol]
            wide = lambda name: f"{count[name + ' 16 bytes']} + {count[name] - count[name + ' 16 bytes']}"
            print(f"| `{names[symbol]}` | {registers} | {stack} | {count['STL']} | {count['LDL']} "
                  f"| {shared} | {wide('LDG')} | {wide('STG')} | {count['all']} |")


if len(sys.argv) != 2:
    sys.exit(__doc__)
main(sys.argv[1])
