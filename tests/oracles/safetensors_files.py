"""Writes small files with the Python package `safetensors`, and what its reader says of bad ones.

Usage: python safetensors_files.py OUTPUT_DIR

OUTPUT_DIR/safetensors_dtypes.safetensors    every type that torch and the package share
OUTPUT_DIR/safetensors_shapes.safetensors    scalars, empty tensors, names that JSON must escape
OUTPUT_DIR/safetensors_foreign.safetensors   not the package's own layout, but one that it reads:
                                             unaligned data, keys out of order, sub-byte types
OUTPUT_DIR/safetensors_headers.json          whole files (hexadecimal) and whether it reads them

Made with safetensors 0.8.0 and torch 2.11.0.
"""

import json
import pathlib
import sys

import safetensors
import torch
from safetensors.torch import save

folder = pathlib.Path(sys.argv[1])

# Numbers made of the bytes 0, 1, 2, ... (bools: 0 and 1), in the order of the format's list.
TYPES = {
    "bool": torch.bool, "f4": torch.float4_e2m1fn_x2, "u8": torch.uint8, "i8": torch.int8,
    "f8_e5m2": torch.float8_e5m2, "f8_e4m3": torch.float8_e4m3fn, "f8_e8m0": torch.float8_e8m0fnu,
    "f8_e4m3fnuz": torch.float8_e4m3fnuz, "f8_e5m2fnuz": torch.float8_e5m2fnuz,
    "i16": torch.int16, "u16": torch.uint16, "f16": torch.float16, "bf16": torch.bfloat16,
    "i32": torch.int32, "u32": torch.uint32, "f32": torch.float32, "c64": torch.complex64,
    "f64": torch.float64, "i64": torch.int64, "u64": torch.uint64,
}  # fmt: skip
tensors = {}
for name, dtype in TYPES.items():
    size = torch.empty(0, dtype=dtype).element_size()
    # Two of a type, given in the wrong order.
    for prefix, shape in (("z.", (2, 3)), ("a.", (3, 2))):
        numbers = torch.arange(6 * size, dtype=torch.uint8)
        numbers = (numbers % 2).bool() if dtype == torch.bool else numbers.view(dtype)
        tensors[prefix + name] = numbers.reshape(shape)
(folder / "safetensors_dtypes.safetensors").write_bytes(save(tensors, {"format": "pt"}))

tensors = {
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0),
    "empty.matrix": torch.zeros(2, 0, 3, dtype=torch.int64),
    "deep": torch.arange(4, dtype=torch.int32).reshape(1, 2, 1, 2, 1),
    "odd": torch.arange(3, dtype=torch.uint8),
    'quote " back \\ slash / tab \t line \n return \r feed \f bell \b': torch.tensor([1]),
    "control \x01 \x1f delete \x7f": torch.tensor([2]),
    "слой é 層 😀": torch.tensor([3]),
    "": torch.tensor([4]),
}
(folder / "safetensors_shapes.safetensors").write_bytes(save(tensors))


def file_of(header, data=0, length=None):
    header = header if isinstance(header, bytes) else header.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(
        i % 256 for i in range(data)
    )


def entry(dtype, shape, begin, end, **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def headers(**entries):
    return json.dumps(entries)


def accepted(content):
    try:
        safetensors.deserialize(content)
        return True
    except safetensors.SafetensorError:
        return False


foreign = {
    "last": entry("F32", [2], 9, 17),
    "__metadata__": {"b": "2", "a": "1 😀"},
    "first": entry("U8", [1], 0, 1),
    "f4": entry("F4", [2, 4], 1, 5),
    "f6": entry("F6_E3M2", [4], 5, 8),
    "empty": entry("F64", [0, 7], 9, 9),
    "odd": entry("F4", [2, 1], 8, 9),
}
# One byte before the data, so that they begin where no number is aligned.
text = json.dumps(foreign)
text += " " * ((1 - len(text)) % 8)
content = file_of(text, 17)
assert accepted(content)
(folder / "safetensors_foreign.safetensors").write_bytes(content)

good = entry("U8", [2], 0, 2)
# Each with the bytes of data after the header, 2 unless given.
HEADERS = {
    "good": headers(a=good),
    "empty object": ("{}", 0),
    "padded with spaces": headers(a=good) + "     ",
    "padded with zeros": headers(a=good) + "\0\0",
    "padded with text": headers(a=good) + " x",
    "two objects": headers(a=good) + "{}",
    "leading space": " " + headers(a=good),
    "byte order mark": "\ufeff" + headers(a=good),
    "empty header": ("", 0),
    "a list": ("[]", 0),
    "a number": ("1", 0),
    "cut": headers(a=good)[:-1],
    "not UTF-8": b'{"\xff":' + json.dumps(good).encode() + b"}",
    "cut UTF-8": b'{"\xc3":' + json.dumps(good).encode() + b"}",
    "surrogate": b'{"\\ud800":' + json.dumps(good).encode() + b"}",
    "raw control character": b'{"\x01":' + json.dumps(good).encode() + b"}",
    "trailing comma": headers(a=good)[:-1] + ",}",
    "comment": headers(a=good)[:-1] + "/**/}",
    "single quotes": headers(a=good).replace('"', "'"),
    "name twice": f'{{"a":{json.dumps(good)},"a":{json.dumps(good)}}}',
    "shape twice": '{"a":{"dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,2]}}',
    "metadata twice": f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{json.dumps(good)}}}',
    "metadata null": headers(__metadata__=None, a=good),
    "metadata list": headers(__metadata__=[], a=good),
    "metadata string": headers(__metadata__="x", a=good),
    "metadata number": headers(__metadata__={"a": 1}, a=good),
    "metadata nested": headers(__metadata__={"a": {"b": "c"}}, a=good),
    "entry null": headers(a=None),
    "entry list": headers(a=[1, 2]),
    "entry empty": headers(a={}),
    "no dtype": headers(a={"shape": [2], "data_offsets": [0, 2]}),
    "no shape": headers(a={"dtype": "U8", "data_offsets": [0, 2]}),
    "no offsets": headers(a={"dtype": "U8", "shape": [2]}),
    "more keys": headers(a=entry("U8", [2], 0, 2, more=[[1]])),
    "dtype unknown": headers(a=entry("U9", [2], 0, 2)),
    "dtype small": headers(a=entry("u8", [2], 0, 2)),
    "dtype number": headers(a=entry(8, [2], 0, 2)),
    "shape number": headers(a=entry("U8", 2, 0, 2)),
    "shape null": headers(a=entry("U8", None, 0, 2)),
    "shape nested": headers(a=entry("U8", [[2]], 0, 2)),
    "shape strings": headers(a=entry("U8", ["2"], 0, 2)),
    "shape negative": headers(a=entry("U8", [-2], 0, 2)),
    "shape negative twice": headers(a=entry("U8", [-1, -2], 0, 2)),
    "shape fraction": headers(a=entry("U8", [2.0], 0, 2)),
    "shape exponent": '{"a":{"dtype":"U8","shape":[2e0],"data_offsets":[0,2]}}',
    "shape true": headers(a=entry("U8", [True, 2], 0, 2)),
    "shape too small": headers(a=entry("U8", [1], 0, 2)),
    "shape too large": headers(a=entry("U8", [3], 0, 2)),
    "shape empty": headers(a=entry("U8", [], 0, 2)),
    "shape wraps": headers(a=entry("U8", [2**32, 2**32], 0, 2)),
    "shape wraps to the size": headers(a=entry("U8", [2**63 + 1, 2], 0, 2)),
    "bits wrap to the size": headers(a=entry("U64", [2**58 + 1], 0, 8)),
    "shape 2^63": headers(a=entry("U8", [2**63], 0, 2)),
    "shape 2^64": headers(a=entry("U8", [2**64], 0, 2)),
    "shape 2^63 times 0": (headers(a=entry("U8", [2**63, 0], 0, 0)), 0),
    "shape 2^62 times 0": (headers(a=entry("U8", [2**62, 0], 0, 0)), 0),
    "shape wraps, times 0": (headers(a=entry("U8", [0, 2**40, 2**40], 0, 0)), 0),
    "64 dimensions": headers(a=entry("U8", [2] + [1] * 63, 0, 2)),
    "65 dimensions": headers(a=entry("U8", [2] + [1] * 64, 0, 2)),
    "offsets number": '{"a":{"dtype":"U8","shape":[2],"data_offsets":2}}',
    "one offset": '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0]}}',
    "three offsets": '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,4]}}',
    "offsets fraction": headers(a=entry("U8", [2], 0.0, 2)),
    "offsets negative": headers(a=entry("U8", [2], -2, 0)),
    "offsets swapped": headers(a=entry("U8", [2], 2, 0)),
    "offsets equal": headers(a=entry("U8", [2], 1, 1)),
    "offsets late": (headers(a=entry("U8", [2], 1, 3)), 3),
    "offsets beyond": headers(a=entry("U8", [4], 0, 4)),
    "offsets far beyond": headers(a=entry("U8", [2], 2**64 - 2, 2**64 - 1)),
    "offsets wrap": headers(a=entry("U8", [2], 2**64 - 1, 1)),
    "offsets 2^64": headers(a=entry("U8", [2], 0, 2**64)),
    "two tensors": (headers(b=entry("U8", [2], 2, 4), a=good), 4),
    "overlap": (headers(a=good, b=entry("U8", [2], 1, 3)), 3),
    "the same bytes": headers(a=good, b=good),
    "a hole": (headers(a=good, b=entry("U8", [1], 3, 4)), 4),
    "bytes left over": (headers(a=good), 3),
    "bytes missing": (headers(a=good), 1),
    "bytes without tensors": ("{}", 1),
    "empty tensor between": (headers(a=good, b=entry("F32", [0], 1, 1)), 2),
    "empty tensor at the end": (headers(a=good, b=entry("F32", [0], 2, 2)), 2),
    "half a byte": headers(a=entry("F4", [3], 0, 2)),
    "sub-byte": (headers(a=entry("F6_E2M3", [4], 0, 3)), 3),
    "nested": ('{"a":' * 60 + "1" + "}" * 60, 0),
}
rows = []
for name, case in HEADERS.items():
    header, data = case if isinstance(case, tuple) else (case, 2)
    content = file_of(header, data)
    rows.append({"name": name, "file": content.hex(), "accepted": accepted(content)})
for name, content in {
    "empty file": b"",
    "seven bytes": bytes(7),
    "eight bytes": bytes(8),
    "length beyond the file": file_of("{}", 0, 3),
    "length above 100 MB": file_of("{}", 0, 100_000_001),
    "length 2^63": file_of("{}", 0, 2**63),
    "length 2^64 - 1": file_of("{}", 0, 2**64 - 1),
    "length too small": file_of("{}", 0, 1),
}.items():
    rows.append({"name": name, "file": content.hex(), "accepted": accepted(content)})
oracle = {"safetensors": safetensors.__version__, "torch": torch.__version__, "files": rows}
text = json.dumps(oracle, indent=0) + "\n"
(folder / "safetensors_headers.json").write_text(text, encoding="utf-8")
