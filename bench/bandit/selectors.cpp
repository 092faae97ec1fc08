// A play, select and update, of every selector: nanoseconds and allocations in a steady state, with
// rewards in (0, 1) and one ticket open at a time. Needs no LibTorch.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <droppeft/bandit/epsilon_greedy.hpp>
#include <droppeft/bandit/exp3.hpp>
#include <droppeft/bandit/kl_ucb.hpp>
#include <droppeft/bandit/linear.hpp>
#include <droppeft/bandit/moss.hpp>
#include <droppeft/bandit/softmax.hpp>
#include <droppeft/bandit/thompson.hpp>
#include <droppeft/bandit/ucb.hpp>
#include <droppeft/bandit/ucb_tuned.hpp>
#include <droppeft/bandit/ucb_v.hpp>
#include <new>
#include <string>
#include <vector>

#include "rows.hpp"

namespace {

std::size_t allocations = 0;

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace droppeft;

constexpr int repetitions = 61;
constexpr std::size_t warm_plays = 20000, plays = 2000;

/// Rewards spread by 0.3 around means from 0.2 to 0.8, 1024 an arm.
class Rewards {
 public:
  explicit Rewards(std::size_t arms) {
    Stream stream(1);
    for (std::size_t arm = 0; arm < arms; ++arm)
      for (std::size_t i = 0; i < per_arm; ++i)
        values_.push_back(0.2 + 0.6 * static_cast<double>(arm) / static_cast<double>(arms - 1) +
                          0.3 * (stream.uniform() - 0.5));
  }
  double operator()(std::size_t arm, std::size_t play) const {
    return values_[arm * per_arm + play % per_arm];
  }

 private:
  static constexpr std::size_t per_arm = 1024;
  std::vector<double> values_;
};

struct Row {
  std::string name;
  double asked;  // nanoseconds; 0: nothing asked
  double allocations;
};
std::vector<Row> rows;

template <class S>
void play(S& selector, const Rewards& rewards, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const Ticket ticket = selector.select();
    selector.update(ticket, rewards(ticket.arm, i));
  }
}

/// asked_100: nanoseconds asked at 100 arms, asked_10 at 10; 0: nothing asked.
template <class Policy>
void add(const std::string& name, double asked_10, double asked_100,
         const SelectorOptions<Policy>& options = {}) {
  for (const std::size_t arms : {10, 100}) {
    const std::string row = "selectors/" + name + ", " + std::to_string(arms) + " arms";
    const Rewards rewards(arms);
    BanditSelector<Policy> warm(arms, options);
    play(warm, rewards, warm_plays);
    const std::size_t before = allocations;
    play(warm, rewards, plays);
    const auto allocated = static_cast<double>(allocations - before);
    rows.push_back({row, arms == 10 ? asked_10 : asked_100, allocated / plays});
    add_row(row, repetitions, [=](benchmark::State& state, const std::string& its_row) {
      auto selector = warm;
      play(selector, rewards, 100);
      time_once(state, its_row, [&] { play(selector, rewards, plays); });
    });
  }
}

/// With 10 arms and contexts of 16 numbers.
template <class S>
void add_linear(const std::string& name) {
  constexpr std::size_t arms = 10, dimension = 16, contexts = 256;
  std::vector<double> numbers;
  Stream stream(2);
  while (numbers.size() < contexts * dimension) numbers.push_back(stream.uniform() - 0.5);
  const auto play = [numbers](S& selector, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const double* context = numbers.data() + i % contexts * dimension;
      const Ticket ticket = selector.select({context, dimension});
      selector.update(ticket, context[ticket.arm]);
    }
  };
  const std::string row = "selectors/" + name;
  S warm(arms, dimension);
  play(warm, warm_plays);
  const std::size_t before = allocations;
  play(warm, plays);
  const auto allocated = static_cast<double>(allocations - before);
  rows.push_back({row, 5000, allocated / plays});
  add_row(row, repetitions, [=](benchmark::State& state, const std::string& its_row) {
    S selector = warm;
    play(selector, 100);
    time_once(state, its_row, [&] { play(selector, plays); });
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (!initialize({arguments, arguments + count})) return 2;

  constexpr double closed = 1000, searched = 15000;
  add<Ucb1>("UCB1", 100, closed);
  add<Ucb1>("UCB1, window 1000", 0, 0, {.window = 1000});
  add<Ucb1>("UCB1, discount 0.999", 0, 0, {.discount = 0.999});
  add<UcbV>("UCB-V", 0, closed);
  add<UcbTuned>("UCB-tuned", 0, closed);
  add<Moss>("MOSS", 0, closed);
  add<KlUcb>("KL-UCB", 0, searched);
  add<GaussianKlUcb>("Gaussian KL-UCB", 0, closed);
  add<BetaThompson>("Beta Thompson", 0, searched);
  add<GaussianThompson>("Gaussian Thompson", 0, searched);
  add<NormalInverseGammaThompson>("normal-inverse-gamma Thompson", 0, searched);
  add<EpsilonGreedy>("epsilon-greedy", 0, searched);
  add<Softmax>("softmax", 0, searched);
  add<Exp3>("EXP3", 0, searched);
  add_linear<LinUcbSelector>("LinUCB, 10 arms, contexts of 16");
  add_linear<LinThompsonSelector>("linear Thompson, 10 arms, contexts of 16");
  benchmark::RunSpecifiedBenchmarks();

  std::printf("\n     ns fastest  below allocations  of a play; 0 below: nothing asked\n");
  bool met = true;
  for (const auto& [name, asked, allocated] : rows) {
    const auto seconds = median(name);
    if (!seconds) continue;
    const double each = 1e9 / static_cast<double>(plays);
    std::printf("%7.0f %7.0f %6.0f %11g  %s\n", each * *seconds,
                each * std::ranges::min(measured[name]), asked, allocated, name.c_str() + 10);
    met = met && allocated == 0 && (asked == 0 || each * *seconds < asked);
  }
  std::printf("%s\n", met ? "all as asked" : "NOT all as asked");
}
