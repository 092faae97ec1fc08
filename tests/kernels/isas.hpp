#pragma once

#include <vector>

#include "droppeft/kernels/cpu/simd.hpp"

/// The instruction sets that this machine runs.
inline std::vector<droppeft::cpu::Isa> isas() {
  using droppeft::cpu::Isa;
  std::vector<Isa> all;
  for (const Isa isa : {Isa::plain, Isa::avx2, Isa::avx512})
    if (isa <= droppeft::cpu::best_isa()) all.push_back(isa);
  return all;
}
