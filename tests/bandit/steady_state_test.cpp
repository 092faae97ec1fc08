// Replaces the global operator new to count allocations: one such file in an executable.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "droppeft/bandit/epsilon_greedy.hpp"
#include "droppeft/bandit/exp3.hpp"
#include "droppeft/bandit/kl_ucb.hpp"
#include "droppeft/bandit/linear.hpp"
#include "droppeft/bandit/moss.hpp"
#include "droppeft/bandit/softmax.hpp"
#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "droppeft/bandit/ucb_tuned.hpp"
#include "droppeft/bandit/ucb_v.hpp"

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

TEST_CASE_TEMPLATE("in a steady state selectors allocate nothing", S, UcbSelector, UcbVSelector,
                   UcbTunedSelector, MossSelector, KlUcbSelector, GaussianKlUcbSelector,
                   BetaThompsonSelector, GaussianThompsonSelector,
                   NormalInverseGammaThompsonSelector, EpsilonGreedySelector, SoftmaxSelector,
                   Exp3Selector) {
  for (const auto& [window, discount] :
       {std::pair(0U, 1.0), std::pair(50U, 1.0), std::pair(0U, 0.9)}) {
    typename S::Options options;
    options.window = window;
    options.discount = discount;
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

TEST_CASE_TEMPLATE("in a steady state contextual selectors allocate nothing", S, LinUcbSelector,
                   LinThompsonSelector) {
  S selector(5, 8);
  std::vector<double> context(8);
  std::vector<Ticket> open;
  open.reserve(8);
  const auto play = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      context[static_cast<std::size_t>(i) % 8] = 0.1 * (i % 11);
      open.push_back(selector.select(context));
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
