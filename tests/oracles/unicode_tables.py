"""Writes include/droppeft/io/unicode_tables.hpp from the Python package `tokenizers`.

Usage: python unicode_tables.py OUTPUT.hpp

BERT's normaliser in that package rests on several Unicode tables of different ages, and no Unicode
library has exactly these. So each code point is put to the package itself, one step at a time, and
the answers are packed into ranges. What the tables say is then checked against the package's whole
normaliser, again for every code point. Takes about half a minute. Made with tokenizers 0.23.3.
"""

import sys
import unicodedata

import tokenizers
from tokenizers import normalizers, pre_tokenizers

LETTER, REMOVED, SPACE, IDEOGRAPH, PUNCTUATION, MARK, BLOCKING_MARK = range(7)
HANGUL = range(0xAC00, 0xD7A4)
CODES = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]


def bert(**steps):
    off = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return normalizers.BertNormalizer(**{**off, **steps}).normalize_str


clean = bert(clean_text=True)
space_out = bert(handle_chinese_chars=True)
strip = bert(strip_accents=True)
lower = bert(lowercase=True)
whole = normalizers.BertNormalizer().normalize_str
nfd = normalizers.NFD().normalize_str
split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str


def is_own_decomposition(code):
    return nfd(chr(code)) == chr(code)


def reorders(first, second):
    return nfd(first + second) != first + second


# Marks of the lowest and of the highest canonical combining class, and from them a mark of every
# class: the probes that tell the class of any other. Marks that are newer than the tables inside
# the package are letters there, and are no probes.
LOWEST, HIGHEST = "\u0334", "\u0345"
PROBES = {}
for code in CODES:
    value = unicodedata.combining(chr(code))
    if value and value not in PROBES and is_own_decomposition(code):
        if reorders(chr(code), LOWEST) or reorders(HIGHEST, chr(code)):
            PROBES[value] = chr(code)
for small in PROBES:
    for large in PROBES:
        assert reorders(PROBES[large], PROBES[small]) == (small < large)


def combining_class(code):
    """The class that NFD orders by, 0 for a starter; only for its own decomposition."""
    mark = chr(code)
    if not reorders(mark, LOWEST) and not reorders(HIGHEST, mark):
        return 0
    for value, probe in PROBES.items():
        if not reorders(mark, probe) and not reorders(probe, mark):
            return value
    raise AssertionError(hex(code))


CLASS_OF_MARKS = {}


def cached_class(code):
    if code not in CLASS_OF_MARKS:
        CLASS_OF_MARKS[code] = combining_class(code)
    return CLASS_OF_MARKS[code]


def kind_of(code):
    text = chr(code)
    cleaned = clean(text)
    if cleaned == "":
        return REMOVED
    if cleaned == " ":
        return SPACE
    assert cleaned == text
    if space_out(text) != text:
        assert space_out(text) == f" {text} " and len(strip(text)) == 1
        return IDEOGRAPH
    pieces = [piece for piece, _ in split(f"a{text}b")]
    classes = [] if code in HANGUL else [cached_class(ord(c)) for c in nfd(text)]
    kept = [] if code in HANGUL else [cached_class(ord(c)) for c in strip(text)]
    # A blocking mark goes, but marks are not reordered across it.
    if strip(text) == "":
        return BLOCKING_MARK if 0 in classes else MARK
    # Else the table would have to say where in the decomposition the blocking mark was.
    assert not any(kept) or len(kept) == len(classes)
    if pieces == ["a", text, "b"]:
        assert not any(classes) and lower(text) == text and len(strip(text)) == 1
        return PUNCTUATION
    assert pieces == [f"a{text}b"]
    if is_own_decomposition(code) and classes[0]:
        assert classes[0] > BLOCKING_MARK
        return classes[0]
    return LETTER


def packed(rows):
    """Rows of source text, as many to a line as fit."""
    lines, line = [], "   "
    for row in rows:
        if len(line) + len(row) + 2 > 100:
            lines.append(line)
            line = "   "
        line += f" {row},"
    return "\n".join(lines + [line])


kinds = {code: kind_of(code) for code in CODES}
starts = []
for code in CODES:
    if not starts or starts[-1][1] != kinds[code]:
        starts.append((code, kinds[code]))

single, multiple = {}, {}
for code in CODES:
    if kinds[code] in (LETTER, IDEOGRAPH, PUNCTUATION) and code not in HANGUL:
        stripped = strip(chr(code))
        if len(stripped) > 1:
            assert len(stripped) <= 3 and kinds[code] == kinds[ord(stripped[0])] == LETTER
            multiple[code] = [ord(c) for c in stripped]
        elif stripped != chr(code):
            single[code] = ord(stripped)
            # The reader asks for the kind of what a character became, not of the character.
            assert kinds[single[code]] in (kinds[code], PUNCTUATION)

runs, targets = [], []
for code, target in single.items():
    if runs and runs[-1][1] + 1 == code:
        runs[-1][1] = code
    else:
        runs.append([code, code, len(targets)])
    targets.append(target)

lowered = {code: ord(lower(chr(code))) for code in CODES if len(lower(chr(code))) == 1}
assert [code for code in CODES if code not in lowered] == [0x130] and lower("\u0130") == "i\u0307"
cases = []
for code, small in lowered.items():
    if code == small:
        continue
    last = cases[-1] if cases else None
    if last and small - code == last[3] and (
        last[0] == last[1] and code - last[1] <= 2 or code - last[1] == last[2]
    ):
        last[2] = code - last[1]
        last[1] = code
    else:
        cases.append([code, code, 1, small - code])

# What the tables say, put together as the C++ reader does, against the package's whole normaliser.
case_of = {}
for first, last, step, offset in cases:
    for code in range(first, last + 1, step):
        case_of[code] = code + offset
for code in CODES:
    kind = kinds[code]
    if kind in (REMOVED, MARK, BLOCKING_MARK):
        expected = ""
    elif kind == SPACE:
        expected = " "
    else:
        if code in HANGUL:
            index = code - HANGUL[0]
            parts = [0x1100 + index // 588, 0x1161 + index // 28 % 21]
            parts += [0x11A7 + index % 28] if index % 28 else []
        else:
            parts = multiple.get(code, [single.get(code, code)])
        expected = "".join(chr(case_of.get(part, part)) for part in parts)
        expected = f" {expected} " if kind == IDEOGRAPH else expected
    assert whole(chr(code)) == expected, hex(code)

longer = [
    f"{code:#x},{{{','.join(f'{part:#x}' for part in parts)}}}" for code, parts in multiple.items()
]
header = f"""#pragma once

// Generated by tests/oracles/unicode_tables.py with tokenizers {tokenizers.__version__}.
// Do not edit: change the script.

#include <array>
#include <cstdint>

/// The Unicode tables of the BERT normaliser in the Python package `tokenizers`, which are those of
/// no single Unicode version. Read by wordpiece.hpp.
namespace droppeft::detail::unicode {{

/// What becomes of a code point. A value above `blocking_mark` is a letter that is also a combining
/// mark, and is its canonical combining class.
enum Kind : std::uint8_t {{
  letter,
  /// Control characters, private use, U+FFFD.
  removed,
  space,
  /// A word of its own, as is punctuation.
  ideograph,
  punctuation,
  /// Goes when accents are stripped.
  mark,
  /// The same, but combining marks are not reordered across it.
  blocking_mark,
}};

/// `kind` holds from `first` to before the next row.
struct KindStart {{
  char32_t first;
  std::uint8_t kind;
}};

/// The code points first .. last become targets[index] and the following, without accents.
struct DecompositionRun {{
  char32_t first;
  char32_t last;
  std::uint16_t index;
}};

/// What is left of `code` without accents, padded with zeros.
struct LongDecomposition {{
  char32_t code;
  std::array<char32_t, 3> parts;
}};

/// Every `step`-th code point from `first` to `last` has its small letter `offset` further on.
struct CaseRun {{
  char32_t first;
  char32_t last;
  std::uint8_t step;
  std::int32_t offset;
}};

// clang-format off
inline constexpr KindStart kind_starts[] = {{
{packed(f"{{{code:#x},{kind}}}" for code, kind in starts)}
}};

inline constexpr DecompositionRun decomposition_runs[] = {{
{packed(f"{{{first:#x},{last:#x},{index}}}" for first, last, index in runs)}
}};

inline constexpr char32_t decomposition_targets[] = {{
{packed(f"{target:#x}" for target in targets)}
}};

inline constexpr LongDecomposition long_decompositions[] = {{
{packed(f"{{{row}}}" for row in longer)}
}};

inline constexpr CaseRun case_runs[] = {{
{packed(f"{{{first:#x},{last:#x},{step},{offset}}}" for first, last, step, offset in cases)}
}};
// clang-format on

}}  // namespace droppeft::detail::unicode
"""

with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write(header)
