// Replaces the global operator new to count allocations: one such file in an executable.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"

using namespace droppeft;

namespace {

thread_local std::size_t allocations = 0;

}  // namespace

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

TEST_CASE_TEMPLATE("in a steady state selectors allocate nothing", S, UcbSelector,
                   BetaThompsonSelector, GaussianThompsonSelector) {
  for (const std::size_t window : {0U, 50U}) {
    typename S::Options options;
    options.window = window;
    S selector(10, options);
    std::vector<Ticket> open;
    open.reserve(8);
    const auto play = [&](int steps) {
      for (int i = 0; i < steps; ++i) {
        open.push_back(selector.select());
        if (open.size() < 8) continue;
        selector.update(open.front(), 0.5);
        open.erase(open.begin());
      }
    };
    play(200);
    const std::size_t before = allocations;
    play(1000);
    CHECK(allocations == before);
  }
}
